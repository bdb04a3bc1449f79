"""`nano-clip`: captions that are true, a loss that knows which, a run that goes on to the bit, weights that see."""

from __future__ import annotations

import copy
import csv
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize

from medbench.backbones.clip import load_clip
from medbench.backbones.clip_heads import Facts
from medbench.backbones.clip_plots import plot_clip
from medbench.backbones.clip_pretrain import (
    PARTS,
    ClipPretraining,
    ClipRecipe,
    contrastive,
    encode_tokens,
    scene_pixels,
    step_scenes,
    step_texts,
    step_words,
    vocabulary,
)
from medbench.backbones.clip_skill import folder_skill, modality
from medbench.backbones.nano import BACKBONE, CARD
from medbench.backbones.nano_clip import (
    ARCHITECTURE,
    CONFIG,
    LOSSES,
    WEIGHTS,
    fresh_clip,
    pretrain_clip,
    restore_unseen,
    write_architecture,
)
from medbench.backbones.pretrain import scene_image
from medbench.backbones.registry import get_backbone
from medbench.backbones.resumable import STATE, read_state
from medbench.catalog import Catalog, packaged
from medbench.cli_nano import nano_plot, nano_pretrain
from medbench.data.load import load_items
from medbench.errors import RequestError, WorkError
from medbench.files import read_json, run_lock
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.captions import LEVELS, caption_scene, fact, word_pairs, wording
from medbench.phantom.cards import clip_card, domains
from medbench.phantom.draws import Draws
from medbench.phantom.prompts import TEMPLATES, phrases
from medbench.phantom.questions import classes
from medbench.phantom.scene import SHARES

CPU = torch.device("cpu")
SMALL = ClipRecipe(steps=4, images=4, warmup=1, dtype="float32")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An architecture of 0.2 M parameters, with the tokenizer."""
    small = copy.deepcopy(ARCHITECTURE)
    small["model_cfg"]["embed_dim"] = 16
    small["model_cfg"]["vision_cfg"] |= {"patch_size": 28, "width": 32, "layers": 1, "head_width": 16}
    small["model_cfg"]["text_cfg"] |= {"width": 32, "heads": 2, "layers": 1}
    folder = tmp_path_factory.mktemp("clip") / "base"
    write_architecture(folder, small)
    return folder


def advance(done: int, total: int) -> None:
    """No progress is shown."""


def pretraining(base: Path, folder: Path, recipe: ClipRecipe = SMALL) -> ClipPretraining:
    return ClipPretraining(*fresh_clip(base, recipe.seed), recipe, folder, CPU)


def trained(base: Path, folder: Path, *stops: int) -> dict[str, torch.Tensor]:
    """The state after all steps, in one go or stopped in between and taken up again in a new model."""
    for stop in (*stops, SMALL.steps):
        work = pretraining(base, folder)
        assert work.run(lambda work=work, stop=stop: work.done >= stop, 100, advance) == (stop == SMALL.steps)
    return load_file(folder / STATE)


def test_a_stopped_pretraining_goes_on_to_the_same_bits(base: Path, tmp_path: Path) -> None:
    torch.manual_seed(99)
    whole = trained(base, tmp_path / "whole")
    torch.manual_seed(7)
    parts = trained(base, tmp_path / "parts", 1, 3)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    fresh = dict(fresh_clip(base, 0)[0].named_parameters())
    assert not [name for name, p in fresh.items() if torch.equal(whole[f"weight/{name}"], p)]
    with pytest.raises(WorkError, match=r"another recipe \(lr differ\)"):
        pretraining(base, tmp_path / "parts", replace(SMALL, lr=1e-2))
    (tmp_path / "parts" / STATE).write_bytes(b"torn")
    with pytest.raises(WorkError, match="not a readable state"):
        pretraining(base, tmp_path / "parts")


def test_captions_say_what_is_there_and_nothing_else() -> None:
    sites = {site.name for about in MODALITIES.values() for site in about.sites}
    draws = Draws("said")
    for number in range(400):
        scene = caption_scene(0, number)
        about = scene.about
        for level in LEVELS:
            text = wording(scene, level, draws).lower().replace("hemorrhage", "haemorrhage")
            text = re.sub(r"\btumor\b", "tumour", text)
            kinds = {kind for kind in about.kinds if re.search(rf"\b{kind}\b", text)}
            told = {name for name in sites if f"in the {name}" in text}
            sizes = {size for size in ("small", "large") if size in text.split()}
            assert kinds == (set() if level == "modality" else {lesion.kind for lesion in scene.lesions}), text
            full = level in ("site", "full")
            assert told == ({scene.site(lesion).name for lesion in scene.lesions} if full else set()), text
            assert sizes == ({lesion.size for lesion in scene.lesions} if level == "full" else set()), text
            assert text.count("lesion") == 0 or not scene.lesions


def test_the_scenes_of_pretraining_are_in_no_task_and_every_second_has_a_class() -> None:
    scenes = [caption_scene(3, number) for number in range(300)]
    assert {scene.digest[0] for scene in scenes} <= set(SHARES["pretrain"])
    assert len({scene.digest for scene in scenes}) == 300
    assert max(len(scene.lesions) for scene in scenes[::2]) == 1
    assert max(len(scene.lesions) for scene in scenes[1::2]) == 3


def test_a_text_is_true_of_exactly_the_images_of_its_fact() -> None:
    recipe = replace(SMALL, images=48)
    for step in range(12):
        scenes = step_scenes(recipe, step)
        for texts in step_texts(scenes, recipe, step):
            assert len(set(texts.words)) == len(texts.words) == len(texts.truth)
            assert texts.truth.any(0).all()
            assert texts.truth.any(1).all()
            for source, row in zip(texts.sources, texts.truth, strict=True):
                same = [fact(scene, texts.level) == fact(source, texts.level) for scene in scenes]
                assert row.tolist() == same
    levels = {step_texts(step_scenes(SMALL, s), SMALL, s)[1].level for s in range(40)}
    assert levels == {"modality", "site", "full"}


def test_the_loss_is_clips_and_same_captions_are_no_negatives() -> None:
    torch.manual_seed(0)
    image, text = (normalize(torch.randn(7, 16), dim=-1) for _ in range(2))
    scale = torch.tensor(9.0)
    reference = open_clip.ClipLoss()(image, text, scale)
    assert contrastive(image, text, torch.eye(7, dtype=torch.bool), scale).item() == pytest.approx(reference.item())
    # Two images of one caption, two captions of the other: perfect features have no loss, though CLIP's would have.
    axes = torch.eye(2, 16)
    truth = torch.tensor([[True, True, False], [False, False, True], [False, False, True]])
    image, text = axes[[0, 0, 1]], axes[[0, 1, 1]]
    assert contrastive(image, text, truth, torch.tensor(100.0)).item() < 1e-6
    assert contrastive(image, text.flip(0), truth, torch.tensor(100.0)).item() > 10


def test_texts_without_padding_are_embedded_as_open_clip_does(base: Path) -> None:
    model, tokenizer = fresh_clip(base, 0)
    tokens = tokenizer(["cyst on a CT slice", "Large tumour.", "a b c " * 60])
    with torch.no_grad():
        assert torch.allclose(encode_tokens(model, tokens[:2]), model.encode_text(tokens[:2], True), atol=1e-6)
        assert torch.allclose(encode_tokens(model, tokens), model.encode_text(tokens, True), atol=1e-6)


def test_the_tokenizer_ends_texts_and_pads_behind(base: Path) -> None:
    tokenizer = fresh_clip(base, 0)[1]
    donor = open_clip.tokenizer.HFTokenizer(str(get_backbone("nano-vl").folder())).tokenizer
    text = "Nodule on a chest radiograph: 3 cm"
    words = donor(text).input_ids
    found = tokenizer([text, "x " * 99])
    assert found.shape == (2, 48)
    assert found[0].tolist() == [*words, 2, *[0] * (47 - len(words))]
    assert (found[1, -1].item(), int((found[1] == 2).sum())) == (2, 1)


def test_no_caption_and_no_prompt_is_cut(base: Path) -> None:
    tokenizer = fresh_clip(base, 0)[1]
    recipe = replace(SMALL, images=48)
    texts = [w for s in range(20) for t in step_texts(step_scenes(recipe, s), recipe, s) for w in t.words]
    texts += [text for s in range(20) for pair in step_words(vocabulary(tokenizer), recipe, s) for text in pair]
    texts += [p for prompts in Catalog().task("phantom_clip").prompts(False).values() for p in prompts]
    assert max(len(tokenizer.tokenizer(text).input_ids) for text in texts) <= 48


def test_pixels_are_those_of_the_transform(base: Path, tmp_path: Path) -> None:
    pretrain_clip(tmp_path / "out", replace(SMALL, steps=1), CPU, base, scenes=4)
    clip = load_clip(get_backbone(str(tmp_path / "out" / BACKBONE)), torch.float32, CPU)
    scenes = [caption_scene(0, number) for number in range(4)]
    expected = torch.stack([clip.transform(scene_image(scene)) for scene in scenes])
    assert torch.allclose(scene_pixels(clip.base, scenes), expected, atol=1e-6)
    assert scene_pixels(clip.base, scenes[:1], blind=True).unique().numel() == 1


def test_facts_are_those_of_the_scene() -> None:
    """A head that says exactly what a scene holds has no loss; with another's embedding it has a large one."""
    scenes = [scene for scene in (caption_scene(0, n) for n in range(40)) if scene.lesions][:12]
    head = Facts(12 + 48)
    with torch.no_grad():
        head.head.weight.copy_(torch.eye(60))
        head.head.bias.zero_()
    told = torch.full((12, 60), -30.0)
    for row, scene in enumerate(scenes):
        for lesion in scene.lesions:
            kind = head.kinds.index((scene.modality, lesion.kind))
            told[row, kind] = told[row, 12 + 4 * kind + lesion.site] = 30.0
    assert head(told, scenes, "full").item() < 1e-6
    assert head(told.roll(1, 0), scenes, "full").item() > 5
    blurred = torch.cat([told[:, :12], -told[:, 12:]], 1)
    assert head(blurred, scenes, "kind").item() < 1e-6 < 5 < head(blurred, scenes, "site").item()
    assert head(-told, scenes, "modality").item() == 0


def test_word_pairs_differ_within_a_step_in_their_word_alone() -> None:
    words, endings = ["alpha", "beta", "gamma", "delta", "omega", "sigma"], ["ing", "ous"]
    for number in range(60):
        pairs = word_pairs(words, endings, 4, Draws(str(number)))
        assert len(pairs) == 4
        assert len({text.lower().strip(".") for pair in pairs for text in pair}) >= 4
        for one, other in pairs:
            own = [set(re.findall("|".join(words), text.lower())) for text in (one, other)]
            assert own[0] == own[1] != set()


def test_tokens_that_never_came_are_put_back(base: Path, tmp_path: Path) -> None:
    work = pretraining(base, tmp_path)
    with torch.no_grad():
        work.model.token_embedding.weight.add_(1)
    work.done = 2
    before = work.model.token_embedding.weight.detach().clone()
    fresh = fresh_clip(base, 0)[0]
    count = restore_unseen(work, fresh)
    after, began = work.model.token_embedding.weight, fresh.token_embedding.weight
    kept = (after == before).all(1)
    assert count == int((~kept).sum()) > 0
    assert torch.equal(after[~kept], began[~kept])
    texts = [word for texts in step_texts(step_scenes(SMALL, 1), SMALL, 1) for word in texts.words]
    assert kept[work.tokenizer(texts).unique()].all()


def test_pretrain_writes_a_backbone_that_open_clip_and_medbench_load_alike(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    card = pretrain_clip(out, SMALL, CPU, base, scenes=8)
    assert card == read_json(out / BACKBONE / CARD)
    assert (card["steps"], card["images"], card["finished"], card["skill"]["n"]) == (4, 16, True, 8)
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) == [BACKBONE, LOSSES, STATE]
    folder = out / BACKBONE
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    clip = load_clip(get_backbone(str(folder)), torch.float32, CPU)
    image, texts = scene_image(caption_scene(0, 0)), ["normal CT slice", "a cyst"]
    assert torch.equal(transform(image), clip.transform(image))
    assert torch.equal(tokenizer(texts), clip.tokenizer(texts))
    with torch.no_grad():
        ours = clip.forward(clip.transform(image)[None], clip.tokenizer(texts))
        theirs = model.eval()(transform(image)[None], tokenizer(texts))
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    identity = get_backbone(str(folder)).identity()
    (folder / CARD).write_text("{}")
    assert get_backbone(str(folder)).identity() == identity
    losses = plot_clip([out], tmp_path / "shown")
    assert list(losses) == list(PARTS)
    assert (tmp_path / "shown" / "loss.png").read_bytes().startswith(b"\x89PNG")
    rows = list(csv.DictReader((tmp_path / "shown" / "loss.csv").open()))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    assert losses["kinds"] == pytest.approx(sum(float(row["kinds"]) for row in rows) / 4)
    with pytest.raises(RequestError, match=r"no losses\.csv"):
        plot_clip([base], tmp_path / "none")
    (out / LOSSES).write_text("step,kinds\n1,2\n")
    with pytest.raises(WorkError, match="not what `medbench nano pretrain` writes"):
        plot_clip([out], tmp_path / "none")


def test_faults_leave_nothing_behind(base: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path / "held", "pretraining"), pytest.raises(WorkError, match="is held by"):
        pretrain_clip(tmp_path / "held", SMALL, CPU, base)
    with pytest.raises(WorkError, match="try a lower --lr"):
        pretrain_clip(tmp_path / "hot", replace(SMALL, steps=2, lr=1e38), CPU, base, scenes=2)
    assert [path.name for path in (tmp_path / "hot").iterdir() if not path.name.startswith(".")] == []
    with pytest.raises(RequestError, match=f"no {CONFIG}"):
        pretrain_clip(tmp_path / "x", SMALL, CPU, tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / CONFIG).write_text('{"model_cfg": {"embed_dim": 4}}')
    with pytest.raises(RequestError, match="of a CLIP with a tokenizer"):
        pretrain_clip(tmp_path / "x", SMALL, CPU, broken)


def test_a_killed_command_goes_on(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["nano", "pretrain", "--backbone", "nano-clip", "--base", str(base), "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "medbench", *words, "--steps", "100000", "--images", "2", "--save-steps", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        for _ in range(600):
            if (out / STATE).exists():
                break
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    done = read_state(out / STATE)[0]["done"]
    assert done >= 1
    same = {"out": out, "backbone": "nano-clip", "base": base, "device": "cpu", "images": 2, "steps": 100000}
    nano_pretrain(**same, minutes=0, scenes=2)
    card = read_json(out / BACKBONE / CARD)
    assert (card["steps"], card["finished"], card["recipe"]["lr"]) == (done, False, ClipRecipe.lr)
    with pytest.raises(WorkError, match=r"another recipe \(seed differ\)"):
        nano_pretrain(**same, seed=5)
    refused = {"start": out, "exchanges": 3, "lr": math.nan, "dtype": "float16", "backbone": "nano"}
    for option, value in refused.items():
        with pytest.raises(RequestError, match=f"--{option}"):
            nano_pretrain(**same | {option: value})
    with pytest.raises(RequestError, match="--fresh"):
        nano_plot([out], tmp_path, "nano-clip", base)


@pytest.mark.parametrize("suffix", domains())
def test_every_card_is_what_its_generator_writes_and_its_answers_are_classes(suffix: str) -> None:
    assert (packaged("tasks") / f"phantom_clip{suffix}.yaml").read_text() == clip_card(suffix)
    task, asked = Catalog().task(f"phantom_clip{suffix}"), Catalog().task(f"phantom_cls{suffix}")
    assert tuple(task.metadata.classes) == asked.metadata.candidates
    for split in ("train", "validation", "test"):
        items, questions = (load_items(card, split, None).items for card in (task, asked))  # type: ignore[arg-type]
        for item, question in zip(items, questions, strict=True):
            assert (item.id, item.answer, item.image) == (question.id, question.answer, question.image)
            assert (item.question, item.closed, item.candidates) == ("", True, ())


def test_prompts_are_distinct_and_name_their_class() -> None:
    task = Catalog().task("phantom_clip")
    prompts, single = task.prompts(False), task.prompts(True)
    assert list(prompts) == classes(tuple(MODALITIES))
    assert all(len(of) == len(TEMPLATES) * 3 for of in prompts.values())
    assert {name: of[0] for name, of in single.items()} == {name: f"{name}." for name in prompts}
    assert len({text for of in prompts.values() for text in of}) == 16 * 12
    for name, of in phrases(("ct", "mr")).items():
        for kind in ("cyst", "mass", "calcification", "tumour", "haemorrhage"):
            assert all(
                (kind in phrase.split(",")[0].split() or f"{kind} present" in phrase) == (kind in name.split())
                for phrase in of
            )
    assert modality("normal CT slice") == "ct"


def test_the_shipped_backbone_sees() -> None:
    """On a small sample: far above what the modality alone gives, and there on blank images."""
    folder = get_backbone("nano-clip").folder()
    card = read_json(folder / CARD)
    assert card["finished"]
    assert not card["recipe"]["blind"]
    assert card["images"] == card["recipe"]["steps"] * card["recipe"]["images"]
    assert json.loads((folder / CONFIG).read_text()) == ARCHITECTURE
    assert card["parameters"] == next(iter(get_backbone("nano-clip").tables.values())).total
    assert (folder / WEIGHTS).stat().st_size < 16e6
    sighted, blind = (folder_skill(folder, CPU, 40, blind) for blind in (False, True))
    assert sighted["ensemble"]["accuracy"] > 0.6
    assert sighted["single"]["modality"] > 0.95
    # Blank images are all given one class: at most its share of these 40, here bounded by four standard errors.
    assert blind["ensemble"]["accuracy"] < 1 / 16 + 4 * math.sqrt(15 / 16 / 16 / 40)
