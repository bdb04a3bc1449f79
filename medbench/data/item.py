"""An item of a task, and its image: a reference that is decoded when its batch is built."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Protocol

from medbench.data.dicom import decode_dicom, is_dicom
from medbench.data.grey import to_rgb
from medbench.errors import WorkError

if TYPE_CHECKING:
    from PIL.Image import Image


class BadItemError(WorkError):
    """An item that cannot be used: its id and file are in the message."""


class ImageRef(Protocol):
    """An image that can be read at any time."""

    @property
    def key(self) -> str:
        """Names the image inside its data set: items with one key share one image (one cluster)."""
        ...

    @property
    def place(self) -> str:
        """Where it lies, for messages."""
        ...

    def read(self) -> bytes:
        """The encoded bytes (PNG, JPEG, ...)."""
        ...


def is_there(path: Path) -> bool:
    """Whether a file is there; a name that no file system takes is not."""
    try:
        return path.is_file()
    except OSError:
        return False


@dataclass(frozen=True, slots=True)
class FileImage:
    """An image in a file of its own."""

    key: str
    path: Path

    @property
    def place(self) -> str:
        """The path."""
        return str(self.path)

    def read(self) -> bytes:
        """The file's bytes."""
        return self.path.read_bytes()


@dataclass(frozen=True, slots=True)
class Item:
    """One question about one image.

    Attributes:
        id: the data set's own id as text, or the row number in its split.
        image: the image.
        closed: whether the card's rule calls the question closed.
        candidates: the answers whose likelihood is compared, for closed questions.
        options: the answers that the question itself offers (multiple choice), in its order.
        question_type: what the data set says it asks about, where the card names the field (`types`).
        group: the patient or examination, where the data names one; several images of it are one cluster.

    An item of a classification has no question; its answer is a class of the card.
    """

    id: str
    image: ImageRef
    question: str
    answer: str
    closed: bool
    candidates: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    question_type: str = ""
    group: str = ""

    @property
    def cluster(self) -> str:
        """What the statistics take as one: the group, else the image."""
        return self.group or self.image.key

    @property
    def type(self) -> str:
        """`closed` or `open`."""
        return "closed" if self.closed else "open"


def lettered(options: Sequence[str]) -> str:
    """A question's options as a prompt shows them: a line each, `A. ...`, `B. ...`; nothing for none.

    Example:
        >>> print(lettered(["Lung", "Liver"]))
        A. Lung
        B. Liver
    """
    return "\n".join(f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def decode(data: bytes) -> Image:
    """Decodes an image to RGB, fully (a truncated file raises `OSError`, an absurdly large one `ValueError`).

    Grey values of more than eight bits are scaled (`medbench.data.grey`), a DICOM is shown as its window says
    (`medbench.data.dicom`).
    """
    from PIL import Image

    if not data:
        raise ValueError("the file is empty, 0 bytes")
    if is_dicom(data):
        return decode_dicom(data)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return to_rgb(image)
    except RuntimeError as error:  # how some of Pillow's formats say that a file is damaged
        raise ValueError(str(error) or type(error).__name__) from error
    except Image.DecompressionBombError as error:
        raise ValueError("far too many pixels for an image, or a damaged header") from error


def load_image(item: Item) -> Image:
    """Reads and decodes an item's image.

    Raises:
        BadItemError: the file is missing, truncated or not an image.
    """
    try:
        return decode(item.image.read())
    except (OSError, ValueError, SyntaxError) as error:
        raise BadItemError(f"item {item.id}: image {item.image.place}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """The short reason of an image that could not be read."""
    if isinstance(error, FileNotFoundError):
        return "the file is missing"
    return str(error).split(" <_io")[0].split(" (")[0] or type(error).__name__
