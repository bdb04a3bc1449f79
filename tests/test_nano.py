"""The pretraining of the small backbone: resumable to the bit, refuses what does not fit, and the shipped weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Cli
from safetensors.torch import load_file

from medbench.backbones.grounding import Grounding
from medbench.backbones.nano import BACKBONE, CARD, LOSSES, pretrain, restore_unseen
from medbench.backbones.nano_plots import PARTS, plot_losses, plot_spectra
from medbench.backbones.pretrain import Pretraining, Recipe, fresh_vlm, step_loss
from medbench.backbones.registry import get_backbone
from medbench.backbones.resumable import STATE, read_state
from medbench.backbones.skill import caption_scores, read_caption, skill
from medbench.backbones.vlm import load_vlm
from medbench.errors import RequestError, WorkError
from medbench.files import read_json, run_lock
from medbench.phantom.pretraining import CAPTION_PROMPTS, caption, pretraining_scene
from medbench.phantom.scene import Scene

CPU = torch.device("cpu")
SMALL = Recipe(steps=4, images=2, warmup=1)


def advance(done: int, total: int) -> None:
    """No progress is shown."""


def trained(tiny: Path, folder: Path, *stops: int, recipe: Recipe = SMALL) -> dict[str, torch.Tensor]:
    """The state after all steps, in one go or stopped in between and taken up again in a new model."""
    for stop in (*stops, recipe.steps):
        work = Pretraining(fresh_vlm(tiny, 0, CPU), recipe, folder)
        assert work.run(lambda work=work, stop=stop: work.done >= stop, 100, advance) == (stop == recipe.steps)
    return load_file(folder / STATE)


def test_a_stopped_pretraining_goes_on_to_the_same_bits(tiny: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    whole = trained(tiny, tmp_path / "whole")
    torch.manual_seed(7)
    parts = trained(tiny, tmp_path / "parts", 2)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = dict(fresh_vlm(tiny, 0, CPU).model.named_parameters())
    moved = [name for name, p in fresh.items() if not torch.equal(whole[f"weight/{name}"], p)]
    assert len(moved) == len(fresh)


def test_another_recipe_is_not_taken_up(tiny: Path, tmp_path: Path) -> None:
    trained(tiny, tmp_path)
    with pytest.raises(WorkError, match=r"another recipe \(lr differ\)"):
        Pretraining(fresh_vlm(tiny, 0, CPU), Recipe(steps=4, images=2, warmup=1, lr=1e-2), tmp_path)
    (tmp_path / STATE).write_bytes(b"torn")
    with pytest.raises(WorkError, match="not a readable state"):
        Pretraining(fresh_vlm(tiny, 0, CPU), SMALL, tmp_path)


def test_each_step_sees_new_scenes_and_a_blind_one_paints_none(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vlm = fresh_vlm(tiny, 0, CPU)
    head = Grounding(vlm.base.config.vision_config.out_hidden_size, 4)
    painted: list[str] = []

    def pixels(scene: Scene, scanner: str = "standard") -> np.ndarray:
        painted.append(scene.digest)
        return np.full((112, 112), len(painted), np.uint8)

    monkeypatch.setattr("medbench.phantom.image.pixels", pixels)
    with torch.no_grad():
        for step in range(3):
            assert step_loss(vlm, head, replace(SMALL, first=10), step).shape == (3,)
        assert painted == [pretraining_scene(0, 10 + n).digest for n in range(6)]
        step_loss(vlm, head, replace(SMALL, blind=True), 0)
    assert len(painted) == 6


def test_grounding_wants_the_lesions_where_they_are() -> None:
    """A head that says exactly what the scenes hold has no loss; the same shifted by one token has a large one."""
    scenes = [pretraining_scene(0, n) for n in range(12)]
    head = Grounding(width=13 + 2 + 16, tokens=16)
    with torch.no_grad():
        head.head.weight.copy_(torch.eye(31))
        head.head.bias.zero_()
    features = torch.zeros(12, 16, 31)
    features[..., 0] = 30
    for row, scene in enumerate(scenes):
        for lesion in scene.lesions:
            token = (lesion.y * 4 // 1000) * 4 + lesion.x * 4 // 1000
            features[row, token, 0] = 0
            features[row, token, 1 + head.kinds.index((scene.modality, lesion.kind))] = 30
            features[row, token, 13 + (lesion.size == "large")] = 30
    features[..., 15:] = 30 * torch.eye(16)
    assert head(features, scenes).item() < 1e-4
    assert head(features.roll(1, dims=1), scenes).item() > 5


def test_captions_are_read_back_as_facts() -> None:
    for scene in (pretraining_scene(0, n) for n in range(100)):
        modality, lesions = read_caption(caption(scene))
        assert modality == scene.about.image
        assert lesions == {scene.site(x).name: (x.size, x.kind) for x in scene.lesions}
    truth = ["CT slice: liver small cyst; spleen clear", "MR slice: left frontal lobe large cyst"]
    assert set(caption_scores(truth, truth).values()) == {1.0}
    told = ["CT slice: liver large cyst; spleen small mass", "CT slice: nonsense"]
    found = caption_scores(truth, told)
    assert found == {"modality": 0.5, "site_f1": 0.5, "lesion_f1": 0.5, "size_accuracy": 0.0, "exact": 0.0}


def test_pretrain_writes_a_backbone_that_loads_and_pictures(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    card = pretrain(tiny, out, SMALL, CPU, scenes=6)
    assert card == read_json(out / BACKBONE / CARD)
    assert (card["steps"], card["images"], card["finished"], card["pretrained"]) == (4, 8, True, True)
    (losses,) = read_json(out / LOSSES)
    assert len(losses) == 4
    assert all(len(step) == len(PARTS) for step in losses)
    state = load_file(out / STATE)
    words = "model.language_model.embed_tokens.weight"
    assert words in dict(fresh_vlm(tiny, 0, CPU).model.named_parameters())
    backbone = get_backbone(str(out / BACKBONE))
    loaded = load_vlm(backbone, torch.float32, CPU, {}).model
    for name, p in loaded.named_parameters():
        if name != words:
            assert torch.equal(p, state[f"weight/{name}"].half().float()), name
    before = backbone.identity()
    (out / STATE).unlink()
    assert backbone.identity() == before != get_backbone(str(tiny)).identity()
    plot_losses([out], tmp_path / "loss.png")
    shares = plot_spectra(out / BACKBONE, tiny, tmp_path / "spectrum.png")
    assert all(0 < value < 1 for value in shares.values())
    for picture in ("loss.png", "spectrum.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(RequestError, match=r"no losses\.json"):
        plot_losses([tiny], tmp_path / "none.png")


def test_words_that_never_came_are_put_back(tiny: Path) -> None:
    vlm, fresh = fresh_vlm(tiny, 1, CPU), fresh_vlm(tiny, 0, CPU)
    stage = {"recipe": asdict(SMALL), "done": 3}
    before = vlm.base.get_input_embeddings().weight.detach().clone()
    count = restore_unseen(vlm, fresh, [stage])
    after, began = vlm.base.get_input_embeddings().weight, fresh.base.get_input_embeddings().weight
    kept = (after == before).all(1)
    assert count == int((~kept).sum()) > 0
    assert torch.equal(after[~kept], began[~kept])
    met = vlm.completion_ids(vlm.chat(CAPTION_PROMPTS[0])) + vlm.completion_ids(caption(pretraining_scene(0, 5)))
    assert kept[met].all()


def test_a_later_stage_starts_from_the_weights_and_sees_new_scenes(tiny: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain(tiny, first, SMALL, CPU, scenes=4)
    card = pretrain(tiny, second, replace(SMALL, steps=2, exchanges=3), CPU, start=first, scenes=4)
    assert [(stage["done"], stage["first"]) for stage in card["stages"]] == [(4, 0), (2, 8)]
    assert (card["steps"], card["images"]) == (6, 12)
    assert [len(stage) for stage in read_json(second / LOSSES)] == [4, 2]
    started = Pretraining(fresh_vlm(tiny, 5, CPU), SMALL, tmp_path / "third", start=first / STATE)
    state = load_file(first / STATE)
    assert all(torch.equal(p, state[f"weight/{name}"]) for name, p in started.names.items())
    assert started.done == 0
    with pytest.raises(WorkError, match=r"another recipe \(.*base.* differ\)"):
        Pretraining(fresh_vlm(tiny, 0, CPU), SMALL, first, base="other")
    with pytest.raises(RequestError, match="a finished stage"):
        pretrain(tiny, second, SMALL, CPU, start=tmp_path / "gone")


def test_the_command_line_stops_and_goes_on(tiny: Path, tmp_path: Path, cli: Cli) -> None:
    words = ("nano", "pretrain", "--base", tiny, "--out", tmp_path / "out", "--steps", 3, "--scenes", 4, "--json")
    first = json.loads(cli(*words, "--minutes", 0).stdout)
    assert (first["steps"], first["finished"]) == (0, False)
    second = json.loads(cli(*words).stdout)
    assert (second["steps"], second["finished"]) == (3, True)
    bad = cli(*words, "--seed", 5)
    assert bad.returncode == 1
    assert "another recipe (seed differ)" in bad.stderr
    gone = cli("nano", "skill", tmp_path / "gone")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)
    for word, wrong in (("--lr", "inf"), ("--seed", 2**40), ("--start", tmp_path), ("--base", tmp_path / "out")):
        refused = cli("nano", "pretrain", "--out", tmp_path / "y", "--base", tiny, word, wrong)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    base = cli("nano", "pretrain", "--base", tmp_path, "--out", tmp_path / "x", "--json")
    assert base.returncode == 2
    assert not (tmp_path / "x").exists()


def test_two_pretrainings_do_not_share_a_folder(tiny: Path, tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "out", "pretraining"),
        pytest.raises(WorkError, match="pretraining out is held by"),
    ):
        pretrain(tiny, tmp_path / "out", SMALL, CPU, scenes=2)
    with pytest.raises(WorkError, match="weights that are not finite; try a lower --lr"):
        pretrain(tiny, tmp_path / "hot", replace(SMALL, steps=1, lr=1e38), CPU, scenes=2)
    assert not (tmp_path / "hot" / STATE).exists()
    assert not (tmp_path / "hot" / BACKBONE).exists()


def test_a_killed_pretraining_goes_on(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "medbench", "nano", "pretrain", "--base", str(tiny), "--out", str(out)]
    command += ["--steps", "100000", "--save-steps", "1"]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (out / STATE).exists():
                break
            time.sleep(0.1)
        assert (out / STATE).exists()
    finally:
        process.kill()
        process.wait()
    about, _ = read_state(out / STATE)
    work = Pretraining(fresh_vlm(tiny, 0, CPU), Recipe(steps=100000), out, about["base"])
    before = work.done
    assert before == len(work.losses) >= 1
    work.run(lambda: work.done > before, 100, advance)
    assert work.done == before + 1


def test_the_shipped_backbone_sees(tmp_path: Path) -> None:
    """On a small sample: far above what captions of other scenes reach, and gone on blank images."""
    backbone = get_backbone("nano-vl")
    card = read_json(backbone.folder() / CARD)
    assert card["pretrained"]
    assert card["finished"]
    assert sum(f.stat().st_size for f in backbone.folder().iterdir()) < 16e6
    vlm = load_vlm(backbone, torch.float32, CPU, {})
    sighted, blind = (skill(vlm, 0, 60, blind) for blind in (False, True))
    assert sighted["captions"]["lesion_f1"] > sighted["shuffled"]["lesion_f1"] + 0.25
    assert blind["captions"]["lesion_f1"] < sighted["shuffled"]["lesion_f1"] + 0.1
    assert blind["yes_no"]["balanced_accuracy"] < 0.6
