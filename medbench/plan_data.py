"""The data of a request: the cards its names stand for, which of their splits, and whether the backbone takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medbench.backbones.registry import Backbone
from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.data.item import Item
from medbench.data.load import load_items, published_splits
from medbench.data.sampling import limited, shots
from medbench.errors import RequestError, WorkError
from medbench.request import Request
from medbench.scoring.kinds import get_family
from medbench.spec import DataSpec, Part


def cards_of(patterns: Sequence[str], catalog: Catalog) -> list[Card]:
    """The cards of names, wildcards and paths, each once, in order."""
    return list(by_name([catalog.task(n) for pattern in patterns for n in catalog.task_names(pattern)]).values())


def by_name(cards: Sequence[Card]) -> dict[str, Card]:
    """The cards by name; two different ones of one name are a `RequestError`."""
    found: dict[str, Card] = {}
    for card in cards:
        if found.setdefault(card.name, card).digest != card.digest:
            raise RequestError(f"two different cards are named {card.name}; rename one (file and field `task`)")
    return found


#: What a backbone of a kind is tested on, and what it may be trained on (kinds of task).
_TESTED = {"vlm": ("vqa", "report", "hallucination"), "clip": ("classification",)}
_TRAINED = {"vlm": _TESTED["vlm"], "clip": ("classification", "report")}
_EXAMPLE = {"vlm": "a vision-language model, for example --backbone nano-vl", "clip": "--backbone nano-clip"}


def check_kinds(backbone: Backbone, tested: Sequence[Card], trained: Sequence[Card]) -> None:
    """Refuses tasks that a backbone of this kind does not do.

    Raises:
        RequestError: names the task, its kind, and which backbone would do.
    """
    for cards, taken, what in ((tested, _TESTED, "tested"), (trained, _TRAINED, "trained")):
        for card in cards:
            kind = card.metadata.kind
            get_family(kind)  # before anything is trained
            if kind not in taken[backbone.kind]:
                other = next(name for name, kinds in taken.items() if kind in kinds)
                raise RequestError(
                    f"task {card.name} is of kind {kind}, on which backbone {backbone.name} (kind {backbone.kind}) "
                    f"cannot be {what}; it takes {_EXAMPLE[other]}"
                )


def assignments(
    tested: list[Card], trained: list[list[Card]], protocol: str | None
) -> list[tuple[list[Card], list[list[Card]]]]:
    """What is tested after training on what: one assignment, or with `transfer` one for each tested task.

    Under `transfer` a task is left out in turn: training is on the other tasks that have a training split and are not
    of the same data set.

    Args:
        tested: the tasks to test.
        trained: the stages asked for; none where training is on the tested tasks.
        protocol: as asked for.

    Returns:
        (tested, stages) for each assignment.

    Raises:
        RequestError: `transfer` with training tasks of its own, or nothing to train on.
    """
    if protocol != "transfer":
        return [(tested, trained or [tested])]
    if trained:
        raise RequestError("--protocol transfer trains on the other tested tasks; leave --train-tasks out")
    found = []
    for card in tested:
        about = card.metadata
        others = [o for o in tested if "train" in o.metadata.splits and not o.metadata.datasets & about.datasets]
        if not others:
            raise RequestError(
                f"--protocol transfer: nothing is left to train on when {card.name} is left out; "
                "name a group of tasks, for example --tasks real_cls"
            )
        found.append(([card], [others]))
    return found


def data_of(card: Card, split: Any, limit: int | None, data_root: Path | None, shots: int | None = None) -> DataSpec:
    """The spec of a split of a task.

    Raises:
        RequestError: the task has no such split, or no data where its card does not pin it.
    """
    if split not in published_splits(card):
        if split in ("train", "fit"):
            raise RequestError(f"task {card.name} has no training split; name other tasks with --train-tasks")
        if "test" not in card.metadata.splits:
            raise RequestError(f"task {card.name} can only be trained on; name it with --train-tasks")
        raise RequestError(f"task {card.name} has no split {split!r}; it has {', '.join(published_splits(card))}")
    source = split if split in card.metadata.splits else "train"
    pinned = card.metadata.splits[source].digest  # type: ignore[index]
    found = None
    if pinned is None:
        found = load_items(card, split, data_root, "skip").digest
    return DataSpec(card.name, split, card.metadata.version, card.digest, found, limit, shots)


def part_of(card: Card, weight: float, request: Request) -> Part:
    """A part of a training mixture: the training split, less what is held out where the validation split is tested.

    Raises:
        RequestError: as `data_of`; or shots of a task that has no classes.
    """
    if request.shots is not None and card.metadata.kind != "classification":
        raise RequestError(f"--shots {request.shots}: task {card.name} (kind {card.metadata.kind}) has no classes")
    # A learning rate that is judged on validation must not have seen it.
    split = "train" if request.split == "test" or "train" not in card.metadata.splits else "fit"
    return Part(data_of(card, split, request.train_limit, request.data_root, request.shots), weight)


def chosen(card: Card, data: DataSpec, items: Sequence[Item], seed: int) -> list[Item]:
    """The items of a split that a spec means: all, so many of each class (drawn by the run's seed), or a limit.

    Raises:
        WorkError: a class has fewer items than the shots.
    """
    if data.shots is not None:
        try:
            return shots(items, data.shots, seed, card.metadata.classes)
        except WorkError as error:
            raise WorkError(f"task {card.name}: split {data.split}: {error}") from error
    return limited(items, data.limit, data.split, card.metadata.kind)
