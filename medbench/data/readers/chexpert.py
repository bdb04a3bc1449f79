"""Layout `chexpert_csv`: a CSV in CheXpert's format, with exactly one of some findings in each of its rows.

Columns `Path` (`CheXpert-v1.0/train/patient00001/study1/view1_frontal.jpg`) and one a finding (1 present, 0 or empty
absent, -1 uncertain). A row of CheXpert-5x200 has one of five findings; a row with none or several of them is an error,
which names them. Ids are `Path`; the patient, taken from it, is the group.

Options: `files`, split -> CSV; `images`, the folder that `Path` is relative to (default: the data set's); `labels`,
column -> class of the card; other columns are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, utf8
from medbench.data.readers.csv_rows import number_of, read_table
from medbench.data.readers.json_rows import missing, packed

_PATIENT = re.compile(r"(?:^|/)(patient\d+)/")


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the CSVs and the folder of the images are there."""
    images = [options["images"]] if options.get("images") else []
    return missing(folder, [*(packed(folder, name).name for name in options["files"].values()), *images])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order."""
    path = packed(folder, options["files"][split])
    images = folder / options["images"] if options.get("images") else folder
    table = read_table(path, "Path", *options["labels"])
    return [_row(record, number, path, images, options["labels"]) for number, record in enumerate(table, start=1)]


def _row(record: Mapping[str, str], number: int, path: Path, images: Path, labels: Mapping[str, str]) -> Row:
    identity = f"row {number}"
    try:
        identity = name = utf8(image_field(record, "Path"), "Path")
        patient = _PATIENT.search(name)
        if patient is None:
            raise KeyError("field 'Path' names no patient (.../patient00001/...)")
        present = [column for column in labels if number_of(record[column]) == 1]
        if len(present) != 1:
            held = ", ".join(present) or "none"
            raise KeyError(f"exactly one of {', '.join(labels)} should be 1; found {held}")
    except KeyError as error:
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
    return Row(identity, FileImage(name, images / name), "", labels[present[0]], group=patient[1])
