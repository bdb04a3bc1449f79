"""What a figure is (over which items of a score table, from which columns, by which statistic), and its estimate.

The score families (`medbench.scoring.kinds`) say what their figures are as `Measure`s; one function estimates them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medbench.errors import WorkError
from medbench.scoring.bootstrap import Estimate, cluster_bootstrap, cluster_bootstrap_mean
from medbench.scoring.weighted import Array, Statistic, mean_statistic


class Settings(TypedDict):
    """Of a bootstrap: how many resamples, the coverage of the interval, the seed of the draws."""

    resamples: int
    level: float
    seed: int


@dataclass(frozen=True)
class Measure:
    """One figure.

    Attributes:
        type: the items that it is over, `closed` or `open`.
        columns: those that an item needs to be used.
        empty: the reason given when there are items of the type, but none has the columns.
        statistic: from the columns to a statistic; None for the mean of the last column.
        undefined: the reason given when the statistic is undefined on the items.
        counted: whether items of the type without the columns are counted in `left_out`.
    """

    type: str
    columns: tuple[str, ...]
    empty: str
    statistic: Callable[..., Statistic] | None = None
    undefined: str = "all items have the same gold answer"
    counted: bool = True

    def usable(self, tables: Sequence[pd.DataFrame]) -> NDArray[np.bool_]:
        """Which items can be used in every table (one a seed); the tables have their rows in one order.

        Raises:
            WorkError: the seeds differ in which scores they define, and what is left out is not counted.
        """
        here = self.of_type(tables[0])
        each = [here & table[list(self.columns)].notna().all(axis=1).to_numpy() for table in tables]
        if not self.counted and any((used != each[0]).any() for used in each):
            raise WorkError("the seeds differ in which scores of an item are defined")
        return np.logical_and.reduce(each)

    def means(self, tables: Sequence[pd.DataFrame], used: NDArray[np.bool_]) -> Array:
        """The value of each used item for a mean over items, averaged over the seeds."""
        found: Array = np.mean([table.loc[used, self.columns[-1]].to_numpy(np.float64) for table in tables], axis=0)
        return found

    def of_type(self, table: pd.DataFrame) -> NDArray[np.bool_]:
        """Which items are of the measure's type."""
        found: NDArray[np.bool_] = (table["type"] == self.type).to_numpy()
        return found


def estimate_measures(
    measures: Mapping[str, Measure], tables: Sequence[pd.DataFrame], settings: Settings
) -> dict[str, Estimate]:
    """Each measure over the seeds, from one score table a seed, in any order of the rows.

    Returns:
        Name -> estimate. Means: each item is averaged over the seeds, then clusters are resampled. Other statistics
        are computed a seed at a time and averaged, in each resample too (the AUROC of mean probabilities is that of an
        ensemble).

    Raises:
        WorkError: as `aligned`, or the seeds differ in which scores are defined.
    """
    same = aligned(tables)
    return {name: _estimate(measure, same, settings) for name, measure in measures.items()}


def _estimate(measure: Measure, tables: list[pd.DataFrame], settings: Settings) -> Estimate:
    here, used = measure.of_type(tables[0]), measure.usable(tables)
    clusters = tables[0].loc[used, "cluster"]
    empty = measure.empty if here.any() else f"no {measure.type} items"
    if measure.statistic is None:
        found = cluster_bootstrap_mean(measure.means(tables, used), clusters, empty=empty, **settings)
    else:
        each = [measure.statistic(*(table.loc[used, name] for name in measure.columns)) for table in tables]
        found = cluster_bootstrap(mean_statistic(each), clusters, empty=empty, undefined=measure.undefined, **settings)
    return replace(found, left_out=int(here.sum() - used.sum())) if measure.counted else found


def aligned(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables with their rows in the order of the first, checked to be of the same items and profile.

    Raises:
        WorkError: no table, or they differ in items, clusters, types or profile.
    """
    if not tables:
        raise WorkError("no score table")
    first = tables[0].reset_index(drop=True)
    same = [first]
    for number, table in enumerate(tables[1:], start=2):
        known, other = set(first["id"]), set(table["id"])
        if known != other or len(first) != len(table):
            raise WorkError(
                f"seeds 1 and {number} have different items: {len(first)} and {len(table)} rows, "
                f"{len(known - other)} ids only in the first, {len(other - known)} only in the other"
            )
        ordered = table.set_index("id").loc[list(first["id"])].reset_index()
        for column in ("cluster", "type", "profile"):
            differ = int((ordered[column].to_numpy() != first[column].to_numpy()).sum())
            if differ:
                raise WorkError(f"seeds 1 and {number} differ in the {column} of {differ} of {len(first)} items")
        same.append(ordered)
    return same
