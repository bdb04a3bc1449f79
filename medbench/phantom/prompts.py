"""What the classes of `phantom_clip` are called in prompts."""

from __future__ import annotations

from medbench.phantom.anatomy import MODALITIES, article

#: The first makes the single prompt. None of the others was in the captions of pretraining.
TEMPLATES = ("{}.", "a scan: {}.", "what we see: {}.", "grey-scale picture, {}.")


def phrases(modalities: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Class (as `medbench.phantom.questions.classes` names it) -> three phrases, the first one its name.

    Example:
        >>> phrases(("mr",))["cyst on an MR slice"]
        ('cyst on an MR slice', 'MR slice that shows a cyst', 'MR slice, cyst present')
    """
    found: dict[str, tuple[str, ...]] = {}
    for about in (MODALITIES[name] for name in modalities):
        image = about.image
        names = (f"normal {image}", f"{image} that shows nothing abnormal", f"{image}, no lesion present")
        found[names[0]] = names
        for kind in about.kinds:
            name = f"{kind} on {article(image)}"
            found[name] = (name, f"{image} that shows {article(kind)}", f"{image}, {kind} present")
    return found
