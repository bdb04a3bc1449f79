"""Committed expectations of a table: `results/expected/T3-ci.yaml`, with a tolerance for each unit.

Figures are compared, not the identities of runs: versions of packages may differ, and with them the last digits. A unit
without a tolerance (times, memory, shares of a small figure) is not compared.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from medbench.catalog import packaged, read_yaml
from medbench.data.card import validated
from medbench.errors import RequestError, WorkError
from medbench.files import write_text
from medbench.reproduce_table import UNITS, Folded

_STRICT = ConfigDict(extra="forbid", frozen=True)
_Finite = Annotated[float, Field(allow_inf_nan=False)]
#: Of `ci`, where a figure is a share of few items and one item up to 8 points.
TOLERANCES = {"percent": 15.0, "points": 15.0, "parameters": 0.0}


class Expected(BaseModel):
    """An expected figure in the unit shown; null where it must be missing."""

    model_config = _STRICT

    row: str
    column: str
    unit: str
    value: _Finite | None


class Expectations(BaseModel):
    """The file: `tolerances` by unit, in what is shown (points for percent)."""

    model_config = _STRICT

    table: str
    scale: str
    tolerances: dict[str, _Finite]
    figures: list[Expected]


def expected_path(table: str, scale: str) -> Path:
    """Where the expectations of a table lie in a checkout; the wheel does not carry them."""
    return packaged("results/expected") / f"{table}-{scale}.yaml"


def read_expected(path: Path) -> Expectations:
    """The expectations.

    Raises:
        RequestError: there are none, or the file is wrong.
    """
    if not path.exists():
        raise RequestError(f"--check: no {path}; in a checkout, --write-expected writes it from what is finished")
    return validated(Expectations, read_yaml(path), path)


def write_expected(path: Path, table: Folded) -> int:
    """Writes what was measured as the expectations; how many figures.

    Raises:
        WorkError: nothing was measured.
    """
    figures = [about for about in _measured(table) if about["unit"] in TOLERANCES]
    if all(about["value"] is None for about in figures):
        raise WorkError(f"--write-expected: no run of {table.table} at scale {table.scale} is finished")
    content = {"table": table.table, "scale": table.scale, "tolerances": TOLERANCES, "figures": figures}
    head = f"# Written by: medbench reproduce {table.table} --scale {table.scale} --write-expected\n"
    write_text(path, head + yaml.safe_dump(content, sort_keys=False, width=120))
    return len(figures)


def outside(table: Folded, expected: Expectations) -> list[str]:
    """The figures that are not as expected, a line each; none where all are within their tolerance.

    Raises:
        RequestError: expectations of another table or scale, or of no figure.
    """
    if (expected.table, expected.scale) != (table.table, table.scale) or not expected.figures:
        raise RequestError(
            f"--check: expectations of {expected.table} at {expected.scale} with {len(expected.figures)} figures, "
            f"wanted some of {table.table} at {table.scale}"
        )
    measured = {(about["row"], about["column"]): about for about in _measured(table)}
    lines = []
    for figure in expected.figures:
        name, found = f"{figure.row} / {figure.column}", measured.pop((figure.row, figure.column), None)
        tolerance = expected.tolerances.get(figure.unit)
        value = found["value"] if found else None
        if found is None or (value is None) != (figure.value is None):
            lines.append(f"{name}: {_text(value)}, expected {_text(figure.value)}")
        elif tolerance is not None and value is not None and figure.value is not None:
            off = abs(value - figure.value)
            if off > tolerance:
                lines.append(
                    f"{name}: {_text(value)}, expected {_text(figure.value)} within {tolerance:g} {figure.unit}"
                )
    new = [f"{row} / {column}" for (row, column), about in measured.items() if about["unit"] in expected.tolerances]
    return lines + [f"{name}: not among the expectations" for name in new]


def _measured(table: Folded) -> list[dict[str, Any]]:
    found = []
    for row in table.rows:
        for column in table.columns:
            entry = table.entries.get((row, column.key))
            value = None if entry is None or entry.value is None else round(UNITS[column.unit][0] * entry.value, 3)
            found.append({"row": row, "column": column.key, "unit": column.unit, "value": value})
    return found


def _text(value: float | None) -> str:
    return "missing" if value is None else f"{value:g}"
