"""Cards of classification: what they must say, which items they give, and how some of them are taken."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import test_classification_data_common as made
from test_classification_data_common import CLASSES, TWO, card_of, content, labelled, make_labels, write_card, write_csv
from test_family_common import CATALOG
from test_scoring_common import Call, caller

from medbench.catalog import packaged, read_yaml
from medbench.data.item import BadItemError, FileImage, Item
from medbench.data.leaks import find_leaks
from medbench.data.load import limited, load_items, locate, published_splits, rows_digest
from medbench.data.metadata import ClosedRule
from medbench.data.readers import Row
from medbench.data.sampling import shots
from medbench.data.verify import verify_task
from medbench.errors import RequestError, WorkError
from medbench.harness.tasks import task_config

NINE = CATALOG.group("radiology9").task
REAL = CATALOG.group("real_cls").task
SPLITS = {"train": 6, "validation": 3, "test": 6}
OPTIONS = {"file": "labels.csv", "columns": {"group": "patient"}}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(capfd)


def cards() -> list[str]:
    return [name for name in CATALOG.paths("tasks") if CATALOG.task(name).metadata.kind == "classification"]


@pytest.mark.parametrize("name", cards())
def test_prompts_are_all_templates_with_all_phrases(name: str) -> None:
    card = CATALOG.task(name)
    meta = card.metadata
    every, one = card.prompts(single=False), card.prompts(single=True)
    assert list(every) == list(one) == list(meta.classes)
    for label, phrases in meta.classes.items():
        assert len(set(every[label])) == len(meta.templates) * len(phrases)
        assert one[label] == every[label][:1] == [meta.templates[0].replace("{}", phrases[0])]
    prompts = [prompt for found in every.values() for prompt in found]
    assert len(set(prompts)) == len(prompts)  # no prompt stands for two classes
    assert 4 <= len(meta.templates) <= 8
    assert all(re.search(r"\{|\}|  ", prompt) is None for prompt in prompts)
    assert meta.closed == ClosedRule(rule="all")


def test_the_groups_are_whole() -> None:
    assert len(NINE) == 9 and set(NINE) < set(CATALOG.group("all23").task)
    assert [CATALOG.task(name).metadata.kind for name in (*NINE, *REAL)] == ["classification"] * 14
    assert len(CATALOG.task_names("all23")) == 23  # none is without a card
    assert {CATALOG.task(name).metadata.confidence.level for name in NINE} == {"H", "M"}
    assert {CATALOG.task(name).metadata.confidence.level for name in REAL} == {"none"}


def test_who_trained_on_the_same_patients_has_seen_the_set() -> None:
    def sets(name: str) -> frozenset[str]:
        return CATALOG.task(name).metadata.datasets

    for one, other in (("busi", "us_breast"), ("ct_axial", "ct_coronal"), ("ct_axial", "organsmnist")):
        assert sets(one) & sets(other)
    assert sets("mri_acl") & sets("mri_meniscus")
    assert not sets("us_thyroid") & sets("us_breast")


WRONG: dict[str, tuple[str, Any, str]] = {
    "one class": ("classes", {"red": ["r"]}, "classes: should be at least two, is red"),
    "no class": ("classes", {}, "classes: should be at least two, is none"),
    "same class": ("classes", {"red": ["r"], "Red ": ["s"]}, "classes: should have different names, none empty"),
    "no phrase": ("classes", {**CLASSES, "red": []}, "classes.red: should be a list of phrases, none empty"),
    "blank phrase": ("classes", {**CLASSES, "red": ["r", " "]}, "classes.red: should be a list of phrases, none empty"),
    "one phrase for two": ("classes", {**CLASSES, "red": ["Something  blue"]}, "classes.blue: .*'something blue' is t"),
    "a phrase twice": ("classes", {**CLASSES, "red": ["r", "r"]}, "classes.red: the phrase 'r' is there twice"),
    "no template": ("templates", [], "templates: is missing; add at least one"),
    "no place": ("templates", ["a photo"], r"templates: should hold {} once and no other brace, is 'a photo'"),
    "two places": ("templates", ["{} and {}"], "templates: should hold {} once"),
    "a brace": ("templates", ["{} of {0}"], "templates: should hold {} once"),
    "twice": ("templates", ["a {}", "a {}"], "templates: names one twice"),
    "positive of three": ("positive", "red", "positive: only for two classes, there are 3"),
    "candidates": ("candidates", ["yes", "no"], "candidates: not for kind classification"),
    "label": ("label", "answer", "label: not for kind classification"),
    "types": ("types", "x", "types: not for kind classification"),
    "closed": ("closed", {"rule": "none"}, "closed: not for kind classification"),
    "augment": ("augment", {"crop": 0}, "augment.crop: Input should be greater than 0"),
    "augment field": ("augment", {"blur": 1}, "augment.blur: is not a field of this file"),
    "other label": (
        *("layouts", {"labels_csv": {"file": "l.csv", "labels": {"a": "rad"}}}),
        "labels_csv.labels: 'rad' is none of the classes red, green, blue",
    ),
    "lost class": (
        *("layouts", {"labels_csv": {"file": "l.csv", "labels": {"a": "red", "b": "blue"}}}),
        "labels_csv.labels: no label is of class 'green'",
    ),
    "no file": ("layouts", {"labels_csv": {}}, "labels_csv: should have either 'file' .* or 'files'"),
    "split file": ("layouts", {"labels_csv": {"files": {"test": "t.csv"}}}, "labels_csv.files: no file for .*'train'"),
    "one agrees": ("layouts", {"labels_csv": {"file": "l", "agree": ["a"]}}, "agree: should name at least two columns"),
    "column": ("layouts", {"labels_csv": {"file": "l", "columns": {"patient": "p"}}}, "labels_csv.columns.patient"),
    "no split": (
        *("layouts", {"class_folders": {"labels": {c: c for c in CLASSES}}}),
        r"class_folders: 3 splits need 'splits' \(a folder a split\) or 'split_file'",
    ),
    "split folder": (
        *("layouts", {"class_folders": {"labels": {c: c for c in CLASSES}, "splits": {"test": "t"}}}),
        "class_folders.splits: no folder for split 'train'",
    ),
    "shares": (
        *("layouts", {"ddti": {"labels": {c: c for c in CLASSES}, "shares": {"train": 0.5, "test": 0.4}}}),
        "ddti: shares should sum to 1, sum to 0.9",
    ),
    "no share": (
        *("layouts", {"ddti": {"labels": {c: c for c in CLASSES}, "shares": {"train": 0.5, "test": 0.5}}}),
        "ddti.shares: no share for split 'validation'",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_card_that_says_something_wrong_is_named(tmp_path: Path, kind: str) -> None:
    field, value, message = WRONG[kind]
    card = content("labels_csv", OPTIONS, **SPLITS)
    card["metadata"][field] = value
    path = write_card(tmp_path, card)
    with pytest.raises(RequestError, match=f"^{re.escape(str(path))}: metadata[.:].*{message}") as caught:
        CATALOG.task(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("positive", "message"), [(None, "positive: with two classes, .*is missing"), ("may", "one of no, yes; is 'may'")]
)
def test_two_classes_have_a_positive_one(tmp_path: Path, positive: str | None, message: str) -> None:
    card = content("labels_csv", OPTIONS, TWO, **SPLITS)
    assert CATALOG.task(str(write_card(tmp_path, card))).metadata.positive == "yes"
    card["metadata"]["positive"] = positive
    with pytest.raises(RequestError, match=message):
        CATALOG.task(str(write_card(tmp_path, card)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", None, "has 'name' instead of 'task': lm-eval does not have it"),
        ("doc_to_text", "<image>{{question}}", "doc_to_text: not for kind classification"),
        ("metric_list", [{"metric": "accuracy"}], "metric_list: not for kind classification"),
    ],
)
def test_it_has_none_of_lm_evals_fields(tmp_path: Path, field: str, value: Any, message: str) -> None:
    card = content("labels_csv", OPTIONS, **SPLITS) | {field: value}
    if value is None:
        card["task"] = card.pop("name")
    with pytest.raises(RequestError, match=message):
        CATALOG.task(str(write_card(tmp_path, card)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classes", {"a": ["a"], "b": ["b"]}),
        ("templates", ["a {}"]),
        ("positive", "a"),
        ("augment", {"flip": True}),
        ("layouts", {"labels_csv": {"file": "labels.csv"}}),
    ],
)
def test_classes_are_for_classification_alone(tmp_path: Path, field: str, value: Any) -> None:
    card = read_yaml(packaged("tasks") / "slake.yaml")
    card["metadata"] |= {field: value}
    card["metadata"].pop("hub")
    path = tmp_path / "slake.yaml"
    path.write_text(made.yaml.safe_dump(card))
    named = "labels_csv" if field == "layouts" else field
    with pytest.raises(RequestError, match=f"{named}: only for kind classification"):
        CATALOG.task(str(path))


def test_the_digest_is_over_classes_and_prompts(tmp_path: Path) -> None:
    def digest(**changed: Any) -> str:
        card = content("labels_csv", OPTIONS, TWO, **SPLITS)
        card["metadata"] |= changed
        return CATALOG.task(str(write_card(tmp_path, card))).digest

    alike = [digest(), digest(description="x"), digest(augment=None), digest(closed={"rule": "all"})]
    other = [
        *(digest(templates=["see {}"]), digest(positive="no"), digest(augment={"flip": True})),
        *(digest(classes={**TWO, "no": ["nothing"]}), digest(splits={"test": {"count": 6}})),
    ]
    assert len(set(alike)) == 1
    assert len({alike[0], *other}) == 6


def test_an_item_is_an_image_and_a_class(root: Path, tmp_path: Path) -> None:
    make_labels(root)
    card = card_of(tmp_path, "labels_csv", OPTIONS, **SPLITS)
    items = load_items(card, "test", root).items
    assert [item.id for item in items] == [row["file"] for row in labelled("test", 6)]
    assert [(item.answer, item.group) for item in items] == [(r["label"], r["patient"]) for r in labelled("test", 6)]
    assert {(i.question, i.closed, i.candidates, i.options, i.type) for i in items} == {("", True, (), (), "closed")}
    assert Counter(item.cluster for item in items) == dict.fromkeys(("test-p0", "test-p1", "test-p2"), 2)
    assert published_splits(card) == ["train", "fit", "validation", "test"]


def test_without_a_patient_an_image_is_a_cluster(root: Path, tmp_path: Path) -> None:
    make_labels(root)
    items = load_items(card_of(tmp_path, "labels_csv", {"file": "labels.csv"}, **SPLITS), "test", root).items
    assert [item.cluster for item in items] == [item.image.key for item in items]


def test_patients_are_held_out_whole(root: Path, tmp_path: Path) -> None:
    make_labels(root, [*labelled("train", 60), *labelled("test", 6)])
    card = content("labels_csv", OPTIONS, train=60, test=6)
    card["metadata"]["holdout"] = {"fraction": 0.2, "seed": 0}
    found = CATALOG.task(str(write_card(tmp_path, card)))
    fit, held = ({i.group for i in load_items(found, split, root).items} for split in ("fit", "validation"))
    assert (len(fit), len(held), fit & held) == (24, 6, set())


def test_the_digest_of_the_rows_covers_the_group_and_leaves_others_alone() -> None:
    rule, image = ClosedRule(rule="all"), FileImage("k", Path("k"))
    plain = Row("a", image, "", "red")
    # What was computed before rows had a group.
    said = [["a", "k", "", "red", "True", False]]
    assert rows_digest([plain], rule) == hashlib.sha256(json.dumps(said, separators=(",", ":")).encode()).hexdigest()
    grouped = [Row("a", image, "", "red", group=group) for group in ("", "p1", "p2")]
    assert len({rows_digest([row], rule) for row in grouped}) == 3
    assert rows_digest(grouped[:1], rule) == rows_digest([plain], rule)
    offered = [Row("a", image, "", "red", options=options, group="g") for options in ((), ("red", "blue"))]
    assert len({rows_digest([row], rule) for row in [*grouped, *offered]}) == 5


def items_of(number: int) -> list[Item]:
    """Sorted by class, as published files are."""
    names = sorted(list(CLASSES)[n % 3] for n in range(number))
    return [Item(f"{name}/{n}", FileImage(str(n), Path()), "", name, True) for n, name in enumerate(names)]


def test_a_limit_is_a_sample_of_all_classes() -> None:
    items = items_of(90)
    for split in ("train", "fit", "validation", "test"):
        taken = limited(items, 20, split, "classification")
        assert len({item.answer for item in taken}) == 3
        assert [item for item in items if item in taken] == taken
        assert set(limited(items, 10, split, "classification")) < set(taken)
    assert limited(items, 20, "test") == items[:20]  # as lm-eval does, for the other kinds
    assert limited(items, None, "test", "classification") == limited(items, 90, "test", "classification") == items


def test_shots_are_k_of_each_class_nested_and_seeded() -> None:
    items = items_of(90)
    for k in (1, 2, 4, 8, 16):
        taken = shots(items, k, seed=3)
        assert Counter(item.answer for item in taken) == dict.fromkeys(CLASSES, k)
        assert [item for item in items if item in taken] == taken
        assert set(taken) <= set(shots(items, k + 1, seed=3))
        assert set(shots(list(reversed(items)), k, seed=3)) == set(taken)
    first = min(
        (item for item in items if item.answer == "red"), key=lambda i: hashlib.sha256(f"3:{i.id}".encode()).digest()
    )
    assert first in shots(items, 1, seed=3)
    assert len({tuple(item.id for item in shots(items, 2, seed)) for seed in range(5)}) > 1


@pytest.mark.parametrize(
    ("k", "classes", "message"),
    [
        (31, (), "31 shots need 31 items of each class; class 'blue' has 30"),
        (1, ("black", *CLASSES), "1 shots need 1 items of each class; class 'black' has 0"),
    ],
)
def test_too_few_of_a_class_are_named(k: int, classes: tuple[str, ...], message: str) -> None:
    with pytest.raises(WorkError, match=f"^{message}$"):
        shots(items_of(90), k, 0, classes)
    with pytest.raises(RequestError, match="shots: should be at least 1 item a class, is 0"):
        shots(items_of(90), 0, 0)


BAD: dict[str, tuple[dict[str, str], str]] = {
    "label": ({"label": "purple"}, r"item img/test1\.png: the label 'purple' is none of the classes red, green, blue"),
    "case": ({"label": "Green"}, r"item img/test1\.png: the label 'Green' is none of the classes"),
    "no label": ({"label": ""}, r"item img/test1\.png in .*labels\.csv: column 'label' is empty"),
    "no file": ({"file": ""}, "item row .* in .*: column 'file' is empty"),
    "up": ({"file": "../x.png"}, r"item row 11 in .*: field 'file' leaves the data folder: '../x\.png'"),
    "gone": ({"file": "img/gone.png"}, r"item img/gone\.png: image .*img/gone\.png: the file is missing"),
    "twice": ({"file": "img/test0.png"}, r"item img/test0\.png: the id occurs twice"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_is_one_line_and_can_be_left_out(root: Path, tmp_path: Path, kind: str) -> None:
    changed, message = BAD[kind]
    path = make_labels(root)
    rows = [*labelled("train", 6), *labelled("val", 3), *labelled("test", 6)]
    rows[10] |= changed
    write_csv(path, rows)
    card = card_of(tmp_path, "labels_csv", OPTIONS, **SPLITS)
    with pytest.raises(BadItemError, match=f"^task mine: {message}.*; --on-bad-item skip leaves") as caught:
        load_items(card, "test", root)
    assert "\n" not in str(caught.value)
    loaded = load_items(card, "test", root, "skip")
    assert (len(loaded.items), len(loaded.skipped), loaded.left_out) == (5, 1, 0)


def test_a_split_of_one_class_is_refused(root: Path, tmp_path: Path) -> None:
    path = make_labels(root)
    write_csv(
        path, [*labelled("train", 6), *labelled("val", 3), *(row | {"label": "red"} for row in labelled("test", 6))]
    )
    card = card_of(tmp_path, "labels_csv", OPTIONS, **SPLITS)
    message = "split test in .* has only items of class 'red'; the card's classes are red, green, blue"
    with pytest.raises(WorkError, match=f"^task mine: {message}$"):
        load_items(card, "test", root)
    problems = {row["split"]: row["problems"] for row in verify_task(card, root)}
    assert (problems["train"], problems["validation"]) == ([], [])
    assert [re.search(message, problem) is not None for problem in problems["test"]] == [True]


def test_an_empty_image_is_named(root: Path, tmp_path: Path) -> None:
    path = make_labels(root)
    (path.parent / "img" / "test3.png").write_bytes(b"")
    card = card_of(tmp_path, "labels_csv", OPTIONS, **SPLITS)
    problems = {row["split"]: row["problems"] for row in verify_task(card, root)}["test"]
    assert problems == [f"item img/test3.png: image {path.parent / 'img' / 'test3.png'}: the file is empty, 0 bytes"]


def test_the_commands_know_them(root: Path, tmp_path: Path, call: Call) -> None:
    make_labels(root)
    card = write_card(tmp_path / "cards", content("labels_csv", OPTIONS, **SPLITS))
    rows = json.loads(call("data", "items", card, "--data-root", root, "--json").out)
    assert [set(row) for row in rows] == [{"id", "image", "question", "type"}] * 6
    assert {(row["question"], row["type"]) for row in rows} == {("", "closed")}
    (test,) = [
        row
        for row in json.loads(call("data", "verify", card, "--data-root", root, "--json").out)
        if row["split"] == "test"
    ]
    assert (test["items"], test["classes"], test["problems"]) == (6, dict.fromkeys(CLASSES, 2), [])
    listed = {row["name"]: row for row in json.loads(call("list", "tasks", "--json").out)}
    assert {listed[name]["kind"] for name in (*NINE, *REAL)} == {"classification"}
    status = json.loads(call("data", "status", "radiology9", "--data-root", root, "--json").out)
    assert [row["status"] for row in status] == ["missing"] * 9
    assert all(row["note"].count("get ") and "\n" not in row["note"] for row in status)


def test_leaks_count_images_and_no_texts(root: Path, tmp_path: Path) -> None:
    make_labels(root)  # three plain colours: every test image is among the training images
    found = find_leaks(card_of(tmp_path, "labels_csv", OPTIONS, **SPLITS), [], root)
    (row,) = [o for o in found["overlaps"] if (o["tested"], o["other"]) == ("mine/test", "mine/train")]
    assert row["images"] == {"total": 6, "exact": 6, "near": 0}
    assert row["questions"]["text"] == {"exact": 0, "normalised": 0}
    assert row["questions"]["image_text_and_answer"] == {"exact": 6, "near": 0}


def test_lm_eval_is_not_asked_to_test_them() -> None:
    with pytest.raises(RequestError, match=r"^task us_breast .*lm-eval"):
        task_config("us_breast")


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("us_breast", (323, 129, 195)),
        ("busi", (389, 155, 236)),
        ("btmri", (1200, None, 1281)),
        ("kneexray", (812, 324, 486)),
        ("pneumoniamnist", (4708, 524, 624)),
        ("medical_mnist", (1500, 300, 1200)),
    ],
)
def test_the_real_sets_are_the_cards(shared: Path, name: str, sizes: tuple[int | None, ...]) -> None:
    card = CATALOG.task(name)
    assert locate(card, shared).folder.is_dir()
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        if size is None:
            continue
        items = load_items(card, split, shared).items  # counts and digests are checked
        assert len(items) == size
        assert {item.answer for item in items} == set(card.metadata.classes)
    if name == "btmri":
        fit, held = (load_items(card, split, shared).items for split in ("fit", "validation"))
        assert (len(fit), len(held)) == (960, 240)


def test_us_breast_is_busi_without_its_normal_images(shared: Path) -> None:
    for split in ("train", "validation", "test"):
        three, two = (load_items(CATALOG.task(name), split, shared).items for name in ("busi", "us_breast"))
        assert [(i.id, i.answer) for i in two] == [(i.id, i.answer) for i in three if i.answer != "normal"]
