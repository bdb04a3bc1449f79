"""The layouts as published: parquet in the hub's schema, archives, the real VQA-RAD and SLAKE."""

from __future__ import annotations

import io
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from medbench.catalog import Catalog, Settings, packaged, read_yaml
from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.hub import unpack
from medbench.data.item import BadItemError, load_image
from medbench.data.load import Loaded, load_items
from medbench.errors import WorkError

CATALOG = Catalog(Settings())
COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]
#: The hub's vqa-rad has neither ids nor answer types; its names carry a hash.
NAME = "{split}-00000-of-00001-eb8844602202be60.parquet"


def encoded(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 16), colour).save(buffer, "PNG")
    return buffer.getvalue()


def hub_rows(number: int) -> dict[str, list[Any]]:
    return {
        "image": [{"bytes": encoded(COLOURS[n % 3]), "path": None} for n in range(number)],
        "question": [f"question {n}?" for n in range(number)],
        "answer": [("yes", "No ", "the left lung", "Yes, both")[n % 4] for n in range(number)],
    }


def write_parquet(folder: Path, split: str, rows: dict[str, list[Any]]) -> Path:
    import datasets

    features = datasets.Features({n: datasets.Value("string") for n in rows if n != "image"})
    if "image" in rows:
        features["image"] = datasets.Image()
    path = folder / "data" / NAME.format(split=split)
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(path))
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with a small `vqa_rad_hub`; what `datasets` caches stays in the test's folder."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split, number in (("train", 12), ("test", 8)):
        write_parquet(tmp_path / "data" / "vqa_rad_hub", split, hub_rows(number))
    return tmp_path / "data"


def hub_card(tmp_path: Path, **layout: Any) -> Card:
    content = read_yaml(packaged("tasks") / "vqa_rad_hub.yaml")
    content["metadata"]["splits"] = {"train": {"count": 12}, "test": {"count": 8}}
    content["metadata"]["layouts"] = {"hub_parquet": layout}
    path = tmp_path / "vqa_rad_hub.yaml"
    path.write_text(yaml.safe_dump(content))
    return CATALOG.task(str(path))


def test_parquet_as_the_hub_has_it(hub: Path, tmp_path: Path) -> None:
    items = load_items(hub_card(tmp_path), "test", hub).items
    assert [item.id for item in items] == [str(n) for n in range(8)]
    assert [item.question for item in items] == hub_rows(8)["question"]
    assert [item.type for item in items] == ["closed", "closed", "open", "open"] * 2  # "Yes, both" is not yes or no
    assert [load_image(item).getpixel((0, 0)) for item in items] == [COLOURS[n % 3] for n in range(8)]
    assert [items[0].image.key == item.image.key for item in items] == [n % 3 == 0 for n in range(8)]
    assert check_images("x", items, "fail").sizes[items[0].image.key] == (16, 20)


def test_columns_may_have_other_names(hub: Path, tmp_path: Path) -> None:
    folder = hub / "vqa_rad_hub"
    rows = hub_rows(8)
    rows["frage"] = rows.pop("question")
    write_parquet(folder, "test", rows)
    items = load_items(hub_card(tmp_path, columns={"question": "frage"}), "test", hub).items
    assert items[3].question == "question 3?"


def test_several_files_are_one_split(hub: Path, tmp_path: Path) -> None:
    folder = hub / "vqa_rad_hub" / "data"
    (folder / NAME.format(split="test")).rename(folder / "test-00000-of-00002.parquet")
    rows = hub_rows(4)
    rows["question"] = ["more?"] * 4
    write_parquet(folder.parent, "test", rows).rename(folder / "test-00001-of-00002.parquet")
    card = hub_card(tmp_path)
    loaded = load_items(card, "test", hub, check=False)
    assert [item.id for item in loaded.items] == [str(n) for n in range(12)]
    assert [item.question for item in loaded.items[8:]] == ["more?"] * 4
    with pytest.raises(WorkError, match="12 items, the card expects 8"):
        load_items(card, "test", hub)


@pytest.mark.parametrize("column", ["image", "question", "answer"])
def test_a_missing_column_is_named(hub: Path, tmp_path: Path, column: str) -> None:
    rows = hub_rows(8)
    del rows[column]
    path = write_parquet(hub / "vqa_rad_hub", "test", rows)
    with pytest.raises(WorkError, match=f"{path.name}: column '{column}' is missing; there are "):
        load_items(hub_card(tmp_path), "test", hub)


def test_bad_rows_of_a_parquet_are_named(hub: Path, tmp_path: Path) -> None:
    rows = hub_rows(8)
    rows["image"][2] = {"bytes": encoded(COLOURS[0])[:-30], "path": None}
    rows["image"][5] = None
    rows["answer"][6] = None
    path = write_parquet(hub / "vqa_rad_hub", "test", rows)
    card = hub_card(tmp_path)
    with pytest.raises(BadItemError, match=f"item 5 in .*{path.name}: column 'image' holds no image bytes"):
        load_items(card, "test", hub)
    loaded = load_items(card, "test", hub, "skip")
    assert [item.id for item in loaded.items] == ["0", "1", "2", "3", "4", "7"]
    assert "item 6" in loaded.skipped[1] and "field 'answer' should be text" in loaded.skipped[1]
    with pytest.raises(BadItemError, match=f"item 2: image .*{path.name} row 2: "):
        check_images("x", loaded.items, "fail")


@pytest.mark.parametrize("content", [b"", b"PAR1 but no parquet PAR1", None])
def test_a_broken_parquet_is_named(hub: Path, tmp_path: Path, content: bytes | None) -> None:
    path = hub / "vqa_rad_hub" / "data" / NAME.format(split="test")
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    with pytest.raises(WorkError, match=f"{path.name}: not readable as parquet"):
        load_items(hub_card(tmp_path), "test", hub)


def archive(folder: Path, *members: tuple[str, int]) -> Path:
    path = folder / "imgs.zip"
    with zipfile.ZipFile(path, "w") as content:
        content.writestr("imgs/1/source.jpg", b"picture")
        for name, mode in members:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            content.writestr(info, b"/etc/passwd")
    return path


def test_an_archive_is_unpacked_once(tmp_path: Path) -> None:
    path = archive(tmp_path)
    unpack(path, tmp_path)
    file = tmp_path / "imgs" / "1" / "source.jpg"
    assert file.read_bytes() == b"picture"
    file.write_bytes(b"kept")
    unpack(path, tmp_path)
    assert file.read_bytes() == b"kept"


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("../evil", 0o100644),
        ("imgs/../../evil", 0o100644),
        ("/tmp/evil-of-medbench", 0o100644),
        ("imgs/link", 0o120777),
    ],
)
def test_members_that_leave_the_folder_are_refused(tmp_path: Path, name: str, mode: int) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = archive(folder, (name, mode))
    with pytest.raises(WorkError, match=r"imgs\.zip: member '.*' would leave the folder; not unpacked"):
        unpack(path, folder)
    assert [p.name for p in folder.iterdir()] == ["imgs.zip"]  # nothing, not even the good member
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]
    assert not Path("/tmp/evil-of-medbench").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "text"])
def test_a_damaged_archive_is_named_and_tried_again(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "imgs.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("imgs/1.jpg", bytes(range(256)) * 40)
    good = path.read_bytes()
    bad = {"cut": good[:-40], "flipped": good[:40] + b"\xff" * 9 + good[49:], "text": b"<html>"}[damage]
    path.write_bytes(bad)
    with pytest.raises(WorkError, match=r"imgs\.zip: not a zip archive"):
        unpack(path, tmp_path)
    path.write_bytes(good)
    unpack(path, tmp_path)
    assert (tmp_path / "imgs" / "1.jpg").read_bytes() == bytes(range(256)) * 40


def kinds(loaded: Loaded) -> tuple[int, int]:
    count = Counter(item.type for item in loaded.items)
    return count["closed"], count["open"]


def images(loaded: Loaded) -> set[str]:
    return {item.image.key for item in loaded.items}


def test_vqa_rad_as_mevf_published_it(shared: Path) -> None:
    card = CATALOG.task("vqa_rad")
    train, test = (load_items(card, split, shared) for split in ("train", "test"))
    assert (len(train.items), len(test.items)) == (3064, 451)
    assert kinds(test) == (272, 179)
    assert len(images(test)) == 203
    assert images(test) <= images(train)
    fit, held = (load_items(card, split, shared) for split in ("fit", "validation"))
    assert not images(fit) & images(held)
    assert len(images(held)) == round(0.1 * len(images(train)))
    assert len(fit.items) + len(held.items) == 3064


def test_vqa_rad_as_first_published(shared: Path) -> None:
    card = CATALOG.task("vqa_rad_public")
    train, test = (load_items(card, split, shared) for split in ("train", "test"))
    assert (len(train.items), len(test.items)) == (1797, 451)
    mevf = load_items(CATALOG.task("vqa_rad"), "test", shared)
    assert {(i.question, i.image.key) for i in test.items} == {(i.question, i.image.key) for i in mevf.items}


def test_slake_in_english(shared: Path) -> None:
    card = CATALOG.task("slake")
    splits = [load_items(card, split, shared) for split in ("train", "validation", "test")]
    assert [len(loaded.items) for loaded in splits] == [4919, 1053, 1061]
    assert kinds(splits[2]) == (416, 645)
    assert [len(images(loaded)) for loaded in splits] == [450, 96, 96]
    assert len(images(splits[0]) | images(splits[1]) | images(splits[2])) == 450 + 96 + 96
