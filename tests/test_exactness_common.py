"""The matrix of the exactness tests: every method of the catalogue on three small models (no tests in here)."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedConfig, Qwen2_5_VLForConditionalGeneration

from medbench.adapters.attention import split_attention
from medbench.adapters.upcycle import load_upcycled, save_upcycled
from medbench.backbones.adapt import attach, penalty_of, trainable_parameters
from medbench.backbones.build import SPECIAL_TOKENS, Size, build_config
from medbench.backbones.layers import LayerTable, table_of
from medbench.backbones.registry import target_pattern
from medbench.backbones.vlm import Vlm
from medbench.catalog import Catalog, Settings
from medbench.methods import Method
from medbench.spec import MethodSpec
from medbench.tuner import Tuner
from medbench.tuners import get_tuner

RANK = 16  # 8 experts of rank 2; every adapted linear has at least 32 singular values
CATALOG = Catalog(Settings())
METHODS: dict[str, Method] = {name: CATALOG.method(name) for name in CATALOG.method_names()}
TUNED = [name for name, method in METHODS.items() if method.tuner != "none"]
ADAPTERS = [name for name, method in METHODS.items() if get_tuner(method.tuner).ranked]
ROUTED = ["adamole", "full_ft_moe", "goat", "hydralora", "moelora", "spectral_moe"]

Batch = dict[str, Any]


class Tower(nn.Module):
    """The visual tower of an open_clip model, with its attention split into linear layers."""

    def __init__(self) -> None:
        super().__init__()
        import open_clip

        vision = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
        text = {"context_length": 8, "vocab_size": 32, "width": 16, "heads": 2, "layers": 1}
        self.visual = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).visual
        assert len(split_attention(self.visual)) == 2
        self.config = PreTrainedConfig()
        self.config.model_type = "open_clip"

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SimpleNamespace:
        """Features of images, as logits; with labels also their cross-entropy."""
        logits = self.visual(pixel_values)
        return SimpleNamespace(logits=logits, loss=None if labels is None else F.cross_entropy(logits, labels))


def _nano_vlm() -> nn.Module:
    tokenizer: Any = SimpleNamespace(convert_tokens_to_ids=SPECIAL_TOKENS.index)
    size = Size(48, 32, 64, 1, 2, 2, 32, 64, 1, 2, 56)
    return Qwen2_5_VLForConditionalGeneration(build_config(size, tokenizer))


def _llama() -> nn.Module:
    sizes = {"vocab_size": 48, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, pad_token_id=0))


def _text_batch(draws: torch.Generator) -> Batch:
    ids = torch.randint(8, 48, (3, 9), generator=draws)
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def _vlm_batch(draws: torch.Generator) -> Batch:
    """Two rows with an image of four tokens each; the first is padded on the left."""
    batch = _text_batch(draws)
    start, end, image = (SPECIAL_TOKENS.index(f"<|{n}|>") for n in ("vision_start", "vision_end", "image_pad"))
    shown = torch.tensor([start, *[image] * 4, end]).expand(3, 6)
    ids = torch.cat([batch["input_ids"][:, :4], shown, batch["input_ids"][:, 4:]], 1)
    mask = torch.cat([batch["attention_mask"][:, :4], torch.ones_like(shown), batch["attention_mask"][:, 4:]], 1)
    hidden = (mask == 0) | (ids < len(SPECIAL_TOKENS))
    return {
        **{"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(hidden, -100)},
        "mm_token_type_ids": (ids == image).long(),
        "pixel_values": torch.randn(3 * 16, 3 * 2 * 14 * 14, generator=draws),
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 3),
    }


def _image_batch(draws: torch.Generator) -> Batch:
    return {"pixel_values": torch.randn(4, 3, 32, 32, generator=draws), "labels": torch.tensor([1, 5, 9, 20])}


@dataclass(frozen=True)
class Kind:
    """One of the three models.

    Attributes:
        architecture: its name among the registry's targets.
        targets: the group of its linears that is adapted.
        build: makes it, from torch's global generator.
        batch: makes the batch that it is run on.
    """

    architecture: str
    targets: str
    build: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]

    @property
    def pattern(self) -> str:
        return target_pattern(self.architecture, self.targets)

    def base(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The plain model in evaluation mode, frozen; the same weights every time."""
        return deepcopy(_base(self, dtype))

    def table(self, base: nn.Module) -> LayerTable:
        linears = [(n, m.out_features, m.in_features) for n, m in base.named_modules() if isinstance(m, nn.Linear)]
        return table_of(linears, self.pattern, sum(p.numel() for p in base.parameters()))


@cache
def _base(kind: Kind, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    model = kind.build().eval().requires_grad_(False)
    for parameter in model.parameters():  # not the buffers: as `from_pretrained` does, which keeps rotations precise
        parameter.data = parameter.data.to(dtype)
    return model


KINDS = {
    "nano": Kind("qwen2_5_vl", "language+vision", _nano_vlm, _vlm_batch),
    "clip": Kind("open_clip", "vision", Tower, _image_batch),
    "llama": Kind("llama", "language", _llama, _text_batch),
}


@dataclass
class Case:
    """A method on a model, as a run builds it.

    Attributes:
        method: name of the recipe; `settings` are its adapter's, with rank and targets.
        kind: name of the model.
        vlm: holds the model, adapted.
        batch: what it is run on.
    """

    method: str
    kind: str
    settings: dict[str, Any]
    vlm: Vlm
    batch: Batch

    @property
    def model(self) -> Any:
        return self.vlm.model

    @property
    def spec(self) -> MethodSpec:
        return MethodSpec(self.method, METHODS[self.method].tuner, self.settings)

    @property
    def tuner(self) -> Tuner:
        return get_tuner(self.spec.tuner)

    @property
    def trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def output(self) -> torch.Tensor:
        """The logits of the batch, in evaluation mode."""
        return output_of(self.model, self.batch)

    def loss(self) -> torch.Tensor:
        """What training minimises: the task's loss in training mode, and the method's penalty."""
        loss = self.model.train()(**self.batch).loss
        penalty = penalty_of(self.vlm, self.spec)
        return loss if penalty is None else loss + penalty()

    def count(self) -> int:
        return trainable_parameters(self.vlm)


@torch.no_grad()
def output_of(model: Any, batch: Batch) -> torch.Tensor:
    """The logits that a model gives where they count, in evaluation mode: padding sees nothing, and is left out."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits: torch.Tensor = model.eval()(**inputs).logits
    mask = batch.get("attention_mask")
    return logits if mask is None else logits[mask.bool()]


def batch_of(kind: str, dtype: torch.dtype = torch.float32) -> Batch:
    batch = KINDS[kind].batch(torch.Generator().manual_seed(1))
    return {n: value.to(dtype) if value.is_floating_point() else value for n, value in batch.items()}


def build(method: str, kind: str, seed: int = 3, dtype: torch.dtype = torch.float32, **changes: Any) -> Case:
    """A method's recipe for small backbones on one of the models; `changes` are settings over it."""
    recipe = METHODS[method].at("nano")
    settings = {**recipe.adapter, **changes}
    if settings:
        settings["targets"] = changes.get("targets", KINDS[kind].targets)
    if get_tuner(METHODS[method].tuner).ranked:
        settings["r"] = RANK
    vlm = Vlm(KINDS[kind].base(dtype), None, torch.device("cpu"))
    case = Case(method, kind, settings, vlm, batch_of(kind, dtype))
    torch.manual_seed(seed)
    attach(vlm, case.spec, seed)
    return case


def train(case: Case, steps: int = 6) -> list[float]:
    """A few steps of AdamW on one batch; the loss before each of them, and after the last, whose gradients stay."""
    rate = 1e-2 if case.tuner.ranked else 3e-3
    optimizer = torch.optim.AdamW(case.trained.values(), lr=rate, weight_decay=0)
    losses = []
    for number in range(steps + 1):
        optimizer.zero_grad()
        loss = case.loss()
        loss.backward()
        losses.append(loss.item())
        if number < steps:
            optimizer.step()
    return losses


@torch.no_grad()
def perturb(case: Case, size: float = 0.1) -> Case:
    """Moves every trained tensor of an adapter away from its start; whole weights a tenth as far."""
    draws = torch.Generator().manual_seed(1)
    for parameter in case.trained.values():
        noise = torch.randn(parameter.shape, generator=draws)
        parameter += (size if case.tuner.ranked else size / 10) * noise.to(parameter.dtype)
    return case


def save(case: Case, folder: Path) -> Path:
    """Stores what was trained, as `medbench.backbones.adapt.save_adapted` does."""
    if case.spec.tuner == "upcycle":
        save_upcycled(case.model, folder)
    else:
        more = {"save_embedding_layers": False} if case.tuner.ranked else {}
        case.model.save_pretrained(str(folder), **more)
    return folder


Loader = Callable[[nn.Module, str], Any]


def load(method: str, kind: str, folder: Path, dtype: torch.dtype, loader: Loader) -> Any:
    """What `save` stored, on a fresh base; `loader(base, folder)` puts an adapter of peft's kind there."""
    base = KINDS[kind].base(dtype)
    tuner = METHODS[method].tuner
    torch.manual_seed(99)  # nothing that is loaded may depend on a draw
    if tuner == "upcycle":
        load_upcycled(base, folder)
    elif tuner == "full":
        loaded: Any = type(base)
        return loaded.from_pretrained(str(folder), dtype=dtype).eval()
    else:
        return loader(base, str(folder))
    return base


def tensors_of(model: nn.Module, adapter: str = "default") -> dict[str, torch.Tensor]:
    """Everything that belongs to an adapter, copied; the whole model where no adapter of peft's kind is on it."""
    state = model.state_dict()
    if isinstance(model, PeftModel):
        state = {name: value for name, value in state.items() if adapter in name.split(".")}
    return {name: value.clone() for name, value in state.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether names, dtypes and all bits agree."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """|one - other| / |other|, in float64."""
    one, other = one.detach().double(), other.detach().double()
    return float((one - other).norm() / other.norm())
