"""What `nano-vl` is pretrained on: captions and general questions about scenes of the `pretrain` share.

None of these wordings occurs in the phantom tasks, and none of these scenes can (`medbench.phantom.scene.SHARES`).
"""

from __future__ import annotations

from typing import NamedTuple

from medbench.phantom.anatomy import MODALITIES, article
from medbench.phantom.draws import Draws
from medbench.phantom.scene import Lesion, Scene, find_scene

#: As many exchanges about a scene, and the second one is a listing.
LISTING_FROM = 3
CAPTION_PROMPTS = ("Describe the image.", "Give a caption.", "What can be seen here?", "Summarise the findings.")


class Exchange(NamedTuple):
    """A prompt and what should be answered."""

    prompt: str
    answer: str


def pretraining_scene(seed: int, number: int, split: str = "pretrain") -> Scene:
    """Scene `number` of the endless sequence of a seed; `pretrain_test` scenes are never trained on."""
    return find_scene(f"nano:{seed}:{split}:{number}", split, tuple(MODALITIES))


def caption(scene: Scene) -> str:
    """The modality, then what each site holds: `CT slice: liver clear; spleen large cyst; ...`."""
    here = {lesion.site: f"{lesion.size} {lesion.kind}" for lesion in scene.lesions}
    sites = [f"{site.name} {here.get(index, 'clear')}" for index, site in enumerate(scene.about.sites)]
    return f"{scene.about.image}: {'; '.join(sites)}"


def exchanges(scene: Scene, draws: Draws, count: int) -> list[Exchange]:
    """`count` exchanges about a scene: a caption; of three or more, a listing; then questions of other types."""
    found = [Exchange(draws.pick(CAPTION_PROMPTS), caption(scene))]
    if count >= LISTING_FROM:
        found.append(_listing(scene, draws))
    while len(found) < count:
        found.append(draws.pick(_ASK if scene.lesions else _ASK[:4])(scene, draws))
    return found


def _listing(scene: Scene, draws: Draws) -> Exchange:
    """What sites hold, in the order asked for: what a caption says, to be found by name."""
    here = {lesion.site: f"{lesion.size} {lesion.kind}" for lesion in scene.lesions}
    order = draws.some(range(4), draws.between(2, 4))
    names = [scene.about.sites[index].name for index in order]
    told = [f"{name} {here.get(index, 'clear')}" for name, index in zip(names, order, strict=True)]
    return Exchange(f"Go through {', '.join(names)}.", "; ".join(told))


def _modality(scene: Scene, draws: Draws) -> Exchange:
    return Exchange(draws.pick(("Name the imaging modality.", "What type of image is it?")), scene.about.image)


def _organ(scene: Scene, draws: Draws) -> Exchange:
    return Exchange(draws.pick(("Name the organ.", "Which part of the body is imaged?")), scene.about.organ)


def _finding(scene: Scene, draws: Draws) -> Exchange:
    """A kind at a site, true or false."""
    about = scene.about
    true = {(lesion.kind, lesion.site) for lesion in scene.lesions}
    false = [(kind, s) for kind in about.kinds for s in range(4) if (kind, s) not in true]
    yes = bool(true) and draws.coin()
    kind, site = draws.pick(sorted(true)) if yes else draws.pick(false)
    claim = f"{kind} at the {about.sites[site].name}"
    return Exchange(draws.pick((f"Can you see {article(claim)}?", f"True: {claim}?")), "yes" if yes else "no")


def _at(scene: Scene, draws: Draws) -> Exchange:
    """What lies at a site, or that nothing does."""
    index = draws.below(4)
    here = [lesion for lesion in scene.lesions if lesion.site == index]
    if scene.lesions and not here and draws.coin():
        here = [draws.pick(scene.lesions)]
        index = here[0].site
    name = scene.about.sites[index].name
    prompt = draws.pick((f"Name what lies at the {name}.", f"Look at the {name}: finding?"))
    return Exchange(prompt, f"{here[0].size} {here[0].kind}" if here else "nothing")


def _kind_seen(scene: Scene, draws: Draws) -> Exchange:
    present = {lesion.kind for lesion in scene.lesions}
    absent = [kind for kind in scene.about.kinds if kind not in present]
    yes = not absent or draws.coin()
    kind = draws.pick(sorted(present) if yes else absent)
    return Exchange(draws.pick((f"Any {kind}?", f"Can you see {article(kind)}?")), "yes" if yes else "no")


def _place(scene: Scene, draws: Draws) -> Exchange:
    kind = draws.pick(scene.lesions).kind
    places = [scene.site(lesion).name for lesion in scene.lesions if lesion.kind == kind]
    return Exchange(draws.pick((f"Locate each {kind}.", f"{kind.capitalize()}: which site?")), " and ".join(places))


def _number(scene: Scene, draws: Draws) -> Exchange:
    prompt = draws.pick(("Count the lesions.", "Number of lesions?"))
    return Exchange(prompt, str(len(scene.lesions)))


def _how_large(scene: Scene, draws: Draws) -> Exchange:
    lesion: Lesion = draws.pick(scene.lesions)
    name = scene.site(lesion).name
    return Exchange(draws.pick((f"How big is the finding at the {name}?", f"Size at the {name}?")), lesion.size)


#: The first four can be asked of a normal scene.
_ASK = (_modality, _organ, _at, _finding, _kind_seen, _place, _number, _how_large, _at, _finding)
