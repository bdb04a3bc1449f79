"""The figures of kind `vqa`: closed accuracy, open recall and what else `medbench.scoring.vqa` scores an item by."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from medbench.scoring.bootstrap import LEVEL, RESAMPLES, Estimate
from medbench.scoring.measures import Measure, aligned, estimate_measures
from medbench.scoring.profiles import KEYS
from medbench.scoring.stats import STATISTICS, mean_over_seeds
from medbench.scoring.vqa import METRICS as MEANS
from medbench.scoring.vqa import PROBABILITY_COLUMNS, PROBABILITY_METRICS, score_table

MEASURES: dict[str, Measure] = {
    name: Measure(kind, (column,), f"profile has no {column} for {kind} items", counted=False)
    for name, (kind, column) in MEANS.items()
} | {
    name: Measure("closed", columns, "no closed item has the probabilities it needs", STATISTICS.get(name))
    for name, columns in PROBABILITY_METRICS.items()
}
METRICS = tuple(MEASURES)
COLUMNS = (*KEYS, *PROBABILITY_COLUMNS)
score = score_table


def estimate(
    tables: Sequence[pd.DataFrame], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = 0
) -> dict[str, Estimate]:
    """See `medbench.scoring.stats.estimate_metrics`.

    Raises:
        WorkError: as `mean_over_seeds`.
    """
    same = aligned(tables)
    mean_over_seeds(same)  # that all seeds define the same scores
    return estimate_measures(MEASURES, same, {"resamples": resamples, "level": level, "seed": seed})
