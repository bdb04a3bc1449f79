"""Budgets: the counts are those of the real modules, and a method gets the rank that the rule says."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig

from medbench.adapters import ExpertLoraConfig
from medbench.backbones.registry import Layers, LayerTable, backbone_names, get_backbone, shipped_table
from medbench.budget import DEFAULT_EXPERTS, Budget, allocate, count_parameters, parse_budget
from medbench.catalog import Catalog, Settings
from medbench.errors import RequestError
from medbench.listing import budget_rows
from medbench.methods import ADAPTER_FIELDS, Method, Recipe
from medbench.spec import MethodSpec

CATALOG = Catalog(Settings())
LORA = Method(name="lora", description="", source="", tuner="lora", paper_rank=32)
MOE = Method(
    name="moe", description="", source="", tuner="expert_lora", paper_rank=32, adapter={"num_experts": 4, "eta": 1.0}
)
NONE = Method(name="none", description="", source="", tuner="none")
FULL = Method(name="full", description="", source="", tuner="full")
METHODS = {m.name: m for m in (LORA, MOE, NONE, FULL)}
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


def test_golden_of_the_paper_backbone() -> None:
    """The issue's figures for r = 32 on Qwen2.5-VL-7B: 80.7 M or 0.974 %; with 8 experts + 9.06 M or 1.083 %."""
    rows = {r["method"]: r for r in budget_rows(CATALOG, "qwen2.5-vl-7b", ["lora", "spectral_moe"], "rank=32", True)}
    assert rows["lora"]["trainable_parameters"] == 80_740_352
    assert round(rows["lora"]["percent_of_model"], 3) == 0.974
    assert rows["spectral_moe"]["router_parameters"] == 9_060_352
    assert rows["spectral_moe"]["trainable_parameters"] == 80_740_352 + 9_060_352
    assert round(rows["spectral_moe"]["percent_of_model"], 3) == 1.083


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
ROUTED = st.sampled_from([LORA, MOE])


def counts(method: Method, table: LayerTable) -> dict[int, int]:
    """Every rank a method can have, with its count by the formula of the paper's method section."""
    step = method.adapter.get("num_experts", 1)
    experts = step if method is MOE else 0
    return {
        rank: sum(y.count * (rank * (y.out + y.inp) + experts * y.inp) for y in table.layers)
        for rank in range(step, table.smallest_side + 1, step)
    }


@settings(max_examples=150, deadline=None)
@given(ROUTED, TABLES, st.integers(1, 10**6))
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
@given(ROUTED, ROUTED, TABLES, st.integers(1, 50))
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


@pytest.mark.parametrize(
    ("method", "budget", "message"),
    [
        (LORA, "10", r"below the smallest that method lora can have: 336 at rank 1 \(--budget 336\)"),
        (MOE, "like=lora:1", r"below the smallest that method moe can have: 1,984 at rank 4 \(--budget 1984\)"),
        (MOE, "rank=6", "method moe cannot have rank 6: it must be a multiple of its 4 experts, from 4 to 32"),
        (LORA, "rank=33", "method lora cannot have rank 33: it must be from 1 to 32"),
        (LORA, "like=none", "budget like=none:16: method none has no rank to be like"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(method: Method, budget: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        share(method, budget)


@pytest.mark.parametrize("budget", ["rank=8", "1", "1%", "paper"])
def test_reference_rows_stand_outside_the_budget(budget: str) -> None:
    assert dataclasses.astuple(share(NONE, budget)) == (None, 0, None, False)
    assert dataclasses.astuple(share(FULL, budget)) == (None, TABLE.total, None, False)


CASES: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"alpha_over_r": 2.0, "dropout": 0.0}),
    ("lora", {}),
    ("lora", {"use_dora": True}),
    ("lora", {"use_rslora": True}),
    ("expert_lora", {"num_experts": 8, "top_k": 2, "init": "zero"}),
    ("expert_lora", {"num_experts": 4, "router": "softmax", "init": "zero"}),
    ("expert_lora", {"num_experts": 2, "router": "none", "init": "zero"}),
    ("expert_lora", {"init": "zero"}),  # the tuner's own number of experts
    ("full", {}),
]


@pytest.mark.parametrize("targets", ["language", "vision", "language+vision"])
@pytest.mark.parametrize(("tuner", "adapter"), CASES, ids=lambda case: str(case))
def test_counts_equal_the_modules(tuner: str, adapter: dict[str, Any], targets: str) -> None:
    import torch

    from medbench.backbones.adapt import attach, trainable_parameters
    from medbench.backbones.vlm import load_vlm

    backbone = get_backbone("nano-vl")
    vlm = load_vlm(backbone, torch.float32, torch.device("cpu"), {})
    table = shipped_table(backbone, targets)
    assert table is not None
    assert sum(p.numel() for p in vlm.model.parameters()) == table.total
    settings = {**adapter, "targets": targets, "r": 16} if tuner != "full" else {}
    attach(vlm, MethodSpec("m", tuner, settings), seed=0)  # type: ignore[arg-type]
    assert trainable_parameters(vlm) == count_parameters(tuner, adapter, 16, table)


def test_the_shipped_tables_are_those_of_the_model() -> None:
    from torch import nn

    from medbench.backbones.registry import table_of, target_pattern
    from medbench.backbones.vlm import meta_model

    backbone = get_backbone("nano-vl")
    model = meta_model(backbone)
    linears = [(n, m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    total = sum(p.numel() for p in model.parameters())
    for group, shipped in backbone.tables.items():
        read = table_of(linears, target_pattern(model.config.model_type, group), total)
        assert set(shipped.layers) == set(read.layers)
        assert shipped.total == read.total
    assert set(backbone.tables) == {"language", "vision"}


@pytest.mark.parametrize("name", backbone_names())
def test_a_group_named_twice_counts_once(name: str) -> None:
    backbone = get_backbone(name)
    assert shipped_table(backbone, "language+language") == shipped_table(backbone, "language")


def test_the_settings_of_a_tuner_are_fields_of_its_configuration() -> None:
    ours = {"targets", "alpha_over_r", "dropout"}  # target_modules, lora_alpha and lora_dropout in peft's words
    lora = {field.name for field in dataclasses.fields(LoraConfig)}
    assert ADAPTER_FIELDS["lora"] - ours <= lora
    expert = {field.name: field for field in dataclasses.fields(ExpertLoraConfig)}
    assert ADAPTER_FIELDS["expert_lora"] - {"targets"} <= set(expert)
    inherited = {field.name for field in dataclasses.fields(ExpertLoraConfig.__mro__[1])}
    where = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"}
    assert set(expert) - inherited - where - {"r", "seed"} == ADAPTER_FIELDS["expert_lora"] - {"targets"}
    assert expert["num_experts"].default == DEFAULT_EXPERTS
    assert expert["router"].default != "none"
