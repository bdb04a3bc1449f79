"""Ratios, AUROC and calibration error of weighted items, for many weightings at once.

In a bootstrap an item's weight is how often its cluster was drawn; what does not depend on the weights
(sorting, binning) is done once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""From weights (resamples x items) to one value a resample, NaN where it is undefined."""

ECE_BINS = 15


@dataclass(frozen=True)
class SumStatistic:
    """A statistic that is a function of weighted sums over the items, such as any mean, ratio or F1.

    All items of a cluster have one weight, so a bootstrap can add up each cluster once and then work with as many
    rows as there are clusters: exactly the same values, without a weight for every item.

    Attributes:
        columns: What is summed; shape (n, k).
        of_sums: From sums of shape (r, k) to values of shape (r,), NaN where undefined.
    """

    columns: Array
    of_sums: Callable[[Array], Array]

    def __call__(self, weights: Array) -> Array:
        """The values under item weights of shape (r, n); shape (r,)."""
        return self.of_sums(weights @ self.columns)


def mean_statistic(statistics: Sequence[Statistic]) -> Statistic:
    """The mean of several statistics of the same items under the same weights: one a seed.

    Example:
        >>> first, second = (ece_statistic(sure, [1, 0]) for sure in ([1.0, 1.0], [0.5, 0.5]))
        >>> mean_statistic([first, second])(np.ones((1, 2))).tolist()
        [0.25]
    """
    parts = [statistic for statistic in statistics if isinstance(statistic, SumStatistic)]
    if len(parts) < len(statistics):
        return lambda weights: np.mean([statistic(weights) for statistic in statistics], axis=0)
    ends = np.cumsum([part.columns.shape[1] for part in parts])[:-1]

    def of_sums(sums: Array) -> Array:
        split = zip(parts, np.split(sums, ends, axis=1), strict=True)
        return np.mean([part.of_sums(own) for part, own in split], axis=0)

    return SumStatistic(np.concatenate([part.columns for part in parts], axis=1), of_sums)


def ratio_statistic(upper: ArrayLike, lower: ArrayLike) -> SumStatistic:
    """The ratio of two sums as a function of item weights.

    Args:
        upper: What is summed above the line; shape (n,).
        lower: And below it, never negative; shape (n,).

    Returns:
        A function from weights of shape (r, n) to values of shape (r,); NaN where the lower sum is 0.

    Example:
        >>> ratio_statistic([1, 0], [3, 1])(np.ones((1, 2))).tolist()
        [0.25]
    """

    def of_sums(sums: Array) -> Array:
        return np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)

    return SumStatistic(np.stack([np.asarray(c, dtype=np.float64) for c in (upper, lower)], axis=1), of_sums)


def auroc_statistic(score: ArrayLike, positive: ArrayLike) -> Statistic:
    """AUROC as a function of item weights.

    The probability that a positive item scores above a negative one, a tie counting one half (Mann-Whitney;
    the same as scikit-learn's `roc_auc_score` with `sample_weight`).

    Args:
        score: One score an item, higher means more positive; shape (n,).
        positive: 1 or True for positive items; shape (n,).

    Returns:
        A function from weights of shape (r, n) to values of shape (r,); NaN where one class has no weight.

    Example:
        >>> auroc_statistic([0.1, 0.4, 0.4, 0.9], [0, 0, 1, 1])(np.ones((1, 4))).tolist()
        [0.875]
    """
    scores = np.asarray(score, dtype=np.float64)
    is_positive = np.asarray(positive, dtype=bool)
    _, level = np.unique(scores, return_inverse=True)
    above, below = np.flatnonzero(is_positive), np.flatnonzero(~is_positive)
    above = above[np.argsort(level[above], kind="stable")]
    below = below[np.argsort(level[below], kind="stable")]
    # Weight of the negatives strictly below, and at or below, each positive, from one cumulative sum.
    strictly = np.searchsorted(level[below], level[above], side="left")
    at_most = np.searchsorted(level[below], level[above], side="right")

    def statistic(weights: Array) -> Array:
        ones, zeros = weights[:, above], weights[:, below]
        passed = np.concatenate([np.zeros((len(weights), 1)), np.cumsum(zeros, axis=1)], axis=1)
        won = np.einsum("ij,ij->i", ones, passed[:, strictly] + passed[:, at_most]) / 2
        pairs = ones.sum(axis=1) * zeros.sum(axis=1)
        return np.divide(won, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)

    return statistic


def ece_statistic(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> SumStatistic:
    """Expected calibration error as a function of item weights (Guo et al. 2017, equation 3).

    It is biased upwards on few items, and more so in a resample, so its interval may lie above the value.

    Bins of equal width over [0, 1], each holding its upper edge and not its lower one (0 is in the first);
    the gap between accuracy and mean confidence of each bin, weighted by the bin's share of the items.

    Args:
        confidence: Probability of the answer taken, in [0, 1]; shape (n,).
        correct: 1 where that answer is right, else 0; shape (n,).
        bins: How many bins.

    Returns:
        A function from weights of shape (r, n) to values of shape (r,); NaN where there is no weight.

    Example:
        >>> ece_statistic([0.9, 0.9], [1, 0])(np.ones((1, 2))).round(6).tolist()
        [0.4]
    """
    sure = np.asarray(confidence, dtype=np.float64)
    columns = np.zeros((len(sure), bins + 1))
    columns[np.arange(len(sure)), ece_bin(sure, bins)] = np.asarray(correct, dtype=np.float64) - sure
    columns[:, bins] = 1

    def of_sums(sums: Array) -> Array:
        off, total = np.abs(sums[:, :bins]).sum(axis=1), sums[:, bins]
        return np.divide(off, total, out=np.full(len(sums), np.nan), where=total > 0)

    return SumStatistic(columns, of_sums)


def ece_bin(confidence: ArrayLike, bins: int = ECE_BINS) -> NDArray[np.intp]:
    """The bin of each confidence: of equal width over [0, 1], with the upper edge and not the lower (0 in the first).

    Example:
        >>> ece_bin([0.0, 0.5, 0.51, 1.0], bins=2).tolist()
        [0, 0, 1, 1]
    """
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(edges, np.asarray(confidence, dtype=np.float64), side="left")
