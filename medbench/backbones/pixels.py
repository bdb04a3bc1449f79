"""The pixels a model is shown: a memory of preprocessed images, and the blank image of blind runs.

The memory is bounded; with it an image that is asked about ten times is decoded and resized once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

#: Bytes of preprocessed pixels that are kept; the least recently used go first.
CAPACITY = 256 * 2**20

#: (height, width) and grey value of the blank image, and its key, which no image of a data set has.
BLANK_SIZE = (448, 448)
BLANK_GREY = 127
BLANK_KEY = "\0blank"


def blank_image() -> Image.Image:
    """What a blind run is shown instead of every image: a square of constant mid-grey, RGB.

    It is one and the same for all items, also in size. A blank of each image's own size would keep the number of
    image tokens, but size and aspect ratio tell which data set, modality and often which image it is, and that is
    what a blind run must not know. The side is a multiple of every usual patch (14, 16, 28, 32); a processor with
    a limit of pixels scales it like any image. Mid-grey lies near the mean of the usual normalisations.
    """
    height, width = BLANK_SIZE
    return Image.new("RGB", (width, height), (BLANK_GREY,) * 3)


class PixelCache:
    """Stands in for a processor's `image_processor`; what it is not asked to remember passes through.

    Images are recognised by the key that `load` ties to them. For a remembered key `load` does not even decode: it
    hands out a one-pixel placeholder that stands for the key.
    """

    def __init__(self, inner: Any, capacity: int = CAPACITY):
        """Args: the image processor; bytes to keep."""
        self.inner = inner
        self.capacity = capacity
        self.held = 0
        self._kept: OrderedDict[str, dict[str, torch.Tensor]] = OrderedDict()

    @staticmethod
    def fits(inner: Any) -> bool:
        """Whether an image's tensors do not depend on the other images of a batch, so that they may be remembered."""
        found = inner([Image.new("RGB", (80, 60))], return_tensors="pt")
        grid = set(found) == {"pixel_values", "image_grid_thw"}
        plain = set(found) == {"pixel_values"} and found["pixel_values"].ndim == 4
        return grid or plain

    def load(self, key: str, decode: Callable[[], Image.Image]) -> Image.Image:
        """The image of a key: decoded, or a placeholder when its pixels are remembered."""
        kept = self._kept.get(key)
        image = decode() if kept is None else Image.new("RGB", (1, 1))
        # The placeholder carries the pixels it stands for: they may be dropped before it is used.
        image.info |= {"medbench_key": key, "medbench_pixels": kept}
        return image

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        """As the image processor; the tensors of several images are joined along the first axis."""
        flat = [image for entry in images for image in (entry if isinstance(entry, list | tuple) else [entry])]
        keys = [image.info.get("medbench_key") for image in flat]
        if any(key is None for key in keys):
            return self.inner(images, **kwargs)
        found = [self._tensors(key, image, kwargs) for key, image in zip(keys, flat, strict=True)]
        from transformers import BatchFeature

        return BatchFeature({name: torch.cat([entry[name] for entry in found]) for name in found[0]})

    def _tensors(self, key: str, image: Image.Image, kwargs: dict[str, Any]) -> dict[str, torch.Tensor]:
        kept = image.info["medbench_pixels"]
        if kept is None and key in self._kept:  # twice in one batch
            kept = self._kept[key]
        if kept is not None:
            if key in self._kept:
                self._kept.move_to_end(key)
            found: dict[str, torch.Tensor] = kept
            return found
        made = dict(self.inner([image], **{**kwargs, "return_tensors": "pt"}))
        self._kept[key] = made
        self.held += _bytes(made)
        # Never the entry just made: a batch larger than the bound still finds its own images.
        while self.held > self.capacity and len(self._kept) > 1:
            self.held -= _bytes(self._kept.popitem(last=False)[1])
        return made

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)


def _bytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())
