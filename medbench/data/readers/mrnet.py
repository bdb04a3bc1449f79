"""Layout `mrnet`: MRNet's knee examinations: a CSV a finding, and a series of slices a plane.

`train-acl.csv` and `valid-acl.csv` have no head, `0000,1` a line; `train/axial/0000.npy` is uint8 [slices, 256, 256].
An examination is one item and one picture: the slice at a stated fraction of the series (0.5: the middle one), or those
at three, as the picture's red, green and blue. Nothing is averaged over slices or planes. The test of the challenge is
not public; what is published as `valid` is our test. Ids and images' keys are the examination's number.

Options: `condition` (abnormal, acl, meniscus); `plane`; `fractions`, one or three; `labels`, the classes of 0 and 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field
from medbench.data.readers.json_rows import missing, packed, read_bytes
from medbench.data.readers.studies import png
from medbench.errors import WorkError

PARTS = {"train": "train", "test": "valid"}


@dataclass(frozen=True, slots=True)
class SeriesImage(FileImage):
    """Slices of a series as one picture."""

    fractions: tuple[float, ...]

    def read(self) -> bytes:
        """The PNG; only the slices are read.

        Raises:
            OSError, ValueError: the file or the array is damaged.
        """
        import numpy as np
        from PIL import Image

        try:
            series = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except EOFError as error:
            raise ValueError("the file is empty") from error
        if getattr(series, "ndim", 0) != 3 or series.dtype != np.uint8 or not series.size:
            shape = " x ".join(map(str, getattr(series, "shape", ())))
            kind = getattr(series, "dtype", "archive")
            raise ValueError(f"a series should be uint8, slices x h x w, is {kind} {shape}".rstrip())
        chosen = [np.asarray(series[place]) for place in slices(len(series), self.fractions)]
        return png(Image.fromarray(chosen[0] if len(chosen) == 1 else np.stack(chosen, axis=-1)))


def slices(count: int, fractions: Sequence[float]) -> list[int]:
    """The places of the slices at the fractions of a series of `count`.

    Example:
        >>> slices(30, [0.0, 0.5, 1.0])
        [0, 15, 29]
    """
    return [min(count - 1, int(count * fraction)) for fraction in fractions]


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the CSVs and the folders of the plane are there."""
    tables = [packed(folder, f"{part}-{options['condition']}.csv").name for part in PARTS.values()]
    return missing(folder, [*tables, *(f"{part}/{options['plane']}" for part in PARTS.values())])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The examinations of a split, in the file's order."""
    part = PARTS[split]
    path = packed(folder, f"{part}-{options['condition']}.csv")
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except ValueError as error:
        raise WorkError(f"{path}: not readable as CSV ({error})") from error
    series = folder / part / options["plane"]
    return [_row(line, n, path, series, options) for n, line in enumerate(lines, start=1) if line.strip()]


def _row(line: str, number: int, path: Path, series: Path, options: Mapping[str, Any]) -> Row:
    name, _, label = (part.strip() for part in line.partition(","))
    try:
        if label not in ("0", "1") or not name:
            raise KeyError(f"should be an examination and 0 or 1, is {line[:40]!r}")
        file = series / f"{image_field({'examination': name}, 'examination')}.npy"
    except KeyError as error:
        return Row(f"line {number}", error=f"line {number} in {path}: {error.args[0]}")
    return Row(name, SeriesImage(name, file, tuple(options["fractions"])), "", options["labels"][int(label)])
