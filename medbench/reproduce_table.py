"""A table in the paper's shape: our figures, the published ones apart from them, and both as text and as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from medbench.results.published import Cell as PublishedCell
from medbench.results.published import Published
from medbench.results.writing import Format, with_notes
from medbench.scoring.bootstrap import Estimate

#: What a value of a unit is multiplied with to be shown, and its decimals.
UNITS = {
    "percent": (100.0, 1),
    "points": (100.0, 1),
    "relative": (100.0, 1),
    "GiB": (1.0, 2),
    "seconds": (1.0, 3),
    "minutes": (1.0, 2),
    "of lora": (1.0, 2),
    "parameters": (1.0, 0),
}


@dataclass(frozen=True)
class Column:
    """A column: its key, its heading, the unit of our figures, and the key of the published column, if there is one."""

    key: str
    title: str
    unit: str = "percent"
    published: str | None = None


@dataclass(frozen=True)
class Entry:
    """One of our figures.

    Attributes:
        value, low, high: fractions where the unit is percent or points; None where there is none.
        n: items.
        seeds: that it is over.
        planned: how many seeds the table asks for.
        seed_sd: deviation between them.
        reason: why there is no value, or no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    seeds: tuple[int, ...] = ()
    planned: int = 0
    seed_sd: float | None = None
    reason: str | None = None

    @classmethod
    def of(cls, estimate: Estimate, seeds: Sequence[int], planned: int, seed_sd: float | None) -> Entry:
        """A measured figure."""
        about = (estimate.n, tuple(seeds), planned, seed_sd, estimate.reason)
        return cls(estimate.value, estimate.low, estimate.high, *about)


@dataclass(frozen=True)
class Folded:
    """A table: our rows, and the published rows (title -> column -> text) that are never mixed with them.

    Attributes:
        text: the table as Markdown where it has a form of its own; else it is made from the entries.
    """

    table: str
    scale: str
    backbones: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[str, ...]
    entries: dict[tuple[str, str], Entry]
    published: dict[str, dict[str, str]]
    notes: tuple[str, ...]
    text: str | None = None


def published_rows(table: Published, columns: Sequence[Column]) -> dict[str, dict[str, str]]:
    """The published rows as text, of the columns that ours have; with the letter of the source."""
    rows: dict[str, dict[str, str]] = {}
    for key, row in table.rows.items():
        named = {c.key: cited(table.cell(key, c.published)) for c in columns if c.published in table.columns}
        rows[row.title] = named
    return rows


def cited(cell: PublishedCell) -> str:
    """A published figure with its source, `-` where it is not known."""
    text = cell.text()
    return (
        text if text == "-" else f"{text} [{cell.source}{'' if cell.confidence == 'high' else f', {cell.confidence}'}]"
    )


def shown(entry: Entry | None, unit: str) -> str:
    """A figure as a table shows it; `-` where it is missing.

    Example:
        >>> shown(Entry(0.5, 0.4, 0.61, 10, (0, 1), 2, 0.02), "percent"), shown(Entry(None), "percent")
        ('50.0 ± 2.0 [40.0, 61.0]', '-')
    """
    if entry is None or entry.value is None:
        return "-"
    scale, places = UNITS[unit]
    sign = "+" if unit == "points" else ""
    text = f"{scale * entry.value:{sign},.{places}f}"
    text += f" ± {scale * entry.seed_sd:.{places}f}" if entry.seed_sd is not None and unit != "parameters" else ""
    if entry.low is not None and entry.high is not None:
        text += f" [{scale * entry.low:{sign}.{places}f}, {scale * entry.high:{sign}.{places}f}]"
    if len(entry.seeds) < entry.planned:
        text += f" ({len(entry.seeds)} of {entry.planned} seeds)"
    return text


def render_folded(table: Folded, form: Format = "md") -> str:
    """The table as Markdown, LaTeX, HTML or CSV (one row a figure)."""
    if form == "csv":
        return pd.DataFrame(entry_rows(table)).to_csv(index=False)
    if table.text is not None and form == "md":
        return table.text
    header = ["source", "row", *(column.title for column in table.columns)]
    body = [
        ["measured", row, *(shown(table.entries.get((row, c.key)), c.unit) for c in table.columns)]
        for row in table.rows
    ]
    body += [
        ["published", title, *(cells.get(c.key, "-") for c in table.columns)]
        for title, cells in table.published.items()
    ]
    return with_notes(header, body, [*table.notes, *missing(table)], form)


def missing(table: Folded) -> list[str]:
    """Why cells are missing, each reason once."""
    found: dict[str, list[str]] = {}
    for row in table.rows:
        for column in table.columns:
            entry = table.entries.get((row, column.key))
            if entry is None or entry.value is None:
                reason = (entry.reason if entry else None) or "not of this row"
                found.setdefault(reason, []).append(f"{row} / {column.title}")
    return [
        f"Missing, {reason}: {', '.join(cells[:6])}{f' and {len(cells) - 6} more' if len(cells) > 6 else ''}."
        for reason, cells in found.items()
    ]


def entry_rows(table: Folded) -> list[dict[str, Any]]:
    """One row a figure: ours in the units shown, then the published ones as they are printed."""
    rows: list[dict[str, Any]] = []
    for row in table.rows:
        for column in table.columns:
            entry = table.entries.get((row, column.key)) or Entry(None, reason="not of this row")
            scale = UNITS[column.unit][0]
            numbers = {key: getattr(entry, key) for key in ("value", "low", "high", "seed_sd")}
            rows.append(
                {"source": "measured", "row": row, "column": column.key, "unit": column.unit}
                | {key: None if value is None else scale * value for key, value in numbers.items()}
                | {"n": entry.n, "seeds": list(entry.seeds), "planned": entry.planned, "reason": entry.reason}
            )
    for title, cells in table.published.items():
        rows += [
            {"source": "published", "row": title, "column": column, "printed": text} for column, text in cells.items()
        ]
    return rows
