"""Scores stored predictions: joins them with the data's gold answers. Needs the data, but no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from medbench.data.item import Item
from medbench.errors import RequestError
from medbench.scoring.vqa import score_table

COLUMNS = ("id", "prediction")


def gold_table(task: str, items: Sequence[Item], predictions: pd.DataFrame) -> pd.DataFrame:
    """Predictions joined with what the data says of each item: cluster, type, gold, options.

    Args:
        task: named in errors.
        items: all the items that must be answered.
        predictions: columns id, prediction and optionally probabilities.

    Raises:
        RequestError: a column is missing, or the ids are not those of the items; counts them.
    """
    for column in COLUMNS:
        if column not in predictions:
            there = ", ".join(map(str, predictions.columns))
            raise RequestError(f"task {task}: predictions need a column {column!r}; there are {there}")
    known = {item.id: item for item in items}
    ids = [str(value) for value in predictions["id"]]
    unknown, missing = set(ids) - known.keys(), known.keys() - set(ids)
    repeated = len(ids) - len(set(ids))
    if unknown or missing or repeated:
        raise RequestError(
            f"task {task}: the predictions do not fit the {len(known)} items: {len(missing)} missing, "
            f"{len(unknown)} unknown, {repeated} repeated ids"
        )
    rows = [known[i] for i in ids]
    options: Any = [item.options for item in rows]
    return predictions.assign(
        id=ids,
        cluster=[item.image.key for item in rows],
        type=[item.type for item in rows],
        gold=[item.answer for item in rows],
        options=options,
    ).reset_index(drop=True)


def score_task(
    task: str, split: str, items: Sequence[Item], predictions: pd.DataFrame, profile: str = "medbench"
) -> pd.DataFrame:
    """The score table of one task's predictions, with columns task and split in front.

    Args:
        task: its name.
        split: of the items.
        items: all the items that must be answered.
        predictions: as for `gold_table`.
        profile: a scoring profile.

    Returns:
        See `medbench.scoring.vqa.score_table`.
    """
    table = score_table(gold_table(task, items, predictions), profile)
    table.insert(0, "split", split)
    table.insert(0, "task", task)
    return table
