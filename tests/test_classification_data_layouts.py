"""The layouts of classification, each read from an artefact in its very format, and as it breaks."""

from __future__ import annotations

import io
import shutil
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_classification_data_common as made
from conftest import COLOURS
from PIL import Image
from test_classification_data_common import CLASSES, TWO, card_of, write_csv

from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import BadItemError, Item, load_image
from medbench.data.load import load_items, locate
from medbench.data.readers.csv_rows import drawn_split
from medbench.data.readers.mrnet import slices
from medbench.data.readers.npz_arrays import open_array
from medbench.errors import RequestError, WorkError

Bad = dict[str, tuple[Callable[[Path], object], str]]
SAME = {name: name for name in CLASSES}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


def of(card: Card, split: str, root: Path) -> list[Item]:
    """The items of a split, whose images all decode."""
    items = list(load_items(card, split, root).items)
    assert check_images("x", items, "fail").skipped == ()
    return items


def shown(item: Item) -> str:
    """The class that an image's colour says, whatever its label."""
    pixel = load_image(item).getpixel((5, 5))
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], pixel, strict=True)))


# labels.csv


def test_rows_are_chosen_by_value_and_by_agreement(root: Path, tmp_path: Path) -> None:
    rows = [
        {**row, "second": row["label"] if n % 4 else "grey", "site": "ab"[n % 2]}
        for n, row in enumerate(made.labelled("train", 12))
    ]
    made.make_labels(root, rows)
    options = {"file": "labels.csv", "agree": ["label", "second"], "only": {"site": ["b"]}}
    items = of(card_of(tmp_path, "labels_csv", options, train=6), "train", root)
    assert [item.id for item in items] == [r["file"] for n, r in enumerate(rows) if n % 4 and n % 2]


def test_labels_are_mapped_and_a_csv_a_split_needs_no_split_column(root: Path, tmp_path: Path) -> None:
    made.make_labels(root)
    for split in ("train", "test"):
        rows = [{"image": row["file"][4:], "y": str("rgb".index(row["label"][0]))} for row in made.labelled(split, 6)]
        write_csv(root / "set" / f"{split}.csv", rows)
    options = {
        **{"files": {"train": "train.csv", "test": "test.csv"}, "images": "img"},
        **{"columns": {"file": "image", "label": "y"}, "labels": {"0": "red", "1": "green", "2": "blue"}},
    }
    items = of(card_of(tmp_path, "labels_csv", options, train=6, test=6), "test", root)
    assert [item.answer for item in items] == [shown(item) for item in items] == [*COLOURS, *COLOURS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"label": "class"}}, r"labels\.csv: lacks the column 'class'"),
        ({"columns": {"group": "case"}}, r"labels\.csv: lacks the column 'case'"),
        ({"only": {"site": ["b"]}}, r"labels\.csv: lacks the column 'site'"),
        ({"splits": {"validation": "dev"}}, r"row 7: column 'split' holds 'val', expected one of train, dev, test"),
    ],
)
def test_a_column_that_is_not_there_is_named(root: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    made.make_labels(root)
    with pytest.raises(WorkError, match=message):
        load_items(card_of(tmp_path, "labels_csv", {"file": "labels.csv"} | options, test=6), "test", root)


# class folders


FOLDERS = {"labels": SAME, "splits": {"train": "train", "test": "test"}}


def test_files_of_one_name_are_several_items(root: Path, tmp_path: Path) -> None:
    folder = made.make_folders(root)
    (folder / "test" / "red" / "notes.txt").write_text("no image")
    (folder / "test" / "red" / "._0.png").write_bytes(b"\0\5\26\7")  # what macOS leaves beside a file
    card = card_of(tmp_path, "class_folders", FOLDERS, train=6, test=6)
    items = of(card, "test", root)
    assert [item.id for item in items] == [f"test/{colour}/{n}.png" for colour in COLOURS for n in (0, 1)]
    assert [item.answer for item in items] == [shown(item) for item in items]
    assert len({item.image.key for item in items + of(card, "train", root)}) == 12


def test_only_named_folders_and_wanted_files_are_read(root: Path, tmp_path: Path) -> None:
    folder = made.make_folders(root, ["all"])
    made.paint(folder / "all" / "red" / "0_mask.png", 1)
    options = {"root": "all", "labels": {"red": "yes", "blue": "no"}, "ignore": ["*_mask*"]}
    items = of(card_of(tmp_path, "class_folders", options, TWO, test=4), "test", root)
    assert [(item.id, item.answer) for item in items] == [
        *(("red/0.png", "yes"), ("red/1.png", "yes"), ("blue/0.png", "no"), ("blue/1.png", "no")),
    ]


@pytest.mark.parametrize("form", ["csv", "json"])
def test_a_split_may_be_a_file(root: Path, tmp_path: Path, form: str) -> None:
    folder = made.make_folders(root, ["all"], each=4)
    names = {"train": [0, 3], "val": [1], "test": [2]}
    listed = {part: [f"{c}/{n}.png" for c in COLOURS for n in numbers] for part, numbers in names.items()}
    if form == "csv":
        write_csv(folder / "split.csv", [{"file": f, "split": part} for part, files in listed.items() for f in files])
    else:
        made.dump(folder / "split.json", {part: [[f, 0, "x"] for f in files] for part, files in listed.items()})
    options = {"root": "all", "labels": SAME, "split_file": f"split.{form}"}
    card = card_of(tmp_path, "class_folders", options, train=6, validation=3, test=3)
    for split, part in (("train", "train"), ("validation", "val"), ("test", "test")):
        items = of(card, split, root)
        assert [item.id for item in items] == listed[part]
        assert [item.answer for item in items] == [shown(item) for item in items]


BAD_FOLDERS: Bad = {
    "empty": (
        lambda f: [p.unlink() for p in (f / "test" / "green").iterdir()],
        r"set/test/green: the folder of class 'green' holds no image \(\.png, ",
    ),
    "masks": (lambda f: [p.rename(f"{p}.txt") for p in (f / "test" / "blue").iterdir()], "class 'blue' holds no image"),
    "gone": (lambda f: shutil.rmtree(f / "train" / "red"), r"no data in .*set/train/red is missing\); get mine"),
}


@pytest.mark.parametrize("kind", BAD_FOLDERS)
def test_a_class_folder_without_images_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    damage, message = BAD_FOLDERS[kind]
    damage(made.make_folders(root))
    with pytest.raises((WorkError, RequestError), match=message) as caught:
        load_items(card_of(tmp_path, "class_folders", FOLDERS, train=6, test=6), "test", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"train": []}', "there is no list 'test'"),
        ('{"test": [3]}', "not readable as a CSV or as a JSON of CoOp's splits"),
        ('{"test": [["black/0.png", 0, "x"]]}', "item 'black/0.png' in .*: lies in none of the class folders red, "),
        ('{"test": [["../0.png", 0, "x"]]}', "field 'file' leaves the data folder"),
        ('{"test": [["red/9.png", 0, "x"]]}', r"item red/9\.png: image .*all/red/9\.png: the file is missing"),
        ('{"test": [["red/0.png", 0], ["red/0.png", 0]]}', r"item red/0\.png: the id occurs twice"),
    ],
)
def test_a_bad_split_file_is_named(root: Path, tmp_path: Path, text: str, message: str) -> None:
    (made.make_folders(root, ["all"]) / "split.json").write_text(text)
    options = {"root": "all", "labels": SAME, "split_file": "split.json"}
    with pytest.raises(WorkError, match=message):
        load_items(card_of(tmp_path, "class_folders", options, test=None), "test", root)


# MedMNIST


MNIST = {"file": "some.npz", "labels": list(CLASSES)}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_medmnist_is_read_picture_by_picture(root: Path, tmp_path: Path, channels: int, packed: bool) -> None:
    path = made.make_medmnist(root, channels, packed)
    card = card_of(tmp_path, "medmnist_npz", MNIST, train=6, validation=3, test=6)
    items = of(card, "test", root)
    assert [(item.id, item.answer) for item in items] == [(f"test-{n}", [*CLASSES][n % 3]) for n in range(6)]
    content = np.load(path)["test_images"]
    for n, item in enumerate(items):
        pixels = np.asarray(Image.open(io.BytesIO(item.image.read())))
        assert np.array_equal(pixels, content[n])
        assert load_image(item).getpixel((1, 1)) == ((0, 0, 0) if channels == 1 else (0, 100, 200))


@pytest.mark.parametrize("packed", [True, False])
def test_an_array_is_mapped_not_read(tmp_path: Path, packed: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), dtype=np.uint8)
    path = tmp_path / "big.npz"
    (np.savez_compressed if packed else np.savez)(path, other=np.arange(9), images=images)
    array = open_array(path, "images")
    assert isinstance(array, np.memmap) and not array.flags.writeable
    assert np.array_equal(array[123], images[123]) and array.shape == images.shape
    assert open_array(path, "images") is array  # opened once
    assert open_array(path, "other").tolist() == list(range(9))
    np.savez(path, images=images[::-1])
    assert np.array_equal(open_array(path, "images")[0], images[-1])  # another file of that name is another array


def test_references_hold_no_pixels(root: Path, tmp_path: Path) -> None:
    many = np.zeros((300, 224, 224, 3), dtype=np.uint8)  # 45 MB
    labels = (np.arange(300) % 3)[:, None]
    made.make_medmnist(root, packed=False, test_images=many, test_labels=labels)
    card = card_of(tmp_path, "medmnist_npz", MNIST, test=300)
    tracemalloc.start()  # numpy reports what it allocates; what is mapped is not allocated
    try:
        assert len(load_items(card, "test", root).items) == 300
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def several(n: int) -> dict[str, Any]:
    return {"test_labels": np.zeros((6, n), dtype=np.uint8)}


BAD_NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "absent": ({"test_images": None}, "there is no array 'test_images' in it; there are train_images, train_labels"),
    "volumes": ({"test_images": np.zeros((6, 28, 28, 28), np.uint8)}, "images should be uint8, .* 6 x 28 x 28 x 28"),
    "floats": ({"test_images": np.zeros((6, 28, 28))}, "images should be uint8, .* are float64"),
    "several": (several(14), "14 labels an image; one is expected"),
    "few": ({"test_labels": np.zeros((5, 1), np.uint8)}, "5 labels of uint8 for 6 images"),
    "texts": ({"test_labels": np.array([["a"]] * 6)}, "6 labels of <U1 for 6 images"),
    "objects": ({"test_labels": np.array([[None]] * 6, dtype=object)}, "an array of Python objects"),
    "label": ({"test_labels": np.full((6, 1), 7)}, "item test-0: the label '7' is none of the classes red, green, blu"),
    "negative": ({"test_labels": np.full((6, 1), -1)}, "item test-0: the label '-1' is none of the classes"),
}


@pytest.mark.parametrize("kind", BAD_NPZ)
def test_a_bad_npz_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    changed, message = BAD_NPZ[kind]
    made.make_medmnist(root, **changed)
    with pytest.raises(WorkError, match=message) as caught:
        load_items(card_of(tmp_path, "medmnist_npz", MNIST, test=None), "test", root)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "packed"),
    [(lambda d: b"<html>", True), (lambda d: d[:-200], True), (lambda d: b"", True), (lambda d: d[:400], False)],
)
def test_a_damaged_npz_is_named(root: Path, tmp_path: Path, damage: Callable[[bytes], bytes], packed: bool) -> None:
    path = made.make_medmnist(root, packed=packed)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(WorkError, match=r"some\.npz: not readable as npz"):
        load_items(card_of(tmp_path, "medmnist_npz", MNIST, test=None), "test", root)


# CheXpert


FINDINGS = {"files": {"test": "five.csv"}, "labels": {"Atelectasis": "red", "Cardiomegaly": "green", "Edema": "blue"}}


def test_chexpert_names_patients(root: Path, tmp_path: Path) -> None:
    made.make_chexpert(root)
    items = of(card_of(tmp_path, "chexpert_csv", FINDINGS, test=6), "test", root)
    assert [item.answer for item in items] == ["red", "green", "blue"] * 2
    assert [item.cluster for item in items] == [f"patient{n // 2:05}" for n in range(6)]
    assert items[1].id == "CheXpert-v1.0/train/patient00000/study1/view2_frontal.jpg"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"Edema": "1.0"}, "exactly one of Atelectasis, Cardiomegaly, Edema should be 1; found Cardiomegaly, Edema"),
        ({"Cardiomegaly": "-1.0"}, "should be 1; found none"),
        ({"Path": "train/p1/view.jpg"}, r"item train/p1/view\.jpg in .*: field 'Path' names no patient"),
        ({"Path": "/patient1/view.jpg"}, "field 'Path' leaves the data folder"),
    ],
)
def test_a_bad_row_of_chexpert_is_named(root: Path, tmp_path: Path, changed: dict[str, str], message: str) -> None:
    path = made.make_chexpert(root)
    rows = list(made.csv.DictReader(path.open()))
    rows[1] |= changed
    write_csv(path, rows)
    with pytest.raises(BadItemError, match=message):
        load_items(card_of(tmp_path, "chexpert_csv", FINDINGS, test=6), "test", root)


# RSNA and the splits we draw


RSNA = {"labels": ["no", "yes"], "shares": {"train": 0.5, "validation": 0.2, "test": 0.3}, "seed": 1}


def test_rsna_is_a_dicom_a_patient(root: Path, tmp_path: Path) -> None:
    made.make_rsna(root, 60)
    card = card_of(tmp_path, "rsna_dicom", RSNA, TWO, train=None, validation=None, test=None)
    splits = {split: of(card, split, root) for split in ("train", "validation", "test")}
    items = {item.id: item for found in splits.values() for item in found}
    assert len(items) == sum(map(len, splits.values())) == 60  # each patient once, boxes or not
    assert all(item.answer == TWO_BY[int(item.id[2:]) % 3 == 0] for item in items.values())
    assert all(item.cluster == item.id for item in items.values())
    values = np.asarray(load_image(items["id007"]))
    assert values.max() == 255 and values[5, 5].tolist() == [0, 0, 0]  # 7..255, scaled


TWO_BY = {False: "no", True: "yes"}


def test_the_share_of_a_patient_does_not_depend_on_the_others() -> None:
    options = {"shares": {"train": 0.7, "validation": 0.1, "test": 0.2}, "seed": 0}
    found = Counter(drawn_split(f"p{n}", options) for n in range(20_000))
    for split, share in options["shares"].items():  # within four standard deviations
        assert abs(found[split] / 20_000 - share) < 4 * (share * (1 - share) / 20_000) ** 0.5
    other = options | {"seed": 1}
    assert any(drawn_split(f"p{n}", options) != drawn_split(f"p{n}", other) for n in range(20))
    assert drawn_split("p1", {"shares": {"test": 1.0}}) == "test"


BAD_RSNA: Bad = {
    "two targets": (
        lambda f: (f / "stage_2_train_labels.csv").open("a").write("id001,,,,,1\n"),
        "item id001 in .*column 'Target' should be 0 or 1 in all rows of a patient, is 0, 1",
    ),
    "target": (
        lambda f: (f / "stage_2_train_labels.csv").open("a").write("id099,,,,,2\n"),
        "item id099 in .*should be 0 or 1 .*, is 2",
    ),
    "path": (
        lambda f: (f / "stage_2_train_labels.csv").open("a").write("../id,,,,,1\n"),
        r"item \.\./id in .*field 'patientId' leaves the data folder",
    ),
    "gone": (
        lambda f: (f / "stage_2_train_images" / "id001.dcm").unlink(),
        r"item id001: image .*id001\.dcm: the file is missing",
    ),
}


@pytest.mark.parametrize("kind", BAD_RSNA)
def test_a_bad_row_of_rsna_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    damage, message = BAD_RSNA[kind]
    damage(made.make_rsna(root, 6).parent)
    options = RSNA | {"shares": {"test": 1.0}}
    with pytest.raises(BadItemError, match=message):
        load_items(card_of(tmp_path, "rsna_dicom", options, TWO, test=None), "test", root)


# MRNet


def mrnet(tmp_path: Path, *fractions: float) -> Card:
    options = {"condition": "acl", "plane": "coronal", "fractions": list(fractions), "labels": ["no", "yes"]}
    return card_of(tmp_path, "mrnet", options, TWO, train=4, test=4)


def test_an_examination_is_one_picture(root: Path, tmp_path: Path) -> None:
    made.make_mrnet(root)
    items = of(mrnet(tmp_path, 0.5), "test", root)
    assert [(item.id, item.answer) for item in items] == [
        ("0004", "no"),
        ("0005", "yes"),
        ("0006", "no"),
        ("0007", "yes"),
    ]
    assert [item.id for item in of(mrnet(tmp_path, 0.5), "train", root)] == ["0000", "0001", "0002", "0003"]
    for e, item in enumerate(items):
        assert set(load_image(item).getdata()) == {(50 + e,) * 3}  # the middle slice of ten
    for e, item in enumerate(of(mrnet(tmp_path, 0.0, 0.45, 1.0), "test", root)):
        assert set(load_image(item).getdata()) == {(e, 40 + e, 90 + e)}


def test_every_fraction_is_a_slice() -> None:
    for count in range(1, 40):
        places = slices(count, [n / 100 for n in range(101)])
        assert (places[0], places[-1]) == (0, count - 1)
        assert places == sorted(places) and set(places) <= set(range(count))
    assert slices(21, [0.5]) == [10]


@pytest.mark.parametrize(
    ("fractions", "message"), [([0.5, 0.6], "should be one .* or three"), ([2.0], "less than or equal to 1"), ([], "1")]
)
def test_fractions_are_one_or_three(tmp_path: Path, fractions: list[float], message: str) -> None:
    with pytest.raises(RequestError, match=rf"mrnet\.?.*{message}"):
        mrnet(tmp_path, *fractions)


BAD_MRNET: Bad = {
    "label": (lambda f: (f / "valid-acl.csv").write_text("0004,2\n"), "line 1 in .*valid-acl.csv: should be an exam"),
    "path": (lambda f: (f / "valid-acl.csv").write_text("../4,1\n"), "field 'examination' leaves the data folder"),
    "gone": (lambda f: (f / "valid/coronal/0004.npy").unlink(), r"item 0004: image .*0004\.npy: the file is missing"),
}


@pytest.mark.parametrize("kind", BAD_MRNET)
def test_a_bad_line_of_mrnet_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    damage, message = BAD_MRNET[kind]
    damage(made.make_mrnet(root))
    with pytest.raises(WorkError, match=message):
        load_items(mrnet(tmp_path, 0.5), "test", root, check=False)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((16, 16), np.uint8), "a series should be uint8, slices x h x w, is uint8 16 x 16"),
        (np.zeros((3, 16, 16)), ".*is float64 3 x 16 x 16"),
        (np.array([None]), "Array can't be memory-mapped: Python objects"),
        (None, "the file is empty"),
    ],
)
def test_a_bad_series_is_named(root: Path, tmp_path: Path, array: Any, message: str) -> None:
    path = made.make_mrnet(root) / "valid" / "coronal" / "0005.npy"
    path.write_bytes(b"") if array is None else np.save(path, array)
    items = load_items(mrnet(tmp_path, 0.5), "test", root).items
    with pytest.raises(BadItemError, match=rf"item 0005: image .*0005\.npy: {message}"):
        check_images("x", items, "fail")


# MedIMeta


ORGANS = {"task": "organ label", "group": "original_filepath"}


def test_medimeta_is_read_by_its_own_tables(root: Path, tmp_path: Path) -> None:
    made.make_medimeta(root)
    items = of(card_of(tmp_path, "medimeta", ORGANS, train=3, test=3), "test", root)
    assert [item.id for item in items] == [f"images/{n:06}.tiff" for n in (5, 4, 3)]  # the order of its list
    assert [item.answer for item in items] == [shown(item) for item in items] == ["blue", "green", "red"]
    assert {item.cluster for item in items} == {"volume-1.nii"}
    assert locate(card_of(tmp_path, "medimeta", ORGANS, test=3), root).layout == "medimeta"


BAD_MEDIMETA: Bad = {
    "task": (
        lambda f: (f / "info.yaml").write_text("tasks: [{task_name: other, labels: {0: a}}]"),
        r"info\.yaml: there is no task 'organ label'; there are 'other'",
    ),
    "info": (lambda f: (f / "info.yaml").write_text("tasks: 3"), r"info\.yaml: not a description of MedIMeta's form"),
    "code": (
        lambda f: (f / "info.yaml").write_text("!!python/object/apply:os.getcwd []"),
        r"info\.yaml: not a description",
    ),
    "row": (lambda f: (f / "splits" / "test.txt").write_text("images/9.tiff"), "csv has no row of it"),
    "up": (lambda f: (f / "splits" / "test.txt").write_text("../9.tiff"), "field 'filepath' leaves the data folder"),
    "label": (
        lambda f: (
            write_csv(
                f / "annotations.csv",
                [{"filepath": "images/000003.tiff", "tasks/organ label": 8, "original_filepath": "v"}],
            )
            and (f / "splits" / "test.txt").write_text("images/000003.tiff")
        ),
        "item images/000003.tiff in .*: the label '8' is none of the numbers 0, 1, 2",
    ),
}


@pytest.mark.parametrize("kind", BAD_MEDIMETA)
def test_a_bad_medimeta_folder_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    damage, message = BAD_MEDIMETA[kind]
    damage(made.make_medimeta(root))
    with pytest.raises(WorkError, match=message) as caught:
        load_items(card_of(tmp_path, "medimeta", ORGANS, test=None), "test", root)
    assert "\n" not in str(caught.value)


# DDTI


GRADES = {"2": "no", "3": "no", "4a": "yes", "4b": "yes", "4c": "yes", "5": "yes"}


def ddti(tmp_path: Path, **shares: float) -> Card:
    options = {"labels": GRADES, "shares": shares, "seed": 0}
    return card_of(tmp_path, "ddti", options, TWO, **dict.fromkeys(shares))


def test_a_case_is_whole_and_graded(root: Path, tmp_path: Path) -> None:
    made.make_ddti(root)
    card = ddti(tmp_path, train=0.6, test=0.4)
    by_split = {split: of(card, split, root) for split in ("train", "test")}
    cases: dict[str, set[str]] = defaultdict(set)
    for split, items in by_split.items():
        for item in items:
            cases[item.group].add(split)
            number = int(item.id.partition("_")[0])
            assert item.group == f"case {number}"
            assert item.answer == ("no" if number % 6 in (0, 1) else "yes")
    assert all(len(splits) == 1 for splits in cases.values())
    assert len(cases) == 27  # three of the thirty have no grade
    whole = load_items(ddti(tmp_path, test=1.0), "test", root)
    assert whole.left_out == 3 and whole.skipped == ()
    assert [item.id for item in whole.items[:4]] == ["1_1", "1_2", "2_1", "3_1"]  # by number, not by text


BAD_DDTI: Bad = {
    "grade": (
        lambda f: (f / "7.xml").write_text("<tirads>4d</tirads>"),
        "item 7_1: the label '4d' is none of the classes",
    ),
    "no element": (lambda f: (f / "7.xml").write_text("<case/>"), r"item 7: .*7\.xml: there is no <tirads> in it"),
    "no image": (
        lambda f: [p.unlink() for p in f.glob("7_*")],
        r"item 7: image .*7_1\.jpg: the file is missing",
    ),
}


@pytest.mark.parametrize("kind", BAD_DDTI)
def test_a_bad_case_is_named(root: Path, tmp_path: Path, kind: str) -> None:
    damage, message = BAD_DDTI[kind]
    damage(made.make_ddti(root))
    with pytest.raises(BadItemError, match=message):
        load_items(ddti(tmp_path, test=1.0), "test", root)


def test_a_folder_without_the_layout_says_what_is_missing(root: Path, tmp_path: Path) -> None:
    (root / "set").mkdir(parents=True)
    for card in (
        *(ddti(tmp_path / "a", test=1.0), mrnet(tmp_path / "b", 0.5)),
        *(card_of(tmp_path / "c", "medmnist_npz", MNIST, test=6), card_of(tmp_path / "d", "medimeta", ORGANS, test=3)),
        *(
            card_of(tmp_path / "e", "rsna_dicom", RSNA, TWO, test=None),
            card_of(tmp_path / "f", "chexpert_csv", FINDINGS, test=6),
        ),
    ):
        with pytest.raises(RequestError, match=r"no data in .*set \(.* is missing\); get mine") as caught:
            locate(card, root)
        assert "\n" not in str(caught.value)


def test_nothing_of_a_picture_is_kept_but_its_place(root: Path, tmp_path: Path) -> None:
    made.make_medmnist(root)
    (item, *_) = load_items(card_of(tmp_path, "medmnist_npz", MNIST, test=6), "test", root).items
    assert item.image.place == f"{root / 'set' / 'some.npz'} test_images[0]"
    (root / "set" / "some.npz").unlink()
    with pytest.raises(BadItemError, match=r"item test-0: image .*the file is missing"):
        load_image(item)
