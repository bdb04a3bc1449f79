"""What training on several tasks at once does to each of them: mixed against single-task training, item by item.

Interference of a task is its figure after training on the mixture less that after training on it alone, same method,
settings and seed, over the same items: below zero, the other tasks cost it something. The mixture sees each task's
items as often as the training on it alone does, so it takes as many more steps as there is more data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.results.study_scores import (
    Cell,
    Items,
    Scope,
    Scores,
    about_method,
    figure_json,
    versus,
    versus_json,
)
from medbench.results.study_text import FIGURE, Found, cell_text, comparison_table, markdown, p_text, shared_notes
from medbench.scoring.analytic import ALPHA, minimal_detectable_effect
from medbench.scoring.bootstrap import RESAMPLES
from medbench.scoring.contrasts import Contrast
from medbench.scoring.permutation import holm
from medbench.studies import Study


@dataclass(frozen=True, eq=False)
class Interference:
    """The scores of each method after mixed and after single-task training."""

    study: Study
    items: Items
    mixed: Mapping[str, Scores]
    single: Mapping[str, Scores]

    def of_cell(self, method: str, cell: Cell) -> Contrast:
        """Mixed less single, one figure of one task."""
        return self.items.cell(cell, self.mixed[method][cell] - self.single[method][cell])

    def average(self, method: str, scope: Scope) -> Contrast:
        """Mixed less single, the mean over the tasks."""
        mixed, single = self.mixed[method], self.single[method]
        return self.items.contrast(scope, self.study.tasks, lambda task, m: mixed[task, m] - single[task, m])


def read_interference(study: Study, out: Path) -> Interference:
    """The scores of a study's finished runs.

    Raises:
        RequestError: a run is not finished. WorkError: runs do not fit one another.
    """
    items = Items(study.metrics)
    mixed, single = {}, {}
    for method in study.methods:
        mixed[method] = items.of_runs(out, study.of("joint", method))
        alone: Scores = {}
        for task in study.tasks:
            alone |= items.of_runs(out, study.of("alone", method, task))
        single[method] = alone
    return Interference(study, items, mixed, single)


def interference_json(found: Interference, resamples: int = RESAMPLES) -> dict[str, Any]:
    """All of it as plain values, figures as fractions; p is corrected over the methods of a column (Holm)."""
    study, scopes = found.study, found.items.scopes()
    cells = list(next(iter(found.mixed.values())))
    columns: dict[tuple[str | None, str], dict[str, Contrast]] = {
        cell: {method: found.of_cell(method, cell) for method in study.methods} for cell in cells
    }
    for name, scope in scopes.items():
        columns[None, name] = {method: found.average(method, scope) for method in study.methods}
    lines = []
    for (task, metric), contrasts in columns.items():
        lines += _column(found, task, metric, contrasts, resamples)
    compared = []
    for name, scope in scopes.items():
        sides = {method: found.average(method, scope) for method in study.methods}
        compared += [versus_json(line, "is higher", "is lower") for line in versus(name, sides, resamples)]
    return {
        "kind": "interference",
        "backbone": study.plan.backbone.name,
        "tasks": list(study.tasks),
        "metrics": {task: list(names) for task, names in study.metrics.items()},
        "scopes": {name: {task: list(names) for task, names in scope.items()} for name, scope in scopes.items()},
        "seeds": list(study.seeds),
        "resamples": {"figures": resamples},
        "methods": [_about(study, method) for method in study.methods],
        "lines": lines,
        "comparisons": compared,
    }


def _about(study: Study, method: str) -> dict[str, Any]:
    mixed = study.of("joint", method)
    alone = [spec for task in study.tasks for spec in study.of("alone", method, task)]
    about = about_method(mixed)
    return about | {"runs": [spec.identity for spec in (*mixed, *alone)]}


def _column(
    found: Interference, task: str | None, metric: str, contrasts: Mapping[str, Contrast], resamples: int
) -> list[dict[str, Any]]:
    """One figure (of one task, or where that is None averaged over the tasks) of all methods."""
    flips = {method: contrast.test() for method, contrast in contrasts.items()}
    corrected = dict(zip(flips, holm([flip.p for flip in flips.values()]), strict=True))
    lines = []
    for method, contrast in contrasts.items():
        se, flip, p = contrast.standard_error(resamples), flips[method], corrected[method]
        sides: dict[str, Any] = {"mixed": None, "single": None}
        if task is not None:
            each = {"mixed": found.mixed[method], "single": found.single[method]}
            sides = {
                name: figure_json(found.items.cell((task, metric), scores[task, metric]).figure(resamples))
                for name, scores in each.items()
            }
        apart = p <= ALPHA
        lines.append(
            {"method": method, "task": task, "metric": metric}
            | sides
            | {
                "difference": figure_json(contrast.figure(resamples)),
                "p": flip.p,
                "p_holm": p,
                "exact": flip.exact,
                "patterns": flip.patterns,
                "detectable": minimal_detectable_effect(se) if se else None,
                "verdict": ("better mixed" if contrast.value > 0 else "better alone") if apart else "not separable",
            }
        )
    return lines


def render_interference(found: Found) -> str:
    """Markdown: mixed and single of each method and task with their difference, averages, comparisons, notes."""
    header = ["method", "task", "metric", "mixed", "alone", "mixed less alone", "p", "p (Holm)", "task is"]
    body = [
        [
            *(line["method"], line["task"] or "(all)", line["metric"]),
            *(cell_text(line["mixed"]), cell_text(line["single"]), cell_text(line["difference"], "+")),
            *(p_text(line["p"], line["exact"]), p_text(line["p_holm"]), line["verdict"]),
        ]
        for line in sorted(found["lines"], key=lambda line: _order(found, line))
    ]
    parts = [f"## Mixed against single-task training: {', '.join(found['tasks'])}\n\n{markdown(header, body)}"]
    if found["comparisons"]:
        what = comparison_table(found["comparisons"], "mixed less alone")
        parts.append(f"## Methods against one another\n\n{what}")
    parts.append("\n".join(f"- {note}" for note in notes(found)) + "\n")
    return "\n".join(parts)


def _order(found: Found, line: Found) -> int:
    order: int = [method["method"] for method in found["methods"]].index(line["method"])
    return order


def notes(found: Found) -> list[str]:
    """What has to be known to read a report, in sentences."""
    said = shared_notes(found, "(all)")
    if len(found["methods"]) > 1:
        said.append("p (Holm) of a task and metric: corrected over the methods.")
    said.append(
        "Mixed less alone: below 0, the other tasks cost this one something. An epoch of the mixture is all tasks' "
        "items, so it has more steps than a task alone."
    )
    return said


def interference_frame(found: Found) -> pd.DataFrame:
    """The report as a long table: `part` is mixed, single, difference or versus; no task where it is over all."""
    rows: list[dict[str, Any]] = []
    tests = ("p", "p_holm", "detectable", "verdict")
    for line in found["lines"]:
        about = {key: line[key] for key in ("method", "task", "metric")}
        rows += [{"part": part} | about | line[part] for part in ("mixed", "single") if line[part] is not None]
        rows.append({"part": "difference"} | about | line["difference"] | {key: line[key] for key in tests})
    for line in found["comparisons"]:
        about = {"method": line["first"], "versus": line["second"], "metric": line["scope"]}
        rows.append({"part": "versus"} | about | line["difference"] | {key: line[key] for key in tests})
    return pd.DataFrame(rows, columns=["part", "method", "versus", "task", "metric", *FIGURE, *tests])
