"""Arms: cells of grids that differ in more than their tasks and seeds, with the scores of their finished runs.

What tables in the paper's shape and claims are made from. An arm takes the sets that it was tested on from one run a
seed, or from a run a set and seed; runs that are not finished are named, never averaged over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.errors import RequestError
from medbench.files import canonical_json
from medbench.grid_fields import Point, same, shown_point
from medbench.results.record import read_record, read_scores
from medbench.results.study_scores import Cell, Items
from medbench.scoring.contrasts import Contrast, Term
from medbench.scoring.weighted import Array
from medbench.spec import RunSpec
from medbench.sweep import Sweep

#: What figures of medical VQA are averaged over in the paper's tables.
VQA_METRICS = ("closed_accuracy", "open_recall")


@dataclass(frozen=True, eq=False)
class Arm:
    """A setting and its runs.

    Attributes:
        point: what sets it apart from the others of its grid, its tasks left out.
        whole: the same over the grid's base.
        runs: task -> its runs, one a seed.
        problem: why it cannot exist, where it cannot.
    """

    point: Point
    whole: Point
    runs: dict[str, tuple[RunSpec, ...]] = field(default_factory=dict)
    problem: str | None = None

    @property
    def spec(self) -> RunSpec:
        """One of its runs."""
        return next(iter(self.runs.values()))[0]

    @property
    def name(self) -> str:
        """In words."""
        return shown_point(self.point)

    @property
    def label(self) -> str:
        """As a row of a table: a method by its name alone."""
        return str(self.point["method"]) if list(self.point) == ["method"] else self.name

    def value(self, name: str) -> Any:
        """A field of it: of the method and its adapter settings as they were resolved, else as the grid has it."""
        part, _, rest = name.partition(".")
        if name == "method":
            return self.spec.method.name
        if part == "adapter":
            return self.spec.method.adapter.get(rest)
        return self.whole.get(name)

    def fits(self, rows: Mapping[str, Any]) -> bool:
        """Whether it has all these values; a list is any of its values."""
        if not self.runs:
            return False
        each = {name: wanted if isinstance(wanted, list) else [wanted] for name, wanted in rows.items()}
        return all(same(self.value(name)) in [same(value) for value in wanted] for name, wanted in each.items())


def arms_of(sweeps: Sequence[Sweep]) -> list[Arm]:
    """The arms of grids, in order; the same setting in two grids is one arm.

    Raises:
        RequestError: two runs of one setting, task and seed, which differ in what they were trained on.
    """
    found: dict[str, Arm] = {}
    for sweep in sweeps:
        for cell in sweep.cells:
            point = {name: value for name, value in cell.point.items() if name != "tasks"}
            whole = {name: value for name, value in sweep.grid.whole(cell.point).items() if name != "tasks"}
            arm = found.setdefault(_key(whole), Arm(point, whole, problem=cell.problem))
            for spec in cell.specs:
                for task in spec.tasks:
                    known = arm.runs.get(task, ())
                    if spec in known:
                        continue
                    if spec.seed in [other.seed for other in known]:
                        raise RequestError(
                            f"grid {sweep.grid.name}: {arm.name} is tested on {task} after two trainings; give each a "
                            "grid of its own"
                        )
                    arm.runs[task] = (*known, spec)
    return list(found.values())


def _key(whole: Point) -> str:
    return canonical_json(same(whole))


class Scores:
    """The score tables of finished runs, read once."""

    def __init__(self, folders: Mapping[str, Path]):
        """Args: identity -> folder, of runs that are finished."""
        self.folders = folders
        self._tables: dict[tuple[str, str], pd.DataFrame] = {}

    def tables(self, arm: Arm, task: str) -> dict[int, pd.DataFrame]:
        """Seed -> scores of an arm on a task, of its finished runs.

        Raises:
            WorkError: a record or its scores are broken, or of another schema version.
        """
        return {spec.seed: self._table(spec, task) for spec in arm.runs.get(task, ()) if spec.identity in self.folders}

    def missing(self, arm: Arm, task: str) -> list[int]:
        """The seeds whose runs are not finished."""
        return [spec.seed for spec in arm.runs.get(task, ()) if spec.identity not in self.folders]

    def records(self, arm: Arm, task: str) -> dict[int, dict[str, Any]]:
        """Seed -> record, of its finished runs."""
        runs = [spec for spec in arm.runs.get(task, ()) if spec.identity in self.folders]
        return {spec.seed: read_record(self.folders[spec.identity]) for spec in runs}

    def folder(self, arm: Arm, task: str) -> dict[int, Path]:
        """Seed -> folder, of its finished runs."""
        runs = arm.runs.get(task, ())
        return {spec.seed: self.folders[spec.identity] for spec in runs if spec.identity in self.folders}

    def seeds(self, arms: Sequence[Arm], tasks: Sequence[str]) -> tuple[int, ...]:
        """The seeds that all arms have finished on all tasks; what is not trained is the same for every seed."""
        each = [set(self.tables(arm, task)) for arm in arms if arm.spec.stages for task in tasks]
        if any(not self.tables(arm, task) for arm in arms for task in tasks):
            return ()
        return tuple(sorted(set.intersection(*each))) if each else (0,)

    def _table(self, spec: RunSpec, task: str) -> pd.DataFrame:
        key = (spec.identity, task)
        if key not in self._tables:
            read_record(self.folders[spec.identity])
            self._tables[key] = read_scores(self.folders[spec.identity], task)
        return self._tables[key]


class Paired:
    """The scores of several arms, item by item in one order, for weighted sums of them."""

    def __init__(self, scores: Scores, metrics: Mapping[str, Sequence[str]], seeds: Sequence[int]):
        """Args: the tables, task -> its figures, and the seeds (`Scores.seeds`)."""
        self.scores, self.metrics, self.seeds = scores, metrics, seeds
        self.items = Items(metrics)

    def values(self, arm: Arm, task: str) -> dict[Cell, Array]:
        """(task, metric) -> [seeds, items]."""
        known = self.scores.tables(arm, task)
        tables = [known[seed] if arm.spec.stages else next(iter(known.values())) for seed in self.seeds]
        return self.items.scores(task, tables, arm.name)

    def contrast(self, terms: Sequence[tuple[float, Sequence[Arm]]]) -> Contrast:
        """The sum of weight times the mean over some arms of the plain mean over all figures of all tasks.

        Raises:
            WorkError: the runs do not share their items.
        """
        sums: dict[Cell, Array] = {}
        for weight, arms in terms:
            for arm in arms:
                for task in self.metrics:
                    for cell, values in self.values(arm, task).items():
                        sums[cell] = sums.get(cell, 0.0) + weight / len(arms) * values
        return Contrast(
            tuple(Term(cell[0], 1 / len(sums), values, self.items.clusters[cell]) for cell, values in sums.items())
        )
