"""R2Gen's annotation of IU-Xray: counts, ids, one or both images, sections, and what is broken in it."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import COLOURS, Toy
from PIL import Image
from test_family_common import card_at, cut_card, write_json
from test_report_common import GOLD
from test_run_common import do

from medbench.catalog import Catalog, Settings, read_yaml
from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import BadItemError, load_image
from medbench.data.load import load_items
from medbench.errors import WorkError
from medbench.results.record import read_record, read_scores

CATALOG = Catalog(Settings())
SPLITS = {"train": "train", "validation": "val", "test": "test"}


def annotation(number: int = 3) -> dict[str, list[dict[str, Any]]]:
    """R2Gen's file for IU-Xray: two images a study, one of the last."""
    content: dict[str, list[dict[str, Any]]] = {}
    for part in SPLITS.values():
        content[part] = []
        for n in range(number):
            study = f"CXR{n}_IM-{part}"
            images = [f"{study}/{k}.png" for k in range(2 if n < number - 1 else 1)]
            entry = {"id": study, "report": f" Heart {n}.\n {GOLD} ", "image_path": images, "split": part}
            content[part].append(entry)
    return content


def make_iu(root: Path, number: int = 3) -> Path:
    """The annotation and its images below a data root; returns the annotation."""
    content = annotation(number)
    for entry in (e for entries in content.values() for e in entries):
        for k, name in enumerate(entry["image_path"]):
            path = root / "iu_xray" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (56 + 8 * k, 56 + 28 * k), list(COLOURS.values())[k]).save(path)
    return write_json(root / "iu_xray_reports" / "annotation.json", content)


def write_texts(root: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    path = root / "iu_xray_reports" / "indiana_reports.csv.gz"
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "Problems", "findings", "impression"])
        writer.writerows([(uid, "", findings, impression) for uid, findings, impression in rows])


def iu_card(tmp_path: Path, name: str = "iu_xray_report", number: int = 3) -> Card:
    return card_at(cut_card(tmp_path / "cards", name, train=number, validation=number, test=number))


@pytest.mark.parametrize("name", ["iu_xray_report", "iu_xray_report_both", "iu_xray_report_impression"])
def test_the_real_reports_are_those_of_the_card(shared: Path, name: str) -> None:
    counts = {"train": 2069, "validation": 296, "test": 590}
    for split, count in counts.items():
        loaded = load_items(CATALOG.task(name), split, shared)
        assert len(loaded.items) + loaded.left_out == count
        assert loaded.left_out == (6 if (name, split) == ("iu_xray_report_impression", "train") else 0)
        assert len({item.image.key for item in loaded.items}) == len(loaded.items)
        both = all(item.answer.startswith("Findings: ") and " Impression: " in item.answer for item in loaded.items)
        assert both == name.endswith("impression")


@pytest.mark.parametrize("name", ["iu_xray_report", "iu_xray_report_both"])
def test_one_or_both_images_of_a_study(tmp_path: Path, name: str) -> None:
    make_iu(tmp_path)
    items = load_items(iu_card(tmp_path, name), "test", tmp_path).items
    assert [item.id for item in items] == [f"CXR{n}_IM-test" for n in range(3)]
    assert [item.image.key for item in items] == [item.id for item in items]
    assert items[0].answer == f"Heart 0. {GOLD}"
    assert not items[0].closed and not items[0].candidates
    first, _, single = (load_image(item) for item in items)
    assert single.size == (56, 56)
    if name == "iu_xray_report":
        assert first.size == (56, 56)
        return
    # The second, 64 x 84, is scaled to the height of the first and stands at its right.
    assert first.size == (56 + round(64 * 56 / 84), 56)
    red, green = COLOURS["red"], COLOURS["green"]
    assert [first.getpixel(place) for place in ((0, 0), (55, 55), (57, 0), (98, 55))] == [red, red, green, green]


def test_other_sections_come_from_the_csv_and_lacking_ones_are_left_out(tmp_path: Path) -> None:
    make_iu(tmp_path)
    write_texts(tmp_path, [("0", "Clear.", "Normal."), ("1", "Opacity.", ""), ("2", "", "No disease.")])
    loaded = load_items(iu_card(tmp_path, "iu_xray_report_impression"), "test", tmp_path)
    assert [item.answer for item in loaded.items] == ["Findings: Clear. Impression: Normal."]
    assert loaded.left_out == 2
    write_texts(tmp_path, [("0", "Clear.", "Normal.")])
    with pytest.raises(BadItemError, match=r"item CXR1_IM-test in .*the CSV of the texts has no uid '1'"):
        load_items(iu_card(tmp_path, "iu_xray_report_impression"), "test", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.update(image_path=[]), "item CXR1_IM-test .*'image_path' should be a list of files"),
        (lambda e: e.update(image_path=["../x.png"]), "item CXR1_IM-test .*leaves the data folder"),
        (lambda e: e.update(image_path=["/etc/passwd"]), "item CXR1_IM-test .*leaves the data folder"),
        (lambda e: e.update(image_path=[7]), "item CXR1_IM-test .*should name files"),
        (lambda e: e.update(report=None), "item CXR1_IM-test .*field 'report' should be text"),
        (lambda e: e.pop("id"), "item row 1 .*field 'id' should be text, is absent"),
        (lambda e: e.update(id="CXR0_IM-test"), "item CXR0_IM-test: the id occurs twice"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = make_iu(tmp_path)
    content = annotation()
    change(content["test"][1])
    write_json(path, content)
    with pytest.raises(BadItemError, match=f"^task iu_xray_report: {message}"):
        load_items(iu_card(tmp_path), "test", tmp_path)
    loaded = load_items(iu_card(tmp_path), "test", tmp_path, on_bad_item="skip", check=False)
    assert len(loaded.skipped) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2", "not readable as JSON"),
        (b"[1]", "expected a list under 'test'; there is nothing"),
        (b'{"train": [], "    ": []}', "expected a list under 'test'; there is 'train', '    '"),
        (b'{"test": 3}', "expected a list under 'test'"),
        (b"\xff\xfe", "not readable as JSON"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = make_iu(tmp_path)
    path.write_bytes(content)
    with pytest.raises(WorkError, match=f"^{re.escape(str(path))}: {message}"):
        load_items(iu_card(tmp_path), "test", tmp_path)


def test_a_missing_view_is_named(tmp_path: Path) -> None:
    make_iu(tmp_path)
    (tmp_path / "iu_xray" / "images" / "CXR0_IM-test" / "1.png").unlink()
    items = load_items(iu_card(tmp_path, "iu_xray_report_both"), "test", tmp_path).items
    with pytest.raises(BadItemError, match=r"item CXR0_IM-test: .*0\.png \+ .*1\.png: the file is missing"):
        check_images("t", items, "fail")
    assert [item.id for item in check_images("t", items, "skip").items] == ["CXR1_IM-test", "CXR2_IM-test"]


def test_reports_are_trained_on_answered_and_scored(tmp_path: Path, tiny: Path) -> None:
    make_iu(tmp_path / "data", number=4)
    path = cut_card(tmp_path / "cards", "iu_xray_report", train=4, validation=4, test=4)
    folder = do(Toy(tmp_path / "data", path), tiny, tmp_path / "out")
    record = read_record(folder)["tasks"]["iu_xray_report"]
    assert record["metrics"]["bleu_4"]["n"] == record["metrics"]["rouge_l"]["clusters"] == 4
    assert "rouge-score" in record["implementations"]["rouge_l"]
    assert len(read_scores(folder, "iu_xray_report")) == 4


@pytest.mark.parametrize(
    ("card", "change", "message"),
    [
        ("iu_xray_report", {"sections": ["findings", "impression"]}, "sections other than findings need 'texts'"),
        ("iu_xray_report", {"views": "three"}, r"r2gen_annotation\.views: Input should be 'first' or 'both'"),
        ("iu_xray_report", {"images": "../x"}, r"r2gen_annotation\.images: should be a path below"),
        ("iu_xray_report", {"question": " "}, r"r2gen_annotation\.question: String should match"),
        ("mimic_cxr_report", {"sections": []}, r"mimic_cxr_jpg\.sections: List should have at least 1 item"),
        ("fairvlmed_report", {"text": "age"}, r"fairvlmed_npz\.text: Input should be 'note' or 'gpt4_summary'"),
    ],
)
def test_a_wrong_option_of_a_card_is_named(tmp_path: Path, card: str, change: dict[str, Any], message: str) -> None:
    path = cut_card(tmp_path / "cards", card, test=1)
    content = read_yaml(path)
    layouts = content["metadata"]["layouts"]
    layouts[next(iter(layouts))] |= change
    path.write_text(json.dumps(content))
    with pytest.raises(Exception, match=message):
        card_at(path)
