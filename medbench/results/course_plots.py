"""Draws the courses of traced runs: their losses, and their figures at the points of the trace, over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.grid_fields import Point, shown_point
from medbench.results.record import is_finished, read_record
from medbench.results.route_plots import expert_colours, save
from medbench.results.traces import TRACE_RESAMPLES, read_trace
from medbench.scoring.bootstrap import Estimate
from medbench.scoring.figures import scale_of
from medbench.scoring.measures import aligned
from medbench.scoring.stats import estimate_metrics
from medbench.scoring.weighted import Array
from medbench.spec import RunSpec

_MARKERS = "osD^vP*X"
#: Parts of a training over which the drawn losses are means.
_PARTS = 40


@dataclass(frozen=True)
class Course:
    """A row of a grid on one task, over its seeds.

    Attributes:
        name: what sets the row apart.
        task: that it was tested on.
        losses: (steps, loss), means over parts of the training and over the seeds.
        figures: metric -> (step, estimate) at each point of the trace.
    """

    name: str
    task: str
    losses: tuple[Array, Array]
    figures: dict[str, list[tuple[int, Estimate]]]


def courses(
    cells: Sequence[tuple[Point, Sequence[RunSpec]]], folders: Mapping[str, Path], metrics: Sequence[str]
) -> list[Course]:
    """The courses of the finished traced runs of some cells; none where nothing was traced.

    Args:
        cells: (point, its runs: one a seed).
        folders: identity -> folder of the run.
        metrics: names of figures; those that a task does not have are left out.

    Raises:
        WorkError: a record or trace is broken, or seeds were tested on other items.
    """
    found = []
    for point, specs in cells:
        done = [folders[spec.identity] for spec in specs if spec.trace and is_finished(folders[spec.identity])]
        if not done:
            continue
        name = shown_point({key: value for key, value in point.items() if key != "tasks"})
        losses = _losses([read_record(folder) for folder in done])
        traces = [read_trace(folder) for folder in done]
        for task in dict.fromkeys(task for spec in specs for task in spec.tasks):
            own = [trace[trace["task"] == task] for trace in traces]
            figures: dict[str, list[tuple[int, Estimate]]] = {}
            for step in sorted(set.intersection(*(set(table["step"]) for table in own))):
                tables = aligned([table[table["step"] == step] for table in own])
                estimates = estimate_metrics(tables, TRACE_RESAMPLES, only=metrics)
                for metric in (metric for metric in metrics if metric in estimates):
                    figures.setdefault(metric, []).append((int(step), estimates[metric]))
            found.append(Course(name, task, losses, figures))
    return found


def _losses(records: Sequence[Mapping[str, Any]]) -> tuple[Array, Array]:
    """Steps and losses, stages one after another; means over parts of the training, and over the seeds."""
    each = []
    for record in records:
        before, own = 0, []
        for stage in record["training"]["stages"]:
            own += [(before + entry["step"], entry["loss"]) for entry in stage["losses"]]
            before += stage["steps"]
        each.append(np.array(own, dtype=float).reshape(-1, 2))
    shortest = min(len(own) for own in each)
    if not shortest:
        return np.empty(0), np.empty(0)
    mean = np.mean([own[:shortest] for own in each], axis=0)
    parts = np.array_split(mean, min(_PARTS, shortest))
    return np.array([part[:, 0].mean() for part in parts]), np.array([part[:, 1].mean() for part in parts])


def plot_courses(found: Sequence[Course], out: Path, name: str, about: str) -> list[Path]:
    """Draws `name` as .png and .svg: a column a task; a row for the losses and one a figure, intervals shaded.

    Args:
        found: of `courses`, at least one.
        out: the folder.
        name: of the files.
        about: the second line of the title.
    """
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(course.task for course in found))
    metrics = list(dict.fromkeys(metric for course in found for metric in course.figures))
    names = list(dict.fromkeys(course.name for course in found))
    colours = dict(zip(names, expert_colours(len(names)), strict=True))
    canvas = Figure(figsize=(1.4 + 4.2 * len(tasks), 1.4 + 2.3 * (1 + len(metrics))), layout="constrained")
    places = canvas.subplots(1 + len(metrics), len(tasks), squeeze=False, sharex="col")
    handles: dict[str, Any] = {}
    for course in found:
        column = places[:, tasks.index(course.task)]
        number = names.index(course.name)
        style = {"color": colours[course.name], "linewidth": 1.3}
        (handles[course.name],) = column[0].plot(*course.losses, **style, marker=_MARKERS[number % 8], markevery=8,
                                                 markersize=4)  # fmt: skip
        for axes, metric in zip(column[1:], metrics, strict=True):
            _draw(axes, course.figures.get(metric, []), scale_of(metric), _MARKERS[number % 8], style)
    for row, label in zip(places, ["loss (nats)", *metrics], strict=True):
        for axes in row:
            axes.tick_params(labelsize=7)
            axes.grid(axis="y", linewidth=0.4, color="#DDDDDD")
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(label + (" (%)" if label in metrics and scale_of(label) == 100 else ""), fontsize=8)
    for axes, task in zip(places[0], tasks, strict=True):
        axes.set_title(task, fontsize=9)
    for axes in places[-1]:
        axes.set_xlabel("optimiser steps", fontsize=8)
    canvas.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=min(4, len(names)),
                  fontsize=7, frameon=False)  # fmt: skip
    canvas.suptitle(f"{name}\n{about}", fontsize=9)
    return save(canvas, out, name)


def _draw(
    axes: Any, points: Sequence[tuple[int, Estimate]], scale: float, marker: str, style: Mapping[str, Any]
) -> None:
    known = [(step, figure) for step, figure in points if figure.value is not None]
    steps = [step for step, _ in known]
    axes.plot(steps, [scale * (figure.value or 0.0) for _, figure in known], marker=marker, markersize=4, **style)
    ends = [(figure.low, figure.high) for _, figure in known]
    if known and all(None not in pair for pair in ends):
        low, high = ([scale * (pair[side] or 0.0) for pair in ends] for side in (0, 1))
        axes.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)
