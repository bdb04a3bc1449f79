"""Figures with their intervals: a percentile bootstrap over clusters.

Items that share an image (or study) are one cluster, and clusters are what is drawn. Draws come from NumPy's
PCG64 over the sorted cluster names: the same seed gives the same interval on every machine, in any order of
the rows and whatever the chunks that bound the memory, and two methods on the same items meet the same
resamples.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medbench.errors import WorkError
from medbench.scoring.weighted import Array, Statistic, SumStatistic

RESAMPLES = 10_000
LEVEL = 0.95
ONE_CLUSTER = "fewer than two clusters: no interval"
NO_RESAMPLES = "no resamples: no interval"
_CHUNK = 500_000  # numbers held at once by one step of a bootstrap (4 MB each array, which stays in the cache)
_MAX_UNDEFINED = 0.01  # share of resamples that may be undefined before the interval is not given


@dataclass(frozen=True)
class Estimate:
    """A figure, its interval, and what it rests on.

    Attributes:
        value: The figure, None where it is undefined.
        low: Lower end of the interval, None where there is none.
        high: Upper end of the interval, None where there is none.
        n: Items that the figure is over.
        clusters: Clusters those items come from.
        reason: Why the value or the interval is missing, else None.
        left_out: Items of the right type that could not be used (no probabilities, gold not a candidate).
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    clusters: int
    reason: str | None = None
    left_out: int = 0

    def to_json(self) -> dict[str, Any]:
        """The entry of a record: value, low, high, n, clusters; reason and left_out only if any.

        Example:
            >>> Estimate(None, None, None, 0, 0, "no open items").to_json()["reason"]
            'no open items'
        """
        entry: dict[str, Any] = {name: getattr(self, name) for name in ("value", "low", "high", "n", "clusters")}
        if self.reason is not None:
            entry["reason"] = self.reason
        if self.left_out:
            entry["left_out"] = self.left_out
        return entry


def cluster_bootstrap_mean(
    values: ArrayLike,
    clusters: ArrayLike,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    empty: str = "no items",
) -> Estimate:
    """Mean over items with a percentile interval over resampled clusters.

    A resample draws as many clusters as there are, with replacement, and is the ratio of the sum of their
    values to their number of items; clusters may differ in size.

    Args:
        values: One finite value an item; shape (n,).
        clusters: The cluster of each item, compared as text; shape (n,).
        resamples: How many resamples; 0 for no interval.
        level: Coverage of the interval.
        seed: Seed of the draws.
        empty: The reason given when there is no item.

    Returns:
        The estimate; with fewer than two clusters, without an interval and with a reason.

    Raises:
        WorkError: A value is not finite, or there are not as many clusters as values.

    Example:
        >>> cluster_bootstrap_mean([1, 0, 1, 1], ["a", "a", "b", "c"]).value
        0.75
    """
    numbers, codes, count = coded(values, clusters)
    if count == 0:
        return Estimate(None, None, None, 0, 0, empty)
    sums = np.bincount(codes, weights=numbers, minlength=count)
    sizes = np.bincount(codes, minlength=count).astype(np.float64)
    value = float(sums.sum() / sizes.sum())
    if count < 2 or not resamples:
        return Estimate(value, None, None, len(numbers), count, ONE_CLUSTER if count < 2 else NO_RESAMPLES)
    drawn = [sums[picked].sum(axis=1) / sizes[picked].sum(axis=1) for picked in _draws(count, resamples, count, seed)]
    low, high = _percentiles(np.concatenate(drawn), level)
    return Estimate(value, low, high, len(numbers), count)


def cluster_bootstrap(
    statistic: Statistic,
    clusters: ArrayLike,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    empty: str = "no items",
    undefined: str = "undefined on these items",
) -> Estimate:
    """A weighted statistic with a percentile interval over resampled clusters.

    Args:
        statistic: From item weights (r, n) to values (r,), NaN where undefined; an item's weight is how often
            its cluster was drawn. A `SumStatistic` is much faster: only sums over clusters are resampled. See
            `medbench.scoring.weighted`.
        clusters: The cluster of each item, compared as text; shape (n,).
        resamples: How many resamples; 0 for no interval.
        level: Coverage of the interval.
        seed: Seed of the draws; the same as `cluster_bootstrap_mean`'s give the same resamples.
        empty: The reason given when there is no item.
        undefined: The reason given when the statistic is undefined on the items.

    Returns:
        The estimate. Resamples on which the statistic is undefined are left out; where they are more than 1 %
        there is no interval, but a reason.

    Example:
        >>> from medbench.scoring.weighted import auroc_statistic
        >>> tied = auroc_statistic([0.2, 0.2, 0.2, 0.2], [0, 1, 0, 1])
        >>> half = cluster_bootstrap(tied, ["a", "a", "b", "b"])
        >>> half.value, half.low, half.high
        (0.5, 0.5, 0.5)
    """
    codes, count = _codes(clusters)
    n = len(codes)
    if n == 0:
        return Estimate(None, None, None, 0, 0, empty)
    value = float(statistic(np.ones((1, n)))[0])
    if math.isnan(value):
        return Estimate(None, None, None, n, count, undefined)
    if count < 2 or not resamples:
        return Estimate(value, None, None, n, count, ONE_CLUSTER if count < 2 else NO_RESAMPLES)
    return estimate_of_draws(value, cluster_draws(statistic, clusters, resamples, seed), n, count, level)


def estimate_of_draws(value: float, drawn: Array, n: int, clusters: int, level: float = LEVEL) -> Estimate:
    """A figure with the percentile interval of its values on the resamples (`cluster_draws`).

    Example:
        >>> estimate_of_draws(0.5, np.linspace(0, 1, 9), n=40, clusters=20, level=0.5)
        Estimate(value=0.5, low=0.25, high=0.75, n=40, clusters=20, reason=None, left_out=0)
    """
    missing = int(np.isnan(drawn).sum())
    if missing > _MAX_UNDEFINED * len(drawn):
        reason = f"undefined on {missing} of {len(drawn)} resamples: no interval"
        return Estimate(value, None, None, n, clusters, reason)
    low, high = _percentiles(drawn[~np.isnan(drawn)], level)
    return Estimate(value, low, high, n, clusters)


def cluster_draws(statistic: Statistic, clusters: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Array:
    """The values of a statistic on each resample of clusters, NaN where it is undefined; shape (resamples,)."""
    codes, count = _codes(clusters)
    sums = np.empty((count, 0))
    if isinstance(statistic, SumStatistic):
        columns = statistic.columns.T
        sums = np.stack([np.bincount(codes, weights=column, minlength=count) for column in columns], axis=1)
    parts = []
    for picked in _draws(count, resamples, count if sums.size else max(len(codes), count), seed):
        rows = len(picked)
        picked += np.arange(rows)[:, None] * count
        times = np.bincount(picked.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        if isinstance(statistic, SumStatistic):
            parts.append(statistic.of_sums(times @ sums))
        else:
            parts.append(statistic(times[:, codes]))
    return np.concatenate(parts)


def coded(values: ArrayLike, clusters: ArrayLike) -> tuple[Array, NDArray[np.intp], int]:
    """Values as numbers, the number of each item's cluster in the order of the names, and how many clusters.

    Raises:
        WorkError: A value is not finite, or there are not as many clusters as values.
    """
    numbers = np.asarray(values, dtype=np.float64)
    codes, count = _codes(clusters)
    if len(codes) != len(numbers):
        raise WorkError(f"{len(numbers)} values, but {len(codes)} clusters")
    if not np.isfinite(numbers).all():
        raise WorkError(f"{int((~np.isfinite(numbers)).sum())} of {len(numbers)} values are not finite")
    return numbers, codes, count


def _codes(clusters: ArrayLike) -> tuple[NDArray[np.intp], int]:
    """The number of each item's cluster in sorted order, and how many clusters there are."""
    names, codes = np.unique(np.asarray(clusters).astype(str), return_inverse=True)
    return codes, len(names)


def _draws(count: int, resamples: int, width: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Chunks (rows, count) of drawn cluster numbers; `width` numbers a row are what the caller will hold."""
    generator = np.random.Generator(np.random.PCG64(seed))
    rows = max(1, _CHUNK // width)
    for start in range(0, resamples, rows):
        yield generator.integers(0, count, size=(min(rows, resamples - start), count), dtype=np.int64)


def _percentiles(drawn: Array, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
