"""A chest radiograph: attenuation summed along the ray, Poisson noise of the photons, negative logarithm."""

from __future__ import annotations

import numpy as np

from medbench.phantom.draws import gaussian
from medbench.phantom.scene import Lesion, Scene
from medbench.phantom.shapes import SIDE, Array, blob, dome, ellipse, grid, line, smooth, soft

PHOTONS = 900.0
_ATTENUATION = 2.2
# Strokes of the side marker on a grid of 4 x 5 pixels.
_MARKER = ("111.", "1..1", "111.", "1.1.", "1..1")


def paint(scene: Scene, noise: float, seed: str) -> Array:
    """Grey values in [0, 1], [112, 112]."""
    x, y = grid()
    wide, tall, heart, rib, base, tilt, shoulder, dense = (v / 100 for v in scene.anatomy)
    thorax = dome(500, 760, 460 + 15 * wide, 800)
    neck = 0.5 * ellipse(500, 60, 105, 190, 60) + 0.55 * ellipse(500, 330, 420 + 20 * shoulder, 190, 90)
    body = np.maximum(thorax, neck)
    lungs = np.zeros_like(x)
    for cx, a in ((298 - 8 * wide, 148 + 8 * wide), (702 + 8 * wide, 150 + 8 * wide)):
        lungs = np.maximum(lungs, dome(cx, 460, a, 320 + 15 * tall) * soft(y - 130, 60))
    floor = 745 + 15 * base - 75 * np.exp(-(((np.abs(x - 500) - 210) / 150) ** 2)) + 25 * (x > 500)
    below = soft(y - floor, 40)
    lungs = lungs * (1 - below)
    spine = soft(42 - np.abs(x - 500 - 10 * tilt), 25) * (0.8 + 0.2 * np.cos(y / 11.5))
    silhouette = dome(555, 625, 150 + 22 * heart, 165) + 0.5 * ellipse(520, 330, 48, 110, 40)
    ribs = np.zeros_like(x)
    for k in range(8):
        arch = 190 + 74 * k + 18 * rib + 0.0011 * (np.abs(x - 500) - 190) ** 2 * (0.6 + 0.08 * k)
        ribs = np.maximum(ribs, np.exp(-(((y - arch) / 13) ** 2)))
    ribs = ribs * soft(np.abs(x - 500) - 55, 40) * (thorax > 0.2) * (1 - below)
    collar = line(480, 205, 190, 150 - 12 * shoulder, 26) + line(520, 205, 810, 150 + 12 * shoulder, 26)
    depth = 0.95 * body - 0.80 * lungs + 0.30 * spine + 0.38 * silhouette + 0.11 * ribs + 0.14 * collar
    depth = depth + 0.38 * below * (thorax > 0) + 0.03 * dense
    for lesion in scene.lesions:
        depth = depth + _lesion(lesion, scene.digest)
    expected = PHOTONS * np.exp(-_ATTENUATION * np.clip(depth, 0.0, None))
    counts = expected + np.sqrt(expected) * gaussian(seed, 1, SIDE)[0] * noise
    film = -np.log(np.clip(counts, 1.0, None) / PHOTONS) / _ATTENUATION
    film = np.clip(film / 1.45, 0.0, 1.0)
    film[4:9, 4:8][np.array([[c == "1" for c in row] for row in _MARKER])] = 0.95
    return film


def _lesion(lesion: Lesion, scene: str) -> Array:
    cx, cy, radius = lesion.x, lesion.y, lesion.radius
    if lesion.kind == "nodule":
        return 0.34 * soft(blob(cx, cy, radius, lesion.shape, 0.04), 16)
    if lesion.kind == "cavity":
        shell = soft(blob(cx, cy, radius * 1.12, lesion.shape, 0.05), 14)
        return 0.36 * (shell - soft(blob(cx, cy, radius * 0.66, lesion.shape, 0.03), 14))
    patchy = smooth(gaussian(f"{scene}:{lesion.site}", 1, SIDE)[0], 2) * 1.6
    cloud = soft(blob(cx, cy, radius * 1.35, lesion.shape, 0.22), radius * 1.5)
    return 0.30 * cloud * np.clip(1 + 0.55 * patchy, 0.2, 1.8)
