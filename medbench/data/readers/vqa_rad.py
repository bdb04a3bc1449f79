"""Layout `vqa_rad_json`: VQA-RAD's question files and an `images` folder.

Options: `files`, split -> file name; `phrase_types`, split -> list of `phrase_type` values, for the public JSON that
holds both splits in one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.data.readers.json_rows import missing, rows_of


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files and the images folder are there."""
    return missing(folder, [*options["files"].values(), "images"])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order."""
    wanted = options.get("phrase_types", {}).get(split)
    return rows_of(
        folder / options["files"][split],
        folder / "images",
        "image_name",
        lambda record: wanted is None or str(record.get("phrase_type", "")).strip() in wanted,
    )
