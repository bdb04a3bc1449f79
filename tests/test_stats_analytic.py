"""Closed-form standard errors against statsmodels and scipy; coverage of both intervals by simulation; power."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.api import OLS
from statsmodels.stats.power import zt_ind_solve_power

from medbench.errors import WorkError
from medbench.scoring.analytic import clustered_mean, clustered_se, minimal_detectable_effect
from medbench.scoring.bootstrap import cluster_bootstrap_mean

items = st.lists(st.tuples(st.integers(-3, 3), st.sampled_from("abcdefg")), min_size=4, max_size=40).filter(
    lambda rows: len({name for _, name in rows}) > 1 and len({value for value, _ in rows}) > 1
)


@settings(deadline=None)
@given(items)
def test_standard_errors_and_intervals_are_those_of_statsmodels(rows):
    values, names = np.array([float(v) for v, _ in rows]), np.array([name for _, name in rows])
    groups = np.unique(names, return_inverse=True)[1]
    for correction, corrected in (("CR0", False), ("CR1", True)):
        fit = OLS(values, np.ones(len(values))).fit(
            cov_type="cluster", cov_kwds={"groups": groups, "use_correction": corrected}, use_t=True
        )
        assert clustered_se(values, names, correction) == pytest.approx(float(fit.bse[0]), abs=1e-12)
        found = clustered_mean(values, names, correction=correction)
        assert [found.low, found.high] == pytest.approx(fit.conf_int()[0].tolist(), abs=1e-9)
        assert (found.value, found.n) == (pytest.approx(values.mean()), len(values))


def test_items_in_clusters_of_their_own_give_the_ordinary_standard_error():
    values = np.random.default_rng(0).normal(size=50)
    assert clustered_se(values, np.arange(50)) == pytest.approx(stats.sem(values))
    assert clustered_se(values, np.arange(50), "CR0") == pytest.approx(stats.sem(values, ddof=0))


def test_repeating_an_item_within_its_cluster_teaches_nothing():
    rng = np.random.default_rng(1)
    values, names = rng.normal(size=30), np.arange(30)
    thrice = clustered_se(np.repeat(values, 3), np.repeat(names, 3))
    assert thrice == pytest.approx(clustered_se(values, names))
    assert thrice > 1.6 * clustered_se(np.repeat(values, 3), np.arange(90))


def test_what_cannot_be_known_says_so():
    assert clustered_se([1, 0], ["a", "a"]) is None
    assert clustered_mean([1, 0], ["a", "a"]).reason == "fewer than two clusters: no interval"
    assert clustered_mean([], []).reason == "no items"
    with pytest.raises(WorkError, match="1 of 2 values are not finite"):
        clustered_se([1, math.inf], ["a", "b"])
    with pytest.raises(WorkError, match="2 values, but 1 clusters"):
        clustered_mean([1, 0], ["a"])


def answered(rng, images):
    """Right or wrong answers to one to five questions an image, and the images; images differ in how hard they are.

    The true mean is 0.6: an image's share of right answers is Beta(1.2, 0.8), whatever its number of questions.
    """
    sizes = rng.integers(1, 6, images)
    names = np.repeat(np.arange(images), sizes)
    return (rng.random(len(names)) < rng.beta(1.2, 0.8, images)[names]).astype(float), names


def test_bootstrap_and_formula_agree():
    for seed in range(5):
        values, names = answered(np.random.default_rng(seed), 400)
        drawn, formula = cluster_bootstrap_mean(values, names), clustered_mean(values, names)
        width = formula.high - formula.low
        assert (drawn.high - drawn.low) / width == pytest.approx(1, abs=0.05)
        assert [drawn.low, drawn.high] == pytest.approx([formula.low, formula.high], abs=0.05 * width)


def test_both_intervals_cover_at_the_nominal_rate_and_one_that_ignores_images_does_not():
    """Of 2,000 simulated data sets; tolerance: 3 standard deviations of such a share at 95 %, that is 1.5 points."""
    rng, sets = np.random.default_rng(20), 2000
    hits = {"bootstrap": 0, "CR1": 0, "items": 0}
    for number in range(sets):
        values, names = answered(rng, 120)
        for how, found in (
            ("bootstrap", cluster_bootstrap_mean(values, names, resamples=500, seed=number)),
            ("CR1", clustered_mean(values, names)),
            ("items", clustered_mean(values, np.arange(len(values)))),
        ):
            hits[how] += found.low <= 0.6 <= found.high
    tolerance = 3 * math.sqrt(0.95 * 0.05 / sets)
    assert hits["bootstrap"] / sets == pytest.approx(0.95, abs=tolerance)
    assert hits["CR1"] / sets == pytest.approx(0.95, abs=tolerance)
    assert hits["items"] / sets < 0.95 - tolerance


def test_the_detectable_effect_of_scoring_md_and_of_statsmodels():
    assert 100 * minimal_detectable_effect(math.sqrt(0.2 / 272)) == pytest.approx(7.6, abs=0.05)
    for power, alpha in ((0.8, 0.05), (0.9, 0.01)):
        # One sample (ratio 0) of 100 with standard deviation 1, so a standard error of 0.1.
        expected = zt_ind_solve_power(nobs1=100, alpha=alpha, power=power, ratio=0)
        assert minimal_detectable_effect(0.1, power, alpha) == pytest.approx(expected, rel=1e-3)


def test_the_detectable_effect_is_detected_with_its_power():
    """Clustered differences with that true mean: found by the test of the same standard error in 80 % of data sets."""
    rng, sets, found = np.random.default_rng(3), 1000, 0
    spread = rng.normal(size=(sets, 100, 1)) + rng.normal(size=(sets, 100, 3))  # 100 images of 3 questions
    se = math.sqrt((1 + 1 / 3) / 100)
    names = np.repeat(np.arange(100), 3)
    for differences in spread + minimal_detectable_effect(se):
        own = clustered_se(differences.ravel(), names)
        found += abs(differences.mean()) > 1.96 * own
    assert found / sets == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / sets))
