"""Runs that cannot go on: damaged adapters, a loss that is not finite, changed data, another process."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Toy, make_toy
from PIL import Image
from safetensors.torch import load_file, save_file
from test_run_common import do, jobs_of, request, words

import medbench.run
import medbench.steps
from medbench.__main__ import main
from medbench.errors import RequestError, WorkError
from medbench.results.record import read_record, read_scores

Finished = Callable[[str], Path]


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("faults"), train=8, test=4)


@pytest.fixture
def mine(tmp_path: Path) -> Toy:
    """A toy set that a test may change."""
    return make_toy(tmp_path, train=8, test=4)


@pytest.fixture(scope="module")
def finished(small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of each method, done once; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    return lambda method: do(small, tiny, out, method)


@pytest.mark.parametrize("damage", ["missing", "superfluous", "truncated", "shape"])
@pytest.mark.parametrize("method", ["lora", "spectral_moe"])
def test_a_damaged_adapter_is_refused(
    small: Toy, tiny: Path, finished: Finished, tmp_path: Path, method: str, damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = tmp_path / "adapter"
    shutil.copytree(finished(method) / "adapter", folder)
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    first = sorted(tensors)[0]
    if damage == "missing":
        del tensors[first]
    elif damage == "superfluous":
        tensors["base_model.model.extra.lora_A.weight"] = tensors[first].clone()
    elif damage == "shape":
        tensors[first] = tensors[first][..., :-1].contiguous()
    save_file(tensors, file, {"format": "pt"})
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(SystemExit) as end:
        main([*words(small, tiny, "lora", tmp_path / "out", {})[:5], "--adapter", str(folder),
              "--data-root", str(small.root), "--out", str(tmp_path / "out"), "--json"])  # fmt: skip
    printed = capsys.readouterr()
    assert end.value.code == 1
    assert printed.out == ""
    assert [line for line in printed.err.splitlines() if "adapter_model.safetensors" in line]
    assert "Traceback" not in printed.err
    assert sum(line.startswith("medbench:") for line in printed.err.splitlines()) == 1
    assert not list((tmp_path / "out").glob("*/record.json"))


def test_a_loss_that_is_not_finite_ends_the_run(
    small: Toy, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(words(small, tiny, "full_ft", tmp_path / "out", {"training.lr": 1e30, "training.optimizer": "sgd"}))
    printed = capsys.readouterr()
    assert end.value.code == 1
    (line,) = [line for line in printed.err.splitlines() if line.startswith("medbench:")]
    assert "at step 2 of 2" in line
    assert "lr 1e+30" in line
    assert "Traceback" not in printed.err
    (folder,) = (tmp_path / "out").iterdir()
    assert not (folder / "adapter").exists()
    assert not (folder / "record.json").exists()


def test_changed_images_are_refused_mid_run(
    mine: Toy, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    image = mine.folder / "images" / "train0.png"
    before = image.read_bytes()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(medbench.steps, "predict", stop)
        do(mine, tiny, tmp_path / "out")
    Image.new("RGB", (56, 56), (1, 2, 3)).save(image)
    with pytest.raises(WorkError, match="the data changed since this run began"):
        do(mine, tiny, tmp_path / "out")
    image.write_bytes(before)
    monkeypatch.setattr(medbench.steps, "fit", lambda *args: pytest.fail("the fit was done again"))
    folder = do(mine, tiny, tmp_path / "out")
    assert read_record(folder)["tasks"]["toy"]["n"] == 8


def test_a_run_finished_by_another_process_meanwhile_is_not_begun_again(
    small: Toy, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process may finish after the first look and before the lock is had."""
    folder = do(small, tiny, tmp_path)
    looks = iter([False, True])
    monkeypatch.setattr(medbench.run, "is_finished", lambda path: next(looks))
    (job,) = jobs_of(request(small, tiny), tmp_path)
    before = listing(folder)
    assert medbench.run.run(job) == folder
    assert {k: v for k, v in listing(folder).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


@pytest.mark.parametrize("name", ["scores.parquet", "record.json"])
def test_a_damaged_run_is_one_line_in_a_table(
    finished: Finished, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = []
    for number in range(2):  # two seeds' worth of folders, so that the table reads the scores
        folder = tmp_path / f"run{number}"
        shutil.copytree(finished("lora"), folder)
        folders.append(folder)
    file = folders[0] / name
    file.write_bytes(b'{"schema": 1}' if name == "record.json" else file.read_bytes()[:-40])
    with pytest.raises(SystemExit) as end:
        main(["table", str(folders[0])])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out) == (1, "")
    assert printed.err.count("\n") == 1
    assert str(file) in printed.err


RECORDS: dict[str, tuple[dict[str, Any], str]] = {
    "no-data": ({"data": None}, "without data"),
    "task-list": ({"tasks": []}, "without tasks"),
    "no-split": ({"tasks": {"toy": {}}}, "without the figures of toy"),
    "spec-list": ({"spec": []}, "without spec"),
}


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("more", [(), ("--blind",)], ids=["plain", "blind"])
def test_a_record_of_another_shape_is_one_line(
    finished: Finished, tmp_path: Path, kind: str, more: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = RECORDS[kind]
    shutil.copytree(finished("lora"), tmp_path / "run")
    path = tmp_path / "run" / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SystemExit) as end:
        main(["table", str(tmp_path), *more])
    printed = capsys.readouterr()
    assert (end.value.code, printed.out, printed.err.count("\n")) == (1, "", 1)
    assert f"{path}: broken record, {message}" in printed.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table[["task", "id"]], r"broken scores \(columns cluster, type"),
        (lambda table: table.drop(columns="task"), r"broken scores \(columns task\)"),
        (lambda table: table.assign(closed="x"), r"broken scores \(columns closed\)"),
        (lambda table: table.assign(task="other"), "no scores of task toy"),
    ],
)
def test_scores_of_another_shape_are_named(
    finished: Finished, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished("lora"), folder)
    change(pd.read_parquet(folder / "scores.parquet")).to_parquet(folder / "scores.parquet")
    with pytest.raises(WorkError, match=f"^{folder}/scores.parquet: {message}"):
        read_scores(folder, "toy")


def test_an_adapter_of_another_backbone_is_named(small: Toy, finished: Finished, tmp_path: Path) -> None:
    asked = request(small, Path("nano-vl"), method="lora", adapter=str(finished("lora") / "adapter"))
    with pytest.raises(RequestError, match="was trained on backbone tiny, not on nano-vl"):
        jobs_of(asked, tmp_path / "out")
