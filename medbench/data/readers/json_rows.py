"""What the JSON layouts share: a list of records, each with an id, a question, an answer and an image file."""

from __future__ import annotations

import gzip
import json
import zlib
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping
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
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise WorkError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(content, list) or not all(isinstance(r, dict) for r in content):
        raise WorkError(f"{path}: expected a list of objects")
    return content


def read_bytes(path: Path) -> bytes:
    """The bytes of a file, unpacked where it is compressed (`.gz`).

    Raises:
        WorkError: not there, or cut short.
    """
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        how = "as gzip " if path.suffix == ".gz" else ""
        raise WorkError(f"{path}: not readable {how}({getattr(error, 'strerror', None) or error})") from error


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The lines of a JSONL file (`.gz`: compressed) that are not blank: number from 1, and record or what is wrong.

    Raises:
        WorkError: not there, or cut short.
    """
    for number, line in enumerate(read_bytes(path).removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            yield number, f"not JSON ({error})"
            continue
        yield number, record if isinstance(record, dict) else f"expected an object, found {type(record).__name__}"


def packed(folder: Path, name: str) -> Path:
    """A file of a folder, or the same compressed (`name.gz`) where only that is there."""
    compressed = folder / f"{name}.gz"
    return compressed if compressed.exists() and not (folder / name).exists() else folder / name


def to_row(
    record: Mapping[str, Any],
    number: int,
    path: Path,
    images: Path,
    image: str,
    id_field: str = "qid",
    answer: str = "answer",
    may_be_empty: bool = False,
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
        may_be_empty: take a record without a question, too; the card may leave it out.
    """
    identity = f"row {number}"
    try:
        if record.get(id_field) is not None:
            identity = utf8(str(record[id_field]).strip(), id_field)
        name = image_field(record, image)
        if record.get(id_field) is None:
            raise KeyError(f"field {id_field!r} should be text, is absent")
        question, gold = text_field(record, "question"), text_field(record, answer)
        if not question and not may_be_empty:
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
