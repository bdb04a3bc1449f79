"""`data leaks`, what a run's record says of leaks, and the real figures of VQA-RAD and SLAKE."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import SHARED, Cli, Toy
from PIL import Image
from test_leaks import picture
from test_run_common import do

from medbench.catalog import Catalog, Settings
from medbench.data.check import check_images
from medbench.data.leaks import find_leaks, overlap
from medbench.data.load import load_items
from medbench.results.record import read_record

CATALOG = Catalog(Settings())
ROOT = Path(__file__).parent.parent


def textured(toy: Toy) -> Toy:
    """The toy set with a picture of its own in every file."""
    for number, path in enumerate(sorted((toy.folder / "images").iterdir())):
        picture(number, 56).save(path)
    return toy


def test_the_command_finds_what_was_planted(toy: Toy, cli: Cli) -> None:
    images = textured(toy).folder / "images"
    shutil.copy(images / "train3.png", images / "test2.png")
    Image.open(images / "train5.png").resize((112, 112)).save(images / "test7.png")
    shutil.copy(images / "train0.png", images / "train1.png")
    done = cli("data", "leaks", toy.card, "--data-root", toy.root, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert {"task", "hashes", "overlaps", "repeats"} == set(found)
    (row,) = found["overlaps"]  # a validation split that is cut from the training images is none of the published
    assert (row["tested"], row["other"]) == ("toy/test", "toy/train")
    assert row["images"] == {"total": 12, "exact": 1, "near": 1}
    assert row["questions"]["image"] == {"exact": 2, "near": 2}
    assert row["questions"]["text"] == {"exact": 24, "normalised": 0}
    assert [pair[:2] for pair in row["nearest"]] == [["test7.png", "train5.png"]]
    assert [(r["split"], r["images"]["exact"]) for r in found["repeats"]] == [("toy/train", 2), ("toy/test", 0)]
    text = cli("data", "leaks", toy.card, "--data-root", toy.root)
    assert text.stdout.splitlines()[2].split()[:8] == ["toy/test", "toy/train", "12", "1", "1", "24", "2", "2"]


def test_against_another_task_its_splits_are_compared_with_the_test(toy: Toy, cli: Cli) -> None:
    content = textured(toy).card_content()
    content["task"] = "twin"
    twin = Toy(toy.root, toy.card.with_name("twin.yaml"))
    twin.write_card(content)
    words = ("data", "leaks", toy.card, "--against", f"{twin.card},{toy.card}", "--data-root", toy.root, "--json")
    rows = {(row["tested"], row["other"]): row for row in json.loads(cli(*words).stdout)["overlaps"]}
    assert [other for _, other in rows] == ["toy/train", "twin/train", "twin/test"]
    assert rows["toy/test", "twin/test"]["images"] == {"total": 12, "exact": 12, "near": 0}
    assert rows["toy/test", "twin/test"]["questions"]["image_text_and_answer"] == {"exact": 24, "near": 0}
    assert rows["toy/test", "twin/train"]["images"] == rows["toy/test", "toy/train"]["images"]


def test_a_wrong_request_and_a_bad_image_are_one_line(toy: Toy, cli: Cli, tmp_path: Path) -> None:
    root = ("--data-root", toy.root)
    wrong = [
        ("slak", root, 2, "unknown task 'slak'; did you mean"),
        (toy.card, (*root, "--against", "slak"), 2, "unknown task 'slak'; did you mean"),
        (toy.card, (*root, "--on-bad-item", "no"), 2, "--on-bad-item 'no'"),
        (toy.card, (*root, "--against", "slake"), 2, "task slake: no data in"),
        (toy.card, (), 2, "task toy needs data: pass --data-root"),
    ]
    image = toy.folder / "images" / "test3.png"
    for task, words, code, message in wrong:
        done = cli("data", "leaks", task, *words, "--json")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
        assert message in done.stderr
    image.write_bytes(image.read_bytes()[:-30])
    done = cli("data", "leaks", toy.card, *root, "--json")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert f"image {image}: " in done.stderr
    done = cli("data", "leaks", toy.card, *root, "--on-bad-item", "skip", "--json")
    found = json.loads(done.stdout)
    assert {row["split"]: row["skipped"] for row in found["repeats"]} == {"toy/train": 0, "toy/test": 2}
    assert found["overlaps"][0]["questions"]["total"] == 22


# ---- the record


def test_a_record_says_what_of_the_test_was_trained_on(toy: Toy, tiny: Path, tmp_path: Path) -> None:
    images = textured(toy).folder / "images"
    shutil.copy(images / "train3.png", images / "test2.png")
    picture(999, 56).save(images / "test5.png")
    Image.open(images / "train5.png").convert("RGB").resize((112, 112)).save(images / "test7.png")
    folder = do(toy, tiny, tmp_path / "out")
    leaks = read_record(folder)["leaks"]
    assert set(leaks) == {"hashes", "overlaps"}
    (row,) = leaks["overlaps"]
    assert (row["tested"], row["trained"]) == ("toy/test", "toy/train")
    assert row["images"] == {"total": 12, "exact": 1, "near": 1}
    assert row["questions"]["image"] == {"exact": 2, "near": 2}
    card = CATALOG.task(str(toy.card))
    same = find_leaks(card, [], toy.root)["overlaps"][0]
    assert row["questions"] == same["questions"]
    assert "png" not in json.dumps(leaks)


def test_only_what_is_trained_on_and_tested_counts(toy: Toy, tiny: Path, tmp_path: Path) -> None:
    """The limits of the run hold; without training there is nothing to leak from, and no fingerprint is taken."""
    images = textured(toy).folder / "images"
    shutil.copy(images / "train3.png", images / "test11.png")
    (row,) = read_record(do(toy, tiny, tmp_path / "out", limit=4))["leaks"]["overlaps"]
    assert row["images"] == {"total": 2, "exact": 0, "near": 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medbench.data.check.fingerprint", lambda image: pytest.fail("a fingerprint was taken"))
        assert read_record(do(toy, tiny, tmp_path / "none", "none"))["leaks"] is None


# ---- real data


def test_a_generated_set_can_be_looked_at() -> None:
    name = next(name for name in sorted(CATALOG.paths("tasks")) if CATALOG.task(name).metadata.access == "generated")
    items = load_items(CATALOG.task(name), "test", None).items[:40]
    split = check_images(name, items, "fail", fingerprints=True)
    found = overlap(split, split)
    assert found.images == {"total": len(split.sizes), "exact": len(split.sizes), "near": 0}


def test_all_test_images_of_vqa_rad_occur_in_training(shared: Path) -> None:
    (row,) = find_leaks(CATALOG.task("vqa_rad"), [], shared)["overlaps"]
    assert row["images"] == {"total": 203, "exact": 203, "near": 0}
    assert row["questions"]["image"] == {"exact": 451, "near": 0}
    assert (row["exact_pairs"], row["near_pairs"]) == (203, 0)

    def asked(split: str) -> set[tuple[str, str]]:
        return {(r["image_name"], " ".join(str(r["question"]).lower().split())) for r in read(split)}

    def read(split: str) -> list[dict[str, Any]]:
        return json.loads((SHARED / "vqa_rad" / f"{split}set.json").read_text())

    assert row["questions"]["image_and_text"]["exact"] >= len(asked("test") & asked("train")) > 0


def test_slake_shares_no_image_between_its_english_splits_but_with_the_chinese_ones(shared: Path) -> None:
    found = find_leaks(CATALOG.task("slake"), [CATALOG.task("slake_zh")], shared)
    rows = {(row["tested"], row["other"]): row for row in found["overlaps"]}
    assert rows["slake/test", "slake/train"]["images"] == {"total": 96, "exact": 0, "near": 9}
    assert rows["slake/validation", "slake/train"]["images"] == {"total": 96, "exact": 0, "near": 16}
    assert rows["slake/test", "slake_zh/train"]["images"]["exact"] == 72
    assert [rows["slake/test", f"slake_zh/{s}"]["images"]["exact"] for s in ("validation", "test")] == [12, 12]
    assert rows["slake/test", "slake_zh/train"]["questions"]["text"] == {"exact": 0, "normalised": 0}
    assert CATALOG.task("slake").metadata.dataset == CATALOG.task("slake_zh").metadata.dataset
