"""Layout `mimic_cxr_jpg`: MIMIC-CXR-JPG's folders with the reports of MIMIC-CXR beside them, as PhysioNet has them.

* `mimic-cxr-2.0.0-split.csv` (`dicom_id, study_id, subject_id, split`: train, validate, test) and
  `mimic-cxr-2.0.0-metadata.csv` (`dicom_id, ViewPosition, ...`), either as they are or compressed (`.gz`);
* `files/p10/p10000032/s50414267/<dicom_id>.jpg`;
* the reports of `mimic-cxr-reports.zip`, unpacked: `<reports>/p10/p10000032/s50414267.txt`.

A study is one item; its images are ordered by view (PA, AP, lateral, others; then as in the split file). Ids are
`s<study_id>`. A study whose report lacks a wanted section has an empty answer: the card leaves it out and counts it.

Options: `reports`, the folder of the reports; `views` and `sections` (see
`medbench.data.readers.studies`); `question`, what the model is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.data.readers.csv_rows import read_table
from medbench.data.readers.json_rows import missing, packed
from medbench.data.readers.studies import StudyImage, chosen, joined, sections_of, view_rank
from medbench.errors import WorkError

SPLIT_FILE = "mimic-cxr-2.0.0-split.csv"
VIEW_FILE = "mimic-cxr-2.0.0-metadata.csv"
PARTS = {"train": "train", "validation": "validate", "test": "test"}


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the two tables, the images' folder and the reports' folder are there."""
    tables = [packed(folder, name).name for name in (SPLIT_FILE, VIEW_FILE)]
    return missing(folder, [*tables, "files", options["reports"]])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The studies of a split, in the order of the split file."""
    split_file = packed(folder, SPLIT_FILE)
    seen = read_table(packed(folder, VIEW_FILE), "dicom_id", "ViewPosition")
    positions = {record["dicom_id"]: record["ViewPosition"] for record in seen}
    studies: dict[str, list[tuple[int, Path]]] = {}
    for record in read_table(split_file, "dicom_id", "study_id", "subject_id", "split"):
        if record["split"] != PARTS[split]:
            continue
        subject, study = f"p{record['subject_id']}", f"s{record['study_id']}"
        if not (subject[1:].isdecimal() and study[1:].isdecimal()):
            raise WorkError(f"{split_file}: ids should be numbers, found {subject[1:]!r} and {study[1:]!r}")
        place = Path(subject[:3]) / subject / study
        images = studies.setdefault(place.as_posix(), [])
        images.append((view_rank(positions.get(record["dicom_id"], "")), place / f"{_name(record, split_file)}.jpg"))
    return [_row(Path(place), images, folder, options) for place, images in studies.items()]


def _name(record: Mapping[str, str], path: Path) -> str:
    name = record["dicom_id"]
    if not name or Path(name).name != name:
        raise WorkError(f"{path}: dicom_id should be a file's name, found {name!r}")
    return name


def _row(place: Path, images: list[tuple[int, Path]], folder: Path, options: Mapping[str, Any]) -> Row:
    identity, file = place.name, (folder / options["reports"] / place).with_suffix(".txt")
    ordered = [folder / "files" / path for _, path in sorted(images, key=lambda image: image[0])]
    try:
        text = file.read_bytes().decode()
    except FileNotFoundError:
        return Row(identity, error=f"item {identity}: report {file}: the file is missing")
    except (OSError, UnicodeDecodeError) as error:
        return Row(identity, error=f"item {identity}: report {file}: cannot be read ({error})")
    report = joined(sections_of(text), options["sections"])
    return Row(identity, StudyImage(identity, chosen(ordered, options["views"])), options["question"], report)
