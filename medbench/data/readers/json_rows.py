"""What the JSON layouts share: a list of records, each with an id, a question, an answer and an image file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, text_field
from medbench.errors import WorkError


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON file that holds a list of objects."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, list) or not all(isinstance(r, dict) for r in content):
        raise WorkError(f"{path}: expected a list of objects")
    return content


def to_row(
    record: Mapping[str, Any], number: int, path: Path, images: Path, image_field: str, id_field: str = "qid"
) -> Row:
    """One record as a row; a wrong field becomes the row's `error` with file, id and field."""
    identity = str(record.get(id_field, f"row {number}")).strip()
    try:
        name = text_field(record, image_field)
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise KeyError(f"field {image_field!r} leaves the data folder: {name!r}")
        if id_field not in record:
            raise KeyError(f"field {id_field!r} should be text, is absent")
        question, answer = text_field(record, "question"), text_field(record, "answer")
    except KeyError as error:
        return Row(id=identity, error=f"item {identity} in {path}: {error.args[0]}")
    fields = {k: str(v).strip() for k, v in record.items() if isinstance(v, str | int | float)}
    return Row(identity, FileImage(name, images / name), question, answer, fields)


def rows_of(
    path: Path, images: Path, image_field: str, keep: Callable[[Mapping[str, Any]], bool] = lambda _: True
) -> list[Row]:
    """The rows of a JSON file whose records pass `keep`."""
    records = read_records(path)
    return [to_row(r, i, path, images, image_field) for i, r in enumerate(records) if keep(r)]


def missing(folder: Path, names: list[str]) -> str | None:
    """The first of `names` that the folder lacks, as a sentence, or None."""
    return next((f"{folder / name} is missing" for name in names if not (folder / name).exists()), None)
