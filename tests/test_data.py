"""A toy set: what is wrong with it is named, or left out and counted; nothing is read before it is needed."""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medbench.catalog import Catalog, Settings, read_yaml
from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import BadItemError, FileImage, Item, load_image
from medbench.data.load import held_out_images, limited, load_items, locate, published_splits
from medbench.data.verify import verify_task
from medbench.errors import RequestError, WorkError

CATALOG = Catalog(Settings())


def card_of(toy: Toy) -> Card:
    return CATALOG.task(str(toy.card))


def problems_of(toy: Toy, split: str = "test") -> list[str]:
    """What `data verify` says of a split; of the others it must say nothing."""
    found = {row["split"]: row["problems"] for row in verify_task(card_of(toy), toy.root)}
    assert all(other == split or not problems for other, problems in found.items())
    return found[split]


def test_a_good_set_is_read_as_it_is(toy: Toy) -> None:
    loaded = load_items(card_of(toy), "test", toy.root)
    assert [item.id for item in loaded.items] == [str(r["qid"]) for r in toy.records("test")]
    assert [item.type for item in loaded.items] == ["closed", "open"] * 12  # "CLOSED " has a space at its end
    assert {item.candidates for item in loaded.items} == {("yes", "no"), ()}
    assert load_image(loaded.items[0]).getpixel((0, 0)) == (200, 30, 30)
    assert problems_of(toy) == []


def test_answers_may_be_numbers_or_end_in_a_space(toy: Toy) -> None:
    records = toy.records("test")
    records[0]["answer"], records[1]["answer"], records[2]["answer"] = 3, 2.5, "No "
    toy.write("test", records)
    assert [item.answer for item in load_items(card_of(toy), "test", toy.root).items[:3]] == ["3", "2.5", "No"]


Damage = Callable[[Toy, dict[str, Any]], None]


def image_of(toy: Toy, record: dict[str, Any]) -> Path:
    return toy.folder / "images" / str(record["image_name"])


def cut(toy: Toy, record: dict[str, Any]) -> None:
    path = image_of(toy, record)
    path.write_bytes(path.read_bytes()[:-30])


def bomb(toy: Toy, record: dict[str, Any]) -> None:
    """A BMP of 100 bytes that says it is 60,000 pixels wide and high."""
    data = io.BytesIO()
    Image.new("RGB", (4, 4)).save(data, "BMP")
    head = bytearray(data.getvalue())
    head[18:26] = (60_000).to_bytes(4, "little") * 2
    image_of(toy, record).write_bytes(head)


ROWS: dict[str, tuple[Damage, str]] = {
    "null": (lambda toy, r: r.update(answer=None), "field 'answer' should be text, is NoneType None"),
    "list": (lambda toy, r: r.update(question=["a"]), r"field 'question' should be text, is list \['a'\]"),
    "bool": (lambda toy, r: r.update(answer=True), "field 'answer' should be text, is bool True"),
    "no-question": (lambda toy, r: r.pop("question"), "field 'question' should be text, is absent"),
    "no-image": (lambda toy, r: r.pop("image_name"), "field 'image_name' should be text, is absent"),
    "no-type": (lambda toy, r: r.pop("answer_type"), "field 'answer_type' is absent"),
    "blank-question": (lambda toy, r: r.update(question=" "), "field 'question' is empty"),
    "half-a-character": (lambda toy, r: r.update(answer="a\ud800"), "field 'answer' is not valid text"),
    "nan": (lambda toy, r: r.update(answer=float("nan")), "field 'answer' should be text, is nan"),
    "twice": (lambda toy, r: r.update(qid=r["qid"] - 2), "the id occurs twice"),
    "up": (lambda toy, r: r.update(image_name="../../secret.png"), "field 'image_name' leaves the data folder"),
    "absolute": (lambda toy, r: r.update(image_name="/etc/passwd"), "field 'image_name' leaves the data folder"),
    "long": (lambda toy, r: r.update(image_name="x" * 5000), "image .*: the file is missing"),
    "gone": (lambda toy, r: image_of(toy, r).unlink(), r"image .*test5\.png: the file is missing"),
}
IMAGES: dict[str, tuple[Damage, str]] = {
    "cut": (cut, r"image .*test5\.png: (image file is truncated|Truncated File Read|unrecognized data|broken PNG)"),
    "empty": (lambda toy, r: image_of(toy, r).write_bytes(b""), r"image .*test5\.png: the file is empty, 0 bytes"),
    "text": (lambda toy, r: image_of(toy, r).write_text("html"), r"image .*test5\.png: cannot identify image file"),
    "bomb": (bomb, r"image .*test5\.png: far too many pixels"),
}


def damaged(toy: Toy, damage: Damage) -> str:
    """Damages the closed question on the sixth test image; returns its id."""
    records: list[dict[str, Any]] = toy.records("test")
    damage(toy, records[10])
    toy.write("test", records)
    return str(records[10]["qid"])


@pytest.mark.parametrize("kind", ROWS)
def test_a_bad_row_is_named_or_left_out_and_counted(toy: Toy, kind: str) -> None:
    damage, message = ROWS[kind]
    name = damaged(toy, damage)
    with pytest.raises(BadItemError, match=f"^task toy: item {name}.*{message}.*; --on-bad-item skip leaves"):
        load_items(card_of(toy), "test", toy.root)
    loaded = load_items(card_of(toy), "test", toy.root, "skip")
    both = 2 if kind == "gone" else 1  # the image's other question goes with it
    assert (len(loaded.items), len(loaded.skipped)) == (24 - both, both)
    assert re.search(f"item {name}.*{message}", loaded.skipped[0])
    assert problems_of(toy) == list(loaded.skipped)


def test_an_image_that_breaks_its_decoder_is_named(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of Pillow's formats raise a RuntimeError for a damaged file."""

    def broken(_: object) -> None:
        raise RuntimeError("Failed to decode image")

    items = load_items(card_of(toy), "test", toy.root).items
    monkeypatch.setattr("PIL.Image.open", broken)
    with pytest.raises(BadItemError, match=r"^task toy: item .*: image .*: Failed to decode image"):
        check_images("toy", items, "fail")


def test_a_null_id_is_no_id(toy: Toy) -> None:
    records: list[dict[str, Any]] = toy.records("test")
    records[3]["qid"] = None
    toy.write("test", records)
    with pytest.raises(BadItemError, match=r"item row 3 in .*: field 'qid' should be text, is absent"):
        load_items(card_of(toy), "test", toy.root)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_bad_image_is_named_or_left_out_and_counted(toy: Toy, kind: str) -> None:
    damage, message = IMAGES[kind]
    name = damaged(toy, damage)
    items = load_items(card_of(toy), "test", toy.root).items
    with pytest.raises(BadItemError, match=f"^task toy: item {name}: {message}"):
        check_images("toy", items, "fail")
    checked = check_images("toy", items, "skip")
    assert [item.id for item in checked.items] == [i.id for i in items if i.image.key != "test5.png"]
    assert len(checked.skipped) == 2
    assert re.search(f"item {name}: {message}", checked.skipped[0])
    assert len(checked.sizes) == 11
    with pytest.raises(BadItemError, match=f"^item {name}: {message}"):
        load_image(next(item for item in items if item.id == name))
    assert problems_of(toy) == list(checked.skipped)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', r"test\.json: expected a list of objects"),
        ("[1, 2]", r"test\.json: expected a list of objects"),
        ('[{"qid": 1', r"test\.json: not readable as JSON"),
        ("\udcff", r"test\.json: not readable as JSON"),
        ("[]", "0 items, the card expects 24"),
    ],
)
def test_a_file_that_is_no_list_of_records_is_named(toy: Toy, text: str, message: str) -> None:
    (toy.folder / "test.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    for mode in ("fail", "skip"):
        with pytest.raises(WorkError, match=message):
            load_items(card_of(toy), "test", toy.root, mode)  # type: ignore[arg-type]
    (problem,) = problems_of(toy)
    assert re.search(message if "json" in message else "no usable item", problem)


def test_another_count_or_other_questions_are_not_this_card(toy: Toy) -> None:
    content: dict[str, Any] = toy.card_content()
    digest = load_items(card_of(toy), "test", toy.root).digest
    content["metadata"]["splits"]["test"]["digest"] = digest
    toy.write_card(content)
    load_items(card_of(toy), "test", toy.root)
    records = toy.records("test")
    toy.write("test", records[1:])
    with pytest.raises(WorkError, match=r"split test in .*toy: 23 items, the card expects 24; another publication"):
        load_items(card_of(toy), "test", toy.root)
    records[3]["answer"] = "purple"
    toy.write("test", records)
    with pytest.raises(WorkError, match=f"differ from those of the card .*expected {digest[:12]}"):
        load_items(card_of(toy), "test", toy.root)
    assert problems_of(toy) == ["questions or answers differ from the card's digest"]


def test_missing_data_says_how_to_get_it(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no data in .*test\.json is missing.*licence CC0-1\.0"):
        locate(card_of(toy), tmp_path)
    with pytest.raises(RequestError, match="task toy needs data: pass --data-root, or get toy"):
        locate(card_of(toy), None)
    with pytest.raises(RequestError, match="no split 'dev'; it has train, fit, validation, test"):
        load_items(card_of(toy), "dev", toy.root)


def test_the_held_out_part_shares_no_image_and_is_a_tenth(toy: Toy) -> None:
    card = card_of(toy)
    assert published_splits(card) == ["train", "fit", "validation", "test"]
    fit, held, whole = (load_items(card, split, toy.root).items for split in ("fit", "validation", "train"))
    images = {item.image.key for item in held}
    assert len(images) == round(0.1 * 24)
    assert not images & {item.image.key for item in fit}
    assert {i.id for i in fit} | {i.id for i in held} == {i.id for i in whole}
    assert len(fit) + len(held) == len(whole)


def test_the_held_out_part_depends_only_on_seed_and_names(toy: Toy) -> None:
    card = card_of(toy)
    names = [f"image{n}" for n in range(200)]
    shuffled = random.Random(0).sample(names, 200)
    assert held_out_images(card, names) == held_out_images(card, shuffled)
    assert len(held_out_images(card, names)) == 20
    content: dict[str, Any] = toy.card_content()
    content["metadata"]["holdout"]["seed"] = 1
    assert held_out_images(Card.parse(content, toy.card), names) != held_out_images(card, names)


def test_reading_questions_opens_no_image(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: FileImage) -> bytes:
        raise AssertionError(f"{self.path} was opened")

    monkeypatch.setattr(FileImage, "read", refuse)
    monkeypatch.setattr(Image, "open", refuse)
    items = load_items(card_of(toy), "train", toy.root).items
    with pytest.raises(AssertionError, match="was opened"):
        load_image(items[0])


@given(st.integers(1, 60), st.one_of(st.none(), st.integers(1, 80)), st.randoms(use_true_random=False))
def test_limits(number: int, limit: int | None, rng: random.Random) -> None:
    """A test keeps its head; a training split a fixed sample, in order, that grows with the limit."""
    items = [Item(str(n), FileImage("x", Path("x")), "", "", False) for n in range(number)]
    size = number if limit is None else min(limit, number)
    assert limited(items, limit, "test") == items[:size]
    drawn = limited(items, limit, "train")
    assert len(drawn) == size
    assert [i for i in items if i in drawn] == drawn
    assert {i.id for i in limited(rng.sample(items, number), limit, "train")} == {i.id for i in drawn}
    if limit is not None:
        assert {i.id for i in drawn} <= {i.id for i in limited(items, limit + 1, "train")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_whatever_is_wrong_with_an_image_is_a_bad_item(form: str, tmp_path: Path) -> None:
    """Cut or overwritten anywhere, an image decodes or is an item's error, nothing else."""
    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(buffer, form)
    item = Item("7", FileImage("x", tmp_path / "x"), "", "", False)
    rng, bad = random.Random(0), 0
    for _ in range(150):
        data = bytearray(buffer.getvalue())
        for _ in range(rng.randrange(6)):
            data[rng.randrange(min(len(data), 100))] = rng.randrange(256)
        (tmp_path / "x").write_bytes(data[: rng.randrange(1, 2 * len(data))])
        try:
            load_image(item)
        except BadItemError as error:
            bad += 1
            assert str(error).startswith(f"item 7: image {tmp_path / 'x'}: ")
    assert bad > 20


def test_a_changed_question_type_changes_the_digest(toy: Toy) -> None:
    card = Card.parse(read_yaml(toy.card), toy.card)
    before = load_items(card, "test", toy.root).digest
    toy.write("test", [record | {"answer_type": "OPEN"} for record in toy.records("test")])
    assert load_items(card, "test", toy.root).digest != before
