"""Randomness that is the same on every machine: integers from SHA-256, noise from SHAKE-128."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Draws:
    """Endless integers from the sha256 of a seed."""

    def __init__(self, seed: str):
        """Args: any text; equal seeds give equal draws."""
        self._stream = _integers(seed)

    def below(self, n: int) -> int:
        """An integer in [0, n), uniform up to n / 2^32."""
        return next(self._stream) % n

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return low + self.below(high - low + 1)

    def coin(self) -> bool:
        """True or False, evenly."""
        return self.below(2) == 1

    def pick(self, choices: Sequence[T]) -> T:
        """One of `choices`, uniformly."""
        return choices[self.below(len(choices))]

    def some(self, choices: Sequence[T], count: int) -> list[T]:
        """`count` of `choices` without repetition, in random order."""
        left = list(choices)
        return [left.pop(self.below(len(left))) for _ in range(count)]


def _integers(seed: str) -> Iterator[int]:
    block = 0
    while True:
        data = hashlib.sha256(f"{seed}:{block}".encode()).digest()
        yield from (int.from_bytes(data[i : i + 4], "big") for i in range(0, 32, 4))
        block += 1


def gaussian(seed: str, count: int, side: int) -> Any:
    """Normal noise of unit variance to within 3.5 standard deviations: the sum of four bytes of a SHAKE stream.

    Returns:
        float32 [count, side, side].
    """
    import numpy as np

    size = count * side * side
    raw = np.frombuffer(hashlib.shake_128(seed.encode()).digest(4 * size), np.uint8).reshape(4, count, side, side)
    # A byte has variance (256^2 - 1) / 12.
    return (raw.sum(0, dtype=np.float32) - 510) / np.float32((4 * (256**2 - 1) / 12) ** 0.5)
