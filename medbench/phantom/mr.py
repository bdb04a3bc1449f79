"""An axial T1-weighted MR slice of the head after contrast: bias field, Rician noise."""

from __future__ import annotations

import numpy as np

from medbench.phantom.draws import gaussian
from medbench.phantom.scene import Lesion, Scene
from medbench.phantom.shapes import SIDE, Array, blob, ellipse, grid, lay, soft

_NOISE = 0.035


def paint(scene: Scene, noise: float, seed: str) -> Array:
    """Grey values in [0, 1], [112, 112]."""
    x, y = grid()
    wide, long_, ventricle, fold, bias_x, bias_y, cleft, skull = (v / 100 for v in scene.anatomy)
    a, b = 385 + 15 * wide, 450 + 12 * long_
    signal = np.zeros_like(x)
    signal = lay(signal, ellipse(500, 500, a, b), 0.74)
    signal = lay(signal, ellipse(500, 500, a - 26, b - 26), 0.08)
    thick = 48 + 5 * skull
    signal = lay(signal, ellipse(500, 500, a - thick, b - thick), 0.40)
    angle = np.arctan2(y - 500, x - 500)
    wave = 12 * np.cos(17 * angle + 6 * fold) + 8 * np.cos(11 * angle)
    distance = (1 - np.sqrt(((x - 500) / (a - thick)) ** 2 + ((y - 500) / (b - thick)) ** 2)) * (a - thick)
    signal = lay(signal, soft(distance - 34 - wave), 0.57)
    signal = lay(signal, soft(7 - np.abs(x - 500 - 5 * cleft), 10) * soft(b - 90 - np.abs(y - 500), 20), 0.22)
    for sign in (-1, 1):
        horn = ellipse(500 + sign * 52, 440, 27 + 8 * ventricle, 88)
        tail = ellipse(500 + sign * 78, 580, 24 + 7 * ventricle, 72)
        signal = lay(signal, np.maximum(horn, tail), 0.14)
        signal = lay(signal, ellipse(500 + sign * 118, 480, 34, 66), 0.45)
    for lesion in scene.lesions:
        signal = _lesion(signal, lesion)
    u, v = (x - 500) / 500, (y - 500) / 500
    signal = signal * (1 + 0.13 * bias_x * u + 0.13 * bias_y * v - 0.08 * (u * u + v * v))
    real, imaginary = gaussian(seed, 2, SIDE) * _NOISE * noise
    return np.clip(np.sqrt((signal + real) ** 2 + imaginary**2), 0.0, 1.0)


def _lesion(signal: Array, lesion: Lesion) -> Array:
    def mask(scale: float, rough: float) -> Array:
        return soft(blob(lesion.x, lesion.y, lesion.radius * scale, lesion.shape, rough))

    if lesion.kind == "cyst":
        return lay(signal, mask(1.0, 0.03), 0.12)
    if lesion.kind == "tumour":
        swollen = lay(signal, mask(1.4, 0.15), 0.47)
        return lay(lay(swollen, mask(1.05, 0.10), 0.93), mask(0.6, 0.12), 0.30)
    return lay(signal, mask(0.95, 0.12), 0.90)
