"""Images on their way through lm-eval, which wants PIL images and keeps all of a task's at once.

It even makes a list of all training items before it asks a question. So ours are read when they are first looked at,
and our model never looks: it reads the item's own file, as our runner does.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Any

from PIL import Image

from medbench.data.item import ImageRef, Item, load_image
from medbench.errors import RequestError


class CardImage(Image.Image):
    """An item's image as a PIL image (RGB) that is decoded on first use.

    Attributes:
        item: whose image it is.
    """

    def __init__(self, item: Item):
        """Args: the item."""
        super().__init__()
        self.item = item
        self._is_read = False

    def load(self) -> Any:
        """Reads and decodes the image, once.

        Raises:
            BadItemError: the file is missing, truncated or not an image.
        """
        if not self._is_read:
            decoded = load_image(self.item)
            self.im, self._mode, self._size = decoded.im, decoded.mode, decoded.size
            self._is_read = True
        return super().load()

    @property
    def mode(self) -> str:
        """PIL's name of the pixel format."""
        self.load()
        return self._mode

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        self.load()
        return self._size

    def __repr__(self) -> str:
        # lm-eval hashes this text (`doc_hash`): PIL's own has an address in it.
        return f"<image {self.item.image.key}>"

    def __reduce__(self) -> Any:
        return type(self), (self.item,)  # what is pickled is where the image lies


@dataclass(frozen=True, slots=True)
class PilImage:
    """An image of a task that is not ours, as an `ImageRef`; its key is the sha256 of its pixels."""

    key: str
    image: Image.Image

    @classmethod
    def of(cls, image: Image.Image) -> PilImage:
        """The reference of an image; equal pixels, equal keys."""
        rgb = image.convert("RGB")
        return cls("pixels:" + hashlib.sha256(repr(rgb.size).encode() + rgb.tobytes()).hexdigest(), image)

    @property
    def place(self) -> str:
        """The key: it lies nowhere."""
        return self.key

    def read(self) -> bytes:
        """The pixels as PPM: lossless, and quickly written."""
        sink = io.BytesIO()
        self.image.convert("RGB").save(sink, "PPM")
        return sink.getvalue()


def image_ref(visual: Any) -> ImageRef:
    """Where a request's image is read from: for our tasks the item's own file.

    Raises:
        RequestError: it is no image.
    """
    if isinstance(visual, CardImage):
        return visual.item.image
    if isinstance(visual, Image.Image):
        return PilImage.of(visual)
    raise RequestError(f"lm-eval: expected a PIL image with a request, found {type(visual).__name__}")
