"""Kinds of task: how an item is scored, and which figures a task has; the card's `metadata.kind` says which it is.

A score family is a module with `MEASURES` (its figures), `METRICS` (their names) and `score`; a new kind is one module
and one line here. Modules are imported when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import pandas as pd

from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.scoring.bootstrap import LEVEL, RESAMPLES, Estimate
from medbench.scoring.measures import Measure, estimate_measures
from medbench.scoring.profiles import Profile

FAMILIES = {
    "vqa": "medbench.scoring.vqa_figures",
    "hallucination": "medbench.scoring.yesno",
    "report": "medbench.scoring.report",
    "classification": "medbench.scoring.classification",
}
"""Kind -> the module of its score family."""


class Family(Protocol):
    """What the module of a score family offers.

    It may also have `COLUMNS`, what its score tables hold for each item beside `ITEM_COLUMNS`, numbers but for those
    that `TEXTS` names: then stored scores without them are refused as broken; `about(tables)`, what else a record says
    of a task; `PROFILES`, where not all profiles have a rule for it; and `plugin_measures(columns)`, the figures of
    optional scorers: then `score` also takes them, as `plugins`. Of a kind whose cards name classes, `score` also takes
    `classes` and `positive`.
    """

    METRICS: Sequence[str]
    MEASURES: dict[str, Measure]

    def score(self, items: pd.DataFrame, profile: str | Profile = "medbench") -> pd.DataFrame:
        """From `medbench.scoring.predictions.gold_table` to one row an item: id, cluster, type, profile and scores."""
        ...


def get_family(kind: str) -> Family:
    """The score family of a kind of task.

    Raises:
        RequestError: there is none of this name, or it is not written yet.
    """
    if kind not in kinds():
        raise RequestError(f"tasks of kind {kind!r} cannot be scored; {did_you_mean(kind, kinds())}")
    return cast(Family, import_module(FAMILIES[kind]))


def kinds() -> list[str]:
    """The kinds of task that can be scored."""
    return [kind for kind, module in FAMILIES.items() if find_spec(module) is not None]


def kind_of(table: pd.DataFrame) -> str:
    """The kind of a task's score table; those of before there were kinds are of VQA."""
    found = table["kind"].dropna().unique().tolist() if "kind" in table else []
    return str(found[0]) if found else "vqa"


def known_names() -> tuple[str, ...]:
    """The names of all figures of all kinds, each once."""
    return tuple(dict.fromkeys(name for kind in kinds() for name in get_family(kind).METRICS))


def measures_of(table: pd.DataFrame, kind: str | None = None) -> dict[str, Measure]:
    """The figures of a score table: those of its kind, and of the optional scorers whose columns it has."""
    family = get_family(kind or kind_of(table))
    found = dict(family.MEASURES)
    if hasattr(family, "plugin_measures"):
        found |= family.plugin_measures(list(table.columns))
    return found


def estimate_kind(
    kind: str,
    tables: Sequence[pd.DataFrame],
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
    only: Collection[str] | None = None,
) -> dict[str, Estimate]:
    """The figures of a kind of task with their intervals, from one score table a seed.

    Clusters (images, studies, patients) are resampled. What is no mean over items (`auroc`, `ece`, corpus BLEU) is
    computed a seed at a time from a resample's sums, and averaged.

    Args:
        kind: of `kinds`.
        tables: One score table a seed, in any order of the rows. Of optional scorers, those that all tables have count.
        resamples: How many resamples.
        level: Coverage of the intervals.
        seed: Seed of the draws.
        only: The figures wanted, those that the kind does not have left out; None for all.

    Returns:
        Name -> estimate; items that a figure cannot use are counted in its `left_out`.

    Raises:
        WorkError: No table, or they differ in items, clusters, types, profile, or in which scores are defined.
    """
    if not tables:
        raise WorkError("no score table")
    first, *others = tables
    shared = [column for column in first.columns if all(column in other for other in others)]
    measures = {
        name: measure for name, measure in measures_of(first[shared], kind).items() if only is None or name in only
    }
    return estimate_measures(measures, tables, {"resamples": resamples, "level": level, "seed": seed})
