"""Builds an open_clip model, its preprocessing and its tokenizer from one local folder.

As `open_clip.create_model_and_transforms("local-dir:FOLDER")` does (a test holds it to that), but for what may be read:
safetensors only (see `clip_sources`), and nothing from the network: a text tower's configuration and its tokenizer are
folders by then, too.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError

from medbench.backbones.clip_sources import open_clip_config, text_folder, tokenizer_folder
from medbench.errors import RequestError, WorkError


@dataclass(frozen=True)
class Preprocess:
    """The deterministic preprocessing of evaluation: resize, crop or pad, scale to [0, 1], normalise.

    Attributes:
        size: side in pixels of the square that comes out.
        mean: of the normalisation, by channel.
        std: likewise.
        interpolation: `bicubic` or `bilinear`.
        resize_mode: `shortest` side and crop the centre, `longest` side and pad, or `squash`.
        fill_color: of the padding.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    def __post_init__(self) -> None:
        """Makes open_clip's own pipeline; it is no part of what this is, so its repr has no memory addresses."""
        from open_clip.transform import image_transform

        object.__setattr__(self, "_pipeline", image_transform(self.size, is_train=False, **self._settings()))

    def _settings(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "size"}

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An RGB image as [3, size, size], float32."""
        pixels: torch.Tensor = self._pipeline(image)  # type: ignore[attr-defined]
        return pixels


def build_open_clip(name: str, folder: Path, tag: str | None, device: str = "cpu") -> tuple[Any, Preprocess]:
    """The model with random weights (or none, on the meta device), and its preprocessing.

    Args:
        name: of the backbone, for errors.
        folder: with `open_clip_config.json`; of a `tag` with the weights.
        tag: open_clip's MODEL/TAG, or None.
        device: `cpu` or `meta`.

    Raises:
        RequestError: the configuration is not one that open_clip can build, or one that is not supported.
    """
    import open_clip
    from open_clip.transformer import Attention

    model_cfg, preprocess_cfg = open_clip_config(folder, tag)
    settings = _settings(name, folder, model_cfg)
    custom = bool(settings.pop("custom_text", False)) or bool(settings["text_cfg"].get("hf_model_name"))
    build = open_clip.CustomTextCLIP if custom else open_clip.CLIP
    try:
        with torch.device(device):
            model = build(**settings)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError, AttributeError) as error:
        raise RequestError(f"backbone {name}: open_clip cannot build it: {first_line(error)}") from error
    if any(isinstance(module, Attention) for module in model.modules()):
        raise RequestError(f"backbone {name}: its attention is open_clip's custom block, which cannot be adapted")
    # A bias that all logits share changes no class's probability, and without it a forward pass gives three things.
    model.logit_bias = None
    return model, _preprocess(name, model, preprocess_cfg)


def _settings(name: str, folder: Path, model_cfg: dict[str, Any]) -> dict[str, Any]:
    """The constructor's arguments; towers are never filled from elsewhere than the backbone's own weights."""
    settings = deepcopy(model_cfg)
    if "multimodal_cfg" in settings:
        raise RequestError(f"backbone {name}: a captioner (CoCa) is no dual encoder")
    if settings["vision_cfg"].get("timm_model_name"):
        settings["vision_cfg"]["timm_model_pretrained"] = False
    text = settings["text_cfg"]
    if text.get("hf_model_name"):
        text |= {"hf_model_name": str(text_folder(folder, str(text["hf_model_name"]))), "hf_model_pretrained": False}
    return settings


def _preprocess(name: str, model: Any, preprocess_cfg: dict[str, Any]) -> Preprocess:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    found = merge_preprocess_dict(asdict(PreprocessCfg()), preprocess_cfg)
    size = model.visual.image_size  # as open_clip does: the tower's own, whatever preprocess_cfg says
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1:
        raise RequestError(f"backbone {name}: takes images of {size}; only square ones are supported")
    mean, std = (tuple(v) if isinstance(v, list | tuple) else (v,) * 3 for v in (found["mean"], found["std"]))
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise RequestError(f"backbone {name}: preprocess_cfg: mean and std should be three numbers, std above 0")
    return Preprocess(sides.pop(), mean, std, found["interpolation"], found["resize_mode"], found["fill_color"])


def fill_open_clip(name: str, model: Any, weights: Path) -> None:
    """Fills a model from the weights of an open_clip folder, strictly.

    Raises:
        WorkError: the file is damaged, or is of another model.
    """
    from open_clip.factory import load_checkpoint

    try:
        # Of a pickle (BiomedCLIP's, see `clip_sources`) tensors only.
        load_checkpoint(model, str(weights), strict=True, weights_only=True)
    except UnpicklingError as error:
        raise WorkError(f"backbone {name}: {weights} holds other things than tensors, or is damaged") from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StopIteration) as error:
        raise WorkError(f"backbone {name}: {weights} does not fit or cannot be read: {first_line(error)}") from error


def open_clip_tokenizer(name: str, folder: Path, tag: str | None) -> Any:
    """The tokenizer: a list of texts -> [T, context length], int64.

    Raises:
        WorkError: the folder's tokenizer cannot be read.
    """
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    text = open_clip_config(folder, tag)[0]["text_cfg"]
    length, own = text.get("context_length", DEFAULT_CONTEXT_LENGTH), dict(text.get("tokenizer_kwargs") or {})
    try:
        if not text.get("hf_tokenizer_name"):
            return SimpleTokenizer(context_length=length, **own)
        source = tokenizer_folder(folder, str(text["hf_tokenizer_name"]))
        mode, safe = text.get("tokenizer_mode"), {"trust_remote_code": False}
        found = HFTokenizer(str(source), context_length=length, tokenizer_mode=mode, **own | safe)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise WorkError(f"backbone {name}: its tokenizer cannot be read: {first_line(error)}") from error
    if knows_no_word(found.tokenizer):
        raise WorkError(f"backbone {name}: {source} holds no tokenizer (tokenizer.json, vocab.txt, ...); save it there")
    return found


def knows_no_word(tokenizer: Any) -> bool:
    """Whether a transformers tokenizer has special tokens alone, so that all texts would be the same.

    transformers makes such a one, and says nothing, of a folder that holds none of a tokenizer's files.
    """
    return len(tokenizer) <= len(set(tokenizer.all_special_ids))


def first_line(error: BaseException) -> str:
    """What an error says, in one line; of torch's long ones the first two."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__
