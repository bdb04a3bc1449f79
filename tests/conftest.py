"""Fixtures: a tiny real backbone, a toy data set in VQA-RAD's layout with its card, the command line as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing that is cached goes to the home of who runs the tests, and nothing comes from there."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data beside the project."""
    if not SHARED.is_dir():
        pytest.skip("the real data is not at ../shared/data")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2.5-VL backbone of 0.1 M parameters, with its processor."""
    from medbench.backbones.build import TINY, build_backbone

    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    words = [
        "Is the image red green blue?",
        "What is the colour? Answer with a single word or a short phrase.",
        "yes no",
    ]
    build_backbone(folder, TINY, words * 3, seed=0)
    return folder


@dataclass(frozen=True)
class Toy:
    """A data root with one toy set, and the path of its card."""

    root: Path
    card: Path

    @property
    def folder(self) -> Path:
        return self.root / "toy"

    def records(self, split: str) -> list[dict[str, object]]:
        return json.loads((self.folder / f"{split}.json").read_text())

    def write(self, split: str, records: object) -> None:
        (self.folder / f"{split}.json").write_text(json.dumps(records))

    def card_content(self) -> dict[str, object]:
        from medbench.catalog import read_yaml

        return read_yaml(self.card)

    def write_card(self, content: dict[str, object]) -> None:
        self.card.write_text(yaml.safe_dump(content))


def make_toy(base: Path, train: int = 24, test: int = 12) -> Toy:
    """A toy set of coloured squares: one closed and one open question an image."""
    from PIL import Image

    from medbench.catalog import packaged, read_yaml

    root = base / "data"
    (root / "toy" / "images").mkdir(parents=True)
    names = list(COLOURS)
    qid = 0
    for split, images in (("train", train), ("test", test)):
        records: list[dict[str, object]] = []
        for number in range(images):
            colour = names[number % 3]
            file = f"{split}{number}.png"
            Image.new("RGB", (56 + 8 * (number % 2), 56), COLOURS[colour]).save(root / "toy" / "images" / file)
            asked = names[(number // 3) % 3]
            for question, answer, kind in (
                (f"Is the image {asked}?", "Yes" if asked == colour else "No", "CLOSED "),
                ("What is the colour?", colour, "OPEN"),
            ):
                qid += 1
                records.append(
                    {"qid": qid, "image_name": file, "question": question, "answer": answer, "answer_type": kind}
                )
        (root / "toy" / f"{split}.json").write_text(json.dumps(records))
    content = read_yaml(packaged("tasks") / "vqa_rad.yaml")
    content["task"] = "toy"
    meta = content["metadata"]
    meta |= {"dataset": "toy", "folder": "toy", "splits": {"train": {"count": 2 * train}, "test": {"count": 2 * test}}}
    meta["layouts"] = {"vqa_rad_json": {"files": {"train": "train.json", "test": "test.json"}}}
    card = base / "cards" / "toy.yaml"
    card.parent.mkdir()
    card.write_text(yaml.safe_dump(content))
    return Toy(root, card)


def second_task(toy: Toy) -> str:
    """The card of a second task over the same images, with other answers."""
    content: dict[str, Any] = toy.card_content()
    content["task"] = "other"
    content["metadata"]["layouts"] = {"vqa_rad_json": {"files": {"train": "other.json", "test": "test.json"}}}
    toy.write("other", [{**record, "answer": "blue"} for record in toy.records("train")])
    card = Toy(toy.root, toy.card.with_name("other.yaml"))
    card.write_card(content)
    return str(card.card)


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return make_toy(tmp_path)


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli_process(tmp_path: Path) -> Cli:
    """Runs `python -m medbench` in an empty folder; returns the finished process."""

    def call(*words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "medbench", *map(str, words)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout)

    return call


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """The same in this process, which need not import torch anew for each call."""
    from medbench.__main__ import main

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def call(*words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        capfd.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        out, err = capfd.readouterr()
        assert isinstance(done.value.code, int)
        return subprocess.CompletedProcess(list(map(str, words)), done.value.code, out, err)

    return call


def toy_run(toy: Toy, tiny: Path, *more: object) -> list[object]:
    """The words of a small `medbench run` on the toy set."""
    return [
        *("run", "--tasks", toy.card, "--backbone", tiny, "--data-root", toy.root),
        *("--set", "training.batch_size=8", "--budget", "rank=8", *more),
    ]
