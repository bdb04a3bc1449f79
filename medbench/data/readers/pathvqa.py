"""Layout `pathvqa_lxmert`: PathVQA's question files as its authors' LXMERT baseline has them, and the published images.

`pvqa_{train,val,test}.json` are lists of `{img_id, sentf: {pvqa: [question]}, labelf: {pvqa: [{answer: 1}]}}`, one
record an image; the two lists run in parallel. The images are those of the published archive,
`images/{train,val,test}/<img_id>.jpg`. Questions have no id of their own: it is `<img_id>-<k>`, k from 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, text_field
from medbench.data.readers.json_rows import missing, read_records

PARTS = {"train": "train", "validation": "val", "test": "test"}


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files are there; whether the images are is found when they are read."""
    return missing(folder, [f"pvqa_{part}.json" for part in PARTS.values()])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, image by image in the file's order."""
    part = PARTS[split]
    path = folder / f"pvqa_{part}.json"
    return [row for n, record in enumerate(read_records(path)) for row in _of_image(record, n, part, path, folder)]


def _of_image(record: Mapping[str, Any], number: int, part: str, path: Path, folder: Path) -> list[Row]:
    name = str(record.get("img_id", f"row {number}")).strip()
    try:
        key = f"{part}/{image_field(record, 'img_id')}.jpg"
        questions, answers = _list(record, "sentf"), _list(record, "labelf")
        if len(questions) != len(answers):
            raise KeyError(f"{len(questions)} questions in 'sentf', but {len(answers)} answers in 'labelf'")
    except KeyError as error:
        return [Row(f"{name}-0", error=f"item {name}-0 in {path}: {error.args[0]}")]
    image = FileImage(key, folder / "images" / key)
    pairs = enumerate(zip(questions, answers, strict=True))
    return [_row(f"{name}-{k}", image, question, answer, path) for k, (question, answer) in pairs]


def _list(record: Mapping[str, Any], name: str) -> list[Any]:
    outer = record.get(name)
    found = outer.get("pvqa") if isinstance(outer, Mapping) else None
    if not isinstance(found, list):
        raise KeyError(f"field {name + '.pvqa'!r} should be a list, is {type(found).__name__}")
    return found


def _row(identity: str, image: FileImage, question: Any, answer: Any, path: Path) -> Row:
    try:
        if not isinstance(answer, Mapping) or len(answer) != 1:
            raise KeyError(f"field 'labelf.pvqa' should hold one {{answer: 1}} a question, holds {answer!r}"[:120])
        asked = text_field({"sentf.pvqa": question}, "sentf.pvqa")
        return Row(identity, image, asked, str(next(iter(answer))).strip())
    except KeyError as error:
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
