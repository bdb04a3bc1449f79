"""Two sides that answered the same items: each side's figure, and their difference, item by item.

Both sides and the difference meet the same resamples of clusters, so what makes an item hard for both cancels: the
interval of the difference is that of a paired comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medbench.errors import WorkError
from medbench.scoring.bootstrap import LEVEL, RESAMPLES, Estimate, cluster_bootstrap, cluster_bootstrap_mean
from medbench.scoring.stats import STATISTICS, mean_over_seeds
from medbench.scoring.vqa import METRICS, PROBABILITY_METRICS
from medbench.scoring.weighted import Array, Statistic

Tables = Sequence[pd.DataFrame]


@dataclass(frozen=True)
class Paired:
    """The figures of two sides over the items that both can use, and `difference`, first less second."""

    first: Estimate
    second: Estimate
    difference: Estimate


def estimate_paired(
    first: Tables, second: Tables, metric: str, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> Paired:
    """A metric of two sides over the same items, and its difference.

    Args:
        first: One score table (`medbench.scoring.vqa.score_table`) a seed, in any order of the rows.
        second: The same for the other side; it may have another number of seeds.
        metric: Of `METRICS` or `PROBABILITY_METRICS`.
        resamples: How many resamples.
        level: Coverage of the intervals.
        seed: Seed of the draws.

    Returns:
        Scores are averaged over the seeds, each item by itself (`auroc` and `ece`: the metric, in each resample),
        then clusters are resampled. As in `estimate_metrics`, intervals are conditional on the seeds.

    Raises:
        WorkError: The sides, or the seeds of one, differ in items, clusters, types, profile, or in which scores
            are defined.
    """
    one, two = _same_order(first, second)
    boot: dict[str, Any] = {"resamples": resamples, "level": level, "seed": seed}
    if metric in METRICS:
        kind, column = METRICS[metric]
        sides = [mean_over_seeds(side) for side in (one, two)]
        used = (sides[0]["type"] == kind) & sides[0][column].notna() & sides[1][column].notna()
        return _of_means([side.loc[used, column].to_numpy() for side in sides], one[0].loc[used, "cluster"], kind, boot)
    score, outcome = PROBABILITY_METRICS[metric]
    used = one[0]["type"] == "closed"
    for table in (*one, *two):
        used &= table[[score, outcome]].notna().all(axis=1)
    clusters = one[0].loc[used, "cluster"]
    if metric not in STATISTICS:
        means = [np.mean([table.loc[used, outcome] for table in side], axis=0) for side in (one, two)]
        return _of_means(means, clusters, "closed", boot)
    make = STATISTICS[metric]
    made = [[make(table.loc[used, score], table.loc[used, outcome]) for table in side] for side in (one, two)]

    def mean(side: int, weights: Array) -> Array:
        return np.mean([statistic(weights) for statistic in made[side]], axis=0)

    def difference(weights: Array) -> Array:
        return mean(0, weights) - mean(1, weights)

    wanted: list[Statistic] = [partial(mean, 0), partial(mean, 1), difference]
    why = "all items have the same gold answer"
    return Paired(*(cluster_bootstrap(statistic, clusters, undefined=why, **boot) for statistic in wanted))


def _of_means(values: Sequence[Array], clusters: ArrayLike, kind: str, boot: dict[str, Any]) -> Paired:
    one, two = values
    why = f"no {kind} items that both sides can use"
    return Paired(*(cluster_bootstrap_mean(v, clusters, empty=why, **boot) for v in (one, two, one - two)))


def _same_order(first: Tables, second: Tables) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    """All tables with their rows in the order of the first one."""
    lead = first[0].reset_index(drop=True)
    ids = list(lead["id"])
    for table in (*first, *second):
        if len(table) != len(ids) or set(table["id"]) != set(ids):
            raise WorkError(f"the two sides have different items: {len(ids)} and {len(table)} rows, not all the same")
    one, two = ([table.set_index("id").loc[ids].reset_index() for table in side] for side in (first, second))
    for column in ("cluster", "type", "profile"):
        differ = int((two[0][column].to_numpy() != lead[column].to_numpy()).sum())
        if differ:
            raise WorkError(f"the two sides differ in the {column} of {differ} of {len(ids)} items")
    return one, two
