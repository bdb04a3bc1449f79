"""Whole runs of classification: learned, stored, resumed, blind; protocols and what they refuse."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from test_clip_common import build
from test_run_common import jobs_of
from test_zero_shot_common import asked, card_at, do, draw_set, items_of

from medbench.catalog import Catalog
from medbench.data.sampling import shots
from medbench.errors import RequestError
from medbench.files import read_json, read_parquet
from medbench.plan import resolve
from medbench.results.rows import read_groups
from medbench.run import check_adapter, run_all


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for seed, name in enumerate(("shades", "tints", "tones")):
        draw_set(root, name, seed)
    return root


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbones") / "small"
    build("native", folder)
    return folder


def card(data: Path, name: str = "shades") -> Path:
    return data / "cards" / f"{name}.yaml"


def accuracy(folder: Path, task: str = "shades") -> float:
    return read_json(folder / "record.json")["tasks"][task]["metrics"]["accuracy"]["value"]


@pytest.mark.parametrize("method", ["lora", "spectral_moe", "full_ft"])
def test_a_run_learns_is_stored_and_found_again(method: str, data: Path, small: Path, tmp_path: Path) -> None:
    plain = do(card(data), small, tmp_path, "none")
    settings = {"training.epochs": 8} | ({"training.lr": 0.002} if method == "full_ft" else {})
    folder = do(card(data), small, tmp_path, method, settings=settings)
    record = read_json(folder / "record.json")
    assert accuracy(folder) > max(accuracy(plain), 0.6)
    assert (record["protocol"], record["tasks"]["shades"]["protocol"]) == ("in_domain", "in_domain")
    assert read_json(plain / "record.json")["protocol"] == "zero_shot"
    rows = read_parquet(folder / "predictions.parquet")
    assert rows["id"].tolist() == [item.id for item in items_of(card(data))]
    assert all(set(json.loads(said)) == {"benign", "malignant", "normal"} for said in rows["probabilities"])
    assert (folder / "routes.json").exists() == (method == "spectral_moe")
    before = (folder / "record.json").read_bytes()
    assert do(card(data), small, tmp_path, method, settings=settings) == folder
    assert (folder / "record.json").read_bytes() == before


def test_predictions_need_nothing_but_the_stored_weights(data: Path, small: Path, tmp_path: Path) -> None:
    folder = do(card(data), small, tmp_path, "spectral_moe")
    before = (folder / "predictions.parquet").read_bytes()
    for name in ("predictions.parquet", "record.json", "scores.parquet"):
        (folder / name).unlink()
    # What a killed run leaves: the adapter and the mark of the fit.
    again = tmp_path / "again"
    first = do(card(data), small, again, "spectral_moe")
    assert (first / "predictions.parquet").read_bytes() == before


def test_shots_are_drawn_by_the_seed(data: Path, small: Path, tmp_path: Path) -> None:
    folders = [do(card(data), small, tmp_path, shots=2, seeds=(seed,)) for seed in (0, 1)]
    (group,), _ = read_groups(folders)  # other images by design: one row of two seeds
    assert list(group) == [0, 1]
    for seed, folder in enumerate(folders):
        about = read_json(folder / "record.json")
        assert about["data"]["shades/train"]["items"] == 6
        assert about["spec"]["stages"][0]["mixture"][0]["data"]["shots"] == 2
        assert len(shots(items_of(card(data), "train"), 2, seed)) == 6
    assert folders[0] != folders[1]


def test_a_limited_test_holds_every_class(data: Path, small: Path, tmp_path: Path) -> None:
    folder = do(card(data), small, tmp_path, "none", limit=8)
    ids = set(read_parquet(folder / "predictions.parquet")["id"])
    assert {item.answer for item in items_of(card(data)) if item.id in ids} == {"benign", "malignant", "normal"}


def test_transfer_leaves_each_task_out_in_turn(data: Path, small: Path) -> None:
    names = [str(card(data, name)) for name in ("shades", "tints", "tones")]
    plan = resolve(asked(card(data), small, "lora", tasks=names, protocol="transfer"), Catalog())
    found = {tuple(spec.tasks): (spec.trained_tasks, spec.protocol) for spec in plan.specs}
    assert found == {
        ("shades",): (["tints", "tones"], "zero_shot"),
        ("tints",): (["shades", "tones"], "zero_shot"),
        ("tones",): (["shades", "tints"], "zero_shot"),
    }
    same = asked(card(data), small, "lora", train_tasks=[names[1:]])
    assert resolve(same, Catalog()).specs[0].identity == plan.specs[0].identity


def test_transfer_never_trains_on_another_publication_of_the_set(data: Path, small: Path) -> None:
    content = yaml.safe_load(card(data, "tints").read_text())
    other = data / "cards" / "tints_again.yaml"
    other.write_text(yaml.safe_dump(content | {"name": "tints_again"}))
    names = [str(card(data, "shades")), str(card(data, "tints")), str(other)]
    plan = resolve(asked(card(data), small, "lora", tasks=names, protocol="transfer"), Catalog())
    found = {spec.tasks[0]: spec.trained_tasks for spec in plan.specs}
    assert found == {"shades": ["tints", "tints_again"], "tints": ["shades"], "tints_again": ["shades"]}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocol": "zero_shot"}, "protocol zero_shot: the data set of shades would be trained on"),
        ({"protocol": "transfer"}, "nothing is left to train on when shades is left out"),
        ({"protocol": "transfer", "train_tasks": [["phantom_report"]]}, "leave --train-tasks out"),
        ({"shots": 2, "train_limit": 3}, "--shots and --train-limit both say"),
        ({"tasks": ["phantom_vqa"]}, "phantom_vqa is of kind vqa.*--backbone nano-vl"),
        ({"backbone": "nano-vl"}, "shades is of kind classification.*--backbone nano-clip"),
        ({"settings": {"processor.max_pixels": 2000}}, "not a setting.*"),
        ({"settings": {"prompts": "many"}}, "should be single or ensemble"),
    ],
)
def test_what_cannot_be_is_refused(more: dict, message: str, data: Path, small: Path) -> None:
    with pytest.raises(RequestError, match=message):
        resolve(asked(card(data), more.pop("backbone", small), "lora", **more), Catalog())


def test_zero_shot_is_refused_when_a_tested_image_is_trained_on(small: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("one", "other")):
        draw_set(tmp_path / "data", name, seed)
    images = tmp_path / "data"
    (images / "other" / "images" / "train-3.png").write_bytes((images / "one" / "images" / "test-4.png").read_bytes())
    (job,) = jobs_of(asked(card(images, "one"), small, "lora", train_tasks=[[str(card(images, "other"))]]), tmp_path)
    strict = dataclasses.replace(job, protocol="zero_shot")
    refused = r"protocol zero_shot: 1 of the 15 images of one/test are in other/train"
    with pytest.raises(RequestError, match=refused):
        run_all([strict], lambda text: None)
    assert not (job.folder / "adapter").exists()
    # Without the word it is done, and not called zero-shot; then the word is refused of what is there.
    run_all([job], lambda text: None)
    record = read_json(job.folder / "record.json")
    assert (record["protocol"], record["tasks"]["one"]["protocol"]) == ("in_domain", "in_domain")
    with pytest.raises(RequestError, match=refused):
        run_all([strict], lambda text: None)


def test_shots_need_classes_and_items_enough(data: Path, small: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"phantom_report .*has no classes"):
        resolve(asked(card(data), small, "lora", shots=1, train_tasks=[["phantom_report"]]), Catalog())
    with pytest.raises(Exception, match="class 'benign' has 8"):
        do(card(data), small, tmp_path, shots=9)


def test_images_with_texts_can_be_trained_on(data: Path, small: Path, tmp_path: Path) -> None:
    folder = do(card(data), small, tmp_path, train_tasks=[["phantom_report"]], train_limit=8)
    record = read_json(folder / "record.json")
    assert (record["protocol"], record["trained_on"]) == ("zero_shot", ["phantom_report"])
    assert all(entry["loss"] > 0 for stage in record["training"]["stages"] for entry in stage["losses"])


def test_prompts_are_part_of_what_a_run_is(data: Path, small: Path, tmp_path: Path) -> None:
    one, several = (
        do(card(data), small, tmp_path, "none", settings={"prompts": prompts}) for prompts in ("single", "ensemble")
    )
    assert one != several
    assert "prompts" not in read_json(several / "spec.json")
    assert read_json(one / "spec.json")["prompts"] == "single"


def test_a_blind_run_says_one_thing(data: Path, small: Path, tmp_path: Path) -> None:
    folder = do(card(data), small, tmp_path, blind="test")
    assert len(set(read_parquet(folder / "predictions.parquet")["prediction"])) == 1


def test_a_card_of_another_set_is_not_in_domain(data: Path) -> None:
    assert card_at(card(data)).metadata.datasets.isdisjoint(card_at(card(data, "tints")).metadata.datasets)


def test_targets_are_looked_up_as_the_backbone_names_them(data: Path, small: Path) -> None:
    for targets in ("text", "vision+text"):
        plan = resolve(asked(card(data), small, "lora", settings={"adapter.targets": targets}), Catalog())
        check_adapter(plan.specs[0], plan.backbone)
    with pytest.raises(RequestError, match=r"unknown target group 'vision\+text'"):
        check_adapter(plan.specs[0], dataclasses.replace(plan.backbone, architecture="llama"))
