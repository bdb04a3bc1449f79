"""Mixed against single-task training: differences, corrections, files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import Toy
from test_forgetting_runs import call, mine, second, words  # noqa: F401
from test_run_common import do

from medbench.results.interference import Interference, interference_json, render_interference
from medbench.results.record import read_record, read_scores
from medbench.results.study_scores import Items
from medbench.scoring.paired import compare_paired
from medbench.scoring.permutation import holm

FEW = 200


def made(mixed: Any, single: Any, methods: tuple[str, ...]) -> Interference:
    """Made-up scores: [methods, tasks, seeds, items], each item an image."""
    mixed, single = np.asarray(mixed, dtype=float), np.asarray(single, dtype=float)
    tasks = tuple(f"t{n}" for n in range(mixed.shape[1]))
    items = Items(dict.fromkeys(tasks, ("accuracy",)))
    names = np.array([f"image{n}" for n in range(mixed.shape[-1])])
    items.clusters = {(task, "accuracy"): names for task in tasks}

    def scores(values: Any) -> Any:
        return {
            m: {(t, "accuracy"): own[n] for n, t in enumerate(tasks)} for m, own in zip(methods, values, strict=True)
        }

    def of(role: str, method: str, task: str | None = None) -> list[Any]:
        budget = SimpleNamespace(trainable=1, request="rank=8", distance=0.0, comparable=True)
        about = SimpleNamespace(name=method, adapter={})
        return [SimpleNamespace(method=about, budget=budget, identity=f"{role}{method}{task}", seed=0)]

    study: Any = SimpleNamespace(
        tasks=tasks,
        metrics=dict.fromkeys(tasks, ("accuracy",)),
        methods=methods,
        seeds=tuple(range(mixed.shape[2])),
        plan=SimpleNamespace(backbone=SimpleNamespace(name="made-up")),
        of=of,
    )
    return Interference(study, items, scores(mixed), scores(single))


def test_differences_averages_and_corrections() -> None:
    rng = np.random.default_rng(0)
    mixed, single = rng.integers(0, 2, (2, 3, 2, 3, 50)).astype(float)
    single[0, 1] = 1  # the first method loses on the second task
    found = interference_json(made(mixed, single, ("a", "b", "c")), FEW)
    lines = {(line["method"], line["task"]): line for line in found["lines"]}
    assert len(lines) == 3 * 3
    for number, method in enumerate("abc"):
        each = (mixed[number] - single[number]).mean(axis=-1)  # [tasks, seeds]
        for task in range(2):
            line = lines[method, f"t{task}"]
            assert line["difference"]["value"] == pytest.approx(each[task].mean())
            assert line["difference"]["seed_sd"] == pytest.approx(each[task].std(ddof=1))
            assert line["mixed"]["value"] - line["single"]["value"] == pytest.approx(line["difference"]["value"])
        assert lines[method, None]["difference"]["value"] == pytest.approx(each.mean())
    for task in ("t0", "t1", None):
        column = [lines[method, task] for method in "abc"]
        assert [line["p_holm"] for line in column] == holm([line["p"] for line in column])
    assert lines["a", "t1"]["verdict"] == "better alone"
    assert [(line["first"], line["second"]) for line in found["comparisons"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    between = lines["a", None]["difference"]["value"] - lines["b", None]["difference"]["value"]
    assert found["comparisons"][0]["difference"]["value"] == pytest.approx(between)
    text = render_interference(found)
    assert text.count("| (all) ") == 3
    assert "corrected over the methods" in text


def test_equal_training_interferes_with_nothing() -> None:
    same = np.random.default_rng(1).integers(0, 2, (1, 2, 1, 20))
    for line in interference_json(made(same, same, ("a",)), FEW)["lines"]:
        difference = line["difference"]
        assert (difference["value"], difference["low"], difference["high"]) == (0, 0, 0)
        assert (line["p"], line["verdict"], line["detectable"]) == (1.0, "not separable", None)


def test_the_runs_are_those_of_run(
    mine: Toy,  # noqa: F811
    second: str,  # noqa: F811
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = [str(mine.card), second]
    out = tmp_path / "runs"
    given = ["--tasks", ",".join(both), "--method", "lora", "--json", "--report", tmp_path / "report"]
    assert call("interference", *words(mine, tiny, out, *given)) == 0
    found = json.loads(capsys.readouterr().out)
    settings = {"training.batch_size": 4, "training.micro_batch_size": 4}
    finished = {path.parent for path in out.glob("*/record.json")}
    mixed = do(mine, tiny, out, tasks=both, settings=dict(settings))
    alone = {
        name: do(mine, tiny, out, tasks=[card], settings=dict(settings))
        for name, card in zip(("toy", "other"), both, strict=True)
    }
    assert finished == {mixed, *alone.values()}  # found finished, none trained again
    assert "trace" not in read_record(mixed)
    for line in found["lines"]:
        if line["task"] is not None:
            sides = [[read_scores(folder, line["task"])] for folder in (mixed, alone[line["task"]])]
            paired = compare_paired(*sides, line["metric"])
            difference = paired.figures.difference
            assert {k: line["difference"][k] for k in ("value", "low", "high", "n", "clusters")} == difference.to_json()
            assert (line["p"], line["exact"]) == (paired.flip.p, paired.flip.exact)  # type: ignore[union-attr]
    assert [Path(file).name for file in found["files"]] == [f"interference.{form}" for form in ("json", "md", "csv")]
    report = json.loads((tmp_path / "report" / "interference.json").read_text())
    assert report == {key: value for key, value in found.items() if key != "files"}


def test_wrong_requests_are_one_line(
    mine: Toy,  # noqa: F811
    tiny: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("interference", *words(mine, tiny, tmp_path / "out", "--tasks", mine.card)) == 2
    complaint = capsys.readouterr().err
    assert complaint.count("\n") == 1
    assert "needs at least two tasks" in complaint
    assert not (tmp_path / "out").exists()
