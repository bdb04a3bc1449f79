"""Runs end to end on the toy set: what a run folder holds, what decides it, what is refused."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Toy, make_toy
from test_run_common import do, items_of, jobs_of, loaded, request, words

import medbench
import medbench.run
import medbench.steps
import medbench.steps_data
from medbench.__main__ import main
from medbench.backbones.adapt import attach, trainable_parameters
from medbench.catalog import Catalog
from medbench.data.seen import SEEN
from medbench.files import folder_digest
from medbench.results.record import load_records, read_record
from medbench.results.rescore import rescore
from medbench.run import run_all

METHODS = ("none", "lora", "spectral_moe", "full_ft")
TRAINED = METHODS[1:]
FILES = {"spec.json", "predictions.parquet", "scores.parquet", "record.json"}
Finished = Callable[[str], Path]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("small"), train=8, test=4)


@pytest.fixture(scope="module")
def finished(small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of each method, done once; not to be changed."""
    out = tmp_path_factory.mktemp("runs")
    return lambda method: do(small, tiny, out, method)


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*")}


def weights(folder: Path) -> bytes:
    (file,) = (folder / "adapter").glob("*.safetensors")
    return file.read_bytes()


def predictions(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_folder_holds_its_artefacts_and_nothing_else(finished: Finished, method: str) -> None:
    folder = finished(method)
    names = {p.name for p in folder.iterdir()} - {".lock"}
    kept = {"none": set(), "spectral_moe": {"adapter", "routes.json"}}.get(method, {"adapter"})
    assert names == FILES | kept
    files = [p.name for p in (folder / "adapter").rglob("*")]
    assert {Path(name).suffix for name in files} <= {".safetensors", ".json", ".txt"}
    assert [name for name in files if name.endswith(".txt")] == [SEEN] * (method != "none")
    assert sum(name.endswith(".safetensors") for name in files) == (method != "none")


@pytest.mark.parametrize("method", METHODS)
def test_a_record_says_what_the_run_was_and_gave(finished: Finished, tiny: Path, method: str) -> None:
    folder = finished(method)
    record = read_record(folder)
    assert record["run"] == folder.name
    assert (record["method"], record["seed"], record["dtype"]) == (method, 0, "float32")
    assert record["protocol"] == ("zero_shot" if method == "none" else "in_domain")
    task = record["tasks"]["toy"]
    assert (task["n"], task["clusters"], task["split"], task["skipped"]) == (8, 4, "test", 0)
    for metric in task["metrics"].values():
        assert {"value", "low", "high", "n", "clusters"} <= set(metric)
        assert metric["value"] is not None or metric["reason"]
        if metric["low"] is not None:
            assert metric["low"] <= metric["value"] <= metric["high"]
    assert task["metrics"]["closed_accuracy"]["n"] == task["metrics"]["open_recall"]["n"] == 4
    steps = ["predict"] if method == "none" else ["fit", "predict"]
    for step in steps:
        environment = record["environment"][step]
        assert environment["packages"]["torch"]
        assert environment["packages"]["transformers"]
        assert set(environment["git"] or {"commit": "", "dirty": ""}) == {"commit", "dirty"}
        assert (environment["threads"], environment["device"]) == (1, "cpu")
        assert record["memory"][step]["process_bytes"] > 50e6
        assert record["seconds"][step] > 0
    assert set(record["data"]) == {"toy/test"} | ({"toy/train"} if method != "none" else set())
    assert all(len(about[key]) == 64 for about in record["data"].values() for key in ("digest", "images_digest"))
    assert record["weights"]["backbone"].startswith("sha256:")
    expected = folder_digest(folder / "adapter", "*.safetensors") if method != "none" else None
    assert record["weights"]["adapter"] == expected
    assert record["prediction"] == {"images_encoded": 4, "image_features_cached": True}


@pytest.mark.parametrize("method", METHODS)
def test_the_recorded_parameters_are_the_real_ones(finished: Finished, tiny: Path, method: str) -> None:
    parameters = read_record(finished(method))["parameters"]
    vlm = loaded(tiny, None)
    total = sum(p.numel() for p in vlm.model.parameters())
    attach(vlm, medbench.load_spec(finished(method)).method, 0)
    assert parameters["trainable"] == trainable_parameters(vlm)
    assert parameters["total"] == total
    assert parameters["percent"] == pytest.approx(100 * parameters["trainable"] / total)


def test_stored_predictions_hold_no_data(finished: Finished, small: Toy) -> None:
    columns = ["task", "split", "id", "cluster", "prediction", "probabilities"]
    table = predictions(finished("lora"))
    assert list(table) == columns
    items = items_of(small, "test")
    assert list(table["id"]) == [item.id for item in items]
    assert list(table["cluster"]) == [item.image.key for item in items]
    for item, text in zip(items, table["probabilities"], strict=True):
        assert isinstance(text, str) == item.closed
        if item.closed:
            assert set(json.loads(text)) == {"yes", "no"}
            assert sum(json.loads(text).values()) == pytest.approx(1)


@pytest.mark.parametrize("method", TRAINED)
def test_training_fits_what_it_is_shown(small: Toy, tiny: Path, tmp_path: Path, method: str) -> None:
    settings = {"training.epochs": 12, "training.schedule": "constant", "training.lr": 0.003}
    (stage,) = read_record(do(small, tiny, tmp_path, method, settings=settings))["training"]["stages"]
    losses = [entry["loss"] for entry in stage["losses"]]
    assert len(losses) == 24
    assert sum(losses[-4:]) / 4 < 0.75 * losses[0]


def test_a_finished_run_is_not_done_again(
    small: Toy, tiny: Path, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished("lora")
    before = listing(folder)
    for module, step in ((medbench.steps_data, "check_data"), (medbench.steps, "fit"), (medbench.steps, "predict")):
        monkeypatch.setattr(module, step, lambda *args: pytest.fail("work was done"))
    assert do(small, tiny, folder.parent) == folder
    assert listing(folder) == before


def test_a_finished_run_needs_no_torch(small: Toy, tmp_path: Path) -> None:
    """Through the command line, with the shipped backbone (its shapes are known without the model)."""
    folder = do(small, "nano-vl", tmp_path / "out")
    before = listing(folder)
    code = "import sys; from medbench.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit as end:"
    code += "\n    print('torch' in sys.modules, 'transformers' in sys.modules, end.code, file=sys.stderr)"
    command = [sys.executable, "-c", code, *words(small, "nano-vl", "lora", tmp_path / "out", {})]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.stderr.splitlines()[-1] == "False False 0"
    assert json.loads(done.stdout)["runs"][0]["run"] == folder.name
    assert listing(folder) == before


@pytest.mark.parametrize("method", TRAINED)
def test_a_seed_decides_every_byte(small: Toy, tiny: Path, finished: Finished, tmp_path: Path, method: str) -> None:
    first, again = finished(method), do(small, tiny, tmp_path, method)
    assert first != again
    assert first.name == again.name
    assert weights(first) == weights(again)
    assert predictions(first).equals(predictions(again))
    other = do(small, tiny, tmp_path, method, seeds=(1,))
    assert weights(other) != weights(first)


def test_a_run_whose_weights_are_gone_is_still_finished(small: Toy, tiny: Path, tmp_path: Path) -> None:
    folder = do(small, tiny, tmp_path)
    shutil.rmtree(folder / "adapter")
    before = listing(folder)
    do(small, tiny, tmp_path)
    assert listing(folder) == before


def test_what_a_killed_process_left_is_tidied(small: Toy, tiny: Path, tmp_path: Path) -> None:
    """A process can die between the record and the tidying, or in the middle of any write."""
    folder = do(small, tiny, tmp_path)
    before = listing(folder)
    (folder / "parts").mkdir()
    for name in ("fit.json", ".predictions.parquet.x1.tmp", ".lock.holder", "parts/toy-0-of-1.parquet"):
        (folder / name).touch()
    do(small, tiny, tmp_path)
    assert set(listing(folder)) == set(before)


def test_load_records_gives_one_row_a_figure(small: Toy, tiny: Path, finished: Finished, tmp_path: Path) -> None:
    shutil.copytree(finished("none"), tmp_path / "a")
    shutil.copytree(finished("lora"), tmp_path / "b")
    (tmp_path / "c").mkdir()
    shutil.copy(finished("lora") / "spec.json", tmp_path / "c")
    frame = load_records(tmp_path)
    assert frame.attrs["incomplete"] == [str(tmp_path / "c")]
    assert set(frame["method"]) == {"none", "lora"}
    metrics = read_record(finished("lora"))["tasks"]["toy"]["metrics"]
    own = frame[frame["method"] == "lora"].set_index("metric")
    assert set(own.index) == set(metrics)
    assert own.loc["closed_accuracy", "value"] == metrics["closed_accuracy"]["value"]
    assert set(own["trained_on"]) == {"toy"}
    assert own["trainable"].tolist() == [read_record(finished("lora"))["parameters"]["trainable"]] * len(own)


def test_scoring_again_reproduces_the_record(
    small: Toy, finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = read_record(finished("spectral_moe"))["tasks"]["toy"]["metrics"]
    found = rescore(finished("spectral_moe"), Catalog().task(str(small.card)), "test", "medbench", small.root)
    assert found["metrics"] == expected
    with pytest.raises(SystemExit) as end:
        main(
            [
                "score",
                str(finished("spectral_moe")),
                "--task",
                str(small.card),
                "--data-root",
                str(small.root),
                "--json",
            ]
        )
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == expected


@pytest.mark.parametrize("method", ["lora", "spectral_moe"])
def test_a_stored_adapter_gives_its_runs_predictions(
    small: Toy, tiny: Path, finished: Finished, tmp_path: Path, method: str
) -> None:
    again = do(small, tiny, tmp_path, adapter=str(finished(method)), budget=None)
    assert predictions(again).equals(predictions(finished(method)))
    record = read_record(again)
    assert (record["method"], record["protocol"]) == (f"adapter:{method}", "in_domain")
    assert record["weights"]["adapter"] is not None


def test_several_runs_are_all_looked_at_before_the_first_begins(small: Toy, tiny: Path, tmp_path: Path) -> None:
    jobs = jobs_of(request(small, tiny, seeds=(0, 1)), tmp_path)
    shown: list[str] = []
    folders = run_all(jobs, shown.append)
    assert [folder.name for folder in folders] == [job.spec.identity for job in jobs]
    assert run_all(jobs, shown.append) == folders
    assert ["finished before" in text for text in shown] == [False, False, True, True]
