"""What is committed under `results/` is what the README shows, and adds up."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, Cli

from medbench.results.record import read_record, read_scores, run_folders, task_figures
from medbench.results.tables import build_table, render
from medbench.results.traces import read_trace
from medbench.scoring.stats import estimate_metrics
from medbench.spec import load_spec

MEASURED = ROOT / "results" / "measured"
TABLES = [MEASURED, MEASURED / "methods"]
#: Folders whose table lies beside them, and the words of the command that wrote it.
BESIDE = {
    MEASURED / "ablation": (),
    MEASURED / "segment_start": (),
    MEASURED / "T5": (),
    MEASURED / "T7": (),
    MEASURED / "convergence": (),
    MEASURED / "dinov2": (),
    MEASURED / "dinov2_ten_epochs": (),
    MEASURED / "classification": ("--paper", "T2", "--group", "real_cls"),
}
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("**/spec.json"))
COMMITTED = sorted({folder.parent for folder in FOLDERS})


def test_every_committed_run_is_complete() -> None:
    complete, incomplete = run_folders(COMMITTED)
    assert sorted(complete) == FOLDERS
    assert FOLDERS
    assert incomplete == []


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name[:8])
def test_a_committed_run_is_what_its_name_says_and_holds_no_data(folder: Path) -> None:
    assert hashlib.sha256((folder / "spec.json").read_bytes()).hexdigest() == folder.name
    spec, record = load_spec(folder), read_record(folder)
    assert spec.identity == folder.name == record["run"]
    assert record["environment"]["predict"]["git"]["dirty"] is False
    predictions = pd.read_parquet(folder / "predictions.parquet")
    assert set(predictions.columns) == {"task", "split", "id", "cluster", "prediction", "probabilities"}
    scores = pd.read_parquet(folder / "scores.parquet")
    # Without an item's class no figure by class could be computed; of other kinds nothing of the data is needed.
    kept = {"gold"} if set(scores.get("kind", ())) == {"classification"} else set()
    tables = [scores, *([read_trace(folder)] if spec.trace else [])]
    assert not any(({"question", "gold", "answer", "image"} - kept) & set(table.columns) for table in tables)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name[:8])
def test_the_figures_follow_from_the_scores(folder: Path) -> None:
    """The values of every run; of the first few (names are hashes: a sample) the intervals too, which take long."""
    record = read_record(folder)
    for task, content in record["tasks"].items():
        scores = read_scores(folder, task)
        assert (len(scores), scores["cluster"].nunique()) == (content["n"], content["clusters"])
        values = {name: estimate.value for name, estimate in estimate_metrics([scores], resamples=2).items()}
        assert values == pytest.approx({name: entry["value"] for name, entry in content["metrics"].items()})
        if folder in FOLDERS[:4]:
            figures = task_figures([scores])["metrics"]
            for name, entry in figures.items():
                assert entry == pytest.approx(content["metrics"][name]), (task, name)


@pytest.mark.parametrize("folder", TABLES, ids=lambda folder: folder.name)
def test_the_readme_shows_the_table_as_generated(folder: Path) -> None:
    assert render(build_table([folder]), "md") in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", BESIDE, ids=lambda folder: folder.name)
def test_a_table_beside_its_runs_is_as_generated(folder: Path, cli: Cli) -> None:
    done = cli("table", folder, *BESIDE[folder])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (folder / "table.md").read_text(encoding="utf-8")


def test_the_verdicts_beside_the_runs_are_as_judged(cli: Cli) -> None:
    done = cli("claims", MEASURED, "--scale", "nano")
    assert done.returncode == 0
    assert done.stdout == (MEASURED / "claims.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((ROOT / "results" / "reproduced").glob("*.md")), ids=lambda path: path.stem)
def test_a_reproduced_table_is_as_folded(path: Path, cli: Cli, tmp_path: Path) -> None:
    table, _, scale = path.stem.partition("-")
    done = cli("reproduce", table, "--scale", scale, "--no-run", "--runs", MEASURED, "--out", tmp_path)
    assert done.returncode == 0
    assert done.stdout == path.read_text(encoding="utf-8")
