"""Image features that are computed once an image, however many questions ask about it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medbench.backbones.vlm import Batch, Vlm
from medbench.data.item import Item

_PLAIN = {"last_hidden_state", "pooler_output", "hidden_states", "attentions"}


class ImageFeatures:
    """The features of a chunk's images.

    Models that take precomputed features (`mm_encoder_outputs` in `forward`) and return one plain tensor an image are
    served from here; for others `inputs` hands the pixels through, so their images are encoded with every question.
    """

    def __init__(self, vlm: Vlm):
        """Args: the model."""
        self.vlm = vlm
        self.cached = vlm.accepts_features
        self.encoded = 0
        self.tokens: dict[str, int] = {}
        self._features: dict[str, torch.Tensor] = {}

    def encode(self, items: Mapping[str, Item], batch_size: int) -> None:
        """Replaces what is held by the features of these images (image key -> any item that asks about it).

        Also counts each image's tokens (`tokens`), from the prompts' lengths.

        Raises:
            BadItemError: an image cannot be read.
        """
        self._features, self.tokens = {}, {}
        keys = list(items)
        bare = len(self.vlm.completion_ids(self.vlm.chat("")))
        for start in range(0, len(keys), batch_size):
            chosen = keys[start : start + batch_size]
            images = [self.vlm.load_image(items[key]) for key in chosen]
            batch = self.vlm.prompt_batch([self.vlm.chat("")] * len(chosen), images)
            lengths = (batch["attention_mask"].sum(1) - bare).tolist()
            self.tokens.update(zip(chosen, lengths, strict=True))
            if self.cached:
                self._encode_batch(chosen, batch)

    def _encode_batch(self, keys: Sequence[str], batch: Batch) -> None:
        encode = self.vlm.base.get_image_features
        names = inspect.signature(encode).parameters
        given = {n: v.to(self.vlm.device) for n, v in batch.items() if n in names and isinstance(v, torch.Tensor)}
        output = encode(**given, return_dict=True)
        found = output.pooler_output
        if set(output) - _PLAIN or len(found) != len(keys):
            # Features of several layers, or not one entry an image: such a model encodes with every question.
            self.cached = False
            return
        self.encoded += len(keys)
        self._features.update(zip(keys, found, strict=True))

    def inputs(self, batch: Batch, keys: Sequence[str]) -> Batch:
        """A prompt batch on the device, its pixels replaced by the features of the rows' images."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        moved = {n: v.to(self.vlm.device) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}
        if not self.cached:
            return moved
        moved = {name: value for name, value in moved.items() if not name.startswith("pixel")}
        chosen: Any = tuple(self._features[key] for key in keys)
        moved["mm_encoder_outputs"] = {"image": BaseModelOutputWithPooling(pooler_output=chosen)}
        return moved
