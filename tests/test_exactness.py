"""Every method on every model: how it starts, learns, steps aside, shares a base, and merges.

The rest of the matrix: test_exactness_reload.py (stored adapters), test_exactness_theory.py (formulas, peft's own).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_exactness_common import (
    ADAPTERS,
    KINDS,
    METHODS,
    RANK,
    ROUTED,
    TUNED,
    Case,
    batch_of,
    build,
    distance,
    output_of,
    perturb,
    same,
    save,
    tensors_of,
    train,
)
from torch import nn

from medbench.errors import RequestError

#: What a method does to the function before it is trained.
NOTHING = {"none", "full_ft", "lora", "rslora", "dora", "moelora", "hydralora", "adamole"}
ROUNDING = {"pissa", "milora", "full_ft_moe"}
DROPS = {"kasa"}
ON_AVERAGE = {"spectral_moe", "goat"}


@dataclass(frozen=True)
class Trained:
    """A case that was trained for a few steps, and what was seen on the way.

    Attributes:
        base: the plain model's output.
        start: the output before the first step, `output` after the last.
        losses: of the steps.
        stored: an adapter's folder from between, and `stored_output` from then.
    """

    case: Case
    base: torch.Tensor
    start: torch.Tensor
    losses: list[float]
    output: torch.Tensor
    stored: Path
    stored_output: torch.Tensor


@pytest.fixture(scope="module")
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    method, kind = request.param
    case, folder = build(method, kind), tmp_path_factory.mktemp("stored")
    base, start = output_of(KINDS[kind].base(), case.batch), case.output()
    losses = train(case, 2) if case.trained else []
    if method in ADAPTERS:
        save(case, folder)
    between = case.output()
    losses += train(case, 4) if case.trained else []
    return Trained(case, base, start, losses, case.output(), folder, between)


def over(methods: Iterable[str]) -> pytest.MarkDecorator:
    """Runs a test on trained cases, method by method on every model; a case is trained once for all tests."""
    pairs = [(method, kind) for kind in KINDS for method in methods]
    return pytest.mark.parametrize("trained", pairs, indirect=True, ids=["-".join(pair) for pair in pairs])


def linears(kind: str, base: nn.Module) -> Iterator[nn.Linear]:
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear) and re.fullmatch(KINDS[kind].pattern, name):
            yield module


def test_every_method_says_how_it_starts() -> None:
    assert sorted([*NOTHING, *ROUNDING, *DROPS, *ON_AVERAGE]) == sorted(METHODS)


@over(METHODS)
def test_at_the_start_the_function_is_the_base_or_off_by_what_is_known(trained: Trained) -> None:
    case = trained.case
    if case.method in NOTHING:
        assert torch.equal(trained.start, trained.base)
    elif case.method in ROUNDING:
        assert distance(trained.start, trained.base) < 5e-6
    elif case.method in DROPS:
        base = KINDS[case.kind].base()
        for linear in linears(case.kind, base):
            u, s, vh = torch.linalg.svd(linear.weight.double(), full_matrices=False)
            linear.weight.data = ((u[:, :-RANK] * s[:-RANK]) @ vh[:-RANK]).float()
        assert distance(trained.start, output_of(base, case.batch)) < 5e-6
        assert distance(trained.start, trained.base) > 0.1
    else:  # one token sees k of N experts, and they are not the mean of all
        assert 1e-3 < distance(trained.start, trained.base) < 0.2


@pytest.mark.parametrize("method", METHODS)
def test_a_bfloat16_base_starts_alike_and_is_given_back(method: str) -> None:
    case = build(method, "llama", dtype=torch.bfloat16)
    base = output_of(KINDS["llama"].base(torch.bfloat16), case.batch)
    if method in NOTHING - {"dora"}:
        assert torch.equal(case.output(), base)
    elif method in ROUNDING | {"dora"}:  # peft's DoRA divides two norms that were rounded apart
        assert distance(case.output(), base) < 2**-7
    if method in ADAPTERS:
        perturb(case)
        assert distance(case.output(), base) > 2**-5
        with case.model.disable_adapter():
            assert torch.equal(case.output(), base)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", sorted(ON_AVERAGE))
def test_all_experts_with_equal_gates_are_the_base(method: str, kind: str) -> None:
    case = build(method, kind, top_k=8)
    for name, router in case.trained.items():
        if "expert_router" in name:
            nn.init.zeros_(router)
    base = output_of(KINDS[kind].base(), case.batch)
    assert 0 < distance(case.output(), base) < 5e-6


@pytest.mark.parametrize("kind", KINDS)
def test_segments_without_a_router_start_as_the_base_and_merge(kind: str) -> None:
    """The ablation's "O without MoE": N segments, all gates 1."""
    case = build("spectral_moe", kind, router="none")
    assert 0 < distance(case.output(), output_of(KINDS[kind].base(), case.batch)) < 5e-6
    perturb(case, 0.02)
    expected = case.output()
    assert distance(output_of(case.model.merge_and_unload(), case.batch), expected) < 1e-5


@over(METHODS)
def test_what_is_trained_is_what_is_counted_and_has_a_gradient(trained: Trained) -> None:
    case, base = trained.case, KINDS[trained.case.kind].base()
    assert case.tuner.count(case.settings, RANK, KINDS[case.kind].table(base)) == case.count()
    for name, parameter in case.trained.items():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Of whole models some tensors have none: a bias of the keys shifts all scores of a query alike.
        assert parameter.grad.any() or not case.tuner.ranked, name


@over(TUNED)
def test_a_few_steps_lower_the_loss(trained: Trained) -> None:
    assert trained.losses[-1] < trained.losses[0] - 0.1
    assert not torch.equal(trained.output, trained.start)


@over(ADAPTERS)
def test_disabled_it_is_the_base_bit_for_bit(trained: Trained) -> None:
    case = trained.case
    with case.model.disable_adapter():
        assert torch.equal(case.output(), trained.base)
    assert torch.equal(case.output(), trained.output)


@pytest.fixture(scope="module")
def partners(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, torch.Tensor]]:
    """Plain LoRA on some layers, peft's and ours: where it is stored, and its output on a base of its own."""
    stored, some = {}, {"targets": r".*\.(q_proj|v_proj|qkv)"}
    for kind in KINDS:
        lora, ours = build("lora", kind, **some), build("pissa", kind, init="zero", **some)
        for case in (lora, ours):
            folder = save(perturb(case), tmp_path_factory.mktemp("partner"))
            stored[case.spec.tuner, kind] = folder, case.output()
    return stored


@over(ADAPTERS)
def test_adapters_on_one_base_do_not_disturb_each_other(
    trained: Trained, partners: dict[tuple[str, str], tuple[Path, torch.Tensor]]
) -> None:
    case = trained.case
    own = tensors_of(case.model)
    others = {"plain": partners[case.spec.tuner, case.kind], "twin": (trained.stored, trained.stored_output)}
    for name, (folder, alone) in others.items():
        case.model.load_adapter(str(folder), name)
        assert torch.equal(case.output(), trained.output)
        case.model.set_adapter(name)
        assert torch.equal(case.output(), alone)
        assert all(name in parameter.split(".") for parameter in case.trained)
        assert not torch.equal(alone, trained.output)
        case.model.set_adapter("default")
    for name in others:
        case.model.delete_adapter(name)
    assert same(tensors_of(case.model), own)
    assert torch.equal(case.output(), trained.output)


@pytest.mark.parametrize("method", ["pissa", "spectral_moe"])
def test_adapters_of_two_tuners_on_one_base_are_refused(method: str) -> None:
    case = build(method, "llama")
    with pytest.raises(ValueError, match="Cannot combine adapters with different peft types"):
        case.model.add_adapter("other", LoraConfig(target_modules=KINDS["llama"].pattern))


@over(ADAPTERS)
def test_merged_it_is_the_same_and_routed_it_does_not_merge(trained: Trained) -> None:
    case = trained.case
    weights = {name: value.clone() for name, value in case.model.state_dict().items()}
    if case.method in ROUTED:
        for merge in (case.model.merge_adapter, case.model.merge_and_unload):
            with pytest.raises(RequestError, match=r"'default' cannot be merged: its router .* for every token"):
                merge()
    else:
        case.model.merge_adapter()
        assert distance(case.output(), trained.output) < 1e-5
        assert not same(dict(case.model.state_dict()), weights)
        case.model.unmerge_adapter()
        if case.spec.tuner == "lora":  # peft takes the product off again
            assert distance(case.output(), trained.output) < 1e-5
            return
    assert same(dict(case.model.state_dict()), weights)
    assert torch.equal(case.output(), trained.output)


@pytest.mark.parametrize("method", ROUTED)
def test_a_token_is_routed_alike_in_any_company(method: str) -> None:
    case = perturb(build(method, "llama"), 0.3)
    ids = batch_of("llama")["input_ids"][:1, :5]
    alone = output_of(case.model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    others = torch.randint(8, 48, (3, 9), generator=torch.Generator().manual_seed(9))
    for place, order in ((slice(0, 5), [0, 1, 2, 3]), (slice(4, 9), [3, 1, 0, 2])):
        rows, mask = torch.zeros(4, 9, dtype=torch.long), torch.ones(4, 9, dtype=torch.long)
        rows[1:] = others
        mask[0] = 0
        rows[0, place], mask[0, place] = ids[0], 1
        with torch.no_grad():
            logits = case.model(input_ids=rows[order], attention_mask=mask[order]).logits
        # Another GEMM shape rounds differently; a token that went to another expert is off by far more.
        assert distance(logits[order.index(0), place], alone) < 1e-5


def test_peft_models_of_lora_are_what_the_recipes_say() -> None:
    """The recipes' alpha = 2 r, and the switches of rsLoRA and DoRA."""
    for method, changes in {"lora": {}, "rslora": {"use_rslora": True}, "dora": {"use_dora": True}}.items():
        case = perturb(build(method, "llama"))
        config = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=KINDS["llama"].pattern, **changes)
        plain = get_peft_model(KINDS["llama"].base(), config)
        plain.load_state_dict(case.model.state_dict())
        assert torch.equal(output_of(plain, case.batch), case.output())
