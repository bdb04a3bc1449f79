"""Layout `slake_folder`: SLAKE's `train.json`, `validate.json`, `test.json` and the `imgs` folder.

Options: `language`, the value of `q_lang` to keep (the English and Chinese splits differ: see the card).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.data.readers.json_rows import missing, rows_of

FILES = {"train": "train.json", "validation": "validate.json", "test": "test.json"}


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files and the images folder are there."""
    return missing(folder, [*FILES.values(), "imgs"])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split in the wanted language, in the file's order."""
    return rows_of(folder / FILES[split], folder / "imgs", "img_name", lambda r: r.get("q_lang") == options["language"])
