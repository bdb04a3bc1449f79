"""Which items of a split are taken when not all are: limits, held-out images, a few of each class.

Every choice is a ranking by a sha256, so that it is the same for every method, on every machine, and a larger choice
holds the smaller one.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medbench.data.item import Item
from medbench.errors import RequestError, WorkError

if TYPE_CHECKING:
    from medbench.data.card import Card


def limited(items: Sequence[Item], limit: int | None, split: str, kind: str = "vqa") -> list[Item]:
    """The first items of a test (as lm-eval does); else a sample: those whose hash of the id sorts first.

    A sample is taken of a training split, whose files are sorted by image or body part so that their head would be
    none, and of every split of kind classification, whose files are sorted by class. It keeps the items' order.

    Args:
        items: of a split.
        limit: how many; None for all.
        split: its name.
        kind: the card's.
    """
    if limit is None or limit >= len(items):
        return list(items)
    if split in ("test", "validation") and kind != "classification":
        return list(items[:limit])
    ranked = sorted(range(len(items)), key=lambda i: hashlib.sha256(items[i].id.encode()).digest())
    return [items[i] for i in sorted(ranked[:limit])]


def held_out_images(card: Card, keys: Sequence[str]) -> frozenset[str]:
    """The images (where the data names patients: the patients) that a card without a validation split holds out.

    Args:
        card: says the fraction and the seed.
        keys: the clusters of the training split, each once.
    """
    holdout = card.metadata.holdout
    if holdout is None:
        return frozenset()
    ranked = sorted(keys, key=lambda key: hashlib.sha256(f"{holdout.seed}:{key}".encode()).digest())
    return frozenset(ranked[: round(len(ranked) * holdout.fraction)])


def shots(items: Sequence[Item], k: int, seed: int, classes: Iterable[str] = ()) -> list[Item]:
    """`k` items of each class, those whose sha256 of `seed:id` sorts first, in the order of the items.

    The same seed with a larger `k` keeps those of the smaller.

    Args:
        items: of a training split.
        k: how many of each class.
        seed: of the draw.
        classes: the card's, so that one without a single item is named, too.

    Raises:
        RequestError: `k` is less than 1.
        WorkError: a class has fewer than `k` items.
    """
    if k < 1:
        raise RequestError(f"shots: should be at least 1 item a class, is {k}")
    places: dict[str, list[int]] = defaultdict(list)
    for place, item in enumerate(items):
        places[item.answer].append(place)
    taken: list[int] = []
    for name in dict.fromkeys([*classes, *places]):
        found = places.get(name, [])
        if len(found) < k:
            raise WorkError(f"{k} shots need {k} items of each class; class {name!r} has {len(found)}")
        taken += sorted(found, key=lambda i: hashlib.sha256(f"{seed}:{items[i].id}".encode()).digest())[:k]
    return [items[place] for place in sorted(taken)]
