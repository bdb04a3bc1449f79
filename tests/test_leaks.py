"""Leaks: planted copies are found and nothing else, both ways alike, as a slow reference counts them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import imagehash
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from medbench.data.check import Checked, check_images
from medbench.data.fingerprint import HASH_SIZE, NEAR, Fingerprint, fingerprint, near_pairs
from medbench.data.item import Item
from medbench.data.leaks import leaks_between, normalised, overlap, repeats


@dataclass(frozen=True)
class BytesImage:
    key: str
    data: bytes

    @property
    def place(self) -> str:
        return self.key

    def read(self) -> bytes:
        return self.data


def picture(seed: int, size: int = 160) -> Image.Image:
    """A picture like no other: smooth noise in colour."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


Row = tuple[str, bytes, str, str]


def checked(rows: Sequence[Row]) -> Checked:
    """A split of rows (image's key, its bytes, question, answer)."""
    items = [Item(str(n), BytesImage(k, data), q, a, False) for n, (k, data, q, a) in enumerate(rows)]
    return check_images("x", items, "fail", fingerprints=True)


def one(data: bytes) -> Checked:
    return checked([("one", data, "What is it?", "A lung")])


COPIES: dict[str, tuple[Callable[[Image.Image], bytes], str]] = {
    "bytes": (encoded, "exact"),
    "lossless": (lambda image: encoded(image, "BMP"), "exact"),
    "jpeg": (lambda image: encoded(image, "JPEG", quality=50), "near"),
    "half": (lambda image: encoded(image.resize((80, 80))), "near"),
    "stretched": (lambda image: encoded(image.resize((224, 200))), "near"),
    "grey": (lambda image: encoded(image.convert("L")), "near"),
    "lit": (lambda image: encoded(ImageEnhance.Brightness(image).enhance(0.85)), "near"),
    "mirrored": (lambda image: encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), ""),
    "other": (lambda image: encoded(picture(1000)), ""),
}


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_copy_is_found_and_nothing_else(kind: str, seed: int) -> None:
    copy, expected = COPIES[kind]
    test = one(encoded(picture(seed)))
    others = [(f"other{n}", encoded(picture(n)), "What else?", "no") for n in range(100, 110)]
    train = checked([*others, ("copy", copy(picture(seed)), "what is it", "lung")])
    for left, right in ((test, train), (train, test)):
        found = overlap(left, right)
        assert (found.images["exact"], found.images["near"]) == (expected == "exact", expected == "near")
        assert (found.exact_pairs, found.near_pairs) == (expected == "exact", expected == "near")
        assert found.questions["text"] == {"exact": 0, "normalised": 1}
        for entry in ("image", "image_and_text", "image_text_and_answer"):
            assert found.questions[entry] == {"exact": expected == "exact", "near": expected == "near"}
    if expected == "near":
        ((left_key, right_key, bits),) = overlap(test, train).nearest
        assert (left_key, right_key) == ("one", "copy")
        hashes = [
            imagehash.phash(Image.open(io.BytesIO(d)).convert("RGB"), 16)
            for d in (encoded(picture(seed)), copy(picture(seed)))
        ]
        assert bits == hashes[0] - hashes[1] <= NEAR


def test_what_is_counted_of_a_question() -> None:
    a, b, c = (encoded(picture(n)) for n in range(3))
    near_a = encoded(picture(0), "JPEG", quality=60)
    train = checked(
        [
            ("a", a, "Is it a lung?", "yes"),
            ("b", b, "Where?", "left"),
            ("near a", near_a, "Which organ?", "The lung."),
        ]
    )
    test = checked(
        [
            ("1", a, "Is it a lung?", "no"),  # same image, same text, another answer
            ("1", a, "Where?", "left"),  # the text is of another image
            ("1", a, "which organ", "lung"),  # asked of the near image
            ("2", c, "is it  lung", "Yes"),  # the text alone, written otherwise
            ("2", c, "What is new?", "all"),
            ("3", encoded(picture(1), "JPEG"), "WHERE", "LEFT"),  # near image, same text and answer
        ]
    )
    found = overlap(test, train)
    assert found.images == {"total": 3, "exact": 1, "near": 1}
    assert found.questions == {
        "total": 6,
        "image": {"exact": 3, "near": 1},
        "text": {"exact": 2, "normalised": 3},
        "image_and_text": {"exact": 1, "near": 2},
        "image_text_and_answer": {"exact": 0, "near": 2},
    }
    assert (found.exact_pairs, found.near_pairs) == (1, 2)
    inside = repeats(train, "x/train", skipped=4)
    assert (inside.images, inside.near_pairs) == ({"total": 3, "exact": 0, "near": 2}, 1)
    again = checked([("a", a, "Is it?", "yes"), ("b", a, "is it", "No"), ("c", b, "Is it?", "yes"), ("c", b, "x", "y")])
    assert repeats(again, "x/train").images == {"total": 3, "exact": 2, "near": 0}
    assert repeats(again, "x/train").questions == {"total": 4, "image_and_text": 2, "contradicting": 2}


def test_plain_images_are_compared_by_their_pixels_only() -> None:
    """Red and green squares have one perceptual hash, if any; they are no copies."""
    red, green = (encoded(Image.new("RGB", (40, 40), colour)) for colour in ("red", "green"))
    assert overlap(one(red), one(green)).images == {"total": 1, "exact": 0, "near": 0}
    assert overlap(one(red), one(red)).images == {"total": 1, "exact": 1, "near": 0}


def test_texts_are_compared_as_scoring_reads_them() -> None:
    assert normalised("Is  THIS a lung?") == normalised("is this lung")
    assert normalised("图片中包含肝脏吗？") == normalised("图片中包含肝脏吗?") != normalised("图片中包含肾脏吗?")
    assert normalised("+") != normalised("-") != ""


HASHES = st.lists(st.one_of(st.none(), st.integers(0, 2**12 - 1)), max_size=12)


@given(HASHES, HASHES, st.integers(0, 8), st.integers(1, 30))
def test_near_pairs_are_those_of_a_slow_reference(
    left: list[int | None], right: list[int | None], threshold: int, block: int
) -> None:
    """Whatever the size of a block, and the other way round the same pairs."""
    spread = [0x8421 << 60 * k for k in range(4)]  # the bits lie in all four words

    def prints(hashes: list[int | None]) -> list[Fingerprint]:
        words = [None if h is None else sum((h >> 3 * k & 7) * spread[k] for k in range(4)) for h in hashes]
        return [Fingerprint("", None if w is None else w.to_bytes(HASH_SIZE**2 // 8, "big")) for w in words]

    one_side, other_side = prints(left), prints(right)

    def slow() -> list[tuple[int, int, int]]:
        found = []
        for i, a in enumerate(one_side):
            for j, b in enumerate(other_side):
                if a.perceptual is not None and b.perceptual is not None:
                    bits = (int.from_bytes(a.perceptual) ^ int.from_bytes(b.perceptual)).bit_count()
                    if bits <= threshold:
                        found.append((i, j, bits))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medbench.data.fingerprint._BLOCK", block)
        assert list(near_pairs(one_side, other_side, threshold)) == slow()
        turned = sorted((i, j, bits) for j, i, bits in near_pairs(other_side, one_side, threshold))
        assert turned == slow()


def test_all_256_bits_may_differ() -> None:
    ends = [Fingerprint("", bytes([fill] * 32)) for fill in (0, 255)]
    assert list(near_pairs(ends[:1], ends, 256)) == [(0, 0, 0), (0, 1, 256)]


def test_a_fingerprint_is_of_the_pixels_and_their_arrangement() -> None:
    wide, high = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert wide.tobytes() == high.tobytes()
    assert fingerprint(wide).pixels != fingerprint(high).pixels
    assert fingerprint(picture(1)) == fingerprint(picture(1)) != fingerprint(picture(2))


def test_every_test_is_compared_with_every_split_trained_on() -> None:
    splits = {("a", "test"): one(encoded(picture(1))), ("b", "test"): one(encoded(picture(2)))}
    splits |= {("c", "train"): one(encoded(picture(1))), ("d", "fit"): one(encoded(picture(3)))}
    rows = leaks_between(splits, list(splits)[:2], list(splits)[2:])
    assert [(row["tested"], row["trained"], row["images"]["exact"]) for row in rows] == [
        *(("a/test", "c/train", 1), ("a/test", "d/fit", 0)),
        *(("b/test", "c/train", 0), ("b/test", "d/fit", 0)),
    ]
