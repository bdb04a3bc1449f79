"""How a figure is read: which way is better, and in what unit it is shown."""

from __future__ import annotations

LOWER_IS_BETTER = frozenset({"ece", "unparseable_share", "finding_hallucination", "hallucinating_share", "empty_share"})
#: Of these more is neither better nor worse.
NEITHER_IS_BETTER = frozenset({"yes_share"})
#: These are no fractions, so they are not shown in percent.
UNBOUNDED = frozenset({"cider_d"})


def better(metric: str) -> int:
    """1 where a higher value is the better one, -1 where a lower one is, 0 where neither is."""
    if metric in NEITHER_IS_BETTER:
        return 0
    return -1 if metric in LOWER_IS_BETTER else 1


def scale_of(metric: str) -> float:
    """What a value is multiplied with to be shown: 100 for a fraction, in percent, 1 for what is none.

    Example:
        >>> scale_of("accuracy"), scale_of("cider_d")
        (100.0, 1.0)
    """
    return 1.0 if metric in UNBOUNDED else 100.0
