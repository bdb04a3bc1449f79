"""Blind runs see nothing of any image, train what they say, and are never mistaken for sighted ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, Toy, make_toy
from PIL import Image
from test_run_common import do, examples_of, experts, fitted, items_of, loaded, request
from test_spec import SAMPLE

import medbench.steps
from medbench.__main__ import main
from medbench.backbones.pixels import BLANK_GREY, BLANK_SIZE
from medbench.backbones.vlm import Vlm
from medbench.catalog import Catalog
from medbench.data.item import FileImage, Item
from medbench.errors import RequestError, WorkError
from medbench.files import read_json
from medbench.inference.predict import Prediction, Predictor
from medbench.plan import resolve
from medbench.results.record import load_records, read_record
from medbench.spec import Generation, load_spec, parse_spec
from medbench.training.collate import Collator

MEASURED = sorted(path.parent for path in (ROOT / "results" / "measured").glob("*/spec.json"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("blind"), train=8, test=6)


@pytest.fixture(scope="module")
def repainted(small: Toy, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """The same questions about images of the same names, of other colours and other sizes."""
    base = tmp_path_factory.mktemp("repainted")
    shutil.copytree(small.root, base / "data")
    shutil.copytree(small.card.parent, base / "cards")
    for number, path in enumerate(sorted((base / "data" / "toy" / "images").iterdir())):
        Image.effect_noise((40 + 30 * (number % 4), 90 - 20 * (number % 3)), 90).convert("RGB").save(path)
    return Toy(base / "data", base / "cards" / small.card.name)


@pytest.fixture(scope="module")
def model(small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """A model that was trained with its eyes open."""
    vlm = loaded(tiny, experts())
    fitted(vlm, examples_of(vlm, small), tmp_path_factory.mktemp("fit"), epochs=3)
    vlm.model.requires_grad_(False)
    return vlm


def weights(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def predictions(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "predictions.parquet")


def test_blindness_is_part_of_the_identity() -> None:
    kinds = [dataclasses.replace(SAMPLE, blind=blind) for blind in (None, "train", "test")]
    assert len({spec.identity for spec in kinds}) == 3
    assert [spec.to_json().get("blind", "absent") for spec in kinds] == ["absent", "train", "test"]
    assert [parse_spec(spec.to_json(), "here") for spec in kinds] == kinds
    with pytest.raises(WorkError, match="here: blind"):
        parse_spec(SAMPLE.to_json() | {"blind": "both"}, "here")


@pytest.mark.parametrize("folder", MEASURED, ids=lambda folder: folder.name[:8])
def test_runs_from_before_keep_their_identity(folder: Path) -> None:
    spec = load_spec(folder)
    assert spec.identity == folder.name
    assert ("blind" in read_json(folder / "spec.json")) == (spec.blind is not None)


def test_without_training_both_kinds_are_the_same_run(small: Toy, tiny: Path) -> None:
    found = {}
    for blind in ("train", "test"):
        for method in ("none", "lora"):
            (spec,) = resolve(request(small, tiny, method, settings={}, blind=blind), Catalog()).specs
            found[method, blind] = (spec.blind, spec.identity)
    assert found["none", "train"] == found["none", "test"]
    assert found["none", "test"][0] == "test"
    assert (found["lora", "train"][0], found["lora", "test"][0]) == ("train", "test")


def answers(vlm: Vlm, toy: Toy, items: Sequence[Item], cached: bool = True) -> list[Prediction]:
    predictor = Predictor(vlm, Catalog().task(str(toy.card)), Generation(4, 6))
    predictor.features.cached = cached
    rows = predictor.predict(items, lambda count: None)
    assert predictor.features.encoded == (0 if not cached else 1 if vlm.blind else len({i.image.key for i in items}))
    return rows


def same(one: Prediction, two: Prediction) -> bool:
    if one["prediction"] != two["prediction"]:
        return False
    first, second = json.loads(one["probabilities"]), json.loads(two["probabilities"])
    return second == pytest.approx(first, abs=1e-5)


@pytest.mark.parametrize("cached", [True, False], ids=["features", "pixels"])
def test_a_blind_answer_does_not_depend_on_the_image(
    model: Vlm, small: Toy, monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    images = sorted({item.image.key: item.image for item in items_of(small, "test")}.items())
    items = [Item(key, image, "Is the image red?", "Yes", True, ("yes", "no")) for key, image in images]
    sighted = answers(model, small, items, cached)
    assert not all(same(row, sighted[0]) for row in sighted)
    monkeypatch.setattr(model, "blind", True)
    blind = answers(model, small, items, cached)
    assert all(same(row, blind[0]) for row in blind)
    assert [row["cluster"] for row in blind] == [key for key, _ in images]  # the statistics still know the image
    gone = [dataclasses.replace(item, image=FileImage(item.image.key, Path("gone.png"))) for item in items]
    assert answers(model, small, gone, cached) == blind
    monkeypatch.setattr(model, "blind", False)
    assert answers(model, small, items, cached) == sighted  # what is remembered of one is not shown to the other


def test_the_blank_is_one_grey_square(model: Vlm, small: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = model.processor.image_processor
    monkeypatch.setattr(model, "blind", True)
    monkeypatch.setattr(model.processor, "image_processor", cache.inner)
    shown = model.load_image(items_of(small, "test")[0])
    assert (shown.mode, shown.size) == ("RGB", BLANK_SIZE)
    assert shown.getcolors() == [(BLANK_SIZE[0] * BLANK_SIZE[1], (BLANK_GREY,) * 3)]
    sizes = [(56, 56), (900, 30), (64, 56)]
    tokens = len(set(model.image_tokens(sizes)))
    monkeypatch.setattr(model, "blind", False)
    assert tokens == 1 < len(set(model.image_tokens(sizes)))


def test_blind_training_batches_hold_nothing_of_an_image(small: Toy, repainted: Toy, tiny: Path) -> None:
    vlm = loaded(tiny)
    vlm.blind = True
    batches = [Collator(vlm)(examples_of(vlm, toy)) for toy in (small, repainted)]
    assert all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
    assert [e.length for e in examples_of(vlm, small)] == [e.length for e in examples_of(vlm, repainted)]
    vlm.blind = False
    batches = [Collator(vlm)(examples_of(vlm, toy)) for toy in (small, repainted)]
    assert not torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])


@pytest.mark.parametrize("method", ["lora", "spectral_moe"])
def test_blind_training_reads_no_pixel(small: Toy, repainted: Toy, tiny: Path, tmp_path: Path, method: str) -> None:
    folders = [do(toy, tiny, tmp_path / toy.root.parent.name, method, blind="train") for toy in (small, repainted)]
    assert folders[0].name == folders[1].name
    assert weights(folders[0]) == weights(folders[1])
    pd.testing.assert_frame_equal(predictions(folders[0]), predictions(folders[1]))
    records = [read_record(folder) for folder in folders]
    for split in ("toy/train", "toy/test"):  # the images were looked at all the same, and the record knows them
        one, two = (record["data"][split] for record in records)
        assert one["digest"] == two["digest"]
        assert one["images_digest"] != two["images_digest"]
    assert [record["blind"] for record in records] == ["train"] * 2
    sighted = [do(toy, tiny, tmp_path / toy.root.parent.name, method) for toy in (small, repainted)]
    assert len({weights(folder) for folder in (*sighted, folders[0])}) == 3


def test_a_blind_test_answers_with_the_sighted_adapter(
    small: Toy, repainted: Toy, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    fit_stage = medbench.steps._fit_stage
    monkeypatch.setattr(medbench.steps, "_fit_stage", lambda *a: trained.append(1) or fit_stage(*a))
    alone = do(small, tiny, tmp_path / "alone", blind="test")
    sighted = do(small, tiny, tmp_path / "both")
    assert len(trained) == 2
    blind = do(small, tiny, tmp_path / "both", blind="test")
    assert len(trained) == 2  # the sighted twin's adapter was there
    assert alone.name == blind.name
    assert weights(alone) == weights(sighted) == weights(blind)
    assert predictions(alone).equals(predictions(blind))
    assert not predictions(blind).equals(predictions(sighted))
    record, other = read_record(blind), read_record(sighted)
    assert (record["training"]["from_run"], record["seconds"]["fit"]) == (sighted.name, 0)
    assert record["training"]["stages"] == other["training"]["stages"]
    assert "from_run" not in read_record(alone)["training"]
    assert {p.name for p in blind.iterdir()} == {p.name for p in sighted.iterdir()}
    again = do(small, tiny, tmp_path / "other", adapter=str(sighted), budget=None, blind="test")
    assert predictions(again).equals(predictions(blind))


@pytest.mark.parametrize("fault", ["weights changed", "weights gone", "unfinished", "other images"])
def test_only_the_very_same_adapter_is_taken(
    small: Toy, repainted: Toy, tiny: Path, tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sighted = do(small, tiny, tmp_path)
    right = weights(sighted)
    if fault == "weights changed":
        with (sighted / "adapter" / "adapter_model.safetensors").open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
    elif fault == "weights gone":
        shutil.rmtree(sighted / "adapter")
    elif fault == "unfinished":
        (sighted / "record.json").unlink()
    blind = do(repainted if fault == "other images" else small, tiny, tmp_path, blind="test")
    record = read_record(blind)
    assert "from_run" not in record["training"]
    assert record["seconds"]["fit"] > 0
    assert (weights(blind) == right) == (fault != "other images")


def test_a_blind_run_still_needs_its_images(small: Toy, tiny: Path, tmp_path: Path) -> None:
    toy = make_toy(tmp_path, train=8, test=4)
    (toy.folder / "images" / "test1.png").write_bytes(b"no image")
    with pytest.raises(WorkError, match=r"test1\.png"):
        do(toy, tiny, tmp_path, "none", blind="test")


def test_records_say_who_was_blind(small: Toy, tiny: Path, tmp_path: Path) -> None:
    folders = {blind: do(small, tiny, tmp_path / "runs", "none", blind=blind) for blind in (None, "test")}
    frame = load_records(tmp_path / "runs")
    assert set(frame["run"][frame["blind"].isna()]) == {folders[None].name}
    assert set(frame["run"][frame["blind"] == "test"]) == {folders["test"].name}
    record = read_record(folders[None])
    del record["blind"]  # as records were before
    (folders[None] / "record.json").write_text(json.dumps(record))
    assert load_records(tmp_path / "runs").equals(frame)


def test_an_adapter_that_never_saw_says_so(small: Toy, tiny: Path, tmp_path: Path) -> None:
    blind = do(small, tiny, tmp_path, blind="train")
    assert read_record(do(small, tiny, tmp_path, adapter=str(blind), budget=None))["method"] == (
        "adapter:lora trained blind"
    )
    with pytest.raises(RequestError, match="--blind train: --adapter tests an adapter as it is"):
        do(small, tiny, tmp_path, adapter=str(blind), budget=None, blind="train")


@pytest.mark.parametrize("given", ["both", "", "Test"])
def test_an_unknown_kind_is_one_line(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["run", "--tasks", "slake", "--blind", given])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"medbench: --blind {given!r}: ")


def test_a_dry_run_shows_blindness(small: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--tasks", str(small.card), "--data-root", str(small.root), "--method", "none,lora", "--dry-run"]
    for more, blind in (([], [None, None]), (["--blind", "train"], ["test", "train"])):
        for form in (["--json"], []):
            with pytest.raises(SystemExit):
                main([*words, *more, *form])
            out = capsys.readouterr().out
            if form:
                assert [row["blind"] for row in json.loads(out)["plan"]] == blind
            else:
                assert ("blind" in out.splitlines()[0]) == bool(more)
