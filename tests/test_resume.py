"""A run that is killed anywhere goes on and ends as an unbroken one; two processes never share a run folder."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from conftest import Toy, make_toy
from test_run_common import do, words

pytestmark = pytest.mark.slow

# Dropout, so that a resumed run must also restore the random state; a batch of one makes many parts.
SETTINGS = {
    "adapter.dropout": 0.2,
    "training.batch_size": 4,
    "training.micro_batch_size": 4,
    "training.epochs": 2,
    "training.checkpoint_steps": 2,
}


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("big"), train=30, test=40)


@pytest.fixture(scope="module")
def unbroken(big: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken")
    return do(big, tiny, out, "spectral_moe", settings=dict(SETTINGS), batch_size=1)


def start(big: Toy, tiny: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "medbench"]
    command += words(big, tiny, "spectral_moe", out, SETTINGS, "--batch-size", 1)
    env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait_for(mark: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Whether the mark was seen while the process ran."""
    while process.poll() is None:
        if mark():
            return True
        time.sleep(0.002)
    return False


def assert_as_unbroken(folder: Path, unbroken: Path) -> None:
    assert folder.name == unbroken.name
    for name in ("adapter_model.safetensors", "adapter_config.json", "medbench.json"):
        assert (folder / "adapter" / name).read_bytes() == (unbroken / "adapter" / name).read_bytes(), name
    for name in ("predictions.parquet", "scores.parquet"):
        assert pd.read_parquet(folder / name).equals(pd.read_parquet(unbroken / name)), name
    assert (folder / "spec.json").read_bytes() == (unbroken / "spec.json").read_bytes()
    left = {str(p.relative_to(folder)) for p in folder.rglob("*")} - {".lock"}
    assert left == {str(p.relative_to(unbroken)) for p in unbroken.rglob("*")} - {".lock"}


def test_a_run_killed_in_every_phase_ends_as_an_unbroken_one(
    big: Toy, tiny: Path, unbroken: Path, tmp_path: Path
) -> None:
    folder = tmp_path / unbroken.name
    draw = random.Random(1)

    def checkpoint(step: int) -> Callable[[], bool]:
        return lambda: (folder / "fit" / "stage-0" / f"checkpoint-{step}").exists()

    def parts(count: int) -> Callable[[], bool]:
        return lambda: len(list((folder / "parts").glob("*.parquet"))) >= count

    phases = [  # what a process is killed at, and within how many seconds of it
        ("fit", checkpoint(2 * draw.randrange(1, 8)), 0.3),
        ("fit again", checkpoint(2 * draw.randrange(9, 14)), 0.3),
        ("end of fit", checkpoint(30), 0.3),
        ("predict", parts(draw.randrange(1, 6)), 0.1),
        ("score", lambda: (folder / "predictions.parquet").exists(), 0.02),
    ]
    killed = []
    for name, mark, within in phases:
        process = start(big, tiny, tmp_path)
        if wait_for(mark, process):
            time.sleep(draw.uniform(0, within))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed.append(name)
        process.communicate(timeout=100)
        if name == "fit":
            assert not (folder / "fit.json").exists()
            half = folder / "fit" / "stage-0" / "checkpoint-29"  # a write that was cut off: no `complete` marker
            half.mkdir()
            (half / "trained.safetensors").write_bytes(b"half of it")
    assert killed[0] == "fit"
    assert "predict" in killed
    last = start(big, tiny, tmp_path)
    _, complaint = last.communicate(timeout=100)
    assert last.returncode == 0, complaint
    assert_as_unbroken(folder, unbroken)


def test_two_processes_started_together(big: Toy, tiny: Path, unbroken: Path, tmp_path: Path) -> None:
    both = [start(big, tiny, tmp_path) for _ in range(2)]
    ends = [(process, process.communicate(timeout=200)[1]) for process in both]
    done = [process for process, _ in ends if process.returncode == 0]
    refused = [(process, text) for process, text in ends if process.returncode == 1]
    assert len(done) == len(refused) == 1
    (_, complaint), (winner,) = refused[0], done
    assert f"is held by process {winner.pid} on " in complaint
    assert complaint.count("medbench: ") == 1
    assert "Traceback" not in complaint
    assert_as_unbroken(tmp_path / unbroken.name, unbroken)
