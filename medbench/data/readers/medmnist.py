"""Layout `medmnist_npz`: any 2D set of MedMNIST, one `.npz` of `{train,val,test}_{images,labels}`.

Images are uint8, [n, h, w] (grey) or [n, h, w, 3], of any size; labels [n, 1], numbers from 0. Served as PNG. Ids are
`<split>-<place in the array>`, as are the images' keys. Sets of several labels an image (ChestMNIST) and of volumes are
refused.

Options: `file`; `labels`, the classes of the card in the order of the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.data.readers.json_rows import missing
from medbench.data.readers.npz_arrays import open_array
from medbench.data.readers.studies import png
from medbench.errors import WorkError

PARTS = {"train": "train", "validation": "val", "test": "test"}


@dataclass(frozen=True, slots=True)
class ArrayImage:
    """One picture of an array: a reference, not the pixels."""

    key: str
    file: Path
    member: str
    index: int

    @property
    def place(self) -> str:
        """The file, the array and the picture's place in it."""
        return f"{self.file} {self.member}[{self.index}]"

    def read(self) -> bytes:
        """The PNG.

        Raises:
            OSError, ValueError: the file is gone or damaged.
        """
        import numpy as np
        from PIL import Image

        pixels = np.asarray(open_array(self.file, self.member)[self.index])
        return png(Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels))


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the file is there."""
    return missing(folder, [options["file"]])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The pictures of a split, in the array's order."""
    path, part = folder / options["file"], PARTS[split]
    try:
        images, labels = (open_array(path, f"{part}_{what}") for what in ("images", "labels"))
        numbers = _numbers(images, labels)
    except (OSError, ValueError) as error:
        raise WorkError(f"{path}: {error}") from error
    names = options["labels"]
    found = []
    for index, number in enumerate(numbers):
        key = f"{split}-{index}"
        answer = names[number] if 0 <= number < len(names) else str(number)
        found.append(Row(key, ArrayImage(key, path, f"{part}_images", index), "", answer))
    return found


def _numbers(images: Any, labels: Any) -> list[int]:
    """The labels as numbers, the shapes of both arrays checked."""
    import numpy as np

    shape = " x ".join(map(str, images.shape))
    if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))):
        raise ValueError(f"images should be uint8, n x h x w or n x h x w x 3, are {images.dtype}, {shape}")
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise ValueError(f"{labels.shape[1]} labels an image; one is expected")
    if not np.issubdtype(labels.dtype, np.integer) or labels.size != len(images):
        raise ValueError(f"{labels.size} labels of {labels.dtype} for {len(images)} images; a number each is expected")
    numbers: list[int] = np.asarray(labels).reshape(-1).tolist()
    return numbers
