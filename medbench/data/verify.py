"""Checks a task's data: counts, digests, and that every image decodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import is_there
from medbench.data.load import (
    apply_card,
    check_two_classes,
    label_of,
    no_usable_item,
    read_published,
    unlabelled,
)
from medbench.data.metadata import Split
from medbench.data.readers import Row
from medbench.errors import RequestError, WorkError
from medbench.progress import progress_bar
from medbench.scoring.yesno import always_yes

#: This many missing images are named, each with its items; more of them, or all, are counted in one line.
NAMED = 10


def verify_task(card: Card, data_root: Path | None) -> list[dict[str, Any]]:
    """One row a published split: items, closed items, images, digests, and what is wrong with it.

    Raises:
        RequestError: the data is not there.
    """
    rows = []
    for split, expected in card.metadata.splits.items():
        row: dict[str, Any] = {"task": card.name, "split": split, "expected": expected.count}
        problems: list[str] = []
        try:
            row |= _verify_split(card, split, expected, data_root, problems)
        except RequestError:
            raise
        except WorkError as error:
            problems.append(str(error))
        rows.append(row | {"problems": problems})
    return rows


def _verify_split(
    card: Card, split: str, expected: Split, data_root: Path | None, problems: list[str]
) -> dict[str, Any]:
    published = read_published(card, split, data_root)
    items, skipped = apply_card(card, published.rows, "skip")
    gone = missing_images(published.rows)
    total = len({row.image.key for row in published.rows if row.image})
    counted = len(gone) > NAMED or 0 < len(gone) == total
    if counted:
        skipped = [text for text in skipped if not text.endswith("the file is missing")]
    elif not items:
        raise no_usable_item(card, split, published.location, skipped)
    problems += skipped
    try:
        check_two_classes(card, split, published.location, items)
    except WorkError as error:
        problems.append(str(error))
    fits = len(problems)
    if expected.count not in (None, len(published.rows)):
        problems.append(f"{len(published.rows):,} items, expected {expected.count:,}")
    if expected.digest not in (None, published.digest):
        problems.append("questions or answers differ from the card's digest")
    if counted:
        whole = f"{len(gone):,} of {total:,} images are missing, the first {next(iter(gone.values()))}"
        known = len(problems) == fits and expected.count is not None
        pinned = f"the {len(published.rows):,} questions {'and their digest ' if expected.digest else ''}match the card"
        problems.append(f"{pinned}, but {whole}" if known else whole)
    row: dict[str, Any] = {"items": 0, "closed": 0, "images": 0, "digest": published.digest, "images_digest": None}
    row |= _yes_no(card, split, published.rows, problems) | _classes(card, published.rows)
    if not items:
        return row
    with progress_bar(f"verify {card.name} {split}") as step:
        checked = check_images(card.name, items, "skip", step)
    problems += checked.skipped
    return row | {
        "items": len(checked.items),
        "closed": sum(item.closed for item in checked.items),
        "images": len(checked.sizes),
        "images_digest": checked.images,
    }


def _yes_no(card: Card, split: str, rows: Sequence[Row], problems: list[str]) -> dict[str, Any]:
    """Of yes/no questions: how many have no label, and what always saying yes gets (the card's is checked)."""
    if card.metadata.kind != "hallucination":
        return {}
    left_out = sum(unlabelled(card, row) for row in rows)
    labels = [label_of(card, row) for row in rows if row.error is None]
    found = always_yes([label for label in labels if label is not None])
    rounded = {name: round(value, 4) for name, value in found.items()} if found else None
    said = card.metadata.always_yes
    if split == "test" and said is not None and said.model_dump() != rounded:
        problems.append(f"always_yes: the card says {said.model_dump()}, the questions give {rounded}")
    return {"left_out": left_out, "always_yes": rounded}


def _classes(card: Card, rows: Sequence[Row]) -> dict[str, Any]:
    """Of a classification: how many items have no label, and how many are of each class."""
    if card.metadata.kind != "classification":
        return {}
    labels = [label_of(card, row) for row in rows if row.error is None]
    return {
        "left_out": labels.count(None),
        "classes": {name: labels.count(name) for name in card.metadata.classes},
    }


def missing_images(rows: Sequence[Row]) -> dict[str, Path]:
    """The images that rows name and no file holds: key -> path, in order of first use."""
    paths = {row.image.key: getattr(row.image, "path", None) for row in rows if row.image is not None}
    return {key: path for key, path in paths.items() if path is not None and not is_there(path)}
