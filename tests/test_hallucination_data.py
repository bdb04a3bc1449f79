"""Yes/no questions as published: which have a label, which options they offer, what is wrong with a line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from test_hallucination_common import (
    CATALOG,
    make_rag,
    rag_card,
    rag_records,
    read_card,
)

from medbench.data.item import BadItemError
from medbench.data.load import load_items
from medbench.data.verify import verify_task
from medbench.errors import RequestError, WorkError


def test_questions_are_read_as_they_are_but_for_the_placeholder(tmp_path: Path) -> None:
    make_rag(tmp_path)
    loaded = load_items(read_card(rag_card(tmp_path / "cards")), "test", tmp_path)
    assert [item.id for item in loaded.items] == ["1", "2", "5", "6", "7", "10"]
    assert [item.answer for item in loaded.items] == ["yes", "no", "no"] * 2
    assert loaded.items[0].question == "Is there a 0?"
    assert loaded.items[0].image.key == "CXR0/0.png"
    assert {item.candidates for item in loaded.items} == {("yes", "no")}
    assert (loaded.left_out, loaded.skipped) == (4, ())


def test_the_digest_is_over_the_answers_as_published(tmp_path: Path) -> None:
    make_rag(tmp_path)
    card = read_card(rag_card(tmp_path / "cards"))
    before = load_items(card, "test", tmp_path).digest
    records = rag_records()
    records[3]["answer"] += " Ask again."  # of an item that is left out
    make_rag(tmp_path, records)
    assert load_items(card, "test", tmp_path).digest != before


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Yes", "yes"),
        ("NO.", "no"),
        ("No, (not seen)", "no"),
        ('"Yes," it says', "yes"),
        ("  yes\n", "yes"),
        ("- No", None),
        ("Nothing", None),
        ("Not seen", None),
        ("The answer is no", None),
        ("1. Yes", None),
        ("", None),
        ("...", None),
    ],
)
def test_the_label_is_the_first_word(tmp_path: Path, answer: str, label: str | None) -> None:
    records = [rag_records()[0], rag_records()[0] | {"question_id": 2, "answer": answer}]
    make_rag(tmp_path, records)
    loaded = load_items(read_card(rag_card(tmp_path / "cards", 2)), "test", tmp_path)
    assert [item.answer for item in loaded.items[1:]] == ([] if label is None else [label])
    assert loaded.left_out == (label is None)


def test_without_a_rule_another_answer_is_wrong(tmp_path: Path) -> None:
    make_rag(tmp_path)
    card = read_card(rag_card(tmp_path / "cards", label="answer"))
    with pytest.raises(
        BadItemError, match=r"task rag: item 1: the answer 'Yes\.' should be yes or no \(in .*\); --on-bad"
    ):
        load_items(card, "test", tmp_path)
    loaded = load_items(card, "test", tmp_path, "skip")
    assert ([item.id for item in loaded.items], loaded.left_out, len(loaded.skipped)) == (["5", "10"], 0, 8)


LINES: dict[str, tuple[Any, str]] = {
    "cut": ('{"question_id": 11, "question": "Is', r"line 11 in .*rag\.jsonl: not JSON \("),
    "list": ("[1, 2]", "line 11 in .*: expected an object, found list"),
    "no-id": ({"question": "a?", "answer": "no", "image": "CXR0/0.png"}, "field 'question_id' should be text"),
    "twice": (rag_records()[0], "item 1: the id occurs twice"),
    "no-image": (rag_records()[0] | {"question_id": 11, "image": "gone.png"}, r"gone\.png: the file is missing"),
    "outside": (rag_records()[0] | {"question_id": 11, "image": "../a.png"}, "field 'image' leaves the data folder"),
    "no-question": (rag_records()[0] | {"question_id": 11, "question": "\n<image>"}, "item 11: the question is empty"),
    "null": (rag_records()[0] | {"question_id": 11, "answer": None}, "field 'answer' should be text, is NoneType"),
    "surrogate": ('{"question_id": 11, "question": "\\ud800", "answer": "no", "image": "a"}', "is not valid text"),
}


@pytest.mark.parametrize("name", LINES)
def test_a_wrong_line_is_named_or_left_out_and_counted(tmp_path: Path, name: str) -> None:
    line, message = LINES[name]
    make_rag(tmp_path, [*rag_records(), line])
    card = read_card(rag_card(tmp_path / "cards", 11))
    with pytest.raises(BadItemError, match=f"^task rag: .*{message}.*; --on-bad-item skip leaves such items out$"):
        load_items(card, "test", tmp_path)
    loaded = load_items(card, "test", tmp_path, "skip")
    assert (len(loaded.items), loaded.left_out) == (6, 4)
    assert len(loaded.skipped) == 1 and re.search(message, loaded.skipped[0])


def test_a_line_without_question_and_label_is_left_out(tmp_path: Path) -> None:
    """Two of IU-Xray's lines are such."""
    make_rag(tmp_path, [*rag_records(), rag_records()[0] | {"question_id": 11, "question": "\n<image>", "answer": "?"}])
    assert load_items(read_card(rag_card(tmp_path / "cards", 11)), "test", tmp_path).left_out == 5


@pytest.mark.parametrize("form", ["gz", "bom", "blank lines", "windows"])
def test_other_ways_to_write_the_same_file(tmp_path: Path, form: str) -> None:
    path = make_rag(tmp_path)
    card = read_card(rag_card(tmp_path / "cards"))
    before, data = load_items(card, "test", tmp_path), path.read_bytes()
    if form == "gz":
        path.unlink()
        path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(data))
    else:
        changed = {"bom": b"\xef\xbb\xbf" + data, "blank lines": data.replace(b"\n", b"\n\n  \n")}
        path.write_bytes({**changed, "windows": data.replace(b"\n", b"\r\n")}[form])
    assert load_items(card, "test", tmp_path) == before


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = make_rag(tmp_path)
    card = read_card(rag_card(tmp_path / "cards"))
    packed = path.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(path.read_bytes())[:-20])
    path.unlink()
    with pytest.raises(WorkError, match=f"^{re.escape(str(packed))}: not readable as gzip"):
        load_items(card, "test", tmp_path)
    packed.unlink()
    with pytest.raises(RequestError, match=r"no data in .*rag\.jsonl is missing\); get rag \(open"):
        load_items(card, "test", tmp_path)


def test_without_its_images_a_set_is_not_run(tmp_path: Path) -> None:
    make_rag(tmp_path)
    for image in (tmp_path / "rag" / "images").rglob("*.png"):
        image.unlink()
    card = read_card(rag_card(tmp_path / "cards"))
    with pytest.raises(BadItemError, match=r"item 1: image .*0\.png: the file is missing"):
        load_items(card, "test", tmp_path)
    with pytest.raises(WorkError, match=r"split test in .* has no usable item; the first: item 1: image"):
        load_items(card, "test", tmp_path, "skip")
    (row,) = verify_task(card, tmp_path)
    assert (row["left_out"], row["items"]) == (4, 0)
    assert row["problems"][0].startswith("the 10 questions match the card, but 5 of 5 images are missing")


def test_verify_checks_what_always_saying_yes_gets(tmp_path: Path) -> None:
    make_rag(tmp_path)
    right = {"accuracy": 0.3333, "balanced_accuracy": 0.5, "f1": 0.5}
    (row,) = verify_task(read_card(rag_card(tmp_path / "a", always_yes=right)), tmp_path)
    assert (row["always_yes"], row["problems"]) == (right, [])
    (row,) = verify_task(read_card(rag_card(tmp_path / "b", always_yes=right | {"f1": 0.6})), tmp_path)
    assert len(row["problems"]) == 1 and row["problems"][0].startswith("always_yes: the card says")


@pytest.mark.parametrize(
    ("name", "rows", "items", "images", "yes"),
    [("iu_xray_vqa", 2573, 2448, 571, 639), ("pmc_oa_vqa", 1994, 1994, 530, 1130)],
)
def test_the_real_questions(
    shared: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: int, items: int, images: int, yes: int
) -> None:
    """Their images are not here: `data verify` says that the questions match, and nothing else is wrong."""
    card = CATALOG.task(name)
    (row,) = verify_task(card, shared)
    assert card.metadata.always_yes is not None
    assert row["always_yes"] == card.metadata.always_yes.model_dump()
    assert (row["expected"], row["left_out"]) == (rows, rows - items)
    (problem,) = row["problems"]
    assert problem.startswith(f"the {rows:,} questions and their digest match the card, but ")
    monkeypatch.setattr("medbench.data.load.is_there", lambda path: True)
    loaded = load_items(card, "test", shared)
    assert (len(loaded.items), len({item.image.key for item in loaded.items})) == (items, images)
    assert [item.answer for item in loaded.items].count("yes") == yes
    assert len({item.id for item in loaded.items}) == items


def test_the_real_extras(shared: Path) -> None:
    (row,) = verify_task(CATALOG.task("med_hallmark"), shared)
    assert (row["items"], row["images"], row["left_out"], row["problems"]) == (160, 53, 339, [])
    (row,) = verify_task(CATALOG.task("cares_ham10000"), shared)
    assert row["problems"][0].startswith("the 2,000 questions and their digest match the card")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"closed": {"rule": "yes_no"}}, "closed.rule: should be 'all' where kind is hallucination, is 'yes_no'"),
        ({"kind": "vqa"}, "label: only for kind hallucination, not for vqa"),
        ({"kind": "vqa", "label": "answer", "types": "kind"}, "types: only for kind hallucination"),
        ({"always_yes": {"accuracy": 2, "balanced_accuracy": 0.5, "f1": 0.5}}, "always_yes.accuracy: Input should be"),
        ({"label": "last_word"}, "metadata.label: Input should be 'answer' or 'first_word'"),
        ({"folder": "a/b"}, "mmed_rag.images: is relative to the data root, so 'a/b' must lie right in it"),
        ({"layouts": {"mmed_rag": {"files": {}, "images": "x"}}}, "mmed_rag.files: no file for split 'test'"),
        ({"layouts": {"medheval": {"files": {"test": "x"}, "images": {}}}}, "medheval.images: Dictionary should have"),
    ],
    ids=str,
)
def test_a_wrong_card_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = rag_card(tmp_path, **change)
    with pytest.raises(RequestError, match=f"^{re.escape(str(path))}: .*{re.escape(message)}"):
        read_card(path)


def test_the_seven_are_a_group_and_among_the_23() -> None:
    names = CATALOG.task_names("hallucination")
    assert len(names) == 7
    assert set(names) < set(CATALOG.group("all23").task)
    assert {CATALOG.task(name).metadata.kind for name in names} == {"hallucination"}
