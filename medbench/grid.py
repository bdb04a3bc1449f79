"""Grids: axes over the fields of a request, one YAML file a grid under `baselines/grids/`. Data only, nothing is run.

A grid is a list of points, a point a mapping of fields to values, and a point with the grid's seeds a request like any
other (`request_of`). A sweep over them is a list of independent RunSpecs (`medbench.sweep`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from medbench.data.card import validated
from medbench.errors import RequestError
from medbench.files import canonical_json
from medbench.grid_fields import (
    FIELDS,
    Fields,
    Point,
    axis_values,
    check_keys,
    hint,
    plain_point,
    plain_settings,
    same,
    shown_point,
)
from medbench.request import Request
from medbench.tuners import get_tuner

if TYPE_CHECKING:
    from medbench.catalog import Catalog

_FROZEN = ConfigDict(extra="forbid", frozen=True)
#: A grid of more points is a mistake: nobody could run it.
MOST_POINTS = 10_000


class Plot(BaseModel):
    """What to draw: `x` alone: only that axis; `x` and `y`: also a heat map of the two; `metric`: instead of all."""

    model_config = _FROZEN

    x: str | None = None
    y: str | None = None
    metric: str | None = None


class Grid(BaseModel):
    """A grid.

    Attributes:
        base: what all points have in common.
        axes: field -> its values; the points are their product, the first axis the slowest.
        seeds: each point is run with each of them.
        cells: further points, each with its own fields; an axis that is not among them is as the base has it.
        exclude: parts of points of the product that are left out.
        plot: what to draw.
        data_root: whether local data is needed.
        path: the file.
    """

    model_config = _FROZEN

    name: str
    description: str
    source: str
    base: Fields = Fields()
    axes: dict[str, list[Any]] = {}
    seeds: list[Annotated[int, Field(strict=True)]] = [0]
    cells: list[Point] = []
    exclude: list[Point] = []
    plot: Plot = Plot()
    data_root: bool = False
    path: Path = Field(default=Path("grid"), exclude=True)

    @classmethod
    def parse(cls, content: dict[str, Any], path: Path) -> Grid:
        """Checks a grid's content.

        Raises:
            RequestError: an unknown key or axis, an empty axis, a value twice, an exclusion of nothing, no point left,
                ...; names file and field, with near matches.
        """
        allowed = [name for name in cls.model_fields if name != "path"]
        check_keys(content, allowed, f"{path}: ")
        for part, model in (("base", Fields), ("plot", Plot)):
            if isinstance(content.get(part), dict):
                check_keys(content[part], list(model.model_fields), f"{path}: {part}.")
        grid = validated(cls, content | {"path": path}, path)
        if grid.name != path.stem:
            raise RequestError(f"{path}: name: is {grid.name!r} but the file is named {path.stem!r}")
        check_seeds(grid.seeds, f"{path}: seeds")
        plain = {
            "base": grid.base.model_copy(update={"set": plain_settings(grid.base.set, f"{path}: base.set.")}),
            "axes": {name: axis_values(name, values, f"{path}: axes.") for name, values in grid.axes.items()},
            "cells": [plain_point(cell, f"{path}: cells.{n}.") for n, cell in enumerate(grid.cells)],
            "exclude": [plain_point(part, f"{path}: exclude.{n}.") for n, part in enumerate(grid.exclude)],
        }
        grid = grid.model_copy(update=plain)
        grid._check_axes_named()
        grid.points()
        return grid

    def _check_axes_named(self) -> None:
        named = [(f"exclude.{n}", key) for n, part in enumerate(self.exclude) for key in part]
        named += [(f"plot.{sign}", key) for sign in "xy" for key in [getattr(self.plot, sign)] if key is not None]
        for where, key in named:
            if key not in self.axes:
                raise RequestError(f"{self.path}: {where}: {key!r} is no axis of this grid; {hint(key, self.axes)}")
        if self.plot.y is not None and self.plot.y == (self.plot.x or self.plot.y):
            raise RequestError(f"{self.path}: plot.y: needs another axis as plot.x")

    def points(self) -> list[Point]:
        """The points: the product of the axes less what is excluded, then the further cells. No point twice.

        Raises:
            RequestError: two equal points, an exclusion that fits none, or no point at all.
        """
        if (count := math.prod(map(len, self.axes.values()))) > MOST_POINTS:
            raise RequestError(f"{self.path}: {count:,} points; at most {MOST_POINTS:,}, so take values off the axes")
        product = [dict(zip(self.axes, values, strict=True)) for values in itertools.product(*self.axes.values())]
        product = product if self.axes else []
        for n, part in enumerate(self.exclude):
            if not part:
                raise RequestError(f"{self.path}: exclude.{n}: is empty; name an axis and its value")
            if not any(_fits(point, part) for point in product):
                raise RequestError(f"{self.path}: exclude.{n}: fits no point; its values must be those of the axes")
        found = [point for point in product if not any(_fits(point, part) for part in self.exclude)]
        found += self.cells
        seen: dict[str, Point] = {}
        for point in found:
            if seen.setdefault(canonical_json(same(self.whole(point))), point) is not point:
                raise RequestError(f"{self.path}: the point {shown_point(point)} is there twice; remove one")
        if not found:
            raise RequestError(f"{self.path}: no point; give axes with values, or cells")
        return found

    def whole(self, point: Point) -> Point:
        """A point over the base: every field that either sets."""
        return self.base.model_dump(exclude={"set"}) | self.base.set | point

    def methods(self) -> list[str]:
        """The methods of all points, once each."""
        return list(dict.fromkeys(self.whole(point)["method"] for point in self.points()))


def check_seeds(seeds: Sequence[int], where: str) -> list[int]:
    """The seeds of a request, if they are some: from 0 to 2**32 - 1 (what numpy takes), none twice."""
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise RequestError(f"{where}: expected different whole numbers from 0 to 2**32 - 1, for example 0,1,2")
    return list(seeds)


def request_of(
    grid: Grid, point: Point, catalog: Catalog, data_root: Path | None, seeds: Sequence[int] | None = None
) -> Request:
    """The request that a point is, for `medbench.plan.resolve`.

    An adapter setting that the point's method does not have is left to the other methods of the grid, as in
    `medbench run --method a,b --set adapter.x=...`; such points are one run (`check_settings` refuses what none has).
    """
    whole = grid.whole(point)
    fields = {name: whole[name] for name in FIELDS if name != "method"}
    own = get_tuner(catalog.method(whole["method"]).tuner).defaults
    settings = {key: value for key, value in whole.items() if key not in FIELDS}
    settings = {k: v for k, v in settings.items() if not k.startswith("adapter.") or k.partition(".")[2] in own}
    given = grid.seeds if seeds is None else seeds
    return Request(methods=[whole["method"]], settings=settings, seeds=given, data_root=data_root, **fields)


def check_settings(grid: Grid, catalog: Catalog) -> None:
    """Refuses an `adapter.x` that none of the grid's methods has.

    Raises:
        RequestError: names file and axis, with near matches; or an unknown method.
    """
    methods = grid.methods()
    known = {f"adapter.{name}" for method in methods for name in get_tuner(catalog.method(method).tuner).defaults}
    places = [("base.set", grid.base.set), ("axes", grid.axes)]
    places += [(f"cells.{n}", cell) for n, cell in enumerate(grid.cells)]
    for where, keys in places:
        for key in keys:
            if key.startswith("adapter.") and key not in known:
                names = ", ".join(methods)
                raise RequestError(f"{grid.path}: {where}.{key}: no setting of {names}; {hint(key, known)}")


def _fits(point: Point, part: Point) -> bool:
    return all(name in point and same(point[name]) == same(value) for name, value in part.items())
