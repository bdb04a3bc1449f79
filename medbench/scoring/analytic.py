"""Standard errors of means of clustered items in closed form, and what they say can be detected.

The bootstrap (`medbench.scoring.bootstrap`) gives the intervals of every table; these formulas need no draws, are an
independent check on it, and answer what a bootstrap does not: how large a difference would have to be to be found.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from medbench.scoring.bootstrap import LEVEL, ONE_CLUSTER, Estimate, coded

#: CR0: the sandwich as it is. CR1: times G / (G - 1), for few clusters.
Correction = Literal["CR0", "CR1"]
ALPHA = 0.05
POWER = 0.8


def clustered_se(values: ArrayLike, clusters: ArrayLike, correction: Correction = "CR1") -> float | None:
    """Cluster-robust standard error of a mean over items.

    se^2 = c * sum_g e_g^2 / n^2, where e_g is the sum over the items of cluster g of value less mean, n the number
    of items, and c = 1 for CR0 or G / (G - 1) for CR1 with G clusters. It is the sandwich estimator of Liang & Zeger
    (1986, Biometrika 73, theorem 2) for a regression on a constant alone (Cameron & Miller 2015, "A Practitioner's
    Guide to Cluster-Robust Inference", section II; their further factor (n - 1) / (n - K) is 1 here), and the variance
    of a ratio of cluster totals, so clusters may differ in size.

    Args:
        values: One finite value an item; shape (n,).
        clusters: The cluster of each item, compared as text; shape (n,).
        correction: For the number of clusters.

    Returns:
        The standard error; None with fewer than two clusters, where it is not known.

    Raises:
        WorkError: A value is not finite, or there are not as many clusters as values.

    Example:
        >>> clustered_se([1, 0, 1, 0], ["a", "a", "b", "b"]), clustered_se([1, 1, 0, 0], ["a", "a", "b", "b"], "CR0")
        (0.0, 0.3535533905932738)
    """
    numbers, codes, count = coded(values, clusters)
    if count < 2:
        return None
    off = np.bincount(codes, weights=numbers - numbers.mean(), minlength=count)
    factor = count / (count - 1) if correction == "CR1" else 1.0
    return math.sqrt(factor * float(off @ off)) / len(numbers)


def clustered_mean(
    values: ArrayLike, clusters: ArrayLike, level: float = LEVEL, correction: Correction = "CR1"
) -> Estimate:
    """Mean over items with the interval mean +- t * se, t of G - 1 degrees of freedom for G clusters.

    The same figure as `cluster_bootstrap_mean` in closed form (Cameron & Miller 2015, section VI, for the t).
    Unlike the bootstrap's, the interval is symmetric and may leave [0, 1].

    Raises:
        WorkError: As `clustered_se`.

    Example:
        >>> found = clustered_mean([1, 0, 1, 1], ["a", "a", "b", "c"])
        >>> found.value, round(found.low, 3), round(found.high, 3)
        (0.75, -0.057, 1.557)
    """
    from scipy.special import stdtrit

    se = clustered_se(values, clusters, correction)
    numbers, _, count = coded(values, clusters)
    n = len(numbers)
    if n == 0:
        return Estimate(None, None, None, 0, 0, "no items")
    value = float(numbers.mean())
    if se is None:
        return Estimate(value, None, None, n, count, ONE_CLUSTER)
    half = float(stdtrit(count - 1, (1 + level) / 2)) * se
    return Estimate(value, value - half, value + half, n, count)


def minimal_detectable_effect(se: float, power: float = POWER, alpha: float = ALPHA) -> float:
    """The smallest true difference that a two-sided test of level `alpha` finds with probability `power`.

    (z_{1 - alpha/2} + z_{power}) * se, 2.80 se by default (Bloom 1995, "Minimum Detectable Effects", Evaluation
    Review 19:547; for evaluations of language models Miller 2024, "Adding Error Bars to Evals"). `se` is
    that of the paired differences as they were measured: the effect that another sample of this size would detect.

    Example:
        272 items of which a fifth is answered differently by the two sides, each in a cluster of its own:

        >>> round(100 * minimal_detectable_effect(math.sqrt(0.2 / 272)), 1)
        7.6
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * se
