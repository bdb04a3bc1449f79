"""What the JSON layouts share: a list of records, each with an id, a question, an answer and an image file."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, text_field, utf8
from medbench.errors import WorkError


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON file (`.gz`: compressed) that holds a list of objects.

    Raises:
        WorkError: not there, cut short, not JSON, or something else than a list of objects.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        how = "as gzip " if path.suffix == ".gz" else ""
        raise WorkError(f"{path}: not readable {how}({getattr(error, 'strerror', None) or error})") from error
    try:
        content = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise WorkError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, list) or not all(isinstance(r, dict) for r in content):
        raise WorkError(f"{path}: expected a list of objects")
    return content


def to_row(
    record: Mapping[str, Any],
    number: int,
    path: Path,
    images: Path,
    image: str,
    id_field: str = "qid",
    answer: str = "answer",
) -> Row:
    """One record as a row; a wrong field becomes the row's `error` with file, id and field.

    Args:
        record: the record.
        number: its place in the file, for messages about a record without an id.
        path: the file, for messages.
        images: the folder of the images.
        image: the field that names the image file.
        id_field: the field that holds the id.
        answer: the field that holds the answer.
    """
    identity = f"row {number}"
    try:
        if record.get(id_field) is not None:
            identity = utf8(str(record[id_field]).strip(), id_field)
        name = image_field(record, image)
        if record.get(id_field) is None:
            raise KeyError(f"field {id_field!r} should be text, is absent")
        question, gold = text_field(record, "question"), text_field(record, answer)
        if not question:
            raise KeyError("field 'question' is empty")
    except KeyError as error:
        return Row(id=identity, error=f"item {identity} in {path}: {error.args[0]}")
    return Row(identity, FileImage(name, images / name), question, gold, plain_fields(record))


def plain_fields(record: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a record that hold text or a number, as stripped text."""
    return {k: str(v).strip() for k, v in record.items() if isinstance(v, str | int | float)}


def rows_of(
    path: Path,
    images: Path,
    image: str,
    keep: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    id_field: str = "qid",
) -> list[Row]:
    """The rows of a JSON file whose records pass `keep`."""
    records = read_records(path)
    return [to_row(r, i, path, images, image, id_field) for i, r in enumerate(records) if keep(r)]


def missing(folder: Path, names: list[str]) -> str | None:
    """The first of `names` that the folder lacks, as a sentence, or None."""
    return next((f"{folder / name} is missing" for name in names if not (folder / name).exists()), None)
