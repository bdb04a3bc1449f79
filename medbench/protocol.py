"""What a figure may be called: zero-shot only when nothing of its data set was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from medbench.data.card import Card
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
