"""Captions of scenes for contrastive pretraining (`nano-clip`): one fact in many wordings, and which captions say it.

A caption states a scene at one level of detail. Two captions of a level are of the same fact exactly when `fact` is
equal, so a batch knows which of its texts are true of which of its images, and no true one is taken for a false one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from medbench.phantom.anatomy import MODALITIES, article
from medbench.phantom.draws import Draws
from medbench.phantom.scene import Lesion, Scene, find_scene

Level = Literal["modality", "kind", "site", "full"]
#: From the kind of image alone to kind, site and size of every lesion.
LEVELS: tuple[Level, ...] = get_args(Level)

_IMAGES = {
    "xray": ("chest radiograph", "chest x-ray", "frontal chest radiograph", "radiograph of the chest"),
    "ultrasound": ("ultrasound image", "liver ultrasound", "sonogram of the liver", "ultrasound of the liver"),
    "ct": ("CT slice", "abdominal CT slice", "CT of the abdomen", "axial CT image of the abdomen"),
    "mr": ("MR slice", "brain MR slice", "MRI of the brain", "axial MR image of the head"),
}
_SPELLINGS = {"tumour": ("tumour", "tumour", "tumor"), "haemorrhage": ("haemorrhage", "haemorrhage", "hemorrhage")}
_NORMAL = (
    "normal {image}",
    "{image} without a lesion",
    "unremarkable {image}",
    "{image}, no abnormality",
    "{image} with no lesion",
    "{image} with normal findings",
)
_FOUND = ("{found} on {an_image}", "{image} with {a_found}", "{image} showing {found}", "{image}: {found}")
_FRAMES = (
    *("{}",) * 4,
    "an image of {}",
    "a picture of {}",
    "medical image: {}",
    "findings: {}",
    "impression: {}",
    "this is {}",
    "an example of {}",
    "diagnosis: {}",
)


def caption_scene(seed: int, number: int, split: str = "pretrain") -> Scene:
    """Scene `number` of a seed's sequence; every second one has at most one lesion, as those of `phantom_clip` have."""
    return find_scene(f"clip:{seed}:{split}:{number}", split, tuple(MODALITIES), number % 2 == 0)


def fact(scene: Scene, level: Level) -> tuple[object, ...]:
    """What a caption of this level says of the scene: the modality, and the set of its lesions as the level sees them.

    Example:
        >>> scene = find_scene("golden", "test", ("ct",), single=True)
        >>> fact(scene, "modality"), fact(scene, "site")
        (('ct',), ('ct', ('cyst', 1)))
    """
    if level == "modality":
        return (scene.modality,)
    return (scene.modality, *sorted({_seen(lesion, level) for lesion in scene.lesions}))


def _seen(lesion: Lesion, level: Level) -> tuple[object, ...]:
    seen = (lesion.kind, lesion.site, lesion.size)
    return seen[: {"kind": 1, "site": 2, "full": 3}[level]]


def wording(scene: Scene, level: Level, draws: Draws) -> str:
    """One of many captions that say `fact(scene, level)`."""
    image = draws.pick(_IMAGES[scene.modality])
    if level == "modality":
        text = image
    elif not scene.lesions:
        text = draws.pick(_NORMAL).format(image=image)
    else:
        told = list(dict.fromkeys(_told(scene, lesion, level) for lesion in scene.lesions))
        told = [_spelt(part, draws) for part in draws.some(told, len(told))]
        found, a_found = " and ".join(told), " and ".join(article(part) for part in told)
        text = draws.pick(_FOUND).format(image=image, an_image=article(image), found=found, a_found=a_found)
    return _framed(text, draws)


def word_pairs(words: Sequence[str], endings: Sequence[str], count: int, draws: Draws) -> list[tuple[str, str]]:
    """Captions of nothing that can be painted: pairs that say the same, `count` that differ in one word or two.

    What surrounds the word is drawn once, as class names share what surrounds them.

    Args:
        words: to draw from.
        endings: what every second word is lengthened by, into one that is in no dictionary.
        count: how many pairs.
        draws: used up in order.
    """
    rest = " ".join(draws.some(words, draws.below(4)))
    image = draws.pick([name for names in _IMAGES.values() for name in names])
    about = draws.pick(("{word} {rest}", "{word} {rest} on {an_image}", "{image} with {word} {rest}", "{rest} {word}"))
    found = []
    for word in draws.some(words, count):
        said = word + draws.pick(endings) if draws.coin() else word
        said = f"{said} {draws.pick(words)}" if draws.below(4) == 0 else said
        text = about.format(word=said, rest=rest, image=image, an_image=article(image))
        found.append((_framed(text, draws), _framed(text, draws)))
    return found


def _framed(text: str, draws: Draws) -> str:
    text = " ".join(text.split())
    text = draws.pick(_FRAMES).format(article(text) if draws.coin() else text)
    text = text[0].upper() + text[1:] if draws.coin() else text
    return f"{text}." if draws.coin() else text


def _told(scene: Scene, lesion: Lesion, level: Level) -> str:
    if level == "kind":
        return lesion.kind
    place = f"{lesion.kind} in the {scene.site(lesion).name}"
    return f"{lesion.size} {place}" if level == "full" else place


def _spelt(text: str, draws: Draws) -> str:
    for word, spellings in _SPELLINGS.items():
        if word in text:
            return text.replace(word, draws.pick(spellings))
    return text
