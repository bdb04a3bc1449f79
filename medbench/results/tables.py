"""Records folded into a table: methods as rows, tasks as columns, the mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tabulate import tabulate

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
from medbench.scoring.stats import Estimate, estimate_metrics, metric_values, seed_sd

Format = Literal["md", "csv", "latex", "html"]
DEFAULT_METRICS = ("closed_accuracy", "open_recall")
BLIND_NOTE = (
    "Blind rows were tested on a blank image in place of every image; those marked train were trained on it, too."
)


@dataclass(frozen=True)
class Table:
    """Rows in the order of method and training; columns are (task, metric); `incomplete` runs are left out."""

    rows: tuple[Row, ...]
    columns: tuple[tuple[str, str], ...]
    incomplete: tuple[str, ...]

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
                }
                for row in self.rows
                for cell in row.cells
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
    rows = sorted((_row(group) for group in groups), key=row_order)
    tasks = list(dict.fromkeys(cell.task for row in rows for cell in row.cells))
    columns = tuple(
        (task, metric) for task in tasks for metric in metrics if any(_shown(row, task, metric) for row in rows)
    )
    return Table(tuple(rows), columns, tuple(map(str, incomplete)))


def _shown(row: Row, task: str, metric: str) -> bool:
    cell = row.cell(task, metric)
    return cell is not None and cell.estimate.value is not None


def _row(group: Group) -> Row:
    _, record = next(iter(group.values()))
    cells = []
    for task, content in record["tasks"].items():
        column = column_name(task, content["split"])
        tables = [read_scores(folder, task) for folder, _ in group.values()]
        one = record["tasks"][task]["metrics"] if len(tables) == 1 else None
        estimates = _read_estimates(one) if one is not None else estimate_metrics(tables)
        per_seed = [metric_values(table) for table in tables] if one is None else []
        cells += [
            Cell(column, name, estimate, seed_sd([values[name] for values in per_seed]))
            for name, estimate in estimates.items()
        ]
    return replace(about_runs(group), cells=tuple(cells))


def _read_estimates(metrics: dict[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**entry) for name, entry in metrics.items()}


def render(table: Table, form: Format) -> str:
    """The table as Markdown, LaTeX (booktabs), HTML (escaped) or CSV (one row a figure)."""
    if form == "csv":
        return table.frame().to_csv(index=False)
    seeds = max(len(row.seeds) for row in table.rows)
    setting = {id(row): differing(row, table.rows) for row in table.rows}
    with_setting, with_blind = any(setting.values()), any(row.blind for row in table.rows)
    header = [
        "method",
        "trained on",
        *(["blind"] if with_blind else []),
        *(["setting"] if with_setting else []),
        "trainable %",
        "budget",
        "of budget",
        "seeds",
    ]
    header += [f"{task} {metric}{_common_n(table, task, metric)}" for task, metric in table.columns]
    body = []
    for row in table.rows:
        cells = [row.method, row.trained_on or "-", *([row.blind or "-"] if with_blind else [])]
        cells += [setting[id(row)]] if with_setting else []
        cells += [_percent(row), row.parameters["budget"] or "-", _distance(row), str(len(row.seeds))]
        cells += [_cell(table, row, task, metric) for task, metric in table.columns]
        body.append(cells)
    return with_notes(header, body, _notes(table, seeds), form)


def with_notes(header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str], form: Format) -> str:
    """A table's text in Markdown, LaTeX or HTML; the notes stand below it (they are HTML already)."""
    formats = {"md": "github", "latex": "latex_booktabs", "html": "html"}
    text = tabulate(body, header, tablefmt=formats[form], disable_numparse=True)
    if form == "html":
        return _page(text + "".join(f"\n<p>{note}</p>" for note in notes))
    sign = {"md": "", "latex": "% "}[form]
    return text + "\n\n" + "\n".join(sign + note for note in notes) + "\n"


def _page(body: str) -> str:
    """A page of its own, nothing fetched from elsewhere."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}p{color:#555}"
        "th,td{padding:.35em .8em;text-align:left;border-bottom:1px solid #ddd}"
        "td{white-space:nowrap}th{border-bottom:2px solid #222}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>medbench</title>'
        f"<style>{style}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _notes(table: Table, seeds: int) -> list[str]:
    from html import escape

    backbones = ", ".join(sorted({row.backbone for row in table.rows}))
    lines = [
        f"Backbone: {escape(backbones)}. Percent with image-clustered 95 % bootstrap intervals; n is items."
        + (" One seed: the variance of training is unknown." if seeds == 1 else " ± is the deviation between seeds.")
    ]
    if any(not row.parameters["comparable"] for row in table.rows):
        lines.append(
            "Rows without a figure under 'of budget' do not stand under one budget (reference rows, fixed ranks)."
        )
    if any(row.blind for row in table.rows):
        lines.append(f"{BLIND_NOTE} `table --blind` sets them against the sighted rows.")
    if table.incomplete:
        lines.append(f"{len(table.incomplete)} incomplete runs are left out.")
    return lines


def _common_n(table: Table, task: str, metric: str) -> str:
    found = {cell.estimate.n for row in table.rows if (cell := row.cell(task, metric))}
    return f" (n={found.pop()})" if len(found) == 1 else ""


def _percent(row: Row) -> str:
    percent = row.parameters["percent"]
    if row.method.startswith("adapter:"):
        return f"{percent:.3g} (stored)"
    return "0" if percent == 0 else f"{percent:.3g}"


def _distance(row: Row) -> str:
    distance = row.parameters["budget_distance"]
    if distance is None:
        return "-"
    return f"{100 * distance:+.1f} %" + (" (below)" if distance < -0.05 else "")


def _cell(table: Table, row: Row, task: str, metric: str) -> str:
    cell = row.cell(task, metric)
    if cell is None or cell.estimate.value is None:
        return "-"
    estimate = cell.estimate
    text = f"{100 * cell.estimate.value:.1f}"
    if cell.seed_sd is not None:
        text += f" ± {100 * cell.seed_sd:.1f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"
    return text + ("" if _common_n(table, task, metric) else f" n={estimate.n}")
