"""Layout `fairvlmed_npz`: Harvard-FairVLMed, an `.npz` a subject in `Training`, `Validation` and `Test` or `Testing`.

`data_<number>.npz` holds `slo_fundus`, the image as an array (h, w) or (h, w, 3) of 0..255, and in one publication the
clinical `note`; both publications have `data_summary.csv` with `filename`, `note` and `gpt4_summary`. Ids are the names
of the files without their ending; a subject is one item, and one cluster.

Options: `text`, `note` (the file's own, else the CSV's) or `gpt4_summary` (the CSV's); `question`, what is asked.
"""

from __future__ import annotations

import csv
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, utf8
from medbench.data.readers.studies import png
from medbench.errors import WorkError

FOLDERS = {"train": ("Training",), "validation": ("Validation",), "test": ("Test", "Testing")}
SUMMARY = "data_summary.csv"


@dataclass(frozen=True, slots=True)
class NpzImage(FileImage):
    """The array `slo_fundus` of a subject's file, as a PNG."""

    def read(self) -> bytes:
        """The PNG.

        Raises:
            OSError, ValueError: the file or the array is damaged.
        """
        import numpy as np
        from PIL import Image

        array = _member(self.path, "slo_fundus")
        if array is None:
            raise ValueError("it holds no 'slo_fundus'")
        flat = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
        fits = flat.ndim == 2 or (flat.ndim == 3 and flat.shape[2] == 3)
        if not fits or not flat.size or not np.issubdtype(flat.dtype, np.number):
            shape = " x ".join(map(str, array.shape))
            raise ValueError(f"'slo_fundus' should be h x w or h x w x 3 numbers, is {shape or 'one'} of {array.dtype}")
        if not np.isfinite(flat).all() or flat.min() < 0 or flat.max() > 255:
            raise ValueError("'slo_fundus' should hold 0 to 255")
        return png(Image.fromarray(flat.round().astype(np.uint8)))


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when there is a folder for each split, and the CSV where the card wants its summaries."""
    for names in FOLDERS.values():
        if not any((folder / name).is_dir() for name in names):
            return f"{folder / names[0]} is missing"
    if options["text"] != "note" and not (folder / SUMMARY).is_file():
        return f"{folder / SUMMARY} is missing"
    return None


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The subjects of a split by the names of their files."""
    inside = next(folder / name for name in FOLDERS[split] if (folder / name).is_dir())
    texts = _summary(folder / SUMMARY) if (folder / SUMMARY).is_file() else {}
    return [_row(path, texts, options) for path in sorted(inside.glob("data_*.npz"))]


def _row(path: Path, texts: Mapping[str, Mapping[str, str]], options: Mapping[str, Any]) -> Row:
    own = options["text"] == "note"
    try:
        note = _member(path, "note") if own else None
        if note is not None and (note.ndim or note.dtype.kind != "U"):
            raise ValueError(f"'note' should be one text, is {note.shape} of {note.dtype}")
        text = str(note) if note is not None else texts.get(path.name, {}).get(options["text"])
        if text is None:
            raise ValueError(f"there is no {options['text']!r} in it" if own else f"{SUMMARY} has no line of it")
        answer = utf8(" ".join(text.split()), options["text"])
    except (OSError, ValueError, KeyError) as error:
        return Row(path.stem, error=f"item {path.stem}: {path}: {error.args[0] if error.args else error}")
    return Row(path.stem, NpzImage(path.stem, path), options["question"], answer)


def _member(path: Path, name: str) -> Any:
    """One array of an npz, None where it has none; nothing in it is executed.

    Raises:
        OSError, ValueError: the file is damaged, or the array is one of Python objects.
    """
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as content:
            return content.get(name)
    except (zipfile.BadZipFile, zlib.error, EOFError, TypeError, AttributeError) as error:
        raise ValueError(f"not readable as npz ({error})") from error


def _summary(path: Path) -> dict[str, dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            found = {str(row.get("filename", "")).strip(): {k: v or "" for k, v in row.items() if k} for row in table}
    except (OSError, ValueError, csv.Error) as error:
        raise WorkError(f"{path}: not readable as CSV ({error})") from error
    if "filename" not in (table.fieldnames or ()):
        raise WorkError(f"{path}: lacks the column 'filename'")
    return found
