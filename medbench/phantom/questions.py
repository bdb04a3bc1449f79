"""What the phantom tasks ask of a scene, with answers that the question does not give away.

A closed question's answer is drawn first, evenly; then what it asks about is drawn among what makes that answer true.
Sites, kinds and sizes are interchangeable in `draw_scene`, so every wording goes with every answer equally often, and a
model that sees no image is at chance.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from medbench.phantom.anatomy import MODALITIES, article
from medbench.phantom.draws import Draws
from medbench.phantom.scene import Lesion, Scene

YES_NO = ("yes", "no")


class Question(NamedTuple):
    """A question, its answer, and its type (for statistics by type)."""

    text: str
    answer: str
    type: str


def vqa(scene: Scene) -> list[Question]:
    """At most two closed and two open questions about a scene with lesions; one about a normal scene.

    Types are chosen before it is known which the scene allows, and none takes another's place: how many lesions there
    are must not show in what is asked. `abnormal` is asked of every normal scene and of one in five of the others: so
    often that yes and no are even.
    """
    draws = Draws(f"{scene.digest}:vqa")
    if not scene.lesions:
        return [_abnormal(scene)]
    asked = [ask(scene, draws) for ask in (*draws.some(_CLOSED, 2), *draws.some(_OPEN, 2))]
    asked += [_abnormal(scene)] if draws.below(5) == 0 else []
    return [question for question in asked if question]


def probes(scene: Scene) -> list[Question]:
    """Yes/no questions about findings that are there and that are not (a kind at a site); the kind is their type.

    One or two present findings of a scene with lesions (5 / 3 on average) and 19 / 15 absent ones; two absent ones of
    a normal scene, one scene in six: even overall.
    """
    draws = Draws(f"{scene.digest}:yesno")
    about = scene.about
    there = {(lesion.kind, lesion.site) for lesion in scene.lesions}
    missing = [(kind, site) for kind in about.kinds for site in range(len(about.sites)) if (kind, site) not in there]
    asked = [(finding, "no") for finding in draws.some(missing, 2)]
    if scene.lesions:
        asked = asked[: 1 + (draws.below(15) < 4)]
        asked += [(finding, "yes") for finding in draws.some(sorted(there), min(2, len(there)))]
    return [
        Question(f"Does this {about.image} show {article(kind)} in the {about.sites[site].name}?", answer, kind)
        for (kind, site), answer in asked
    ]


def label(scene: Scene) -> str:
    """The class of a scene with at most one lesion."""
    image = scene.about.image
    return f"{scene.lesions[0].kind} on {article(image)}" if scene.lesions else f"normal {image}"


def classes(modalities: tuple[str, ...]) -> list[str]:
    """All labels of these modalities, in order."""
    found = []
    for about in (MODALITIES[name] for name in modalities):
        found += [f"normal {about.image}", *(f"{kind} on {article(about.image)}" for kind in about.kinds)]
    return found


def _abnormal(scene: Scene) -> Question:
    text = f"Is there an abnormality in this {scene.about.image}?"
    return Question(text, "yes" if scene.lesions else "no", "abnormal")


def _kind(scene: Scene, draws: Draws) -> Question | None:
    present = sorted({lesion.kind for lesion in scene.lesions})
    absent = [kind for kind in scene.about.kinds if kind not in present]
    yes = draws.coin()
    if not absent:
        return None
    asked = article(draws.pick(present if yes else absent))
    text = draws.pick((f"Is there {asked}?", f"Is {asked} present in this {scene.about.image}?"))
    return Question(text, YES_NO[not yes], "kind")


def _site(scene: Scene, draws: Draws) -> Question:
    present = [lesion.site for lesion in scene.lesions]
    absent = [site for site in range(len(scene.about.sites)) if site not in present]
    yes = draws.coin()
    name = scene.about.sites[draws.pick(present if yes else absent)].name
    text = draws.pick((f"Is there a lesion in the {name}?", f"Is the {name} affected?"))
    return Question(text, YES_NO[not yes], "site")


def _large(scene: Scene, draws: Draws) -> Question:
    lesion = draws.pick(scene.lesions)
    text = f"Is the lesion in the {scene.site(lesion).name} large?"
    return Question(text, YES_NO[lesion.size != "large"], "large")


def _what(scene: Scene, draws: Draws) -> Question:
    lesion = draws.pick(scene.lesions)
    name = scene.site(lesion).name
    text = draws.pick((f"What is the lesion in the {name}?", f"What kind of lesion is seen in the {name}?"))
    return Question(text, lesion.kind, "what")


def _where(scene: Scene, draws: Draws) -> Question | None:
    lesion = _unique(scene, draws)
    return None if lesion is None else Question(f"Where is the {lesion.kind}?", scene.site(lesion).name, "where")


def _size(scene: Scene, draws: Draws) -> Question | None:
    lesion = _unique(scene, draws)
    return None if lesion is None else Question(f"What is the size of the {lesion.kind}?", lesion.size, "size")


def _side(scene: Scene, draws: Draws) -> Question | None:
    lesion = _unique(scene, draws)
    return None if lesion is None else Question(f"On which side is the {lesion.kind}?", scene.site(lesion).side, "side")


def _count(scene: Scene, draws: Draws) -> Question:
    text = draws.pick(("How many lesions are there?", f"How many lesions does this {scene.about.image} show?"))
    return Question(text, str(len(scene.lesions)), "count")


def _unique(scene: Scene, draws: Draws) -> Lesion | None:
    """A lesion that is the only one of its kind."""
    counts = Counter(lesion.kind for lesion in scene.lesions)
    alone = [lesion for lesion in scene.lesions if counts[lesion.kind] == 1]
    return draws.pick(alone) if alone else None


_Ask = Callable[[Scene, Draws], Question | None]
_CLOSED: tuple[_Ask, ...] = (_kind, _site, _large)
_OPEN: tuple[_Ask, ...] = (_what, _where, _size, _side, _count)
