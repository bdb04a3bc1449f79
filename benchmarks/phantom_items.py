"""How fast phantoms are generated, beside the training that uses them: `python benchmarks/phantom_items.py`.

Prints items and images a second, and the share that generation takes of a pretraining step of `nano-vl` (same process,
same threads; the median of several rounds).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from medbench.backbones.pretrain import Recipe, fresh_grounding, fresh_vlm, scene_image, step_loss
from medbench.backbones.registry import get_backbone
from medbench.data.readers.phantom import ASK, rows
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.image import png
from medbench.phantom.pretraining import pretraining_scene
from medbench.phantom.scene import find_scene

ROUNDS = 5


def seconds(work: Callable[[int], object]) -> float:
    """The median time of a round; each round gets its number, so that nothing is served from a cache."""
    work(0)
    taken = []
    for number in range(1, ROUNDS + 1):
        started = time.perf_counter()
        work(number)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def main() -> None:
    """Measures and prints."""
    for ask in ASK:
        options = {"ask": ask, "modalities": list(MODALITIES), "train": 200}
        count = len(rows(Path(), options | {"seed": -1}, "train"))
        taken = seconds(lambda n, o=options: rows(Path(), o | {"seed": 1000 + n}, "train"))  # type: ignore[misc]
        print(f"questions of {ask}: {count / taken:,.0f} items a second")
    for name in MODALITIES:
        scenes = [find_scene(f"benchmark:{n}", "train", (name,)) for n in range(50)]
        taken = seconds(lambda _, s=scenes: [png(scene) for scene in s])  # type: ignore[misc]
        print(f"images of {name}: {50 / taken:,.0f} a second")
    recipe = Recipe(images=32)
    vlm = fresh_vlm(get_backbone("nano-vl").folder(), 0, torch.device("cpu"))
    vlm.model.train()
    grounding = fresh_grounding(vlm, 0)

    def generate(number: int) -> None:
        for n in range(32):
            scene_image(pretraining_scene(1, 32 * number + n))

    made, whole = seconds(generate), seconds(lambda n: step_loss(vlm, grounding, recipe, 100 + n).sum().backward())
    print(f"generation takes {100 * made / whole:.0f} % of a pretraining step ({torch.get_num_threads()} threads)")


if __name__ == "__main__":
    main()
