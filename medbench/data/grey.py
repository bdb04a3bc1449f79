"""Grey values of more than eight bits, as the eight that a model is given.

A file of 16 or 32 bits says nothing of how it wants to be shown (a DICOM does: see `medbench.data.dicom`), so its own
darkest value becomes 0 and its brightest 255, linearly. Nothing is clipped, no percentiles are taken: the picture holds
all that the file holds, and a file that uses its whole depth is just divided. The price: two files of one series with
other extremes are scaled differently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

#: Modes of Pillow with one channel of more than eight bits.
DEEP = ("I", "F")


def is_deep(image: Image) -> bool:
    """Whether an image is grey with more than eight bits (`I;16`, `I`, `F` and their kin)."""
    return image.mode in DEEP or image.mode.startswith("I;")


def to_rgb(image: Image) -> Image:
    """A decoded image as RGB: deep ones scaled, others as Pillow converts them (alpha is dropped, palettes resolved).

    Raises:
        ValueError: a floating-point image without a finite value.
    """
    if not is_deep(image):
        return image.convert("RGB")
    import numpy as np

    return grey_image(scaled(np.asarray(image)))


def scaled(values: Any, low: float | None = None, high: float | None = None) -> Any:
    """Values [h, w] as uint8 [h, w]: `low` becomes 0, `high` 255, what lies beyond is clipped.

    Args:
        values: numbers of any type.
        low: default: the smallest finite value.
        high: default: the largest finite value. Where both are equal, everything is 0.

    Raises:
        ValueError: there are no values, or none is finite.

    Example:
        >>> import numpy as np
        >>> scaled(np.array([[0, 32768, 65535]], dtype=np.uint16)).tolist()
        [[0, 128, 255]]
    """
    import numpy as np

    wide = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(wide)
    if not finite.any():
        raise ValueError("it holds no finite value")
    low = float(wide[finite].min()) if low is None else low
    high = float(wide[finite].max()) if high is None else high
    if not finite.all():
        wide = np.nan_to_num(wide, nan=low, posinf=high, neginf=low)
    span = high - low
    part = (wide - low) / span if span > 0 else np.zeros_like(wide)
    return np.rint(np.clip(part, 0, 1) * 255).astype(np.uint8)


def grey_image(values: Any) -> Image:
    """uint8 [h, w] as an RGB image with three equal channels."""
    from PIL import Image as Pillow

    return Pillow.fromarray(values).convert("RGB")
