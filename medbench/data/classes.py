"""What a card of kind classification says beside its data: classes, prompts, and what training does to images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: Where a template has the phrase.
PLACE = "{}"


class Augment(BaseModel):
    """What training does to an image at random (see `medbench.training.augment.Augmentation`); nothing by default.

    Attributes:
        flip: mirrored in half of the cases. Not where left and right are told apart (organs, the heart's side).
        crop: the smallest part of the area that is cut out.
        rotate: degrees, either way.
        brightness: relative, either way.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    flip: bool = False
    crop: Annotated[float, Field(gt=0, le=1)] = 1.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0


def check_classes(
    classes: Mapping[str, Sequence[str]], templates: Sequence[str], positive: str | None, needed: bool
) -> None:
    """Checks the classes and the prompts of a card.

    Args:
        classes: class -> its phrases.
        templates: sentences with one place for a phrase.
        positive: the class that AUROC and F1 are of.
        needed: whether the card's kind is classification; all three are for that kind alone.

    Raises:
        ValueError: names the field and what would be right.
    """
    if not needed:
        for field, given in (("classes", classes), ("templates", templates), ("positive", positive)):
            if given:
                raise ValueError(f"{field}: only for kind classification")
        return
    if len(classes) < 2:
        raise ValueError(f"classes: should be at least two, {'is ' + ', '.join(classes) if classes else 'is none'}")
    _check_phrases(classes)
    if not templates:
        raise ValueError(f"templates: is missing; add at least one, such as 'a photo of a {PLACE}.'")
    if len(set(templates)) != len(templates):
        raise ValueError("templates: names one twice")
    for template in templates:
        if template.count(PLACE) != 1 or set("{}") & set(template.replace(PLACE, "")):
            raise ValueError(f"templates: should hold {PLACE} once and no other brace, is {template!r}")
    if len(classes) == 2 and positive not in classes:
        found = f"is {positive!r}" if positive else "is missing"
        raise ValueError(f"positive: with two classes, should be one of {', '.join(classes)}; {found}")
    if len(classes) > 2 and positive is not None:
        raise ValueError(f"positive: only for two classes, there are {len(classes)}")


def _check_phrases(classes: Mapping[str, Sequence[str]]) -> None:
    names = [" ".join(name.split()).casefold() for name in classes]
    if not all(names) or len(set(names)) != len(names):
        raise ValueError("classes: should have different names, none empty")
    owner: dict[str, str] = {}
    for name, phrases in classes.items():
        if not phrases or not all(phrase.strip() for phrase in phrases):
            raise ValueError(f"classes.{name}: should be a list of phrases, none empty")
        for phrase in phrases:
            key = " ".join(phrase.split()).casefold()
            if key in owner:
                twice = "twice" if owner[key] == name else f"under {owner[key]} too"
                raise ValueError(f"classes.{name}: the phrase {phrase!r} is there {twice}")
            owner[key] = name


def prompts(classes: Mapping[str, Sequence[str]], templates: Sequence[str], single: bool) -> dict[str, list[str]]:
    """Class -> its prompts, in the card's order.

    Args:
        classes: class -> its phrases.
        templates: sentences with one place for a phrase.
        single: the first template with the first phrase alone; else all templates with all phrases (an ensemble).

    Example:
        >>> prompts({"cyst": ["cyst", "fluid"], "none": ["no cyst"]}, ["a {}.", "see {}"], single=False)
        {'cyst': ['a cyst.', 'a fluid.', 'see cyst', 'see fluid'], 'none': ['a no cyst.', 'see no cyst']}
    """
    used = templates[:1] if single else templates
    return {
        name: [template.replace(PLACE, phrase) for template in used for phrase in (phrases[:1] if single else phrases)]
        for name, phrases in classes.items()
    }
