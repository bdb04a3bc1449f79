"""What the routed spectral adapter computes: identities of the method, and equality with plain references."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_adapters_common import LLAMA_TARGETS, adapted, expert_layers, llama, mlp, perturb
from torch import nn
from torch.utils.checkpoint import checkpoint

from medbench.adapters import ExpertLoraConfig
from medbench.adapters.config import ROUTERS
from medbench.errors import RequestError

INPUT = torch.randn(5, 7, 24, generator=torch.Generator().manual_seed(3))


def gates_of(layer, token: torch.Tensor, adapter: str) -> dict[int, torch.Tensor]:
    """The experts that one token is routed to, and their gates."""
    spec = layer.expert_spec[adapter]
    experts = range(spec.num_experts)
    if spec.router == "none":
        return dict.fromkeys(experts, torch.ones((), dtype=token.dtype))
    logits = layer.expert_router[adapter] @ token
    if spec.router == "threshold":
        # a hair below sigmoid / N, so that some expert is always above
        tau = torch.sigmoid(layer.expert_threshold[adapter][0] @ token) / spec.num_experts * (1 - 1e-6)
        above = {i: p - tau for i, p in enumerate(torch.softmax(logits, dim=0)) if p > tau}
        return {i: part / sum(above.values()) for i, part in above.items()}
    k = spec.num_experts if spec.router == "softmax" else spec.top_k
    chosen = sorted(experts, key=lambda i: -logits[i].item())[:k]
    return dict(zip(chosen, torch.softmax(logits[chosen], dim=0), strict=True))


def dispatch_loop(layer, x: torch.Tensor, adapter: str = "default") -> torch.Tensor:
    """The adapted layer as the formulas say it, one token and one expert at a time."""
    spec, (a, b) = layer.expert_spec[adapter], (layer.expert_A[adapter], layer.expert_B[adapter])
    rows = []
    for token in x.reshape(-1, x.shape[-1]):
        y = layer.base_layer(token)
        for i, gate in gates_of(layer, token, adapter).items():
            narrow = a[0 if len(a) == 1 else i] @ token
            if adapter in layer.expert_diagonal:
                narrow = layer.expert_diagonal[adapter][i] * narrow
            y = y + gate * spec.scale * (b[:, i] @ narrow)
        if spec.residual_scale:
            for i in range(spec.num_experts):
                y = y - spec.residual_scale * (layer.expert_B0[adapter][:, i] @ (layer.expert_A0[adapter][i] @ token))
        rows.append(y)
    return torch.stack(rows).reshape(*x.shape[:-1], -1)


def gradients(output: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    grads = torch.autograd.grad(output.sin().sum(), [p for _, p in named])
    return {name: grad for (name, _), grad in zip(named, grads, strict=True)}


def test_expected_weight_over_random_routers_is_the_base_weight():
    base = nn.Sequential(nn.Linear(24, 16, bias=False))
    model = adapted(base, target_modules=["0"], rho=1.0)
    layer = expert_layers(model)[0]
    x = torch.randn(24, generator=torch.Generator().manual_seed(5))
    generator, deltas = torch.Generator().manual_seed(6), []
    with torch.no_grad():
        for _ in range(3000):
            bound = 24**-0.5  # Kaiming-uniform with a = sqrt 5, as the layer draws it
            router = (2 * torch.rand(4, 24, generator=generator) - 1) * bound
            layer.expert_router["default"].copy_(router)
            deltas.append(layer(x) - layer.base_layer(x))
    delta = torch.stack(deltas)
    standard_error = delta.std(dim=0) / len(deltas) ** 0.5
    # 5 standard errors over 16 coordinates: a false alarm once in 10^5 seeds. The last line shows that it
    # could tell a wrong expectation: leaving the residual out moves the mean by the whole of W_res x.
    assert (delta.mean(dim=0).abs() <= 5 * standard_error).all()
    spec = layer.expert_spec["default"]
    residual = (
        spec.residual_scale * layer.expert_B0["default"].flatten(1) @ (layer.expert_A0["default"].flatten(0, 1) @ x)
    )
    assert residual.norm() > 20 * standard_error.norm()


@pytest.mark.parametrize("alpha", [None, 3.0])
def test_one_unrouted_zero_expert_is_peft_lora(alpha):
    ours = adapted(mlp(), r=4, num_experts=1, init="zero", router="none", scaling="alpha", lora_alpha=alpha)
    config = LoraConfig(r=4, lora_alpha=alpha or 8, target_modules=["wide", "narrow"])
    theirs = get_peft_model(mlp(), config)
    perturb(ours)
    with torch.no_grad():
        for name in ("wide", "narrow"):
            source, target = ours.get_submodule(f"base_model.model.{name}"), theirs.base_model.model
            target = target.get_submodule(name)
            target.lora_A["default"].weight.copy_(source.expert_A["default"][0])
            target.lora_B["default"].weight.copy_(source.expert_B["default"][:, 0])
    out, reference = ours(INPUT), theirs(INPUT)
    torch.testing.assert_close(out, reference, rtol=1e-5, atol=1e-5)
    grads, reference_grads = gradients(out, ours), gradients(reference, theirs)
    for name in ("wide", "narrow"):
        key = f"base_model.model.{name}"
        a, b = grads[f"{key}.expert_A.default"][0], grads[f"{key}.expert_B.default"][:, 0]
        torch.testing.assert_close(a, reference_grads[f"{key}.lora_A.default.weight"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(b, reference_grads[f"{key}.lora_B.default.weight"], rtol=1e-4, atol=1e-4)


FORMS = {
    "compensated": {"init": "spectral"},
    "not compensated": {"init": "spectral", "residual": False},
    "zero": {"init": "zero"},
    "shared A": {"init": "zero", "shared_a": True},
    "diagonal": {"init": "zero", "diagonal": True, "drop_minor": True},
}


# A shared A without a router is refused: it is one expert.
POINTS = [(router, form) for router in ROUTERS for form in FORMS if (router, form) != ("none", "shared A")]


@pytest.mark.parametrize(("router", "form"), POINTS)
def test_concatenated_form_is_the_dispatch_loop(router, form):
    model = adapted(mlp().double(), router=router, eta=0.1, **FORMS[form])
    perturb(model)
    layer, x = expert_layers(model)[0], INPUT.double()
    out, reference = layer(x), dispatch_loop(layer, x)
    torch.testing.assert_close(out, reference, rtol=1e-10, atol=1e-10)
    assert (out - layer.base_layer(x)).abs().max() > 1e-2
    grads, reference_grads = gradients(out, layer), gradients(reference, layer)
    own = {"none": set(), "threshold": {"expert_router", "expert_threshold"}}.get(router, {"expert_router"})
    own |= {"expert_diagonal"} if form == "diagonal" else set()
    assert {name.split(".")[0] for name in grads} == {"expert_A", "expert_B"} | own
    for name, grad in grads.items():
        torch.testing.assert_close(grad, reference_grads[name], rtol=1e-8, atol=1e-8)
        assert grad.abs().max() > 1e-6


def test_dropout_acts_on_the_experts_input_only():
    model = adapted(mlp().double(), dropout=0.5, rho=1.0)
    perturb(model)
    layer, x = expert_layers(model)[0].train(), INPUT.double()
    torch.manual_seed(11)
    out = layer(x)
    torch.manual_seed(11)
    dropped = nn.functional.dropout(x, 0.5)
    spec, chosen = layer.expert_spec["default"], layer.expert_router["default"] @ x.unsqueeze(-1)
    logits = chosen.squeeze(-1)
    threshold = logits.topk(2).values[..., -1:]
    weights = logits.masked_fill(logits < threshold, float("-inf")).softmax(-1)
    narrow = torch.einsum("edn,btn->bted", layer.expert_A["default"], dropped) * weights.unsqueeze(-1)
    added = spec.scale * torch.einsum("med,bted->btm", layer.expert_B["default"], narrow)
    residual = torch.einsum("med,edn,btn->btm", layer.expert_B0["default"], layer.expert_A0["default"], x)
    torch.testing.assert_close(out, layer.base_layer(x) + added - spec.residual_scale * residual)
    assert torch.equal(layer.eval()(x), layer(x))


def test_compiles_without_graph_breaks():
    model = adapted(mlp())
    layer = expert_layers(model)[0].eval()
    compiled = torch.compile(copy.deepcopy(layer), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(INPUT), layer(INPUT))


def test_bfloat16_base_keeps_float32_adapter_and_bfloat16_output():
    base = llama(dtype=torch.bfloat16)
    ids = torch.arange(1, 9).reshape(1, 8)
    expected = base(input_ids=ids).logits
    model = adapted(base, target_modules=LLAMA_TARGETS, router="none", rho=1.0)
    assert {p.dtype for n, p in model.named_parameters() if ".expert_" in n} == {torch.float32}
    logits = model(input_ids=ids).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits, expected, rtol=0.05, atol=0.05)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_model_can_be_copied_between_forward_and_backward():
    model = adapted(mlp()).train()
    model(INPUT)
    twin = copy.deepcopy(model)
    assert twin.balance_loss().item() == 0
    assert model.balance_loss().item() > 0
    twin(INPUT)  # the copied layers write into the copy's log, not into the original's
    assert model.balance_loss().item() == 0
    assert twin.balance_loss().item() > 0


def test_balance_loss_and_checkpointing_give_the_same_gradients():
    def run(checkpointed: bool) -> dict[str, torch.Tensor]:
        model = adapted(mlp()).train()
        perturb(model)
        call = model.get_submodule("base_model.model")
        out = checkpoint(call, INPUT, use_reentrant=False) if checkpointed else call(INPUT)
        loss = out.square().mean() + model.balance_loss()
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}

    plain, checkpointed = run(False), run(True)
    for name, grad in plain.items():
        assert torch.equal(grad, checkpointed[name])


@pytest.mark.parametrize("init", ["spectral", "zero"])
def test_unrouted_merge_is_the_unmerged_model_and_unmerge_is_exact(init):
    base = mlp()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    model = adapted(base, router="none", init=init)
    perturb(model, size=0.02)
    expected = model(INPUT)
    model.merge_adapter()
    assert not torch.equal(base.wide.base_layer.weight, before["wide.weight"])
    torch.testing.assert_close(model(INPUT), expected, rtol=1e-5, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(base.wide.base_layer.weight, before["wide.weight"])
    assert torch.equal(model(INPUT), expected)
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(INPUT), expected, rtol=1e-5, atol=1e-5)
    assert not expert_layers(merged)


def test_a_refused_merge_leaves_no_layer_merged():
    model = adapted(mlp(), target_modules=["wide"], router="none")
    model.add_adapter("routed", ExpertLoraConfig(r=8, num_experts=4, target_modules=["narrow"]))
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(RequestError, match="routed"):
            merge(adapter_names=["default", "routed"])
        assert not any(layer.merged for layer in expert_layers(model))


def test_routed_merge_is_refused_and_leaves_the_model_alone():
    model = adapted(mlp())
    expected = model(INPUT)
    for merge in (model.merge_adapter, model.merge_and_unload, expert_layers(model)[0].merge):
        with pytest.raises(RequestError, match=r"default.*cannot be merged.*every token"):
            merge()
    assert torch.equal(model(INPUT), expected)
