"""What is made of a file's values: eight bits bit by bit, deeper greys by their range, DICOM as its window says."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_classification_data_common as made
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, JPEGLSLossless
from test_classification_data_common import TWO, card_of, dicom, save_dicom

from medbench.data.check import check_images
from medbench.data.grey import scaled
from medbench.data.item import BadItemError, decode
from medbench.data.load import load_items

RAMP = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, form)
    return data.getvalue()


def grey(data: bytes) -> np.ndarray:
    """A decoded picture, which must be grey, as one channel."""
    image = decode(data)
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "BMP", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "LA", "CMYK"])
def test_eight_bits_are_as_pillow_converts_them(mode: str, form: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    image = Image.fromarray(colours).convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(100)
    try:
        data = encoded(image, form)
    except OSError:  # not every format has every mode; what it has must be read
        assert (mode, form) in {
            *(("CMYK", "PNG"), ("CMYK", "BMP"), ("LA", "BMP"), ("LA", "JPEG"), ("P", "JPEG"), ("RGBA", "JPEG"))
        }
        return
    decoded = decode(data)
    assert decoded.mode == "RGB"
    assert decoded.tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def test_pictures_of_records_are_decoded_as_ever(shared: Path) -> None:
    """As Pillow alone converts them: no record made before deeper images were read has other pixels."""
    paths = [*sorted((shared / "vqa_rad" / "images").iterdir())[:8], *sorted((shared / "busi/images").iterdir())[:8]]
    pixels = hashlib.sha256()
    for path in paths:
        with Image.open(path) as image:
            pixels.update(image.convert("RGB").tobytes())
    ours = hashlib.sha256()
    for path in paths:
        ours.update(decode(path.read_bytes()).tobytes())
    assert ours.digest() == pixels.digest()


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (RAMP.astype(np.uint16) * 257, "PNG"),
        (RAMP.astype(np.uint16) * 16 + 1000, "PNG"),
        (RAMP.astype(np.uint16) * 257, "TIFF"),
        (RAMP.astype(np.int32) * 1000 - 50_000, "TIFF"),
        (RAMP.astype(np.float32) / 252 - 3, "TIFF"),
    ],
)
def test_deep_greys_are_scaled_by_their_own_range(values: np.ndarray, form: str) -> None:
    found = grey(encoded(Image.fromarray(values), form))
    wide = values.astype(np.float64)
    expected = 255 * (wide - wide.min()) / (wide.max() - wide.min())
    assert np.abs(found - expected).max() <= 0.5 + 1e-3
    assert (found.min(), found.max()) == (0, 255)


def test_a_whole_depth_is_divided_and_a_single_grey_is_black() -> None:
    whole = np.array([[0, 257 * 100, 65535]], dtype=np.uint16)
    assert grey(encoded(Image.fromarray(whole))).tolist() == [[0, 100, 255]]
    assert grey(encoded(Image.fromarray(np.full((3, 4), 700, dtype=np.uint16)))).tolist() == [[0] * 4] * 3


def test_what_is_not_finite_is_at_the_edge() -> None:
    values = np.array([[0, 1, np.nan, np.inf, -np.inf, 0.5]], dtype=np.float32)
    assert grey(encoded(Image.fromarray(values), "TIFF")).tolist() == [[0, 255, 0, 255, 0, 128]]
    with pytest.raises(ValueError, match="it holds no finite value"):
        decode(encoded(Image.fromarray(values[:, 2:3]), "TIFF"))


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_scaling_keeps_the_order(values: list[int]) -> None:
    found = scaled(np.array([values], dtype=np.uint16))[0].tolist()
    ordered = [shown for _, shown in sorted(zip(values, found, strict=True))]
    assert ordered == sorted(ordered)
    if len(set(values)) > 1:
        assert (found[values.index(min(values))], found[values.index(max(values))]) == (0, 255)


def bytes_of(data: Dataset) -> bytes:
    sink = io.BytesIO()
    data.save_as(sink, enforce_file_format=True)
    return sink.getvalue()


CT = np.linspace(0, 4095, 64).astype(np.int16).reshape(8, 8)


def by_hand(values: np.ndarray, centre: float, width: float) -> np.ndarray:
    """PS3.3 C.11.2.1.2.1, the function LINEAR, onto 0..255."""
    part = (values.astype(np.float64) - (centre - 0.5)) / (width - 1) + 0.5
    return np.rint(np.clip(part, 0, 1) * 255)


@pytest.mark.parametrize(("centre", "width"), [(40, 400), (-600, 1500), (3000, 100), (0, 1), (1000, 9000)])
def test_a_window_is_the_standards(centre: int, width: int) -> None:
    data = dicom(CT, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=centre, WindowWidth=width)
    hu = CT.astype(np.float64) - 1024
    expected = by_hand(hu, centre, width) if width > 1 else 255 * (hu > centre - 0.5)
    assert np.abs(grey(bytes_of(data)) - expected).max() <= 1e-6
    reference = apply_voi_lut(hu, data)  # pydicom's own, onto -33792..31743
    scaled_reference = np.rint((reference + 33792) / 65535 * 255)
    assert np.array_equal(grey(bytes_of(data)), scaled_reference)


def test_the_first_of_several_windows_is_taken() -> None:
    one = dicom(CT, WindowCenter=1000, WindowWidth=500)
    several = dicom(CT, WindowCenter=[1000, 40], WindowWidth=[500, 400])
    assert np.array_equal(grey(bytes_of(one)), grey(bytes_of(several)))


def test_a_sigmoid_is_one() -> None:
    data = dicom(CT, WindowCenter=2000, WindowWidth=800, VOILUTFunction="SIGMOID")
    expected = 255 / (1 + np.exp(-4 * (CT.astype(np.float64) - 2000) / 800))  # PS3.3 C.11.2.1.3.1
    assert np.abs(grey(bytes_of(data)) - expected).max() <= 0.5 + 1e-3


def test_a_table_goes_before_a_window() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [256, 0, 16], [65535 - 257 * n for n in range(256)]
    item["LUTData"].VR = "US"
    item["LUTDescriptor"].VR = "US"
    data = dicom(RAMP, WindowCenter=10, WindowWidth=5, VOILUTSequence=Sequence([item]))
    assert np.array_equal(grey(bytes_of(data)), 255 - RAMP)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_without_a_window_the_whole_range_is_shown(dtype: Any) -> None:
    values = RAMP.astype(dtype) - (100 if dtype is np.int16 else 0)
    expected = np.rint(RAMP.astype(np.float64) / 252 * 255)
    assert np.array_equal(grey(bytes_of(dicom(values))), expected)
    sloped = dicom(values, RescaleSlope="2.5", RescaleIntercept="-7")
    assert np.array_equal(grey(bytes_of(sloped)), expected)


def test_the_padding_value_does_not_count() -> None:
    values = RAMP.astype(np.int16)
    padded = values.copy()
    padded[0, :4] = -2000
    found = grey(bytes_of(dicom(padded, PixelPaddingValue=-2000)))
    assert found[0, :4].tolist() == [0] * 4
    seen = values.reshape(-1)[4:].astype(np.float64)
    assert np.array_equal(found.reshape(-1)[4:], np.rint((seen - seen.min()) / (seen.max() - seen.min()) * 255))


@pytest.mark.parametrize("tags", [{}, {"WindowCenter": 100, "WindowWidth": 80}])
def test_monochrome1_is_the_negative(tags: dict[str, int]) -> None:
    plain, inverted = (
        grey(bytes_of(dicom(RAMP, PhotometricInterpretation=name, **tags))) for name in ("MONOCHROME2", "MONOCHROME1")
    )
    assert np.array_equal(inverted, 255 - plain)
    assert plain[0, 0] == 0 and inverted[0, 0] == 255


@pytest.mark.parametrize(("dtype", "times"), [(np.uint8, 1), (np.uint16, 257)])
def test_colours_are_taken_as_they_are(dtype: Any, times: int) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(dtype) * times
    data = dicom(colours, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    assert np.array_equal(np.asarray(decode(bytes_of(data))), colours // times)


def test_a_palette_is_resolved() -> None:
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    tables = [np.arange(64, dtype="<u2") * step for step in (1024, 512, 256)]
    for name, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [64, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = table.tobytes()
    data = dicom(numbers, **tags)
    expected = np.stack([table[numbers] >> 8 for table in tables], axis=-1)
    assert np.array_equal(np.asarray(decode(bytes_of(data))), expected)


def test_a_compressed_one_is_decoded_where_a_decoder_is() -> None:
    data = dicom(RAMP)
    frame = encoded(Image.fromarray(RAMP), "JPEG2000")
    data.file_meta.TransferSyntaxUID = JPEG2000Lossless
    data.PixelData = encapsulate([frame])
    data["PixelData"].VR = "OB"
    assert np.array_equal(grey(bytes_of(data)), np.rint(RAMP.astype(np.float64) / 252 * 255))


def compressed(syntax: Any) -> bytes:
    data = dicom(RAMP)
    data.file_meta.TransferSyntaxUID = syntax
    data.PixelData = encapsulate([b"\0" * 40])
    data["PixelData"].VR = "OB"
    return bytes_of(data)


def three_frames() -> bytes:
    data = dicom(RAMP, NumberOfFrames=3)
    data.PixelData = RAMP.tobytes() * 3
    return bytes_of(data)


BROKEN: dict[str, tuple[bytes, str]] = {
    "no pixels": (bytes_of(dicom(None)), "a DICOM without pixels, there is no PixelData"),
    "frames": (three_frames(), "a DICOM of 3 frames; save the one to classify as a file of its own"),
    "video": (compressed(MPEG2MPML), "a DICOM compressed as MPEG2 .*, for which no decoder is installed"),
    "cut": (bytes_of(dicom(RAMP))[:-10], "a DICOM that cannot be read: "),
    "shape": (bytes_of(dicom(RAMP, Rows=900)), "a DICOM that cannot be read: "),
    "width": (bytes_of(dicom(RAMP, WindowCenter=1, WindowWidth=0)), "a DICOM that cannot be read: .*Window Width"),
    "preamble": (b"\0" * 128 + b"DICM" + b"<html>", "a DICOM "),
    "empty": (b"", "the file is empty, 0 bytes"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_bad_file_is_one_line_that_names_item_and_file(tmp_path: Path, kind: str) -> None:
    data, message = BROKEN[kind]
    folder = tmp_path / "data" / "set"
    for name in ("no", "yes"):
        save_dicom(folder / name / "a.dcm", dicom(RAMP))
    (folder / "yes" / "b.dcm").write_bytes(data)
    options = {"labels": {"no": "no", "yes": "yes"}}
    items = load_items(card_of(tmp_path, "class_folders", options, TWO, test=3), "test", tmp_path / "data").items
    with pytest.raises(BadItemError, match=rf"^task t: item yes/b\.dcm: image .*yes/b\.dcm: {message}") as caught:
        check_images("t", items, "fail")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    checked = check_images("t", items, "skip")
    assert (len(checked.items), len(checked.skipped)) == (2, 1)


def test_a_compression_without_a_decoder_is_named() -> None:
    from pydicom.pixels.decoders.base import get_decoder

    if get_decoder(JPEGLSLossless).is_available:
        pytest.skip("a decoder of JPEG-LS is installed here")
    with pytest.raises(ValueError, match=r"^a DICOM compressed as JPEG-LS Lossless .*; try pylibjpeg$"):
        decode(compressed(JPEGLSLossless))


def test_a_grey_png_of_sixteen_bits_is_an_item(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "set"
    for n, name in enumerate(TWO):
        made.grey_png(folder / name / "a.png", RAMP.astype(np.uint16) * 100 + n)
    options = {"labels": {name: name for name in TWO}}
    items = load_items(card_of(tmp_path, "class_folders", options, TWO, test=2), "test", tmp_path / "data").items
    prints = check_images("t", items, "fail", fingerprints=True).fingerprints
    assert len({found.pixels for found in prints.values()}) == 1  # the range is the file's own
