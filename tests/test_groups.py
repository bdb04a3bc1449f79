"""Groups of tasks: one name for several cards, data that a person can add to, never a part of what it says it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Toy

from medbench.catalog import Catalog, Settings, packaged
from medbench.data.group import Group
from medbench.errors import RequestError
from medbench.listing import group_rows, task_rows
from medbench.plan import Request, resolve

CATALOG = Catalog(Settings())


def user(toy: Toy, /, **groups: Any) -> Catalog:
    """A catalogue with the toy's card and these groups beside it."""
    folder = toy.card.parent / "groups"
    folder.mkdir(exist_ok=True)
    for name, content in groups.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return Catalog(Settings(tasks=(toy.card.parent,)))


def group(name: str, *tasks: str) -> dict[str, Any]:
    return {"name": name, "task": list(tasks), "metadata": {"version": 1, "description": "d"}}


@pytest.mark.parametrize("name", sorted(CATALOG.groups()))
def test_packaged_groups(name: str) -> None:
    found = CATALOG.group(name)
    assert found.name == name
    assert name not in CATALOG.paths("tasks")
    if found.group is not None:  # lm-eval sees it, so lm-eval must have its members
        assert all(CATALOG.task(member).task == member for member in found.task)


def test_the_papers_vqa_tasks_are_a_group() -> None:
    assert CATALOG.task_names("med_vqa") == ["vqa_rad", "slake", "pathvqa", "omnimedvqa"]
    assert len(CATALOG.group("all23").task) == 23
    assert set(CATALOG.group("med_vqa").task) < set(CATALOG.group("all23").task)


def test_lm_eval_has_the_same_group() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(packaged("tasks")), include_defaults=False)
    assert "med_vqa" in manager.all_groups
    assert "all23" not in manager.all_groups
    assert not {"llava_med_alignment", "llava_med_instruct"} & set(manager.all_subtasks)
    kinds = {name: CATALOG.task(name).metadata.kind for name in CATALOG.paths("tasks")}
    assert not {name for name, kind in kinds.items() if kind == "classification"} & set(manager.all_subtasks)
    assert not {"radiology9", "real_cls"} & set(manager.all_groups)
    assert manager.task_index["med_vqa"].cfg["task"] == CATALOG.task_names("med_vqa")


def test_a_group_is_its_members_in_order_each_once(toy: Toy) -> None:
    catalog = user(toy, mine=group("mine", "toy", "slake"))
    assert catalog.task_names("mine") == ["toy", "slake"]
    asked = Request(tasks=["mine", "toy"], methods=["none"], data_root=toy.root)
    (spec,) = resolve(asked, catalog).specs
    assert [test.task for test in spec.tests] == ["toy", "slake"]


def test_a_member_without_a_card_is_named_not_dropped(toy: Toy) -> None:
    catalog = user(toy, mine=group("mine", "toy", "gone", "lost"))
    with pytest.raises(RequestError, match=r"^group mine: 2 of its 3 tasks have no card yet: gone, lost; .* one: toy$"):
        catalog.task_names("mine")
    (row,) = [row for row in group_rows(catalog) if row["name"] == "mine"]
    assert (row["tasks"], row["missing"]) == (["toy", "gone", "lost"], ["gone", "lost"])
    (short,) = [row for row in task_rows(catalog) if row["name"] == "mine"]
    assert (short["kind"], short["splits"]) == ("group", ["3 tasks", "2 without a card"])


def test_the_users_groups_go_first_and_a_task_before_a_group(toy: Toy) -> None:
    catalog = user(toy, med_vqa=group("med_vqa", "toy"), toy=group("toy", "slake"))
    assert catalog.task_names("med_vqa") == ["toy"]
    assert catalog.task_names("toy") == ["toy"]
    assert "toy" in catalog.task_names("t*")


def test_near_names_of_groups_are_offered() -> None:
    with pytest.raises(RequestError, match=r"unknown task 'med_vqu'; did you mean med_vqa\b"):
        CATALOG.task("med_vqu")
    with pytest.raises(RequestError, match="med_vqa is a group of tasks; name one: vqa_rad, slake, pathvqa"):
        CATALOG.task("med_vqa")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "mine", "task": ["toy"]}, "metadata: is missing; add it"),
        ({**group("mine"), "task": []}, "task: Tuple should have at least 1 item"),
        (group("mine", "toy", "toy"), "task: names a task twice"),
        (group("other", "toy"), "is named 'other' but the file 'mine'"),
        ({**group("mine", "toy"), "group": "mine"}, "either 'group' .* or 'name'"),
        ({**group("mine", "toy"), "tasks": ["a"]}, "tasks: is not a field of this file"),
    ],
)
def test_a_broken_group_names_file_and_field(toy: Toy, content: Any, message: str) -> None:
    catalog = user(toy, mine=content)
    file = toy.card.parent / "groups" / "mine.yaml"
    with pytest.raises(RequestError, match=f"^{re.escape(str(file))}: .*{message}") as caught:
        catalog.task_names("mine")
    assert "\n" not in str(caught.value)


def test_a_group_is_what_its_file_says(tmp_path: Path) -> None:
    assert Group.parse(group("x", "b", "a"), tmp_path / "x.yaml").task == ("b", "a")
