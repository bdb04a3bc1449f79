"""Which row of a column is the best, and which rows cannot be told from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medbench.files import canonical_json
from medbench.results.agreement import conditions
from medbench.results.rows import Group
from medbench.results.writing import Mark
from medbench.scoring.analytic import ALPHA
from medbench.scoring.figures import better
from medbench.scoring.measures import Measure
from medbench.scoring.paired import measure_of, same_order
from medbench.scoring.permutation import PERMUTATIONS, cluster_sums, holm, sign_flip_tests
from medbench.scoring.weighted import Array

#: Random sign patterns for each test of a column, so that p can fall far enough below 5 % after the correction.
_PATTERNS_A_TEST = 100


@dataclass(frozen=True)
class Standing:
    """How a row stands in its column.

    Attributes:
        mark: `best`, `tie` for a row that is not separable from the best, None for one that is.
        p: of the sign-flip test against the best, corrected (Holm); None of the best itself.
    """

    mark: Mark | None
    p: float | None


def standings(rows: Mapping[int, tuple[Group, Sequence[pd.DataFrame]]], metric: str) -> dict[int, Standing] | None:
    """The best rows of a column, and which others are not separable from them.

    Rows are compared among those that share their conditions (`medbench.results.agreement.conditions`: budget, training
    data, test data, backbone). Only sighted rows that stand under one budget take part, and only where there are two or
    more. Every pair of rows is tested by sign flips of whole clusters on the same items, each averaged over the row's
    seeds, and Holm's correction is over all pairs of the column: not over the comparisons with the best alone, because
    which row is the best was read from the same figures (of ten equal methods that would separate some in an eighth of
    all columns, simulated with normal scores, instead of in at most 5 %).

    Args:
        rows: number -> the row's runs, and their score tables of the column's task, one a seed.
        metric: the column's metric.

    Returns:
        The standings of the rows that took part; None where the metric is no mean over items and there is no test.

    Raises:
        WorkError: rows of the same data digests have other items.
    """
    lead = next(iter(rows.values()))[1][0]
    task, measure = str(lead["task"].iloc[0]), measure_of(lead, metric)
    if measure.statistic is not None or not better(metric):
        return None
    blocks: dict[str, list[int]] = {}
    for number, (group, _) in rows.items():
        if takes_part(group):
            blocks.setdefault(canonical_json(conditions(group, task)), []).append(number)
    values = {
        number: row
        for block in blocks.values()
        if len(block) > 1
        for number, row in item_values({number: rows[number][1] for number in block}, measure).items()
    }
    return judged([block for block in blocks.values() if block[0] in values], values, better(metric))


def takes_part(group: Group) -> bool:
    """Whether a row is compared with others: sighted, and under one budget with them."""
    _, record = next(iter(group.values()))
    return bool(record["parameters"]["comparable"]) and not record["spec"].get("blind")


@dataclass(frozen=True)
class ItemValues:
    """A row's value of each item, and the item's cluster; shape (n,) each."""

    items: Array
    clusters: NDArray[np.object_]


def item_values(block: Mapping[int, Sequence[pd.DataFrame]], measure: Measure) -> dict[int, ItemValues]:
    """The items of each row of a block, in one order: those that all rows can use."""
    lead = next(iter(block.values()))
    tables = {number: same_order(lead, own)[1] for number, own in block.items()}
    used = np.logical_and.reduce([measure.usable(own) for own in tables.values()])
    clusters = same_order(lead, lead)[0][0].loc[used, "cluster"].to_numpy(dtype=object)
    return {number: ItemValues(measure.means(own, used), clusters) for number, own in tables.items()}


def judged(
    blocks: Sequence[list[int]], values: Mapping[int, ItemValues], sign: int, permutations: int = PERMUTATIONS
) -> dict[int, Standing]:
    """The standings within blocks of rows that have the same items.

    Args:
        blocks: the rows' numbers, rising in each block.
        values: of every row.
        sign: 1 where a higher value is better, -1 where a lower one is.
        permutations: random sign patterns for each test, or more where there are many tests.
    """
    pairs = [pair for block in blocks for pair in combinations(block, 2)]
    permutations = max(permutations, _PATTERNS_A_TEST * len(pairs))
    found: list[float] = []
    for block in blocks:
        apart = [
            cluster_sums(values[one].items - values[two].items, values[one].clusters)
            for one, two in combinations(block, 2)
        ]
        found += [flip.p for flip in sign_flip_tests(np.stack(apart), permutations)]
    corrected = dict(zip(pairs, holm(found), strict=True))
    standing: dict[int, Standing] = {}
    for block in blocks:
        best = max(block, key=lambda number: sign * values[number].items.mean())  # the first of equal ones
        for number in block:
            p = None if number == best else corrected[min(number, best), max(number, best)]
            mark: Mark | None = "best" if p is None else ("tie" if p > ALPHA else None)
            standing[number] = Standing(mark, p)
    return standing
