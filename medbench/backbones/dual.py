"""A dual encoder of two transformers models, a vision and a text tower with a projection each.

It has open_clip's interface, so that everything that runs on an open_clip model runs on it. Modules are named
`visual.trunk`, `visual.proj`, `text.transformer` and `text.proj`.
"""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from medbench.backbones.clip_build import Preprocess, first_line, knows_no_word
from medbench.backbones.clip_sources import DualConfig, check_projections, read_dual
from medbench.errors import RequestError, WorkError
from medbench.files import write_atomic

PROJECTIONS = ("visual.proj.weight", "text.proj.weight", "logit_scale")
#: Of a new dual encoder, as of CLIP.
TEMPERATURE = 0.07


class VisionTower(nn.Module):
    """An image model and its projection."""

    def __init__(self, trunk: Any, config: DualConfig) -> None:
        """Args: a transformers vision model; what pools it, its image size and the common dimension."""
        super().__init__()
        self.trunk: Any = trunk
        self.proj = nn.Linear(self.trunk.config.hidden_size, config.dim, bias=False)
        self.pooling, self.image_size = config.pooling.vision, (config.image_size, config.image_size)
        takes = inspect.signature(self.trunk.forward).parameters
        own = self.trunk.config.image_size != config.image_size and "interpolate_pos_encoding" in takes
        self._more = {"interpolate_pos_encoding": True} if own else {}

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] to [B, D]: the class token, or the mean of the patches (without class and register tokens)."""
        found = self.trunk(pixel_values=pixels, **self._more)
        tokens = found.last_hidden_state
        if self.pooling == "mean":
            pooled = tokens[:, self.before_patches(tokens) :].mean(1)
        elif self.trunk.config.model_type == "clip_vision_model":
            pooled = found.pooler_output  # CLIP normalises the class token after the last layer, and only there
        else:
            pooled = tokens[:, 0]
        features: torch.Tensor = self.proj(pooled)
        return features

    def before_patches(self, tokens: torch.Tensor) -> int:
        """How many tokens of [B, T, width] stand before those of the patches."""
        patches = (self.image_size[0] // int(self.trunk.config.patch_size)) ** 2
        return int(tokens.shape[1]) - patches


class TextTower(nn.Module):
    """A text model and its projection."""

    def __init__(self, transformer: Any, config: DualConfig, pad: int) -> None:
        """Args: a transformers encoder; what pools it and the common dimension; the padding token."""
        super().__init__()
        self.transformer: Any = transformer
        self.proj = nn.Linear(self.transformer.config.hidden_size, config.dim, bias=False)
        self.pooling, self.pad = config.pooling.text, pad

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[T, L] to [T, D]: the first token, or the mean of those that are no padding."""
        mask = (tokens != self.pad).long()
        states = self.transformer(input_ids=tokens, attention_mask=mask).last_hidden_state
        if self.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        features: torch.Tensor = self.proj(pooled)
        return features


class DualEncoder(nn.Module):
    """Two towers and a temperature."""

    def __init__(self, visual: VisionTower, text: TextTower) -> None:
        """Args: the towers."""
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / TEMPERATURE)))

    def encode_image(self, image: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """[B, 3, H, W] to [B, D]."""
        features: torch.Tensor = self.visual(image)
        return F.normalize(features, dim=-1) if normalize else features

    def encode_text(self, text: torch.Tensor, normalize: bool = False) -> torch.Tensor:
        """[T, L] to [T, D]."""
        features: torch.Tensor = self.text(text)
        return F.normalize(features, dim=-1) if normalize else features

    def forward(
        self, image: torch.Tensor | None = None, text: torch.Tensor | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor]:
        """Normalised features, None where nothing was given, and the scale."""
        images = None if image is None else self.encode_image(image, normalize=True)
        texts = None if text is None else self.encode_text(text, normalize=True)
        return images, texts, self.logit_scale.exp()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes activations in the backward pass."""
        for tower in (self.visual.trunk, self.text.transformer):
            if enable:
                tower.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                tower.gradient_checkpointing_disable()


class DualTokenizer:
    """Texts to tokens of a fixed length, so that an embedding does not depend on the texts beside it."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        """Args: a transformers tokenizer; tokens that a text is padded or cut to."""
        self.tokenizer, self.length = tokenizer, length

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """[T, L], int64."""
        found = self.tokenizer(
            list(texts), padding="max_length", max_length=self.length, truncation=True, return_tensors="pt"
        )
        ids: torch.Tensor = found.input_ids
        return ids


def build_dual(path: Path, device: str = "cpu") -> tuple[DualEncoder, Preprocess]:
    """The encoder that a YAML describes, its towers filled from their folders; the projections are fresh.

    Args:
        path: of the YAML.
        device: `cpu`, or `meta` for modules without weights.

    Raises:
        RequestError: the YAML is wrong, or names models that are no image and text encoder.
        WorkError: a tower's weights cannot be read, or are not all there.
    """
    config = read_dual(path)
    assert config.mean is not None and config.std is not None  # `read_dual` sees to it
    trunk = _tower(Path(config.vision), f"backbone {path}: vision", device)
    transformer = _tower(Path(config.text), f"backbone {path}: text", device)
    for what, tower, needs in (("vision", trunk, "pixel_values"), ("text", transformer, "input_ids")):
        if set(inspect.signature(tower.forward).parameters) & {"pixel_values", "input_ids"} != {needs}:
            raise RequestError(f"backbone {path}: {what}: {type(tower).__name__} is no {what} encoder")
    tokenizer, pad = _tokenizer(config, path)
    with torch.device(device):
        model = DualEncoder(VisionTower(trunk, config), TextTower(transformer, config, pad))
    if device != "meta":
        _try(model.eval(), config, path)
        _try_text(model, len(tokenizer), config, path)
    return model, Preprocess(config.image_size, config.mean, config.std, "bicubic", config.resize)


def _tower(folder: Path, what: str, device: str) -> Any:
    """A transformers model without heads that pool: they are not used, and would count as parameters."""
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
        build: Any = AutoModel._model_mapping[type(config)]
        own = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(build).parameters else {}
        if hasattr(config, "vision_use_head"):
            config.vision_use_head = False
        if device == "meta":
            with torch.device("meta"):
                return build(config, **own)
        model, about = build.from_pretrained(
            str(folder), config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **own
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise WorkError(f"{what}: {folder} cannot be loaded: {first_line(error)}") from error
    missing = sorted(about["missing_keys"])
    if missing:
        raise WorkError(f"{what}: {folder}: its weights lack {len(missing)} tensors, first {', '.join(missing[:3])}")
    return model


@torch.no_grad()
def _try(model: DualEncoder, config: DualConfig, path: Path) -> None:
    """One image through the tower: what cannot work is refused before anything is trained."""
    trunk, side = model.visual.trunk, config.image_size
    try:
        tokens = trunk(pixel_values=torch.zeros(1, 3, side, side), **model.visual._more).last_hidden_state
        before = model.visual.before_patches(tokens) if tokens.ndim == 3 else -1
    except (ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise RequestError(
            f"backbone {path}: {type(trunk).__name__} takes no images of {side} px: {first_line(error)}"
        ) from error
    if before < 0:
        raise RequestError(f"backbone {path}: {type(trunk).__name__} is no transformer over patches of images")
    if config.pooling.vision == "cls" and before == 0:
        raise RequestError(f"backbone {path}: {type(trunk).__name__} has no class token; use pooling: {{vision: mean}}")


@torch.no_grad()
def _try_text(model: DualEncoder, words: int, config: DualConfig, path: Path) -> None:
    """One text of full length through the tower, and whether it has a row for each of the tokenizer's tokens."""
    rows = model.text.transformer.get_input_embeddings().num_embeddings
    if words > rows:
        raise RequestError(
            f"backbone {path}: text: its tokenizer has {words:,} tokens, the model knows {rows:,}; they are not of one"
        )
    try:
        model.text(torch.full((1, config.context_length), 0 if model.text.pad else 1))
    except (IndexError, ValueError, RuntimeError) as error:
        raise RequestError(
            f"backbone {path}: {type(model.text.transformer).__name__} takes no {config.context_length} tokens "
            f"({first_line(error)}); give a smaller context_length"
        ) from error


def fill_dual(model: DualEncoder, path: Path) -> None:
    """Puts the projections and the temperature of a YAML's file in.

    Raises:
        RequestError: there is no such file yet. WorkError: it is damaged, or does not fit the towers.
    """
    file = check_projections(read_dual(path), path)
    try:
        found = load_file(file)
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{file} is damaged or incomplete: {error}") from error
    own = {name: tensor for name, tensor in model.state_dict().items() if name in PROJECTIONS}
    wanted = {name: list(tensor.shape) for name, tensor in own.items()}
    stored = {name: list(tensor.shape) for name, tensor in found.items()}
    if wanted != stored:
        raise WorkError(f"{file} holds {stored}, these towers need {wanted}")
    model.load_state_dict(found, strict=False)


def fresh_projections(model: DualEncoder, seed: int) -> None:
    """Draws both projections (normal, 1 / sqrt(width)) and sets the temperature to CLIP's start."""
    draws = torch.Generator().manual_seed(seed)
    for proj in (model.visual.proj, model.text.proj):
        drawn = torch.randn(proj.weight.shape, generator=draws) * proj.in_features**-0.5
        proj.weight.data.copy_(drawn)
    model.logit_scale.data.fill_(math.log(1 / TEMPERATURE))


def save_projections(model: DualEncoder, path: Path) -> None:
    """Saves both projections and the temperature as float32 safetensors, atomically."""
    tensors = {
        name: tensor.detach().float().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if name in PROJECTIONS
    }
    write_atomic(path, lambda temporary: save_file(tensors, temporary, {"format": "pt"}))


def dual_tokenizer(path: Path) -> DualTokenizer:
    """The tokenizer of a YAML's text folder.

    Raises:
        RequestError: it has no padding token of its own. WorkError: it cannot be read.
    """
    config = read_dual(path)
    return DualTokenizer(_tokenizer(config, path)[0], config.context_length)


def _tokenizer(config: DualConfig, path: Path) -> tuple[Any, int]:
    """The tokenizer and its padding token.

    Raises:
        RequestError: it has no padding token of its own. WorkError: it cannot be read, or there is none.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.text, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise WorkError(
            f"backbone {path}: text: its tokenizer cannot be read from {config.text}: {first_line(error)}"
        ) from error
    if knows_no_word(tokenizer):
        raise WorkError(
            f"backbone {path}: text: {config.text} holds no tokenizer (tokenizer.json, vocab.txt, ...); save it there"
        )
    pad = tokenizer.pad_token_id
    if pad is None or pad in (tokenizer.eos_token_id, tokenizer.sep_token_id, tokenizer.cls_token_id):
        raise RequestError(f"backbone {path}: text: its tokenizer has no padding token of its own")
    tokenizer.padding_side = "right"
    return tokenizer, int(pad)
