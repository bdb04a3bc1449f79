"""Intervals against theory and independent implementations; edge cases; averaging over seeds."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from medbench.errors import WorkError
from medbench.scoring import bootstrap, vqa
from medbench.scoring.stats import (
    Estimate,
    cluster_bootstrap,
    cluster_bootstrap_mean,
    estimate_metrics,
    metric_values,
    seed_sd,
)
from medbench.scoring.weighted import auroc_statistic, ece_statistic


def clustered(rng, clusters, spread):
    """Values of clusters of 1..5 items, true mean 0, where `spread` is the SD of what a cluster shares."""
    sizes = rng.integers(1, 6, clusters)
    names = np.repeat(np.arange(clusters), sizes)
    return rng.normal(0, spread, clusters)[names] + rng.normal(0, 0.5, len(names)), names


def linearised_se(values, names):
    """Standard error of a ratio of cluster totals (Taylor linearisation), by a plain loop."""
    mean = values.mean()
    totals = [(values[names == name] - mean).sum() for name in np.unique(names)]
    return math.sqrt(sum(total**2 for total in totals)) / len(values)


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_width_agrees_with_the_analytic_clustered_error(spread):
    values, names = clustered(np.random.default_rng(3), 400, spread)
    found = cluster_bootstrap_mean(values, names)
    se = linearised_se(values, names)
    assert found.value == pytest.approx(values.mean())
    assert (found.high - found.low) / (2 * 1.96 * se) == pytest.approx(1, abs=0.05)
    assert found.low < found.value < found.high
    alone = cluster_bootstrap_mean(values, np.arange(len(values)))
    wider = (found.high - found.low) / (alone.high - alone.low)
    assert wider > 1.5 if spread else wider == pytest.approx(1, abs=0.15)


def test_coverage_on_simulated_data_sets():
    rng = np.random.default_rng(11)
    hits = 0
    for run in range(400):
        values, names = clustered(rng, 60, 1.0)
        found = cluster_bootstrap_mean(values, names, resamples=500, seed=run)
        hits += found.low <= 0 <= found.high
    assert 0.91 <= hits / 400 <= 0.98


def test_a_lower_level_is_narrower():
    values, names = clustered(np.random.default_rng(3), 50, 1.0)
    narrow, wide = (cluster_bootstrap_mean(values, names, level=level) for level in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_same_seed_same_interval_in_any_order_and_chunking(monkeypatch):
    rng = np.random.default_rng(5)
    values, names = rng.integers(0, 2, 101).astype(float), rng.integers(0, 37, 101)
    labels, order = [f"image-{name}" for name in names], rng.permutation(101)
    first = cluster_bootstrap_mean(values, labels, resamples=301)
    assert cluster_bootstrap_mean(values, labels, resamples=301, seed=1) != first
    assert cluster_bootstrap_mean(values[order], [labels[i] for i in order], resamples=301) == first
    monkeypatch.setattr(bootstrap, "_CHUNK", 37 * 4)
    assert cluster_bootstrap_mean(values, labels, resamples=301) == first


def test_both_bootstraps_meet_the_same_resamples():
    rng = np.random.default_rng(5)
    values, names = rng.integers(0, 2, 101).astype(float), rng.integers(0, 37, 101)
    weighted = cluster_bootstrap(lambda w: w @ values / w.sum(axis=1), names, resamples=301)
    plain = cluster_bootstrap_mean(values, names, resamples=301)
    assert [weighted.value, weighted.low, weighted.high] == pytest.approx([plain.value, plain.low, plain.high])


def test_draws_are_fixed():
    """The stream itself is pinned, so that committed intervals can be recomputed on another machine."""
    found = cluster_bootstrap_mean([0, 1, 1, 0, 1, 1, 0, 1], list("aabbcdef"), resamples=1000, seed=7)
    assert found == Estimate(0.625, 0.375, 0.8571428571428571, 8, 6)


def test_edge_cases_have_a_reason():
    assert cluster_bootstrap_mean([], [], empty="no open items") == Estimate(None, None, None, 0, 0, "no open items")
    one = cluster_bootstrap_mean([1, 0], ["a", "a"])
    assert (one.value, one.low, one.high, one.n, one.clusters) == (0.5, None, None, 2, 1)
    assert one.to_json() == {
        "value": 0.5,
        "low": None,
        "high": None,
        "n": 2,
        "clusters": 1,
        "reason": "fewer than two clusters: no interval",
    }
    constant = cluster_bootstrap_mean([1, 1, 1], ["a", "b", "b"])
    assert constant.to_json() == {"value": 1.0, "low": 1.0, "high": 1.0, "n": 3, "clusters": 2}
    assert cluster_bootstrap(auroc_statistic([], []), [], empty="none").reason == "none"
    assert cluster_bootstrap(auroc_statistic([0.1, 0.2], [0, 1]), ["a", "a"]).reason == one.reason
    assert cluster_bootstrap(auroc_statistic([0.1, 0.2], [1, 1]), ["a", "b"], undefined="why").reason == "why"
    with pytest.raises(WorkError, match="1 of 2 values"):
        cluster_bootstrap_mean([1, math.nan], ["a", "b"])
    with pytest.raises(WorkError, match="2 values, but 1 clusters"):
        cluster_bootstrap_mean([1, 0], ["a"])


def test_no_interval_where_many_resamples_hold_one_class():
    few = cluster_bootstrap(auroc_statistic([0.1, 0.9, 0.8], [0, 1, 1]), list("abc"), resamples=500)
    assert (few.value, few.low, few.high) == (1, None, None)
    assert "resamples" in few.reason


weighted_items = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(0, 3)), min_size=2, max_size=25
).filter(lambda rows: len({positive for _, positive, weight in rows if weight}) == 2)


@given(weighted_items)
def test_auroc_equals_scikit_learn_with_ties_and_weights(rows):
    score, positive, weight = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = auroc_statistic(score, positive)(np.stack([weight, weight * 3]))
    assert found == pytest.approx(roc_auc_score(positive, score, sample_weight=weight))


def test_auroc_is_undefined_row_by_row():
    found = auroc_statistic([0.1, 0.9], [0, 1])(np.array([[1.0, 1.0], [0.0, 2.0], [0.0, 0.0]]))
    assert found[0] == 1
    assert np.isnan(found[1:]).all()


@given(
    st.lists(
        st.tuples(
            st.one_of(st.floats(0, 1), st.integers(0, 15).map(lambda i: i / 15)),
            st.booleans(),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=30,
    ).filter(lambda rows: any(weight for *_, weight in rows))
)
def test_ece_equals_a_plain_loop(rows):
    edges = np.linspace(0, 1, 16)
    expected, total = 0.0, sum(weight for *_, weight in rows)
    for b in range(15):
        inside = [row for row in rows if edges[b] < row[0] <= edges[b + 1] or (b == 0 and row[0] == 0)]
        mass = sum(weight for *_, weight in inside)
        if mass:
            accuracy = sum(weight * correct for _, correct, weight in inside) / mass
            confidence = sum(weight * sure for sure, _, weight in inside) / mass
            expected += mass / total * abs(accuracy - confidence)
    sure, correct, weight = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assert ece_statistic(sure, correct)(weight[None])[0] == pytest.approx(expected, abs=1e-12)


def test_bootstrap_of_auroc_equals_repeating_the_items():
    rng = np.random.default_rng(2)
    names = np.repeat(np.arange(40), 3)
    score, positive = rng.integers(0, 6, 120), rng.integers(0, 2, 120)
    found = cluster_bootstrap(auroc_statistic(score, positive), names, resamples=200, seed=4)
    drawn = []
    for picked in np.random.Generator(np.random.PCG64(4)).integers(0, 40, size=(200, 40), dtype=np.int64):
        # names are compared as text, so cluster number k is the k-th name in that order
        chosen = [int(sorted(map(str, range(40)))[k]) for k in picked]
        taken = np.concatenate([np.flatnonzero(names == name) for name in chosen])
        drawn.append(roc_auc_score(positive[taken], score[taken]))
    assert [found.low, found.high] == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])))


def table(closed_right, p_yes, ids=None):
    """A score table of yes/no items, gold yes for even ones, and two open items in their own cluster."""
    n = len(closed_right)
    gold = ["yes" if i % 2 == 0 else "no" for i in range(n)]
    wrong = {"yes": "no", "no": "yes"}
    frame = pd.DataFrame(
        {
            "id": [f"q{i}" for i in range(n)] + ["o1", "o2"],
            "cluster": [f"c{i // 2}" for i in range(n)] + ["co", "co"],
            "type": ["closed"] * n + ["open"] * 2,
            "gold": [*gold, "left lung", "brain"],
            "prediction": [g if right else wrong[g] for g, right in zip(gold, closed_right, strict=True)]
            + ["lung", "brain"],
            "probabilities": [None if p is None else {"yes": p, "no": 1 - p} for p in p_yes] + [None, None],
        }
    )
    return vqa.score_table(frame)


def test_estimates_of_one_table():
    found = estimate_metrics([table([1, 1, 0, 1], [0.9, 0.2, 0.4, 0.3])])
    assert set(found) == {*vqa.METRICS, *vqa.PROBABILITY_METRICS}
    assert (
        found["closed_accuracy"].value,
        found["closed_accuracy"].n,
        found["closed_accuracy"].clusters,
    ) == (
        0.75,
        4,
        2,
    )
    assert found["closed_accuracy"].low == 0.5
    assert found["closed_accuracy"].high == 1
    assert (found["open_recall"].value, found["open_recall"].clusters) == (0.75, 1)
    assert found["open_recall"].reason == "fewer than two clusters: no interval"
    assert (found["auroc"].value, found["auroc"].left_out) == (1, 0)
    # confidence .9 right, .8 right, .6 wrong, .7 right, each alone in its bin
    assert found["ece"].value == pytest.approx((0.1 + 0.2 + 0.6 + 0.3) / 4)
    json.dumps({name: estimate.to_json() for name, estimate in found.items()}, allow_nan=False)


def test_estimates_say_why_they_are_missing():
    both = table([1, 1, 0, 1], [None] * 4)
    closed, opened = both[both["type"] == "closed"], both[both["type"] == "open"]
    assert estimate_metrics([closed])["open_f1"].to_json()["reason"] == "no open items"
    assert estimate_metrics([opened])["closed_accuracy"].reason == "no closed items"
    assert estimate_metrics([opened])["auroc"].reason == "no closed items"
    missing = estimate_metrics([closed])["ece"]
    assert (missing.value, missing.n, missing.left_out) == (None, 0, 4)
    assert "probabilities" in missing.reason
    no_recall = estimate_metrics([opened.assign(recall=math.nan)])["open_recall"]
    assert "no recall" in no_recall.reason
    assert estimate_metrics([closed[:0]])["closed_accuracy"].n == 0


def test_items_without_probabilities_are_left_out_and_counted():
    found = estimate_metrics([table([1, 1, 0, 1], [0.9, 0.2, None, 0.3])])
    assert (found["auroc"].n, found["auroc"].left_out) == (3, 1)
    assert found["auroc"].to_json()["left_out"] == 1


def test_seeds_are_averaged_an_item_at_a_time_but_auroc_is_not_that_of_an_ensemble():
    first = table([1, 1, 0, 1], [0.9, 0.6, 0.2, 0.1])
    second = table([0, 1, 0, 1], [0.1, 0.2, 0.7, 0.3])
    shuffled = second.sample(frac=1, random_state=0)
    found = estimate_metrics([first, shuffled])
    each = [metric_values(first), metric_values(second)]
    for name in found:
        assert found[name].value == pytest.approx((each[0][name] + each[1][name]) / 2), name
    assert found["closed_accuracy"].n == 4
    ensemble = roc_auc_score([1, 0, 1, 0], [0.5, 0.4, 0.45, 0.2])
    assert found["auroc"].value != pytest.approx(ensemble)


def test_identical_seeds_change_nothing():
    one = table([1, 1, 0, 1, 0, 0], [0.9, 0.2, 0.4, 0.3, 0.8, 0.6])
    single, triple = estimate_metrics([one]), estimate_metrics([one, one, one])
    for name, estimate in single.items():
        assert triple[name].to_json() == pytest.approx(estimate.to_json(), nan_ok=True), name


def test_seeds_of_different_items_are_refused():
    first = table([1, 1], [None, None])
    with pytest.raises(WorkError, match="4 and 3 rows, 1 ids only in the first, 0 only in the other"):
        estimate_metrics([first, first[1:]])
    for column in ("cluster", "type", "profile"):
        with pytest.raises(WorkError, match=f"differ in the {column} of 1 of 4"):
            estimate_metrics([first, first.assign(**{column: ["other", *first[column][1:]]})])
    with pytest.raises(WorkError, match="which scores"):
        estimate_metrics([first, first.assign(closed=math.nan)])
    with pytest.raises(WorkError, match="no score table"):
        estimate_metrics([])


def test_seed_sd():
    assert seed_sd([0.5, 0.7, 0.9]) == pytest.approx(0.2)
    assert seed_sd([0.5]) is None
    assert seed_sd([]) is None
    assert seed_sd([0.5, None, 0.7]) is None
    assert seed_sd([0.5, 0.5]) == 0
