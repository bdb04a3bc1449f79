"""What the CSV layouts share: a table with named columns, and the split that is drawn where the data has none."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medbench.data.readers.json_rows import read_bytes
from medbench.errors import WorkError


def read_table(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    """The rows of a CSV file (`.gz`: compressed), as stripped text by column; an absent cell is empty.

    Args:
        path: of the file; its first line names the columns.
        columns: that it must have.

    Raises:
        WorkError: not there, not a CSV, or a column is missing.
    """
    try:
        table = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""))
        for column in columns:
            if column not in (table.fieldnames or ()):
                raise WorkError(f"{path}: lacks the column {column!r}")
        for row in table:
            yield {name: (cell or "").strip() for name, cell in row.items() if name is not None}
    except (ValueError, csv.Error) as error:
        raise WorkError(f"{path}: not readable as CSV ({error})") from error


def drawn_split(group: str, options: Mapping[str, Any]) -> str:
    """The split that a patient or case falls into, of a layout whose options have `shares` and `seed`.

    The sha256 of `seed:group`, as a number in [0, 1), says which of the shares in their order it lies in: one more
    patient moves no other.
    """
    key = f"{options.get('seed', 0)}:{group}".encode()
    place = int.from_bytes(hashlib.sha256(key).digest()[:8]) / 2**64
    for split, share in options["shares"].items():
        place -= share
        if place < 0:
            return str(split)
    return str(list(options["shares"])[-1])  # the shares sum to 1 but for rounding


def number_of(text: str) -> float | None:
    """A cell as a number, None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None
