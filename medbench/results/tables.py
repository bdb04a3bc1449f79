"""Records folded into a table: methods as rows, tasks as columns, the mean over seeds with its interval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tabulate import tabulate

from medbench.errors import RequestError, did_you_mean
from medbench.files import canonical_json, read_parquet
from medbench.results.record import read_record, run_folders
from medbench.scoring.stats import Estimate, estimate_metrics, metric_values, seed_sd
from medbench.scoring.vqa import METRICS, PROBABILITY_METRICS

Format = Literal["md", "csv", "latex", "html"]
DEFAULT_METRICS = ("closed_accuracy", "open_recall")
_KNOWN = (*METRICS, *PROBABILITY_METRICS)


@dataclass(frozen=True)
class Cell:
    """One figure of one row: the estimate over the seeds, and the standard deviation between them."""

    task: str
    metric: str
    estimate: Estimate
    seed_sd: float | None


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed."""

    method: str
    backbone: str
    trained_on: str
    setting: dict[str, Any]
    seeds: tuple[int, ...]
    parameters: dict[str, Any]
    cells: tuple[Cell, ...]

    def cell(self, task: str, metric: str) -> Cell | None:
        """The cell of a column, None where it was not measured."""
        return next((c for c in self.cells if (c.task, c.metric) == (task, metric)), None)


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
    if tuple(metrics) == ("all",):
        metrics = _KNOWN
    for name in metrics:
        if name not in _KNOWN:
            raise RequestError(f"unknown metric {name!r}; {did_you_mean(name, _KNOWN)}")
    paths = list(paths)
    complete, incomplete = run_folders(paths)
    if not complete:
        where = ", ".join(map(str, paths))
        raise RequestError(f"no finished run in {where} ({len(incomplete)} incomplete)")
    groups: dict[str, dict[int, tuple[Path, dict[str, Any]]]] = {}
    for folder in complete:
        record = read_record(folder)
        group = groups.setdefault(canonical_json(_without_seed(record["spec"])), {})
        group.setdefault(record["seed"], (folder, record))  # a run named twice, or copied, counts once
    rows = sorted((_row(list(group.values())) for group in groups.values()), key=_order)
    tasks = list(dict.fromkeys(cell.task for row in rows for cell in row.cells))
    columns = tuple(
        (task, metric) for task in tasks for metric in metrics if any(_shown(row, task, metric) for row in rows)
    )
    return Table(tuple(rows), columns, tuple(map(str, incomplete)))


def _shown(row: Row, task: str, metric: str) -> bool:
    cell = row.cell(task, metric)
    return cell is not None and cell.estimate.value is not None


def _without_seed(spec: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key != "seed"}


def _order(row: Row) -> tuple[Any, ...]:
    first = ("none",)
    return (row.backbone, row.trained_on != "", row.trained_on, row.method not in first, row.method)


def _row(group: list[tuple[Path, dict[str, Any]]]) -> Row:
    group = sorted(group, key=lambda pair: pair[1]["seed"])
    record = group[0][1]
    scores = [read_parquet(folder / "scores.parquet") for folder, _ in group]
    cells = []
    for task, content in record["tasks"].items():
        column = task if content["split"] == "test" else f"{task} ({content['split']})"
        tables = [table[table["task"] == task] for table in scores]
        one = record["tasks"][task]["metrics"] if len(tables) == 1 else None
        estimates = _read_estimates(one) if one is not None else estimate_metrics(tables)
        per_seed = [metric_values(table) for table in tables] if one is None else []
        cells += [
            Cell(column, name, estimate, seed_sd([values[name] for values in per_seed]))
            for name, estimate in estimates.items()
        ]
    return Row(
        method=record["method"],
        backbone=record["backbone"],
        trained_on=" then ".join("+".join(stage) for stage in record["stages"]),
        setting=flatten(_without_seed(record["spec"])),
        seeds=tuple(entry["seed"] for _, entry in group),
        parameters=record["parameters"],
        cells=tuple(cells),
    )


def _read_estimates(metrics: dict[str, Any]) -> dict[str, Estimate]:
    return {name: Estimate(**entry) for name, entry in metrics.items()}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists are numbered."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = dict(enumerate(value)).items()
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing(row: Row, rows: Sequence[Row]) -> str:
    """What sets a row apart from the others of its method and training: `training.lr=0.001`, or nothing."""
    same = [r for r in rows if (r.method, r.backbone, r.trained_on) == (row.method, row.backbone, row.trained_on)]
    keys = sorted({key for other in same for key in {*row.setting, *other.setting}})
    told = ("method.adapter.", "stages.", "backbone.processor", "generation.", "dtype", "on_bad_item", "method.weights")
    keys = [key for key in keys if (key.startswith(told) and ".mixture." not in key) or key.endswith(".weight")]
    changed = [key for key in keys if len({canonical_json(r.setting.get(key)) for r in same}) > 1]
    return ", ".join(f"{_short(key)}={row.setting.get(key)}" for key in changed)


def _short(key: str) -> str:
    return key.removeprefix("stages.0.").removeprefix("method.")


def render(table: Table, form: Format) -> str:
    """The table as Markdown, LaTeX (booktabs), HTML (escaped) or CSV (one row a figure)."""
    if form == "csv":
        return table.frame().to_csv(index=False)
    seeds = max(len(row.seeds) for row in table.rows)
    setting = {id(row): differing(row, table.rows) for row in table.rows}
    with_setting = any(setting.values())
    header = [
        "method",
        "trained on",
        *(["setting"] if with_setting else []),
        "trainable %",
        "budget",
        "of budget",
        "seeds",
    ]
    header += [f"{task} {metric}{_common_n(table, task, metric)}" for task, metric in table.columns]
    body = []
    for row in table.rows:
        cells = [row.method, row.trained_on or "-", *([setting[id(row)]] if with_setting else [])]
        cells += [_percent(row), row.parameters["budget"] or "-", _distance(row), str(len(row.seeds))]
        cells += [_cell(table, row, task, metric) for task, metric in table.columns]
        body.append(cells)
    formats = {"md": "github", "latex": "latex_booktabs", "html": "html"}
    text = tabulate(body, header, tablefmt=formats[form], disable_numparse=True)
    notes = _notes(table, seeds)
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
