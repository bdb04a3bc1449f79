"""MedHEval, Med-HallMark and CARES: choices beside yes and no, questions taken out of prompts, and what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_family_common import paint, write_json
from test_hallucination_common import card_from, make_medheval, medheval_records, read_card

from medbench.data.item import BadItemError, load_image
from medbench.data.load import load_items
from medbench.data.readers.choices import gold_option, split_options


def vishal_card(tmp_path: Path, count: int = 5) -> Path:
    return card_from(tmp_path / "cards", "mm_vishal", "toy_vishal", splits={"test": {"count": count}})


def test_medheval_mixes_yes_no_with_choices(tmp_path: Path) -> None:
    make_medheval(tmp_path)
    card = read_card(vishal_card(tmp_path))
    items = load_items(card, "test", tmp_path).items
    assert [(item.id, item.answer, item.question_type) for item in items] == [
        ("0", "yes", "type_1"),
        ("1", "no", "type_3"),
        ("2", "CT scan", "type_4"),
        ("3", "Both left, and right", "type_2"),
        ("4", "Abnormal", "type_3"),
    ]
    assert items[2].candidates == items[2].options == ("MRI", "CT scan", "X-ray")
    assert items[0].candidates == ("yes", "no")
    assert card.render_prompt(items[0]) == "Q 0?\nAnswer yes or no."
    assert card.render_prompt(items[2]) == (
        "Q 2?\nA. MRI\nB. CT scan\nC. X-ray\nAnswer with the text of the right option."
    )
    assert [card.render_target(item) for item in items[:3]] == ["yes", "no", "CT scan"]
    places = {item.image.place.removeprefix(f"{tmp_path}/") for item in items}
    assert places == {"slake/imgs/xmlab1/source.jpg", "vqa_rad/images/synpic2.jpg"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"choices": "MRI or CT"}, "should have at least two options like 'A: lung, B: liver', found 'MRI or CT'"),
        ({"answer": "D"}, "the answer 'D' is none of the options 'MRI', 'CT scan', 'X-ray'"),
        ({"question_type": "open"}, "field 'question_type' should be binary or multi-choice, is 'open'"),
        ({"hallucination_type": None}, r"field 'hallucination_type' is absent \(the card's types need it\)"),
        ({"img_name": "CXR1/0.png"}, "field 'img_name' begins with none of synpic, xmlab: 'CXR1/0.png'"),
        ({"img_name": "synpic/../x"}, "field 'img_name' leaves the data folder"),
        ({"qid": None}, "field 'qid' should be text, is absent"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_medheval_record_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    records = medheval_records()
    records[2] |= change
    make_medheval(tmp_path, records)
    card = read_card(vishal_card(tmp_path))
    with pytest.raises(BadItemError, match=f"item .*: {message}"):
        load_items(card, "test", tmp_path)
    assert len(load_items(card, "test", tmp_path, "skip").skipped) == 1


@pytest.mark.parametrize("line", ["", "A: lung", "A: lung, B: lung", "A: , B: lung", "lung, A: liver, B: spleen"])
def test_what_is_no_list_of_options(line: str) -> None:
    with pytest.raises(KeyError, match="should have at least two options"):
        split_options(line)
    with pytest.raises(KeyError, match="is none of the options"):
        gold_option("C: lung", ("lung", "liver"))


def judged(number: int, gold: str | None) -> dict[str, Any]:
    told = f"\nquestion: Is {number} seen?\nMed-VLM answer: Yes, it is\n"
    told += f"ground-truth: {gold}\n" if gold is not None else ""
    turns = [{"from": "human", "value": f"Judge this.{told}\nPlease judge, no more."}, {"from": "gpt", "value": "Bad"}]
    return {"id": number, "image": f"rad/synpic{number}.jpg", "conversations": turns}


def test_med_hallmark_gives_question_and_truth_not_the_judged_answer(tmp_path: Path) -> None:
    records = [judged(1, "No"), judged(2, None), judged(3, "the liver"), judged(4, "yes ")]
    write_json(tmp_path / "med_hallmark" / "Conventional.json.gz", records)
    for number in range(1, 5):
        paint(tmp_path / "vqa_rad" / "images" / f"synpic{number}.jpg", number)
    card = read_card(card_from(tmp_path / "cards", "med_hallmark", "toy_hallmark", splits={"test": {"count": 4}}))
    loaded = load_items(card, "test", tmp_path)
    assert [(i.id, i.question, i.answer) for i in loaded.items] == [
        ("1", "Is 1 seen?", "no"),
        ("4", "Is 4 seen?", "yes"),
    ]
    assert loaded.left_out == 2
    write_json(
        tmp_path / "med_hallmark" / "Conventional.json.gz", [*records[:3], judged(4, "yes") | {"conversations": []}]
    )
    with pytest.raises(BadItemError, match=r"item 4 in .*: field 'conversations' should be a list of turns"):
        load_items(card, "test", tmp_path)


def test_cares_has_two_questions_an_image(tmp_path: Path) -> None:
    asked = "Select. The Question is:{}The candidate Options are:[A:ear, B:back, C:face]\n"
    line = {
        "question_id": "ISIC_1",
        "options": "A:ear, B:back, C:face",
        "fig_caption": "B:back",
        "image": "t/ISIC_1.jpg",
    }
    lines = [line | {"text": asked.format(q)} for q in ("Where?", "On what?")]
    path = tmp_path / "cares" / "HAM10000_factuality.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, lines)))
    paint(tmp_path / "ham10000" / "t" / "ISIC_1.jpg", 1)
    card = read_card(card_from(tmp_path / "cards", "cares_ham10000", "toy_cares", splits={"test": {"count": 2}}))
    items = load_items(card, "test", tmp_path).items
    assert [(i.id, i.question, i.answer) for i in items] == [
        ("ISIC_1-0", "Where?", "back"),
        ("ISIC_1-1", "On what?", "back"),
    ]
    assert items[0].options == ("ear", "back", "face")


def test_fairvlmed_questions_are_about_the_images_in_its_files(tmp_path: Path) -> None:
    asked = [{"question_id": n, "question": "Glaucoma?\n<image>", "answer": "Yes."} for n in (1, 2)]
    names = ["slo_fundus_08003.jpg", "slo_fundus_08009.jpg"]
    path = tmp_path / "fairvlmed_qa" / "harvard_test.jsonl"
    path.parent.mkdir()
    path.write_text("\n".join(json.dumps(r | {"image": n}) for r, n in zip(asked, names, strict=True)))
    (tmp_path / "fairvlmed" / "Testing").mkdir(parents=True)
    for number, grey in ((8003, 30), (8009, 200)):
        np.savez(tmp_path / "fairvlmed" / "Testing" / f"data_{number:05}.npz", slo_fundus=np.full((9, 12), grey))
    card = read_card(card_from(tmp_path / "cards", "fairvlmed_vqa", "toy_fundus", splits={"test": {"count": 2}}))
    first, second = load_items(card, "test", tmp_path).items
    assert (first.image.key, second.image.key) == ("data_08003", "data_08009")
    assert load_image(second).getpixel((0, 0)) == (200, 200, 200)
    path.write_text(path.read_text().replace("slo_fundus_08009", "fundus"))
    with pytest.raises(BadItemError, match=r"item 2 in .*: field 'image' should be slo_fundus_<number>\.jpg"):
        load_items(card, "test", tmp_path)
