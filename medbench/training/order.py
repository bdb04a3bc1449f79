"""The order in which a stage sees its items: a pure function of the mixture, the lengths and the seed.

The whole stage is laid out beforehand as one sequence, so a resumed run continues at a position and not at a state
of some sampler, and every process and machine agrees on it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: Batches are cut from length-sorted windows of this many batches (length grouping), then shuffled.
WINDOW = 50


def epoch_indices(sizes: Sequence[int], weights: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """One epoch of a mixture, shuffled.

    Args:
        sizes: items of each part; part p owns the indices after those of the parts before it.
        weights: how often an epoch sees each item of a part; 0.5 takes a random half, 1.5 all and a random half.
        rng: the generator, used up in order.

    Returns:
        Indices, int64, of length sum(round(size * weight)).
    """
    parts, offset = [], 0
    for size, weight in zip(sizes, weights, strict=True):
        wanted = round(size * weight)
        whole, rest = divmod(wanted, size)
        picks = [np.arange(size)] * whole + [rng.permutation(size)[:rest]]
        parts.append(np.concatenate(picks) + offset)
        offset += size
    return rng.permutation(np.concatenate(parts))


def items_of_epoch(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """The items that one epoch of a mixture sees."""
    return sum(round(size * weight) for size, weight in zip(sizes, weights, strict=True))


def steps_of(per_epoch: int, epochs: float, batch_size: int) -> int:
    """The optimiser steps of a stage whose epochs see `per_epoch` items."""
    return max(1, math.ceil(epochs * per_epoch / batch_size - 1e-9))


def stage_order(
    sizes: Sequence[int],
    weights: Sequence[float],
    lengths: Sequence[int],
    epochs: float,
    batch_size: int,
    seed: int,
) -> np.ndarray:
    """The indices of a whole stage, `batch_size` for each optimiser step.

    Epochs follow one another without a gap; the last step is filled from the epoch that would come next, so every
    step sees exactly `batch_size` items. Within windows of `WINDOW` batches items of like length come together.

    Returns:
        Indices, int64, shape [steps, batch_size] with steps = ceil(epochs * items an epoch / batch_size), at least 1.

    Raises:
        ValueError: the mixture is empty.
    """
    rng = np.random.default_rng(seed)
    length = np.asarray(lengths)
    per_epoch = items_of_epoch(sizes, weights)
    if per_epoch == 0:
        raise ValueError("the mixture has no item")
    steps = steps_of(per_epoch, epochs, batch_size)
    epochs_needed = math.ceil(steps * batch_size / per_epoch)
    sequence = np.concatenate([epoch_indices(sizes, weights, rng) for _ in range(epochs_needed)])
    sequence = sequence[: steps * batch_size]
    batches = []
    for start in range(0, len(sequence), WINDOW * batch_size):
        window = sequence[start : start + WINDOW * batch_size]
        ranked = window[np.argsort(length[window], kind="stable")].reshape(-1, batch_size)
        batches.append(ranked[rng.permutation(len(ranked))])
    return np.concatenate(batches).astype(np.int64)
