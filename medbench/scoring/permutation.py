"""p-values of paired differences: sign flips by cluster, and Holm's correction over several tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medbench.scoring.bootstrap import coded
from medbench.scoring.weighted import Array

PERMUTATIONS = 10_000
EXACT_UP_TO = 14  # clusters that differ: 2**14 sign patterns are all counted
_CHUNK = 2_000_000  # signs held at once
_TIE = 1e-9  # relative: sums that differ by rounding alone are equal
_ZERO = 1e-12  # sums of scores, which are of the order of one, that are zero but for rounding


@dataclass(frozen=True)
class SignFlip:
    """The result of a sign-flip test.

    Attributes:
        p: Two-sided.
        exact: Whether all sign patterns were counted, else `patterns` of them were drawn.
        patterns: How many patterns were looked at (the observed one is not among drawn ones, but counts in `p`).
    """

    p: float
    exact: bool
    patterns: int


def sign_flip_test(
    differences: ArrayLike, clusters: ArrayLike, permutations: int = PERMUTATIONS, seed: int = 0
) -> SignFlip:
    """Tests whether paired differences are symmetric about zero, by flipping the signs of whole clusters.

    If it makes no difference which side gave which answers, the sum of a cluster's differences is as likely to be
    its negative; items of one cluster flip together, because they are not independent (Winkler et al. 2014,
    NeuroImage 92, "whole-block" exchangeability; Fisher 1935, section 21, for the test). The statistic is the absolute
    mean difference. Clusters whose differences add up to zero change nothing and are left out; where at most 14
    remain, all 2**k patterns are counted and p is exact, else p = (1 + b) / (1 + m) for b of m random patterns at
    least as extreme (Phipson & Smyth 2010), which is never zero.

    Args:
        differences: First side less second, one finite value an item; shape (n,).
        clusters: The cluster of each item, compared as text; shape (n,).
        permutations: How many random patterns, where not all are counted.
        seed: Seed of their draws.

    Raises:
        WorkError: A difference is not finite, or there are not as many clusters as differences.

    Example:
        Three of three clusters in favour: only the pattern itself and its negative are as extreme.

        >>> sign_flip_test([1, 1, 1, 1], ["a", "a", "b", "c"])
        SignFlip(p=0.25, exact=True, patterns=8)
    """
    return sign_flip_tests(cluster_sums(differences, clusters)[None], permutations, seed)[0]


def cluster_sums(values: ArrayLike, clusters: ArrayLike) -> Array:
    """The sum of the items' values in each cluster, in the order of the clusters' names; shape (count,).

    Raises:
        WorkError: A value is not finite, or there are not as many clusters as values.

    Example:
        >>> cluster_sums([1, 2, 5], ["b", "b", "a"]).tolist()
        [5.0, 3.0]
    """
    numbers, codes, count = coded(values, clusters)
    return np.bincount(codes, weights=numbers, minlength=count).astype(np.float64)


def sign_flip_tests(sums: Array, permutations: int = PERMUTATIONS, seed: int = 0) -> list[SignFlip]:
    """As `sign_flip_test`, for several comparisons on the same clusters, which meet the same random patterns.

    Args:
        sums: The clusters' sums of differences, one row a comparison; shape (comparisons, clusters).
        permutations: How many random patterns.
        seed: Seed of their draws.

    Example:
        >>> [found.p for found in sign_flip_tests(np.array([[3.0, -3.0, 0.0], [1.0, 1.0, 2.0]]))]
        [1.0, 0.25]
    """
    size = np.abs(sums).max(axis=1, initial=0.0)
    kept = np.abs(sums) > np.maximum(_TIE * size[:, None], _ZERO)
    few = kept.sum(axis=1) <= EXACT_UP_TO
    found = {row: _exact(sums[row, kept[row]]) for row in np.flatnonzero(few).tolist()}
    many = np.flatnonzero(~few)
    if len(many):
        found |= dict(zip(many.tolist(), _random(sums[many] * kept[many], permutations, seed), strict=True))
    return [found[row] for row in range(len(sums))]


def _exact(sums: Array) -> SignFlip:
    patterns = 2 ** len(sums)
    bits = (np.arange(patterns)[:, None] >> np.arange(len(sums))) & 1
    return SignFlip(float(_as_extreme(bits.astype(np.float64), sums[None])[0]) / patterns, True, patterns)


def _random(sums: Array, permutations: int, seed: int) -> list[SignFlip]:
    generator = np.random.Generator(np.random.PCG64(seed))
    count = sums.shape[1]
    rows = max(1, _CHUNK // count)
    extreme = np.zeros(len(sums), dtype=np.int64)
    for start in range(0, permutations, rows):
        size = min(rows, permutations - start)
        # Whole bytes a pattern, so that patterns do not depend on the chunks.
        packed = np.frombuffer(generator.bytes(size * -(-count // 32) * 4), dtype=np.uint8).reshape(size, -1)
        extreme += _as_extreme(np.unpackbits(packed, axis=1, count=count).astype(np.float64), sums)
    return [SignFlip((1 + int(number)) / (1 + permutations), False, permutations) for number in extreme]


def _as_extreme(bits: Array, sums: Array) -> NDArray[np.int64]:
    """How many of the patterns (a 1 keeps the sign) give a sum at least as far from zero; one number a row of sums."""
    observed = sums.sum(axis=1)
    flipped = np.abs(2 * (bits @ sums.T) - observed)
    slack = _TIE * np.abs(sums).sum(axis=1)
    return (flipped >= np.abs(observed) - slack).sum(axis=0, dtype=np.int64)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values: rejecting those at most alpha errs in any of them with probability at most alpha.

    The j-th smallest of m is max over i <= j of min(1, (m - i + 1) p_(i)) (Holm 1979, Scandinavian Journal of
    Statistics 6:65); tests may depend on one another.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for done, place in enumerate(order):
        reached = max(reached, min(1.0, (len(p_values) - done) * p_values[place]))
        adjusted[place] = reached
    return adjusted
