"""Checks a task's data: counts, digests, and that every image decodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.load import load_items
from medbench.errors import RequestError, WorkError
from medbench.progress import progress_bar


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
            loaded = load_items(card, split, data_root, "skip", check=False)
            problems += loaded.skipped
            if len(loaded.items) + len(loaded.skipped) != expected.count:
                problems.append(f"{len(loaded.items) + len(loaded.skipped)} items, expected {expected.count}")
            if expected.digest not in (None, loaded.digest):
                problems.append("questions or answers differ from the card's digest")
            with progress_bar(f"verify {card.name} {split}") as step:
                checked = check_images(card.name, loaded.items, "skip", step)
            problems += checked.skipped
            row |= {
                "items": len(checked.items),
                "closed": sum(item.closed for item in checked.items),
                "images": len(checked.sizes),
                "digest": loaded.digest,
                "images_digest": checked.images,
            }
        except RequestError:
            raise
        except WorkError as error:
            problems.append(str(error))
        rows.append(row | {"problems": problems})
    return rows
