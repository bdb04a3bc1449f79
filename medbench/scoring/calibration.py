"""Reliability: how often answers of a given confidence are right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from medbench.errors import WorkError
from medbench.scoring.weighted import ECE_BINS, ece_bin


@dataclass(frozen=True)
class Bin:
    """A bin of a reliability diagram: the items whose confidence is above `low` and at most `high` (0 in the first).

    Attributes:
        low: lower edge.
        high: upper edge.
        n: how many items are in it.
        confidence: their mean confidence, None without items.
        accuracy: the share of them that is right, None without items.
    """

    low: float
    high: float
    n: int
    confidence: float | None
    accuracy: float | None


def reliability(confidence: ArrayLike, correct: ArrayLike, bins: int = ECE_BINS) -> list[Bin]:
    """The bins of a reliability diagram (Niculescu-Mizil & Caruana 2005; Guo et al. 2017, section 2).

    The same bins as `medbench.scoring.weighted.ece_statistic`: the expected calibration error is the sum over the bins
    of n / total * |accuracy - confidence|.

    Args:
        confidence: Probability of the answer taken, in [0, 1]; shape (n,).
        correct: 1 where that answer is right, else 0; shape (n,).
        bins: How many bins of equal width.

    Raises:
        WorkError: A value is not in [0, 1], or there are not as many of one as of the other.

    Example:
        >>> reliability([0.9, 0.7, 0.4], [1, 0, 0], bins=2)[1]
        Bin(low=0.5, high=1.0, n=2, confidence=0.8, accuracy=0.5)
    """
    sure, right = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if sure.shape != right.shape:
        raise WorkError(f"{len(sure)} confidences, but {len(right)} outcomes")
    wrong = ~((sure >= 0) & (sure <= 1) & (right >= 0) & (right <= 1))
    if wrong.any():
        raise WorkError(f"{int(wrong.sum())} of {len(sure)} confidences or outcomes are not in [0, 1]")
    edges, number = np.linspace(0, 1, bins + 1), ece_bin(sure, bins)
    found = []
    for b in range(bins):
        inside = number == b
        n = int(inside.sum())
        mean = (float(sure[inside].mean()), float(right[inside].mean())) if n else (None, None)
        found.append(Bin(float(edges[b]), float(edges[b + 1]), n, *mean))
    return found
