"""Budgets: the counts are those of the real modules, and a method gets the rank that the rule says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from medbench.adapters import ExpertLoraConfig
from medbench.backbones.layers import Layers, LayerTable
from medbench.budget import Budget, allocate, parse_budget
from medbench.errors import RequestError
from medbench.methods import Method, Recipe
from medbench.tuners import ExpertLoraTuner, LoraTuner

LORA = Method(name="lora", description="", source="", tuner="lora", paper_rank=32)
MOE = Method(
    name="moe", description="", source="", tuner="expert_lora", paper_rank=32, adapter={"num_experts": 4, "eta": 1.0}
)
NONE = Method(name="none", description="", source="", tuner="none")
FULL = Method(name="full", description="", source="", tuner="full")
DORA, HYDRA, ADAMOLE, KASA = (
    Method(name=name, description="", source="", tuner=tuner, adapter=adapter)
    for name, tuner, adapter in (
        ("dora", "lora", {"use_dora": True}),
        ("hydra", "expert_lora", {"num_experts": 4, "shared_a": True, "init": "zero"}),
        ("adamole", "expert_lora", {"num_experts": 4, "router": "threshold"}),
        ("kasa", "expert_lora", {"num_experts": 1, "router": "none", "diagonal": True, "init": "zero"}),
    )
)
WIDE = MOE.model_copy(update={"name": "wide", "adapter": {"num_experts": 40}})
METHODS = {m.name: m for m in (LORA, MOE, DORA, HYDRA, ADAMOLE, KASA, NONE, FULL)}
#: Parameters beside one linear of n inputs and m outputs at rank r, by the paper's method section; N = 4.
FORMULAS = {
    "lora": lambda r, m, n: r * (m + n),
    "dora": lambda r, m, n: r * (m + n) + m,
    "moe": lambda r, m, n: r * (m + n) + 4 * n,
    "hydra": lambda r, m, n: r * m + r // 4 * n + 4 * n,
    "adamole": lambda r, m, n: r * (m + n) + 4 * n + n,
    "kasa": lambda r, m, n: r * (m + n) + r,
}
TABLE = LayerTable((Layers("a.*", 64, 32, 2), Layers("b", 48, 96, 1)), 20_000)


def share(method: Method, budget: str, table: LayerTable = TABLE, reference_table: LayerTable | None = None) -> Any:
    def at(name: str) -> tuple[Method, Recipe, LayerTable]:
        return METHODS[name], METHODS[name].at("vlm"), reference_table or table

    return allocate(method, method.at("vlm"), parse_budget(budget, 16), table, at)


def test_the_reference_is_counted_on_its_own_layers() -> None:
    wide = LayerTable((Layers("c.*", 256, 256, 8),), 10**6)
    wanted = share(MOE, "rank=16", wide).trainable
    found = share(LORA, "like=moe:16", TABLE, wide)
    assert found.distance == pytest.approx(found.trainable / wanted - 1)
    assert found.distance < -0.5


@pytest.mark.parametrize(
    ("text", "parsed", "spelled"),
    [
        (None, Budget("like", 16, "spectral_moe"), "like=spectral_moe:16"),
        ("like=lora", Budget("like", 16, "lora"), "like=lora:16"),
        ("like=my-lora.v2:8", Budget("like", 8, "my-lora.v2"), "like=my-lora.v2:8"),
        (" 2M ", Budget("count", 2_000_000), "2000000"),
        ("1.5m", Budget("count", 1_500_000), "1500000"),
        ("300k", Budget("count", 300_000), "300000"),
        ("1B", Budget("count", 10**9), "1000000000"),
        ("16384", Budget("count", 16_384), "16384"),
        ("1%", Budget("percent", 1), "1%"),
        ("0.5 %", Budget("percent", 0.5), "0.5%"),
        ("rank=32", Budget("rank", 32), "rank=32"),
        ("paper", Budget("paper"), "paper"),
    ],
)
def test_the_forms_of_a_budget(text: str | None, parsed: Budget, spelled: str) -> None:
    assert parse_budget(text, 16) == parsed
    assert parsed.text() == spelled
    assert parse_budget(spelled, 99) == parsed


@pytest.mark.parametrize("text", ["0", "0%", "0M", "rank=0", "like=lora:0"])
def test_a_budget_of_nothing_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=f"budget '{text}' must be greater than 0"):
        parse_budget(text, 16)


@pytest.mark.parametrize("text", ["", "-1", "2 M 3", "rank=", "rank=2.5", "like=", "1e6", "nan%", "2T", "like=lora:x"])
def test_other_forms_are_refused_with_examples(text: str) -> None:
    if text == "":
        assert parse_budget(text, 16) == parse_budget(None, 16)
        return
    with pytest.raises(RequestError, match=r"is not understood; use like=spectral_moe:32, 2M .*, 1%"):
        parse_budget(text, 16)


SIDES = st.integers(8, 200)
TABLES = st.lists(st.builds(Layers, st.just("x"), SIDES, SIDES, st.integers(1, 5)), min_size=1, max_size=4).map(
    lambda layers: LayerTable(tuple(layers), 10 * sum(layer.out * layer.inp * layer.count for layer in layers))
)
RANKED = st.sampled_from([LORA, DORA, MOE, HYDRA, ADAMOLE, KASA])


def counts(method: Method, table: LayerTable) -> dict[int, int]:
    """Every rank a method can have, with its count by the formula."""
    step, formula = method.adapter.get("num_experts", 1), FORMULAS[method.name]
    return {
        rank: sum(y.count * formula(rank, y.out, y.inp) for y in table.layers)
        for rank in range(step, table.smallest_side + 1, step)
    }


@settings(max_examples=150, deadline=None)
@given(RANKED, TABLES, st.integers(1, 10**6))
def test_an_absolute_budget_gives_the_largest_rank_not_above(method: Method, table: LayerTable, limit: int) -> None:
    every = counts(method, table)
    fitting = [rank for rank, count in every.items() if count <= limit]
    if not fitting:
        with pytest.raises(RequestError, match=f"--budget {min(every.values())}\\)"):
            share(method, str(limit), table)
        return
    found = share(method, str(limit), table)
    assert (found.rank, found.trainable) == (max(fitting), every[max(fitting)])
    assert found.comparable
    assert found.distance == pytest.approx(found.trainable / limit - 1)
    larger = share(method, str(limit + 1000), table)
    assert larger.trainable >= found.trainable  # monotone


@settings(max_examples=150, deadline=None)
@given(RANKED, RANKED, TABLES, st.integers(1, 50))
def test_like_gives_the_nearest_rank_at_most_5_percent_above(
    method: Method, reference: Method, table: LayerTable, rank: int
) -> None:
    wanted = counts(reference, table).get(rank)
    if wanted is None:
        with pytest.raises(RequestError, match=f"method {reference.name} cannot have rank {rank}"):
            share(method, f"like={reference.name}:{rank}", table)
        return
    allowed = {r: c for r, c in counts(method, table).items() if c <= 1.05 * wanted}
    if not allowed:
        with pytest.raises(RequestError, match="below the smallest"):
            share(method, f"like={reference.name}:{rank}", table)
        return
    found = share(method, f"like={reference.name}:{rank}", table)
    assert found.trainable == allowed[found.rank]
    assert all(abs(found.trainable - wanted) <= abs(count - wanted) for count in allowed.values())
    if method is reference:
        assert (found.rank, found.distance) == (rank, 0)


def test_a_rank_above_the_budget_is_taken_only_within_the_tolerance() -> None:
    table = LayerTable((Layers("x", 100, 70, 1),), 7_000)  # LoRA: 170 a rank; 4 routed experts: 280 more
    # like=moe:40 is 41.65 ranks of LoRA: 42 is nearest and 0.8 % above. like=moe:4 is 5.65: 6 would be 6 % above.
    assert [share(LORA, f"like=moe:{rank}", table).rank for rank in (40, 4)] == [42, 5]
    with pytest.raises(RequestError, match="below the smallest that method moe can have: 960 at rank 4"):
        share(MOE, "like=lora:5", table)


def test_percent_is_of_the_whole_model_and_paper_is_the_recipes_rank() -> None:
    assert share(LORA, "10%").trainable == max(c for c in counts(LORA, TABLE).values() if c <= 0.1 * TABLE.total)
    paper = share(LORA, "paper")
    assert (paper.rank, paper.comparable, paper.distance) == (32, False, None)
    with pytest.raises(RequestError, match="method x has no rank in the paper; give --budget rank=R"):
        share(LORA.model_copy(update={"name": "x", "paper_rank": None}), "paper")


def test_the_papers_rank_may_be_another_at_a_scale() -> None:
    both = LORA.model_copy(update={"scales": {"clip": Recipe(paper_rank=8)}})
    assert [both.at(scale).paper_rank for scale in ("vlm", "nano", "clip")] == [32, 32, 8]


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        (LORA, "10", r"below the smallest that method lora can have: 336 at rank 1 \(--budget 336\)"),
        (MOE, "like=lora:1", r"below the smallest that method moe can have: 1,984 at rank 4 \(--budget 1984\)"),
        (MOE, "rank=6", "method moe cannot have rank 6: it must be a multiple of its 4 experts, from 4 to 32"),
        (LORA, "rank=33", "method lora cannot have rank 33: it must be from 1 to 32"),
        (LORA, "like=none", "budget like=none:16: method none has no rank to be like"),
        (WIDE, "rank=40", "method wide: 40 experts need a layer side of 40, the smallest has less"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(method: Method, budget: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        share(method, budget)


@pytest.mark.parametrize("budget", ["rank=8", "1", "1%", "paper"])
def test_reference_rows_stand_outside_the_budget(budget: str) -> None:
    assert dataclasses.astuple(share(NONE, budget)) == (None, 0, None, False)
    assert dataclasses.astuple(share(FULL, budget)) == (None, TABLE.total, None, False)
    tower = dataclasses.replace(TABLE, tower=9_000, base=9_000)
    assert dataclasses.astuple(share(FULL, budget, tower)) == (None, 9_000, None, False)


def test_the_settings_of_a_tuner_are_fields_of_its_configuration_with_its_defaults() -> None:
    ours = {"targets", "alpha_over_r", "dropout"}  # target_modules, lora_alpha and lora_dropout in peft's words
    assert set(LoraTuner.defaults) - ours <= {field.name for field in dataclasses.fields(LoraConfig)}
    inherited = {field.name for field in dataclasses.fields(ExpertLoraConfig.__mro__[1])}
    where = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
    fields = {f.name: f.default for f in dataclasses.fields(ExpertLoraConfig) if f.name not in inherited | where}
    settings = {k: v for k, v in ExpertLoraTuner.defaults.items() if k not in ("targets", "alpha_over_r")}
    assert settings == {name: default for name, default in fields.items() if name not in ("r", "seed")}
