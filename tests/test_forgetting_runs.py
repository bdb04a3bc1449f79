"""`medbench forget` on the toy set: ordinary runs, the report over them, and what is refused before any is begun."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from conftest import Toy, make_toy
from test_run_common import do

from medbench.__main__ import main
from medbench.results.forgetting_text import notes
from medbench.results.record import read_record


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
