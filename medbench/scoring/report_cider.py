"""CIDEr-D of reports over a corpus: how alike two texts are, words that every report has counting little.

Vedantam et al., CIDEr: consensus-based image description evaluation (CVPR 2015), equations 1 to 4 of the variant D,
with one reference a report. For n-grams of order n, with h(t) their counts, N reports and df(t) the references that
hold the n-gram,

    g(t)       = h(t) * log(N / max(1, df(t)))
    CIDEr-D_n  = 10 * exp(-(c - r)^2 / (2 * 6^2)) * sum of min(g_pred(t), g_gold(t)) * g_gold(t) / (|g_pred| |g_gold|)

with c and r the lengths in words; CIDEr-D is the mean over n = 1..4. As in the authors' own program, h is the plain
count (the paper divides it by the text's length, which the norms undo but for the clipping); there is no stemming.

Document frequencies are those of the references that are scored, so a figure depends on the split: a part of it, or
another tokenisation, gives another figure. With one reference every weight is log(1/1) = 0, and there is no figure. A
bootstrap keeps them: an interval is of the mean over reports, given the split's frequencies.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from medbench.scoring.report_text import ORDERS, ngrams, words
from medbench.scoring.weighted import Array

SIGMA = 6.0
ONE_REFERENCE = "with one reference every n-gram's weight is 0"

Gram = tuple[str, ...]


def cider_d(
    golds: Sequence[str], predictions: Sequence[str], step: Callable[[int, int], None] = lambda done, total: None
) -> Array:
    """CIDEr-D of each prediction against its reference, in the corpus of these references.

    One order of n-grams is held at a time, so that the memory is that of the references' distinct n-grams.

    Args:
        golds: the references; N texts.
        predictions: one for each.
        step: called with (reports done, reports in all), each order counting for itself.

    Returns:
        Shape (N,), each in [0, 10]; NaN for N = 1 (`ONE_REFERENCE`).

    Example:
        >>> cider_d(["no effusion .", "heart is large now"], ["no effusion .", "heart is big now"]).round(2).tolist()
        [7.5, 2.71]
    """
    count, done = len(golds), 0
    total = np.zeros(count)
    for order in ORDERS:
        frequency: Counter[Gram] = Counter()
        for gold in golds:
            frequency.update(ngrams(words(gold), order).keys())
        rare = math.log(count) if count else 0.0
        weight = {gram: rare - math.log(df) for gram, df in frequency.items() if df > 1}
        for place, (gold, prediction) in enumerate(zip(golds, predictions, strict=True)):
            total[place] += _similarity(words(gold), words(prediction), order, weight, rare)
            done += 1
            step(done, count * len(ORDERS))
    return total * 10 / len(ORDERS) if count != 1 else np.full(1, np.nan)


def _similarity(gold: list[str], prediction: list[str], order: int, weight: dict[Gram, float], rare: float) -> float:
    """One order's clipped cosine with its length penalty, in [0, 1]; 0 where either side weighs nothing."""
    wanted = {gram: times * weight.get(gram, rare) for gram, times in ngrams(gold, order).items()}
    given = {gram: times * weight.get(gram, rare) for gram, times in ngrams(prediction, order).items()}
    norm = math.hypot(*wanted.values()) * math.hypot(*given.values())
    if not norm:
        return 0.0
    met = math.fsum(min(value, wanted[gram]) * wanted[gram] for gram, value in given.items() if gram in wanted)
    return min(1.0, met / norm) * math.exp(-((len(prediction) - len(gold)) ** 2) / (2 * SIGMA**2))
