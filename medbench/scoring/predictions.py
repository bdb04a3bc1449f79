"""Scores stored predictions: joins them with the data's gold answers. Needs the data, but no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from medbench.data.card import Card
from medbench.data.item import Item
from medbench.errors import RequestError
from medbench.scoring.kinds import get_family
from medbench.scoring.profiles import Profile

if TYPE_CHECKING:
    from medbench.scoring.report_plugins import Requested

COLUMNS = ("id", "prediction")


def gold_table(task: str, items: Sequence[Item], predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions joined with what the data says of each item: cluster, type, gold, options, question type.

    Args:
        task: named in errors.
        items: all the items that must be answered.
        predictions: columns id, prediction and optionally probabilities.

    Raises:
        RequestError: a column is missing, or the ids are not those of the items; counts them, names the first.
    """
    for column in COLUMNS:
        if column not in predictions:
            there = ", ".join(map(str, predictions.columns))
            raise RequestError(f"task {task}: predictions need a column {column!r}; there are {there}")
    known = {item.id: item for item in items}
    ids = [str(value) for value in predictions["id"]]
    said = Counter(ids)
    wrong = {
        "missing": [i for i in known if i not in said],
        "unknown": [i for i in said if i not in known],
        "duplicate": [i for i, times in said.items() if times > 1],
    }
    if any(wrong.values()):
        counted = [f"{len(found)} {kind}{_first(found)}" for kind, found in wrong.items()]
        raise RequestError(f"task {task}: the predictions do not fit the {len(known)} items: {', '.join(counted)} ids")
    rows = [known[i] for i in ids]
    options: Any = [item.options for item in rows]
    return predictions.assign(
        id=ids,
        cluster=[item.cluster for item in rows],
        type=[item.type for item in rows],
        gold=[item.answer for item in rows],
        options=options,
        question_type=[item.question_type for item in rows],
    ).reset_index(drop=True)


def _first(ids: Sequence[str], shown: int = 3) -> str:
    """The first few ids in parentheses, long ones cut; nothing for none."""
    named = [repr(i if len(i) <= 40 else f"{i[:40]}...") for i in ids[:shown]]
    return f" ({', '.join([*named, '...'] if len(ids) > shown else named)})" if ids else ""


def scoring_of(card: Card) -> dict[str, Any]:
    """What `score_task` must know of a card, as its keywords."""
    about = card.metadata
    return {"kind": about.kind, "classes": tuple(about.classes), "positive": about.positive}


def score_task(
    task: str,
    split: str,
    items: Sequence[Item],
    predictions: pd.DataFrame,
    profile: str | Profile = "medbench",
    kind: str = "vqa",
    plugins: Sequence[Requested] = (),
    classes: Sequence[str] = (),
    positive: str | None = None,
) -> pd.DataFrame:
    """The score table of one task's predictions, with columns task, split and kind in front.

    Args:
        task: its name.
        split: of the items.
        items: all the items that must be answered.
        predictions: as for `gold_table`.
        profile: a scoring profile, or its name.
        kind: of the task, as its card has it.
        plugins: further scorers, of `medbench.scoring.report_plugins.request_plugins`.
        classes: that the card names, in its order; none but for kind `classification`.
        positive: one of them, where there are two.

    Returns:
        See the `score` of the kind's family (`medbench.scoring.kinds`).

    Raises:
        RequestError: as `gold_table`, or tasks of this kind cannot be scored, or not by these plug-ins.
    """
    check_plugins(task, kind, plugins)
    more: dict[str, Any] = {"plugins": plugins} if plugins else {}
    more |= {"classes": tuple(classes), "positive": positive} if classes else {}
    table = get_family(kind).score(gold_table(task, items, predictions), profile, **more)
    for name, value in (("kind", kind), ("split", split), ("task", task)):
        table.insert(0, name, value)
    return table


def check_plugins(task: str, kind: str, plugins: Sequence[Requested]) -> None:
    """Refuses plug-ins for a kind of task that has none.

    Raises:
        RequestError: names them and the task.
    """
    if plugins and not hasattr(get_family(kind), "plugin_measures"):
        names = ", ".join(asked.plugin.name for asked in plugins)
        raise RequestError(f"plug-in {names}: scores reports, and task {task} is of kind {kind}")
