"""Figures of kind `classification` against scikit-learn and other independent references."""

from __future__ import annotations

import json
import math
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    recall_score,
    roc_auc_score,
)

from medbench.data.item import Item
from medbench.errors import RequestError
from medbench.results.record import task_figures
from medbench.scoring.bootstrap import cluster_bootstrap
from medbench.scoring.classification import METRICS, named_class, score
from medbench.scoring.figures import better, scale_of
from medbench.scoring.kinds import estimate_kind, get_family
from medbench.scoring.multiclass import macro_f1_statistic, mean_recall_statistic, one_vs_rest_auroc_statistic
from medbench.scoring.predictions import score_task
from medbench.scoring.weighted import Statistic

estimate = partial(estimate_kind, "classification")

Floats = NDArray[np.float64]
Ints = NDArray[np.intp]


def names_of(count: int) -> list[str]:
    # Not in alphabetical order: the card's order is what counts.
    return [f"class {chr(ord('z') - number)}" for number in range(count)]


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def predicted(probabilities: Floats, gold: Ints, each: int = 1, said: list[str] | None = None) -> pd.DataFrame:
    """A prediction table with gold labels: the most probable class, `each` items a patient."""
    names = names_of(probabilities.shape[1])
    return pd.DataFrame(
        {
            "id": [f"i{n}" for n in range(len(gold))],
            "cluster": [f"p{n // each}" for n in range(len(gold))],
            "type": "closed",
            "gold": [names[g] for g in gold],
            "prediction": said or [names[k] for k in probabilities.argmax(axis=1)],
            "probabilities": [json.dumps(dict(zip(names, row, strict=True))) for row in probabilities.tolist()],
        }
    )


def scored(items: pd.DataFrame, count: int) -> pd.DataFrame:
    names = names_of(count)
    table = score(items, classes=names, positive=names[1] if count == 2 else None)
    return table.assign(kind="classification")


def values(table: pd.DataFrame) -> dict[str, float | None]:
    return {name: found.value for name, found in estimate([table], resamples=0).items()}


@st.composite
def tables(draw: st.DrawFn) -> tuple[Floats, Ints]:
    """Probabilities with many ties, and gold labels that need not be of every class."""
    count, n = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    steps = draw(st.lists(st.lists(st.integers(0, 3), min_size=count, max_size=count), min_size=n, max_size=n))
    gold = draw(st.lists(st.integers(0, count - 1), min_size=n, max_size=n))
    return softmax(np.array(steps, dtype=float)), np.array(gold)


@settings(max_examples=30, deadline=None)
@given(tables())
def test_figures_are_those_of_scikit_learn(drawn: tuple[Floats, Ints]) -> None:
    probabilities, gold = drawn
    count = probabilities.shape[1]
    found, guess = values(scored(predicted(probabilities, gold), count)), probabilities.argmax(axis=1)
    present = np.unique(gold)
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, guess))
    # What scikit-learn calls balanced accuracy warns of classes that are only predicted; this is the same mean.
    recalls = recall_score(gold, guess, labels=present, average="macro", zero_division=0)
    assert found["balanced_accuracy"] == pytest.approx(recalls)
    assert found["macro_f1"] == pytest.approx(f1_score(gold, guess, average="macro", zero_division=0))
    if count == 2:
        either = (gold == 1).any() or (guess == 1).any()
        expected = f1_score(gold, guess, pos_label=1, zero_division=0) if either else None
        assert found["f1"] == (None if expected is None else pytest.approx(expected))
    else:
        assert found["f1"] is None
    if len(present) < count:
        assert found["auroc"] is None
    elif count == 2:
        assert found["auroc"] == pytest.approx(roc_auc_score(gold, probabilities[:, 1]))
    else:
        expected = roc_auc_score(gold, probabilities, multi_class="ovr", average="macro")
        assert found["auroc"] == pytest.approx(expected)


def simple_ece(probabilities: Floats, gold: Ints, bins: int = 15) -> float:
    """The sum over bins of |right - confidence| by plain loops (Guo et al. 2017, equation 3)."""
    total = 0.0
    for b in range(bins):
        gap = 0.0
        for row, label in zip(probabilities, gold, strict=True):
            low, high, top = b / bins, (b + 1) / bins, row.max()
            if low < top <= high or (b == 0 and top == 0):
                gap += float(row.argmax() == label) - top
        total += abs(gap)
    return total / len(gold)


def test_balanced_accuracy_and_calibration_on_logits() -> None:
    rng = np.random.default_rng(5)
    logits, gold = rng.normal(size=(400, 6)), rng.integers(0, 6, 400)
    logits[np.arange(400), gold] += 1.2
    probabilities = softmax(logits)
    found = values(scored(predicted(probabilities, gold), 6))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(gold, probabilities.argmax(axis=1)))
    assert found["ece"] == pytest.approx(simple_ece(probabilities, gold))
    assert set(found) == set(METRICS) == set(get_family("classification").METRICS)
    assert [better(name) for name in METRICS] == [1, 1, 1, 1, 1, -1]
    assert {scale_of(name) for name in METRICS} == {100.0}


def test_a_resample_is_scikit_learn_with_sample_weights() -> None:
    rng = np.random.default_rng(11)
    n, count = 200, 4
    gold, scores = rng.integers(0, count, n), rng.integers(0, 9, (n, count)) / 9.0
    guess = scores.argmax(axis=1)
    weights = rng.integers(0, 4, (6, n)).astype(float)
    text = [names_of(count)[k] for k in guess], [names_of(count)[g] for g in gold]
    statistics = (
        one_vs_rest_auroc_statistic(scores, gold),
        macro_f1_statistic(text[1], text[0]),
        mean_recall_statistic(guess == gold, text[1]),
    )
    area, f1, recall = (statistic(weights) for statistic in statistics)
    for row, weight in enumerate(weights):
        binary = [roc_auc_score(gold == c, scores[:, c], sample_weight=weight) for c in range(count)]
        assert area[row] == pytest.approx(np.mean(binary))
        assert f1[row] == pytest.approx(f1_score(gold, guess, average="macro", sample_weight=weight))
        assert recall[row] == pytest.approx(balanced_accuracy_score(gold, guess, sample_weight=weight))
    # A resample without any item of a class has no value: it would be a mean over other classes.
    weights[0, gold == 2] = 0
    assert all(math.isnan(statistic(weights)[0]) for statistic in statistics)
    assert all(np.isfinite(statistic(weights)[1:]).all() for statistic in statistics)


def test_confusion_and_recalls_with_predictions_that_are_no_class() -> None:
    rng = np.random.default_rng(3)
    gold, probabilities = rng.integers(0, 3, 60), softmax(rng.normal(size=(60, 4)))
    names = names_of(4)
    said = [names[k] for k in probabilities.argmax(axis=1)]
    said[:5] = ["", "neither", "class", f"{names[0]} or {names[1]}", "?"]
    table = scored(predicted(probabilities, gold, each=3, said=said), 4)
    figures = task_figures([table], resamples=0)
    label = {name: number for number, name in enumerate(names)}
    guess = np.array([label.get(text, 4) for text in said])
    confusion = confusion_matrix(gold, guess, labels=range(5))[:4]
    assert figures["confusion"] == {"rows": names, "columns": [*names, "other"], "counts": confusion.tolist()}
    assert figures["no_class"] == 5
    assert figures["metrics"]["accuracy"]["n"] == 60  # they stay below the line
    assert figures["metrics"]["accuracy"]["value"] == pytest.approx(accuracy_score(gold, guess))
    f1 = f1_score(gold, guess, labels=sorted({*gold, *guess} - {4}), average="macro", zero_division=0)
    assert figures["metrics"]["macro_f1"]["value"] == pytest.approx(f1)
    each = recall_score(gold, guess, labels=range(4), average=None, zero_division=0)
    for number, name in enumerate(names):
        entry = figures["recall"][name]
        assert entry["n"] == (gold == number).sum()
        assert entry["value"] == (pytest.approx(each[number]) if entry["n"] else None)
    assert figures["recall"][names[3]]["reason"] == "no items of this class"
    assert figures["metrics"]["auroc"]["reason"] == "a class has no items"
    assert (figures["kind"], figures["classes"], figures["positive"]) == ("classification", names, None)


def test_a_class_that_is_called_other_does_not_hide_the_last_column() -> None:
    items = pd.DataFrame({"id": ["a"], "cluster": ["p"], "type": ["closed"], "gold": ["other"], "prediction": ["??"]})
    table = score(items, classes=["other", "mass"], positive="mass")
    about = get_family("classification").about([table])  # type: ignore[attr-defined]
    assert about["confusion"]["columns"] == ["other", "mass", "no class"]
    assert about["confusion"]["counts"] == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("benign", "benign"),
        (" Benign.\n", "benign"),
        ("THE NORMAL", "normal"),
        ("benign or malignant", ""),
        ("not benign", ""),
        ("", ""),
        ("...", ""),
    ],
)
def test_what_names_a_class(text: str, expected: str) -> None:
    assert named_class(text, ["benign", "malignant", "normal"]) == expected


def test_classes_of_equal_tokens_are_told_apart_by_the_very_text_alone() -> None:
    assert [named_class(text, ["T-2", "T 2"]) for text in ("T-2", "T 2", "t 2")] == ["T-2", "T 2", ""]


def test_ties_are_taken_as_predicted() -> None:
    half = np.full((2, 2), 0.5)
    names = names_of(2)
    table = scored(predicted(half, np.array([1, 1]), said=[names[1], "neither"]), 2)
    assert table["argmax_right"].tolist() == [1.0, 0.0]


def test_one_patient_has_no_interval_and_says_so() -> None:
    rng = np.random.default_rng(0)
    table = scored(predicted(softmax(rng.normal(size=(12, 3))), np.arange(12) % 3, each=12), 3)
    for name, found in estimate([table], resamples=50).items():
        assert found.low is None, name
        assert found.reason == (
            "not two classes, so none is the positive one" if name == "f1" else "fewer than two clusters: no interval"
        )


def test_missing_probabilities_leave_what_needs_none() -> None:
    rng = np.random.default_rng(0)
    items = predicted(softmax(rng.normal(size=(30, 3))), np.arange(30) % 3)
    none = estimate([scored(items.assign(probabilities=None), 3)], resamples=0)
    assert none["accuracy"].value is not None
    assert {none[name].reason for name in ("auroc", "ece")} == {"no item has probabilities"}
    items.loc[:9, "probabilities"] = None
    some = estimate([scored(items, 3)], resamples=0)
    assert [(some[name].n, some[name].left_out) for name in ("auroc", "ece", "accuracy")] == [
        (20, 10),
        (20, 10),
        (30, 0),
    ]


def test_seeds_are_averaged_a_figure_at_a_time_in_any_order_of_the_rows() -> None:
    rng = np.random.default_rng(2)
    gold = np.arange(60) % 3
    each = [scored(predicted(softmax(rng.normal(size=(60, 3))), gold, each=2), 3) for _ in range(3)]
    together = estimate([each[0], *(table.sample(frac=1, random_state=1) for table in each[1:])], resamples=0)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"):
        assert together[name].value == pytest.approx(np.mean([values(table)[name] for table in each]))


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Patients of three images that are all easy or all hard; the truth is that of a very large sample."""
    rng = np.random.default_rng(8)

    def sample(patients: int) -> tuple[Ints, Ints, Floats]:
        gold = rng.integers(0, 3, patients).repeat(3)
        skill = (rng.random(patients) < 0.5).repeat(3) * 2.5
        logits = rng.normal(size=(len(gold), 3))
        logits[np.arange(len(gold)), gold] += skill
        return gold, logits.argmax(axis=1), softmax(logits)

    gold, guess, probabilities = sample(20_000)
    truth = (
        balanced_accuracy_score(gold, guess),
        f1_score(gold, guess, average="macro"),
        roc_auc_score(gold, probabilities, multi_class="ovr"),
    )
    covered = np.zeros((3, 2))
    for trial in range(100):
        gold, guess, probabilities = sample(80)
        clusters = np.arange(len(gold)) // 3
        text = guess.astype(str), gold.astype(str)
        statistics: tuple[Statistic, ...] = (
            mean_recall_statistic(guess == gold, text[1]),
            macro_f1_statistic(text[1], text[0]),
            one_vs_rest_auroc_statistic(probabilities, gold),
        )
        for number, statistic in enumerate(statistics):
            for way, by in enumerate((clusters, np.arange(len(gold)))[: 2 - number // 2]):
                found = cluster_bootstrap(statistic, by, 200, seed=trial)
                assert found.low is not None and found.high is not None
                covered[number, way] += found.low <= truth[number] <= found.high
    # 95 % of 100, give or take three standard errors and what a percentile interval lacks on 80 patients.
    assert (covered[:, 0] / 100 > 0.87).all()
    assert (covered[:2, 1] < covered[:2, 0]).all()  # images of one patient are not independent


class _Image:
    key, place = "image", "somewhere"

    def read(self) -> bytes:
        return b""


def an_item(identity: str, answer: str, group: str = "") -> Item:
    return Item(identity, _Image(), "", answer, True, group=group)


def test_a_patient_is_the_cluster_where_the_data_names_one() -> None:
    items = [an_item("a", "benign", "p1"), an_item("b", "malignant", "p1"), an_item("c", "benign")]
    said = pd.DataFrame({"id": ["c", "b", "a"], "prediction": "benign"})
    about: dict[str, Any] = {"classes": ["benign", "malignant"], "positive": "malignant"}
    table = score_task("busi", "test", items, said, kind="classification", **about)
    assert table.set_index("id")["cluster"].to_dict() == {"a": "p1", "b": "p1", "c": "image"}
    assert set(table["kind"]) == {"classification"}
    with pytest.raises(RequestError, match=r"^classification needs two or more different classes"):
        score_task("busi", "test", items, said, kind="classification")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gold": "cyst"}, r"^item 'i0': label 'cyst' is none of the classes 'class z', 'class y', 'class x'$"),
        ({"prediction": None}, r"^item 'i0': prediction must be text"),
        ({"id": "i1"}, r"^item id 'i1' occurs more than once"),
        ({"probabilities": '{"class z": 1.0}'}, r"^item 'i0': its probabilities lack 'class y'"),
        (
            {"probabilities": '{"class z": 0.5, "class y": 0.25, "class x": 0.25, "cyst": 0.0}'},
            r"have what is no class, 'cyst'",
        ),
        ({"probabilities": '{"class z": 0.9, "class y": 0.9, "class x": 0.1}'}, r"must add up to 1"),
    ],
)
def test_bad_items_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    items = predicted(softmax(np.zeros((3, 3))), np.arange(3)).astype(object)
    for column, value in change.items():
        items.loc[0, column] = value
    with pytest.raises(RequestError, match=message):
        scored(items, 3)


@pytest.mark.parametrize("profile", ["llava_med", "medevalkit", "lmms_eval", "helm"])
def test_other_harnesses_have_no_rule_for_classes(profile: str) -> None:
    items = predicted(softmax(np.zeros((3, 3))), np.arange(3))
    with pytest.raises(RequestError, match=rf"^profile {profile} has no rule for classification; use medbench$"):
        score(items, profile, classes=names_of(3))


@pytest.mark.parametrize(("count", "positive"), [(2, None), (2, "cyst"), (3, "class z")])
def test_two_classes_have_a_positive_one_and_more_have_none(count: int, positive: str | None) -> None:
    items = predicted(softmax(np.zeros((2, count))), np.arange(2))
    with pytest.raises(RequestError, match=r"^positive: of two classes one is the positive one, of more none is"):
        score(items, classes=names_of(count), positive=positive)
