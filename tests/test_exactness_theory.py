"""The formulas of the method, and the points of our tuner that peft has too."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from peft import KasaConfig, LoraConfig, PeftModel, get_peft_model
from test_adapters_common import adapted, expert_layers, mlp
from test_exactness_common import KINDS, RANK, Case, build, distance, output_of, perturb
from torch import nn

from medbench.adapters import ExpertLoraConfig, ExpertLoraLayer
from medbench.adapters.config import INITS, ROUTERS
from medbench.adapters.routing import gates

INPUT = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(3))


def beside_peft(case: Case, **settings: object) -> tuple[PeftModel, list[tuple[ExpertLoraLayer, nn.Module]]]:
    """A LoRA of peft's own on the same Llama, and our layers paired with its."""
    theirs = get_peft_model(KINDS["llama"].base(), LoraConfig(target_modules=KINDS["llama"].pattern, **settings))
    layers = [(name, m) for name, m in case.model.named_modules() if isinstance(m, ExpertLoraLayer)]
    return theirs, [(layer, theirs.get_submodule(name)) for name, layer in layers]


def trained_in(layer: ExpertLoraLayer) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.expert_A["default"], layer.expert_B["default"]


def trained_in_peft(layer: nn.Module) -> tuple[nn.Parameter, nn.Parameter]:
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def check_same_gradients(pairs: list[tuple[ExpertLoraLayer, nn.Module]], signs: dict[nn.Module, torch.Tensor]) -> None:
    for ours, theirs in pairs:
        a, b = (parameter.grad for parameter in trained_in(ours))
        their_a, their_b = (parameter.grad for parameter in trained_in_peft(theirs))
        sign = signs.get(theirs, torch.ones(RANK))
        assert distance(a[0], their_a * sign.unsqueeze(1)) < 1e-4
        assert distance(b[:, 0], their_b * sign) < 1e-4


def test_pissa_is_the_pissa_of_peft() -> None:
    case = build("pissa", "llama")
    theirs, pairs = beside_peft(case, r=RANK, lora_alpha=RANK, init_lora_weights="pissa")
    assert distance(case.output(), output_of(theirs, case.batch)) < 1e-5
    case.loss().backward()
    theirs.train()(**case.batch).loss.backward()
    signs = {}
    for ours, layer in pairs:
        a, their_a = trained_in(ours)[0][0], trained_in_peft(layer)[0]
        signs[layer] = (a * their_a).sum(1).sign()  # a triplet's sign is free, in A and B together
        assert distance(a, their_a * signs[layer].unsqueeze(1)) < 1e-4
    check_same_gradients(pairs, signs)
    for model in (case.model, theirs):
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3).step()
    step = case.output()
    assert distance(step, output_of(KINDS["llama"].base(), case.batch)) > 1e-2
    assert distance(step, output_of(theirs, case.batch)) < 1e-4


def test_kasa_is_the_kasa_of_peft() -> None:
    case = perturb(build("kasa", "llama"))
    kasa = KasaConfig(beta=1e-4, gamma=1e-3)
    theirs, pairs = beside_peft(case, r=RANK, lora_alpha=2 * RANK, kasa_config=kasa)
    for ours, layer in pairs:
        (a, b), (their_a, their_b) = trained_in(ours), trained_in_peft(layer)
        their_a.data, their_b.data = a.data[0].clone(), b.data[:, 0].clone()
        layer.lora_diag["default"].data = ours.expert_diagonal["default"].data[0].clone()
    assert distance(case.output(), output_of(theirs, case.batch)) < 1e-5
    penalty = theirs.base_model._get_kasa_loss()
    case.model.zero_grad()
    assert case.model.base_model.penalty().item() == pytest.approx(penalty.item(), rel=1e-5)
    loss, their_loss = case.loss(), theirs.train()(**case.batch).loss + penalty
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-5)
    loss.backward()
    their_loss.backward()
    check_same_gradients(pairs, {})
    for ours, layer in pairs:
        assert distance(ours.expert_diagonal["default"].grad[0], layer.lora_diag["default"].grad) < 1e-4


ABLATION = [(init, router) for init in INITS for router in ROUTERS]
SCALINGS = [("consistent", "total"), ("consistent", "expert"), ("alpha", "total")]


@pytest.mark.parametrize(("init", "router"), ABLATION)
def test_every_point_of_the_ablation_starts_where_it_should_and_can_be_trained(init: str, router: str) -> None:
    expected = mlp()(INPUT)
    for scaling, scaling_rank in SCALINGS:
        for residual in (True, False):
            settings = {"init": init, "router": router, "scaling": scaling, "scaling_rank": scaling_rank}
            model = adapted(mlp(), **settings, residual=residual, rho=1.0, top_k=4)
            if init == "zero":
                assert torch.equal(model(INPUT), expected)
            for name, parameter in model.named_parameters():
                if "router" in name or "threshold" in name:
                    nn.init.zeros_(parameter)  # equal logits: all gates 1 / N
            far = distance(model(INPUT), expected)
            assert far < 5e-6 if residual or init == "zero" else far > 1e-2
            loss = model.train()(INPUT).square().mean() + model.penalty()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
            frozen = [name for name, _ in model.named_parameters() if "expert_A0" in name or "expert_B0" in name]
            assert bool(frozen) == (residual and init != "zero")


@pytest.mark.parametrize("start", [0, 0.25, 0.5, 1])
def test_a_single_segment_is_the_triplets_where_it_starts(start: float) -> None:
    single = {"r": 4, "num_experts": 1, "top_k": 1, "router": "none", "segment_start": start}
    model = adapted(mlp(), **single, scaling="alpha")
    assert distance(model(INPUT), mlp()(INPUT)) < 5e-6
    for layer in expert_layers(model):
        u, s, vh = torch.linalg.svd(layer.get_base_layer().weight.double(), full_matrices=False)
        first = round(start * (len(s) - 4))
        part = slice(first, first + 4)
        spec, (a, b) = layer.expert_spec["default"], trained_in(layer)
        assert distance(10 * spec.scale * b[:, 0] @ a[0], (u[:, part] * s[part]) @ vh[part]) < 1e-5
    for end, init in {0: "principal", 1: "minor"}.items():
        if start == end:
            named = adapted(mlp(), **{**single, "segment_start": None}, init=init, scaling="alpha")
            assert torch.equal(named.state_dict()["base_model.model.wide.expert_A.default"], layers_a(model)[0])


def layers_a(model: nn.Module) -> list[torch.Tensor]:
    return [layer.expert_A["default"] for layer in expert_layers(model)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", ["pissa", "milora", "spectral_moe", "kasa"])
def test_triplets_are_those_of_the_rounded_weight_in_full_precision(method: str, dtype: torch.dtype) -> None:
    """Whatever the weight's dtype: decomposed in it, or stored in it, they would be off by its rounding."""
    case = build(method, "llama", dtype=dtype)
    for layer in expert_layers(case.model):
        u, s, vh = torch.linalg.svd(layer.get_base_layer().weight.double(), full_matrices=False)
        tensors, spec = layer.tensors("default"), layer.expert_spec["default"]
        assert {tensor.dtype for tensor in (tensors.a, tensors.b, tensors.a0, tensors.b0)} == {torch.float32}
        scale, a, b = spec.scale * case.settings["rho"], tensors.a, tensors.b
        first = {"pissa": [0], "milora": [len(s) - RANK]}.get(method, [j * (len(s) // 8) for j in range(8)])
        if method == "kasa":
            scale, a, b, first = 1, tensors.a0, tensors.b0, [len(s) - RANK]
        for number, start in enumerate(first):
            part = slice(start, start + RANK // len(first))
            assert distance(scale * b[:, number] @ a[number], (u[:, part] * s[part]) @ vh[part]) < 1e-5


def offsets(products: torch.Tensor, residual: torch.Tensor) -> Iterator[torch.Tensor]:
    """Small steps away from W_res [m, n]: anywhere, among the experts' products [N, m, n], and along itself."""
    draws = torch.Generator().manual_seed(2)
    for _ in range(6):
        yield torch.randn(residual.shape, generator=draws)
        yield torch.einsum("e,emn->mn", torch.randn(len(products), generator=draws), products)
    yield from (residual, -residual)


@pytest.mark.parametrize("router", ["topk", "softmax", "threshold"])
def test_the_residual_is_the_minimiser_over_routers(router: str) -> None:
    """W_res minimises E|W_res - s sum_i R_i B_i A_i|^2 over Kaiming-uniform routers, for a fixed token."""
    base = nn.Sequential(nn.Linear(24, 16))
    layer = expert_layers(adapted(base, target_modules=["0"], router=router, rho=1.0))[0]
    tensors, spec, draws = layer.tensors("default"), layer.expert_spec["default"], 8000
    token, bound = torch.randn(24, generator=torch.Generator().manual_seed(5)), 24**-0.5
    rows = (2 * torch.rand(draws, 5, 24, generator=torch.Generator().manual_seed(6)) - 1) * bound
    logits, threshold = (rows @ token).split([4, 1], dim=1)
    weights, _ = gates(logits, 2, router, threshold)
    products = spec.scale * torch.einsum("med,edn->emn", tensors.b, tensors.a).detach()
    routed = torch.einsum("re,emn->rmn", weights, products)
    residual = spec.residual_scale * torch.einsum("med,edn->mn", tensors.b0, tensors.a0)

    def missed(weight: torch.Tensor) -> float:
        return (routed - weight).square().sum(dim=(1, 2)).double().mean().item()

    least = missed(residual)
    for offset in offsets(products, residual):
        # The mean of 8,000 draws is itself about 1 % of W_res away from its expectation.
        assert missed(residual + 0.05 * residual.norm() * offset / offset.norm()) > least


def best_scale(error: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return scales[error.argmin(dim=-1)]


@pytest.mark.parametrize("eta", [1.0, 0.1])
def test_the_consistent_scale_is_right_in_expectation_and_only_there(eta: float) -> None:
    """At B = 0 the equivalent gradient is s^2 g A'A; which s makes it eta g depends on what is averaged."""
    n, rank, draws = 48, 4, 20_000
    settings = {"r": draws * rank, "num_experts": draws, "init": "zero", "router": "none", "target_modules": ["0"]}
    layer = expert_layers(adapted(nn.Sequential(nn.Linear(n, 1)), **settings))[0]
    a = layer.expert_A["default"].detach().double()  # [draws, r', n], as the library draws them
    g = torch.randn(20, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scales = torch.logspace(-1, 2, 6000, dtype=torch.float64) * eta**0.5  # 0.1 % apart

    mean = g @ torch.einsum("krn,krl->nl", a, a) / draws
    found = best_scale((scales[:, None, None] ** 2 * mean - eta * g).flatten(1).norm(dim=1), scales)
    star = ExpertLoraConfig(r=rank, num_experts=1, top_k=1, eta=eta).scale(n)
    assert star == pytest.approx((3 * n * eta / rank) ** 0.5)
    assert found.item() == pytest.approx(star, rel=0.05)

    single = torch.einsum("mn,krn,krl->kml", g, a[:400], a[:400])
    square, cross = single.square().sum((1, 2)), (single * g).sum((1, 2))
    errors = scales**4 * square[:, None] - 2 * eta * scales**2 * cross[:, None]  # + |eta g|^2
    alone = best_scale(errors, scales).median().item()
    matched = (eta * g.norm() / square.sqrt()).sqrt().median().item()
    assert alone == pytest.approx((3 * eta) ** 0.5, rel=0.1)
    assert matched == pytest.approx((3 * eta * (n / rank) ** 0.5) ** 0.5, rel=0.1)
    assert 1.5 * alone < matched < star / 1.5
