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
from medbench.results.writing import shown
from medbench.scoring.bootstrap import cluster_bootstrap_mean
from medbench.scoring.figures import scale_of
from medbench.scoring.jsonl import read_predictions
from medbench.scoring.kinds import get_family
from medbench.scoring.predictions import check_plugins, score_task, scoring_of
from medbench.scoring.profiles import Profile, as_profile, profile_names
from medbench.scoring.report_plugins import Requested, plugin_implementations
from medbench.spec import load_spec


def rescore(
    predictions: Path,
    card: Card,
    split: str,
    profile: str | Profile,
    data_root: Path | None,
    plugins: Sequence[Requested] = (),
) -> dict[str, Any]:
    """The figures of one task's stored predictions.

    Args:
        predictions: a run folder or its `predictions.parquet` (then the run's limits hold), or a parquet or JSONL of
            any system (see `medbench.scoring.jsonl.read_predictions`).
        card: the task.
        split: that was answered.
        profile: a scoring profile, or its name.
        data_root: where the data lies.
        plugins: further scorers of reports, of `medbench.scoring.report_plugins.request_plugins`.

    Returns:
        {"task", "split", "profile", "n", "clusters", "metrics"} and what else a record says of a task of this kind;
        beside those of a record, the metrics are what the profile's project prints over all questions (of visual
        question answering), and the plug-ins'.

    Raises:
        RequestError: no such file, task or profile, ids that do not fit, or plug-ins for a task that is no report task.
    """
    rule = as_profile(profile)
    check_plugins(card.name, card.metadata.kind, plugins)
    answered = _answered(predictions, card, split, data_root)
    return {"task": card.name, "split": split, "profile": rule.NAME} | _figures(card, split, *answered, rule, plugins)


def rescore_all(
    predictions: Path, card: Card, split: str, data_root: Path | None, plugins: Sequence[Requested] = ()
) -> dict[str, Any]:
    """The figures of the same predictions under every profile of the task's kind, and how far the rule moves each.

    Args:
        predictions: as for `rescore`.
        card: the task.
        split: that was answered.
        data_root: where the data lies.
        plugins: as for `rescore`.

    Returns:
        {"task", "split", "n", "clusters", "profiles", "moved"}: profiles are name -> {"n", "clusters", "metrics"};
        moved is metric -> {"lowest", "highest", "difference"}, the two profiles at its ends and their difference,
        for each metric that two profiles have.

    Raises:
        RequestError: as `rescore`.
    """
    check_plugins(card.name, card.metadata.kind, plugins)
    stored, items = _answered(predictions, card, split, data_root)
    known = getattr(get_family(card.metadata.kind), "PROFILES", profile_names())
    found = {name: _figures(card, split, stored, items, as_profile(name), plugins) for name in known}
    one = next(iter(found.values()))
    about = {"task": card.name, "split": split, "n": one["n"], "clusters": one["clusters"]}
    return about | {"profiles": found, "moved": _moved(found)}


def moved_table(found: dict[str, Any]) -> list[dict[str, Any]]:
    """`rescore_all` as rows to print: one a metric, the profiles as columns, in percent and points (`scale_of`)."""
    profiles = found["profiles"]
    names = dict.fromkeys(name for figures in profiles.values() for name in figures["metrics"])
    rows = []
    for name in names:
        values = {p: figures["metrics"].get(name, {}).get("value") for p, figures in profiles.items()}
        if any(value is not None for value in values.values()):
            scale, moved = scale_of(name), found["moved"].get(name)
            cells = {profile: shown(value, scale=scale) for profile, value in values.items()}
            rows.append({"metric": name, **cells, "moved": shown(moved["difference"] if moved else None, scale=scale)})
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


def _figures(
    card: Card,
    split: str,
    stored: pd.DataFrame,
    items: Sequence[Item],
    rule: Profile,
    plugins: Sequence[Requested],
) -> dict[str, Any]:
    table = score_task(card.name, split, items, stored, rule, plugins=plugins, **scoring_of(card))
    figures = task_figures([table])
    if plugins:
        figures["implementations"] |= plugin_implementations(plugins)
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
    items = limited(load_items(card, split, data_root, on_bad_item).items, limit, split, card.metadata.kind)
    if on_bad_item == "skip":
        # Items whose image could not be read were left out of the run; its record counts them.
        answered = set(stored["id"].astype(str))
        items = [item for item in items if item.id in answered]
    return stored, items
