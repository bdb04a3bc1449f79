"""Leaks: what of a test a model may have seen in training, and what a split holds twice.

An image of the test leaks when the same picture (`exact`: equal pixels) or nearly the same one (`near`: equal but for
encoding, size or light, or the next slice of the same examination; see `medbench.data.fingerprint`) is among the
training images. Of a question, the text alone tells little (many sets write questions from templates), so that it is
counted alone, together with its image, and together with image and answer. Texts are compared as written (`exact`) and
as scoring normalises them (`normalised`).

Wherever figures come in twos (exact and near, exact and normalised), the second leaves out what the first has counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medbench.data.card import Card
from medbench.data.check import Checked, check_images
from medbench.data.fingerprint import ABOUT, near_pairs
from medbench.data.item import Item
from medbench.data.load import OnBadItem, load_items
from medbench.errors import RequestError
from medbench.progress import progress_bar
from medbench.scoring.normalise import tokens

#: Near pairs that a report shows, the nearest first.
SHOWN = 20
Counts = dict[str, int]


@dataclass(frozen=True)
class Overlap:
    """What a tested split shares with another one; all counts are of the tested split.

    Attributes:
        tested: `task/split`.
        other: `task/split`.
        images: `total`, `exact`, `near`.
        questions: `total`; by their `image` {exact, near}; by their `text` {exact, normalised}; by `image_and_text`
            {exact, near} and `image_text_and_answer` {exact, near}, whose texts and answers are normalised.
        exact_pairs: pairs (tested image, other image) with equal pixels.
        near_pairs: pairs that are near, and not exact.
        nearest: [tested image, other image, bits that differ] of the nearest near pairs.
    """

    tested: str
    other: str
    images: Counts
    questions: dict[str, Any]
    exact_pairs: int
    near_pairs: int
    nearest: list[tuple[str, str, int]]


@dataclass(frozen=True)
class Repeats:
    """What a split holds more than once.

    Attributes:
        split: `task/split`.
        skipped: bad items that were left out.
        images: `total`; `exact` and `near`: those with such a twin in the split.
        questions: `total`; `image_and_text`: those asked of the same picture again (normalised text);
            `contradicting`: those of them with another answer (normalised).
        near_pairs: pairs that are near, and not exact.
        nearest: [image, image, bits that differ] of the nearest near pairs.
    """

    split: str
    skipped: int
    images: Counts
    questions: Counts
    near_pairs: int
    nearest: list[tuple[str, str, int]]


@dataclass(frozen=True)
class _Twins:
    """For each image of the left side, the images of the right side that are the same or near."""

    exact: dict[str, list[str]]
    near: dict[str, list[str]]
    pairs: list[tuple[int, str, str]]

    def counts(self, total: int) -> Counts:
        return {"total": total, "exact": len(self.exact), "near": len(self.near.keys() - self.exact.keys())}

    def nearest(self) -> list[tuple[str, str, int]]:
        return [(left, right, bits) for bits, left, right in sorted(self.pairs)[:SHOWN]]


def _twins(left: Checked, right: Checked, inside: bool = False) -> _Twins:
    """`inside`: both sides are one split, and an image is no twin of itself."""
    keys, others = list(left.fingerprints), list(right.fingerprints)
    prints, other_prints = list(left.fingerprints.values()), list(right.fingerprints.values())
    by_pixels = defaultdict(list)
    for key, print_ in right.fingerprints.items():
        by_pixels[print_.pixels].append(key)
    exact = {
        key: same
        for key, print_ in left.fingerprints.items()
        if (same := [other for other in by_pixels.get(print_.pixels, ()) if not inside or other != key])
    }
    near: dict[str, list[str]] = defaultdict(list)
    pairs = []
    for i, j, bits in near_pairs(prints, other_prints):
        if prints[i].pixels != other_prints[j].pixels:
            near[keys[i]].append(others[j])
            if not inside or i < j:
                pairs.append((bits, keys[i], others[j]))
    return _Twins(exact, dict(near), pairs)


def normalised(text: str) -> str:
    """A text as leaks compare it: scoring's tokens; a text that has none is itself."""
    return " ".join(tokens(text)) or text.strip()


def overlap(tested: Checked, other: Checked, names: tuple[str, str] = ("test", "train")) -> Overlap:
    """What a tested split shares with another one; both must have been checked with fingerprints.

    Args:
        tested: whose images and questions are counted.
        other: what was, or would be, trained on.
        names: how the two are called in the result.
    """
    twins = _twins(tested, other)
    texts, asked = {item.question for item in other.items}, _asked(other.items)
    plain = {text for pairs in asked.values() for text, _ in pairs}

    def of_image(twin_keys: Mapping[str, list[str]]) -> dict[str, set[tuple[str, str]]]:
        return {key: set().union(*(asked.get(k, set()) for k in same)) for key, same in twin_keys.items()}

    same, like = of_image(twins.exact), of_image(twins.near)
    image, text, pair, triple = [0, 0], [0, 0], [0, 0], [0, 0]
    for item in tested.items:
        key, question, answer = item.image.key, normalised(item.question), normalised(item.answer)
        _count(image, key in same, key in like)
        # What is to be classified is asked nothing, which is no text to share.
        _count(text, bool(item.question) and item.question in texts, bool(item.question) and question in plain)
        _count(pair, *(any(question == q for q, _ in found.get(key, ())) for found in (same, like)))
        _count(triple, *((question, answer) in found.get(key, ()) for found in (same, like)))
    questions = {
        "total": len(tested.items),
        "image": dict(zip(("exact", "near"), image, strict=True)),
        "text": dict(zip(("exact", "normalised"), text, strict=True)),
        "image_and_text": dict(zip(("exact", "near"), pair, strict=True)),
        "image_text_and_answer": dict(zip(("exact", "near"), triple, strict=True)),
    }
    exact_pairs = sum(map(len, twins.exact.values()))
    total = len(tested.fingerprints)
    return Overlap(*names, twins.counts(total), questions, exact_pairs, len(twins.pairs), twins.nearest())


def _count(counts: list[int], first: bool, second: bool) -> None:
    counts[0] += first
    counts[1] += second and not first


def _asked(items: Iterable[Item]) -> dict[str, set[tuple[str, str]]]:
    """What is asked of each image: (normalised question, normalised answer)."""
    asked: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for item in items:
        asked[item.image.key].add((normalised(item.question), normalised(item.answer)))
    return asked


def repeats(checked: Checked, name: str, skipped: int = 0) -> Repeats:
    """What a split holds more than once; it must have been checked with fingerprints."""
    twins = _twins(checked, checked, inside=True)
    answers: dict[tuple[str, str], list[str]] = defaultdict(list)
    for item in checked.items:
        pixels = checked.fingerprints[item.image.key].pixels
        answers[pixels, normalised(item.question)].append(normalised(item.answer))
    again = [given for given in answers.values() if len(given) > 1]
    questions = {
        "total": len(checked.items),
        "image_and_text": sum(map(len, again)),
        "contradicting": sum(len(given) for given in again if len(set(given)) > 1),
    }
    images = twins.counts(len(checked.fingerprints))
    return Repeats(name, skipped, images, questions, len(twins.pairs), twins.nearest())


def leaks_between(
    splits: Mapping[tuple[str, str], Checked], tested: Iterable[tuple[str, str]], trained: Iterable[tuple[str, str]]
) -> list[dict[str, Any]]:
    """The leaks of a run, for its record: each test with each split trained on, without the images' names."""
    pairs = [(test, other) for test in tested for other in trained]
    found = [overlap(splits[test], splits[other], ("/".join(test), "/".join(other))) for test, other in pairs]
    return [{"tested": o.tested, "trained": o.other, "images": o.images, "questions": o.questions} for o in found]


def find_leaks(
    card: Card, against: Sequence[Card], data_root: Path | None, on_bad_item: OnBadItem = "fail"
) -> dict[str, Any]:
    """Looks for leaks between the published splits of a task, and from other tasks into its test.

    Args:
        card: the task.
        against: tasks that might be trained on, all of whose splits are compared with the task's test.
        data_root: the folder that holds the data sets' folders.
        on_bad_item: `fail`, or `skip` (left out and counted).

    Returns:
        `task`; `hashes`: what exact and near mean; `overlaps`: an `Overlap` for each test or validation split and
        what is, or could be, trained on; `repeats`: a `Repeats` for each split of the task itself.

    Raises:
        RequestError: the data is not there, or the task has no test to compare others with.
        BadItemError: a bad row or image, with `on_bad_item` fail.
    """
    if against and "test" not in card.metadata.splits:
        raise RequestError(f"task {card.name} has no test split, so there is nothing that --against could leak into")
    skipped: dict[str, int] = {}

    def check(task: Card) -> dict[str, Checked]:
        found: dict[str, Checked] = {}
        for split in (name for name in ("train", "validation", "test") if name in task.metadata.splits):
            loaded = load_items(task, split, data_root, on_bad_item)
            with progress_bar(f"images of {task.name} {split}") as step:
                found[split] = check_images(task.name, loaded.items, on_bad_item, step, fingerprints=True)
            skipped[f"{task.name}/{split}"] = len(loaded.skipped) + len(found[split].skipped)
        return found

    own = check(card)
    pairs = [(tested, other) for tested in ("test", "validation") for other in ("train", "validation")]
    overlaps = [
        overlap(own[tested], own[other], (f"{card.name}/{tested}", f"{card.name}/{other}"))
        for tested, other in pairs
        if tested != other and tested in own and other in own
    ]
    for task in against:  # one at a time: only what is compared is held
        overlaps += [
            overlap(own["test"], checked, (f"{card.name}/test", f"{task.name}/{split}"))
            for split, checked in check(task).items()
        ]
    inside = [repeats(checked, name := f"{card.name}/{split}", skipped[name]) for split, checked in own.items()]
    return {
        "task": card.name,
        "hashes": ABOUT,
        "overlaps": [asdict(found) | {"skipped": skipped[found.other]} for found in overlaps],
        "repeats": [asdict(found) for found in inside],
    }


def leak_tables(found: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """`find_leaks` for people: the rows of the overlaps and of the repeats."""

    def both(counts: Mapping[str, int]) -> int:
        return sum(counts.values())

    across = [
        {
            "tested": row["tested"],
            "against": row["other"],
            "images": row["images"]["total"],
            "exact": row["images"]["exact"],
            "near": row["images"]["near"],
            "questions": row["questions"]["total"],
            "of exact": row["questions"]["image"]["exact"],
            "of near": row["questions"]["image"]["near"],
            "same text": both(row["questions"]["text"]),
            "+ image": both(row["questions"]["image_and_text"]),
            "+ answer": both(row["questions"]["image_text_and_answer"]),
        }
        for row in found["overlaps"]
    ]
    inside = [
        {
            "inside": row["split"],
            "images": row["images"]["total"],
            "exact": row["images"]["exact"],
            "near": row["images"]["near"],
            "questions": row["questions"]["total"],
            "asked again": row["questions"]["image_and_text"],
            "contradicting": row["questions"]["contradicting"],
            "skipped": row["skipped"],
        }
        for row in found["repeats"]
    ]
    return across, inside
