"""Scores stored predictions again, under any profile; no model is needed, only the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medbench.data.card import Card
from medbench.data.load import OnBadItem, limited, load_items
from medbench.errors import RequestError
from medbench.files import read_parquet
from medbench.results.record import task_figures
from medbench.scoring import get_profile
from medbench.scoring.predictions import score_task
from medbench.spec import load_spec


def rescore(predictions: Path, card: Card, split: str, profile: str, data_root: Path | None) -> dict[str, Any]:
    """The figures of one task's stored predictions.

    Args:
        predictions: a run folder or its `predictions.parquet` (then the run's limits hold), or any parquet with the
            columns id, prediction and, optionally, probabilities.
        card: the task.
        split: that was answered.
        profile: a scoring profile.
        data_root: where the data lies.

    Returns:
        {"task", "split", "profile", "n", "clusters", "metrics"}.

    Raises:
        RequestError: no such file, task or profile, or ids that do not fit.
    """
    get_profile(profile)
    file = predictions / "predictions.parquet" if predictions.is_dir() else predictions
    if not file.is_file():
        raise RequestError(f"{file}: no such file; expected a run folder or a predictions.parquet")
    stored = read_parquet(file)
    limit: int | None = None
    on_bad_item: OnBadItem = "fail"
    if (file.parent / "spec.json").exists():
        spec = load_spec(file.parent)
        test = next((t for t in spec.tests if (t.task, t.split) == (card.name, split)), None)
        if test is None:
            tested = ", ".join(f"{t.task} ({t.split})" for t in spec.tests)
            raise RequestError(f"{file.parent}: task {card.name}, split {split} was not tested; tested: {tested}")
        if test.card != card.digest:
            raise RequestError(f"{file.parent}: task {card.name} was answered under another card than this one")
        limit, on_bad_item = test.limit, spec.on_bad_item
    if "task" in stored and "split" in stored:
        stored = stored[(stored["task"] == card.name) & (stored["split"] == split)]
    items = limited(load_items(card, split, data_root, on_bad_item).items, limit, split)
    if on_bad_item == "skip":
        # Items whose image could not be read were left out of the run; its record counts them.
        answered = set(stored["id"].astype(str))
        items = [item for item in items if item.id in answered]
    figures = task_figures([score_task(card.name, split, items, stored, profile)])
    return {"task": card.name, "split": split, "profile": profile, **figures}
