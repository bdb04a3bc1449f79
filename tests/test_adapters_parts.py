"""The pure parts of the adapter: configuration, spectrum, gates, balance loss, and what is trained."""

import dataclasses
import json
import math

import pytest
import torch
from peft import PeftConfig
from test_adapters_common import LLAMA_TARGETS, adapted, expert_layers, llama, mlp
from torch import nn

from medbench.adapters import ExpertLoraConfig
from medbench.adapters.routing import balance_loss, chosen_experts, gates
from medbench.adapters.spectrum import segment_factors, segment_starts
from medbench.errors import RequestError


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 10, "num_experts": 4}, "num_experts=4 must divide r=10"),
        ({"r": 4, "num_experts": 8}, "r >= N"),
        ({"r": 0}, "r must be a whole number"),
        ({"num_experts": 2.0}, "num_experts must be a whole number"),
        ({"top_k": 9}, "top_k=9 is more than num_experts=8"),
        ({"top_k": 0}, "top_k must be a whole number"),
        ({"rho": 0}, "rho must be positive"),
        ({"eta": -1}, "eta must be positive"),
        ({"eta": math.nan}, "eta must be positive"),
        ({"lora_alpha": 0}, "lora_alpha must be positive"),
        ({"dropout": 1}, "dropout must lie"),
        ({"balance_coefficient": -1}, "balance_coefficient"),
        ({"init": "spektral"}, "did you mean spectral"),
        ({"router": "top_k"}, "did you mean topk"),
        ({"scaling": "consistant"}, "did you mean consistent"),
        ({"scaling_rank": "totals"}, "did you mean total"),
    ],
)
def test_impossible_configurations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExpertLoraConfig(**settings)


def test_configuration_round_trips_through_json(tmp_path):
    config = ExpertLoraConfig(r=16, lora_alpha=None, target_modules=list("vqkodugw"), exclude_modules=["x"], eta=0.1)
    config.save_pretrained(str(tmp_path))
    for reader in (PeftConfig, ExpertLoraConfig):
        again = reader.from_pretrained(str(tmp_path))
        assert type(again) is ExpertLoraConfig
        assert dataclasses.asdict(again) == dataclasses.asdict(config)
        assert again.peft_type is config.peft_type
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["peft_type"] == "EXPERT_LORA"
    assert stored["target_modules"] == sorted("vqkodugw")
    assert not dataclasses.replace(ExpertLoraConfig.from_pretrained(str(tmp_path))).weights_follow


def test_every_setting_is_explained():
    own = {f.name for f in dataclasses.fields(ExpertLoraConfig)} - {f.name for f in dataclasses.fields(PeftConfig)}
    assert all(f.metadata["help"] for f in dataclasses.fields(ExpertLoraConfig) if f.name in own)


@pytest.mark.parametrize(
    ("settings", "n", "expected"),
    [
        # derived from the GOAT formula: s* = 16.97 at n = 768, r' = 8, eta = 1; at the widths of
        # Qwen2.5-VL-7B with eta = 0.1, 5.8 and 13.3 for total rank 32, 16.4 and 37.7 for expert rank 4
        ({"r": 8}, 768, 16.97),
        ({"r": 32, "eta": 0.1}, 3584, 5.80),
        ({"r": 32, "eta": 0.1}, 18944, 13.33),
        ({"r": 32, "eta": 0.1, "scaling_rank": "expert"}, 3584, 16.40),
        ({"r": 32, "eta": 0.1, "scaling_rank": "expert"}, 18944, 37.70),
        ({"r": 32, "scaling": "alpha"}, 3584, 2.0),
        ({"r": 32, "scaling": "alpha", "lora_alpha": 16}, 3584, 0.5),
    ],
)
def test_scale(settings, n, expected):
    assert ExpertLoraConfig(**settings).scale(n) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(
    ("init", "expected"),
    [  # h = 22, N = 4, d = 2, hence t = 5: the table of segment choices, worked by hand
        ("spectral", [0, 5, 10, 15]),
        ("segment_end", [3, 8, 13, 18]),
        ("principal", [0, 2, 4, 6]),
        ("minor", [20, 18, 16, 14]),
    ],
)
def test_segment_starts_golden(init, expected):
    assert segment_starts(init, h=22, num_experts=4, d=2) == expected


def test_one_expert_spectral_is_principal():
    assert segment_starts("spectral", 30, 1, 8) == segment_starts("principal", 30, 1, 8) == [0]


@pytest.mark.parametrize(("h", "experts", "d"), [(64, 8, 4), (32, 8, 4), (9, 4, 2), (5, 5, 1)])
def test_random_starts_fit_never_overlap_and_follow_the_seed(h, experts, d):
    drawn = [segment_starts("random", h, experts, d, seed) for seed in range(200)]
    for starts in drawn:
        covered = [index for start in starts for index in range(start, start + d)]
        assert len(set(covered)) == experts * d
        assert min(covered) >= 0
        assert max(covered) < h
    assert drawn == [segment_starts("random", h, experts, d, seed) for seed in range(200)]
    assert len({tuple(starts) for starts in drawn}) == 1 or h > experts * d
    if h > experts * d:
        assert len({tuple(starts) for starts in drawn}) > 1


def test_factors_do_not_depend_on_the_signs_the_svd_happens_to_return():
    weight = torch.randn(12, 9, generator=torch.Generator().manual_seed(2))
    one, other = segment_factors(weight, [0, 4], 2), segment_factors(-weight, [0, 4], 2)
    torch.testing.assert_close(one.u, other.u)
    torch.testing.assert_close(one.vh, -other.vh)
    assert (one.u.gather(1, one.u.abs().argmax(1, keepdim=True)) > 0).all()


def test_too_large_a_rank_names_the_layer_and_its_shape():
    with pytest.raises(RequestError, match=r"wide: total rank 32 .* 40 x 24"):
        adapted(mlp(), r=32)
    with pytest.raises(RequestError, match=r"40 x 24"):
        segment_factors(torch.randn(40, 24), [0, 8, 16], 9)
    adapted(mlp(), r=32, init="zero")  # draws nothing from the spectrum, as peft's LoRA does


def test_exactly_k_experts_are_chosen_also_in_a_tie():
    logits = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 2.0, 2.0, 2.0], [200.0, 0.0, -1.0, -2.0]])
    assert chosen_experts(logits, 2, "topk").sum(-1).tolist() == [2, 2, 2]
    weights, chosen = gates(logits, 2, "topk")
    assert torch.equal(chosen, chosen_experts(logits, 2, "topk"))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert (weights[~chosen_experts(logits, 2, "topk")] == 0).all()


def test_topk_gates_are_the_renormalised_softmax():
    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    full = logits.softmax(-1)
    kept = torch.where(full >= full.topk(3).values[:, -1:], full, 0)
    torch.testing.assert_close(gates(logits, 3, "topk")[0], kept / kept.sum(-1, keepdim=True))
    torch.testing.assert_close(gates(logits, 3, "softmax")[0], full)


def routed(logits: torch.Tensor, k: int, router: str) -> torch.Tensor:
    """The chosen experts; of 'threshold' those above half of 1 / N."""
    return gates(logits, k, router, torch.zeros(*logits.shape[:-1], 1))[1]


@pytest.mark.parametrize("router", ["topk", "threshold"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_balance_loss_is_one_when_balanced_and_n_over_k_when_collapsed(k, router):
    rows = torch.eye(8) * 50.0  # token j prefers experts j .. j + k - 1, all alike
    balanced = sum(rows.roll(shift, dims=1) for shift in range(k))
    chosen = routed(balanced, k, router)
    assert chosen.sum(-1).tolist() == [k] * 8
    assert balance_loss(balanced, chosen).item() == pytest.approx(1.0, rel=1e-5)
    collapsed = balanced[:1].expand(8, 8)
    assert balance_loss(collapsed, routed(collapsed, k, router)).item() == pytest.approx(8 / k, rel=1e-5)


@pytest.mark.parametrize("router", ["topk", "softmax", "threshold"])
def test_padding_does_not_count(router):
    logits = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    chosen, kept = routed(logits, 2, router), mask.bool()
    expected = balance_loss(logits[kept], chosen[kept])
    torch.testing.assert_close(balance_loss(logits, chosen, mask), expected)
    if router == "softmax":
        assert expected.item() == pytest.approx(1)  # every expert gets every token
    else:
        assert abs(balance_loss(logits, chosen) - expected) > 1e-4
    assert balance_loss(logits, chosen, torch.zeros(2, 6)).item() == 0


@pytest.mark.parametrize("router", ["topk", "threshold"])
def test_gradient_reaches_the_router_through_the_mean_probability_only(router):
    logits = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    threshold = torch.zeros(20, 1, requires_grad=True)
    _, chosen = gates(logits, 2, router, threshold)
    grad, none = torch.autograd.grad(balance_loss(logits, chosen), (logits, threshold), allow_unused=True)
    assert none is None  # the threshold decides the shares, which carry no gradient
    share = chosen.float().sum(0) / chosen.sum()
    (expected,) = torch.autograd.grad(8 * (share * logits.softmax(-1).mean(0)).sum(), logits)
    torch.testing.assert_close(grad, expected)
    assert grad.abs().max() > 0


def test_model_balance_loss_is_the_mean_over_layers_and_ignores_padding():
    model = adapted(llama(), target_modules=LLAMA_TARGETS).train()
    ids = torch.randint(1, 64, (2, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    other = torch.where(mask.bool(), ids, 7)
    model(input_ids=ids, attention_mask=mask)
    loss = model.balance_loss()
    assert loss.ndim == 0
    assert loss.requires_grad
    assert len(expert_layers(model)) == 8
    assert model.balance_loss().item() == 0  # forgotten once read
    model(input_ids=other, attention_mask=mask)  # only padding differs
    torch.testing.assert_close(model.balance_loss(), loss)
    model(input_ids=other)
    assert abs(model.balance_loss() - loss) > 1e-4
    model(input_ids=ids, attention_mask=mask)
    model.eval()(input_ids=ids, attention_mask=mask)
    assert model.balance_loss().item() == 0  # the last forward was no training
    loss.backward()
    grads = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert any("expert_router" in name for name in grads)


def test_the_penalty_is_the_active_adapters_balance_loss_with_its_coefficient():
    model, x = adapted(mlp(), balance_coefficient=0.25).train(), torch.randn(3, 5, 24)
    model.add_adapter("other", ExpertLoraConfig(r=8, num_experts=4, target_modules=["wide"], balance_coefficient=1))
    model(x)
    expected = model.balance_loss()
    model(x)
    torch.testing.assert_close(model.penalty(), 0.25 * expected)
    assert model.penalty().item() == 0  # forgotten once read


def test_layers_with_other_tokens_count_all_of_them():
    model = adapted(mlp()).train()
    x = torch.randn(3, 5, 24)
    model(x)
    expected = model.balance_loss()
    model(x, attention_mask=torch.zeros(3, 4))
    torch.testing.assert_close(model.balance_loss(), expected)
    model(x, attention_mask=torch.zeros(3, 5))
    assert model.balance_loss().item() == 0


def test_zero_experts_and_routers_are_drawn_like_a_linear_layer():
    # Kaiming-uniform with a = sqrt 5 is uniform on [-1 / sqrt n, 1 / sqrt n]: variance 1 / (3 n), which the
    # consistent scaling presumes; drawn over [N, d, n] instead, it would be d times smaller
    layer = expert_layers(adapted(nn.Sequential(nn.Linear(600, 300)), target_modules=["0"], init="zero"))[0]
    for drawn in (layer.expert_A["default"], layer.expert_router["default"]):
        assert drawn.abs().max() <= 600**-0.5
        assert drawn.var().item() == pytest.approx(1 / 1800, rel=0.1)
    assert (layer.expert_B["default"] == 0).all()


def test_no_router_no_balance_loss():
    model = adapted(mlp(), router="none").train()
    model(torch.randn(3, 24))
    assert torch.equal(model.balance_loss(), torch.zeros(()))


@pytest.mark.parametrize(("router", "experts"), [("topk", 4), ("softmax", 4), ("none", 4), ("none", 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trained_parameters_are_the_formula_and_never_the_frozen_factors(router, experts, dtype):
    model = adapted(mlp().to(dtype), router=router, num_experts=experts)
    formula = sum(8 * (m + n) + (experts * n if router != "none" else 0) for m, n in ((40, 24), (16, 40)))
    assert model.get_nb_trainable_parameters()[0] == formula

    def trained() -> set[str]:
        return {name.split(".")[-2] for name, p in model.named_parameters() if p.requires_grad}

    kinds = {"expert_A", "expert_B"} | ({"expert_router"} if router != "none" else set())
    assert trained() == kinds
    model.set_requires_grad("default", True)
    model.base_model.set_adapter("default")
    with model.disable_adapter():
        pass
    model.base_model._cast_adapter_dtype("default", autocast_adapter_dtype=False)
    model.base_model._cast_adapter_dtype("default")
    model.add_adapter("other", ExpertLoraConfig(r=8, num_experts=4, target_modules=["wide"]))
    assert trained() == kinds
    model.set_requires_grad("default", False)
    assert trained() == set()


def test_layers_that_cannot_be_adapted_are_refused_by_name():
    with pytest.raises(RequestError, match=r"0: only nn.Linear .* Conv1d"):
        adapted(nn.Sequential(nn.Conv1d(8, 8, 1)), target_modules=["0"])
    attention = nn.Sequential(nn.MultiheadAttention(16, 2))
    with pytest.raises(RequestError, match=r"0.out_proj belongs to nn.MultiheadAttention"):
        adapted(attention, target_modules=["out_proj"])
