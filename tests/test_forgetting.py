"""The matrix of a sequence and what is said of it: formulas by hand, identities, sums over tasks, comparisons, text."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.errors import WorkError
from medbench.results.forgetting import Course, Forgetting, forgetting_json
from medbench.results.forgetting_plots import plot_forgetting
from medbench.results.forgetting_text import forgetting_frame, render_forgetting
from medbench.results.study_scores import Items, versus, versus_json
from medbench.scoring.bootstrap import cluster_bootstrap_mean
from medbench.scoring.contrasts import Contrast, Term
from medbench.scoring.permutation import sign_flip_test

FEW = 200
ACCURACY = "closed_accuracy"


def made(values: Any, methods: tuple[str, ...] = ("m",), metrics: tuple[str, ...] = (ACCURACY,)) -> Forgetting:
    """A sequence's scores, made up: [methods, stages + 1, tasks, metrics, seeds, items], two items an image."""
    values = np.asarray(values, dtype=float)
    tasks = tuple(f"t{n}" for n in range(1, values.shape[2] + 1))
    items = Items(dict.fromkeys(tasks, metrics))
    names = np.array([f"image{n // 2}" for n in range(values.shape[-1])])
    items.clusters = {(task, metric): names for task in tasks for metric in metrics}
    spec = SimpleNamespace(
        backbone=SimpleNamespace(name="made-up"),
        budget=SimpleNamespace(trainable=1, request="rank=8", distance=0.0, comparable=True),
        identity="0" * 64,
        seed=0,
    )
    courses = {}
    for name, own in zip(methods, values, strict=True):
        scores = [
            {(task, m): stage[t, k] for t, task in enumerate(tasks) for k, m in enumerate(metrics)} for stage in own
        ]
        method: Any = SimpleNamespace(**vars(spec), method=SimpleNamespace(name=name, adapter={"r": 8}))
        moments = tuple((n, float(n > 0), 10 * n) for n in range(len(scores)))
        courses[name] = Course((method,), moments, tuple(scores), {})
    study: Any = SimpleNamespace(
        tasks=tasks,
        metrics=dict.fromkeys(tasks, metrics),
        methods=methods,
        seeds=tuple(range(values.shape[4])),
        plan=SimpleNamespace(specs=[spec]),
    )
    return Forgetting(study, items, courses, None)


def of_matrix(matrix: list[list[float]]) -> Forgetting:
    """The scores of ten items a task whose means are a matrix in tenths, R[0] first."""
    rows = [[[[[float(n < round(10 * value)) for n in range(10)]]] for value in row] for row in matrix]
    return made([rows])


def summary(found: Forgetting, method: str = "m", scope: str | None = None) -> dict[str, float]:
    scopes = found.items.scopes()
    sums = found.summary(method, scopes[scope or next(iter(scopes))])
    return {name: contrast.value for name, contrast in sums.items()}


def test_the_formulas_of_a_small_matrix_by_hand() -> None:
    # Rows: after nothing, after t1, t2, t3. Columns: tested on t1, t2, t3.
    found = of_matrix([[0.2, 0.1, 0.3], [0.8, 0.3, 0.2], [0.9, 0.7, 0.6], [0.4, 0.5, 0.8]])
    assert summary(found) == pytest.approx(
        {
            "final_average": (0.4 + 0.5 + 0.8) / 3,
            "backward_transfer": ((0.4 - 0.8) + (0.5 - 0.7)) / 2,
            "forward_transfer": ((0.3 - 0.1) + (0.6 - 0.3)) / 2,
            "forgetting": ((0.9 - 0.4) + (0.7 - 0.5)) / 2,  # t1 was at its best after t2
            "first_task_drop": 0.8 - 0.4,
        }
    )
    scope = found.items.scopes()[ACCURACY]
    assert found.relative_drop("m", scope, FEW).estimate.value == pytest.approx(0.4 / 0.8)
    assert found.matrix("m", 2, "t3", ACCURACY).value == pytest.approx(0.6)
    share = found.forgotten_share("m", scope)
    assert share is not None and share.value == pytest.approx((0.5 + 0.2) / (0.9 + 0.7))


def test_a_forgotten_share_varies_as_the_ratio_does() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random((1, 400)) < 0.6).astype(float)
    after = before * (rng.random((1, 400)) < 0.7)
    clusters = (np.arange(400) // 4).astype(str)
    lost, whole = (Contrast((Term("t", 1.0, values, clusters),)) for values in (before - after, before))
    share, ratio = lost.share_of(whole).figure(2000).estimate, lost.relative_to(whole, 2000).estimate
    assert share.value == pytest.approx(ratio.value)
    assert (share.low, share.high) == (pytest.approx(ratio.low, abs=0.01), pytest.approx(ratio.high, abs=0.01))


def test_a_drop_from_nothing_has_no_share() -> None:
    found = of_matrix([[0.2, 0.1], [0.0, 0.3], [0.0, 0.7]])
    share = found.relative_drop("m", found.items.scopes()[ACCURACY], FEW).estimate
    assert (share.value, share.low, share.reason) == (None, None, "relative to zero")
    assert found.forgotten_share("m", found.items.scopes()[ACCURACY]) is None


def draw(seed: int, tasks: int, seeds: int, metrics: int, methods: int = 1) -> Any:
    shape = (methods, tasks + 1, tasks, metrics, seeds, 8)
    return np.random.default_rng(seed).integers(0, 2, shape).astype(float)


@given(seed=st.integers(0, 1000), tasks=st.integers(2, 4), seeds=st.integers(1, 3), metrics=st.integers(1, 2))
@settings(max_examples=40)
def test_identities_of_the_summary(seed: int, tasks: int, seeds: int, metrics: int) -> None:
    values = draw(seed, tasks, seeds, metrics)
    names = (ACCURACY, "open_recall")[:metrics]
    found = made(values, metrics=names)
    each = values[0].mean(axis=-1)  # [stages + 1, tasks, metrics, seeds]
    for scope, r in [*zip(names, np.moveaxis(each, 2, 0), strict=True), ("mean", each.mean(axis=2))]:
        if scope == "mean" and metrics == 1:
            continue
        got, mean = summary(found, scope=scope), r.mean(axis=-1)
        bwt = np.mean([mean[tasks, j] - mean[j + 1, j] for j in range(tasks - 1)])
        fwt = np.mean([mean[j, j] - mean[0, j] for j in range(1, tasks)])
        # Chaudhry's maximum is of one run: each seed's own.
        forgotten = np.mean(
            [
                [max(r[k, j, s] for k in range(1, tasks)) - r[tasks, j, s] for j in range(tasks - 1)]
                for s in range(seeds)
            ]
        )
        assert got["final_average"] == pytest.approx(mean[tasks].mean())
        assert got["backward_transfer"] == pytest.approx(bwt)
        assert got["forward_transfer"] == pytest.approx(fwt)
        assert got["forgetting"] == pytest.approx(forgotten)
        assert got["forgetting"] >= -got["backward_transfer"] - 1e-12
        if tasks == 2:
            assert got["forgetting"] == pytest.approx(-got["backward_transfer"])
            assert got["forgetting"] == pytest.approx(got["first_task_drop"])


def test_one_mean_is_estimated_and_tested_as_elsewhere() -> None:
    rng = np.random.default_rng(0)
    values, clusters = rng.integers(-1, 2, (2, 40)).astype(float), np.array([f"i{n // 3}" for n in range(40)])
    contrast = Contrast((Term("t", 1.0, values, clusters),))
    figure = contrast.figure()
    assert figure.estimate == cluster_bootstrap_mean(values.mean(axis=0), clusters)
    assert figure.seed_sd == pytest.approx(np.std(values.mean(axis=1), ddof=1))
    assert contrast.test() == sign_flip_test(values.mean(axis=0), clusters)


def test_tasks_are_drawn_apart_and_their_variances_add() -> None:
    rng = np.random.default_rng(1)
    names = np.array([f"i{n}" for n in range(60)])
    one, two = (Contrast((Term(t, 0.5, rng.random((1, 60)), names),)) for t in "ab")
    both = Contrast((*one.terms, *two.terms))
    assert both.value == pytest.approx(one.value + two.value)
    apart = np.hypot(one.standard_error(), two.standard_error())  # type: ignore[arg-type]
    assert both.standard_error() == pytest.approx(apart, rel=0.05)
    # A task's figures share its images: the same values twice are no second sample.
    twice = Contrast(tuple(Term("a", 0.5, one.terms[0].values, names) for _ in range(2)))
    assert twice.standard_error() == pytest.approx(2 * one.standard_error(), rel=0.05)  # type: ignore[operator]


def test_the_test_of_a_sum_flips_whole_images_of_each_task() -> None:
    clusters = np.array(["i", "i", "j"])
    terms = (
        Term("a", 0.5, np.array([[1.0, 1.0, 1.0]]), clusters),
        Term("b", 0.5, np.array([[1.0, 1.0, 1.0]]), clusters),
    )
    # Four images of two tasks, though two names: all of one sign in 2 of 16 patterns.
    assert Contrast(terms).test().p == 2 / 16
    assert Contrast(terms[:1]).test().p == 2 / 4


def test_a_difference_needs_the_same_items() -> None:
    clusters = np.array(["i", "j"])
    one = Contrast((Term("a", 1.0, np.ones((1, 2)), clusters),))
    other = Contrast((Term("a", 1.0, np.ones((1, 2)), clusters[::-1]),))
    assert one.minus(one).value == 0
    with pytest.raises(WorkError, match="not over the same items"):
        one.minus(other)


def test_equal_methods_are_not_separable_and_unequal_ones_are() -> None:
    items = 60
    values = np.ones((3, 3, 2, 1, 1, items))
    values[0, 2, 0] = 0  # forgets all of the first task
    names = tuple("abc")
    found = made(values, names)
    scope = found.items.scopes()[ACCURACY]
    lines = versus(ACCURACY, {m: found.summary(m, scope)["forgetting"] for m in names}, FEW)
    assert [(v.first, v.second, v.apart, v.difference.estimate.value) for v in lines] == [
        ("a", "b", True, 1.0),
        ("a", "c", True, 1.0),
        ("b", "c", False, 0.0),
    ]
    assert lines[2].p == 1.0
    about = forgetting_json(found, FEW)
    assert [line["verdict"] for line in about["comparisons"]] == ["forgets more", "forgets more", "not separable"]


def test_the_text_has_each_method_and_says_how_to_read_it(tmp_path: Path) -> None:
    found = forgetting_json(made(draw(3, 3, 2, 2, 2), ("a", "b"), (ACCURACY, "open_recall")), FEW)
    text = render_forgetting(found)
    assert text.count("| a ") >= 4 + 3
    assert "± is the deviation between seeds" in text
    assert "The best stage is picked on the items" in text
    assert "With two tasks" not in text
    files = plot_forgetting(found, tmp_path)
    assert [path.name for path in files] == ["curves.png", "curves.svg", "matrix.png", "matrix.svg"]
    svg = (tmp_path / "curves.svg").read_text()
    again = plot_forgetting(found, tmp_path / "again")
    assert again[1].read_text() == svg
    table = forgetting_frame(found)
    assert table["part"].value_counts().to_dict() == {"trace": 48, "matrix": 48, "summary": 36, "versus": 3}


def test_what_is_apart_on_these_seeds_alone_says_so() -> None:
    clusters = np.arange(60).astype(str)

    def side(*levels: float) -> Contrast:
        return Contrast((Term("t", 1.0, np.repeat(np.array(levels)[:, None], 60, axis=1), clusters),))

    steady, shaky = versus("mean", {"a": side(0.30, 0.32), "b": side(0.1, 0.1), "c": side(0.02, 0.5)}, FEW)[:2]
    assert (steady.first, steady.second, steady.apart, steady.shaky) == ("a", "b", True, False)
    # 0.31 less 0.26 in the mean, and 0.28 and -0.18 by seed.
    assert (shaky.second, shaky.apart, shaky.shaky) == ("c", True, True)
    assert versus_json(shaky, "more", "less")["verdict"] == "more, on these seeds"
    assert versus_json(steady, "more", "less")["verdict"] == "more"
