"""Splitting `nn.MultiheadAttention` into linear layers, and adapters on open_clip's and timm's towers."""

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_adapters_common import expert_layers, perturb
from torch import nn

from medbench.adapters import ExpertLoraConfig
from medbench.adapters.attention import SplitAttention, split_attention
from medbench.adapters.upcycle import layers_of, upcycle
from medbench.errors import RequestError

B, T, S, E, H = 3, 5, 7, 16, 4
PARTS = ("q_proj", "k_proj", "v_proj", "out_proj")
TOWER = r"visual\..*\.(attn\.(q_proj|k_proj|v_proj|out_proj)|mlp\.c_(fc|proj))"


def attention(dtype: torch.dtype = torch.float32, **settings: Any) -> nn.MultiheadAttention:
    """An attention whose biases are not zero, as they are after initialisation."""
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, H, **{"batch_first": True, **settings}).to(dtype)
    perturb(module, size=0.2)
    return module


def pair(dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[nn.Module, nn.Module]:
    """An attention and what it becomes."""
    holder = nn.ModuleDict({"attn": attention(dtype, **settings)})
    old = holder["attn"]
    assert split_attention(holder) == ["attn"]
    return old, holder["attn"]


def tokens(length: int, width: int = E, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length + width)
    return torch.randn(B, length, width, generator=generator, dtype=torch.float64).to(dtype)


HIDDEN = torch.arange(S).expand(B, S) >= torch.tensor([[7], [5], [3]])
BIAS = torch.randn(T, S, generator=torch.Generator().manual_seed(2))
PER_HEAD = torch.randn(B * H, T, S, generator=torch.Generator().manual_seed(3))
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bool mask": {"attn_mask": BIAS.abs() > 1},
    "float mask": {"attn_mask": BIAS},
    "mask per head": {"attn_mask": PER_HEAD},
    "bool mask per head": {"attn_mask": PER_HEAD > 1},
    "padding": {"key_padding_mask": HIDDEN},
    "float padding": {"key_padding_mask": HIDDEN * -3.0},
    "padding and bool mask": {"key_padding_mask": HIDDEN, "attn_mask": BIAS > 1},
    "padding and mask per head": {"key_padding_mask": HIDDEN * -3.0, "attn_mask": PER_HEAD},
}
KINDS: dict[str, dict[str, Any]] = {
    "batch first": {},
    "length first": {"batch_first": False},
    "no bias": {"bias": False},
    "other widths": {"kdim": 12, "vdim": 10},
    "other widths, no bias, length first": {"kdim": 12, "vdim": 10, "bias": False, "batch_first": False},
    "dropout, in evaluation": {"dropout": 0.3},
}


def called(module: nn.Module, call: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, weights, and the gradients of the three inputs."""
    shapes = ((T, E), (S, module.kdim), (S, module.vdim))
    inputs = [tokens(length, width, dtype) for length, width in shapes]
    if not module.batch_first:
        inputs = [x.transpose(0, 1) for x in inputs]
    inputs = [x.requires_grad_() for x in inputs]
    masks = {k: v.to(dtype) if isinstance(v, torch.Tensor) and v.is_floating_point() else v for k, v in call.items()}
    output, weights = module(*inputs, **masks)
    gradients = torch.autograd.grad(output.square().sum(), inputs)
    found = {"output": output, **{f"gradient {n}": g for n, g in zip("qkv", gradients, strict=True)}}
    return found if weights is None else found | {"weights": weights}


@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}], ids=str)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_the_attention_did(kind, call, weights):
    for dtype, close in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        old, new = (module.eval() for module in pair(dtype, **KINDS[kind]))
        expected = called(old, {**CALLS[call], **weights}, dtype)
        torch.testing.assert_close(
            called(new, {**CALLS[call], **weights}, dtype), expected, rtol=close, atol=close, check_stride=False
        )


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_self_attention_without_gradients_and_causal(batch_first, weights):
    """Where torch takes its fast path, and where it is told that the mask is causal."""
    old, new = (module.eval() for module in pair(batch_first=batch_first))
    x = tokens(T)  # [B, T, E], or a batch of T sequences of length B
    length = T if batch_first else B
    mask = torch.ones(length, length).triu(1).bool()
    call = {"attn_mask": mask, "is_causal": True, "need_weights": weights}
    with torch.no_grad():
        expected, found = old(x, x, x, **call), new(x, x, x, **call)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_one_sequence_without_a_batch():
    for batch_first in (True, False):
        old, new = (module.eval() for module in pair(batch_first=batch_first))
        q, k, v = tokens(T)[0], tokens(S)[0], tokens(S)[1]
        for call in ({"attn_mask": BIAS}, {"key_padding_mask": HIDDEN[1]}, {"need_weights": False}):
            torch.testing.assert_close(new(q, k, v, **call), old(q, k, v, **call), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", [True, False])
def test_dropout_in_training_drops_what_the_attention_would(weights):
    old, new = (module.train() for module in pair(dropout=0.5))
    x = tokens(T)

    def output(module: nn.Module) -> torch.Tensor:
        torch.manual_seed(4)
        return module(x, x, x, need_weights=weights)[0]

    dropped = output(new)
    torch.testing.assert_close(dropped, output(old), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(new.eval()), dropped)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_parameters_keep_their_values_count_dtype_and_state(dtype):
    for kind in KINDS.values():
        old = attention(dtype, **kind).requires_grad_(False).eval()
        new = SplitAttention(old)
        assert sum(p.numel() for p in new.parameters()) == sum(p.numel() for p in old.parameters())
        assert {p.dtype for p in new.parameters()} == {dtype}
        assert not any(p.requires_grad for p in new.parameters())
        assert not any(module.training for module in new.modules())
        if old.in_proj_weight is not None:
            packed = torch.cat([new.get_submodule(part).weight for part in PARTS[:3]])
            assert torch.equal(packed, old.in_proj_weight)
        storages = {p.untyped_storage().data_ptr() for p in new.parameters()}
        assert len(storages) == len(list(new.parameters()))  # a part pickles alone


def test_splitting_again_finds_nothing_and_shared_attentions_stay_shared():
    shared = attention()
    model = nn.ModuleDict({"one": shared, "other": nn.ModuleList([shared, nn.Linear(2, 2)])})
    assert split_attention(model) == ["one", "other.0"]
    assert model["one"] is model["other"][0]
    before = list(model.modules())
    assert split_attention(model) == []
    assert list(model.modules()) == before


class Own(nn.MultiheadAttention):
    """A subclass that computes something else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args[0], None


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), r"^1: .*add_bias_kv=True cannot be split"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), r"^1: .*add_zero_attn=True cannot be split"),
        (Own(8, 2), r"^1: Own has a forward pass of its own"),
    ],
)
def test_what_cannot_be_split_is_refused_and_nothing_is_changed(module, message):
    model = nn.Sequential(nn.MultiheadAttention(8, 2), module)
    before = list(model.modules())
    with pytest.raises(RequestError, match=message):
        split_attention(model)
    assert list(model.modules()) == before
    with pytest.raises(RequestError):
        split_attention(module)


def test_masks_that_do_not_fit_are_refused():
    _, new = pair()
    x = tokens(T)
    for call, message in (
        ({"attn_mask": torch.zeros(1, T)}, r"attn_mask is \[1, 5\], expected \[5, 5\]"),
        ({"attn_mask": torch.zeros(B, T, T)}, r"attn_mask is \[3, 5, 5\], expected \[12, 5, 5\]"),
        ({"key_padding_mask": torch.zeros(1, T)}, r"key_padding_mask is \[1, 5\], expected \[3, 5\]"),
        ({"is_causal": True}, "there is none"),
    ):
        with pytest.raises(ValueError, match=message):
            new(x, x, x, **call)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("grad", [True, False])
def test_torch_transformers_run_on_it_and_run_its_adapters(grad):
    """torch's encoder computes with the attention's matrices itself, in evaluation mode, where it finds them."""
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(E, H, 32, batch_first=True), 2).eval()
    x = tokens(S)
    with torch.set_grad_enabled(grad):
        expected = model(x, src_key_padding_mask=HIDDEN)[~HIDDEN]
        assert split_attention(model) == ["layers.0.self_attn", "layers.1.self_attn"]
        found = model(x, src_key_padding_mask=HIDDEN)[~HIDDEN]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        for part in PARTS:
            adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, target_modules=[part]))
            perturb(adapted)
            assert not torch.allclose(adapted(x, src_key_padding_mask=HIDDEN)[~HIDDEN], found)


@pytest.fixture
def clip() -> nn.Module:
    """A small open_clip model; its text tower attends causally."""
    import open_clip

    torch.manual_seed(0)
    vision = {"layers": 2, "width": 32, "head_width": 8, "patch_size": 8, "image_size": 32}
    text = {"context_length": 9, "vocab_size": 50, "width": 24, "heads": 4, "layers": 2}
    return open_clip.model.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text).eval()


IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
TEXTS = torch.tensor([[48, 3, 4, 49, 0, 0, 0, 0, 0], [48, 5, 6, 7, 8, 9, 10, 11, 49]])


@pytest.mark.parametrize("grad", [True, False])
def test_open_clip_towers_encode_as_before(clip, grad):
    with torch.set_grad_enabled(grad):
        expected = clip.encode_image(IMAGES), clip.encode_text(TEXTS)
        names = split_attention(clip)
        assert names == [f"{tower}transformer.resblocks.{n}.attn" for tower in ("visual.", "") for n in (0, 1)]
        torch.testing.assert_close((clip.encode_image(IMAGES), clip.encode_text(TEXTS)), expected, rtol=1e-5, atol=1e-5)
    clip.lock_image_tower()
    clip.set_grad_checkpointing()
    clip.train().encode_text(TEXTS).sum().backward()
    assert clip.get_submodule("transformer.resblocks.0.attn.q_proj").weight.grad is not None


def test_our_adapter_goes_onto_an_open_clip_tower(clip):
    with pytest.raises(RequestError, match=r"medbench\.adapters\.attention\.split_attention"):
        get_peft_model(copy.deepcopy(clip), ExpertLoraConfig(r=8, num_experts=4, target_modules=TOWER, init="zero"))
    split_attention(clip)
    images, texts = clip.encode_image(IMAGES), clip.encode_text(TEXTS)
    model = get_peft_model(clip, ExpertLoraConfig(r=8, num_experts=4, target_modules=TOWER, init="zero")).eval()
    layers = expert_layers(model)
    assert len(layers) == 2 * 6
    assert torch.equal(clip.encode_image(IMAGES), images)
    for layer in layers:  # each of them has its say
        before = clip.encode_image(IMAGES)
        nn.init.normal_(layer.expert_B["default"])
        assert not torch.allclose(clip.encode_image(IMAGES), before)
    assert torch.equal(clip.encode_text(TEXTS), texts)
    model.train()(IMAGES, TEXTS)
    assert len(model.base_model.routing_log.losses) == len(layers)
    with model.disable_adapter():
        assert torch.equal(clip.eval().encode_image(IMAGES), images)


def test_an_open_clip_tower_can_be_upcycled(clip):
    expected = clip.encode_image(IMAGES)
    split_attention(clip)
    upcycle(clip, TOWER, 4, 2)
    assert len(layers_of(clip)) == 2 * 6
    torch.testing.assert_close(clip.encode_image(IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_principal_adapters_leave_a_fused_timm_tower_as_it_was():
    import timm

    torch.manual_seed(0)
    tower = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, patch_size=8, depth=2).eval()
    assert split_attention(tower) == []
    expected = tower.forward_features(IMAGES)
    targets = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])"
    config = ExpertLoraConfig(r=8, num_experts=1, router="none", init="principal", rho=1.0, target_modules=targets)
    model = get_peft_model(tower, config)
    assert [layer.out_features for layer in expert_layers(model)[:2]] == [3 * 192, 192]
    torch.testing.assert_close(tower.forward_features(IMAGES), expected, rtol=1e-5, atol=1e-5)
    perturb(model)
    assert not torch.allclose(tower.forward_features(IMAGES), expected, atol=1e-2)
