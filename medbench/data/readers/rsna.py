"""Layout `rsna_dicom`: the RSNA pneumonia challenge, stage 2: a CSV of boxes and a DICOM file a patient.

`stage_2_train_labels.csv` has `patientId, x, y, width, height, Target`, a row a box; a patient's rows must agree on
`Target`. The test of the challenge has no public labels, so the split is drawn from its training patients by the hash
of their ids (`shares`, `seed`). Ids are `patientId`, which is the group, too.

Options: `file`; `images`, the folder of `<patientId>.dcm`; `labels`, the classes of Target 0 and 1; `shares`; `seed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, utf8
from medbench.data.readers.csv_rows import drawn_split, read_table
from medbench.data.readers.json_rows import missing, packed

FILE, IMAGES = "stage_2_train_labels.csv", "stage_2_train_images"


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the CSV and the folder of the DICOM files are there."""
    return missing(folder, [packed(folder, options.get("file", FILE)).name, options.get("images", IMAGES)])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The patients of a split, in the order of the file."""
    path, images = packed(folder, options.get("file", FILE)), folder / options.get("images", IMAGES)
    targets: dict[str, set[str]] = {}
    for record in read_table(path, "patientId", "Target"):
        targets.setdefault(record["patientId"], set()).add(record["Target"])
    return [
        _row(patient, found, path, images, options["labels"])
        for patient, found in targets.items()
        if drawn_split(patient, options) == split
    ]


def _row(patient: str, targets: set[str], path: Path, images: Path, labels: list[str]) -> Row:
    try:
        if not patient:
            raise KeyError("column 'patientId' is empty")
        utf8(image_field({"patientId": patient}, "patientId"), "patientId")
        if len(targets) > 1 or not targets <= {"0", "1"}:
            raise KeyError(
                f"column 'Target' should be 0 or 1 in all rows of a patient, is {', '.join(sorted(targets))}"
            )
    except KeyError as error:
        return Row(patient, error=f"item {patient} in {path}: {error.args[0]}")
    name = f"{patient}.dcm"
    return Row(patient, FileImage(name, images / name), "", labels[int(targets.pop())], group=patient)
