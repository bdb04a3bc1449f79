"""BLEU-1 to BLEU-4 of reports: of the corpus, and the mean of sentences.

Papineni et al. (ACL 2002) in the form of NLTK, with one reference a report and uniform weights over the orders 1 to n:

    BLEU-n = BP * exp(1/n * sum over k = 1..n of log p_k),  BP = 1 if c > r, else exp(1 - r/c)

where p_k is the clipped precision of k-grams, c and r the words of predictions and references. Of the corpus: counts
and lengths are summed over all reports first (`nltk.translate.bleu_score.corpus_bleu`, no smoothing), so a weighted
corpus, as a bootstrap draws it, needs the sums alone. Of a sentence: `sentence_bleu` with NLTK's smoothing `method1`
(a count of 0 becomes .1), then the mean over reports.

NLTK counts the matches of each report; the sums are ours. Where an order has no match, corpus BLEU is exactly 0 (NLTK:
about 1e-78). A prediction shorter than n words counts as one n-gram without a match, as in NLTK.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from medbench.scoring.report_text import ORDERS
from medbench.scoring.weighted import Array, Statistic, SumStatistic

EPSILON = 0.1
"""NLTK's smoothing `method1`: what a precision of 0/n counts as, over n."""

MATCHES = tuple(f"bleu_match_{n}" for n in ORDERS)
TOTALS = tuple(f"bleu_ngrams_{n}" for n in ORDERS)
LENGTHS = ("words", "gold_words")
COUNTS = (*MATCHES, *TOTALS, *LENGTHS)
"""What corpus BLEU needs of each report, in the order of `corpus_bleu`'s columns."""


def bleu_counts(gold: Sequence[str], prediction: Sequence[str]) -> dict[str, float]:
    """The clipped matches, n-grams and lengths of one report (`COUNTS`).

    Example:
        >>> counts = bleu_counts(["no", "effusion", "."], ["no", "no", "effusion"])
        >>> [counts[name] for name in ("bleu_match_1", "bleu_ngrams_1", "bleu_match_2", "bleu_match_3")]
        [2.0, 3.0, 1.0, 0.0]
    """
    # Imported on first use: it takes seconds.
    from nltk.translate.bleu_score import modified_precision

    row: dict[str, float] = {"words": float(len(prediction)), "gold_words": float(len(gold))}
    for n, match, total in zip(ORDERS, MATCHES, TOTALS, strict=True):
        precision = modified_precision([gold], prediction, n)
        row[match], row[total] = float(precision.numerator), float(precision.denominator)
    return row


def sentence_bleu(counts: dict[str, float]) -> list[float]:
    """BLEU-1 to BLEU-4 of one report, smoothed by NLTK's `method1`; 0 where no word matches.

    Args:
        counts: of `bleu_counts`.
    """
    if not counts[MATCHES[0]]:
        return [0.0] * len(ORDERS)
    penalty = brevity(np.array([counts["words"]]), np.array([counts["gold_words"]]))[0]
    logs = [math.log((counts[m] or EPSILON) / counts[t]) for m, t in zip(MATCHES, TOTALS, strict=True)]
    return [float(penalty * math.exp(math.fsum(logs[:n]) / n)) for n in ORDERS]


def brevity(given: Array, wanted: Array) -> Array:
    """The brevity penalty: 1 where `given` words are more than `wanted`, 0 where there are none, else exp(1 - r/c)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        short = np.exp(1 - wanted / given)
    penalty: Array = np.where(given > wanted, 1.0, np.where(given > 0, short, 0.0))
    return penalty


def corpus_bleu(sums: Array) -> Array:
    """BLEU-1 to BLEU-4 from sums over reports.

    Args:
        sums: of `COUNTS`, in that order; shape (r, 10).

    Returns:
        Shape (r, 4); 0 where an order has no match.
    """
    matches, totals = sums[:, :4], sums[:, 4:8]
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.cumsum(np.log(matches / totals), axis=1) / np.arange(1, 5)
    scores: Array = brevity(sums[:, 8], sums[:, 9])[:, None] * np.exp(np.nan_to_num(logs, nan=-np.inf, neginf=-np.inf))
    return scores


class BleuStatistic:
    """Corpus BLEU as a function of item weights: of one order, or the mean of all four.

    Args:
        order: 1 to 4, or None for the mean of BLEU-1 to BLEU-4.
    """

    def __init__(self, order: int | None) -> None:
        self.order = order

    def __call__(self, *counts: ArrayLike) -> Statistic:
        """From the columns `COUNTS`, each of shape (n,), to weights (r, n) -> values (r,)."""
        columns = np.stack([np.asarray(column, dtype=np.float64) for column in counts], axis=1)
        if self.order is None:
            return SumStatistic(columns, lambda sums: corpus_bleu(sums).mean(axis=1))
        place = self.order - 1
        return SumStatistic(columns, lambda sums: corpus_bleu(sums)[:, place])
