"""What training does to an image before a tower sees it, as the card of its task says: a pure function of a draw."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Augmentation:
    """Random changes to an image.

    Attributes:
        flip: mirrored left to right in half of the cases.
        crop: the smallest part of the area that is cut out; its sides are those of the image, scaled.
        rotate: degrees that it is turned by at most, either way; corners are filled with black.
        brightness: all values are multiplied by 1 - b to 1 + b.
    """

    flip: bool = False
    crop: float = 1.0
    rotate: float = 0.0
    brightness: float = 0.0

    def __call__(self, image: Image, draw: random.Random) -> Image:
        """The changed image, RGB, of the same size (smaller where it was cut out).

        Args:
            image: RGB.
            draw: the generator; equal states give equal images.
        """
        from PIL import Image as Pillow
        from PIL import ImageEnhance, ImageOps

        # Everything is drawn, used or not: a setting does not move the draws of the others.
        flip, share, across, down, angle, light = (draw.random() for _ in range(6))
        if self.flip and flip < 0.5:
            image = ImageOps.mirror(image)
        if self.rotate:
            image = image.rotate((2 * angle - 1) * self.rotate, Pillow.Resampling.BILINEAR)
        if self.crop < 1:
            side = math.sqrt(self.crop + (1 - self.crop) * share)
            width, height = max(1, round(image.width * side)), max(1, round(image.height * side))
            left, top = int(across * (image.width - width + 1)), int(down * (image.height - height + 1))
            image = image.crop((left, top, left + width, top + height))
        if self.brightness:
            image = ImageEnhance.Brightness(image).enhance(1 + (2 * light - 1) * self.brightness)
        return image
