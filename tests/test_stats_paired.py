"""Paired differences for every metric of every kind of task: each side is what its own table says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from medbench.errors import RequestError, WorkError
from medbench.scoring.kinds import get_family, kinds, measures_of
from medbench.scoring.paired import compare_paired
from medbench.scoring.stats import estimate_metrics

REPORTS = (
    "The heart is enlarged. No pleural effusion.",
    "The lungs are clear. There is no pneumothorax.",
    "There is a small pleural effusion and mild edema.",
    "Normal heart size. The lungs are clear.",
)


def table(kind: str, seed: int) -> pd.DataFrame:
    """A made-up system's score table of 40 items of 20 images, of one kind of task."""
    rng = np.random.default_rng(seed)
    n, names = 40, [f"image{k // 2}" for k in range(40)]
    items = {"id": [f"q{k}" for k in range(n)], "cluster": names}
    if kind == "report":
        gold, said = (rng_.choice(REPORTS, n) for rng_ in (np.random.default_rng(0), rng))
        frame = pd.DataFrame(items | {"type": "open", "gold": gold, "prediction": said})
    else:
        gold = np.where(np.arange(n) % 3 > 0, "yes", "no")
        p_yes = np.clip(np.where(gold == "yes", 0.6, 0.4) + 0.3 * rng.standard_normal(n), 0.01, 0.99)
        said = rng.choice(["yes", "no", "maybe", "yes"], n)
        given = [{"yes": p, "no": 1 - p} for p in p_yes]
        frame = pd.DataFrame(items | {"type": "closed", "gold": gold, "prediction": said, "probabilities": given})
        if kind == "vqa":
            opened = {"type": "open", "gold": "left lung", "prediction": rng.choice(["left", "lung", "heart"], n)}
            more = pd.DataFrame(items | opened | {"probabilities": None})
            frame = pd.concat([frame, more.assign(id=[f"o{k}" for k in range(n)])], ignore_index=True)
    named: dict[str, Any] = {"classes": ("no", "yes"), "positive": "yes"} if kind == "classification" else {}
    return get_family(kind).score(frame, **named).assign(kind=kind).sample(frac=1, random_state=seed)


@pytest.fixture(scope="module", params=kinds())
def sides(request: pytest.FixtureRequest) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    return [table(request.param, seed) for seed in (1, 2)], [table(request.param, seed) for seed in (3, 4, 5)]


def test_each_side_is_as_in_its_own_table_and_the_difference_is_theirs(sides) -> None:
    first, second = sides
    own = [estimate_metrics(tables) for tables in sides]
    assert set(measures_of(first[0])) == set(own[0])
    for metric in measures_of(first[0]):
        found = compare_paired(first, second, metric)
        figures = found.figures
        for side, expected in zip((figures.first, figures.second), own, strict=True):
            assert side.to_json() == pytest.approx(expected[metric].to_json(), nan_ok=True), metric
        if figures.difference.value is None:
            assert figures.difference.reason
            continue
        assert figures.difference.value == pytest.approx(figures.first.value - figures.second.value, abs=1e-12)
        assert figures.difference.low <= figures.difference.value <= figures.difference.high
        assert (found.flip is None) == (found.reason is not None)
        width = figures.difference.high - figures.difference.low
        assert width == pytest.approx(3.92 * found.se, rel=0.25), metric
        same = compare_paired(first, first, metric)
        assert (same.figures.difference.value, same.figures.difference.low, same.figures.difference.high) == (0, 0, 0)
        assert (same.se, same.flip.p if same.flip else None) == (0, None if found.flip is None else 1)


def test_sides_of_other_items_or_without_the_metric_are_refused(sides) -> None:
    first, second = sides
    metric = next(iter(measures_of(first[0])))
    with pytest.raises(WorkError, match="the two sides have different items"):
        compare_paired(first, [second[0].iloc[1:]], metric)
    with pytest.raises(RequestError, match="have no colour"):
        compare_paired(first, second, "colour")
