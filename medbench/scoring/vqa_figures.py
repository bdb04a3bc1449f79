"""The figures of kind `vqa`: closed accuracy, open recall and what else `medbench.scoring.vqa` scores an item by."""

from __future__ import annotations

from collections.abc import Callable

from medbench.scoring.measures import Measure
from medbench.scoring.profiles import KEYS
from medbench.scoring.vqa import METRICS as MEANS
from medbench.scoring.vqa import PROBABILITY_COLUMNS, PROBABILITY_METRICS, score_table
from medbench.scoring.weighted import Statistic, auroc_statistic, ece_statistic

_STATISTICS: dict[str, Callable[..., Statistic]] = {"auroc": auroc_statistic, "ece": ece_statistic}
MEASURES: dict[str, Measure] = {
    name: Measure(kind, (column,), f"profile has no {column} for {kind} items", counted=False)
    for name, (kind, column) in MEANS.items()
} | {
    name: Measure("closed", columns, "no closed item has the probabilities it needs", _STATISTICS.get(name))
    for name, columns in PROBABILITY_METRICS.items()
}
METRICS = tuple(MEASURES)
COLUMNS = (*KEYS, *PROBABILITY_COLUMNS)
score = score_table
