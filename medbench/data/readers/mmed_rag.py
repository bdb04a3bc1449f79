"""Layout `mmed_rag`: the yes/no question files of RULE, MMed-RAG and CARES, a JSONL over another set's images.

A line is `{question_id, question, answer, image, ...}`. The placeholder `<image>` is taken out of the question: the
image comes first in every prompt. Some answers are sentences; what their label is, the card's `label` says. Ids are
`question_id`. The file may be compressed (`.gz`).

Options: `files`, split -> file name; `images`, the folder of the images, relative to the data root (the folder that
holds the data sets' folders); `npz`, whether that is Harvard-FairVLMed's, where `slo_fundus_08003.jpg` is the image in
`Test/data_08003.npz` (or `Testing`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.data.readers.fairvlmed import FOLDERS, NpzImage
from medbench.data.readers.json_rows import missing, packed, read_lines, to_row

_SLO = re.compile(r"slo_fundus_(\d+)\.jpg")


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files are there; whether the images are is found when they are read."""
    return missing(folder, [packed(folder, name).name for name in options["files"].values()])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order; a broken line is a row with an error."""
    path, images = packed(folder, options["files"][split]), folder.parent / options["images"]
    found = [_row(record, number, path, images) for number, record in read_lines(path)]
    return [_in_npz(row, path, images) for row in found] if options.get("npz") else found


def _row(record: dict[str, Any] | str, number: int, path: Path, images: Path) -> Row:
    if isinstance(record, str):
        return Row(f"line {number}", error=f"line {number} in {path}: {record}")
    question = record.get("question")
    asked = {"question": question.replace("<image>", "")} if isinstance(question, str) else {}
    # The IU-Xray file holds two lines without a question; neither has a label, so the card leaves them out.
    return to_row(record | asked, number, path, images, "image", "question_id", may_be_empty=True)


def _in_npz(row: Row, path: Path, images: Path) -> Row:
    if row.image is None:
        return row
    named = _SLO.fullmatch(row.image.key)
    if named is None:
        told = f"field 'image' should be slo_fundus_<number>.jpg, is {row.image.key[:60]!r}"
        return Row(row.id, error=f"item {row.id} in {path}: {told}")
    inside = next((images / name for name in FOLDERS["test"] if (images / name).is_dir()), images / FOLDERS["test"][0])
    key = f"data_{named[1]}"
    return replace(row, image=NpzImage(key, inside / f"{key}.npz"))
