"""Aligning two towers: a common space is found, the towers stay as they are, and the backbone knows what it saw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_clip_common import CPU, build, loaded
from test_zero_shot_common import card_at, draw_set, items_of
from typer.testing import CliRunner

from medbench.backbones.clip import new_dual
from medbench.backbones.registry import get_backbone
from medbench.catalog import Catalog
from medbench.cli import app
from medbench.data.seen import read_seen
from medbench.inference.zero_shot import ZeroShotPredictor
from medbench.plan import Request, resolve
from medbench.training.align import AlignTask, align


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"), "shades")


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("towers") / "two"
    build("dual", folder)
    (folder / "projections.safetensors").unlink()
    return folder / "mine.yaml"


def call(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, str(result.exception) if result.exception else result.stdout


def right(clip, card: Path) -> float:
    rows = ZeroShotPredictor(clip, card_at(card).prompts(single=False), 8).predict(items_of(card), lambda n: None)
    return sum(row["prediction"] == item.answer for row, item in zip(rows, items_of(card), strict=True)) / len(rows)


def test_projections_learn_and_towers_do_not(towers: Path, card: Path) -> None:
    clip = new_dual(get_backbone(str(towers)), 0, CPU)
    before = {name: tensor.clone() for name, tensor in clip.base.state_dict().items()}
    task = AlignTask("shades", items_of(card, "train"), card_at(card).prompts(single=False))
    said = align(clip, [task], steps=150, lr=3e-3, seed=0)
    changed = {name for name, tensor in clip.base.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"visual.proj.weight", "text.proj.weight", "logit_scale"}
    assert not any(parameter.requires_grad for parameter in clip.base.parameters())
    assert said["shades"]["images"] == 24
    assert said["shades"]["training_accuracy"] > 0.9
    assert right(clip, card) > 0.8  # of pictures it has not seen


def test_the_command_writes_a_backbone_that_loads_and_says_what_it_saw(
    towers: Path, card: Path, tmp_path: Path
) -> None:
    words = ["align", towers, "--tasks", card, "--steps", 150, "--lr", 0.003, "--data-root", card.parent.parent]
    code, out = call(*words, "--out", tmp_path / "made", "--json")
    assert code == 0, out
    about = json.loads((tmp_path / "made" / "align.json").read_text())
    assert set(about["tasks"]) == {"shades"}
    assert about["cards"] == {"shades": card_at(card).digest}
    backbone = get_backbone(str(tmp_path / "made" / "backbone.yaml"))
    assert set(backbone.pretrained_on) == {"vqa_rad", "shades"}
    assert right(loaded(backbone), card) > 0.8
    plan = resolve(Request(tasks=[str(card)], methods=["none"], backbone=str(tmp_path / "made" / "backbone.yaml"),
                           data_root=card.parent.parent), Catalog())  # fmt: skip
    assert plan.specs[0].protocol == "in_domain"
    again = tmp_path / "again"
    assert call(*words, "--out", again)[0] == 0
    one, other = (load_file(folder / "projections.safetensors") for folder in (tmp_path / "made", again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_picture_that_the_projections_saw_is_no_zero_shot(towers: Path, tmp_path: Path) -> None:
    mine, copy = (draw_set(tmp_path / "data", name, seed) for seed, name in enumerate(("mine", "copy")))
    images = tmp_path / "data"
    shutil.copy(images / "mine" / "images" / "train-3.png", images / "copy" / "images" / "test-4.png")
    words = ["align", towers, "--tasks", mine, "--steps", 2, "--data-root", images, "--out", tmp_path / "made"]
    assert call(*words)[0] == 0
    assert len(read_seen(tmp_path / "made") or ()) == 24
    given = ["--backbone", tmp_path / "made" / "backbone.yaml", "--data-root", images, "--out", tmp_path / "runs"]
    code, error = call("run", "--method", "none", "--tasks", copy, "--protocol", "zero_shot", *given)
    assert code != 0
    assert "1 of the 15 images of copy/test are among those that the backbone was trained on" in error


def test_folders_that_move_together_stay_together(towers: Path, card: Path, tmp_path: Path) -> None:
    shutil.copytree(towers.parent, tmp_path / "a" / "two")
    words = ["align", tmp_path / "a" / "two" / "mine.yaml", "--tasks", card, "--steps", 2]
    assert call(*words, "--data-root", card.parent.parent, "--out", tmp_path / "a" / "made")[0] == 0
    before = get_backbone(str(tmp_path / "a" / "made" / "backbone.yaml")).identity()
    (tmp_path / "a").rename(tmp_path / "b")
    assert get_backbone(str(tmp_path / "b" / "made" / "backbone.yaml")).identity() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--tasks": "vqa_rad"}, "task vqa_rad is of kind vqa; align trains on classification"),
        ({"--tasks": "chexpert_5x200"}, "chexpert_5x200 has no training split"),
        ({"--tasks": ","}, "--tasks names no task"),
        ({"--out": "{towers}"}, "would overwrite"),
        (
            {"backbone": "nano-vl.yaml"},
            "nano-vl.yaml: is no file; expected a YAML that names a vision",
        ),
        ({"--lr": 1e30}, "the loss is"),
    ],
)
def test_wrong_requests_are_one_line(change: dict, message: str, towers: Path, card: Path, tmp_path: Path) -> None:
    copy = tmp_path / "towers"
    shutil.copytree(towers.parent, copy)
    (copy / "mine.yaml").rename(copy / "backbone.yaml")
    given = {"--tasks": card, "--out": tmp_path / "out", "--steps": 3, "--data-root": card.parent.parent}
    backbone = change.get("backbone", copy / "backbone.yaml")
    given |= {key: str(value).format(towers=copy) for key, value in change.items() if key != "backbone"}
    code, error = call("align", backbone, *(word for pair in given.items() for word in pair))
    assert code != 0
    assert message in error
    assert "\n" not in error
    assert not (tmp_path / "out" / "backbone.yaml").exists()
