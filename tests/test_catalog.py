"""Names are found in the user's folders and in other packages before our own; what is wrong there is named."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Toy

from medbench.catalog import Catalog, Settings, packaged
from medbench.errors import RequestError


@pytest.fixture(autouse=True)
def not_imported() -> Iterator[None]:
    """No test sees the `extra` that another one imported."""
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "extra"]:
        del sys.modules[name]


def package(folder: Path, content: str, kind: str, names: list[str], init: bool) -> None:
    """An installed package `extra` with YAML files in `extra/cards`, and its entry point."""
    cards = folder / "extra" / "cards"
    cards.mkdir(parents=True)
    (folder / "extra" / "__init__.py").touch()
    if init:
        (cards / "__init__.py").write_text("raise AssertionError('imported')")
    for name in names:
        (cards / f"{name}.yaml").write_text(content.replace("NAME", name))
    info = folder / "extra-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: extra\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[medbench.{kind}]\nextra = extra.cards\n")


@pytest.mark.parametrize("init", [True, False])
def test_another_package_can_bring_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: bool) -> None:
    recipe = "name: NAME\ndescription: d\nsource: theirs\ntuner: lora\n"
    package(tmp_path, recipe, "methods", ["mine", "lora"], init)
    monkeypatch.syspath_prepend(tmp_path)
    catalog = Catalog(Settings())
    assert catalog.method("mine").source == "theirs"
    assert catalog.method("lora").source == "theirs"  # before what this package carries
    assert catalog.method("none").source != "theirs"


def test_another_package_can_bring_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Toy) -> None:
    content = toy.card.read_text().replace("task: toy", "task: NAME")
    package(tmp_path, content, "tasks", ["theirs"], init=False)
    monkeypatch.syspath_prepend(tmp_path)
    assert Catalog(Settings()).task("theirs").metadata.dataset == "toy"
    assert "theirs" in Catalog(Settings()).task_names("*")


def test_an_entry_point_to_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, "", "tasks", [], init=False)
    shutil.rmtree(tmp_path / "extra")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RequestError, match=r"entry point extra of medbench\.tasks: 'extra\.cards' is not a package"):
        Catalog(Settings()).task("vqa_rad")


def test_the_users_folder_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy: Toy) -> None:
    shutil.copy(packaged("tasks") / "slake.yaml", toy.card.parent / "slake.yaml")
    (tmp_path / "medbench.toml").write_text('data_root = "data"\ntasks = ["cards"]\n')
    monkeypatch.chdir(tmp_path)
    catalog = Catalog()
    assert catalog.settings.data_root == tmp_path / "data"
    assert catalog.task("toy").metadata.dataset == "toy"
    assert catalog.paths("tasks")["slake"] == toy.card.parent / "slake.yaml"
    assert catalog.task_names("t?y") == ["toy"]


def test_a_path_is_taken_as_it_is(tmp_path: Path, toy: Toy) -> None:
    odd = tmp_path / "a [1] folder" / "toy.yaml"
    odd.parent.mkdir()
    shutil.copy(toy.card, odd)
    catalog = Catalog(Settings())
    (name,) = catalog.task_names(str(odd))
    assert catalog.task(name) == catalog.task(str(toy.card))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data_root = 3", "data_root: should be text, is 3"),
        ('tasks = "cards"', 'tasks: should be a list of folders like ."cards".'),
        ("methods = [1]", "methods: should be a list of folders"),
        ('task = ["cards"]', "unknown setting 'task'; did you mean tasks?"),
        ("tasks = [", "not TOML"),
        ('tasks = ["gone"]', r"tasks folder .*gone does not exist \(named in medbench.toml\)"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str) -> None:
    (tmp_path / "medbench.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=message):
        Catalog().paths("tasks")


def test_unknown_names_are_answered_with_near_ones() -> None:
    catalog = Catalog(Settings())
    with pytest.raises(RequestError, match=r"unknown task 'vqa_rat'; did you mean vqa_rad"):
        catalog.task("vqa_rat")
    with pytest.raises(RequestError, match=r"unknown method 'xyz'; known: .*lora.*spectral_moe"):
        catalog.method("xyz")
    with pytest.raises(RequestError, match=r"no task matches 'zzz\*'; known: .*slake"):
        catalog.task_names("zzz*")
