"""Two tests of a claim's line that must both speak, and what they could have found.

Would other images say so? Sign flips of whole images (`medbench.scoring.contrasts.Contrast.test`). Would other seeds?
A t test. Two or three seeds of one line say little about how much seeds differ, so the deviation is that of all rows
of the same grids: what is left of rows x seeds when the mean of each row and of each seed is taken away, of
(rows - 1) (seeds - 1) degrees of freedom. Lines share rows, so their own deviations would not be independent, and
pooling them would promise more than there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, norm
from scipy.stats import t as student

from medbench.errors import RequestError
from medbench.results.claim_rows import Measured
from medbench.scoring.analytic import ALPHA, POWER
from medbench.scoring.bootstrap import RESAMPLES
from medbench.scoring.weighted import Array

#: Points at which the distribution of a deviation that was itself estimated is looked at.
_POINTS = 400
#: More than so many items or seeds are not looked for.
_MOST = 10**9


@dataclass(frozen=True)
class Deviation:
    """How much a row differs between seeds: the variance, and the degrees of freedom that it is known with."""

    variance: float
    freedom: int


@dataclass(frozen=True)
class LineTests:
    """The tests of a line.

    Attributes:
        p: of the sign flips.
        p_seeds: of the t test; None where no row has two seeds.
        se: what other images would make of the effect; None where it is not known.
        se_seeds: what other seeds would.
        freedom: of the t test.
        seeds: how many there are.
    """

    p: float
    p_seeds: float | None
    se: float | None
    se_seeds: float
    freedom: int
    seeds: int


def deviation(lines: Iterable[Measured]) -> Deviation:
    """The deviation between seeds of the rows of some lines, each row of each group once.

    Example:
        >>> rows = {"a": np.array([0.1, 0.3]), "b": np.array([0.1, 0.1]), "c": np.array([0.2, 0.2])}
        >>> found = deviation([Measured("line", seeds=(0, 1), levels={"grid": rows})])
        >>> round(found.variance, 4), found.freedom  # [[-.1, .1], [0, 0], [0, 0]] less the seeds' means
        (0.0067, 2)
    """
    most: dict[tuple[str, str], tuple[tuple[int, ...], Array]] = {}  # a row once, with the most seeds that a line has
    for one in lines:
        for name, levels in one.levels.items():
            for row, values in levels.items():
                known, _ = most.get((name, row), ((), values))
                if len(one.seeds) > len(known):
                    most[name, row] = (one.seeds, values)
    groups: dict[tuple[str, tuple[int, ...]], dict[str, Array]] = {}
    for (name, row), (seeds, values) in most.items():
        groups.setdefault((name, seeds), {})[row] = values
    squares, freedom = 0.0, 0
    for (_, seeds), rows in groups.items():
        if len(seeds) < 2:
            continue
        table = np.stack(list(rows.values()))
        rest = table - table.mean(axis=1, keepdims=True)
        if len(rows) > 1:  # what is the same for all rows of a seed is in no difference of rows
            rest = rest - rest.mean(axis=0, keepdims=True)
        squares += float((rest**2).sum())
        freedom += max(len(rows) - 1, 1) * (len(seeds) - 1)
    return Deviation(squares / freedom if freedom else 0.0, freedom)


def both_tests(one: Measured, between: Deviation, resamples: int = RESAMPLES) -> LineTests:
    """Both tests of a line that has runs."""
    assert one.contrast is not None
    p = one.p if one.p is not None else one.contrast.test().p
    se_seeds = math.sqrt(between.variance * one.spread / len(one.seeds))
    p_seeds = None
    if between.freedom:
        p_seeds = 2 * float(student.sf(abs(one.contrast.value) / se_seeds, between.freedom)) if se_seeds else 0.0
    return LineTests(p, p_seeds, one.contrast.standard_error(resamples), se_seeds, between.freedom, len(one.seeds))


def power(effect: float, se: float, se_seeds: float, freedom: float, alpha: float = ALPHA) -> float:
    """The probability that both two-sided tests of level `alpha` find a true effect.

    The effect that is measured is normal about the true one, with the variance that other images and other seeds make;
    it must be beyond what each test asks for. The deviation between seeds is itself an estimate, with a chi-square
    distribution of `freedom` degrees of freedom.

    Example:
        >>> round(power(0.028, 0.01, 0.0, 0), 2), round(power(0.028, 0.0, 0.01, 2), 2)
        (0.8, 0.35)
    """
    bars = np.array([norm.isf(alpha / 2) * se])
    if freedom and se_seeds:
        shares = (np.arange(_POINTS) + 0.5) / _POINTS
        estimated = se_seeds * np.sqrt(chi2.ppf(shares, freedom) / freedom)
        bars = np.maximum(bars, student.isf(alpha / 2, freedom) * estimated)
    total = math.hypot(se, se_seeds)
    if not total:
        return 1.0 if effect else 0.0
    return float(np.mean(norm.sf((bars - effect) / total) + norm.cdf((-bars - effect) / total)))


def detectable_effect(test: LineTests, alpha: float = ALPHA) -> float | None:
    """The smallest true effect that both tests find with probability 0.8; None where that is not known."""
    if test.se is None:
        return None
    se = test.se
    low, high = 0.0, math.hypot(se, test.se_seeds)
    while power(high, se, test.se_seeds, test.freedom, alpha) < POWER:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        enough = power(middle, se, test.se_seeds, test.freedom, alpha) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def needed_items(n: int, test: LineTests, gap: float, alpha: float = ALPHA) -> float:
    """About how many items would show a gap with probability 0.8, if further ones differed as these n do.

    More items do not make the seeds agree: infinite where these seeds alone differ too much.

    Example:
        >>> round(needed_items(1000, LineTests(0.5, None, 0.01, 0.0, 0, 2), 0.014), -1)
        4000.0
    """
    if not gap:
        raise RequestError("no number of items shows a gap of zero")
    assert test.se is not None
    se = test.se * math.sqrt(n)
    return _fewest(lambda count: power(abs(gap), se / math.sqrt(count), test.se_seeds, test.freedom, alpha))


def needed_seeds(test: LineTests, gap: float, alpha: float = ALPHA) -> float:
    """About how many seeds would show a gap with probability 0.8, with items without end."""
    one, each = test.se_seeds * math.sqrt(test.seeds), test.freedom / max(test.seeds - 1, 1)
    return _fewest(lambda count: power(abs(gap), 0.0, one / math.sqrt(count), each * max(count - 1, 1), alpha))


def _fewest(chance: Callable[[float], float]) -> float:
    """The smallest whole number at which a chance that rises is high enough; infinite where there is none."""
    high = 2
    while chance(high) < POWER:
        high *= 2
        if high > _MOST:
            return math.inf
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= POWER else (middle, high)
    return float(high)
