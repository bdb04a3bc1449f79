"""What a figure may be called: zero-shot only when nothing of its data set was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medbench.data.card import Card
from medbench.errors import RequestError
from medbench.spec import RunSpec


def task_protocols(spec: RunSpec, cards: Mapping[str, Card], pretrained_on: Sequence[str] = ()) -> dict[str, str]:
    """Each test's protocol: `in_domain` when its data set was trained on, in whichever publication, else `zero_shot`.

    Of a task that asks about other data sets' images, having trained on one of those counts too.
    `pretrained_on` are the data sets that the backbone is known to be pretrained on; of a hub model nothing is known.

    An adapter that was trained elsewhere has the protocol of its run.
    """
    if spec.method.tuner == "adapter":
        return dict.fromkeys(spec.tasks, spec.protocol)
    trained = set(pretrained_on).union(*(cards[name].metadata.datasets for name in spec.trained_tasks))
    return {t: "in_domain" if cards[t].metadata.datasets & trained else "zero_shot" for t in spec.tasks}


def leaking_tasks(leaks: Sequence[Mapping[str, Any]]) -> set[str]:
    """The tests of which an image was trained on, pixel for pixel, whatever its data set is called.

    Args:
        leaks: of a run, as `medbench.data.leaks.leaks_between` and `medbench.data.seen.seen_again` count them.
    """
    return {leak["tested"].rpartition("/")[0] for leak in leaks if leak["images"]["exact"]}


def refuse_leaks(leaks: Sequence[Mapping[str, Any]], asked: str | None) -> None:
    """Refuses to go on when zero-shot was asked for and a tested image is trained on.

    Args:
        leaks: as for `leaking_tasks`.
        asked: the protocol asked for; without one, the record says what is not zero-shot.

    Raises:
        RequestError: names the first test with such images, and the training split that they are in.
    """
    for leak in leaks if asked in ("zero_shot", "transfer") else ():
        images, tested, trained = leak["images"], leak["tested"], leak["trained"]
        if images["exact"] and "/" not in trained:
            raise RequestError(
                f"protocol {asked}: {images['exact']} of the {images['total']} images of {tested} are among those that "
                f"the {trained} was trained on, pixel for pixel"
            )
        if images["exact"]:
            task, other = (name.partition("/")[0] for name in (tested, trained))
            raise RequestError(
                f"protocol {asked}: {images['exact']} of the {images['total']} images of {tested} are in {trained}, "
                f"pixel for pixel; leave {other} out of the training (medbench data leaks {task} --against {other} "
                "counts them)"
            )
