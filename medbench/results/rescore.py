"""Scores stored predictions again, under any profile or under all; no model is needed, only the data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.data.card import Card
from medbench.data.item import Item
from medbench.data.load import OnBadItem, limited, load_items
from medbench.errors import RequestError
from medbench.results.record import task_figures
from medbench.scoring.bootstrap import cluster_bootstrap_mean
from medbench.scoring.jsonl import read_predictions
from medbench.scoring.kinds import get_family
from medbench.scoring.predictions import score_task
from medbench.scoring.profiles import Profile, as_profile, profile_names
from medbench.spec import load_spec


def rescore(
    predictions: Path, card: Card, split: str, profile: str | Profile, data_root: Path | None
) -> dict[str, Any]:
    """The figures of one task's stored predictions.

    Args:
        predictions: a run folder or its `predictions.parquet` (then the run's limits hold), or a parquet or JSONL of
            any system (see `medbench.scoring.jsonl.read_predictions`).
        card: the task.
        split: that was answered.
        profile: a scoring profile, or its name.
        data_root: where the data lies.

    Returns:
        {"task", "split", "profile", "n", "clusters", "metrics"}; beside those of a record, the metrics are what the
        profile's project prints over all questions (of visual question answering).

    Raises:
        RequestError: no such file, task or profile, or ids that do not fit.
    """
    rule = as_profile(profile)
    answered = _answered(predictions, card, split, data_root)
    return {"task": card.name, "split": split, "profile": rule.NAME} | _figures(card, split, *answered, rule)


def rescore_all(predictions: Path, card: Card, split: str, data_root: Path | None) -> dict[str, Any]:
    """The figures of the same predictions under every profile of the task's kind, and how far the rule moves each.

    Args:
        predictions: as for `rescore`.
        card: the task.
        split: that was answered.
        data_root: where the data lies.

    Returns:
        {"task", "split", "n", "clusters", "profiles", "moved"}: profiles are name -> {"n", "clusters", "metrics"};
        moved is metric -> {"lowest", "highest", "difference"}, the two profiles at its ends and their difference,
        for each metric that two profiles have.

    Raises:
        RequestError: as `rescore`.
    """
    stored, items = _answered(predictions, card, split, data_root)
    known = getattr(get_family(card.metadata.kind), "PROFILES", profile_names())
    found = {name: _figures(card, split, stored, items, as_profile(name)) for name in known}
    one = next(iter(found.values()))
    about = {"task": card.name, "split": split, "n": one["n"], "clusters": one["clusters"]}
    return about | {"profiles": found, "moved": _moved(found)}


def moved_table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """`rescore_all` as rows to print: one a metric, in percent, the profiles as columns, the difference in points."""
    profiles = found["profiles"]
    names = dict.fromkeys(name for figures in profiles.values() for name in figures["metrics"])
    rows = []
    for name in names:
        values = {p: figures["metrics"].get(name, {}).get("value") for p, figures in profiles.items()}
        if any(value is not None for value in values.values()):
            shown = {p: None if value is None else f"{100 * value:.1f}" for p, value in values.items()}
            moved = found["moved"].get(name)
            rows.append({"metric": name, **shown, "moved": f"{100 * moved['difference']:.1f}" if moved else None})
    return rows


def _moved(found: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, dict[str, float]] = {}
    for profile, figures in found.items():
        for name, entry in figures["metrics"].items():
            if entry["value"] is not None:
                values.setdefault(name, {})[profile] = entry["value"]
    moved = {}
    for name, by in values.items():
        if len(by) > 1:
            ends = min(by, key=by.__getitem__), max(by, key=by.__getitem__)
            moved[name] = {"lowest": ends[0], "highest": ends[1], "difference": by[ends[1]] - by[ends[0]]}
    return moved


def _figures(card: Card, split: str, stored: pd.DataFrame, items: Sequence[Item], rule: Profile) -> dict[str, Any]:
    table = score_task(card.name, split, items, stored, rule, card.metadata.kind)
    figures = task_figures([table])
    for name, columns in rule.OVERALL.items() if card.metadata.kind == "vqa" else ():
        values = table[list(columns)].bfill(axis=1).iloc[:, 0]
        figures["metrics"][name] = cluster_bootstrap_mean(values, table["cluster"]).to_json()
    return figures


def _answered(predictions: Path, card: Card, split: str, data_root: Path | None) -> tuple[pd.DataFrame, list[Item]]:
    """The predictions of a task, and the items that they must answer."""
    stored = read_predictions(predictions, card.name, split)
    run = predictions if predictions.is_dir() else predictions.parent
    limit: int | None = None
    on_bad_item: OnBadItem = "fail"
    own = predictions.is_dir() or predictions.suffix == ".parquet"
    if own and (run / "spec.json").exists():
        spec = load_spec(run)
        test = next((t for t in spec.tests if (t.task, t.split) == (card.name, split)), None)
        if test is None:
            tested = ", ".join(f"{t.task} ({t.split})" for t in spec.tests)
            raise RequestError(f"{run}: task {card.name}, split {split} was not tested; tested: {tested}")
        if test.card != card.digest:
            raise RequestError(f"{run}: task {card.name} was answered under another card than this one")
        limit, on_bad_item = test.limit, spec.on_bad_item
    items = limited(load_items(card, split, data_root, on_bad_item).items, limit, split)
    if on_bad_item == "skip":
        # Items whose image could not be read were left out of the run; its record counts them.
        answered = set(stored["id"].astype(str))
        items = [item for item in items if item.id in answered]
    return stored, items
