"""PathVQA, OmniMedVQA, LLaVA's conversations and the changed-priors splits, as they are published and as they break."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import test_family_common as family
from test_data_sources import hub_rows, write_parquet
from test_family_common import CATALOG, card_at, cut_card, write_json

from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import BadItemError
from medbench.data.load import load_items, locate
from medbench.data.verify import verify_task
from medbench.errors import RequestError, WorkError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def omni(tmp_path: Path, count: int = 12) -> Card:
    return card_at(cut_card(tmp_path / "cards", "omnimedvqa", test=count))


def pathvqa(tmp_path: Path) -> Card:
    return card_at(cut_card(tmp_path / "cards", "pathvqa_original", train=3, validation=3, test=3))


def llava(tmp_path: Path) -> Card:
    return card_at(cut_card(tmp_path / "cards", "llava_med_instruct", train=None))


@pytest.mark.parametrize("top", ["", "OmniMedVQA"])
def test_omnimedvqa_as_its_archive_unpacks(root: Path, tmp_path: Path, top: str) -> None:
    folder = family.make_omni(root, top)
    (folder / "._ACRIMA.json").write_bytes(b"\0\5\26\7")  # what macOS leaves beside a file
    items = load_items(omni(tmp_path), "test", root).items
    records = [record for source in ("ACRIMA", "BUSI") for record in family.omni_records(source, 6)]
    assert [item.id for item in items] == [r["question_id"] for r in records]
    assert [item.answer for item in items] == [r["gt_answer"] for r in records]
    assert [len(item.options) for item in items] == [2, 3, 4] * 4
    assert all(item.closed and item.candidates == item.options and item.answer in item.candidates for item in items)
    assert len(check_images("x", items, "fail").sizes) == 12


def test_the_prompt_shows_the_options_and_the_answer_is_ones_text(root: Path, tmp_path: Path) -> None:
    family.make_omni(root)
    card = omni(tmp_path)
    item = load_items(card, "test", root).items[4]
    assert card.render_prompt(item).splitlines()[1:4] == ["A. red", "B. green", "C. blue"]
    assert card.render_target(item) == item.answer == "green"


def test_options_count_in_the_digest_and_repeated_ones_are_one_candidate(root: Path, tmp_path: Path) -> None:
    folder = family.make_omni(root)
    card = omni(tmp_path)
    before = load_items(card, "test", root)
    records = family.omni_records("BUSI", 6)
    records[2] |= {"option_D": "red", "option_C": ""}  # A is "red" too, and there is no C
    records[2]["gt_answer"] = "red"
    write_json(folder / "BUSI.json", records)
    after = load_items(card, "test", root)
    assert after.items[8].options == ("red", "green", "red")
    assert after.items[8].candidates == ("red", "green")
    records[2]["option_B"] = "grey"
    write_json(folder / "BUSI.json", records)
    assert len({before.digest, after.digest, load_items(card, "test", root).digest}) == 3


OMNI: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "answer": (
        lambda r: r.update(gt_answer="purple"),
        r"item BUSI_0001 in .*BUSI\.json: the answer 'purple' is none of the options 'red', 'green', 'blue'",
    ),
    "one option": (
        lambda r: [r.pop(k) for k in ("option_B", "option_C")],
        "2 to 4 different options .* has 1",
    ),
    "same options": (
        lambda r: r.update(dict.fromkeys(("option_A", "option_B", "option_C"), r["gt_answer"])),
        "2 to 4 different options .* has 1",
    ),
    "option": (lambda r: r.update(option_B=["x"]), r"field 'option_B' should be text, is list \['x'\]"),
    "no answer": (lambda r: r.pop("gt_answer"), "field 'gt_answer' should be text, is absent"),
    "no id": (lambda r: r.pop("question_id"), "item row 1 in .*field 'question_id' should be text, is absent"),
    "no image": (lambda r: r.pop("image_path"), "field 'image_path' should be text, is absent"),
    "up": (lambda r: r.update(image_path="../x.png"), "field 'image_path' leaves the data folder"),
    "gone": (lambda r: r.update(image_path="Images/x.png"), r"image .*Images.x\.png: the file is missing"),
    "twice": (lambda r: r.update(question_id="BUSI_0000"), "item BUSI_0000: the id occurs twice"),
}


@pytest.mark.parametrize("kind", OMNI)
def test_a_bad_question_of_omnimedvqa_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    folder = family.make_omni(root)
    damage, message = OMNI[kind]
    records = family.omni_records("BUSI", 6)
    damage(records[1])
    write_json(folder / "BUSI.json", records)
    with pytest.raises(BadItemError, match=f"^task omnimedvqa: .*{message}.*; --on-bad-item skip leaves"):
        load_items(omni(tmp_path), "test", root)
    loaded = load_items(omni(tmp_path), "test", root, "skip")
    assert (len(loaded.items), len(loaded.skipped)) == (11, 1)


def test_pathvqa_as_the_hub_has_it(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, number in (("train", 12), ("validation", 4), ("test", 8)):
        write_parquet(root / "pathvqa", split, hub_rows(number))
    card = card_at(cut_card(tmp_path / "cards", "pathvqa", train=12, validation=4, test=8))
    items = load_items(card, "validation", root).items
    assert [item.id for item in items] == ["0", "1", "2", "3"]
    assert [item.type for item in items] == ["closed", "closed", "open", "open"]
    assert len(check_images("x", load_items(card, "test", root).items, "fail").sizes) == 3


def test_both_publications_of_pathvqa_have_a_card() -> None:
    hub, original = (CATALOG.task(name).metadata for name in ("pathvqa", "pathvqa_original"))
    assert [split.count for split in hub.splits.values()] == [19_654, 6_259, 6_719]
    assert [split.count for split in original.splits.values()] == [19_755, 6_279, 6_761]
    assert hub.dataset == original.dataset


def test_pathvqa_as_its_authors_published_it(root: Path, tmp_path: Path) -> None:
    family.make_pathvqa(root)
    card = pathvqa(tmp_path)
    items = load_items(card, "validation", root).items
    assert [item.id for item in items] == ["val_0000-0", "val_0000-1", "val_0002-0"]
    assert [(item.question, item.answer) for item in items[:2]] == [("What is it?", "a cell"), ("Is it red?", "Yes")]
    assert [item.type for item in items] == ["open", "closed", "closed"]
    assert [item.image.key for item in items] == ["val/val_0000.jpg", "val/val_0000.jpg", "val/val_0002.jpg"]
    assert all(not row["problems"] for row in verify_task(card, root))


def test_questions_can_be_verified_before_the_images_are_there(root: Path, tmp_path: Path) -> None:
    folder = family.make_pathvqa(root)
    card = pathvqa(tmp_path)
    shutil.rmtree(folder / "images" / "test")
    with pytest.raises(BadItemError, match=r"item test_0000-0: image .*test_0000\.jpg: the file is missing"):
        load_items(card, "test", root)
    rows = {row["split"]: row for row in verify_task(card, root)}
    assert rows["train"]["problems"] == rows["validation"]["problems"] == []
    first = folder / "images" / "test" / "test_0000.jpg"
    assert rows["test"]["problems"] == [
        f"the 3 questions match the card, but 2 of 2 images are missing, the first {first}"
    ]
    write_json(folder / "pvqa_test.json", family.lxmert("test", [[("Is it?", "no")]]))
    rows = {row["split"]: row for row in verify_task(card, root)}
    assert rows["test"]["problems"] == [
        "1 items, expected 3",
        f"1 of 1 images are missing, the first {first}",
    ]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"img_id": "t", "sentf": {"pvqa": ["a?"]}, "labelf": {"pvqa": []}}, "item t-0 .*1 questions .* 0 answers"),
        ({"img_id": "t", "sentf": {}, "labelf": {"pvqa": []}}, r"field 'sentf\.pvqa' should be a list, is NoneType"),
        ({"sentf": {"pvqa": []}, "labelf": {"pvqa": []}}, "item row 0-0 .*field 'img_id' should be text, is absent"),
        ({"img_id": "../t", "sentf": {"pvqa": []}, "labelf": {"pvqa": []}}, "'img_id' leaves the data folder"),
        ({"img_id": "t", "sentf": {"pvqa": ["a?"]}, "labelf": {"pvqa": [{}]}}, "item t-0 .*should hold one {answer"),
        ({"img_id": "t", "sentf": {"pvqa": [3.5, None]}, "labelf": {"pvqa": [{"a": 1}] * 2}}, r"should be text, is No"),
    ],
)
def test_a_bad_record_of_pathvqa_is_named(root: Path, tmp_path: Path, record: Any, message: str) -> None:
    folder = family.make_pathvqa(root)
    paint = folder / "images" / "test" / "t.jpg"
    family.paint(paint, 0)
    write_json(folder / "pvqa_test.json", [record])
    with pytest.raises(BadItemError, match=message):
        load_items(pathvqa(tmp_path), "test", root, check=False)


def test_the_questions_of_pathvqa_are_the_cards(shared: Path) -> None:
    card = CATALOG.task("pathvqa_original")
    rows = {row["split"]: row for row in verify_task(card, shared)}
    for split, number, gone in (("train", 19_755, 2_599), ("validation", 6_279, 832), ("test", 6_761, 858)):
        assert rows[split]["digest"] == card.metadata.splits[split].digest  # type: ignore[index]
        (problem,) = rows[split]["problems"]
        assert problem.startswith(f"the {number:,} questions and their digest match the card, but {gone:,} of {gone:,}")
    with pytest.raises(BadItemError, match=r"images.test.test_0001\.jpg: the file is missing"):
        load_items(card, "test", shared)


def test_each_pair_of_turns_is_an_item(root: Path, tmp_path: Path) -> None:
    family.make_llava(root)
    card = llava(tmp_path)
    items = load_items(card, "train", root).items
    assert [item.id for item in items] == [f"{n}-{k}" for n in range(6) for k in range(1 + n % 3)]
    first, second, third = items[3:6]
    assert (first.question, first.answer) == ("Question 0 of 2?", "answer 0 blue")
    assert second.question == "Q: Question 0 of 2?\nA: answer 0 blue\nQ: Question 1 of 2?"
    assert third.question == f"{second.question}\nA: answer 1 blue\nQ: Question 2 of 2?"
    assert third.answer == card.render_target(third) == "answer 2 blue"
    assert {item.image.key for item in (first, second, third)} == {"PMC2.png"}
    assert not any("<image>" in item.question or item.closed or item.candidates for item in items)
    assert card.render_prompt(first) == first.question


def test_a_spelling_of_llava_med_is_read_too(root: Path, tmp_path: Path) -> None:
    path = family.make_llava(root)
    before = load_items(llava(tmp_path), "train", root).digest
    path.write_text(path.read_text().replace("conversations", "conversatons"))
    assert load_items(llava(tmp_path), "train", root).digest == before


TURNS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "text only": (lambda r: r.pop("image"), "conversation PMC4 has no 'image'; only conversations about an image"),
    "gone": (lambda r: r.update(image="x.png"), r": image .*images.x\.png: the file is missing"),
    "up": (lambda r: r.update(image="../x.png"), "field 'image' leaves the data folder"),
    "list": (lambda r: r.update(image=["a.png"]), "field 'image' should be text, is list"),
    "none": (lambda r: r.pop("conversations"), "should have pairs of turns in 'conversations', found NoneType"),
    "odd": (lambda r: r["conversations"].pop(), "should have pairs of turns in 'conversations', found 3"),
    "order": (lambda r: r["conversations"].reverse(), "turn 1 should be from 'human', is from 'gpt'"),
    "value": (lambda r: r["conversations"][1].update(value=None), "turn 2: field 'value' should be text"),
    "empty": (lambda r: r["conversations"][0].update(value="<image>\n"), "turn 1 has no text"),
    "no turn": (lambda r: r["conversations"].__setitem__(2, "hi"), "turn 3 should be from 'human', is from 'hi'"),
}


@pytest.mark.parametrize("kind", TURNS)
def test_a_bad_conversation_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    path = family.make_llava(root)
    damage, message = TURNS[kind]
    records = json.loads(path.read_text())
    damage(records[4])
    write_json(path, records)
    with pytest.raises(BadItemError, match=f"^task llava_med_instruct: item 4-0.*{message}"):
        load_items(llava(tmp_path), "train", root)
    loaded = load_items(llava(tmp_path), "train", root, "skip")
    assert {item.id.split("-")[0] for item in loaded.items} == {"0", "1", "2", "3", "5"}
    assert len(loaded.skipped) == (2 if kind == "gone" else 1)


def test_changed_priors_lie_over_another_sets_images(root: Path, tmp_path: Path) -> None:
    family.make_cp(root)
    card = card_at(cut_card(tmp_path / "cards", "vqa_rad_cp", train=3, test=3))
    items = load_items(card, "test", root).items
    assert [(item.id, item.answer, item.type) for item in items] == [
        *(("10", "1", "open"), ("11", "Yes", "closed"), ("12", "no", "closed")),
    ]
    assert check_images("x", items, "fail").skipped == ()
    shutil.rmtree(root / "vqa_rad")
    with pytest.raises(RequestError, match=r"vqa_rad.images is missing\); get VQA-RAD"):
        locate(card, root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-20], r"test\.json\.gz: not readable as gzip"),
        (lambda data: b"[]", r"test\.json\.gz: not readable as gzip"),
        (lambda data: data[:30] + b"\xff" * 9 + data[39:], r"test\.json\.gz: not readable as gzip"),
        (lambda data: family.gzip.compress(b"<html>"), r"test\.json\.gz: not readable as JSON"),
        (lambda data: family.gzip.compress(b"[" * 100_000), r"test\.json\.gz: not readable as JSON"),
        (lambda data: family.gzip.compress(b'{"a": 1}'), r"test\.json\.gz: expected a list of objects"),
    ],
)
def test_a_damaged_compressed_file_is_named(
    root: Path, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = family.make_cp(root) / "vqa-rad-cp_test.json.gz"
    path.write_bytes(damage(path.read_bytes()))
    card = card_at(cut_card(tmp_path / "cards", "vqa_rad_cp", train=3, test=3))
    with pytest.raises(WorkError, match=message):
        load_items(card, "test", root)


@pytest.mark.parametrize(
    ("name", "sizes", "closed", "own"),
    [
        ("vqa_rad_cp", {"train": 2_330, "test": 1_185}, {"train": 1_136, "test": 959}, "vqa_rad"),
        (
            *("slake_cp", {"train": 3_843, "validation": 1_053, "test": 2_137}),
            *({"train": 1_222, "validation": 422, "test": 1_137}, "slake"),
        ),
    ],
)
def test_the_changed_priors_are_the_cards(
    shared: Path, name: str, sizes: dict[str, int], closed: dict[str, int], own: str
) -> None:
    card = CATALOG.task(name)
    for split, number in sizes.items():
        items = load_items(card, split, shared).items
        assert (len(items), Counter(item.type for item in items)["closed"]) == (number, closed[split])
    if name == "slake_cp":  # its validation split is SLAKE's own
        assert card.metadata.splits["validation"] == CATALOG.task(own).metadata.splits["validation"]
    # One data set: whoever trained on one of the two may not call the other zero-shot.
    assert card.metadata.dataset == CATALOG.task(own).metadata.dataset
