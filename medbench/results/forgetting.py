"""What training on one task after another does to the tasks before: the matrix of figures, and what is said of it.

R[i][j] is the figure of task j after the i-th of T stages, R[0][j] that before any training, tasks in the order of the
stages. Of Lopez-Paz & Ranzato 2017 (arXiv 1706.08840, section 2) are

* final average: 1/T sum_j R[T][j];
* backward transfer, BWT: 1/(T-1) sum_{j<T} (R[T][j] - R[j][j]), what later stages gave to earlier tasks;
* forward transfer, FWT: 1/(T-1) sum_{j>1} (R[j-1][j] - R[0][j]), what earlier stages gave to a task not yet trained on
  (their baseline is a randomly initialised model, here the backbone with its untrained adapter).

Of Chaudhry et al. 2018 (arXiv 1801.10112, section 3) is

* forgetting: 1/(T-1) sum_{j<T} (max_{1<=l<T} R[l][j] - R[T][j]), what the last stage has less than the best before it.
  The best stage is each seed's own; with two tasks there is one, and forgetting is minus BWT.

The drop on the first task, R[1][1] - R[T][1], is given in points and as a share of R[1][1].

Items are paired with themselves: each figure is the mean of an item's own differences, the images of a task are
resampled together, and tasks apart (`medbench.scoring.contrasts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.errors import WorkError
from medbench.results.record import read_record
from medbench.results.study_scores import (
    Items,
    Scope,
    Scores,
    about_method,
    figure_json,
    versus,
    versus_json,
)
from medbench.results.traces import TRACE_RESAMPLES, read_trace
from medbench.scoring.bootstrap import RESAMPLES
from medbench.scoring.contrasts import Contrast, Figure
from medbench.scoring.weighted import Array
from medbench.spec import RunSpec
from medbench.studies import Study

#: Stage (0: before training), epochs seen in it, steps done in all.
Moment = tuple[int, float, int]


@dataclass(frozen=True, eq=False)
class Course:
    """A method's way through the sequence.

    Attributes:
        specs: its traced runs, one a seed.
        moments: where they were tested, in order.
        scores: at each moment.
        bounds: `joint`; `alone` (of each task, the run that was trained on it alone); `alone:TASK`, all tasks of it.
    """

    specs: tuple[RunSpec, ...]
    moments: tuple[Moment, ...]
    scores: tuple[Scores, ...]
    bounds: Mapping[str, Scores]

    def after(self, stage: int) -> Scores:
        """The scores at the end of a stage, 0 for before any."""
        last = max(n for n, moment in enumerate(self.moments) if moment[0] == stage)
        return self.scores[last]


@dataclass(frozen=True, eq=False)
class Forgetting:
    """A sequence's runs: the items, each method's course, and the scores of the backbone as it is (None: not run)."""

    study: Study
    items: Items
    courses: Mapping[str, Course]
    none: Scores | None

    def matrix(self, method: str, stage: int, task: str, metric: str) -> Contrast:
        """R[stage][task]."""
        return self.items.cell((task, metric), self.courses[method].after(stage)[task, metric])

    def summary(self, method: str, scope: Scope) -> dict[str, Contrast]:
        """The sums over tasks that the module's docstring defines, but the share, and the gaps to the bounds."""
        tasks, course = self.study.tasks, self.courses[method]
        last, number = len(tasks), {task: n for n, task in enumerate(tasks, start=1)}
        after = [course.after(stage) for stage in range(last + 1)]
        best = {task: self._best(method, scope, task) for task in tasks[:-1]}

        def over(some: tuple[str, ...], of: Any) -> Contrast:
            return self.items.contrast(scope, some, of)

        found = {
            "final_average": over(tasks, lambda t, m: after[last][t, m]),
            "backward_transfer": over(tasks[:-1], lambda t, m: after[last][t, m] - after[number[t]][t, m]),
            "forward_transfer": over(tasks[1:], lambda t, m: after[number[t] - 1][t, m] - after[0][t, m]),
            "forgetting": over(tasks[:-1], lambda t, m: best[t][t, m] - after[last][t, m]),
            "first_task_drop": over(tasks[:1], lambda t, m: after[1][t, m] - after[last][t, m]),
        }
        for name in ("joint", "alone"):
            if name in course.bounds:
                bound = course.bounds[name]
                found[f"less_{name}"] = over(tasks, lambda t, m, b=bound: after[last][t, m] - b[t, m])
        return found

    def forgotten_share(self, method: str, scope: Scope) -> Contrast | None:
        """Forgetting as a share of the best that there was to forget; None where there was nothing."""
        earlier = self.study.tasks[:-1]
        best = {task: self._best(method, scope, task) for task in earlier}
        whole = self.items.contrast(scope, earlier, lambda t, m: best[t][t, m])
        return self.summary(method, scope)["forgetting"].share_of(whole) if whole.value else None

    def relative_drop(self, method: str, scope: Scope, resamples: int) -> Figure:
        """The drop on the first task as a share of what it was after its own stage."""
        first = self.study.tasks[:1]
        before = self.items.contrast(scope, first, lambda t, m: self.courses[method].after(1)[t, m])
        return self.summary(method, scope)["first_task_drop"].relative_to(before, resamples)

    def _best(self, method: str, scope: Scope, task: str) -> Scores:
        """The scores of a task at the stage before the last where it was at its best, for each seed its own."""
        stages = [self.courses[method].after(stage) for stage in range(1, len(self.study.tasks))]
        levels = np.array([np.mean([s[task, m].mean(axis=1) for m in scope[task]], axis=0) for s in stages])
        chosen = levels.argmax(axis=0)  # [seeds], the earliest of equals
        return {
            (task, m): np.stack([stages[stage][task, m][seed] for seed, stage in enumerate(chosen)])
            for m in scope[task]
        }


def read_forgetting(study: Study, out: Path) -> Forgetting:
    """The scores of a sequence's finished runs.

    Raises:
        RequestError: a run is not finished. WorkError: runs do not fit one another, or a trace is broken.
    """
    items = Items(study.metrics)
    courses = {}
    for method in study.methods:
        specs = tuple(study.of("sequence", method))
        moments, scores = _trace(items, study, out, specs)
        after_first = scores[max(n for n, moment in enumerate(moments) if moment[0] == 1)]
        bounds: dict[str, Scores] = {}
        if joint := study.of("joint", method):
            bounds["joint"] = items.of_runs(out, joint)
            each = {study.tasks[0]: after_first}
            each |= {task: items.of_runs(out, study.of("alone", method, task)) for task in study.tasks[1:]}
            bounds["alone"] = {cell: each[cell[0]][cell] for cell in after_first}
            bounds |= {f"alone:{task}": own for task, own in each.items()}
        courses[method] = Course(specs, moments, scores, bounds)
    none = study.of("none")
    return Forgetting(study, items, courses, items.of_runs(out, none) if none else None)


def _trace(
    items: Items, study: Study, out: Path, specs: tuple[RunSpec, ...]
) -> tuple[tuple[Moment, ...], tuple[Scores, ...]]:
    folders = [out / spec.identity for spec in specs]
    for folder in folders:
        read_record(folder)
    tables = [read_trace(folder) for folder in folders]
    columns = ["stage", "epoch", "step"]
    found = [list(table[columns].drop_duplicates().itertuples(index=False, name=None)) for table in tables]
    if any(moments != found[0] for moments in found):
        raise WorkError(f"{folders[0]} and its other seeds were tested at different points of their training")
    where = ", ".join(folder.name[:12] for folder in folders)
    scores = []
    for moment in found[0]:
        here: Scores = {}
        for task in study.tasks:
            at = [t[(t[columns] == moment).all(axis=1) & (t["task"] == task)] for t in tables]
            here |= items.scores(task, at, where)
        scores.append(here)
    return tuple((int(s), float(e), int(n)) for s, e, n in found[0]), tuple(scores)


def forgetting_json(found: Forgetting, resamples: int = RESAMPLES) -> dict[str, Any]:
    """All of it as plain values, figures as fractions: what `--json` prints and tables and plots are made from."""
    study, scopes = found.study, found.items.scopes()
    spec = study.plan.specs[0]
    about = {
        "kind": "forgetting",
        "backbone": spec.backbone.name,
        "sequence": list(study.tasks),
        "metrics": {task: list(names) for task, names in study.metrics.items()},
        "scopes": {name: {task: list(names) for task, names in scope.items()} for name, scope in scopes.items()},
        "seeds": list(study.seeds),
        "resamples": {"figures": resamples, "trace": min(resamples, TRACE_RESAMPLES)},
        "none": None if found.none is None else _cells(found, found.none, resamples),
        "methods": [_method(found, name, scopes, resamples) for name in study.methods],
    }
    lines = []
    for name, scope in scopes.items():
        sides = {method: found.summary(method, scope)["forgetting"] for method in study.methods}
        lines += [versus_json(line, "forgets more", "forgets less") for line in versus(name, sides, resamples)]
    return about | {"comparisons": lines}


def _method(found: Forgetting, name: str, scopes: Mapping[str, Scope], resamples: int) -> dict[str, Any]:
    course, tasks = found.courses[name], found.study.tasks
    matrix = []
    for stage in range(len(tasks) + 1):
        trained = tasks[stage - 1] if stage else None
        matrix += [{"after": stage, "stage": trained} | c for c in _cells(found, course.after(stage), resamples)]
    few = min(resamples, TRACE_RESAMPLES)
    trace = [
        {"stage": stage, "epoch": epoch, "step": step} | cell
        for (stage, epoch, step), scores in zip(course.moments, course.scores, strict=True)
        for cell in _cells(found, scores, few)
    ]
    summary: list[dict[str, Any]] = []
    for scope_name, scope in scopes.items():
        figures = {key: c.figure(resamples) for key, c in found.summary(name, scope).items()}
        figures["first_task_drop_relative"] = found.relative_drop(name, scope, resamples)
        summary += [{"scope": scope_name, "name": key} | figure_json(figure) for key, figure in figures.items()]
    final = course.after(len(tasks))
    bounds = [
        {"bound": bound} | cell | {"difference": _less(found, final, scores, cell, resamples)}
        for bound, scores in course.bounds.items()
        for cell in _cells(found, scores, resamples)
    ]
    return about_method(course.specs) | {"matrix": matrix, "summary": summary, "bounds": bounds, "trace": trace}


def _cells(found: Forgetting, scores: Scores, resamples: int) -> list[dict[str, Any]]:
    return [
        {"task": cell[0], "metric": cell[1]} | figure_json(found.items.cell(cell, values).figure(resamples))
        for cell, values in scores.items()
    ]


def _less(found: Forgetting, final: Scores, bound: Scores, cell: dict[str, Any], resamples: int) -> dict[str, Any]:
    """The sequence's end less a bound, paired."""
    key = (cell["task"], cell["metric"])
    difference: Array = final[key] - bound[key]
    return figure_json(found.items.cell(key, difference).figure(resamples))
