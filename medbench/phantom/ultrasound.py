"""An ultrasound sector: echo strength, shadow and enhancement behind lesions, Rayleigh speckle, log compression."""

from __future__ import annotations

import numpy as np

from medbench.phantom.draws import gaussian
from medbench.phantom.scene import Lesion, Scene
from medbench.phantom.shapes import SIDE, Array, blob, ellipse, grid, smooth, soft

_APEX = (500.0, -90.0)
_RANGE_DB = 34.0


def paint(scene: Scene, noise: float, seed: str) -> Array:
    """Grey values in [0, 1], [112, 112]."""
    x, y = grid()
    gain, skin, vessel, dome_depth, open_, fat, vein, slope = (v / 100 for v in scene.anatomy)
    depth = np.sqrt((x - _APEX[0]) ** 2 + (y - _APEX[1]) ** 2)
    angle = np.arctan2(x - _APEX[0], y - _APEX[1])
    sector = soft((0.62 + 0.02 * open_ - np.abs(angle)) * depth, 12) * soft(depth - 190, 10) * soft(1030 - depth, 10)
    echo = np.full_like(x, 0.30) * (1 + 0.10 * gain)
    for at, strength in ((215, 1.6), (255 + 8 * skin, 0.9), (290 + 12 * skin, 1.3)):
        echo = echo + strength * 0.35 * np.exp(-(((depth - at) / 11) ** 2)) * (1 + 0.15 * fat)
    for cx, cy, a, b in ((500 + 45 * vessel, 480, 30, 22), (480 + 40 * vein, 700 + 20 * vein, 45, 26)):
        echo = echo * (1 - 0.85 * ellipse(cx, cy, a, b, 16))
    wall = 925 + 18 * dome_depth + 55 * np.sin(3 * angle + slope)
    echo = echo + 1.1 * np.exp(-(((depth - wall) / 14) ** 2))
    echo = echo * np.where(depth > wall + 25, 0.45, 1.0)
    # From deep to shallow: what lies in front throws its shadow over what lies behind.
    for lesion in sorted(scene.lesions, key=lambda lesion: -lesion.y):
        echo = _lesion(echo, lesion, depth, angle)
    echo = echo * np.exp(-(depth - 200) / 2600)
    real, imaginary = smooth(gaussian(seed, 2, SIDE), 1, axes=(-1,)) * 1.63
    speckle = np.sqrt(real**2 + imaginary**2) / 1.2533
    amplitude = echo * (1 - 0.75 * noise + 0.75 * noise * speckle) + 0.008
    decibels = 20 * np.log10(np.clip(amplitude, 1e-3, None))
    return np.clip((decibels + 30) / _RANGE_DB, 0.0, 1.0) * sector


def _lesion(echo: Array, lesion: Lesion, depth: Array, angle: Array) -> Array:
    cx, cy, radius = lesion.x, lesion.y, lesion.radius
    at = np.hypot(cx - _APEX[0], cy - _APEX[1])
    turn = np.arctan2(cx - _APEX[0], cy - _APEX[1])
    behind = soft(radius * 0.75 - np.abs(angle - turn) * at, 12) * soft(depth - at, 20)
    if lesion.kind == "cyst":
        inside = soft(blob(cx, cy, radius, lesion.shape, 0.03), 12)
        return (echo * (1 + 0.9 * behind * np.exp(-np.clip(depth - at, 0, None) / 260))) * (1 - 0.95 * inside)
    if lesion.kind == "mass":
        inside = soft(blob(cx, cy, radius, lesion.shape, 0.14), 14)
        rim = inside - soft(blob(cx, cy, radius * 0.78, lesion.shape, 0.14), 14)
        return echo * (1 - 0.78 * inside) + 0.10 * rim
    face = soft(blob(cx, cy, radius * 0.8, lesion.shape, 0.05), 10)
    return echo * (1 - 0.72 * behind) * (1 - face) + 1.5 * face * soft(at + radius * 0.25 - depth, 30)
