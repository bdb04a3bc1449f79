"""The cells of a grid as a table: the axes as columns, beside them the figures over the seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.files import canonical_json
from medbench.grid_fields import Point, shown
from medbench.results.marks import Standing
from medbench.results.record import is_finished
from medbench.results.rows import Row, setting_of
from medbench.results.tables import DEFAULT_METRICS, Table, build_table
from medbench.results.writing import INTERVALS, Format, marked, points, with_notes
from medbench.scoring.figures import UNBOUNDED, scale_of
from medbench.scoring.stats import Estimate
from medbench.spec import RunSpec


@dataclass(frozen=True)
class Figure:
    """One figure of a cell: its estimate over the finished seeds, the deviation between them, and how it stands."""

    point: Point
    task: str
    metric: str
    estimate: Estimate
    seed_sd: float | None
    seeds: tuple[int, ...]
    parameters: dict[str, Any]
    standing: Standing | None


def figures(
    cells: Sequence[tuple[Point, Sequence[RunSpec]]],
    folders: Mapping[str, Path],
    metrics: Sequence[str] = DEFAULT_METRICS,
) -> list[Figure]:
    """The figures of the finished runs of cells, in the order of the cells; a cell without a finished run has none.

    Args:
        cells: (point, its runs: one a seed, or a seed and left-out task).
        folders: identity -> folder of the run.
        metrics: names of figures.

    Raises:
        WorkError: a record or score table is broken, or of another schema version.
    """
    finished = [folder for folder in folders.values() if is_finished(folder)]
    if not finished:
        return []
    table = build_table(finished, metrics)
    numbers = {canonical_json(row.setting): number for number, row in enumerate(table.rows)}
    found = []
    for point, specs in cells:
        settings = dict.fromkeys(canonical_json(setting_of(spec.to_json())) for spec in specs)
        for setting in settings:
            if setting in numbers:  # else none of its seeds is finished
                found += _figures_of(point, table, numbers[setting])
    return found


def tested_metrics(wanted: str | None) -> tuple[str, ...]:
    """The metrics of a grid's table: those of every table, and the one that its plots are of."""
    return tuple(dict.fromkeys([*DEFAULT_METRICS, *([wanted] if wanted else [])]))


def _figures_of(point: Point, table: Table, number: int) -> list[Figure]:
    row: Row = table.rows[number]
    return [
        Figure(
            point,
            cell.task,
            cell.metric,
            cell.estimate,
            cell.seed_sd,
            row.seeds,
            row.parameters,
            table.standings.get((number, cell.task, cell.metric)),
        )
        for cell in row.cells
        if (cell.task, cell.metric) in table.columns
    ]


def frame(found: Sequence[Figure]) -> pd.DataFrame:
    """One row a figure; the axes are columns, numbers as measured."""
    rows = [
        {name: shown(value) if isinstance(value, list) else value for name, value in figure.point.items()}
        | {
            "task": figure.task,
            "metric": figure.metric,
            "value": figure.estimate.value,
            "low": figure.estimate.low,
            "high": figure.estimate.high,
            "n": figure.estimate.n,
            "clusters": figure.estimate.clusters,
            "seeds": ",".join(map(str, figure.seeds)),
            "seed_sd": figure.seed_sd,
            "rank": figure.parameters["rank"],
            "trainable": figure.parameters["trainable"],
            "mark": figure.standing.mark if figure.standing else None,
        }
        for figure in found
    ]
    return pd.DataFrame(rows)


def render_cells(found: Sequence[Figure], backbones: Sequence[str], form: Format = "md") -> str:
    """The table of cells as text: a row a cell and tested task, grouped by task; figures as columns.

    Args:
        found: of `figures`.
        backbones: their names, for the note below.
        form: md, latex, html or csv (one row a figure).
    """
    if form == "csv":
        return frame(found).to_csv(index=False)
    tasks = list(dict.fromkeys(figure.task for figure in found))
    metrics = [m for m in DEFAULT_METRICS if any(f.metric == m for f in found)]
    metrics += [f.metric for f in found if f.metric not in metrics]
    metrics = list(dict.fromkeys(metrics))
    axes = list(dict.fromkeys(name for figure in found for name in figure.point))
    if all(figure.point.get("tasks") == [figure.task] for figure in found):
        axes.remove("tasks")  # says what the column `task` says
    body = []
    for task in tasks:
        rows: dict[str, dict[str, Figure]] = {}
        for figure in found:
            if figure.task == task:
                rows.setdefault(canonical_json(figure.point), {})[figure.metric] = figure
        for row in rows.values():
            first = next(iter(row.values()))
            named = [shown(first.point[name]) if name in first.point else "-" for name in axes]
            about = [f"{first.parameters['trainable']:,}", str(len(first.seeds))]
            body.append([task, *named, *about, *(_cell(row.get(metric)) for metric in metrics)])
    header = ["task", *axes, "trainable", "seeds", *metrics]
    return with_notes(header, body, _notes(found, backbones), form)


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.estimate.value is None:
        return "-"
    text = points(figure.estimate, sd=figure.seed_sd, scale=scale_of(figure.metric))
    return marked(text, figure.standing.mark if figure.standing else None)


def _notes(found: Sequence[Figure], backbones: Sequence[str]) -> list[str]:
    counts = {figure.task: figure.estimate.n for figure in found}
    seeds = {len(figure.seeds) for figure in found}
    sizes = ", ".join(
        f"{task} {metric} {n}"
        for task in counts
        for metric in dict.fromkeys(f.metric for f in found)
        for n in dict.fromkeys(f.estimate.n for f in found if (f.task, f.metric) == (task, metric))
    )
    notes = [
        f"Backbone: {', '.join(backbones)}. Percent with {INTERVALS}. Items: {sizes}. "
        + ("± is the deviation between seeds." if max(seeds) > 1 else "One seed: the variance of training is unknown.")
    ]
    if len(seeds) > 1 and max(seeds) > 1:
        notes.append("Not all rows have the same number of seeds.")
    if any(figure.standing for figure in found):
        notes.append(
            f"{marked('Bold', 'best')}: the best of a task among rows of one budget; {marked('italic', 'tie')}: not "
            "separable from it (sign flips by image, Holm's correction, 5 %; conditional on these seeds)."
        )
    if any(figure.metric in UNBOUNDED for figure in found):
        notes.append("cider_d is no percentage: 10 is the most there is.")
    return notes


def numeric(name: str, values: Sequence[Any]) -> list[float] | None:
    """The values of an axis as numbers, None where it is of categories. Budgets of one kind are numbers, too.

    Example:
        >>> numeric("adapter.rho", [1, 10.0]), numeric("budget", ["rank=8", "rank=16"]), numeric("budget", ["1%", "2M"])
        ([1.0, 10.0], [8.0, 16.0], None)
    """
    if name == "budget" and all(isinstance(value, str) for value in values):
        from medbench.budget import parse_budget

        if any(value == "paper" or (value.startswith("like=") and ":" not in value) for value in values):
            return None  # the rank is the backbone's or the method's own
        budgets = [parse_budget(value, 1) for value in values]
        alike = len({(budget.kind, budget.method) for budget in budgets}) == 1
        return [float(budget.value) for budget in budgets] if alike else None
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    return numbers if len(numbers) == len(values) and values else None
