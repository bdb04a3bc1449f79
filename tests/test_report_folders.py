"""MIMIC-CXR-JPG's folders, R2Gen's annotation of MIMIC-CXR, and Harvard-FairVLMed's files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_family_common import card_at, cut_card, paint, write_json

from medbench.catalog import Catalog, Settings, read_yaml
from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import BadItemError, load_image
from medbench.data.load import load_items
from medbench.data.readers.studies import sections_of, view_rank
from medbench.errors import WorkError

CATALOG = Catalog(Settings())


def make_mimic(root: Path) -> Path:
    """MIMIC-CXR-JPG with four test studies: two views, one view, no findings, no report."""
    folder = root / "mimic_cxr_jpg"
    splits, views = [("dicom_id", "study_id", "subject_id", "split")], [("dicom_id", "ViewPosition")]
    seen = {"50000001": ("LATERAL", "AP"), "50000002": ("PA",), "50000003": ("PA",), "50000004": ("",)}
    for study, positions in seen.items():
        place = Path("p10") / "p10000032" / f"s{study}"
        for number, position in enumerate(positions):
            paint(folder / "files" / place / f"{study}-{number}.jpg", number)
            splits.append((f"{study}-{number}", study, "10000032", "test"))
            views.append((f"{study}-{number}", position))
        heading = "FINDINGS" if study != "50000003" else "COMPARISON"
        text = (
            f"    FINAL REPORT\n EXAMINATION: CHEST\n\n {heading}:\n  Lungs\n are clear.\n\n IMPRESSION: No\n disease."
        )
        if study != "50000004":
            report = folder / "mimic-cxr-reports" / "files" / place.with_suffix(".txt")
            report.parent.mkdir(parents=True, exist_ok=True)
            report.write_text(text)
    for name, rows in (("split", splits), ("metadata", views)):
        path = folder / f"mimic-cxr-2.0.0-{name}.csv{'.gz' if name == 'split' else ''}"
        content = "".join(",".join(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return folder


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("mimic_cxr_report", "Lungs are clear."),
        ("mimic_cxr_report_impression", "Findings: Lungs are clear. Impression: No disease."),
    ],
)
def test_mimic_cxr_jpg(tmp_path: Path, name: str, answer: str) -> None:
    folder = make_mimic(tmp_path)
    card = CATALOG.task(name)
    with pytest.raises(BadItemError, match=r"item s50000004: report .*s50000004\.txt: the file is missing"):
        load_items(card, "test", tmp_path)
    loaded = load_items(card, "test", tmp_path, on_bad_item="skip")
    assert [item.id for item in loaded.items] == ["s50000001", "s50000002"]
    assert {item.answer for item in loaded.items} == {answer}
    assert (loaded.left_out, len(loaded.skipped)) == (1, 1)
    # The frontal image comes first, wherever it stands in the file.
    assert loaded.items[0].image.place.endswith("50000001-1.jpg")
    assert load_image(loaded.items[0]).size == (56, 60)
    with pytest.raises(WorkError, match="has no usable item"):
        load_items(card, "validation", tmp_path)
    (folder / "mimic-cxr-2.0.0-metadata.csv").write_text("dicom_id,View\n")
    with pytest.raises(WorkError, match=r"metadata\.csv: lacks the column 'ViewPosition'"):
        load_items(card, "test", tmp_path)


@pytest.mark.parametrize("bad", ["../../x,50000001,10000032,test", "d,5/0,10000032,test", "d,50000001,..,test"])
def test_ids_that_are_no_ids_are_refused(tmp_path: Path, bad: str) -> None:
    folder = make_mimic(tmp_path)
    (folder / "mimic-cxr-2.0.0-split.csv").write_text(f"dicom_id,study_id,subject_id,split\n{bad}\n")
    with pytest.raises(WorkError, match=r"split\.csv: .*should be"):
        load_items(CATALOG.task("mimic_cxr_report"), "test", tmp_path)


def test_r2gens_mimic_entries_are_joined_to_studies(tmp_path: Path) -> None:
    entries = [
        {"id": f"d{n}", "study_id": 50 + n // 2, "subject_id": 1, "report": f"Report {n // 2}.", "split": "test"}
        | {"image_path": [f"p10/d{n}.jpg"]}
        for n in range(4)
    ]
    write_json(tmp_path / "mimic_cxr_jpg" / "annotation.json", {"train": entries, "val": entries, "test": entries})
    items = load_items(CATALOG.task("mimic_cxr_report"), "test", tmp_path).items
    assert [(item.id, item.answer) for item in items] == [("50", "Report 0."), ("51", "Report 1.")]
    assert [item.image.place for item in items] == [
        str(tmp_path / "mimic_cxr_jpg" / "files" / "p10" / f"d{n}.jpg") for n in (0, 2)
    ]
    entries[1]["report"] = "Another."
    write_json(tmp_path / "mimic_cxr_jpg" / "annotation.json", {"test": entries})
    with pytest.raises(BadItemError, match="item 50: two entries of this study have different reports"):
        load_items(CATALOG.task("mimic_cxr_report"), "test", tmp_path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FINDINGS: Clear. \n IMPRESSION: Normal.", {"findings": "Clear.", "impression": "Normal."}),
        ("no heading at all: none", {}),
        (" FINDINGS:\n A.\n FINDINGS:\n B.", {"findings": "A. B."}),
        ("FINDINGS: Note: PA view.\n TECHNIQUE: x", {"findings": "Note: PA view.", "technique": "x"}),
        ("", {}),
    ],
)
def test_sections(text: str, found: dict[str, str]) -> None:
    assert sections_of(text) == found


def test_frontal_views_come_first() -> None:
    assert sorted(["LL", "", "AP", "pa ", "LATERAL", "SWIMMERS"], key=view_rank)[:2] == ["pa ", "AP"]


def make_fairvlmed(root: Path, with_note: bool = True, **arrays: Any) -> Path:
    """Two subjects a split, one in colour; the notes in the files, or in the CSV alone."""
    folder = root / "fairvlmed"
    for split in ("Training", "Validation", "Test"):
        (folder / split).mkdir(parents=True)
        for n in range(2):
            image = np.full((12, 16, 3)[: 2 + n], 40 * n, dtype=np.uint8)
            content = {"slo_fundus": image, "glaucoma": np.array(n)} | arrays
            content |= {"note": np.array(f"Note {n}\n of {split}.")} if with_note else {}
            np.savez(folder / split / f"data_{n:05}.npz", **content)
    lines = [f'data_{n:05}.npz,"Note {n}, listed",Summary {n},test' for n in range(2)]
    (folder / "data_summary.csv").write_text("\n".join(["filename,note,gpt4_summary,use", *lines]))
    return folder


def fair_card(tmp_path: Path, text: str = "note") -> Card:
    path = cut_card(tmp_path / "cards", "fairvlmed_report", train=2, validation=2, test=2)
    content = read_yaml(path)
    content["metadata"]["layouts"]["fairvlmed_npz"]["text"] = text
    path.write_text(json.dumps(content))
    return card_at(path)


@pytest.mark.parametrize(
    ("with_note", "text", "answer"),
    [(True, "note", "Note 1 of Test."), (False, "note", "Note 1, listed"), (True, "gpt4_summary", "Summary 1")],
)
def test_fairvlmed(tmp_path: Path, with_note: bool, text: str, answer: str) -> None:
    make_fairvlmed(tmp_path, with_note)
    items = load_items(fair_card(tmp_path, text), "test", tmp_path).items
    assert [item.id for item in items] == ["data_00000", "data_00001"]
    assert items[1].answer == answer
    grey, colour = (load_image(item) for item in items)
    assert grey.size == colour.size == (16, 12)
    assert (grey.getpixel((0, 0)), colour.getpixel((0, 0))) == ((0, 0, 0), (40, 40, 40))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 2, 4)), "should be h x w or h x w x 3 numbers, is 2 x 2 x 4 of float64"),
        (np.zeros((0, 0)), "should be"),
        (np.full((2, 2), 300.0), "should hold 0 to 255"),
        (np.full((2, 2), np.nan), "should hold 0 to 255"),
        (np.array("text"), "should be"),
        (np.array([{}], dtype=object), "allow_pickle=False"),
    ],
)
def test_a_broken_fundus_is_named(tmp_path: Path, array: Any, message: str) -> None:
    make_fairvlmed(tmp_path, slo_fundus=array)
    items = load_items(fair_card(tmp_path), "test", tmp_path).items
    with pytest.raises(BadItemError, match=r"item data_00000: image .*data_00000\.npz") as caught:
        check_images("t", items, "fail")
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"\x93NUMPY", b"text"])
def test_a_broken_npz_is_named(tmp_path: Path, content: bytes) -> None:
    folder = make_fairvlmed(tmp_path)
    (folder / "Test" / "data_00000.npz").write_bytes(content)
    with pytest.raises(BadItemError, match=r"item data_00000: .*data_00000\.npz: "):
        load_items(fair_card(tmp_path), "test", tmp_path)
    assert len(load_items(fair_card(tmp_path), "test", tmp_path, "skip").items) == 1


def test_pickled_notes_are_not_executed(tmp_path: Path) -> None:
    folder = make_fairvlmed(tmp_path)
    np.savez(folder / "Test" / "data_00000.npz", note=np.array([{"a": 1}], dtype=object), slo_fundus=np.zeros((2, 2)))
    with pytest.raises(BadItemError, match=r"item data_00000: .*allow_pickle=False"):
        load_items(fair_card(tmp_path), "test", tmp_path)
