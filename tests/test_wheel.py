"""The wheel carries everything a run needs, and works away from the checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=100)
    (file,) = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    words = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, *words], check=True, capture_output=True, timeout=100)
    return target


def python(installed: Path, cwd: Path, *words: str) -> str:
    """Runs Python where only the installed wheel is found; returns stdout."""
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_carries_the_packages_data(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    carried = {"tasks": "*.*", "baselines": "**/*.yaml", "results/paper": "*.*"}
    for folder, pattern in carried.items():
        for file in (ROOT / folder).glob(pattern):
            assert f"medbench/{file.relative_to(ROOT).as_posix()}" in sizes
    for file in (ROOT / "medbench").rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            assert file.relative_to(ROOT).as_posix() in sizes
    assert "medbench/py.typed" in sizes
    for name in ("nano-vl/model.safetensors", "nano-clip/open_clip_model.safetensors"):
        assert 0 < sizes[f"medbench/backbones/{name}"] <= 16 * 2**20
    assert not [name for name in sizes if name.startswith(("tests/", "benchmarks/")) or "measured" in name]


def test_the_wheel_works_on_its_own(installed: Path, tmp_path: Path) -> None:
    where = python(installed, tmp_path, "-c", "import medbench; print(medbench.__file__)")
    assert Path(where.strip()).is_relative_to(installed)
    tasks = json.loads(python(installed, tmp_path, "-m", "medbench", "list", "tasks", "--json"))
    for kind, folder in (("tasks", ROOT / "tasks"), ("groups", ROOT / "tasks" / "groups")):
        listed = {row["name"] for row in tasks if (row["kind"] == "group") == (kind == "groups")}
        assert {path.stem for path in folder.glob("*.yaml")} == listed
    rows = json.loads(python(installed, tmp_path, "-m", "medbench", "budget", "--json"))
    assert {"lora", "spectral_moe"} <= {row["method"] for row in rows}


def test_the_wheel_trains_and_tests_its_own_backbone(installed: Path, tmp_path: Path) -> None:
    words = "run --method lora --tasks phantom_vqa --train-limit 16 --limit 4 --json"
    (run,) = json.loads(python(installed, tmp_path, "-m", "medbench", *words.split()))["runs"]
    assert run["tasks"]["phantom_vqa"]["n"] == 4
    folder = tmp_path / "results" / "runs" / run["run"]
    assert (folder / "adapter" / "adapter_model.safetensors").exists()
    assert (folder / "record.json").exists()
