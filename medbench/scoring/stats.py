"""From per-item score tables, one a seed, to the figures of a record.

Each item is averaged over the seeds, then clusters are resampled (`medbench.scoring.bootstrap`): an interval
is conditional on the seeds, and `seed_sd` is printed beside it.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from medbench.errors import WorkError
from medbench.scoring.bootstrap import (
    LEVEL,
    RESAMPLES,
    Estimate,
    cluster_bootstrap,
    cluster_bootstrap_mean,
)
from medbench.scoring.kinds import estimate_kind, kind_of

__all__ = [
    "RESAMPLES",
    "Estimate",
    "cluster_bootstrap",
    "cluster_bootstrap_mean",
    "estimate_metrics",
    "metric_values",
    "seed_sd",
]


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


def metric_values(table: pd.DataFrame, only: Collection[str] | None = None) -> dict[str, float | None]:
    """The figures of one seed's score table without intervals, for `seed_sd`."""
    return {name: estimate.value for name, estimate in estimate_metrics([table], resamples=0, only=only).items()}


def estimate_metrics(
    tables: Sequence[pd.DataFrame],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> dict[str, Estimate]:
    """All figures of a task over its seeds, as its kind has them (`medbench.scoring.kinds`).

    Args:
        tables: One score table a seed, in any order of the rows; their column `kind` says which figures they have,
            and without one they are of kind `vqa` (`medbench.scoring.vqa.score_table`).
        resamples: How many resamples.
        level: Coverage of the intervals.
        seed: Seed of the draws.
        only: The figures wanted, those that the task does not have left out; None for all.

    Returns:
        Metric name -> estimate. Items that a figure cannot use are counted in its `left_out`. What is no mean over
        items (`auroc`, `ece`, `f1`) is computed a seed at a time and averaged, in each resample too.

    Raises:
        WorkError: No table, or they differ in items, clusters, types, profile, or in which scores are defined.
    """
    if not tables:
        raise WorkError("no score table")
    return estimate_kind(kind_of(tables[0]), tables, resamples, level, seed, only)
