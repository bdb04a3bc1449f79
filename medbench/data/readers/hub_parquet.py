"""Layout `hub_parquet`: a hub data set's parquet files, `data/<split>-*.parquet`, read through `datasets`.

The file is memory-mapped; images stay encoded until their batch is built. Rows have no id of their own, so the id
is the row number in the split, and the image's key is the sha256 of its bytes.

Options: `columns`, our names -> theirs (defaults: image, question, answer).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.data.readers import Row, text_field
from medbench.errors import WorkError


@dataclass(frozen=True, slots=True)
class RowImage:
    """An image inside a parquet row."""

    key: str
    place: str
    table: Any
    row: int
    column: str

    def read(self) -> bytes:
        """The encoded bytes of the row's image."""
        value: bytes = self.table[self.row][self.column]["bytes"]
        return value


def _files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"data/{split}-*.parquet")) or sorted(folder.glob(f"{split}-*.parquet"))


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when parquet files of a test split are there."""
    return None if _files(folder, "test") else f"{folder / 'data' / 'test-*.parquet'} is missing"


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the files' order."""
    import datasets

    files = _files(folder, split)
    if not files:
        raise WorkError(f"{folder}: no data/{split}-*.parquet")
    columns = {"image": "image", "question": "question", "answer": "answer"} | dict(options.get("columns", {}))
    try:
        with _no_bar():
            table = datasets.Dataset.from_parquet([str(f) for f in files], keep_in_memory=False)
    except (OSError, ValueError, datasets.exceptions.DatasetGenerationError) as error:
        raise WorkError(f"{files[0]}: not readable as parquet ({error.__cause__ or error})") from error
    for name in columns.values():
        if name not in table.column_names:
            raise WorkError(f"{files[0]}: column {name!r} is missing; there are {', '.join(table.column_names)}")
    if isinstance(table.features[columns["image"]], datasets.Image):
        table = table.cast_column(columns["image"], datasets.Image(decode=False))
    return [_row(table, number, record, columns, files[0]) for number, record in enumerate(table)]


@contextmanager
def _no_bar() -> Iterator[None]:
    """Keeps the bar of `datasets` off stderr, where our own lines are."""
    import datasets

    if datasets.are_progress_bars_disabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _row(table: Any, number: int, record: Mapping[str, Any], columns: Mapping[str, str], file: Path) -> Row:
    image = record[columns["image"]]
    if not isinstance(image, Mapping) or not isinstance(image.get("bytes"), bytes) or not image["bytes"]:
        return Row(str(number), error=f"item {number} in {file}: column {columns['image']!r} holds no image bytes")
    try:
        question, answer = (text_field(record, columns[name]) for name in ("question", "answer"))
    except KeyError as error:
        return Row(str(number), error=f"item {number} in {file}: {error.args[0]}")
    key = hashlib.sha256(image["bytes"]).hexdigest()
    fields = {k: str(v).strip() for k, v in record.items() if isinstance(v, str | int | float)}
    ref = RowImage(key, f"{file} row {number}", table, number, columns["image"])
    return Row(str(number), ref, question, answer, fields)
