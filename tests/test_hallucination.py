"""The figures of yes/no questions: those of scikit-learn, and what an answer that says nothing counts for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score
from test_hallucination_common import answered

from medbench.errors import WorkError
from medbench.results.record import task_figures
from medbench.scoring import profile_names
from medbench.scoring.bootstrap import cluster_draws
from medbench.scoring.kinds import estimate_kind
from medbench.scoring.yesno import (
    METRICS,
    always_yes,
    balanced_accuracy_statistic,
    f1_statistic,
    parse,
    reference_lines,
    score,
)

estimate = partial(estimate_kind, "hallucination")

YES_NO = st.sampled_from(("yes", "no"))
ITEM = st.tuples(YES_NO, YES_NO, st.integers(0, 5))
ROWS = st.lists(st.tuples(YES_NO, YES_NO, st.floats(0, 1)), min_size=2, max_size=30)


def values(rows: list[Any], resamples: int = 0, profile: str = "medbench") -> dict[str, float | None]:
    found = estimate([score(answered(*rows), profile)], resamples=resamples)
    assert tuple(found) == METRICS
    return {name: figure.value for name, figure in found.items()}


def bits(words: list[str]) -> list[int]:
    return [int(word == "yes") for word in words]


@settings(deadline=None)
@given(st.lists(ITEM, min_size=1, max_size=30))
def test_statistics_are_scikit_learns_under_weights(items: list[tuple[str, str, int]]) -> None:
    gold, said = bits([i[0] for i in items]), bits([i[1] for i in items])
    weight = np.array([i[2] for i in items], dtype=float)
    right = [int(a == b) for a, b in zip(gold, said, strict=True)]
    balanced = balanced_accuracy_statistic(right, gold)(weight[None])[0]
    weighed = {g for g, w in zip(gold, weight, strict=True) if w}
    if len(weighed) < 2:
        assert np.isnan(balanced)
    else:
        expected = balanced_accuracy_score(gold, said, sample_weight=weight)
        assert balanced == pytest.approx(expected)
    f1 = f1_statistic(said, gold)(weight[None])[0]
    if any(w and (g or s) for g, s, w in zip(gold, said, weight, strict=True)):
        assert f1 == pytest.approx(f1_score(gold, said, sample_weight=weight, zero_division=0))
    else:
        assert np.isnan(f1)


@settings(max_examples=40, deadline=None)
@given(ROWS)
def test_figures_of_texts_are_scikit_learns(rows: list[tuple[str, str, float]]) -> None:
    gold, said, sure = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
    found = values([(g, f"{s.title()}, as can be seen.", p) for g, s, p in rows])
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, said))
    assert found["yes_share"] == pytest.approx(np.mean(bits(said)))
    assert found["unparseable_share"] == 0
    if len(set(gold)) == 2:
        assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(gold, said))
        assert found["f1"] == pytest.approx(f1_score(gold, said, pos_label="yes", zero_division=0))
        assert found["auroc"] == pytest.approx(roc_auc_score(bits(gold), sure))
    else:
        assert found["balanced_accuracy"] is found["auroc"] is None


@pytest.mark.parametrize("name", ["balanced_accuracy", "f1"])
def test_a_resample_is_the_figure_of_the_items_drawn(name: str) -> None:
    """Against scikit-learn over the items of the drawn clusters, one resample at a time."""
    draw = np.random.default_rng(3)
    gold, said = draw.integers(0, 2, 60), draw.integers(0, 2, 60)
    clusters = np.array([f"c{n:02}" for n in draw.integers(0, 20, 60)])
    names = sorted(set(clusters))
    picked = np.random.Generator(np.random.PCG64(0)).integers(0, len(names), size=(50, len(names)))
    right = (gold == said).astype(float)
    statistic = balanced_accuracy_statistic(right, gold) if name == "balanced_accuracy" else f1_statistic(said, gold)
    reference = balanced_accuracy_score if name == "balanced_accuracy" else f1_score
    expected = []
    for row in picked:
        items = np.concatenate([np.flatnonzero(clusters == names[c]) for c in row])
        expected.append(reference(gold[items], said[items]))
    assert cluster_draws(statistic, clusters, 50, 0) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("yes and no", None),
        ("It is not.", None),
        ("Normal.", None),
        ("yes, there is no doubt", None),
        ("", None),
        ("  \n", None),
        ("nope", None),
    ],
)
def test_what_an_answer_says(text: str, said: str | None) -> None:
    assert parse(text) == said
    found = values([("yes", text), ("no", text)])
    assert found["unparseable_share"] == float(said is None)
    assert found["yes_share"] == float(said == "yes")
    assert found["accuracy"] == found["balanced_accuracy"] == (0 if said is None else 0.5)


def test_an_unparseable_answer_is_a_miss_of_its_class_and_no_false_alarm() -> None:
    base = [("yes", "yes"), ("yes", "yes"), ("no", "no"), ("no", "no")]
    full = values(base)
    assert (full["accuracy"], full["balanced_accuracy"], full["f1"]) == (1, 1, 1)
    to_yes, to_no = values([*base[1:], ("yes", "unclear")]), values([*base[:3], ("no", "unclear")])
    assert (to_yes["balanced_accuracy"], to_yes["f1"]) == (0.75, pytest.approx(2 / 3))
    assert (to_no["balanced_accuracy"], to_no["f1"]) == (0.75, 1)
    assert to_yes["accuracy"] == to_no["accuracy"] == 0.75


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(YES_NO, st.text(max_size=20)), min_size=1, max_size=8))
def test_over_any_text(rows: list[tuple[str, str]]) -> None:
    found = values(list(rows))
    for name, value in found.items():
        assert value is None or 0 <= value <= 1, name
    assert found["accuracy"] <= 1 - found["unparseable_share"]
    assert found["yes_share"] <= 1 - found["unparseable_share"] + 1e-12
    shouted = values([(gold, f" ..{text.upper() if text.isascii() else text}!! ") for gold, text in rows])
    assert shouted == found


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(YES_NO, st.integers(0, 3)), min_size=1, max_size=20))
def test_always_saying_yes(rows: list[tuple[str, int]]) -> None:
    golds = [gold for gold, _ in rows]
    found, said = values([(gold, "Yes.") for gold in golds]), always_yes(golds)
    assert (said is None) == (len(set(golds)) < 2)
    if said is not None:
        assert said == pytest.approx({name: found[name] for name in said})
        assert found["yes_share"] == 1
        assert said["accuracy"] == pytest.approx(accuracy_score(golds, ["yes"] * len(golds)))
        assert said["f1"] == pytest.approx(f1_score(golds, ["yes"] * len(golds), pos_label="yes"))


def test_the_line_below_a_table() -> None:
    lines = reference_lines({"a": {"accuracy": 0.26103, "balanced_accuracy": 0.5, "f1": 0.41399}, "vqa_rad": None})
    assert lines == ["Always saying yes gets on a: accuracy 26.1, balanced_accuracy 50.0, f1 41.4."]


@pytest.mark.parametrize("profile", profile_names())
def test_verdicts_are_the_profiles_and_shares_are_not(profile: str) -> None:
    rows = [("yes", "Yes"), ("no", "Normal."), ("no", "yes, no doubt"), ("yes", "unclear")]
    table = score(answered(*rows), profile)
    found = estimate([table], resamples=0)
    assert (found["yes_share"].value, found["unparseable_share"].value) == (0.25, 0.75)
    if table["closed"].isna().all():
        assert "profile has no score" in str(found["accuracy"].reason)
        assert found["f1"].value is found["balanced_accuracy"].value is None
        return
    right = table["closed"].tolist()
    assert found["accuracy"].value == np.mean(right)
    assert found["balanced_accuracy"].value == (np.mean([right[0], right[3]]) + np.mean(right[1:3])) / 2
    # What is right is never a false alarm, whatever else a rule that looks for substrings would take it for.
    assert not ((table["called_yes"] == 1) & (table["closed"] == 1) & (table["gold_is_yes"] == 0)).any()
    assert ((table["called_yes"] == table["closed"]) | (table["gold_is_yes"] == 0)).all()


def test_multiple_choice_counts_in_accuracy_alone() -> None:
    options = ("MRI", "CT scan")
    rows = [("yes", "yes", 0.9), ("no", "yes", 0.8), ("CT scan", "B", None, options), ("MRI", "a stone", None, options)]
    found = estimate([score(answered(*rows))], resamples=0)
    assert found["accuracy"].value == 0.5
    assert (found["unparseable_share"].value, found["unparseable_share"].n) == (0.25, 4)
    for name in ("balanced_accuracy", "f1", "auroc", "yes_share"):
        assert (found[name].n, found[name].left_out) == (2, 2), name
    assert found["yes_share"].value == 1
    alone = estimate([score(answered(*rows[2:]))], resamples=0)
    assert alone["f1"].reason == "no item has the gold answer yes or no, or the profile has no score for it"
    assert alone["accuracy"].value == 0.5


def test_without_probabilities_two_figures_are_missing() -> None:
    found = estimate([score(answered(("yes", "yes"), ("no", "no"), ("yes", "no"), ("no", "no")))], resamples=50)
    assert found["auroc"].to_json() == {
        **{"value": None, "low": None, "high": None, "n": 0, "clusters": 0},
        **{"reason": "no item has the probabilities it needs", "left_out": 4},
    }
    assert found["ece"].value is None
    assert found["balanced_accuracy"].value == 0.75
    assert found["accuracy"].low is not None


def test_seeds_are_averaged_a_figure_at_a_time() -> None:
    first = score(answered(("yes", "yes", 0.9), ("no", "yes", 0.6), ("yes", "no", 0.3), ("no", "no", 0.2)))
    second = score(answered(("yes", "yes", 0.8), ("no", "no", 0.1), ("yes", "yes", 0.7), ("no", "?", 0.6)))
    both, one, two = (estimate(tables, resamples=40) for tables in ([first, second], [first], [second]))
    for name in METRICS:
        assert both[name].value == pytest.approx((one[name].value + two[name].value) / 2), name
    same = estimate([first, first, first], resamples=40)
    for name in METRICS:
        assert same[name].to_json() == pytest.approx(one[name].to_json()), name
    with pytest.raises(WorkError, match="different items"):
        estimate([first, second[1:]])


def test_figures_by_type_of_question() -> None:
    rows = [("yes", "yes", 0.9, (), "mass"), ("no", "no", 0.2, (), "mass"), ("yes", "no", 0.4, (), "cyst")]
    table = score(answered(*rows)).assign(kind="hallucination")
    figures = task_figures([table])
    assert figures["kind"] == "hallucination"
    assert figures["always_yes"] == pytest.approx({"accuracy": 2 / 3, "balanced_accuracy": 0.5, "f1": 0.8})
    assert list(figures["types"]) == ["cyst", "mass"]
    assert sum(entry["n"] for entry in figures["types"].values()) == figures["n"] == 3
    assert figures["types"]["mass"]["metrics"]["balanced_accuracy"]["value"] == 1
    cyst = figures["types"]["cyst"]["metrics"]["balanced_accuracy"]
    assert (cyst["value"], cyst["reason"]) == (None, "all items have the same gold answer")
    assert "types" not in task_figures([table.assign(question_type="")])
