"""From per-item score tables, one a seed, to the figures of a record.

Each item is averaged over the seeds, then clusters are resampled (`medbench.scoring.bootstrap`): an interval
is conditional on the seeds, and `seed_sd` is printed beside it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypedDict

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medbench.errors import WorkError
from medbench.scoring.bootstrap import (
    LEVEL,
    RESAMPLES,
    Estimate,
    cluster_bootstrap,
    cluster_bootstrap_mean,
)
from medbench.scoring.profiles import KEYS
from medbench.scoring.vqa import ITEM_COLUMNS, METRICS, PROBABILITY_METRICS
from medbench.scoring.weighted import Array, Statistic, auroc_statistic, ece_statistic

__all__ = [
    "Estimate",
    "cluster_bootstrap",
    "cluster_bootstrap_mean",
    "estimate_metrics",
    "mean_over_seeds",
    "metric_values",
    "seed_sd",
]

STATISTICS: dict[str, Callable[[ArrayLike, ArrayLike], Statistic]] = {
    "auroc": auroc_statistic,
    "ece": ece_statistic,
}


class _Settings(TypedDict):
    resamples: int
    level: float
    seed: int


def mean_over_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average each item's scores over the seeds.

    The columns of `medbench.scoring.vqa.score_table` that probability metrics need are left out: the AUROC of
    mean probabilities is that of an ensemble. `estimate_metrics` averages those metrics instead.

    Args:
        tables: One score table a seed, in any order of the rows.

    Returns:
        A score table in the order of the first one.

    Raises:
        WorkError: No table, or they differ in items, clusters, types, profile, or in which scores are
            defined.
    """
    aligned = _aligned(tables)
    stacked = np.stack([table[list(KEYS)].to_numpy(dtype=np.float64) for table in aligned])
    gaps = np.isnan(stacked)
    if (gaps != gaps[0]).any():
        raise WorkError("the seeds differ in which scores of an item are defined")
    mean = aligned[0][list(ITEM_COLUMNS)].copy()
    mean[list(KEYS)] = stacked.mean(axis=0)
    return mean


def seed_sd(per_seed_values: Sequence[float | None]) -> float | None:
    """Standard deviation (n - 1) of a figure between seeds; None for under two seeds or an undefined one.

    Example:
        >>> seed_sd([0.5, 0.7]), seed_sd([0.5])
        (0.14142135623730948, None)
    """
    values = [value for value in per_seed_values if value is not None and not math.isnan(value)]
    if len(values) < 2 or len(values) < len(per_seed_values):
        return None
    return float(np.std(values, ddof=1))


def metric_values(table: pd.DataFrame) -> dict[str, float | None]:
    """The figures of one seed's score table without intervals, for `seed_sd`."""
    return {name: estimate.value for name, estimate in estimate_metrics([table], resamples=0).items()}


def estimate_metrics(
    tables: Sequence[pd.DataFrame], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, Estimate]:
    """All figures of a VQA task over its seeds.

    Args:
        tables: One score table (`medbench.scoring.vqa.score_table`) a seed, in any order of the rows.
        resamples: How many resamples.
        level: Coverage of the intervals.
        seed: Seed of the draws.

    Returns:
        Metric name -> estimate, for all of `METRICS` and `PROBABILITY_METRICS`. The latter are over the closed
        items that every seed can use; the others are counted in `left_out`. `auroc` and `ece` are computed a
        seed at a time and averaged, in each resample too; `choice_accuracy` is a mean over items.

    Raises:
        WorkError: As `mean_over_seeds`.
    """
    settings: _Settings = {"resamples": resamples, "level": level, "seed": seed}
    aligned = _aligned(tables)
    mean = mean_over_seeds(aligned)
    found: dict[str, Estimate] = {}
    for name, (kind, column) in METRICS.items():
        items = mean[mean["type"] == kind]
        used = items[items[column].notna()]
        why = f"profile has no {column} for {kind} items" if len(items) else f"no {kind} items"
        found[name] = cluster_bootstrap_mean(used[column], used["cluster"], empty=why, **settings)
    for name in PROBABILITY_METRICS:
        found[name] = _estimate_probability_metric(name, aligned, settings)
    return found


def _estimate_probability_metric(name: str, aligned: list[pd.DataFrame], settings: _Settings) -> Estimate:
    score, outcome = PROBABILITY_METRICS[name]
    closed = (aligned[0]["type"] == "closed").to_numpy()
    usable = closed.copy()
    for table in aligned:
        usable &= table[[score, outcome]].notna().all(axis=1).to_numpy()
    clusters = aligned[0].loc[usable, "cluster"]
    empty = "no closed item has the probabilities it needs" if closed.any() else "no closed items"
    if name in STATISTICS:
        statistic = _mean_statistic(
            [STATISTICS[name](table.loc[usable, score], table.loc[usable, outcome]) for table in aligned]
        )
        why = "all items have the same gold answer"
        estimate = cluster_bootstrap(statistic, clusters, empty=empty, undefined=why, **settings)
    else:
        values = np.mean([table.loc[usable, outcome].to_numpy(dtype=np.float64) for table in aligned], axis=0)
        estimate = cluster_bootstrap_mean(values, clusters, empty=empty, **settings)
    return replace(estimate, left_out=int(closed.sum() - usable.sum()))


def _mean_statistic(statistics: list[Statistic]) -> Statistic:
    """The mean of several statistics of the same items under the same weights."""

    def mean(weights: Array) -> Array:
        total = statistics[0](weights)
        for statistic in statistics[1:]:
            total = total + statistic(weights)
        return total / len(statistics)

    return mean


def _aligned(tables: Sequence[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables with their rows in the order of the first, checked to be of the same items and profile."""
    if not tables:
        raise WorkError("no score table")
    first = tables[0].reset_index(drop=True)
    aligned = [first]
    for number, table in enumerate(tables[1:], start=2):
        known, other = set(first["id"]), set(table["id"])
        if known != other or len(first) != len(table):
            raise WorkError(
                f"seeds 1 and {number} have different items: {len(first)} and {len(table)} rows, "
                f"{len(known - other)} ids only in the first, {len(other - known)} only in the other"
            )
        ordered = table.set_index("id").loc[list(first["id"])].reset_index()
        for column in ("cluster", "type", "profile"):
            differ = int((ordered[column].to_numpy() != first[column].to_numpy()).sum())
            if differ:
                raise WorkError(f"seeds 1 and {number} differ in the {column} of {differ} of {len(first)} items")
        aligned.append(ordered)
    return aligned
