"""Layout `med_hallmark`: Med-HallMark's conversations, in which a model's answer to a medical question is judged.

A record is `{id, image, conversations: [{from: human, value}, ...]}`; the human's turn is a prompt to a judge, with
`question:`, `Med-VLM answer:` and, in most, `ground-truth:`. Question and ground truth are taken out of it; the answer
of that model and the judgement on it are not used. A record without a ground truth has an empty answer. Ids are `id`.
The file may be compressed (`.gz`).

Options: `files`, split -> file name; `images`, the folder of the images, relative to the data root, to which
`rad/synpic1.jpg` is `synpic1.jpg`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medbench.data.readers import Row, text_field
from medbench.data.readers.json_rows import missing, packed, read_records, to_row

_ASKED = re.compile(r"\nquestion:(?P<question>.*?)\nMed-VLM answer:", re.DOTALL)
_GOLD = re.compile(r"\nground-truth:(?P<answer>.*?)\n\nPlease judge", re.DOTALL)


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the files and the folder of the images are there."""
    return missing(folder, [packed(folder, name).name for name in options["files"].values()]) or missing(
        folder.parent, [options["images"]]
    )


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order."""
    path, images = packed(folder, options["files"][split]), folder.parent / options["images"]
    return [_row(record, number, path, images) for number, record in enumerate(read_records(path))]


def _row(record: Mapping[str, Any], number: int, path: Path, images: Path) -> Row:
    identity = str(record.get("id", f"row {number}"))
    try:
        turns = record.get("conversations")
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], Mapping):
            raise KeyError("field 'conversations' should be a list of turns")
        prompt = text_field(turns[0], "value")
        asked, gold = _ASKED.search(prompt), _GOLD.search(prompt)
        if asked is None:
            raise KeyError("the first turn holds no 'question:' before a 'Med-VLM answer:'")
        name = PurePosixPath(text_field(record, "image")).name
    except KeyError as error:
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
    plain = {"id": record.get("id"), "image": name, "question": asked["question"]}
    return to_row(plain | {"answer": gold["answer"] if gold else ""}, number, path, images, "image", "id")
