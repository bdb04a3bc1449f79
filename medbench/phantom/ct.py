"""An axial CT slice of the upper abdomen: Hounsfield units, Gaussian noise, a soft-tissue window."""

from __future__ import annotations

import numpy as np

from medbench.phantom.draws import gaussian
from medbench.phantom.scene import Lesion, Scene
from medbench.phantom.shapes import SIDE, Array, blob, ellipse, grid, lay, smooth, soft

#: Level and width of the window, in Hounsfield units.
WINDOW = (50.0, 400.0)
_NOISE = 14.0


def paint(scene: Scene, noise: float, seed: str) -> Array:
    """Grey values in [0, 1], [112, 112]."""
    x, _ = grid()
    wide, deep, liver, spleen, kidney, gut, fat, spine = (v / 100 for v in scene.anatomy)
    units = np.full_like(x, -1000.0)
    a, b = 455 + 18 * wide, 385 + 15 * deep
    rim = 42 + 14 * fat
    units = lay(units, ellipse(500, 530, a, b), -100)
    units = lay(units, ellipse(500, 530, a - rim, b - rim), 55)
    units = lay(units, ellipse(500, 530, a - rim - 28, b - rim - 28), -95)
    units = lay(units, ellipse(500, 815, 190, 75), 58)
    organ = ellipse(285, 425, 195 + 12 * liver, 190) * (1 - ellipse(520, 560, 130, 130, 40))
    units = lay(units, organ, 112)
    units = lay(units, ellipse(410, 350, 120, 95 + 8 * liver), 112)
    units = lay(units, ellipse(770, 435, 95 + 8 * spleen, 150), 124)
    stomach = ellipse(600, 330 + 12 * gut, 115, 85)
    units = lay(units, stomach, 25)
    units = lay(units, ellipse(600 + 20 * gut, 285 + 12 * gut, 70, 32), -850)
    for cx in (315 - 6 * kidney, 685 + 6 * kidney):
        units = lay(units, ellipse(cx, 690, 108, 118), 175)
        inward = 62 if cx < 500 else -62
        units = lay(units, ellipse(cx + inward, 690, 24, 36), -40)
    units = lay(units, ellipse(540, 650, 36, 36), 195)
    units = lay(units, ellipse(455, 640, 40, 32), 135)
    units = lay(units, ellipse(500, 745 + 6 * spine, 74, 60), 330)
    units = lay(units, ellipse(500, 747 + 6 * spine, 55, 42), 200)
    units = lay(units, ellipse(500, 822 + 6 * spine, 28, 20), 40)
    units = lay(units, ellipse(500, 856 + 6 * spine, 16, 24), 380)
    for lesion in scene.lesions:
        units = _lesion(units, lesion)
    grain = smooth(gaussian(seed, 1, SIDE)[0], 1) * 2.2
    level, width = WINDOW
    return np.clip((units + _NOISE * noise * grain - level) / width + 0.5, 0.0, 1.0)


def _lesion(units: Array, lesion: Lesion) -> Array:
    def mask(scale: float, rough: float) -> Array:
        return soft(blob(lesion.x, lesion.y, lesion.radius * scale, lesion.shape, rough))

    if lesion.kind == "cyst":
        return lay(units, mask(1.0, 0.02), -15)
    if lesion.kind == "mass":
        return lay(lay(units, mask(1.08, 0.10), 235), mask(0.62, 0.12), 20)
    return lay(units, mask(0.85, 0.16), 900)
