"""Recall, F1 and AUROC averaged over classes, of weighted items, for many weightings at once.

Over which classes a mean is taken is settled on all items, as scikit-learn does it. A resample that holds no item of
one of the classes that there are has no value: the mean over the others would be of another quantity.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medbench.scoring.weighted import Array, Statistic, SumStatistic, mean_statistic, ratio_statistic

_EXACT_IN_SINGLE = 2**22  # weights


def mean_recall_statistic(right: ArrayLike, gold: ArrayLike) -> Statistic:
    """Balanced accuracy: the mean, over the classes that there are items of, of the share that is right.

    The same as scikit-learn's `balanced_accuracy_score` with `sample_weight`, where no class is without weight.

    Args:
        right: 1 where the prediction is right, else 0; shape (n,).
        gold: the class of each item; shape (n,).

    Returns:
        A function from weights of shape (r, n) to values of shape (r,); NaN where a class has no weight.

    Example:
        >>> mean_recall_statistic([1, 1, 1, 0], ["a", "a", "a", "b"])(np.ones((1, 4))).tolist()
        [0.5]
    """
    hit, names = np.asarray(right, dtype=np.float64), np.asarray(gold, dtype=str)
    own = _indicators(names, np.unique(names))
    return mean_statistic([ratio_statistic(hit * column, column) for column in own.T])


def macro_f1_statistic(gold: ArrayLike, prediction: ArrayLike) -> SumStatistic:
    """The mean of the classes' F1, 2 TP / (gold + predicted), over the classes that are gold or predicted anywhere.

    The same as scikit-learn's `f1_score(average="macro")` over these labels. A class that is predicted but has no items
    counts with 0. A prediction that is no class is the empty text: it is a miss of its item's class and no false alarm
    of another.

    Args:
        gold: the class of each item; shape (n,).
        prediction: the class that it was taken for, or an empty text; shape (n,).

    Returns:
        A function from weights of shape (r, n) to values of shape (r,); NaN where a class that has items has no weight.

    Example:
        >>> macro_f1_statistic(["a", "a", "b"], ["a", "b", "b"])(np.ones((1, 3))).round(6).tolist()
        [0.666667]
    """
    wanted, given = np.asarray(gold, dtype=str), np.asarray(prediction, dtype=str)
    there = np.unique(wanted)
    names = np.concatenate([there, np.setdiff1d(given[given != ""], there)])
    own, called = _indicators(wanted, names), _indicators(given, names)
    count, present = len(names), len(there)

    def of_sums(sums: Array) -> Array:
        both, size = sums[:, :count], sums[:, count : 2 * count]
        either = size + sums[:, 2 * count :]
        each = np.divide(2 * both, either, out=np.zeros_like(both), where=either > 0)
        return np.where((size[:, :present] > 0).all(axis=1), each.mean(axis=1), np.nan)

    return SumStatistic(np.concatenate([own * called, own, called], axis=1), of_sums)


def one_vs_rest_auroc_statistic(scores: ArrayLike, gold: ArrayLike) -> Statistic:
    """The mean over the classes of the AUROC of the class against the rest, ties counting one half.

    The same as scikit-learn's `roc_auc_score(multi_class="ovr", average="macro")` with `sample_weight`.

    Each item weighs in once for each class: a rest item adds its weight to the bucket between the scores of the class's
    own items that it falls in. All classes' buckets are the rows of one sparse matrix, so a chunk of resamples is one
    product.

    Args:
        scores: higher means more of the class; shape (n, classes).
        gold: the number of each item's class; shape (n,).

    Returns:
        A function from weights of shape (r, n), whole numbers as a bootstrap draws them, to values of shape (r,); NaN
        where a class has no weight, or all.

    Example:
        >>> scores = [[0.8, 0.1, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.4, 0.4, 0.2]]
        >>> one_vs_rest_auroc_statistic(scores, [0, 1, 2, 1])(np.ones((1, 4))).round(6).tolist()
        [1.0]
    """
    from scipy.sparse import csr_array

    values, own = np.asarray(scores, dtype=np.float64), np.asarray(gold, dtype=np.intp)
    entries: list[tuple[NDArray[np.intp], NDArray[np.intp], Array]] = []
    starts = [0]
    for number in range(values.shape[1]):
        found, levels = _buckets(values[:, number], own == number)
        entries += [(rows + starts[-1], items, data) for rows, items, data in found]
        starts.append(starts[-1] + 2 * levels)
    rows, items, data = (np.concatenate(part) for part in zip(*entries, strict=True))
    # Sums of whole and half weights up to so many are exact in single precision, which is three times as fast.
    exact = np.float32 if len(own) < _EXACT_IN_SINGLE else np.float64
    matrix = csr_array((data.astype(exact), (rows, items)), shape=(starts[-1], len(own)))

    def statistic(weights: Array) -> Array:
        sums, total = matrix @ np.ascontiguousarray(weights.T, dtype=exact), weights.sum(axis=1)
        added = np.zeros(len(weights))
        for start, end in pairwise(starts):
            below, at = np.split(sums[start:end], 2)
            added += _share_won(below, at, total)
        return added / values.shape[1]

    return statistic


def _buckets(
    score: Array, positive: NDArray[np.bool_]
) -> tuple[Sequence[tuple[NDArray[np.intp], NDArray[np.intp], Array]], int]:
    """Entries (row, item, weight) of one class, and L, how many different scores its own items have.

    Rows 0..L-1 add up the rest below each of these scores and above the one before (one at the score itself is half
    there, half in the next row); rows L..2L-1 the class's own items at each of them.
    """
    inside, outside = np.flatnonzero(positive), np.flatnonzero(~positive)
    levels, place = np.unique(score[inside], return_inverse=True)
    found = [(len(levels) + place, inside, np.ones(len(inside)))]
    for side in ("left", "right"):
        row = np.searchsorted(levels, score[outside], side=side)
        used = row < len(levels)  # a rest item above all of the class's own wins against none
        found.append((row[used], outside[used], np.full(int(used.sum()), 0.5)))
    return found, len(levels)


def _share_won(below: Array, at: Array, total: Array) -> Array:
    """The share of pairs (of the class, of the rest) that the class's item wins; from sums (L, r) to (r,)."""
    ahead = np.cumsum(at[::-1], axis=0, dtype=np.float64)[
        ::-1
    ]  # the class's own weight at each of its scores and above
    own = ahead[0] if len(ahead) else np.zeros_like(total)
    pairs = own * (total - own)
    won: Array = np.einsum("ij,ij->j", below, ahead)
    return np.divide(won, pairs, out=np.full(len(total), np.nan), where=pairs > 0)


def _indicators(names: NDArray[np.str_], of: NDArray[np.str_]) -> Array:
    """1 where an item's name is that of the column, else 0; shape (n, columns)."""
    return (names[:, None] == of[None, :]).astype(np.float64)
