"""DICOM files as pictures, through pydicom: as their window says, white where the body is dense.

In the order of the standard (PS3.3 C.11): stored values, modality (rescale slope and intercept, or its LUT), VOI (its
LUT, or the first window), MONOCHROME1 inverted. Without a VOI the file's own range is shown, the padding value left
aside. Colour and palettes are taken as they are.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from medbench.data.grey import grey_image, scaled

if TYPE_CHECKING:
    from PIL.Image import Image

PREAMBLE = 128
MAGIC = b"DICM"


def is_dicom(data: bytes) -> bool:
    """Whether these are the bytes of a DICOM file (PS3.10: 128 bytes of anything, then `DICM`)."""
    return data[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC


def decode_dicom(data: bytes) -> Image:
    """The picture of a DICOM file, RGB.

    Raises:
        ValueError: no pixels, several frames, a compression that cannot be decoded here, or a damaged file.
    """
    import pydicom

    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        _check(dataset)
        return _picture(dataset)
    except Exception as error:  # pydicom and the decoders behind it raise anything on a damaged file
        if isinstance(error, ValueError) and str(error).startswith("a DICOM "):
            raise
        told = " ".join(str(error).split()) or type(error).__name__
        # Round brackets end the reason that a user is shown (`medbench.data.item.reason`); pydicom begins with a tag.
        told = told[:120].replace("(", "[").replace(")", "]")
        raise ValueError(f"a DICOM that cannot be read: {told}") from error


def _check(dataset: Any) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if "PixelData" not in dataset:
        raise ValueError("a DICOM without pixels, there is no PixelData")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise ValueError(f"a DICOM of {frames} frames; save the one to classify as a file of its own")
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_compressed:
        return
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise ValueError(f"a DICOM compressed as {syntax.name}, for which no decoder is installed; try pylibjpeg")


def _picture(dataset: Any) -> Image:
    from PIL import Image as Pillow
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    stored = pixel_array(dataset)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        coloured = apply_color_lut(stored, dataset)
        # The entries of a palette have 8 or 16 bits; of 16 the upper 8 are shown.
        return Pillow.fromarray((coloured >> (8 * (coloured.itemsize - 1))).astype("uint8"))
    if dataset.SamplesPerPixel == 3:
        if dataset.BitsStored < 8:
            raise ValueError(f"a DICOM in colour with {dataset.BitsStored} bits; 8 or more are expected")
        return Pillow.fromarray((stored >> (dataset.BitsStored - 8)).astype("uint8"))
    shown = _windowed(stored, dataset)
    return grey_image(255 - shown if dataset.PhotometricInterpretation == "MONOCHROME1" else shown)


def _windowed(stored: Any, dataset: Any) -> Any:
    """Stored values [h, w] as uint8 [h, w], black to white as the file wants them."""
    import numpy as np
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence"):
        looked_up = apply_voi(np.rint(values).astype(np.int64), dataset)
        return scaled(looked_up, 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        with np.errstate(over="ignore"):  # far outside a sigmoid's window
            low, high = apply_windowing(np.array([-1e12, 1e12]), dataset)
            return scaled(apply_windowing(values, dataset), float(low), float(high))
    padding = dataset.get("PixelPaddingValue")
    seen = values if padding is None else values[stored != padding]
    return scaled(values, *((float(seen.min()), float(seen.max())) if seen.size else (0.0, 0.0)))
