"""Records folded into a table: methods as rows, tasks as columns, the mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.files import canonical_json
from medbench.results.agreement import tested_conditions
from medbench.results.marks import Standing, standings
from medbench.results.record import read_scores
from medbench.results.rows import (
    Cell,
    Group,
    Row,
    about_runs,
    column_name,
    differing,
    known_metrics,
    read_groups,
    row_order,
)
from medbench.results.writing import INTERVALS, Format, marked, points, with_notes
from medbench.scoring.figures import UNBOUNDED
from medbench.scoring.stats import Estimate, estimate_metrics, metric_values, seed_sd
from medbench.scoring.yesno import reference_lines

#: The score tables of each column's task, one a seed.
Scores = dict[str, list[pd.DataFrame]]
#: A table has those of them that its tasks' kinds have.
DEFAULT_METRICS = (
    *("closed_accuracy", "open_recall"),
    *("accuracy", "balanced_accuracy"),
    *("bleu_1", "bleu_4", "rouge_l", "cider_d", "finding_hallucination"),
)
BLIND_NOTE = (
    "Blind rows were tested on a blank image in place of every image; those marked train were trained on it, too."
)


@dataclass(frozen=True)
class Table:
    """Rows in the order of method and training; columns are (task, metric).

    Attributes:
        incomplete: runs that are left out.
        standings: (row's number, task, metric) -> whether the row is the best of its column, or a tie with it.
        untested: metrics of columns in which no two rows were tested, because they are no means over items.
        uneven: of columns in which rows stand that were given other items, images or another scoring rule: the
            fields in which these differ.
        always_yes: what always answering yes gets on a task, where that is said.
    """

    rows: tuple[Row, ...]
    columns: tuple[tuple[str, str], ...]
    incomplete: tuple[str, ...]
    standings: dict[tuple[int, str, str], Standing] = field(default_factory=dict)
    untested: tuple[str, ...] = ()
    uneven: dict[str, tuple[str, ...]] = field(default_factory=dict)
    always_yes: dict[str, dict[str, float]] = field(default_factory=dict)

    def frame(self) -> pd.DataFrame:
        """One row a figure, numbers as measured: what `--format csv` writes."""
        return pd.DataFrame(
            [
                {
                    "method": row.method,
                    "backbone": row.backbone,
                    "trained_on": row.trained_on,
                    "blind": row.blind,
                    "setting": differing(row, self.rows),
                    "rank": row.parameters["rank"],
                    "trainable": row.parameters["trainable"],
                    "percent": row.parameters["percent"],
                    "budget_distance": row.parameters["budget_distance"],
                    "task": cell.task,
                    "metric": cell.metric,
                    "value": cell.estimate.value,
                    "low": cell.estimate.low,
                    "high": cell.estimate.high,
                    "n": cell.estimate.n,
                    "clusters": cell.estimate.clusters,
                    "seeds": len(row.seeds),
                    "seed_sd": cell.seed_sd,
                    "reason": cell.estimate.reason,
                    "mark": standing.mark if standing else None,
                    "p_against_best": standing.p if standing else None,
                }
                for number, row in enumerate(self.rows)
                for cell in row.cells
                for standing in [self.standings.get((number, cell.task, cell.metric))]
                if (cell.task, cell.metric) in self.columns
            ]
        )


def build_table(paths: Iterable[Path], metrics: Sequence[str] = DEFAULT_METRICS) -> Table:
    """Folds runs into a table. Runs are averaged only if their specs differ in nothing but the seed.

    Args:
        paths: run folders, or folders of run folders.
        metrics: names of figures, or `all`.

    Raises:
        RequestError: no complete run, or an unknown metric.
    """
    metrics = known_metrics(metrics)
    groups, incomplete = read_groups(paths)
    made = [(_row(group, scores, metrics), group, scores) for group in groups for scores in [_scores(group)]]
    made.sort(key=lambda entry: row_order(entry[0]))
    rows = tuple(row for row, _, _ in made)
    tasks = list(dict.fromkeys(cell.task for row in rows for cell in row.cells))
    columns = tuple(
        (task, metric) for task in tasks for metric in metrics if any(_shown(row, task, metric) for row in rows)
    )
    contents = [record["tasks"] for group in groups for _, record in group.values()]
    always = {
        task: about["always_yes"] for tasks in contents for task, about in tasks.items() if about.get("always_yes")
    }
    table = Table(rows, columns, tuple(map(str, incomplete)), always_yes=always)
    return _with_standings(table, [(group, scores) for _, group, scores in made])


def _with_standings(table: Table, made: Sequence[tuple[Group, Scores]]) -> Table:
    found: dict[tuple[int, str, str], Standing] = {}
    untested: list[str] = []
    uneven: dict[str, tuple[str, ...]] = {}
    for column, metric in table.columns:
        here = {n: (made[n][0], made[n][1][column]) for n, row in enumerate(table.rows) if _shown(row, column, metric)}
        own = standings(here, metric)
        if own is None:
            untested.append(metric)
        else:
            found |= {(n, column, metric): standing for n, standing in own.items()}
        fields = differing_tests(list(here.values()))
        uneven |= {column: fields} if fields else {}
    return replace(table, standings=found, untested=tuple(dict.fromkeys(untested)), uneven=uneven)


def differing_tests(rows: Sequence[tuple[Group, Sequence[pd.DataFrame]]]) -> tuple[str, ...]:
    """The fields in which what the rows of a column answered differs."""
    conditions = [tested_conditions(group, str(tables[0]["task"].iloc[0])) for group, tables in rows]
    keys = sorted({key for row in conditions for key in row})
    return tuple(key for key in keys if len({canonical_json(row.get(key)) for row in conditions}) > 1)


def _shown(row: Row, task: str, metric: str) -> bool:
    cell = row.cell(task, metric)
    return cell is not None and cell.estimate.value is not None


def _scores(group: Group) -> Scores:
    _, record = next(iter(group.values()))
    return {
        column_name(task, content["split"]): [read_scores(folder, task) for folder, _ in group.values()]
        for task, content in record["tasks"].items()
    }


def _row(group: Group, scores: Scores, metrics: Collection[str]) -> Row:
    _, record = next(iter(group.values()))
    cells = []
    for content, (column, tables) in zip(record["tasks"].values(), scores.items(), strict=True):
        if len(tables) == 1:
            estimates, per_seed = _read_estimates(content["metrics"], metrics), []
        else:
            estimates = estimate_metrics(tables, only=metrics)
            per_seed = [metric_values(table, metrics) for table in tables]
        cells += [
            Cell(column, name, estimate, seed_sd([values[name] for values in per_seed]))
            for name, estimate in estimates.items()
        ]
    return replace(about_runs(group), cells=tuple(cells))


def _read_estimates(found: dict[str, Any], metrics: Collection[str]) -> dict[str, Estimate]:
    return {name: Estimate(**entry) for name, entry in found.items() if name in metrics}


def render(table: Table, form: Format) -> str:
    """The table as Markdown, LaTeX (booktabs), HTML (escaped) or CSV (one row a figure)."""
    if form == "csv":
        return table.frame().to_csv(index=False)
    setting = [differing(row, table.rows) for row in table.rows]
    backbones = {row.backbone for row in table.rows if not row.imported}
    shown = {"backbone": len(backbones) > 1, "blind": any(r.blind for r in table.rows), "setting": any(setting)}
    header = ["method", "trained on", *(name for name, wanted in shown.items() if wanted)]
    header += ["trainable %", "budget", "of budget", "seeds"]
    header += [f"{task} {metric}{_common_n(table, task, metric)}" for task, metric in table.columns]
    body = []
    for number, row in enumerate(table.rows):
        told = {"backbone": row.backbone, "blind": row.blind or "-", "setting": setting[number]}
        cells = [row.method, row.trained_on or "-", *(told[name] for name, wanted in shown.items() if wanted)]
        cells += budget_cells(row.method, row.parameters)
        cells += ["-" if row.imported else str(len(row.seeds))]
        cells += [_cell(table, number, task, metric) for task, metric in table.columns]
        body.append(cells)
    return with_notes(header, body, _notes(table), form)


def _notes(table: Table) -> list[str]:
    backbones = ", ".join(sorted({row.backbone for row in table.rows if not row.imported}))
    trained = {len(row.seeds) for row in table.rows if row.trained_on and not row.imported}
    several = max(len(row.seeds) for row in table.rows) > 1
    lines = [
        (f"Backbone: {backbones}. " if backbones else "")
        + f"Percent with {INTERVALS}; n is items."
        + (" ± is the deviation between seeds." if several else " One seed: the variance of training is unknown.")
    ]
    if several and 1 in trained:
        lines.append("Rows of one seed: the variance of training is unknown.")
    if table.standings:
        lines.append(
            f"{marked('Bold', 'best')}: the best of its column among the rows of one budget, training and test data; "
            f"{marked('italic', 'tie')}: not separable from it (sign flips by image, Holm's correction over all pairs "
            "of these rows in the column, 5 %; conditional on these seeds). Reference rows, blind rows and rows that "
            "stand alone are not compared."
        )
        if table.untested:
            lines.append(f"Nothing is marked under {', '.join(table.untested)}: no means over items, no test.")
    if any(not row.parameters["comparable"] for row in table.rows):
        lines.append(
            "Rows without a figure under 'of budget' do not stand under one budget (reference rows, fixed ranks)."
        )
    if any(row.blind for row in table.rows):
        lines.append(f"{BLIND_NOTE} `table --blind` sets them against the sighted rows.")
    if any(row.imported for row in table.rows):
        lines.append("Imported rows are other systems' answers, scored here; how they were trained is not known.")
    if any(metric in UNBOUNDED for _, metric in table.columns):
        lines.append("cider_d is no percentage: 10 is the most there is.")
    lines += reference_lines(table.always_yes)
    for column, fields in table.uneven.items():
        lines.append(f"{column}: the rows differ in {', '.join(fields)}; those that do are not compared.")
    if table.incomplete:
        lines.append(f"{len(table.incomplete)} incomplete runs are left out.")
    return lines


def _common_n(table: Table, task: str, metric: str) -> str:
    found = {cell.estimate.n for row in table.rows if (cell := row.cell(task, metric))}
    return f" (n={found.pop()})" if len(found) == 1 else ""


def budget_cells(method: str, parameters: dict[str, Any]) -> list[str]:
    """A row's cells under `trainable %`, `budget` and `of budget`."""
    percent, distance = parameters["percent"], parameters["budget_distance"]
    share = "-" if percent is None else f"{percent:.3g}"  # not known of imported ones
    share += " (stored)" if percent is not None and method.startswith("adapter:") else ""
    far = "-" if distance is None else f"{100 * distance:+.1f} %" + (" (below)" if distance < -0.05 else "")
    return [share, parameters["budget"] or "-", far]


def _cell(table: Table, number: int, task: str, metric: str) -> str:
    cell = table.rows[number].cell(task, metric)
    if cell is None or cell.estimate.value is None:
        return "-"
    text = points(cell.estimate, sd=cell.seed_sd, scale=1 if metric in UNBOUNDED else 100)
    text += "" if _common_n(table, task, metric) else f" n={cell.estimate.n}"
    standing = table.standings.get((number, task, metric))
    return marked(text, standing.mark if standing else None)
