"""The trace of a run: where it was tested while it was trained, the scores at each of these points, and their figures.

A traced run (`RunSpec.trace`) answers all its tests before anything is trained, and at the end of every stage, or of
every epoch too. `trace.parquet` holds the scores of every item at every point; the record says the figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.errors import WorkError
from medbench.files import read_parquet, write_parquet
from medbench.job import Data, Job
from medbench.results.record import task_figures
from medbench.scoring.predictions import score_task, scoring_of
from medbench.scoring.vqa import ITEM_COLUMNS
from medbench.spec import DataSpec, RunSpec, Stage
from medbench.training.order import items_of_epoch, steps_of

TRACE = "trace.parquet"
#: Resamples of the figures in a record's `trace`: there are many points, and tables are made from the scores.
TRACE_RESAMPLES = 1000
_POINT = ("stage", "epoch", "step")


@dataclass(frozen=True, order=True)
class Point:
    """A moment of a run's training.

    Attributes:
        stage: 1 for the first; 0 is before anything is trained.
        epoch: how many epochs of this stage have been seen; a fraction where a stage ends inside one.
        step: optimiser steps since the run began.
        at: optimiser steps since the stage began.
        ends: whether the stage ends here.
    """

    stage: int
    epoch: float
    step: int
    at: int
    ends: bool


START = Point(0, 0.0, 0, 0, True)


def stage_points(per_epoch: int, stage: Stage, every_epoch: bool) -> list[tuple[float, int]]:
    """Where a stage is tested: (epochs seen, steps done in the stage), the end of the stage last.

    Epochs follow one another without a gap (`medbench.training.order`), so the k-th ends at k times the items of an
    epoch over the batch size, rounded to a step. It is a count of items: where items come sorted by length in windows
    that are longer than an epoch, not each has been seen equally often by then.

    Args:
        per_epoch: the items that an epoch sees.
        stage: its settings.
        every_epoch: or at its end alone.

    Example:
        >>> from medbench.methods import Training
        >>> stage_points(10, Stage((), Training(epochs=2.5, batch_size=4, micro_batch_size=4)), every_epoch=True)
        [(1.0, 2), (2.0, 5), (2.5, 7)]
    """
    training = stage.training
    steps = steps_of(per_epoch, training.epochs, training.batch_size)
    found: dict[int, float] = {}
    epoch = 1
    while every_epoch and epoch < training.epochs:
        at = round(epoch * per_epoch / training.batch_size)
        if 0 < at < steps:
            found[at] = float(epoch)
        epoch += 1
    found[steps] = training.epochs
    return [(epochs, at) for at, epochs in found.items()]


def trace_points(spec: RunSpec, count: Callable[[DataSpec], int]) -> list[Point]:
    """The points of a traced run, in order; the last one is the end of its training.

    Args:
        spec: with `trace`.
        count: the items of a training split, limits applied.
    """
    points, before = [START], 0
    for number, stage in enumerate(spec.stages, start=1):
        per_epoch = items_of_epoch([count(p.data) for p in stage.mixture], [p.weight for p in stage.mixture])
        found = stage_points(per_epoch, stage, spec.trace == "epoch")
        steps = found[-1][1]
        points += [Point(number, epoch, before + at, at, at == steps) for epoch, at in found]
        before += steps
    return points


def points_of(job: Job, data: Data) -> list[Point]:
    """The points of a run whose data was checked."""
    return trace_points(job.spec, lambda part: len(data.items(part).items))


def part_paths(job: Job, point: Point, test: DataSpec, count: int) -> list[Path]:
    """Where the answers to the chunks of a test at a point lie until the record is written; none at the last point."""
    folder = job.folder / "fit" / "trace" / f"stage-{point.stage}-step-{point.at}"
    return [folder / f"{test.task}-{number}-of-{count}.parquet" for number in range(count)]


def write_trace(job: Job, data: Data) -> dict[str, Any]:
    """Scores what was answered at each point, writes `trace.parquet`, and returns what a record says of it.

    The last point is the end of the training: its answers are the run's own predictions, which must be scored before.

    Raises:
        WorkError: answers of a point are not there.
    """
    points = points_of(job, data)
    tables, about = [], []
    for point in points:
        scored = {test.task: _scored(job, data, point, test, point == points[-1]) for test in job.spec.tests}
        figures = {task: task_figures([table], TRACE_RESAMPLES) for task, table in scored.items()}
        about.append({name: getattr(point, name) for name in _POINT} | {"ends": point.ends, "tasks": figures})
        for table in scored.values():
            for name in reversed(_POINT):
                table.insert(0, name, getattr(point, name))
            tables.append(table)
    write_parquet(job.folder / TRACE, pd.concat(tables, ignore_index=True))
    return {"every": job.spec.trace, "resamples": TRACE_RESAMPLES, "points": about}


def _scored(job: Job, data: Data, point: Point, test: DataSpec, last: bool) -> pd.DataFrame:
    items, about = data.items(test).items, scoring_of(job.cards[test.task])
    if last:
        scores = read_parquet(job.folder / "scores.parquet")
        return scores[scores["task"] == test.task].reset_index(drop=True)
    return score_task(test.task, test.split, items, pd.concat(_answers(job, point, test, items)), **about)


def _answers(job: Job, point: Point, test: DataSpec, items: Any) -> Iterator[pd.DataFrame]:
    from medbench.inference.predict import chunks  # the run has torch by now; who reads traces needs none

    for path in part_paths(job, point, test, len(chunks(items, job.spec.generation.batch_size))):
        if not path.exists():
            raise WorkError(f"{path}: this part of the trace is gone; remove {job.folder} to train again")
        yield read_parquet(path)


def read_trace(folder: Path) -> pd.DataFrame:
    """The scores of a traced run: one row a point, task and item, columns stage, epoch, step, then as in its scores.

    Raises:
        WorkError: the file is missing or damaged.
    """
    path = folder / TRACE
    table: pd.DataFrame = read_parquet(path)
    lacking = [name for name in (*_POINT, "task", "kind", *ITEM_COLUMNS) if name not in table]
    if lacking or table.empty:
        raise WorkError(f"{path}: broken trace (columns {', '.join(lacking) or 'there, rows none'}); run again")
    return table
