"""Files of answers: predictions of any system as JSONL or parquet, and JSONL of bare pairs.

A JSONL file has one JSON object a line, in UTF-8. Whatever is wrong with it is named by its line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.errors import RequestError
from medbench.scoring.pairs import text_problem

_PARQUET = b"PAR1"


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file: row n is line n + 1; only the end of the file may be empty.

    Raises:
        RequestError: no such file, or a line is no JSON object; names the line.
    """
    try:
        lines = path.read_bytes().rstrip().split(b"\n")
    except OSError as error:
        raise RequestError(f"{path}: {_no_file(path) or error.strerror or error}") from error
    if lines == [b""]:
        return []
    return [_object(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]


def _no_file(path: Path) -> str | None:
    if not path.exists():
        return "no such file"
    return "is a folder, expected a file" if path.is_dir() else None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise RequestError(f"{where}: not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"{where}: not JSON ({error.msg}, character {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; thousands of brackets
        raise RequestError(f"{where}: not readable JSON ({error})") from error
    if not isinstance(value, dict):
        raise RequestError(f"{where}: expected an object {{...}}, got {type(value).__name__}")
    return value


def read_predictions(path: Path, task: str, split: str) -> Any:
    """The predictions of one task and split, whoever made them.

    Args:
        path: a run folder or a parquet with the columns id, prediction and, optionally, probabilities (JSON), of which
            the rows of this task and split are taken if it has columns of those names; or a JSONL of
            `{"id": ..., "prediction": ...}`, optionally with `probabilities`: candidate -> probability.
        task: its name.
        split: its name.

    Returns:
        A `pandas.DataFrame` with those columns; of a JSONL all are text, the probabilities JSON or None.

    Raises:
        RequestError: no such file, or a JSONL with a broken line, which is named.
        WorkError: a damaged parquet.
    """
    import pandas as pd

    from medbench.files import read_parquet

    file = path / "predictions.parquet" if path.is_dir() else path
    if not file.is_file():
        raise RequestError(f"{file}: no such file; expected a run folder, a predictions.parquet or a JSONL")
    if _is_parquet(file):
        stored = read_parquet(file)
        if "task" in stored and "split" in stored:
            stored = stored[(stored["task"] == task) & (stored["split"] == split)]
        return stored
    rows = [_prediction(row, f"{path}: line {n}") for n, row in enumerate(read_jsonl(file), start=1)]
    # As objects: a column of strings cannot hold half a character, which JSON can.
    return pd.DataFrame(
        {name: pd.Series([row[name] for row in rows], dtype=object) for name in ("id", "prediction", "probabilities")}
    )


def _is_parquet(file: Path) -> bool:
    if file.suffix == ".parquet":
        return True
    with file.open("rb") as opened:
        return opened.read(len(_PARQUET)) == _PARQUET


def _prediction(row: Mapping[str, Any], where: str) -> dict[str, str | None]:
    for key in ("id", "prediction"):
        if key not in row:
            there = ", ".join(map(repr, row)) or "none"
            raise RequestError(f"{where}: has no key {key!r}; keys: {there[:80]}")
    identity, probabilities = row["id"], row.get("probabilities")
    if isinstance(identity, bool) or not isinstance(identity, str | int):
        raise RequestError(f"{where}: 'id' must be text or a whole number, got {type(identity).__name__}")
    problem = text_problem(row["prediction"])
    if problem:
        raise RequestError(f"{where} (id {str(identity)[:40]!r}): 'prediction' {problem}")
    if probabilities is not None and not isinstance(probabilities, Mapping):
        raise RequestError(f"{where} (id {str(identity)[:40]!r}): 'probabilities' must map each candidate to a number")
    stored = None if probabilities is None else json.dumps(probabilities)
    return {"id": str(identity), "prediction": row["prediction"], "probabilities": stored}
