"""Shapes with soft edges on the image's grid, in thousandths of its side."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Array = Any
SIDE = 112
#: Width of a soft edge.
_EDGE = 14.0


@lru_cache(maxsize=1)
def grid() -> tuple[Array, Array]:
    """The x (rightwards) and y (downwards) of the pixels' centres, each [112, 112]."""
    axis = ((np.arange(SIDE) + 0.5) * (1000 / SIDE)).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    return x, y


def reach(cx: float, cy: float, a: float, b: float) -> Array:
    """Distance from an ellipse's centre, 1 on its edge."""
    x, y = grid()
    return np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2)


def ellipse(cx: float, cy: float, a: float, b: float, edge: float = _EDGE) -> Array:
    """1 inside, 0 outside, soft at the edge."""
    return soft((1 - reach(cx, cy, a, b)) * min(a, b), edge)


def soft(inside: Array, edge: float = _EDGE) -> Array:
    """A distance to an edge (positive inside) as a mask."""
    return np.clip(inside / edge + 0.5, 0.0, 1.0)


def dome(cx: float, cy: float, a: float, b: float) -> Array:
    """How thick an ellipsoid is along the ray, 1 at its centre."""
    return np.sqrt(np.clip(1 - reach(cx, cy, a, b) ** 2, 0.0, None))


def blob(cx: float, cy: float, radius: float, shape: int, rough: float) -> Array:
    """Distance to the edge of an irregular disc (positive inside); `rough` is the relative depth of its lobes."""
    x, y = grid()
    angle = np.arctan2(y - cy, x - cx)
    lobes = np.cos(3 * angle + shape * 0.0063) + 0.6 * np.cos(5 * angle + shape * 0.0251)
    return radius * (1 + rough * lobes) - np.sqrt((x - cx) ** 2 + (y - cy) ** 2)


def lay(image: Array, mask: Array, value: float) -> Array:
    """The image with a value laid over it where the mask is 1."""
    return image + mask * (value - image)


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Array:
    """A soft bar from one point to another."""
    x, y = grid()
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((x - x0) * dx + (y - y0) * dy) / (dx * dx + dy * dy), 0.0, 1.0)
    return soft(width / 2 - np.sqrt((x - x0 - along * dx) ** 2 + (y - y0 - along * dy) ** 2))


def smooth(values: Array, times: int = 1, axes: tuple[int, ...] = (-2, -1)) -> Array:
    """Averages neighbours (1, 2, 1) along the axes, `times` over."""
    for _ in range(times):
        for axis in axes:
            values = (np.roll(values, 1, axis) + 2 * values + np.roll(values, -1, axis)) / 4
    return values
