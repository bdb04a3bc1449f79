"""Figures over several tasks at once: weighted sums of means over items, with intervals and tests clustered by image.

A backward transfer is such a sum (of each earlier task, the mean over its items of what they lost), and so are an
average over tasks, one cell of a table, and the difference of two methods in any of these. Each item is paired with
itself: what is averaged is the item's own difference, and all figures of the same items meet the same resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from medbench.errors import WorkError
from medbench.scoring.bootstrap import (
    LEVEL,
    NO_RESAMPLES,
    ONE_CLUSTER,
    RESAMPLES,
    Estimate,
    cluster_draws,
    estimate_of_draws,
)
from medbench.scoring.permutation import PERMUTATIONS, SignFlip, cluster_sums, sign_flip_test
from medbench.scoring.stats import seed_sd
from medbench.scoring.weighted import Array, SumStatistic


@dataclass(frozen=True, eq=False)
class Term:
    """One mean over items: its share in a sum.

    Attributes:
        task: terms of one task share its clusters, which are drawn together; tasks are drawn apart.
        weight: what the mean is multiplied with.
        values: [seeds, items], finite; at least one item.
        clusters: the cluster of each item, [items].
    """

    task: str
    weight: float
    values: Array
    clusters: NDArray[np.str_]


@dataclass(frozen=True)
class Figure:
    """A figure over the seeds: its estimate, and the standard deviation between them (None for one seed)."""

    estimate: Estimate
    seed_sd: float | None


@dataclass(frozen=True, eq=False)
class Contrast:
    """A weighted sum of means over items; each item is averaged over the seeds, each seed has a value of its own."""

    terms: tuple[Term, ...]

    @property
    def value(self) -> float:
        """The sum of weight times mean."""
        # Added up by cluster, as `cluster_bootstrap_mean` does it: the same figure to the last bit.
        sums = [cluster_sums(term.values.mean(axis=0), term.clusters).sum() for term in self.terms]
        return float(sum(t.weight * (s / t.values.shape[1]) for t, s in zip(self.terms, sums, strict=True)))

    @cached_property
    def by_seed(self) -> Array:
        """The value of each seed, [seeds]."""
        found: Array = np.sum([term.weight * term.values.mean(axis=1) for term in self.terms], axis=0)
        return found

    @property
    def n(self) -> int:
        """Items, of all tasks."""
        return sum(term.values.shape[1] for term in self.terms)

    @property
    def clusters(self) -> dict[str, int]:
        """How many clusters each task has."""
        return {task: len(np.unique(_clusters(own))) for task, own in self._by_task().items()}

    def minus(self, other: Contrast) -> Contrast:
        """The difference, item by item and seed by seed.

        Raises:
            WorkError: the two are not over the same items and seeds.
        """
        pairs = list(zip(self.terms, other.terms, strict=False))
        same = len(self.terms) == len(other.terms) and all(
            (a.task, a.weight) == (b.task, b.weight)
            and a.values.shape == b.values.shape
            and bool((a.clusters == b.clusters).all())
            for a, b in pairs
        )
        if not same:
            raise WorkError("two sides of a difference are not over the same items and seeds")
        return Contrast(tuple(replace(a, values=a.values - b.values) for a, b in pairs))

    def times(self, factor: float) -> Contrast:
        """The sum, each item multiplied."""
        return Contrast(tuple(replace(term, values=factor * term.values) for term in self.terms))

    def draws(self, resamples: int = RESAMPLES, seed: int = 0) -> Array:
        """The values on resampled clusters, tasks drawn apart; NaN where a term has no item. Shape (resamples,).

        The first task meets the resamples that `medbench.scoring.bootstrap` draws with this seed.
        """
        parts = [
            cluster_draws(_statistic(own), _clusters(own), resamples, seed + number)
            for number, own in enumerate(self._by_task().values())
        ]
        found: Array = np.sum(parts, axis=0)
        return found

    def figure(self, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Figure:
        """The value with its percentile interval; none where a task has fewer than two clusters."""
        return Figure(self._estimate(self.value, lambda: self.draws(resamples, seed), resamples, level), self._sd())

    def relative_to(self, whole: Contrast, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0) -> Figure:
        """The ratio of two sums over the same clusters, as a share of `whole`; undefined where that is zero.

        Between seeds: the deviation of the seeds' own ratios.
        """
        below = whole.value
        if below == 0:
            return Figure(Estimate(None, None, None, self.n, sum(self.clusters.values()), "relative to zero"), None)

        def ratios() -> Array:
            lower = whole.draws(resamples, seed)
            upper = self.draws(resamples, seed)
            return np.divide(upper, lower, out=np.full(len(upper), np.nan), where=lower != 0)

        each = [float(a / b) if b else None for a, b in zip(self.by_seed, whole.by_seed, strict=True)]
        return Figure(self._estimate(self.value / below, ratios, resamples, level), seed_sd(each))

    def share_of(self, whole: Contrast) -> Contrast:
        """The ratio of two sums over the same items as a sum itself, to first order (the delta method).

        Each item has (a - ratio * b) / b's sum, plus the ratio: its mean is the ratio of the sums, and it varies as
        that does. For sums whose weights add up to one.

        Raises:
            WorkError: the two are not over the same items and seeds. ZeroDivisionError: the whole is zero.
        """
        below = whole.value
        ratio = self.value / below
        scaled = Contrast(tuple(replace(b, values=ratio * b.values) for b in whole.terms))
        rest = self.minus(scaled)
        return Contrast(tuple(replace(term, values=term.values / below + ratio) for term in rest.terms))

    def standard_error(self, resamples: int = RESAMPLES, seed: int = 0) -> float | None:
        """The standard deviation of the bootstrap, None where a task has fewer than two clusters."""
        if min(self.clusters.values()) < 2:
            return None
        found = float(np.nanstd(self.draws(resamples, seed), ddof=1))
        return found or None

    def test(self, permutations: int = PERMUTATIONS, seed: int = 0) -> SignFlip:
        """A sign-flip test by cluster of the sum being zero (`medbench.scoring.permutation.sign_flip_test`).

        The clusters of all tasks flip apart; each item weighs as in the sum.
        """
        weighed = [self.n * t.weight / t.values.shape[1] * t.values.mean(axis=0) for t in self.terms]
        order = {task: number for number, task in enumerate(self._by_task())}
        names = [np.char.add(f"{order[t.task]}|", t.clusters.astype(str)) for t in self.terms]
        return sign_flip_test(np.concatenate(weighed), np.concatenate(names), permutations, seed)

    def _by_task(self) -> dict[str, list[Term]]:
        return {
            task: [term for term in self.terms if term.task == task]
            for task in dict.fromkeys(term.task for term in self.terms)
        }

    def _estimate(self, value: float, draws: Callable[[], Array], resamples: int, level: float) -> Estimate:
        count = self.clusters
        n, total = self.n, sum(count.values())
        if min(count.values()) < 2 or not resamples:
            reason = ONE_CLUSTER if min(count.values()) < 2 else NO_RESAMPLES
            return Estimate(value, None, None, n, total, reason)
        return estimate_of_draws(value, draws(), n, total, level)

    def _sd(self) -> float | None:
        return seed_sd([float(value) for value in self.by_seed])


def _clusters(terms: Sequence[Term]) -> NDArray[np.str_]:
    return np.concatenate([term.clusters.astype(str) for term in terms])


def _statistic(terms: Sequence[Term]) -> SumStatistic:
    """The weighted sum of the means of one task's terms, from sums over its items: a pair of columns a term."""
    columns = np.zeros((sum(term.values.shape[1] for term in terms), 2 * len(terms)))
    start = 0
    for number, term in enumerate(terms):
        rows = slice(start, start + term.values.shape[1])
        columns[rows, 2 * number] = term.values.mean(axis=0)
        columns[rows, 2 * number + 1] = 1
        start = rows.stop
    weights = np.array([term.weight for term in terms])

    def of_sums(sums: Array) -> Array:
        upper, lower = sums[:, 0::2], sums[:, 1::2]
        means = np.divide(upper, lower, out=np.full(upper.shape, np.nan), where=lower > 0)
        found: Array = means @ weights
        return found

    return SumStatistic(columns, of_sums)
