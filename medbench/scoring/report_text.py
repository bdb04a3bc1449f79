"""How a report is cut into words for BLEU, METEOR and CIDEr-D, and its n-grams.

ROUGE is cut by `rouge-score` itself: runs of ASCII letters and digits, lower-cased.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

ORDERS = (1, 2, 3, 4)
"""Lengths of n-grams."""

TOKENS = "lower-cased, '.' split off, cut at spaces"
"""The tokenisation, as a record names it."""


def words(text: str) -> list[str]:
    """A report's words: lower-cased, full stops split off, cut at white space; the same as R2Gen's " ." convention.

    Other punctuation stays where it is. A text without a letter or digit ("", ".", "...") has no words at all: it
    scores 0 in every metric, rather than something for a full stop that the reference has too.

    Example:
        >>> words("The lungs are clear. No effusion.")
        ['the', 'lungs', 'are', 'clear', '.', 'no', 'effusion', '.']
        >>> words(".")
        []
    """
    if not any(map(str.isalnum, text)):
        return []
    return text.lower().replace(".", " .").split()


def ngrams(tokens: Sequence[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each n-gram occurs.

    Example:
        >>> ngrams(["no", "no", "no"], 2)
        Counter({('no', 'no'): 2})
    """
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))
