"""Sums instead of weights: the same figures; calibration: bins that add up to the error; both against plain ways."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from medbench.errors import WorkError
from medbench.scoring.bootstrap import cluster_bootstrap, cluster_draws
from medbench.scoring.calibration import reliability
from medbench.scoring.weighted import SumStatistic, auroc_statistic, ece_statistic, mean_statistic


def confidences(n=300, seed=0):
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.3, 1, n)
    return sure, (rng.random(n) < sure**2).astype(float), rng.integers(0, 70, n)


def test_sums_over_clusters_give_what_weights_of_items_give():
    sure, right, names = confidences()
    fast = ece_statistic(sure, right)
    assert isinstance(fast, SumStatistic)

    def plain(weights):  # the same as a function of weights: nothing known of sums
        return fast(weights)

    assert cluster_draws(fast, names, 400) == pytest.approx(cluster_draws(plain, names, 400), abs=1e-12)
    one, two = (cluster_bootstrap(statistic, names, 400) for statistic in (fast, plain))
    assert [one.value, one.low, one.high] == pytest.approx([two.value, two.low, two.high], abs=1e-12)


@pytest.mark.parametrize("make", [ece_statistic, auroc_statistic])
def test_a_mean_over_seeds_is_that_of_its_parts(make):
    parts = [make(*confidences(seed=seed)[:2]) for seed in range(3)]
    weights = np.random.default_rng(9).integers(0, 4, (5, 300)).astype(float)
    expected = (parts[0](weights) + parts[1](weights) + parts[2](weights)) / 3
    assert mean_statistic(parts)(weights) == pytest.approx(expected)
    assert mean_statistic([mean_statistic(parts)] * 2)(weights) == pytest.approx(expected)


def test_the_bins_add_up_to_the_calibration_error_and_are_those_of_scikit_learn():
    sure, right, _ = confidences()
    for count in (5, 15):
        bins = reliability(sure, right, count)
        assert [b.low for b in bins] == pytest.approx(np.linspace(0, 1, count + 1)[:-1])
        held = [b for b in bins if b.n]
        assert sum(b.n for b in held) == len(sure)
        assert all(b.low < b.confidence <= b.high for b in held)
        error = sum(b.n / len(sure) * abs(b.accuracy - b.confidence) for b in held)
        assert error == pytest.approx(ece_statistic(sure, right, count)(np.ones((1, len(sure))))[0])
        accuracy, confidence = calibration_curve(right, sure, n_bins=count)
        assert [b.accuracy for b in held] == pytest.approx(accuracy.tolist())
        assert [b.confidence for b in held] == pytest.approx(confidence.tolist())
        empty = [b for b in bins if not b.n]
        assert empty
        assert {(b.confidence, b.accuracy) for b in empty} == {(None, None)}


def test_an_edge_belongs_to_the_bin_below_and_zero_to_the_first():
    assert [b.n for b in reliability([0.0, 0.25, 0.5, 1.0], [0, 0, 1, 1], bins=4)] == [2, 1, 0, 1]


def test_what_is_no_probability_is_refused():
    with pytest.raises(WorkError, match="2 of 3 confidences or outcomes"):
        reliability([0.5, 1.2, math.nan], [1, 0, 1])
    with pytest.raises(WorkError, match="2 confidences, but 1 outcomes"):
        reliability([0.5, 0.6], [1])
