"""Rows for `list` and `data status`: plain mappings, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.backbones.registry import backbone_names, get_backbone
from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.data.item import ImageRef, Item
from medbench.data.load import locate
from medbench.errors import RequestError
from medbench.scoring import get_profile, profile_names

Rows = list[dict[str, Any]]


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a plain text table; numbers get thousands separators."""
    from tabulate import tabulate

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.4g}"
        if isinstance(value, list):
            return "; ".join(map(str, value))
        return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)

    shown = [{key: cell(value) for key, value in row.items()} for row in rows]
    return tabulate(shown, headers="keys", tablefmt="simple", disable_numparse=True)


def task_rows(catalog: Catalog) -> Rows:
    """The tasks, and the groups of tasks by their sizes (`group_rows` names their members)."""
    cards = [catalog.task(name) for name in sorted(catalog.paths("tasks"))]
    tasks: Rows = [
        {
            "name": card.name,
            "kind": card.metadata.kind,
            "dataset": card.metadata.dataset,
            "splits": [
                f"{split} {'not pinned' if about.count is None else f'{about.count:,}'}"
                for split, about in card.metadata.splits.items()
            ],
            "metrics": [entry.metric for entry in card.metric_list[:2]],
            "licence": card.metadata.licence,
            "access": card.metadata.access,
            "confidence": card.metadata.confidence.level,
        }
        for card in cards
    ]
    empty: dict[str, Any] = {"metrics": [], "licence": None, "access": None, "confidence": None}
    for group in group_rows(catalog):
        missing = [f"{len(group['missing'])} without a card"] if group["missing"] else []
        about = {"dataset": group["description"], "splits": [f"{len(group['tasks'])} tasks", *missing]}
        tasks.append({"name": group["name"], "kind": "group"} | about | empty)
    return tasks


def group_rows(catalog: Catalog) -> Rows:
    """The groups of tasks, with their members and those of them that have no card yet."""
    known = catalog.paths("tasks")
    groups = [catalog.group(name) for name in sorted(catalog.groups())]
    return [
        {
            "name": group.name,
            "kind": "group",
            "description": group.metadata.description,
            "tasks": list(group.task),
            "missing": [name for name in group.task if name not in known],
        }
        for group in groups
    ]


def method_rows(catalog: Catalog) -> Rows:
    """The methods."""
    methods = [catalog.method(name) for name in catalog.method_names()]
    return [{"name": m.name, "kind": m.tuner, "description": m.description, "source": m.source} for m in methods]


def backbone_rows(catalog: Catalog) -> Rows:
    """The backbones with a shipped layer table."""
    found = [get_backbone(name) for name in backbone_names()]
    return [
        {
            "name": b.name,
            "kind": b.kind,
            "parameters": next(iter(b.tables.values())).total,
            "default_rank": b.default_rank,
            "source": "packaged" if b.is_local else b.source,
            "description": b.description,
        }
        for b in found
    ]


def profile_rows(catalog: Catalog) -> Rows:
    """The scoring profiles."""
    return [{"name": name, "kind": "profile", "source": get_profile(name).SOURCE} for name in profile_names()]


def grid_rows(catalog: Catalog) -> Rows:
    """The grids of `sweep`."""
    grids = [catalog.grid(name) for name in sorted(catalog.grids())]
    return [
        {
            "name": grid.name,
            "kind": "grid",
            "axes": [f"{name} ({len(values)})" for name, values in grid.axes.items()],
            "cells": len(grid.points()),
            "seeds": len(grid.seeds),
            "data": "local" if grid.data_root else "generated",
            "description": grid.description,
        }
        for grid in grids
    ]


LISTS: dict[str, Callable[[Catalog], Rows]] = {
    "tasks": task_rows,
    "groups": group_rows,
    "methods": method_rows,
    "backbones": backbone_rows,
    "profiles": profile_rows,
    "grids": grid_rows,
}


def status_rows(catalog: Catalog, names: Sequence[str], data_root: Path | None) -> Rows:
    """Where each task's data is, or how to get it."""
    rows: Rows = []
    for name in names:
        card = catalog.task(name)
        row: dict[str, Any] = {"name": name, "kind": card.metadata.kind, "access": card.metadata.access}
        try:
            location = locate(card, data_root)
        except RequestError as error:
            hub = card.metadata.hub
            where = f"hub {hub.id}" if hub and data_root is None else None
            row |= {
                "status": "on the hub" if where else "missing",
                "layout": None,
                "folder": where,
                "note": str(error),
            }
        else:
            folder = None if card.metadata.access == "generated" else str(location.folder)
            row |= {"status": "found", "layout": location.layout, "folder": folder, "note": None}
        rows.append(row | {"pinned": _pinned(card), "licence": card.metadata.licence})
    return rows


def item_rows(items: Sequence[Item]) -> Rows:
    """What each item asks, never its gold answer: id, image (its path, or its key where it is no file), question, type.

    The options that a multiple-choice question offers are a part of the question; other items have none.
    """
    return [
        {
            "id": item.id,
            # A file's place is its path, that of several files their paths.
            "image": item.image.place
            if hasattr(item.image, "path") or hasattr(item.image, "paths")
            else item.image.key,
            "question": item.question,
            "type": item.type,
            **({"options": list(item.options)} if item.options else {}),
        }
        for item in items
    ]


def _image(image: ImageRef) -> str:
    """Where an image lies, if that is in a file of its own or in several; else its key."""
    return image.place if hasattr(image, "path") or hasattr(image, "paths") else image.key


def _pinned(card: Card) -> str:
    """What of a card's splits is checked against the data."""
    splits = card.metadata.splits.values()
    if all(split.digest for split in splits):
        return "questions"
    return "counts" if all(split.count for split in splits) else "not pinned"
