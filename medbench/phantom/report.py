"""The report of a scene: findings and impression, in a radiologist's order, from the scene alone."""

from __future__ import annotations

from medbench.phantom.anatomy import article
from medbench.phantom.questions import Question
from medbench.phantom.scene import Scene

_NUMBERS = ("no", "one", "two", "three")


def report(scene: Scene) -> str:
    """`Findings: ... Impression: ...`; sites without a lesion are named as unremarkable."""
    about = scene.about
    found = [f"There is {article(f'{lesion.size} {lesion.kind}')} in the {scene.site(lesion).name}."
             for lesion in scene.lesions]  # fmt: skip
    taken = {lesion.site for lesion in scene.lesions}
    clear = [site.name for index, site in enumerate(about.sites) if index not in taken]
    if found:
        found.append(f"The {_listed(clear)} {'is' if len(clear) == 1 else 'are'} clear.")
        impression = f"{_NUMBERS[len(scene.lesions)]} {'lesion' if len(scene.lesions) == 1 else 'lesions'}: " + _listed(
            [f"{lesion.kind} in the {scene.site(lesion).name}" for lesion in scene.lesions]
        )
    else:
        found.append(f"No lesion is seen in the {about.organ}.")
        impression = f"normal {about.image}"
    return f"Findings: {' '.join(found)} Impression: {impression[0].upper()}{impression[1:]}."


def report_question(scene: Scene) -> Question:
    """The one question of the report task."""
    return Question(f"Write the report of this {scene.about.image}.", report(scene), "report")


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
