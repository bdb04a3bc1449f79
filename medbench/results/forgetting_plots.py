"""Draws a forgetting report: what each task is at while the sequence is trained, and the matrix of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medbench.results.route_plots import save
from medbench.results.study_text import Found

#: Okabe and Ito's colours but the pale ones; with their markers, methods are told apart in print, too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = "osD^vPX*"
#: The bounds, right of the lines: name -> what the marker is filled with.
_BOUNDS = {"alone": "white", "joint": "full"}


def plot_forgetting(found: Found, out: Path) -> list[Path]:
    """Draws `curves` and `matrix`, each as .png and .svg.

    Args:
        found: of `medbench.results.forgetting.forgetting_json`.
        out: the folder.
    """
    return [*save(_curves(found), out, "curves"), *save(_matrices(found), out, "matrix")]


def _cells(found: Found) -> tuple[list[str], list[str]]:
    there = [(cell["task"], cell["metric"]) for cell in found["methods"][0]["matrix"]]
    return list(found["sequence"]), list(dict.fromkeys(metric for _, metric in there))


def _curves(found: Found) -> Any:
    """A panel a task (column) and metric (row): a line a method over the stages, its interval shaded."""
    from matplotlib.figure import Figure

    tasks, metrics = _cells(found)
    figure = Figure(figsize=(1.2 + 4.0 * len(tasks), 1.3 + 2.6 * len(metrics)), layout="constrained")
    panels = figure.subplots(len(metrics), len(tasks), squeeze=False, sharex=True, sharey="row")
    place, ticks, name = _scale(found)
    for row, metric in enumerate(metrics):
        for column, task in enumerate(tasks):
            axes = panels[row][column]
            _stages(axes, ticks, tasks, task, row == 0)
            for number, method in enumerate(found["methods"]):
                _line(axes, method, (task, metric), place[method["method"]], number, ticks)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(labelsize=8)
            if column == 0:
                axes.set_ylabel(f"{metric} (%)", fontsize=9)
            if row == len(metrics) - 1:
                axes.set_xlabel(name, fontsize=9)
                axes.set_xticks(ticks)
            if row == 0:
                axes.set_title(f"tested on {task}", fontsize=10, pad=18)
    handles, labels = _legend(found)
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
    figure.suptitle(_title(found), fontsize=10)
    return figure


def _scale(found: Found) -> tuple[dict[str, dict[int, float]], list[float], str]:
    """Of each method, step -> place; the ends of the stages from 0; and the axis' name.

    Steps, where all methods take the same; else stages, since their steps do not compare.
    """
    ends: dict[str, list[int]] = {}
    steps: dict[str, list[tuple[int, int]]] = {}
    for method in found["methods"]:
        moments = sorted({(line["stage"], line["step"]) for line in method["trace"]})
        steps[method["method"]] = moments
        ends[method["method"]] = [max(s for g, s in moments if g == stage) for stage in range(moments[-1][0] + 1)]
    first, *others = ends.values()
    if all(other == first for other in others):
        return (
            {name: {s: float(s) for _, s in moments} for name, moments in steps.items()},
            list(map(float, first)),
            ("optimiser steps"),
        )
    places = {}
    for name, own in ends.items():
        stages = np.arange(len(own), dtype=float)
        places[name] = {s: float(np.interp(s, own, stages)) for _, s in steps[name]}
    return places, [float(n) for n in range(len(first))], "stages done"


def _stages(axes: Any, ticks: Sequence[float], tasks: Sequence[str], own: str, named: bool) -> None:
    """Shades the stages in turn, a little darker the one that trains the task that is tested."""
    for number, task in enumerate(tasks):
        start, end = ticks[number], ticks[number + 1]
        axes.axvspan(start, end, color="#FFF1C9" if task == own else ("#F2F2F2" if number % 2 else "#FAFAFA"), lw=0)
        if named:
            middle = (start + end) / 2
            where = axes.get_xaxis_transform()
            axes.text(middle, 1.02, f"train {task}", transform=where, ha="center", fontsize=7, color="#555555")


def _line(
    axes: Any, method: Found, cell: tuple[str, str], place: Mapping[int, float], number: int, ticks: Sequence[float]
) -> None:
    colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
    own = sorted((line for line in method["trace"] if (line["task"], line["metric"]) == cell), key=_step)
    if not own:
        return
    xs = [place[line["step"]] for line in own]
    axes.plot(xs, [100 * line["value"] for line in own], color=colour, marker=marker, markersize=4, lw=1.4, zorder=3)
    if all(line["low"] is not None for line in own):
        low, high = ([100 * line[end] for line in own] for end in ("low", "high"))
        axes.fill_between(xs, low, high, color=colour, alpha=0.13, lw=0)
    width = ticks[-1] - ticks[0]
    for shift, (name, fill) in enumerate(_BOUNDS.items(), start=1):
        for bound in method["bounds"]:
            if bound["bound"] == name and (bound["task"], bound["metric"]) == cell:
                at = ticks[-1] + width * (0.05 * shift + 0.012 * number)
                face = colour if fill == "full" else fill
                axes.plot([at], [100 * bound["value"]], marker=marker, markersize=5, mfc=face, mec=colour, ls="none")


def _step(line: Found) -> int:
    step: int = line["step"]
    return step


def _legend(found: Found) -> tuple[list[Any], list[str]]:
    from matplotlib.lines import Line2D

    handles, labels = [], []
    for number, method in enumerate(found["methods"]):
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        handles.append(Line2D([], [], color=colour, marker=marker, markersize=4))
        labels.append(method["method"])
    if any(method["bounds"] for method in found["methods"]):
        for name, fill in _BOUNDS.items():
            face = "#555555" if fill == "full" else fill
            handles.append(Line2D([], [], color="#555555", marker="o", mfc=face, ls="none", markersize=5))
            labels.append({"alone": "task alone", "joint": "all tasks at once"}[name])
    return handles, labels


def _title(found: Found) -> str:
    seeds = f"seed{'s' if len(found['seeds']) > 1 else ''} {', '.join(map(str, found['seeds']))}"
    return f"{' then '.join(found['sequence'])} on {found['backbone']}, {seeds}; 95 % intervals by image"


def _matrices(found: Found) -> Any:
    """A panel a method (column) and metric (row): figures of the tasks (columns) after each stage (rows)."""
    from matplotlib.figure import Figure

    tasks, metrics = _cells(found)
    methods = found["methods"]
    wide, high = max(2.2, 1.0 * len(tasks)), 0.55 * (len(tasks) + 1) + 0.5
    size = (1.7 + (wide + 0.2) * len(methods) + 0.8, (high + 0.5) * len(metrics) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(methods), squeeze=False, sharey=True)
    for row, metric in enumerate(metrics):
        grids = [_grid(method, tasks, metric) for method in methods]
        low, top = min(float(np.nanmin(g)) for g in grids), max(float(np.nanmax(g)) for g in grids)
        drawn: Any = None
        for column, (method, grid) in enumerate(zip(methods, grids, strict=True)):
            axes = panels[row][column]
            drawn = axes.imshow(grid, cmap="viridis", vmin=low, vmax=max(top, low + 1e-9), aspect="auto")
            _write(axes, grid, low, top)
            axes.set_title(f"{method['method']}\n{metric}" if row == 0 else metric, fontsize=9)
            axes.set_xticks(range(len(tasks)), tasks, fontsize=8, rotation=20 if len(tasks) > 3 else 0)
            after = ["nothing", *(f"{n}: {task}" for n, task in enumerate(tasks, start=1))]
            axes.set_yticks(range(len(tasks) + 1), after, fontsize=8)
            axes.tick_params(length=0)
            if column == 0:
                axes.set_ylabel("after", fontsize=8)
        bar = figure.colorbar(drawn, ax=list(panels[row]), shrink=0.9)
        bar.set_label("%", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    figure.suptitle(_title(found).partition(";")[0] + " (framed: just trained)", fontsize=10)
    return figure


def _grid(method: Found, tasks: Sequence[str], metric: str) -> Any:
    """Percent, [stages + 1, tasks]; NaN where a task has no such figure."""
    grid = np.full((len(tasks) + 1, len(tasks)), np.nan)
    for cell in method["matrix"]:
        if cell["metric"] == metric:
            grid[cell["after"], tasks.index(cell["task"])] = 100 * cell["value"]
    return grid


def _write(axes: Any, grid: Any, low: float, top: float) -> None:
    from matplotlib.patches import Rectangle

    for (row, column), value in np.ndenumerate(grid):
        if not np.isnan(value):
            dark = value < low + 0.6 * (top - low)
            axes.text(
                column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
            )
        if row == column + 1:
            axes.add_patch(
                Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="#D55E00", linewidth=1.8)
            )
