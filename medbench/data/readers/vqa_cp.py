"""Layout `vqa_cp`: the changing-priors splits (VQA-RAD-CP, SLAKE-CP), compressed JSON lists over another set's images.

Options: `files`, split -> file name; `images`, the folder of the images, relative to the data root (the folder that
holds the data sets' folders); `image_field`, the field that names the image. Ids are `question_id`, unique in a split.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.data.readers.json_rows import missing, rows_of


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files and the other set's images are there."""
    return missing(folder, [*options["files"].values()]) or missing(folder.parent, [options["images"]])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order."""
    images = folder.parent / options["images"]
    return rows_of(folder / options["files"][split], images, options["image_field"], id_field="question_id")
