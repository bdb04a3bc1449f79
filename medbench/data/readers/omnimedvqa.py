"""Layout `omnimedvqa`: OmniMedVQA as its archive unpacks, the open-access part.

`QA_information/Open-access/*.json`, a list a source with `question_id`, `question`, `gt_answer`, `option_A` to
`option_D` (two to four of them) and `image_path`, relative to the folder itself. Only a test split. The folder may
hold what the archive holds, or the archive's own top folder `OmniMedVQA`. Ids are `question_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.data.readers import Row, text_field
from medbench.data.readers.json_rows import read_records, to_row

QUESTIONS = "QA_information/Open-access"
OPTIONS = ("option_A", "option_B", "option_C", "option_D")


def _base(folder: Path) -> Path:
    inside = folder / "OmniMedVQA"
    return inside if (inside / QUESTIONS).is_dir() else folder


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in (_base(folder) / QUESTIONS).glob("*.json") if not p.name.startswith("."))


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when there are question files."""
    return None if _files(folder) else f"{folder / QUESTIONS / '*.json'} is missing"


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of all files, by the files' names, in each file's order."""
    base = _base(folder)
    return [_row(record, n, path, base) for path in _files(folder) for n, record in enumerate(read_records(path))]


def _row(record: Mapping[str, Any], number: int, path: Path, base: Path) -> Row:
    row = to_row(record, number, path, base, "image_path", "question_id", "gt_answer")
    if row.error is not None:
        return row
    try:
        offered = tuple(filter(None, (text_field(record, name) for name in OPTIONS if record.get(name) is not None)))
        if len(set(offered)) < 2:
            raise KeyError(f"should have 2 to 4 different options ({', '.join(OPTIONS)}), has {len(set(offered))}")
        if row.answer not in offered:
            raise KeyError(f"the answer {row.answer!r} is none of the options {', '.join(map(repr, offered))}")
    except KeyError as error:
        return Row(row.id, error=f"item {row.id} in {path}: {error.args[0]}")
    return replace(row, options=offered)
