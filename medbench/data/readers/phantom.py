"""Layout `phantom`: the generated images of `medbench.phantom`; nothing lies on disk, an image is painted when read.

Options: what is asked (`ask`), the `modalities`, the `scanner`, the `seed`, and images a split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.phantom.image import PAINT_VERSION
from medbench.phantom.questions import Question, label, probes, vqa
from medbench.phantom.report import report_question
from medbench.phantom.scene import Scene, find_scene

ASK: dict[str, Callable[[Scene], list[Question]]] = {
    "vqa": vqa,
    "report": lambda scene: [report_question(scene)],
    "yesno": probes,
    "cls": lambda scene: [Question("What does this image show?", label(scene), "class")],
}
"""What is asked -> the questions of a scene."""


@dataclass(frozen=True, slots=True)
class PhantomImage:
    """An image that is painted when it is read."""

    seed: str
    split: str
    modalities: tuple[str, ...]
    single: bool
    scanner: str

    @property
    def key(self) -> str:
        """Names the scene and how scenes are painted, so that a card's digest pins both; not the scanner."""
        return f"{self.scene.digest[:16]}.{PAINT_VERSION}"

    @property
    def place(self) -> str:
        """The seed it is drawn from."""
        return f"generated from {self.seed}, {self.scanner} scanner"

    @property
    def scene(self) -> Scene:
        """What it shows."""
        return find_scene(self.seed, self.split, self.modalities, self.single)

    def read(self) -> bytes:
        """The PNG."""
        from medbench.phantom.image import png

        return png(self.scene, self.scanner)


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """Always there."""
    return None


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The questions of every image, in the images' order; ids are split, image and question number."""
    ask = ASK[options["ask"]]
    modalities = tuple(options["modalities"])
    domain = f"{'+'.join(modalities)}:{'single' if options['ask'] == 'cls' else 'several'}"
    found = []
    for number in range(int(options[split])):
        seed = f"phantom:{domain}:{options['seed']}:{split}:{number}"
        image = PhantomImage(seed, split, modalities, options["ask"] == "cls", options.get("scanner", "standard"))
        for k, question in enumerate(ask(image.scene)):
            fields = {"question_type": question.type, "modality": image.scene.modality}
            found.append(Row(f"{split}-{number}-{k}", image, question.text, question.answer, fields))
    return found
