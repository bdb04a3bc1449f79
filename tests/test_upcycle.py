"""Upcycling: N full copies of a linear layer with a router, trained, saved and loaded."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapters_common import Mlp, llama, mlp, perturb
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from medbench.adapters.log import collected_use
from medbench.adapters.routing import balance_loss
from medbench.adapters.upcycle import ABOUT, WEIGHTS, layers_of, load_upcycled, save_upcycled, upcycle
from medbench.backbones.adapt import attach, penalty_of, trainable_parameters
from medbench.backbones.registry import get_backbone
from medbench.backbones.vlm import layer_table, load_vlm
from medbench.errors import RequestError, WorkError
from medbench.spec import MethodSpec
from medbench.tuners import get_tuner

IDS = torch.arange(1, 13).reshape(2, 6)
#: Two prompts, the first padded on the left by three tokens.
PADDED = torch.tensor([[0, 0, 0, 5, 6, 7], [8, 9, 10, 11, 12, 13]])
MASK = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
LLAMA = r"model\.layers\.\d+\.(self_attn\.(q|v)_proj|mlp\.(up|down)_proj)"
INPUT = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(5))


def upcycled(base: nn.Module, pattern: str = "wide|narrow", num_experts: int = 4, top_k: int = 2) -> nn.Module:
    """`base`, upcycled from one seed and moved away from its start, as training would."""
    torch.manual_seed(3)
    upcycle(base, pattern, num_experts, top_k)
    perturb(base)
    return base


def dense(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The layer of 6 experts written out, all of them for every token; with logits and choice."""
    logits = torch.einsum("...n,en->...e", x, layer.router)
    ranks = [sorted(range(6), key=lambda e: -row[e]) for row in logits.reshape(-1, 6).tolist()]
    chosen = torch.tensor([[e in best[: layer.top_k] for e in range(6)] for best in ranks]).reshape(logits.shape)
    exponentials = logits.exp() * chosen
    gate = exponentials / exponentials.sum(-1, keepdim=True)
    y = torch.einsum("...e,emn,...n->...m", gate, layer.weight, x)
    return (y if layer.bias is None else y + layer.bias), logits, chosen


@pytest.mark.parametrize(("num_experts", "top_k"), [(1, 1), (4, 1), (4, 2), (8, 8)])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 0.02)])
def test_it_starts_as_the_base_to_rounding(num_experts, top_k, dtype, close):
    base = llama(dtype=dtype)
    expected = base(input_ids=IDS).logits
    upcycle(base, LLAMA, num_experts, top_k)
    logits = base(input_ids=IDS).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits, expected, rtol=close, atol=close)
    if num_experts == 1:
        assert torch.equal(logits, expected)


@pytest.mark.parametrize("shape", [(24,), (5, 24), (2, 3, 24)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("top_k", [1, 2, 3, 6])
def test_output_and_all_gradients_are_those_of_the_layer_written_out(shape, bias, top_k):
    torch.manual_seed(0)
    model = upcycled(nn.Sequential(nn.Linear(24, 10, bias=bias)).double().train(), "0", 6, top_k)
    layer, x = model[0], torch.randn(shape, dtype=torch.float64, requires_grad=True)
    log = model.routing_log
    parameters = [x, *layer.parameters()]

    y = model(x)
    found = torch.autograd.grad(y.square().sum() + log.balance(), parameters)
    reference, logits, chosen = dense(layer, x)
    loss = reference.square().sum() + balance_loss(logits, chosen)
    torch.testing.assert_close(y, reference)
    torch.testing.assert_close(found, torch.autograd.grad(loss, parameters))


@pytest.mark.parametrize("tokens", [1, 0])
def test_experts_without_tokens_get_zeros_as_gradients(tokens):
    model = upcycled(mlp().train())
    model(INPUT.flatten(0, 1)[:tokens]).square().sum().backward()
    for layer in layers_of(model).values():
        assert layer.router.grad is not None
        used = layer.weight.grad.flatten(1).abs().sum(1) > 0
        assert used.sum() == (2 if tokens else 0)
    torch.optim.AdamW(model.parameters()).step()
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_token_does_not_depend_on_its_neighbours_their_order_or_the_batch():
    model = upcycled(mlp()).eval()
    tokens = INPUT.flatten(0, 1)
    together = model(tokens)
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(tokens[order]), together[order])
    torch.testing.assert_close(torch.cat([model(token[None]) for token in tokens]), together)
    torch.testing.assert_close(model(torch.cat([tokens, 100 * tokens]))[: len(tokens)], together)
    torch.testing.assert_close(model(INPUT).flatten(0, 1), together)


def test_two_runs_are_bit_equal():
    def gradients() -> list[torch.Tensor]:
        model = upcycled(mlp().train(), num_experts=6, top_k=3)
        (model(INPUT).square().sum() + model.routing_log.balance()).backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(gradients(), gradients(), strict=True))


def test_padding_does_not_count_in_the_balance_loss():
    model = upcycled(llama().train(), LLAMA)
    log = model.routing_log

    def balance(ids: torch.Tensor, **mask: torch.Tensor) -> torch.Tensor:
        model(input_ids=ids, **mask)
        return log.balance().detach()

    other = torch.where(MASK == 0, 40, PADDED)
    torch.testing.assert_close(balance(PADDED, attention_mask=MASK), balance(other, attention_mask=MASK))
    assert not torch.allclose(balance(PADDED), balance(other))
    assert len(log.losses) == len(layers_of(model)) == 8
    model.eval()
    model(input_ids=IDS)
    assert log.balance() is None


@pytest.mark.parametrize("whole", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(whole):
    def gradients(checkpointed: bool) -> list[torch.Tensor]:
        model = upcycled(llama().train(), LLAMA)
        if checkpointed and not whole:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if checkpointed and whole:
            out = checkpoint(model, input_ids=IDS, attention_mask=MASK, labels=IDS, use_reentrant=False)
        else:
            out = model(input_ids=IDS, attention_mask=MASK, labels=IDS)
        (out.loss + model.routing_log.balance()).backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(one, other) for one, other in zip(gradients(False), gradients(True), strict=True))


def test_autocast_keeps_float32_weights_routing_and_gradients():
    base, model = mlp(), upcycled(mlp().train())
    routed: list[torch.Tensor] = []
    record = model.routing_log.record
    model.routing_log.record = lambda *args: routed.append(args[1]) or record(*args)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(INPUT)
        assert y.dtype == base(INPUT).dtype == torch.bfloat16
    assert torch.equal(routed[0], F.linear(INPUT, model.wide.router))
    torch.testing.assert_close(y.float(), model(INPUT), rtol=0.05, atol=0.05)
    y.square().sum().backward()
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}


def test_a_copy_has_a_log_of_its_own():
    model = upcycled(mlp()).train()
    model(INPUT)
    twin = copy.deepcopy(model)
    assert twin.routing_log.balance() is None
    assert all(layer.log is twin.routing_log for layer in layers_of(twin).values())
    before = dict(model.routing_log.losses)
    twin(INPUT, attention_mask=torch.ones(3, 7))
    assert model.routing_log.losses == before
    assert model.routing_log.token_mask is None  # the copy's hook fills the copy's log
    assert len(twin.routing_log.losses) == 2
    twin(INPUT)
    assert twin.routing_log.token_mask is None


def test_generation_writes_what_the_base_writes_and_counts_the_prompt_only():
    base = llama()
    settings = {"attention_mask": MASK, "max_new_tokens": 5, "do_sample": False}
    expected = base.generate(PADDED, **settings)
    log = upcycle(base, LLAMA, 4, 2)
    with collected_use(log) as use:
        assert torch.equal(base.generate(PADDED, **settings), expected)
    assert len(use) == 8
    for found in use.values():
        assert found.tokens == MASK.sum()
        assert found.slots.sum() == 2 * MASK.sum()


class Shared(Mlp):
    """An `Mlp` whose layer `wide` is also called `again`, and whose layer `third` has the weight of `narrow`."""

    def __init__(self) -> None:
        super().__init__()
        self.again = self.wide
        self.third = nn.Linear(40, 16)
        self.third.weight = self.narrow.weight

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        hidden = self.again(x) * self.wide(x)
        return self.narrow(hidden) + self.third(hidden)


def test_shared_layers_and_weights_stay_shared_and_are_stored_once(tmp_path):
    torch.manual_seed(0)
    base = Shared()
    fresh = copy.deepcopy(base)
    model = upcycled(base, "wide|narrow|third", 3, 1).eval()
    assert model.again is model.wide
    assert model.third.weight is model.narrow.weight
    assert model.third.router is not model.narrow.router
    save_upcycled(model, tmp_path)
    assert sum(t.numel() for t in load_file(tmp_path / WEIGHTS).values()) == sum(p.numel() for p in model.parameters())
    load_upcycled(fresh, tmp_path)
    assert fresh.again is fresh.wide
    assert fresh.third.weight is fresh.narrow.weight
    assert torch.equal(fresh(INPUT), model(INPUT))


def test_tied_embeddings_are_stored_once_and_come_back_tied(tmp_path):
    def tied() -> nn.Module:
        model = llama()
        model.lm_head.weight = model.get_input_embeddings().weight
        return model

    model = upcycled(tied(), LLAMA)
    save_upcycled(model, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / WEIGHTS)
    again = tied()
    load_upcycled(again, tmp_path)
    assert again.lm_head.weight is again.get_input_embeddings().weight
    assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)
    # An output layer that is itself upcycled is no longer the embedding.
    log = upcycle(base := tied(), "lm_head", 2, 1)
    assert base.lm_head.weight.shape == (2, 64, 32)
    assert base.get_input_embeddings().weight.shape == (64, 32)
    assert log is base.routing_log


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_model_comes_back_bit_for_bit(tmp_path, dtype):
    model = upcycled(llama(dtype=dtype), LLAMA).eval()
    save_upcycled(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {WEIGHTS, ABOUT}
    base = llama(seed=7, dtype=dtype).requires_grad_(False)
    state = torch.get_rng_state()
    log = load_upcycled(base, tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(base(input_ids=IDS).logits, model(input_ids=IDS).logits)
    assert base.routing_log is log
    # Trained and in the mode that the backbone was, so that it can be used at once.
    assert not any(p.requires_grad for p in base.parameters())
    assert not any(module.training for module in base.modules())


def test_stored_float32_is_cast_to_a_bfloat16_base(tmp_path):
    model = upcycled(llama(), LLAMA).eval()
    save_upcycled(model, tmp_path)
    base = llama(seed=7, dtype=torch.bfloat16)
    load_upcycled(base, tmp_path)
    assert {p.dtype for p in base.parameters()} == {torch.bfloat16}
    assert torch.equal(base(input_ids=IDS).logits, model.to(torch.bfloat16)(input_ids=IDS).logits)


def edited(change):
    """A damage to the tensors of a saved model."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return damage


def about(**changes: object):
    """A damage to `upcycle.json`."""
    return lambda folder: (folder / ABOUT).write_text(json.dumps(json.loads((folder / ABOUT).read_text()) | changes))


def truncated(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


DAMAGES = {
    "missing": (edited(lambda t: t.pop("wide.router")), rf"{WEIGHTS} lacks 1 tensors of the model: wide\.router$"),
    "superfluous": (edited(lambda t: t.update(other=torch.ones(2))), rf"{WEIGHTS} holds 1 tensors .* place for: other"),
    "shape": (
        edited(lambda t: t.update({"narrow.weight": torch.ones(4, 2, 2)})),
        rf"{WEIGHTS} does not fit the model: narrow\.weight is \[4, 2, 2\], the model wants \[4, 16, 40\]",
    ),
    "fewer experts": (about(num_experts=3), r"wide\.weight is \[4, 40, 24\], the model wants \[3, 40, 24\]"),
    "truncated": (truncated, rf"{WEIGHTS} is damaged or incomplete"),
    "format": (about(format=2), rf"{ABOUT}: format 2 is not one that"),
    "layers": (about(layers=["wide", "model.wide"]), rf"{ABOUT}: the backbone has no linear layer model\.wide"),
    "numbers": (about(top_k=9), rf"{ABOUT}: expected num_experts, top_k"),
    "json": (lambda folder: (folder / ABOUT).write_text("{"), rf"{ABOUT}: not readable as JSON"),
    "not ours": (lambda folder: (folder / ABOUT).write_text("[]"), rf"{ABOUT}: format None"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_one_clear_line_and_leaves_the_base_as_it_was(tmp_path, damage):
    save_upcycled(upcycled(mlp()), tmp_path)
    harm, message = DAMAGES[damage]
    harm(tmp_path)
    base = mlp(seed=1)
    expected, modules = base(INPUT), list(base.modules())
    with pytest.raises(WorkError, match=message) as caught:
        load_upcycled(base, tmp_path)
    assert "\n" not in str(caught.value)
    assert all(one is other for one, other in zip(base.modules(), modules, strict=True))
    assert torch.equal(base(INPUT), expected)
    assert not hasattr(base, "routing_log")
    assert not base._forward_pre_hooks


def test_what_cannot_be_saved_or_loaded_is_refused(tmp_path):
    with pytest.raises(RequestError, match="not upcycled"):
        save_upcycled(mlp(), tmp_path)
    with pytest.raises(RequestError, match=f"holds no {ABOUT}"):
        load_upcycled(mlp(), tmp_path)
    save_upcycled(upcycled(mlp()), tmp_path)
    with pytest.raises(RequestError, match="plain backbone"):
        load_upcycled(upcycled(mlp()), tmp_path)
    with pytest.raises(RequestError, match="plain backbone that has its weights"):
        load_upcycled(mlp().to("meta"), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(RequestError, match=f"holds no {WEIGHTS}"):
        load_upcycled(mlp(), tmp_path)


@pytest.mark.parametrize(
    ("base", "pattern", "num_experts", "top_k", "message"),
    [
        (mlp, "wide", 0, 0, "1 <= top_k <= num_experts"),
        (mlp, "wide", 4, 5, "num_experts=4, top_k=5"),
        (mlp, "wid", 4, 2, r"'wid' match no linear layer; did you mean wide\?"),
        (lambda: upcycled(mlp(), "wide"), "narrow", 4, 2, "upcycled already"),
        (lambda: nn.Sequential(nn.MultiheadAttention(8, 2)), r"0\.out_proj", 4, 2, "split_attention"),
        (lambda: nn.Bilinear(2, 2, 2), "", 4, 2, "match no linear layer"),
    ],
)
def test_what_cannot_be_built_is_refused_and_nothing_is_changed(base, pattern, num_experts, top_k, message):
    model = base()
    modules = list(model.modules())
    with pytest.raises(RequestError, match=message):
        upcycle(model, pattern, num_experts, top_k)
    assert all(one is other for one, other in zip(model.modules(), modules, strict=True))


def test_meta_layers_stay_on_meta_and_draw_nothing():
    with torch.device("meta"):
        model = Mlp()
    state = torch.get_rng_state()
    upcycle(model, "wide", 4, 2)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert torch.equal(torch.get_rng_state(), state)


def test_the_method_trains_exactly_the_parameters_that_its_budget_says(tmp_path):
    settings = {"targets": "language", "num_experts": 8, "top_k": 2, "balance_coefficient": 1e-3}
    method = MethodSpec("full_ft_moe", "upcycle", settings)
    backbone = get_backbone("nano-vl")

    def load():
        return load_vlm(backbone, torch.float32, torch.device("cpu"), {})

    vlm, again = load(), load()
    batch = {"input_ids": PADDED + 20, "attention_mask": MASK}
    expected = vlm.model(**batch).logits
    attach(vlm, method, seed=0)
    torch.testing.assert_close(vlm.model(**batch).logits, expected, rtol=1e-4, atol=1e-4)
    count = get_tuner("upcycle").count(settings, 0, layer_table(backbone, "language"))
    assert trainable_parameters(vlm) == sum(p.numel() for p in vlm.model.parameters()) == count

    vlm.model.train()
    vlm.model(**batch)
    penalty = penalty_of(vlm, method)()
    assert 1e-3 <= penalty.item() <= 8 / 2 * 1e-3
    vlm.model.eval()
    perturb(vlm.model, size=0.01)
    save_upcycled(vlm.model, tmp_path)
    load_upcycled(again.model, tmp_path)
    assert torch.equal(again.model(**batch).logits, vlm.model(**batch).logits)
