"""Kinds of task: how an item is scored, and which figures a task has; the card's `metadata.kind` says which it is.

A score family is a module with `METRICS` (the names of its figures), `score` and `estimate`; a new kind is one module
and one line here. Modules are imported when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

import pandas as pd

from medbench.errors import RequestError, did_you_mean
from medbench.scoring.bootstrap import Estimate
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
    that `TEXTS` names: then stored scores without them are refused as broken; `MEASURES`, its figures as
    `medbench.scoring.measures` describes them; `about(tables)`, what else a record says of a task; `PROFILES`, where
    not all profiles have a rule for it; and `plugin_measures(columns)`, the figures of optional scorers: then `score`
    also takes them, as `plugins`. Of a kind whose cards name classes, `score` also takes `classes` and `positive`.
    """

    METRICS: Sequence[str]

    def score(self, items: pd.DataFrame, profile: str | Profile = "medbench") -> pd.DataFrame:
        """From `medbench.scoring.predictions.gold_table` to one row an item: id, cluster, type, profile and scores."""
        ...

    def estimate(self, tables: Sequence[pd.DataFrame], resamples: int, level: float, seed: int) -> dict[str, Estimate]:
        """All of `METRICS` with their intervals, from one score table a seed."""
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
