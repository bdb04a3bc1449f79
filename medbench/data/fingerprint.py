"""Fingerprints of images: which are the same picture, and which nearly so.

* `pixels` is the sha256 of the size and the RGB pixels after decoding, that is, of what a model is given. Files with
  equal bytes have equal pixels; so has a picture that was encoded again without loss.
* `perceptual` is a pHash (imagehash, 16 x 16): which of the 256 lowest frequencies of the picture, in grey at 64 x 64,
  lie above their median. Two pictures are near when at most `NEAR` of the 256 bits differ.

`NEAR` was chosen by looking. JPEG at quality 20 moves at most 12 bits, another size 4, 20 % more light 20, 30 % more
contrast mostly below 20 (60 pictures each of VQA-RAD, SLAKE and BUSI). Of some 170 pairs at most 20 bits apart in
SLAKE, BUSI, BTMRI, a set of knees and Medical MNIST, all but one (two blobs on black) were the same picture processed
otherwise, or the next slice or frame of the same examination. No two pictures of VQA-RAD are that near, nor any of 624
and 3,000 chest X-rays of PneumoniaMNIST. From about 30 bits on, slices differ visibly. With the usual 64 bits, pictures
of one body part cannot be told apart.

What it does not do: a picture that was turned, mirrored, or cropped by more than 1 % at each side is not found. A small
finding is not seen: phantoms drawn on one template are near though one has a lesion and the other has none. A picture
of one single grey has no structure to compare, hence no perceptual hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

HASH_SIZE = 16
NEAR = 20
#: Says in a record or a report what its figures were counted with.
ABOUT = {
    "exact": "sha256 of size and RGB pixels",
    "near": f"pHash {HASH_SIZE} x {HASH_SIZE}, of {HASH_SIZE**2} bits at most {NEAR} differ; blind to small findings",
}
#: Pairs that are compared at a time: bounds the memory of `near_pairs` to some 20 MB.
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is kept of a picture: its pixels' hash (hex), and its perceptual hash (32 bytes; None: a single grey)."""

    pixels: str
    perceptual: bytes | None


def fingerprint(image: Image) -> Fingerprint:
    """The fingerprint of a decoded RGB image."""
    import imagehash

    pixels = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    pixels.update(image.tobytes())
    grey = image.convert("L")
    darkest, brightest = grey.getextrema()
    bits = None if darkest == brightest else np.packbits(imagehash.phash(grey, HASH_SIZE).hash).tobytes()
    return Fingerprint(pixels.hexdigest(), bits)


def near_pairs(
    left: Sequence[Fingerprint], right: Sequence[Fingerprint], threshold: int = NEAR
) -> Iterator[tuple[int, int, int]]:
    """Every pair of a left and a right picture whose perceptual hashes differ in at most `threshold` bits.

    Equal pictures are pairs too (0 bits); pictures without a perceptual hash are in none. Compares all with all, a
    million pairs at a time: 10,000 with 100,000 take some 15 seconds, and no more memory than 1,000 with 1,000.

    Yields:
        (index in left, index in right, number of bits that differ), in the order of the indices.
    """
    rows, words = _words(left)
    columns, others = _words(right)
    if not len(rows) or not len(columns):
        return
    height = max(1, _BLOCK // len(columns))
    for start in range(0, len(rows), height):
        block = words[start : start + height]
        distance = np.zeros((len(block), len(columns)), dtype=np.uint16)
        for word in range(words.shape[1]):
            distance += np.bitwise_count(block[:, word, None] ^ others[None, :, word])
        for i, j in np.argwhere(distance <= threshold):
            yield int(rows[start + i]), int(columns[j]), int(distance[i, j])


def _words(prints: Sequence[Fingerprint]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pictures that have a perceptual hash, [n], and the hashes as 64-bit words, [n, 4]."""
    found = [(n, p.perceptual) for n, p in enumerate(prints) if p.perceptual is not None]
    hashes = np.frombuffer(b"".join(bits for _, bits in found), dtype=np.uint64)
    return np.array([n for n, _ in found], dtype=np.int64), hashes.reshape(len(found), -1 if found else 0)
