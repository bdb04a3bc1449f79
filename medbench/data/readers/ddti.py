"""Layout `ddti`: the thyroid ultrasound database of CIM@LAB: an XML a case, and one or more images of it.

`123.xml` holds `<tirads>4a</tirads>` (2, 3, 4a, 4b, 4c, 5, or nothing); its images are `123_1.jpg`, `123_2.jpg`, ...
A case without a TI-RADS has no label: its images are left out, and counted. The case is the group. There is no
published split: it is drawn from the cases by the hash of their numbers (`shares`, `seed`).

Options: `labels`, TI-RADS -> class of the card; `shares`; `seed`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row
from medbench.data.readers.csv_rows import drawn_split
from medbench.data.readers.json_rows import read_bytes
from medbench.errors import WorkError

# One element without children is wanted, and not all of the files are well-formed further down.
_TIRADS = re.compile(r"<tirads\s*(?:/>|>\s*(?P<value>[^<]*?)\s*</tirads>)", re.IGNORECASE)


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when there are cases."""
    return None if _cases(folder) else f"{folder / '<number>.xml'} is missing"


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The images of the cases of a split, by the numbers of case and image."""
    return [
        row
        for case in _cases(folder)
        if drawn_split(case.stem, options) == split
        for row in _of_case(case, options["labels"])
    ]


def _cases(folder: Path) -> list[Path]:
    return sorted((path for path in folder.glob("*.xml") if path.stem.isdecimal()), key=lambda path: int(path.stem))


def _of_case(case: Path, labels: Mapping[str, str]) -> list[Row]:
    number = case.stem
    group = f"case {number}"
    try:
        found = _TIRADS.search(read_bytes(case).decode("utf-8-sig", "replace"))
        if found is None:
            raise WorkError(f"{case}: there is no <tirads> in it")
    except WorkError as error:
        return [Row(number, error=f"item {number}: {error}")]
    images = [path for path in case.parent.glob(f"{number}_*.jpg") if path.stem.partition("_")[2].isdecimal()]
    if not images:
        return [Row(number, error=f"item {number}: image {case.parent / f'{number}_1.jpg'}: the file is missing")]
    grade = (found["value"] or "").casefold()
    return [
        Row(path.stem, FileImage(path.name, path), "", labels.get(grade, grade), group=group)
        for path in sorted(images, key=lambda path: int(path.stem.partition("_")[2]))
    ]
