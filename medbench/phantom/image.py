"""From a scene to a PNG, through a scanner."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

from medbench.phantom.scene import Scene

#: Raised whenever a scene's pixels change by more than a grey level: it is part of every image's key.
PAINT_VERSION = 1


@dataclass(frozen=True)
class Scanner:
    """How an image is taken: contrast about mid-grey, resolution (1 / n of the pixels each way), noise (a factor)."""

    contrast: float = 1.0
    binning: int = 1
    noise: float = 1.0


SCANNERS = {
    "standard": Scanner(),
    "low_contrast": Scanner(contrast=0.45),
    "low_resolution": Scanner(binning=2),
    "noisy": Scanner(noise=2.2),
}


@cache
def _painter(modality: str) -> Any:
    return import_module(f"medbench.phantom.{modality}").paint


def pixels(scene: Scene, scanner: str = "standard") -> Any:
    """The scene as uint8 [112, 112]: the same on every machine to within one grey level."""
    import numpy as np

    how = SCANNERS[scanner]
    grey = _painter(scene.modality)(scene, how.noise, f"{scene.digest}:{scanner}")
    if how.binning > 1:
        n, side = how.binning, len(grey)
        grey = grey.reshape(side // n, n, side // n, n).mean((1, 3)).repeat(n, 0).repeat(n, 1)
    grey = 0.5 + how.contrast * (grey - 0.5)
    return np.clip(np.rint(grey * 255), 0, 255).astype(np.uint8)


def png(scene: Scene, scanner: str = "standard") -> bytes:
    """The scene as a greyscale PNG of 112 x 112 pixels."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels(scene, scanner)).save(sink, "PNG", compress_level=1)
    return sink.getvalue()
