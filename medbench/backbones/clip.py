"""A classification backbone: a dual encoder of images and texts, its preprocessing and its tokenizer.

Any open_clip model, or two transformers models with projections (`medbench.backbones.dual`). Adapters go onto the
visual tower by default; full fine-tuning trains one tower, as papers count it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from medbench.adapters.attention import split_attention
from medbench.backbones.clip_build import build_open_clip, fill_open_clip, first_line, open_clip_tokenizer
from medbench.backbones.clip_sources import PICKLED, weights_file
from medbench.backbones.dual import DualEncoder, build_dual, dual_tokenizer, fill_dual, fresh_projections
from medbench.backbones.layers import LayerTable, table_of, tower_of
from medbench.backbones.pixels import BLANK_KEY, blank_image
from medbench.backbones.registry import Backbone, shipped_table, target_pattern
from medbench.data.item import Item, load_image
from medbench.errors import RequestError, WorkError
from medbench.files import write_atomic

WEIGHTS = "model.safetensors"


@dataclass
class Clip:
    """A loaded classification backbone.

    Attributes:
        model: with open_clip's interface: `encode_image(pixels, normalize)` -> [B, D], `encode_text(tokens, normalize)`
            -> [T, D], `logit_scale` (a parameter, the logarithm), `forward(image=None, text=None)` -> normalised
            features, or None, and the scale; a `PeftModel` once an adapter is on it.
        transform: an RGB image -> [3, H, W], float32; deterministic.
        tokenizer: texts -> [T, L], int64.
        device: where the model is.
        commit: the hub commit of the weights, None for a folder.
        blind: shown one blank image instead of every image (`load_image` and `image_key` see to it).
    """

    model: Any
    transform: Callable[[Image], torch.Tensor]
    tokenizer: Callable[[list[str]], torch.Tensor]
    device: torch.device
    commit: str | None = None
    blind: bool = False

    @property
    def base(self) -> Any:
        """The model itself, without peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def architecture(self) -> str:
        """The key of `registry.TARGETS`."""
        return "dual_encoder" if isinstance(self.base, DualEncoder) else "open_clip"

    @property
    def image_size(self) -> int:
        """Side of the images that the model takes, in pixels."""
        return int(self.base.visual.preprocess_cfg["size"])

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the pixels' normalisation, by channel."""
        return tuple(self.base.visual.preprocess_cfg["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Of the pixels' normalisation, by channel."""
        return tuple(self.base.visual.preprocess_cfg["std"])

    @property
    def scale(self) -> torch.Tensor:
        """What cosines are multiplied by, a scalar."""
        scale: torch.Tensor = self.base.logit_scale.exp().reshape(())
        return scale

    def load_image(self, item: Item) -> Image:
        """An item's image, RGB; of a blind model the blank image, and the item's own is not read.

        Raises:
            BadItemError: the file is missing, truncated or not an image.
        """
        return blank_image() if self.blind else load_image(item)

    def image_key(self, item: Item) -> str:
        """Names the image that the model is shown for an item: equal keys, equal pixels."""
        return BLANK_KEY if self.blind else item.image.key

    def forward(
        self, pixels: torch.Tensor | None = None, tokens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Embeds images, texts or both; gradients flow, and adapters' losses are those of this pass.

        Args:
            pixels: [B, 3, H, W].
            tokens: [T, L].

        Returns:
            L2-normalised features [B, D] and [T, D], None where nothing was given, and the scale, a scalar.
        """
        if pixels is not None:
            pixels = pixels.to(self.device, next(self.base.visual.parameters()).dtype)
        if tokens is not None:
            tokens = tokens.to(self.device)
        image, text, scale = self.model(image=pixels, text=tokens)
        return image, text, scale.reshape(())

    def unfreeze(self, pattern: str) -> None:
        """Makes every weight of the towers trainable in which a module's name matches the pattern.

        Raises:
            RequestError: it matches none.
        """
        names = [name for name, _ in self.base.named_modules() if re.fullmatch(pattern, name)]
        towers = {tower_of(name) for name in names}
        if not towers:
            raise RequestError(f"targets {pattern!r} match no layer, so no tower would be trained")
        for name, parameter in self.base.named_parameters():
            if tower_of(name) is not None and tower_of(name) in towers:
                parameter.requires_grad_(True)


def load_clip(backbone: Backbone, dtype: torch.dtype, device: torch.device, weights: Path | None = None) -> Clip:
    """Loads a classification backbone in eval mode, every parameter frozen, attention split into linear layers.

    Args:
        backbone: of kind `clip`.
        dtype: of the weights; the temperature stays float32.
        device: where to.
        weights: a folder of `save_clip`, instead of the backbone's own weights.

    Raises:
        RequestError: it is of another kind, or cannot be built from its configuration.
        WorkError: its weights cannot be read, or are those of another model.
    """
    _check(backbone)
    folder, tokenizer = backbone.folder(), None
    if backbone.architecture == "dual_encoder":
        model, transform = build_dual(Path(backbone.source))
        tokenizer = dual_tokenizer(Path(backbone.source))
        if weights is None:
            fill_dual(model, Path(backbone.source))
    else:
        model, transform = build_open_clip(backbone.name, folder, backbone.tag)
        tokenizer = open_clip_tokenizer(backbone.name, folder, backbone.tag)
        if weights is None:
            fill_open_clip(backbone.name, model, weights_file(folder, backbone.source in PICKLED))
    clip = as_clip(model, transform, tokenizer, dtype, device, None if backbone.is_local else folder.name)
    if weights is not None:
        _fill(model, weights / WEIGHTS)
    return clip


def new_dual(backbone: Backbone, seed: int, device: torch.device) -> Clip:
    """A dual encoder whose projections are drawn, in float32, to be trained and saved by `dual.save_projections`.

    Args:
        backbone: of a YAML; its projections need not be there.
        seed: of the draws.
        device: where to.

    Raises:
        RequestError: it is no dual encoder. WorkError: a tower cannot be read.
    """
    if backbone.architecture != "dual_encoder":
        raise RequestError(f"backbone {backbone.name} is no dual encoder of two folders: there is nothing to align")
    path = Path(backbone.source)
    model, transform = build_dual(path)
    fresh_projections(model, seed)
    return as_clip(model, transform, dual_tokenizer(path), torch.float32, device)


def as_clip(
    model: Any, transform: Any, tokenizer: Any, dtype: torch.dtype, device: torch.device, commit: str | None = None
) -> Clip:
    """A model as `load_clip` gives it: split, frozen, in eval mode, on its device.

    Args:
        model: with open_clip's interface, filled.
        transform: a `Preprocess`.
        tokenizer: texts -> [T, L].
        dtype: of the weights.
        device: where to.
        commit: of the weights on the hub.
    """
    split_attention(model)
    model.visual.preprocess_cfg = asdict(transform)
    temperature = model.logit_scale.data.float()  # in bfloat16 a scale of 100 would be 98.8
    model.requires_grad_(False).eval().to(device, dtype)
    model.logit_scale.data = temperature.to(device)
    return Clip(model, transform, tokenizer, device, commit)


def save_clip(clip: Clip, folder: Path) -> None:
    """Saves every weight of the (split) model as `model.safetensors`, atomically.

    Raises:
        RequestError: an adapter is on it; that is saved by `medbench.backbones.adapt.save_adapted`.
    """
    if clip.base is not clip.model:
        raise RequestError("the model carries an adapter, which is saved by itself")
    write_atomic(folder / WEIGHTS, lambda temporary: save_model(clip.model, str(temporary), {"format": "pt"}))


def _fill(model: nn.Module, weights: Path) -> None:
    if not weights.is_file():
        raise RequestError(f"{weights.parent} holds no {WEIGHTS} of a fully fine-tuned model")
    try:
        load_model(model, weights, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise WorkError(f"{weights} does not fit the backbone or is damaged: {first_line(error)}") from error


def clip_table(backbone: Backbone, targets: str) -> LayerTable:
    """The adapted linears of a classification backbone: shipped, else read off the model on the meta device.

    `tower` and `base` are the parameters of the towers that the linears are in.

    Raises:
        RequestError: the targets match no linear layer, or the backbone cannot be built from its configuration.
    """
    table = shipped_table(backbone, targets)
    if table is not None:
        return table
    _check(backbone)
    if backbone.architecture == "dual_encoder":
        model, _ = build_dual(Path(backbone.source), "meta")
    else:
        model, _ = build_open_clip(backbone.name, backbone.folder(weights=False), backbone.tag, "meta")
    split_attention(model)
    return table_of_clip(model, target_pattern(backbone.architecture, targets))


def table_of_clip(model: nn.Module, pattern: str) -> LayerTable:
    """The layer table of a split model.

    Raises:
        RequestError: the pattern matches no linear layer.
    """
    linears = [(n, m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    table = table_of(linears, pattern, sum(sizes.values()))
    towers = {tower_of(name) for name, _, _ in linears if re.fullmatch(pattern, name)} - {None}
    tower = sum(size for name, size in sizes.items() if tower_of(name) in towers)
    return replace(table, tower=tower, base=tower)


def _check(backbone: Backbone) -> None:
    if backbone.kind != "clip":
        raise RequestError(f"backbone {backbone.name} is of kind {backbone.kind}, not clip")
