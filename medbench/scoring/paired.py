"""Two sides that answered the same items: each side's figure, and their difference, item by item.

Both sides and the difference meet the same resamples of clusters, so what makes an item hard for both cancels: the
interval of the difference is that of a paired comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.scoring.analytic import clustered_se
from medbench.scoring.bootstrap import (
    LEVEL,
    RESAMPLES,
    Estimate,
    cluster_bootstrap,
    cluster_bootstrap_mean,
    cluster_draws,
    estimate_of_draws,
)
from medbench.scoring.kinds import kind_of, measures_of
from medbench.scoring.measures import Measure, Settings, aligned
from medbench.scoring.permutation import PERMUTATIONS, SignFlip, sign_flip_test
from medbench.scoring.weighted import Array, Statistic, mean_statistic

Tables = Sequence[pd.DataFrame]


@dataclass(frozen=True)
class Paired:
    """The figures of two sides over the items that both can use, and `difference`, first less second."""

    first: Estimate
    second: Estimate
    difference: Estimate


@dataclass(frozen=True)
class Tested:
    """A paired difference, tested.

    Attributes:
        figures: the two sides and their difference.
        se: standard error of the difference, None with fewer than two clusters: `clustered_se` (CR1) of the items'
            differences, or for what is no mean over items the standard deviation of the bootstrap.
        flip: the sign-flip test, None for what is no mean over items.
        reason: why there is no test, else None.
    """

    figures: Paired
    se: float | None
    flip: SignFlip | None
    reason: str | None = None


@dataclass(frozen=True)
class _Pair:
    """Two sides' tables in one order, and the items that both can use for a measure."""

    measure: Measure
    sides: tuple[list[pd.DataFrame], list[pd.DataFrame]]
    used: NDArray[np.bool_]

    @property
    def clusters(self) -> pd.Series:
        return self.sides[0][0].loc[self.used, "cluster"]

    @property
    def empty(self) -> str:
        """Why there are no items, where there are none."""
        lead = self.sides[0][0]
        if not self.measure.of_type(lead).any():
            return f"no {self.measure.type} items"
        alone = all(self.measure.usable(side).any() for side in self.sides)
        return f"no {self.measure.type} items that both sides can use" if alone else self.measure.empty

    def means(self) -> list[Array]:
        """Each side's value of each item, averaged over the seeds."""
        return [self.measure.means(side, self.used) for side in self.sides]


def estimate_paired(
    first: Tables, second: Tables, metric: str, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Paired:
    """A metric of two sides over the same items, and its difference.

    Args:
        first: One score table (`medbench.scoring.vqa.score_table`) a seed, in any order of the rows.
        second: The same for the other side; it may have another number of seeds.
        metric: Of those of the tables' kind.
        resamples: How many resamples.
        level: Coverage of the intervals.
        seed: Seed of the draws.

    Returns:
        Scores are averaged over the seeds, each item by itself (what is no mean over items, such as `auroc`: the
        metric, in each resample), then clusters are resampled. As in `estimate_metrics`, intervals are conditional on
        the seeds.

    Raises:
        RequestError: The kind has no such metric that can be compared item by item.
        WorkError: The sides, or the seeds of one, differ in items, clusters, types, profile, or in which scores
            are defined.
    """
    settings: Settings = {"resamples": resamples, "level": level, "seed": seed}
    return _figures(_pair(first, second, metric), settings)[0]


def compare_paired(
    first: Tables,
    second: Tables,
    metric: str,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    level: float = LEVEL,
    seed: int = 0,
) -> Tested:
    """As `estimate_paired`, with the standard error of the difference and a sign-flip test by cluster.

    The test is of the items' differences (`medbench.scoring.permutation.sign_flip_test`), so there is one for means
    over items alone.
    """
    pair = _pair(first, second, metric)
    figures, drawn = _figures(pair, {"resamples": resamples, "level": level, "seed": seed})
    if figures.difference.value is None:
        return Tested(figures, None, None, figures.difference.reason)
    if pair.measure.statistic is not None:
        usable = drawn[~np.isnan(drawn)]
        se = float(usable.std(ddof=1)) if figures.difference.low is not None else None
        return Tested(figures, se, None, f"{metric} is no mean over items: no sign-flip test")
    one, two = pair.means()
    flip = sign_flip_test(one - two, pair.clusters, permutations, seed)
    return Tested(figures, clustered_se(one - two, pair.clusters), flip)


def measure_of(table: pd.DataFrame, metric: str) -> Measure:
    """What a metric is for the kind of task that a score table is of.

    Raises:
        RequestError: the kind has no such metric that can be compared item by item.
    """
    measures = measures_of(table)
    if metric not in measures:
        raise RequestError(f"tasks of kind {kind_of(table)} have no {metric}; {did_you_mean(metric, measures)}")
    return measures[metric]


def _pair(first: Tables, second: Tables, metric: str) -> _Pair:
    one, two = same_order(first, second)
    measure = measure_of(one[0], metric)
    return _Pair(measure, (one, two), measure.usable(one) & measure.usable(two))


def _figures(pair: _Pair, settings: Settings) -> tuple[Paired, Array]:
    """The figures, and the differences on the resamples (empty where there are none, and for means)."""
    measure, used, clusters = pair.measure, pair.used, pair.clusters
    of_type = measure.of_type(pair.sides[0][0])
    left_out = int(of_type.sum() - used.sum()) if measure.counted else 0
    drawn: Array = np.empty(0)
    if measure.statistic is None:
        one, two = pair.means()
        found = [cluster_bootstrap_mean(v, clusters, empty=pair.empty, **settings) for v in (one, two, one - two)]
    else:
        found, drawn = _of_statistics(pair, settings)
    return Paired(*(replace(estimate, left_out=left_out) for estimate in found)), drawn


def _of_statistics(pair: _Pair, settings: Settings) -> tuple[list[Estimate], Array]:
    """Both sides are drawn by the same arithmetic, so the difference of equal ones is zero to the bit."""
    measure, clusters = pair.measure, pair.clusters
    sides = [_mean_statistic(side, measure, pair.used) for side in pair.sides]
    plain = [cluster_bootstrap(s, clusters, 0, empty=pair.empty, undefined=measure.undefined) for s in sides]
    one, two = plain
    if one.value is None or two.value is None:
        return [*plain, one if one.value is None else two], np.empty(0)
    difference = replace(one, value=one.value - two.value)
    if one.clusters < 2 or not settings["resamples"]:
        return [*plain, difference], np.empty(0)
    drawn = [cluster_draws(statistic, clusters, settings["resamples"], settings["seed"]) for statistic in sides]
    drawn.append(drawn[0] - drawn[1])
    values = (one.value, two.value, one.value - two.value)
    found = zip(values, drawn, strict=True)
    return [estimate_of_draws(v, d, one.n, one.clusters, settings["level"]) for v, d in found], drawn[-1]


def _mean_statistic(side: Tables, measure: Measure, used: NDArray[np.bool_]) -> Statistic:
    """The mean over the seeds of a statistic, which is computed a seed at a time."""
    make = measure.statistic
    assert make is not None
    return mean_statistic([make(*(table.loc[used, name] for name in measure.columns)) for table in side])


def same_order(first: Tables, second: Tables) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """All tables of two sides with their rows in the order of the first one.

    Raises:
        WorkError: The sides, or the seeds of one, differ in items, clusters, types or profile.
    """
    one, two = aligned(first), aligned(second)
    ids = list(one[0]["id"])
    if len(two[0]) != len(ids) or set(two[0]["id"]) != set(ids):
        raise WorkError(f"the two sides have different items: {len(ids)} and {len(two[0])} rows, not all the same")
    two = [table.set_index("id").loc[ids].reset_index() for table in two]
    for column in ("cluster", "type", "profile"):
        differ = int((two[0][column].to_numpy() != one[0][column].to_numpy()).sum())
        if differ:
            raise WorkError(f"the two sides differ in the {column} of {differ} of {len(ids)} items")
    return one, two
