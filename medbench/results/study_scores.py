"""The scores behind a study (`medbench.studies`): read from its finished runs, item by item, all in one order."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medbench.errors import WorkError
from medbench.results.record import read_record, read_scores
from medbench.scoring.analytic import ALPHA, minimal_detectable_effect
from medbench.scoring.contrasts import Contrast, Figure, Term
from medbench.scoring.kinds import measures_of
from medbench.scoring.measures import aligned
from medbench.scoring.permutation import SignFlip, holm
from medbench.scoring.weighted import Array
from medbench.spec import RunSpec

#: A task and one of its figures.
Cell = tuple[str, str]
#: Scores of each cell's items, [seeds, items].
Scores = dict[Cell, Array]
#: Tasks, with the figures of each that a summary is over.
Scope = Mapping[str, Sequence[str]]
#: The scope of all figures: of each task the mean of its own, tasks weighing the same.
MEAN = "mean"


class Items:
    """The items of each task in one order, and which of them each figure is over: the same in all runs of a study."""

    def __init__(self, metrics: Mapping[str, Sequence[str]]):
        """Args: the figures of each task."""
        self.metrics = metrics
        self.clusters: dict[Cell, NDArray[np.str_]] = {}
        self._lead: dict[str, pd.DataFrame] = {}
        self._used: dict[Cell, NDArray[np.bool_]] = {}

    def scores(self, task: str, tables: Sequence[pd.DataFrame], where: str) -> Scores:
        """The scores of a task in some tables (one a seed); figures that no item of the task has are left out.

        Args:
            task: its name.
            tables: score tables.
            where: names the runs in errors.

        Raises:
            WorkError: the items are not those of the runs that were read before.
        """
        lead = self._lead.setdefault(task, tables[0].reset_index(drop=True))
        try:
            same = aligned([lead, *tables])[1:]
        except WorkError as error:
            raise WorkError(f"{where}, task {task}: not the items of the other runs: {error}") from error
        found = {}
        for metric in self.metrics[task]:
            cell, measure = (task, metric), measures_of(lead)[metric]
            used = self._used.setdefault(cell, measure.usable([lead]))
            if any((measure.usable([table]) != used).any() for table in same):
                raise WorkError(f"{where}, task {task}: {metric} is not defined for the items that it is elsewhere")
            if used.any():
                self.clusters[cell] = lead.loc[used, "cluster"].to_numpy(dtype=str)
                found[cell] = np.stack([table.loc[used, measure.columns[-1]].to_numpy(np.float64) for table in same])
        return found

    def of_runs(self, out: Path, specs: Sequence[RunSpec]) -> Scores:
        """The scores of finished runs of one method, one a seed, on the tasks of the study that they were tested on."""
        folders = [out / spec.identity for spec in specs]
        for folder in folders:
            read_record(folder)
        where = ", ".join(folder.name[:12] for folder in folders)
        found: Scores = {}
        for task in specs[0].tasks:
            found |= self.scores(task, [read_scores(folder, task) for folder in folders], where)
        return found

    def scopes(self) -> dict[str, Scope]:
        """What summaries are over: each figure that all tasks have, and the mean of each task's, where there are more.

        Raises:
            WorkError: a task has no item of any of its figures.
        """
        own = {task: [m for m in names if (task, m) in self.clusters] for task, names in self.metrics.items()}
        if empty := [task for task, names in own.items() if not names]:
            raise WorkError(f"task {empty[0]}: no item has {' or '.join(self.metrics[empty[0]])}")
        every = dict.fromkeys(name for names in own.values() for name in names)
        shared: dict[str, Scope] = {
            name: {task: [name] for task in own} for name in every if all(name in names for names in own.values())
        }
        return shared if len(every) == 1 else shared | {MEAN: own}

    def contrast(self, scope: Scope, tasks: Sequence[str], of: Callable[[str, str], Array]) -> Contrast:
        """The mean over some tasks of the mean over their figures of the mean over items.

        Args:
            scope: the figures.
            tasks: which of its tasks.
            of: task and metric -> what each item has, [seeds, items].
        """
        return Contrast(
            tuple(
                Term(task, 1 / len(tasks) / len(scope[task]), of(task, metric), self.clusters[task, metric])
                for task in tasks
                for metric in scope[task]
            )
        )

    def cell(self, cell: Cell, values: Array) -> Contrast:
        """One figure of one task."""
        return Contrast((Term(cell[0], 1.0, values, self.clusters[cell]),))


@dataclass(frozen=True)
class Versus:
    """A figure of two methods, compared.

    Attributes:
        scope: what it is over.
        first: a method.
        second: another.
        difference: first less second.
        flip: the sign-flip test of it.
        p: corrected over the pairs of methods of this scope (Holm).
        detectable: the minimal detectable effect, None where the standard error is not known or zero.
        seeds: how many.
        apart: whether p is at most 0.05.
    """

    scope: str
    first: str
    second: str
    difference: Figure
    flip: SignFlip
    p: float
    detectable: float | None
    seeds: int
    apart: bool

    @property
    def shaky(self) -> bool:
        """Whether it is apart by less than two standard errors of the variation between the seeds."""
        sd, value = self.difference.seed_sd, self.difference.estimate.value or 0.0
        return self.apart and sd is not None and abs(value) < 2 * sd / math.sqrt(self.seeds)


def versus(scope: str, sides: Mapping[str, Contrast], resamples: int) -> list[Versus]:
    """All pairs of methods in one figure; p corrected over the pairs (Holm)."""
    pairs = [(one, two, sides[one].minus(sides[two])) for one, two in combinations(sides, 2)]
    flips = [difference.test() for _, _, difference in pairs]
    found = []
    for (one, two, difference), flip, p in zip(pairs, flips, holm([flip.p for flip in flips]), strict=True):
        se = difference.standard_error(resamples)
        detectable = minimal_detectable_effect(se) if se else None
        seeds = len(difference.by_seed)
        found.append(Versus(scope, one, two, difference.figure(resamples), flip, p, detectable, seeds, p <= ALPHA))
    return found


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure as plain values: value, low, high, n, clusters, seed_sd, and a reason where something is missing."""
    return figure.estimate.to_json() | {"seed_sd": figure.seed_sd}


def versus_json(line: Versus, higher: str, lower: str) -> dict[str, Any]:
    """A comparison as plain values; `higher` and `lower` say what the first method does where it is apart."""
    value = line.difference.estimate.value or 0.0
    verdict = (higher if value > 0 else lower) if line.apart else "not separable"
    return {
        "scope": line.scope,
        "first": line.first,
        "second": line.second,
        "difference": figure_json(line.difference),
        "p": line.flip.p,
        "p_holm": line.p,
        "exact": line.flip.exact,
        "patterns": line.flip.patterns,
        "detectable": line.detectable,
        "verdict": f"{verdict}, on these seeds" if line.shaky else verdict,
    }


def about_method(specs: Sequence[RunSpec]) -> dict[str, Any]:
    """What a report says of a method: its name, runs, seeds, rank and budget."""
    spec = specs[0]
    return {
        "method": spec.method.name,
        "runs": [one.identity for one in specs],
        "seeds": [one.seed for one in specs],
        "rank": spec.method.adapter.get("r"),
        "trainable": spec.budget.trainable,
        "budget": spec.budget.request or None,
        "budget_distance": spec.budget.distance,
        "comparable": spec.budget.comparable,
    }
