"""Draws a grid: one figure an axis (a line over numbers, points over categories), and two axes as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.files import canonical_json
from medbench.grid import Grid
from medbench.grid_fields import same, shown
from medbench.results.axis_table import Figure, numeric
from medbench.results.route_plots import expert_colours, save
from medbench.scoring.figures import scale_of

_MARKERS = "osD^vP*X"
#: More lines than this cannot be told apart.
MOST_SERIES = 16
#: Between two series over categories, and what all may take; categories are 1 apart.
_ASIDE, _WIDTH = 0.12, 0.6
#: From this ratio of the largest to the smallest on, an axis is drawn in logarithms.
_LOGARITHMIC = 8.0


@dataclass(frozen=True)
class _Axis:
    """An axis to be drawn along: its values in order, their places, and whether these are numbers."""

    name: str
    values: list[Any]
    places: list[float]
    is_numeric: bool

    def place(self, figure: Figure) -> float | None:
        """Where a figure lies; None for one without this axis, or beside its values."""
        if self.name not in figure.point:
            return None
        key = same(figure.point[self.name])
        return next((p for p, v in zip(self.places, self.values, strict=True) if same(v) == key), None)


def plot_grid(grid: Grid, found: Sequence[Figure], out: Path, about: str) -> tuple[list[Path], list[str]]:
    """Draws `<grid>-<axis>` for each axis with two values or more, and `<grid>-<x>-by-<y>-<metric>`, as .png and .svg.

    Panels are the metrics (down) and the tasks (across); the lines of a panel are the combinations of the other axes,
    a point that lacks the axis (an untrained model at every learning rate) is a dashed line across. Intervals are those
    of the table. A heat map is drawn of the two axes that the grid's `plot` names, or where just two axes are numeric.

    Args:
        grid: its axes and what it says of plots.
        found: the figures of its finished cells.
        out: the folder.
        about: the second line of the titles.

    Returns:
        The files, and why an axis was not drawn, in sentences.
    """
    hints = grid.plot
    found = [f for f in found if f.estimate.value is not None and f.metric in (hints.metric or f.metric)]
    axes = {n: _axis(n, values, found) for n, values in grid.axes.items() if n != "tasks" and len(values) > 1}
    files: list[Path] = []
    notes: list[str] = []
    wanted = [name for name in axes if hints.x is None or name in (hints.x, hints.y)]
    for name in wanted:
        drawn = [f for f in found if axes[name].place(f) is not None]
        lines = max((len(_series(panel, name)) for panel in _panels(drawn).values()), default=0)
        if len({axes[name].place(f) for f in drawn}) < 2:
            notes.append(f"{name}: not drawn, fewer than two of its values have results")
        elif lines > MOST_SERIES:
            notes.append(f"{name}: not drawn, {lines} lines in one panel cannot be told apart (at most {MOST_SERIES})")
        else:
            files += _draw_axis(axes[name], found, out, f"{grid.name}-{_file(name)}", f"{grid.name}\n{about}")
    for pair in _pairs(grid, axes):
        files += _draw_maps(pair, found, out, grid.name, about)
    return files, notes


def _axis(name: str, values: Sequence[Any], found: Sequence[Figure]) -> _Axis:
    """Numbers in rising order; categories in that of the grid."""
    numbers = numeric(name, values)
    if numbers is None:
        return _Axis(name, list(values), [float(n) for n in range(len(values))], False)
    order = sorted(range(len(values)), key=lambda n: numbers[n])
    return _Axis(name, [values[n] for n in order], [numbers[n] for n in order], True)


def _pairs(grid: Grid, axes: Mapping[str, _Axis]) -> list[tuple[_Axis, _Axis]]:
    names = [grid.plot.x, grid.plot.y]
    if grid.plot.y is None:
        names = [name for name, axis in axes.items() if axis.is_numeric] if grid.plot.x is None else []
    if len(names) != 2 or any(name not in axes for name in names):
        return []
    return [(axes[names[0]], axes[names[1]])]  # type: ignore[index]


def _panels(found: Sequence[Figure]) -> dict[tuple[str, str], list[Figure]]:
    """(metric, task) -> its figures."""
    panels: dict[tuple[str, str], list[Figure]] = {}
    for figure in found:
        panels.setdefault((figure.metric, figure.task), []).append(figure)
    return panels


def _series(panel: Sequence[Figure], *axes: str) -> dict[str, list[Figure]]:
    """The figures by what sets them apart but for these axes; fields in which all agree are not named."""
    names = list(dict.fromkeys(name for figure in panel for name in figure.point if name not in axes))
    values = {name: {canonical_json(same(figure.point.get(name, "-"))) for figure in panel} for name in names}
    told = [name for name in names if len(values[name]) > 1 and name != "tasks"]
    series: dict[str, list[Figure]] = {}
    for figure in panel:
        label = ", ".join(f"{_short(name)} {shown(figure.point[name])}" for name in told if name in figure.point)
        series.setdefault(label, []).append(figure)
    return series


def _draw_axis(axis: _Axis, found: Sequence[Figure], out: Path, name: str, title: str) -> list[Path]:
    from matplotlib.figure import Figure as Canvas

    panels = _panels(found)
    metrics, tasks = (list(dict.fromkeys(key[n] for key in panels)) for n in (0, 1))
    labels = list(dict.fromkeys(label for panel in panels.values() for label in _series(panel, axis.name)))
    colours = dict(zip(labels, expert_colours(len(labels)), strict=True))
    width = 1.4 + max(3.2, 0.75 * len(axis.values)) * len(tasks)
    canvas = Canvas(figsize=(width, 1.5 + 2.5 * len(metrics)), layout="constrained")
    places = canvas.subplots(len(metrics), len(tasks), squeeze=False)
    for row, metric in zip(places, metrics, strict=True):
        for axes, task in zip(row, tasks, strict=True):
            if (metric, task) not in panels:
                axes.set_axis_off()
                continue
            _draw_panel(axes, axis, _series(panels[metric, task], axis.name), colours, scale_of(metric))
            axes.set_title(task, fontsize=9)
            axes.set_xlabel(axis.name, fontsize=8)
            axes.set_ylabel(metric + (" (%)" if scale_of(metric) == 100 else ""), fontsize=8)
    handles: dict[str, Any] = {}
    for axes in places.flat:
        handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if len(labels) > 1:
        names, marks = list(handles), list(handles.values())
        canvas.legend(marks, names, loc="outside lower center", ncols=min(4, len(names)), fontsize=7, frameon=False)
    canvas.suptitle(title, fontsize=9)
    return save(canvas, out, name)


def _draw_panel(
    axes: Any, axis: _Axis, series: Mapping[str, Sequence[Figure]], colours: Mapping[str, Any], scale: float
) -> None:
    labels = list(colours)
    for label, figures in series.items():
        number = labels.index(label)
        # Categories: side by side, so that their intervals do not cover one another. Numbers stay where they are.
        aside = 0.0 if axis.is_numeric else (number - (len(labels) - 1) / 2) * min(_ASIDE, _WIDTH / len(labels))
        style = {"color": colours[label], "label": label or None}
        marker = _MARKERS[number % len(_MARKERS)]
        placed = [(place, figure) for figure in figures if (place := axis.place(figure)) is not None]
        if placed:
            placed.sort(key=lambda pair: pair[0])
            _draw_points(axes, placed, aside, style | {"marker": marker}, scale, axis.is_numeric)
        for figure in figures:
            if axis.name not in figure.point:
                axes.axhline(scale * (figure.estimate.value or 0.0), linestyle="--", linewidth=1.0, zorder=1, **style)
    positive = [place for place in axis.places if place > 0]
    if axis.is_numeric and min(axis.places) >= 0 and positive[-1] >= _LOGARITHMIC * positive[0]:
        if positive == axis.places:
            axes.set_xscale("log")
        else:  # with a zero: linear up to the smallest number
            axes.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    axes.set_xticks(axis.places, [shown(value) for value in axis.values], fontsize=7)
    axes.set_xticks([], minor=True)
    if not axis.is_numeric:
        axes.set_xlim(-0.5, len(axis.places) - 0.5)
        if max(len(shown(value)) for value in axis.values) > 9:
            axes.tick_params(axis="x", rotation=20)
    axes.tick_params(labelsize=7)
    axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_points(
    axes: Any,
    placed: Sequence[tuple[float, Figure]],
    aside: float,
    style: Mapping[str, Any],
    scale: float,
    joined: bool,
) -> None:
    """Values with their intervals, `aside` to the right; an interval that could not be had is left out."""
    x = [place + aside for place, _ in placed]
    y = [scale * (figure.estimate.value or 0.0) for _, figure in placed]
    axes.plot(x, y, markersize=4, linewidth=1.2 if joined else 0.0, zorder=3, **style)
    for place, (_, figure) in zip(x, placed, strict=True):
        ends = [figure.estimate.low, figure.estimate.high]
        if None not in ends:
            interval = [scale * (end or 0.0) for end in ends]
            axes.plot([place] * 2, interval, color=style["color"], linewidth=1.0, zorder=2)


def _draw_maps(pair: tuple[_Axis, _Axis], found: Sequence[Figure], out: Path, grid: str, about: str) -> list[Path]:
    """A figure a metric: panels are the tasks, and the combinations of further axes."""
    across, up = pair
    files = []
    placed = [f for f in found if across.place(f) is not None and up.place(f) is not None]
    for metric in dict.fromkeys(figure.metric for figure in placed):
        panels: dict[str, list[Figure]] = {}
        for (_, task), panel in _panels([f for f in placed if f.metric == metric]).items():
            for label, figures in _series(panel, across.name, up.name).items():
                panels[f"{task}\n{label}".strip()] = figures
        name = f"{grid}-{_file(across.name)}-by-{_file(up.name)}-{metric}"
        files += _draw_map(across, up, panels, metric, out, name, f"{grid}: {metric}\n{about}")
    return files


def _draw_map(
    across: _Axis, up: _Axis, panels: Mapping[str, Sequence[Figure]], metric: str, out: Path, name: str, title: str
) -> list[Path]:
    """Every square has its value and, below, its interval; a square without a result stays white."""
    import numpy as np
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure as Canvas

    scale = scale_of(metric)
    columns, rows = len(across.values), len(up.values)
    size = (1.6 + (0.9 + 0.75 * columns) * len(panels), 1.5 + 0.5 * rows)
    canvas = Canvas(figsize=size, layout="constrained")
    places = canvas.subplots(1, len(panels), squeeze=False)[0]
    values = [scale * (f.estimate.value or 0.0) for figures in panels.values() for f in figures]
    shades = Normalize(min(values), max(values) if max(values) > min(values) else min(values) + 1)
    image: Any = None
    for axes, (label, figures) in zip(places, panels.items(), strict=True):
        square = np.full((rows, columns), np.nan)
        for figure in figures:
            column, row = across.places.index(across.place(figure) or 0.0), up.places.index(up.place(figure) or 0.0)
            square[row, column] = scale * (figure.estimate.value or 0.0)
            dark = shades(square[row, column]) < 0.6
            axes.text(column, row, _figures(figure, scale), ha="center", va="center", fontsize=6.5,
                      color="white" if dark else "black")  # fmt: skip
        image = axes.imshow(square, norm=shades, cmap="viridis", aspect="auto", origin="lower")
        axes.set_xticks(range(columns), [shown(value) for value in across.values], fontsize=7)
        axes.set_yticks(range(rows), [shown(value) for value in up.values], fontsize=7)
        axes.set_xlabel(across.name, fontsize=8)
        axes.set_ylabel(up.name, fontsize=8)
        axes.set_title(label, fontsize=9)
    bar = canvas.colorbar(image, ax=list(places), pad=0.02)
    bar.set_label(metric + (" (%)" if scale == 100 else ""), fontsize=8)
    bar.ax.tick_params(labelsize=7)
    canvas.suptitle(title, fontsize=9)
    return save(canvas, out, name)


def _figures(figure: Figure, scale: float) -> str:
    places = 1 if scale == 100 else 2
    text = f"{scale * (figure.estimate.value or 0.0):.{places}f}"
    low, high = figure.estimate.low, figure.estimate.high
    if low is None or high is None:
        return text
    return f"{text}\n{scale * low:.{places}f}-{scale * high:.{places}f}"


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _file(name: str) -> str:
    return name.replace(".", "-")
