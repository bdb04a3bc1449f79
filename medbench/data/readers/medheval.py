"""Layout `medheval`: MedHEval's close-ended questions, a JSON list over the images of other sets.

A record is `{qid, img_name, question, answer, question_type: binary | multi-choice, choices, hallucination_type, ...}`
(github Aofei-Chang/MedHEval, `benchmark_data`). `choices` is one line, `A: MRI, B: CT scan`, the answer a letter, an
option's text or both; both become the option's text. Ids are `qid`. The file may be compressed (`.gz`).

Options: `files`, split -> file name; `images`, how an image's name begins -> the folder that it lies in, relative to
the data root; the longest beginning that fits counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.data.readers import Row, image_field, text_field
from medbench.data.readers.choices import gold_option, split_options
from medbench.data.readers.json_rows import missing, packed, read_records, to_row

KINDS = ("binary", "multi-choice")


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files are there; whether the images are is found when they are read."""
    return missing(folder, [packed(folder, name).name for name in options["files"].values()])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order."""
    path = packed(folder, options["files"][split])
    return [_row(record, n, path, folder.parent, options["images"]) for n, record in enumerate(read_records(path))]


def _row(record: Mapping[str, Any], number: int, path: Path, root: Path, images: Mapping[str, str]) -> Row:
    try:
        place = root / _folder(image_field(record, "img_name"), images)
    except KeyError as error:
        identity = str(record.get("qid", f"row {number}"))
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
    row = to_row(record, number, path, place, "img_name")
    if row.error is not None:
        return row
    try:
        kind = text_field(record, "question_type")
        if kind not in KINDS:
            raise KeyError(f"field 'question_type' should be {' or '.join(KINDS)}, is {kind[:40]!r}")
        if kind == "binary":
            return row
        offered = split_options(text_field(record, "choices"))
        return replace(row, options=offered, answer=gold_option(row.answer, offered))
    except KeyError as error:
        return Row(row.id, error=f"item {row.id} in {path}: {error.args[0]}")


def _folder(name: str, images: Mapping[str, str]) -> str:
    fitting = [begin for begin in images if name.startswith(begin)]
    if not fitting:
        raise KeyError(f"field 'img_name' begins with none of {', '.join(images)}: {name[:60]!r}")
    return images[max(fitting, key=len)]
