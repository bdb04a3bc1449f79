"""Sign flips by cluster against scipy, and what they promise; Holm against statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from medbench.errors import WorkError
from medbench.scoring import permutation
from medbench.scoring.permutation import SignFlip, cluster_sums, holm, sign_flip_test, sign_flip_tests


def by_scipy(sums, **settings):
    return stats.permutation_test(
        (np.asarray(sums),), np.sum, permutation_type="samples", vectorized=False, n_resamples=math.inf, **settings
    ).pvalue


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(-2, 2), st.sampled_from("abcdefg")), min_size=2, max_size=25).filter(
        lambda rows: len({name for _, name in rows}) > 1
    )
)
def test_exact_p_is_that_of_scipy_over_the_sums_of_clusters(rows):
    values, names = [value for value, _ in rows], [name for _, name in rows]
    found = sign_flip_test(values, names)
    assert found.exact
    assert found.p == pytest.approx(by_scipy(cluster_sums(values, names)))


def test_thirds_tie_as_whole_numbers_do():
    """Items averaged over three seeds: sums that are equal but for rounding count as equally extreme."""
    rng = np.random.default_rng(0)
    whole, names = rng.integers(-3, 4, 24), np.repeat(np.arange(12), 2)
    assert sign_flip_test(whole / 3, names) == sign_flip_test(whole, names)
    assert sign_flip_test(np.full(24, 0.1) - 0.1 * 1.0000000000000002, names) == SignFlip(1.0, True, 1)


def test_clusters_without_a_difference_change_nothing():
    sums = np.array([[2.0, 1.0, 3.0, -1.0]])
    more = np.concatenate([sums, np.zeros((1, 200))], axis=1)
    assert sign_flip_tests(more) == sign_flip_tests(sums) == [SignFlip(by_scipy(sums[0]), True, 16)]
    assert sign_flip_tests(np.zeros((1, 5))) == [SignFlip(1.0, True, 1)]


def test_more_than_fourteen_clusters_are_drawn_and_come_near_the_exact_p():
    rng = np.random.default_rng(4)
    sums = rng.integers(-3, 5, (6, 14)) + 0.5  # none is zero
    exact = sign_flip_tests(sums)
    assert {(found.exact, found.patterns) for found in exact} == {(True, 2**14)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(permutation, "EXACT_UP_TO", 13)
        drawn = sign_flip_tests(sums)
    assert {(found.exact, found.patterns) for found in drawn} == {(False, 10_000)}
    for one, two in zip(exact, drawn, strict=True):
        assert two.p == pytest.approx(one.p, abs=4 * math.sqrt(one.p * (1 - one.p) / 10_000) + 1e-4)


def test_a_random_p_is_never_zero():
    found = sign_flip_test(np.ones(400), np.arange(400))
    assert found == SignFlip(1 / 10_001, False, 10_000)


def test_p_depends_on_neither_side_nor_order_nor_chunks(monkeypatch):
    rng = np.random.default_rng(2)
    values, names = rng.normal(0.1, 1, 150), rng.integers(0, 50, 150)
    found, order = sign_flip_test(values, names, 999), rng.permutation(150)
    assert sign_flip_test(values, names, 999, seed=1) != found
    assert sign_flip_test(-values, names, 999) == found
    assert sign_flip_test(values[order], names[order], 999) == found
    monkeypatch.setattr(permutation, "_CHUNK", 7 * 50)
    assert sign_flip_test(values, names, 999) == found


def test_several_comparisons_at_once_are_each_as_alone():
    rng = np.random.default_rng(5)
    sums = rng.normal(0.2, 1, (4, 60)) * (rng.random((4, 60)) < np.array([[1], [0.5], [0.15], [1]]))
    together = sign_flip_tests(sums, 500)
    assert [found.exact for found in together] == [False, False, True, False]
    assert together == [sign_flip_tests(row[None], 500)[0] for row in sums]


def test_equal_sides_are_told_apart_no_more_often_than_promised():
    """Share of p <= 5 % over 600 data sets without a difference, whose items depend on one another within images."""
    rng, sets, wrong, naive = np.random.default_rng(6), 600, 0, 0
    names = np.repeat(np.arange(40), 4)
    for _ in range(sets):
        values = rng.normal(size=40)[names] + rng.normal(size=160)
        wrong += sign_flip_test(values, names, 399).p <= 0.05
        naive += sign_flip_test(values, np.arange(160), 399).p <= 0.05
    tolerance = 3 * math.sqrt(0.05 * 0.95 / sets)
    assert wrong / sets == pytest.approx(0.05, abs=tolerance)
    assert naive / sets > 0.05 + tolerance  # flipping items one by one takes them for independent


def test_bad_values_are_refused():
    with pytest.raises(WorkError, match="1 of 2 values are not finite"):
        sign_flip_test([1, math.nan], ["a", "b"])
    with pytest.raises(WorkError, match="2 values, but 1 clusters"):
        sign_flip_test([1, 0], ["a"])


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 200).map(lambda p: p / 200), min_size=1, max_size=12))
def test_holm_is_that_of_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_of_nothing_is_nothing():
    assert holm([]) == []
