"""A vision-language model and its processor: loading, prompts, batches.

Any `AutoModelForImageTextToText` model whose processor has a chat template will do. Batches are padded on the left;
completions are appended after tokenising prompt and completion apart, so that training, answer likelihoods and
generation share one boundary.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from medbench.backbones.layers import LayerTable, table_of
from medbench.backbones.pixels import BLANK_KEY, BLANK_SIZE, PixelCache, blank_image
from medbench.backbones.registry import Backbone, shipped_table, target_pattern
from medbench.data.item import Item, load_image
from medbench.errors import RequestError, WorkError

Batch = dict[str, Any]
IGNORE = -100


@dataclass
class Vlm:
    """A loaded backbone.

    Attributes:
        model: the model; a `PeftModel` once an adapter is on it.
        processor: its processor; the tokenizer pads on the left.
        commit: the hub commit of the weights, None for a folder.
        blind: shown one blank image instead of every image (`load_image`, `image_key` and `image_tokens` see to it).
    """

    model: Any
    processor: Any
    device: torch.device
    commit: str | None = None
    blind: bool = False

    @property
    def base(self) -> Any:
        """The transformers model itself, without peft's wrapper."""
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model

    @property
    def architecture(self) -> str:
        """The model's `model_type`: a key of `registry.TARGETS` (or its default serves)."""
        return str(self.base.config.model_type)

    @property
    def accepts_features(self) -> bool:
        """Whether the model takes image features that were computed before (`mm_encoder_outputs`)."""
        return "mm_encoder_outputs" in inspect.signature(self.base.forward).parameters

    def completion_ids(self, text: str) -> list[int]:
        """The token ids of an answer, without an end token."""
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    @property
    def keeps_logits(self) -> bool:
        """Whether the model computes only the last logits when asked (`logits_to_keep`)."""
        return "logits_to_keep" in inspect.signature(self.base.forward).parameters

    @property
    def end_id(self) -> int:
        """The token that ends an answer."""
        end = self.base.generation_config.eos_token_id
        if end is None:
            end = self.processor.tokenizer.eos_token_id
        return int(end[0] if isinstance(end, list | tuple) else end)

    def chat(self, prompt: str) -> str:
        """The chat text of one user turn: the image, then the prompt."""
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        return text

    def load_image(self, item: Item) -> Any:
        """An item's image for `prompt_batch`: decoded, or a placeholder for pixels that are remembered.

        A blind model gets the blank image; the item's own is not read.

        Raises:
            BadItemError: the file is missing, truncated or not an image.
        """
        place, decode = (BLANK_KEY, blank_image) if self.blind else (item.image.place, lambda: load_image(item))
        cache = self.processor.image_processor
        return cache.load(place, decode) if isinstance(cache, PixelCache) else decode()

    def image_key(self, item: Item) -> str:
        """Names the image that the model is shown for an item: equal keys, equal pixels."""
        return BLANK_KEY if self.blind else item.image.key

    def image_tokens(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens an image of each (height, width) takes; zeros where the processor cannot say (fixed-size models).

        For a blind model those of the blank image, whatever the sizes.
        """
        if self.blind:
            sizes = [BLANK_SIZE] * len(sizes)
        count = getattr(self.processor, "_get_num_multimodal_tokens", None)
        if count is None:
            return [0] * len(sizes)
        return [int(n) for n in count(image_sizes=[list(size) for size in sizes]).num_image_tokens]

    def prompt_batch(self, prompts: Sequence[str], images: Sequence[Any]) -> Batch:
        """Tokenises chat texts with their images (RGB PIL), padded on the left.

        Returns:
            The processor's tensors: `input_ids` and `attention_mask` [B, T], pixel tensors, and what else the
            model's architecture wants.
        """
        # A chat template that writes the start token itself must not get a second one.
        start = self.processor.tokenizer.bos_token
        own = {"add_special_tokens": False} if start and prompts[0].startswith(start) else {}
        batch: Batch = dict(
            self.processor(text=list(prompts), images=list(images), return_tensors="pt", padding=True, **own)
        )
        return batch

    def with_completions(self, batch: Batch, completions: Sequence[Sequence[int]]) -> Batch:
        """Appends completions (padded on the right) to a prompt batch and adds `labels` over them.

        Args:
            batch: from `prompt_batch`, B rows.
            completions: B lists of token ids.

        Returns:
            A new batch; tensors aligned with the tokens are [B, T + K], `labels` is -100 outside the completions.
        """
        rows, prompt_length = batch["input_ids"].shape
        width = max(len(c) for c in completions)
        ids = torch.full((rows, width), int(self.processor.tokenizer.pad_token_id))
        mask = torch.zeros((rows, width), dtype=batch["attention_mask"].dtype)
        labels = torch.full((rows, prompt_length + width), IGNORE)
        for row, completion in enumerate(completions):
            ids[row, : len(completion)] = torch.tensor(completion)
            mask[row, : len(completion)] = 1
            labels[row, prompt_length : prompt_length + len(completion)] = torch.tensor(completion)
        extended = dict(batch)
        for name, value in batch.items():
            if not isinstance(value, torch.Tensor) or value.shape[:2] != (rows, prompt_length) or value.ndim != 2:
                continue
            if name.startswith("pixel"):
                continue
            tail = {"input_ids": ids, "attention_mask": mask}.get(name, torch.zeros_like(ids))
            extended[name] = torch.cat([value, tail.to(value.dtype)], dim=1)
        extended["labels"] = labels
        return extended


def load_vlm(
    backbone: Backbone,
    dtype: torch.dtype,
    device: torch.device,
    processor_settings: dict[str, int],
    weights: Path | None = None,
) -> Vlm:
    """Loads a backbone in eval mode, every parameter frozen.

    Args:
        backbone: which.
        dtype: of the weights.
        device: where to.
        processor_settings: `min_pixels`, `max_pixels` over the processor's own.
        weights: a folder with fully fine-tuned weights of this backbone, instead of its own.

    Raises:
        WorkError: the folder or hub id cannot be loaded.
        RequestError: it is no image-text-to-text model, has no chat template, or does not take the settings.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    own = backbone.folder()
    source = str(weights or own)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            processor = AutoProcessor.from_pretrained(str(own), trust_remote_code=False)
            model = AutoModelForImageTextToText.from_pretrained(
                source, dtype=dtype, use_safetensors=True, trust_remote_code=False
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorkError(f"backbone {backbone.name}: cannot be loaded from {source}: {first}") from error
    if not getattr(processor, "chat_template", None):
        raise RequestError(f"backbone {backbone.name}: its processor has no chat template")
    _set_pixels(processor, processor_settings, backbone.name)
    if PixelCache.fits(processor.image_processor):
        processor.image_processor = PixelCache(processor.image_processor)
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    model.requires_grad_(False).eval().to(device)
    return Vlm(model, processor, device, None if backbone.is_local else own.name)


def _set_pixels(processor: Any, settings: dict[str, int], name: str) -> None:
    image_processor = processor.image_processor
    keys = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    for setting, value in settings.items():
        if setting not in keys or not hasattr(image_processor, "merge_size"):
            raise RequestError(
                f"--set processor.{setting}: backbone {name} has no such setting; known: {', '.join(keys)}"
            )
        size = dict(image_processor.size)
        image_processor.size = {**size, keys[setting]: int(value)}


def layer_table(backbone: Backbone, targets: str) -> LayerTable:
    """The adapted linears of a backbone: shipped, else read off the model on the meta device.

    Raises:
        RequestError: the targets match no linear layer (with near matches), or the config cannot be read.
    """
    table = shipped_table(backbone, targets)
    if table is not None:
        return table
    model = meta_model(backbone)
    pattern = target_pattern(model.config.model_type, targets)
    linears = [(n, m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    return table_of(linears, pattern, sum(p.numel() for p in model.parameters()))


def meta_model(backbone: Backbone) -> Any:
    """The backbone's modules without weights."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    try:
        config = AutoConfig.from_pretrained(str(backbone.folder(weights=False)), trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise RequestError(f"backbone {backbone.name}: no image-text-to-text model: {first}") from error
