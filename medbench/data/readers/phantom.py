"""Layout `phantom`: the generated set of `medbench.phantom`; nothing lies on disk.

Options: `seed`, and images a split (`train`, `validation`, `test`); each image has four questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.data.readers import Row
from medbench.phantom.scene import draw_scene, paint


@dataclass(frozen=True, slots=True)
class PhantomImage:
    """An image that is painted when it is read."""

    key: str

    @property
    def place(self) -> str:
        """The seed it is drawn from."""
        return f"generated from {self.key}"

    def read(self) -> bytes:
        """The PNG."""
        return paint(draw_scene(self.key))


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """Always there."""
    return None


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """Four questions an image."""
    found = []
    for number in range(int(options[split])):
        scene = draw_scene(f"phantom:{options['seed']}:{split}:{number}")
        for k, (question, answer) in enumerate(scene.questions()):
            found.append(Row(f"{split}-{number}-{k}", PhantomImage(scene.seed), question, answer))
    return found
