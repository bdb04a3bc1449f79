"""ROUGE-1, ROUGE-2 and ROUGE-L of reports: the F-measure of the package `rouge-score`, without its stemmer.

Lin, ROUGE: a package for automatic evaluation of summaries (2004). The package cuts a text into runs of ASCII letters
and digits, so text in another script has no words and scores 0. Its table for the longest common subsequence is filled
in Python; for very long pairs the same length is had from a bit-parallel recurrence (Hyyro, 2004), in bounded memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

NAMES = ("rouge_1", "rouge_2", "rouge_l")
_TABLE = 100_000  # cells up to which the package fills its own table


def rouge(gold: str, prediction: str) -> dict[str, float]:
    """The three F-measures of one report.

    Example:
        >>> found = rouge("The lungs are clear.", "Lungs clear.")
        >>> [round(found[name], 3) for name in ("rouge_1", "rouge_2", "rouge_l")]
        [0.667, 0.0, 0.667]
    """
    from rouge_score.tokenize import tokenize

    wanted, given = (tokenize(text, None) for text in (gold, prediction))
    if len(wanted) * len(given) <= _TABLE:
        scored = _scorer().score(gold, prediction)
        found = {name: scored[theirs].fmeasure for name, theirs in zip(NAMES, _TYPES, strict=True)}
    else:
        scored = _scorer(short=True).score(gold, prediction)
        found = {name: scored[theirs].fmeasure for name, theirs in zip(NAMES[:2], _TYPES, strict=False)}
        found["rouge_l"] = 2 * common_length(wanted, given) / (len(wanted) + len(given))
    return {name: float(value) for name, value in found.items()}


def common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence of two lists of words.

    Example:
        >>> common_length("the heart is normal".split(), "the big heart is not normal".split())
        4
    """
    places: dict[str, int] = defaultdict(int)
    for place, word in enumerate(first):
        places[word] |= 1 << place
    full = (1 << len(first)) - 1
    state = full
    for word in second:
        if word in places:
            met = state & places[word]
            state = ((state + met) | (state - met)) & full
    return len(first) - state.bit_count()


_TYPES = ("rouge1", "rouge2", "rougeL")


@lru_cache(maxsize=2)
def _scorer(short: bool = False) -> Any:
    # Imported on first use: it brings NLTK, which takes seconds.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_TYPES[:2] if short else _TYPES), use_stemmer=False)
