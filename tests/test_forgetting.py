"""The matrix of a sequence and what is said of it: formulas by hand and by identities, runs, files, refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Toy, make_toy
from hypothesis import given, settings
from hypothesis import strategies as st
from test_run_common import do

from medbench.__main__ import main
from medbench.errors import WorkError
from medbench.results.forgetting import Course, Forgetting, forgetting_json
from medbench.results.forgetting_plots import plot_forgetting
from medbench.results.forgetting_text import forgetting_frame, notes, render_forgetting
from medbench.results.record import read_record
from medbench.results.study_scores import Items, versus
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


def test_a_drop_from_nothing_has_no_share() -> None:
    found = of_matrix([[0.2, 0.1], [0.0, 0.3], [0.0, 0.7]])
    share = found.relative_drop("m", found.items.scopes()[ACCURACY], FEW).estimate
    assert (share.value, share.low, share.reason) == (None, None, "relative to zero")


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


# Real runs.


def card_of(mine: Toy, name: str, file: str, **metadata: Any) -> str:
    content: Any = mine.card_content()
    content["task"] = name
    content["metadata"]["layouts"] = {"vqa_rad_json": {"files": {"train": file, "test": "test.json"}}}
    content["metadata"] |= metadata
    path = mine.card.with_name(f"{name}.yaml")
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("toy"), train=4, test=3)


@pytest.fixture(scope="module")
def second(mine: Toy) -> str:
    mine.write("other", [{**record, "answer": "blue"} for record in mine.records("train")])
    return card_of(mine, "other", "other.json")


def words(mine: Toy, tiny: Path, out: Path, *more: object) -> list[str]:
    pairs = {"batch_size": 4, "micro_batch_size": 4, "lr": 0.01, "epochs": 1, "gradient_checkpointing": "false"}
    given = [word for key, value in pairs.items() for word in ("--set", f"training.{key}={value}")]
    given += ["--set", "adapter.num_experts=4"] if any("moelora" in str(word) for word in more) else []
    given += ["--budget", "rank=8", "--backbone", str(tiny)]
    return [*given, "--data-root", str(mine.root), "--out", str(out), *map(str, more)]


def call(*given: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in given])
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def done(mine: Toy, second: str, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the runs and of the report of a study of two methods."""
    out = tmp_path_factory.mktemp("study")
    given = ["--sequence", f"{mine.card},{second}", "--method", "lora,moelora", "--json", "--report", out / "report"]
    assert call("forget", *words(mine, tiny, out / "runs", *given)) == 0
    return out / "runs", out / "report"


def test_a_study_is_ordinary_runs_and_a_report(done: tuple[Path, Path], mine: Toy, second: str, tiny: Path) -> None:
    runs, report = done
    found = json.loads((report / "forgetting.json").read_text())
    records = [read_record(folder) for folder in runs.iterdir() if (folder / "record.json").exists()]
    stages = sorted((record["method"], record["stages"], "trace" in record) for record in records)
    both = [
        (m, s, t)
        for m in ("lora", "moelora")
        for s, t in (([["other"]], False), ([["toy", "other"]], False), ([["toy"], ["other"]], True))
    ]
    assert stages == sorted([*both, ("none", [], False)])
    for method in found["methods"]:
        (record,) = [r for r in records if r["run"] in method["runs"]]
        for cell in method["matrix"]:
            points = [point for point in record["trace"]["points"] if point["stage"] == cell["after"]]
            assert cell["value"] == points[-1]["tasks"][cell["task"]]["metrics"][cell["metric"]]["value"]
            if cell["after"] == 2:  # the last point is the run itself, its interval too
                told = record["tasks"][cell["task"]]["metrics"][cell["metric"]]
                assert {key: cell[key] for key in ("value", "low", "high", "n", "clusters")} == told
        joint = [
            r for r in records if r["method"] == method["method"] and len(r["stages"]) == 1 and len(r["stages"][0]) > 1
        ]
        for cell in method["bounds"]:
            if cell["bound"] == "joint":
                assert cell["value"] == joint[0]["tasks"][cell["task"]]["metrics"][cell["metric"]]["value"]
    untrained = {(c["task"], c["metric"]): c["value"] for c in found["none"]}
    first = found["methods"][0]["matrix"]
    assert {(c["task"], c["metric"]): c["value"] for c in first if c["after"] == 0} == untrained


def test_a_study_again_does_nothing_and_says_the_same(
    done: tuple[Path, Path], mine: Toy, second: str, tiny: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs, report = done
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")}
    given = ["--sequence", f"{mine.card},{second}", "--method", "lora,moelora", "--json", "--report", tmp_path]
    assert call("forget", *words(mine, tiny, runs, *given)) == 0
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.json")} == before
    said = json.loads(capsys.readouterr().out)
    names = ["forgetting.json", "forgetting.md", "forgetting.csv"]
    plots = ["curves.png", "curves.svg", "matrix.png", "matrix.svg"]
    assert [Path(file).name for file in said.pop("files")] == names + plots
    assert said == json.loads((report / "forgetting.json").read_text())
    assert said["notes"] == notes(said)
    for name in [*names, "curves.svg"]:
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()
    table = pd.read_csv(report / "forgetting.csv")
    assert set(table["part"]) == {"none", "matrix", "bound", "trace", "summary", "versus"}


def test_the_shape_of_the_json(done: tuple[Path, Path]) -> None:
    found = json.loads((done[1] / "forgetting.json").read_text())
    assert list(found) == [
        *("kind", "backbone", "sequence", "metrics", "scopes", "seeds", "resamples", "none", "methods", "comparisons"),
        "notes",
    ]
    assert found["sequence"] == ["toy", "other"]
    assert list(found["scopes"]) == ["closed_accuracy", "open_recall", "mean"]
    figure = {"value", "low", "high", "n", "clusters", "seed_sd"}
    for method in found["methods"]:
        assert len(method["matrix"]) == 3 * 2 * 2
        assert {line["bound"] for line in method["bounds"]} == {"joint", "alone", "alone:toy", "alone:other"}
        names = {line["name"] for line in method["summary"]}
        assert names >= {
            "final_average",
            "backward_transfer",
            "forward_transfer",
            "forgetting",
            "less_joint",
            "less_alone",
        }
        for line in [*method["matrix"], *method["summary"], *method["bounds"], *method["trace"]]:
            assert set(line) >= figure
    assert [(line["first"], line["second"]) for line in found["comparisons"]] == [("lora", "moelora")] * 3


def test_the_first_task_alone_is_the_first_stage(
    done: tuple[Path, Path], mine: Toy, second: str, tiny: Path, tmp_path: Path
) -> None:
    found = json.loads((done[1] / "forgetting.json").read_text())
    alone = do(
        mine,
        tiny,
        tmp_path,
        tasks=[str(mine.card), second],
        train_tasks=[[str(mine.card)]],
        settings={"training.batch_size": 4, "training.micro_batch_size": 4},
    )
    record = read_record(alone)
    (lora,) = [method for method in found["methods"] if method["method"] == "lora"]
    for line in lora["bounds"]:
        if line["bound"] == "alone:toy":
            assert line["value"] == pytest.approx(record["tasks"][line["task"]]["metrics"][line["metric"]]["value"])


def test_a_dry_run_names_the_runs_and_begins_none(
    mine: Toy, second: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--sequence", f"{mine.card},{second}", "--method", "lora", "--seeds", "0,1", "--dry-run"]
    assert call("forget", *words(mine, tiny, tmp_path / "out", *given, "--json")) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [(row["part"], row["task"], row["trace"], row["seed"]) for row in plan] == [
        *(("sequence", None, "epoch", 0), ("sequence", None, "epoch", 1)),
        ("none", None, None, 0),
        *(("joint", None, None, 0), ("joint", None, None, 1)),
        *(("alone", "other", None, 0), ("alone", "other", None, 1)),
    ]
    assert call("forget", *words(mine, tiny, tmp_path / "out", *given, "--no-bounds", "--trace", "stage")) == 0
    assert "2 runs, 8 optimiser steps; those of the sequence are tested before training and after every stage" in (
        capsys.readouterr().out
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sequence", "more", "said"),
    [
        ("toy", [], "--sequence .*toy.yaml: needs at least two tasks"),
        ("toy,other,toy", [], "--sequence toy,other,toy: toy is there twice"),
        ("toy,untrained", [], "--sequence toy,untrained: task untrained has no train split and cannot be trained on"),
        ("toy,nothing", [], "nothing"),
        ("toy,other", ["--method", "lora,none"], "--method none: trains nothing"),
        ("toy,other", ["--metrics", "auroc"], "--metrics auroc: no mean over items"),
        ("toy,other", ["--metrics", "closed_acuracy"], "did you mean closed_accuracy"),
        ("toy,other", ["--seeds", "a"], "--seeds 'a': expected whole numbers"),
        ("toy,other", ["--trace", "always"], "--trace 'always': known: epoch, stage"),
        ("toy,other", ["--set", "mixture.third=2"], "mixture.third=2"),
    ],
)
def test_wrong_requests_are_one_line_and_begin_nothing(
    sequence: str,
    more: list[str],
    said: str,
    mine: Toy,
    second: str,
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cards = {"toy": str(mine.card), "other": second, "nothing": str(tmp_path / "nothing.yaml")}
    cards["untrained"] = card_of(mine, "untrained", "train.json", splits={"test": {"count": 6}})
    asked = ",".join(cards[name] for name in sequence.split(","))
    assert call("forget", *words(mine, tiny, tmp_path / "out", "--sequence", asked, *more)) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert re.search(said, complaint), complaint
    assert not (tmp_path / "out").exists()


def test_data_that_is_not_there_is_said_before_anything_is_begun(
    mine: Toy, second: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = card_of(mine, "lost", "lost.json", folder="lost")
    given = words(mine, tiny, tmp_path / "out", "--sequence", f"{mine.card},{lost}", "--method", "lora")
    assert call("forget", *given) == 2
    assert "lost" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*/fit"))
