"""From a card to items: find the data, read a split, apply the card's rules, check counts and digests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from medbench.data.card import Card
from medbench.data.item import BadItemError, Item, is_there
from medbench.data.metadata import ClosedRule
from medbench.data.readers import Row, get_reader
from medbench.data.sampling import held_out_images as held_out_images
from medbench.data.sampling import limited as limited
from medbench.errors import RequestError, WorkError
from medbench.files import digest

#: `fit` is the training split less the images that a card without a validation split holds out.
SPLITS = ("train", "fit", "validation", "test")
OnBadItem = Literal["fail", "skip"]
_PUNCTUATION = ".,;:!?()[]{}\"'*-"


@dataclass(frozen=True)
class Location:
    """Where a task's data was found, and in which layout."""

    layout: str
    folder: Path
    options: dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """The items of one split.

    Attributes:
        items: in the data set's order.
        skipped: what was wrong with each row that was left out (only with `on_bad_item="skip"`).
        digest: sha256 over ids, images' names, questions, answers and types of the published split it was cut from.
        layout: it was read in.
        left_out: how many rows of the published split the card leaves out, because they have no label.
    """

    items: Sequence[Item]
    skipped: tuple[str, ...]
    digest: str
    layout: str
    left_out: int = 0


def locate(card: Card, data_root: Path | None) -> Location:
    """Finds a task's data under `data_root`, or among the data that needs no folder (`access: generated`).

    Raises:
        RequestError: not there; the message says what is missing, how to get it and under which licence.
    """
    meta = card.metadata
    generated = meta.access == "generated"
    if data_root is None and not generated:
        raise RequestError(f"task {card.name} needs data: pass --data-root, or {_obtain(card)}")
    folder = Path() if generated else Path(data_root or ".") / meta.folder
    problems = []
    for layout, options in meta.layouts.items():
        problem = get_reader(layout).find(folder, options)
        if problem is None:
            return Location(layout, folder, options)
        problems.append(f"{layout}: {problem}")
    raise RequestError(f"task {card.name}: no data in {folder} ({'; '.join(problems)}); {_obtain(card)}")


def locate_or_fetch(card: Card, data_root: Path | None) -> Location:
    """`locate`, or the hub when no data root was given and the card names a hub data set."""
    if data_root is None and card.metadata.hub is not None:
        from medbench.data.hub import fetch

        hub = card.metadata.hub
        return Location(hub.layout, fetch(card), card.metadata.layouts[hub.layout])
    return locate(card, data_root)


def _obtain(card: Card) -> str:
    meta = card.metadata
    return f"get {meta.dataset} ({meta.access}, licence {meta.licence}): {meta.obtain}"


def published_splits(card: Card) -> list[str]:
    """The splits a request may name for this task."""
    splits: list[str] = list(card.metadata.splits)
    if "train" in splits:
        splits.append("fit")
        if "validation" not in splits and card.metadata.holdout:
            splits.append("validation")
    return [s for s in SPLITS if s in splits]


def load_items(
    card: Card, split: str, data_root: Path | None, on_bad_item: OnBadItem = "fail", check: bool = True
) -> Loaded:
    """The items of a split (`train`, `fit`, `validation` or `test`).

    Args:
        card: the task.
        split: one of `published_splits(card)`.
        data_root: the folder that holds the data sets' folders; None for the hub or generated data.
        on_bad_item: what to do with a row that has a wrong field or no image file.
        check: compare count and digest with the card.

    Raises:
        RequestError: no such split, or no data.
        BadItemError: a row is wrong and `on_bad_item` is `fail`; names id, file and field.
        WorkError: the data is not what the card says (count or digest).
    """
    if split not in published_splits(card):
        raise RequestError(f"task {card.name} has no split {split!r}; it has {', '.join(published_splits(card))}")
    own_validation = "validation" in card.metadata.splits
    source = "train" if split == "fit" or (split == "validation" and not own_validation) else split
    published = read_published(card, source, data_root)
    rows, location = published.rows, published.location
    if check:
        _check(card, source, published, on_bad_item)
    items, skipped = apply_card(card, rows, on_bad_item, location.folder)
    check_two_classes(card, source, location, items)
    if split in ("fit", "validation") and not own_validation:
        held = held_out_images(card, sorted({row.cluster for row in rows if row.image}))
        items = [item for item in items if (item.cluster in held) == (split == "validation")]
    if not items:
        raise no_usable_item(card, split, location, skipped)
    left_out = sum(unlabelled(card, row) for row in rows)
    return Loaded(items, tuple(skipped), published.digest, location.layout, left_out)


@dataclass(frozen=True)
class Published:
    """The rows of a published split as a reader found them, and their digest."""

    rows: Sequence[Row]
    digest: str
    location: Location


def read_published(card: Card, split: str, data_root: Path | None) -> Published:
    """The rows of a published split, no rule of the card applied but the closed mark in the digest.

    Raises:
        RequestError: no data.
        WorkError: a file is broken.
    """
    location = locate_or_fetch(card, data_root)
    rows = get_reader(location.layout).rows(location.folder, location.options, split)
    return Published(rows, rows_digest(rows, card.metadata.closed), location)


def no_usable_item(card: Card, split: str, location: Location, skipped: Sequence[str]) -> WorkError:
    """The error of a split in which nothing can be used; names the first reason."""
    first = f"; the first: {skipped[0]}" if skipped else ""
    return WorkError(f"task {card.name}: split {split} in {location.folder} has no usable item{first}")


def check_two_classes(card: Card, split: str, location: Location, items: Sequence[Item]) -> None:
    """Refuses a split of a classification in which there is one class only: nothing can be learned or told from it.

    Raises:
        WorkError: names the split and the class.
    """
    found = {item.answer for item in items} if card.metadata.kind == "classification" else set()
    if len(found) == 1:
        raise WorkError(
            f"task {card.name}: split {split} in {location.folder} has only items of class {found.pop()!r}; "
            f"the card's classes are {', '.join(card.metadata.classes)}"
        )


def rows_digest(rows: Sequence[Row], rule: ClosedRule) -> str:
    """The sha256 over what the rows say: id, image, question, answer, closed, unusable, options, group."""
    return digest([_said(row, rule) for row in rows])


def _said(row: Row, rule: ClosedRule) -> list[object]:
    image = row.image.key if row.image else ""
    said = [row.id, image, row.question, row.answer, _closed_mark(rule, row), bool(row.error)]
    options = [list(row.options)] if row.options else []
    return [*said, *options, *([{"group": row.group}] if row.group else [])]


def _closed_mark(rule: ClosedRule, row: Row) -> str:
    return row.fields.get(rule.name or "", "") if rule.rule == "field" else str(is_closed(rule, row))


def _check(card: Card, split: str, published: Published, on_bad_item: OnBadItem) -> None:
    expected = card.metadata.splits[split]  # type: ignore[index]
    rows, found = published.rows, published.digest
    where = f"task {card.name}, split {split} in {published.location.folder}"
    if expected.count not in (None, len(rows)):
        raise WorkError(
            f"{where}: {len(rows)} items, the card expects {expected.count}; "
            "another publication of this data set needs a card of its own"
        )
    # A broken row changes the digest too; it is named by the error for bad items, where that will be raised.
    named = on_bad_item == "fail" and any(row.error for row in rows)
    if expected.digest and found != expected.digest and not named:
        raise WorkError(
            f"{where}: the questions or answers differ from those of the card (digest {found[:12]}, "
            f"expected {expected.digest[:12]}); changed data needs a card of its own"
        )


def apply_card(
    card: Card, rows: Sequence[Row], on_bad_item: OnBadItem, folder: Path | None = None
) -> tuple[list[Item], list[str]]:
    """The usable items of rows under a card's rules, and what is wrong with each other row.

    Errors that name no file name `folder`, where the rows were found.

    Rows that have no label under the card's rule (`unlabelled`) are in neither.

    Raises:
        BadItemError: a row is wrong or its image file is missing, and `on_bad_item` is `fail`.
    """
    items: list[Item] = []
    skipped: list[str] = []
    exists: dict[str, bool] = {}
    seen: set[str] = set()
    rule = card.metadata.closed
    for row in rows:
        error = row.error
        if error is None and row.id in seen:
            error = f"item {row.id}: the id occurs twice"
        if error is None and row.image is not None:
            path = getattr(row.image, "path", None)
            if path is not None and not exists.setdefault(row.image.key, is_there(path)):
                error = f"item {row.id}: image {path}: the file is missing"
        if error is None and rule.rule == "field" and rule.name not in row.fields:
            error = f"item {row.id}: field {rule.name!r} is absent (the card's rule for closed questions needs it)"
        if unlabelled(card, row):
            continue
        error = error or _label_problem(card, row)
        if error is not None or row.image is None:
            if on_bad_item == "fail":
                where = "" if folder is None or str(folder) in str(error) else f" (in {folder})"
                raise BadItemError(f"task {card.name}: {error}{where}; --on-bad-item skip leaves such items out")
            skipped.append(str(error))
            continue
        seen.add(row.id)
        closed = is_closed(rule, row)
        kind = row.fields.get(card.metadata.types or "", "")
        gold = label_of(card, row) or row.answer
        if card.metadata.kind == "classification":
            items.append(Item(row.id, row.image, "", gold, closed, group=row.group))
            continue
        candidates = (tuple(dict.fromkeys(row.options)) or card.metadata.candidates) if closed else ()
        items.append(Item(row.id, row.image, row.question, gold, closed, candidates, row.options, kind, row.group))
    return items, skipped


def label_of(card: Card, row: Row) -> str | None:
    """The gold answer of a row under the card's rule `label`; None where it has none, and is left out.

    A report must have a text: a study without the sections that the card wants has no reference. An item to classify
    must have a label.

    `first_word`: the first word of the published answer, punctuation around it taken off, if it is yes or no. A row of
    multiple choice keeps its answer.
    """
    if card.metadata.kind in ("report", "classification"):
        return row.answer.strip() or None
    if card.metadata.label == "answer" or row.options:
        return row.answer
    word = next(iter(row.answer.split()), "").strip(_PUNCTUATION).casefold()
    return word if word in ("yes", "no") else None


def unlabelled(card: Card, row: Row) -> bool:
    """Whether a card leaves a row out because it has no label: no text, no class, or neither yes nor no."""
    return row.error is None and label_of(card, row) is None


def _label_problem(card: Card, row: Row) -> str | None:
    """What is wrong with the label or the type of a row of yes/no questions, or with the class of another."""
    if row.error is not None or card.metadata.kind not in ("hallucination", "classification"):
        return None
    types, gold = card.metadata.types, label_of(card, row) or ""
    if card.metadata.kind == "classification":
        classes = card.metadata.classes
        known = ", ".join(classes)
        return None if gold in classes else f"item {row.id}: the label {gold[:40]!r} is none of the classes {known}"
    if types is not None and not row.fields.get(types):
        return f"item {row.id}: field {types!r} is absent (the card's types need it)"
    if not row.question:
        return f"item {row.id}: the question is empty"
    if not row.options and gold.casefold() not in ("yes", "no"):
        return f"item {row.id}: the answer {gold[:40]!r} should be yes or no"
    return None


def is_closed(rule: ClosedRule, row: Row) -> bool:
    """Whether a card's rule calls a row closed."""
    if rule.rule == "field":
        return row.fields[rule.name or ""].casefold() == (rule.value or "").casefold()
    if rule.rule == "yes_no":
        return row.answer.strip().casefold() in ("yes", "no")
    return rule.rule == "all"
