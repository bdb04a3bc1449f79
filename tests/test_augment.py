"""Augmentation is a function of the image and of a draw; without settings it is the identity."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from medbench.training.augment import Augmentation

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def draw(seed: int) -> random.Random:
    return random.Random(seed)


def test_without_settings_nothing_changes() -> None:
    assert Augmentation()(PICTURE, draw(0)).tobytes() == PICTURE.tobytes()


def test_half_of_the_images_are_mirrored() -> None:
    seen = [Augmentation(flip=True)(PICTURE, draw(seed)).tobytes() for seed in range(400)]
    mirrored = ImageOps.mirror(PICTURE).tobytes()
    assert set(seen) == {PICTURE.tobytes(), mirrored}
    assert 160 < seen.count(mirrored) < 240


@given(seed=st.integers(0, 2**32), share=st.floats(0.05, 1))
@settings(max_examples=60, deadline=None)
def test_a_cut_out_part_is_of_the_image_and_as_large_as_asked(seed: int, share: float) -> None:
    cut = Augmentation(crop=share)(PICTURE, draw(seed))
    slack = (cut.width + 1) * (cut.height + 1) / (PICTURE.width * PICTURE.height)
    assert slack >= share * 0.98
    whole, part = np.asarray(PICTURE), np.asarray(cut)
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    assert (windows == part).all(axis=(-3, -2, -1)).any()


@given(seed=st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_brightness_stays_within_its_bounds(seed: int) -> None:
    grey = Image.new("RGB", (8, 8), (100, 100, 100))
    (low, high), *_ = Augmentation(brightness=0.2)(grey, draw(seed)).getextrema()
    assert 79 <= low == high <= 120


def test_turned_by_no_more_than_asked() -> None:
    bar = Image.new("RGB", (101, 101))
    bar.paste((255, 255, 255), (50, 0, 51, 101))
    turned = np.asarray(Augmentation(rotate=10)(bar, draw(3)).convert("L")).astype(float)
    rows = np.arange(30, 71)
    centres = [(turned[y] * np.arange(101)).sum() / turned[y].sum() for y in rows]
    slope = np.degrees(np.arctan(np.polyfit(rows, centres, 1)[0]))
    assert 0.1 < abs(slope) <= 10.5


@pytest.mark.parametrize("name", ["flip", "crop", "rotate", "brightness"])
def test_a_setting_does_not_move_the_draws_of_the_others(name: str) -> None:
    every = {"flip": True, "crop": 0.6, "rotate": 15.0, "brightness": 0.3}
    one, generator, other = Augmentation(**{name: every[name]}), draw(5), draw(5)
    one(PICTURE, generator)
    Augmentation()(PICTURE, other)
    assert generator.random() == other.random()
