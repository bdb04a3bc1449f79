"""A package of somebody else's adds a method: one class, one entry point, installed by pip."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "dummy-loha"
version = "1.2"

[project.entry-points."medbench.methods"]
loha = "dummy_loha:LoHa"
broken = "dummy_loha.{broken}"
"""
# The class that CONTRIBUTING.md shows.
MODULE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text().split("```python\n")[1].split("```")[0]


def install(folder: Path, broken: str = "folder") -> Path:
    source, target = folder / "source", folder / "site"
    (source / "dummy_loha" / "folder").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PYPROJECT.replace("{broken}", broken))
    (source / "dummy_loha" / "__init__.py").write_text(MODULE + "\n\nclass NotATuner:\n    pass\n")
    (source / "dummy_loha" / "folder" / "__init__.py").write_text("")
    words = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target), str(source)]
    command = [sys.executable, "-m", "pip", "install", *words]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    return target


def medbench(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "medbench", *words]
    return subprocess.run(command, cwd=site, env=env, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("third"))


def test_it_is_listed_and_gets_a_budget_without_torch(site: Path) -> None:
    listed = json.loads(medbench(site, "list", "methods", "--json").stdout)
    (row,) = [row for row in listed if row["name"] == "loha"]
    assert row["description"] == "LoHa: the Hadamard product of two low-rank products."
    (row,) = json.loads(medbench(site, "budget", "--method", "loha", "--backbone", "nano-vl", "--json").stdout)
    assert row["rank"] == 10  # half the rank of a LoRA of the same budget, 20
    assert abs(row["budget_distance"]) <= 0.05
    assert row["percent_published"] is None


def test_it_is_trained_stored_loaded_and_recorded(site: Path, tmp_path: Path) -> None:
    words = ["--tasks", "phantom_vqa_xray", "--limit", "4", "--train-limit", "16", "--out", str(tmp_path / "runs")]
    done = medbench(site, "run", "--method", "loha", *words, "--set", "adapter.alpha_over_r=1", "--json")
    assert done.returncode == 0, done.stderr
    (run,) = json.loads(done.stdout)["runs"]
    assert run["method"] == "loha"
    (folder,) = (tmp_path / "runs").iterdir()
    spec, record = (json.loads((folder / f"{name}.json").read_text()) for name in ("spec", "record"))
    assert spec["method"]["tuner"] == "loha"
    assert spec["method"]["adapter"]["package"] == "dummy-loha 1.2"  # another version is another run
    assert spec["method"]["adapter"]["alpha_over_r"] == 1.0
    assert record["parameters"]["trainable"] == spec["budget"]["trainable"]
    refused = medbench(site, "run", "--method", "loha", *words, "--set", "adapter.top_k=1")
    assert refused.returncode == 2
    assert "adapter.top_k" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [("folder:Missing", "fails"), ("folder:__name__", "no medbench.Tuner"), ("no:Class", "fails")],
)
def test_an_entry_point_that_is_no_method_is_named(tmp_path: Path, target: str, message: str) -> None:
    site = install(tmp_path, target)
    done = medbench(site, "list", "methods")
    assert done.returncode == 2
    assert "entry point broken of medbench.methods" in done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
