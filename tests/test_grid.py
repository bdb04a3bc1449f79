"""Grids: what they expand to, what is refused, and the ready ones."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.catalog import Catalog, packaged, read_yaml
from medbench.errors import RequestError
from medbench.grid import Grid, request_of
from medbench.grid_fields import shown_point
from medbench.results.axis_table import numeric
from medbench.sweep import plan_sweep

VALUES: dict[str, list[Any]] = {
    "adapter.init": ["spectral", "principal", "minor", "random", "zero"],
    "adapter.num_experts": [1, 2, 4, 8],
    "adapter.rho": [1.0, 10.0, 100.0],
    "training.lr": [1e-4, 1e-3, 1e-2],
    "train_limit": [8, 16, 32],
    "adapter.residual": [True, False],
}


def parsed(**content: Any) -> Grid:
    return Grid.parse({"name": "g", "description": "d", "source": "s", **content}, Path("g.yaml"))


def some(name: str) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(VALUES[name]), min_size=1, unique_by=repr)


@st.composite
def axes(draw: st.DrawFn) -> dict[str, list[Any]]:
    names = draw(st.lists(st.sampled_from(sorted(VALUES)), min_size=1, max_size=3, unique=True))
    return {name: draw(some(name)) for name in names}


@settings(deadline=None, max_examples=60)
@given(axes(), st.data())
def test_the_points_are_the_product_less_what_is_excluded_and_the_cells(
    chosen: dict[str, list[Any]], data: st.DataObject
) -> None:
    product = [dict(zip(chosen, values, strict=True)) for values in itertools.product(*chosen.values())]
    part = data.draw(st.sampled_from(product))
    part = {name: part[name] for name in data.draw(st.lists(st.sampled_from(list(part)), min_size=1, unique=True))}
    cells = [{**point, "limit": 3} for point in data.draw(st.lists(st.sampled_from(product), unique_by=repr))]
    left_out = sum(all(point[name] == value for name, value in part.items()) for point in product)
    if left_out == len(product) and not cells:
        with pytest.raises(RequestError, match="no point"):
            parsed(axes=chosen, exclude=[part])
        return
    points = parsed(axes=chosen, exclude=[part], cells=cells).points()
    assert len(points) == len(product) - left_out + len(cells)
    assert points[len(points) - len(cells) :] == cells
    places = [[chosen[name].index(point[name]) for name in chosen] for point in points[: len(points) - len(cells)]]
    assert places == sorted(places)  # the first axis is the slowest, each in the order of the file


@settings(deadline=None, max_examples=20)
@given(axes(), st.randoms())
def test_the_requests_do_not_depend_on_the_order_of_keys(chosen: dict[str, list[Any]], shuffle: random.Random) -> None:
    mixed = list(chosen.items())
    shuffle.shuffle(mixed)
    over = {"adapter.eta": 1.0, "adapter.top_k": 1}
    catalog = Catalog()

    def requests(content: dict[str, list[Any]], given: dict[str, Any]) -> list[str]:
        grid = parsed(axes=content, base={"tasks": "phantom_vqa", "set": given})
        found = [request_of(grid, point, catalog, None) for point in grid.points()]
        return sorted(json.dumps(vars(request), sort_keys=True, default=str) for request in found)

    assert requests(chosen, over) == requests(dict(mixed), dict(reversed(over.items())))


def test_identities_do_not_depend_on_the_order_of_keys_nor_on_how_a_number_is_written() -> None:
    def identities(axes: dict[str, list[Any]]) -> set[str]:
        grid = parsed(base={"tasks": "phantom_vqa", "limit": 4, "train_limit": 8}, axes=axes)
        return {spec.identity for cell in plan_sweep(grid, Catalog()).cells for spec in cell.specs}

    one = identities({"adapter.rho": [1.0, 10.0], "adapter.init": ["spectral", "minor"]})
    other = identities({"adapter.init": ["minor", "spectral"], "adapter.rho": ["1e1", 1]})
    assert one == other and len(one) == 4


def test_what_is_the_same_run_is_one_cell_without_the_axes_that_make_no_difference() -> None:
    grid = parsed(
        base={"tasks": "phantom_vqa", "limit": 4, "train_limit": 8},
        axes={"method": ["none", "lora"], "training.lr": [0.001, 0.01], "adapter.alpha_over_r": [1, 2]},
        seeds=[0, 1],
    )
    cells = plan_sweep(grid, Catalog()).cells
    assert [cell.point for cell in cells if cell.point["method"] == "none"] == [{"method": "none"}]
    assert [len(cell.specs) for cell in cells] == [1, 2, 2, 2, 2]


def test_an_adapter_setting_is_left_to_the_methods_that_have_it() -> None:
    grid = parsed(base={"tasks": "phantom_vqa"}, axes={"method": ["lora", "spectral_moe"], "adapter.top_k": [1, 2]})
    assert [len(cell.point) for cell in plan_sweep(grid, Catalog()).cells] == [1, 2, 2]


def test_sequences_and_mixtures_are_values_of_an_axis() -> None:
    both = "phantom_vqa_ct,phantom_vqa_mr"
    grid = parsed(
        base={"tasks": both, "train_limit": 8, "limit": 4},
        axes={"train_tasks": [["phantom_vqa_ct", "phantom_vqa_mr"], ["phantom_vqa_mr", "phantom_vqa_ct"], both]},
        cells=[{"train_tasks": [both], "mixture.phantom_vqa_ct": 2}],
    )
    specs = [cell.specs[0] for cell in plan_sweep(grid, Catalog()).cells]
    trained = [[[part.data.task[-2:] for part in stage.mixture] for stage in spec.stages] for spec in specs]
    assert trained == [[["ct"], ["mr"]], [["mr"], ["ct"]], [["ct", "mr"]], [["ct", "mr"]]]
    assert [part.weight for part in specs[-1].stages[0].mixture] == [2.0, 1.0]
    assert shown_point(grid.points()[0]) == "train_tasks=phantom_vqa_ct then phantom_vqa_mr"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"axes": {"adapter.init": []}}, r"g.yaml: axes.adapter.init: is empty"),
    ({"axes": {"init": ["zero"]}}, r"g.yaml: axes.init: .*did you mean adapter.init\?"),
    ({"axes": {"training.lrr": [1]}}, r"axes.training.lrr: .*did you mean training.lr\?"),
    ({"axes": {"train_limits": [1]}}, r"axes.train_limits: .*did you mean train_limit\?"),
    ({"axes": {"seeds": [1]}}, r"axes.seeds: no field"),
    ({"axes": {"adapter.rho": [1, 1.0]}}, r"axes.adapter.rho: the value 1 is there twice"),
    ({"axes": {"split": ["tests"]}}, r"axes.split: 'tests'"),
    ({"axes": {"limit": [True]}}, r"axes.limit: True"),
    ({"axes": {"adapter.rho": [float("nan")]}}, r"axes.adapter.rho: nan"),
    ({"axes": {"adapter.rho": [[1, 2]]}}, r"axes.adapter.rho: \[1, 2\]"),
    ({"axes": {"adapter.rho": [10**400]}}, r"axes.adapter.rho: .* a finite number"),
    ({"axes": {"limit": list(range(1, 102)), "train_limit": list(range(1, 102))}}, r"10,201 points; at most 10,000"),
    ({"axis": {}}, r"g.yaml: axis: unknown; did you mean axes\?"),
    ({"base": {"methods": "lora"}}, r"g.yaml: base.methods: unknown; did you mean method\?"),
    ({"base": {"set": {"budget": "2M"}}}, r"base.set.budget: is a field of the request"),
    ({"axes": {"limit": [1, 2]}, "exclude": [{"limit": 3}]}, r"exclude.0: fits no point"),
    ({"axes": {"limit": [1, 2]}, "exclude": [{}]}, r"exclude.0: is empty; name an axis and its value"),
    ({"axes": {"limit": [1, 2]}, "exclude": [{"train_limit": 3}]}, r"exclude.0: 'train_limit' is no axis"),
    ({"axes": {"limit": [1, 2]}, "cells": [{"limit": 2}]}, r"the point limit=2 is there twice"),
    ({"axes": {"limit": [1]}, "base": {"shots": 2}, "cells": [{"limit": 1, "shots": 2}]}, "is there twice"),
    ({"axes": {"limit": [1, 2]}, "plot": {"x": "limits"}}, r"plot.x: 'limits' is no axis .*did you mean limit\?"),
    ({"axes": {"limit": [1]}, "seeds": [0, 0]}, r"seeds: expected different"),
    ({"axes": {"limit": [1]}, "seeds": []}, r"seeds: expected different"),
    ({}, r"g.yaml: no point"),
    ({"axes": {"limit": [1]}, "name": "h"}, r"name: is 'h' but the file is named 'g'"),
]


@pytest.mark.parametrize(("content", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_grid_is_refused_with_file_and_field(content: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        parsed(**content)
    assert str(caught.value).startswith("g.yaml: ") and "\n" not in str(caught.value)


def test_a_setting_that_no_method_of_the_grid_has_names_axis_and_near_matches() -> None:
    grid = parsed(base={"tasks": "phantom_vqa"}, axes={"adapter.inti": ["zero"]})
    with pytest.raises(RequestError, match=r"g.yaml: axes.adapter.inti: .*did you mean adapter.init\?"):
        plan_sweep(grid, Catalog())


def test_a_grid_is_found_by_name_in_the_users_folder_and_by_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "mine" / "grids"
    own.mkdir(parents=True)
    text = "{name: own, description: d, source: s, base: {tasks: phantom_vqa}, axes: {limit: [1, 2]}}"
    (own / "own.yaml").write_text(text)
    (tmp_path / "medbench.toml").write_text('methods = ["mine"]')
    monkeypatch.chdir(tmp_path)
    catalog = Catalog()
    assert catalog.grid("own") == catalog.grid(str(Path("mine/grids/own.yaml").absolute())).model_copy(
        update={"path": catalog.grid("own").path}
    )
    assert catalog.grid("initialisation").path.is_relative_to(packaged("baselines"))
    with pytest.raises(RequestError, match=r"unknown grid 'initialization'; did you mean initialisation"):
        catalog.grid("initialization")


@pytest.mark.parametrize("path", sorted((ROOT / "baselines" / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_cell_of_a_ready_grid_can_exist(path: Path) -> None:
    catalog = Catalog()
    grid = Grid.parse(read_yaml(path), path)
    found = plan_sweep(grid, catalog)
    assert [cell.problem for cell in found.cells] == [None] * len(grid.points())
    tasks = {card.metadata.access for cell in found.cells if cell.plan for card in cell.plan.cards.values()}
    assert grid.data_root == (tasks != {"generated"})


def test_the_published_initialisations_are_the_runs_that_the_command_line_gives() -> None:
    """Identities read from `spec.json` of runs done with `medbench run --set adapter.init=... --train-limit 2000`."""
    found = plan_sweep(Catalog().grid("initialisation"), Catalog())
    names = {spec.identity[:12]: shown_point(cell.point) for cell in found.cells for spec in cell.specs}
    assert len(names) == 44
    for run, point in {
        "568bddd6da95": "tasks=slake adapter.init=spectral adapter.scaling=consistent",
        "c832d2c9bc69": "tasks=vqa_rad adapter.init=principal adapter.scaling=alpha",
        "bd33b6c35d51": "tasks=slake adapter.init=spectral adapter.scaling=consistent adapter.router=none",
    }.items():
        assert names[run] == point


def test_numbers_and_categories() -> None:
    assert numeric("adapter.rho", [10, 1.0]) == [10.0, 1.0]
    assert numeric("budget", ["rank=8", "rank=16"]) == [8.0, 16.0]
    assert numeric("budget", ["like=lora:8", "like=lora"]) is None
    assert numeric("budget", ["rank=8", "2M"]) is None
    assert numeric("adapter.residual", [True, False]) is None
