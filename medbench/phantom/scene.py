"""A small generated set: bright nodules in a body outline, and questions about them.

Everything a question depends on is drawn as integers from sha256, so scenes, questions and answers are the same on
every machine; the pixels are painted from the scene.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass

SIDE = 112
_SIZES = {"small": 5, "large": 10}


@dataclass(frozen=True)
class Nodule:
    """A bright disc: which side of the image, upper or lower half, small or large, and its centre in pixels."""

    side: str
    half: str
    size: str
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """What an image shows."""

    seed: str
    nodules: tuple[Nodule, ...]

    def questions(self) -> list[tuple[str, str]]:
        """Four (question, answer) pairs, two closed and two open."""
        draw = _draws(f"{self.seed}:questions")
        half = ("upper", "lower")[next(draw) % 2]
        side = ("left", "right")[next(draw) % 2]
        here = [n for n in self.nodules if n.side == side]
        first = self.nodules[0]
        return [
            (f"Is there a nodule on the {side} of the image?", "yes" if here else "no"),
            (
                f"Is there a nodule in the {half} half of the image?",
                "yes" if any(n.half == half for n in self.nodules) else "no",
            ),
            ("How many nodules are there?", str(len(self.nodules))),
            (f"What is the size of the nodule on the {first.side}?", first.size),
        ]


def _draws(seed: str) -> Iterator[int]:
    """Endless integers in [0, 65536) from sha256."""
    block = 0
    while True:
        data = hashlib.sha256(f"{seed}:{block}".encode()).digest()
        yield from (int.from_bytes(data[i : i + 2], "big") for i in range(0, 32, 2))
        block += 1


def draw_scene(seed: str) -> Scene:
    """The scene of a seed: one or two nodules, at most one a side."""
    draw = _draws(seed)
    sides = ["left", "right"]
    if next(draw) % 2:
        sides.reverse()
    nodules = []
    for side in sides[: 1 + next(draw) % 2]:
        half = ("upper", "lower")[next(draw) % 2]
        size = ("small", "large")[next(draw) % 2]
        x = 34 + next(draw) % 9 - 4 + (0 if side == "left" else 44)
        y = 36 + next(draw) % 11 - 5 + (0 if half == "upper" else 40)
        nodules.append(Nodule(side, half, size, x, y))
    return Scene(seed, tuple(nodules))


def paint(scene: Scene) -> bytes:
    """The scene as a greyscale PNG of 112 x 112 pixels."""
    import numpy as np
    from PIL import Image

    y, x = np.mgrid[0:SIDE, 0:SIDE]
    body = ((x - 56) ** 2 * 4 + (y - 56) ** 2 * 3) < 4 * 50 * 50 * 3 // 4
    pixels = np.where(body, 70, 8)
    for nodule in scene.nodules:
        radius = _SIZES[nodule.size]
        pixels[(x - nodule.x) ** 2 + (y - nodule.y) ** 2 < radius**2] = 220
    noise = np.frombuffer(hashlib.shake_256(scene.seed.encode()).digest(SIDE * SIDE), np.uint8)
    pixels = np.clip(pixels + noise.reshape(SIDE, SIDE) % 24, 0, 255)
    sink = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()
