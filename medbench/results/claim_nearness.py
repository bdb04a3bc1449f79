"""How near rows of a claim come to a reference: in losses, in answers, and in answers all along a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from medbench.results.arms import Arm, Paired, Scores
from medbench.results.claim_rows import Measured, common_tasks, fitting, usable
from medbench.results.claim_schema import Claim, Line
from medbench.results.study_scores import Cell, Items
from medbench.results.study_scores import Scores as Values
from medbench.results.traces import read_trace
from medbench.scoring.contrasts import Contrast, Term
from medbench.scoring.weighted import Array

#: Parts of a training whose losses stand and fall together in a test.
_BLOCKS = 10


def _nearer(claim: Claim, line: Line, arms: list[Arm]) -> tuple[Arm, Arm, Arm]:
    """The row that is claimed to be nearer, the other, and the reference."""
    return (
        fitting(claim, arms, line.higher)[0],
        fitting(claim, arms, line.lower)[0],
        fitting(claim, arms, claim.reference)[0],
    )


def loss_distance(claim: Claim, line: Line, arms: list[Arm], scores: Scores) -> Measured:
    """The other row's distance to the reference's loss less this one's, step by step."""
    three = _nearer(claim, line, arms)
    tasks = common_tasks(three)
    seeds, lacking = usable(claim, three, scores, tasks)
    if not seeds:
        return Measured(line.name, unit="nats", lacking=lacking)
    near_terms, far_terms = [], []
    for task in tasks:
        curves = [{seed: _losses(record) for seed, record in scores.records(arm, task).items()} for arm in three]
        steps = [tuple(curve[seed]) for curve in curves for seed in seeds]
        if len(set(steps)) != 1 or not steps[0]:
            return Measured(line.name, unit="nats", lacking="losses were not written at the same steps")
        near, far, reference = (np.array([list(curve[seed].values()) for seed in seeds]) for curve in curves)
        blocks = np.arange(len(steps[0])) * _BLOCKS // len(steps[0])
        names = blocks.astype(str)
        near_terms.append(Term(task, 1 / len(tasks), np.abs(near - reference), names))
        far_terms.append(Term(task, 1 / len(tasks), np.abs(far - reference), names))
    distances = Contrast(tuple(near_terms)), Contrast(tuple(far_terms))
    return _nearness(line, three, distances, seeds, "nats", lacking)


def _nearness(
    line: Line,
    three: Sequence[Arm],
    distances: tuple[Contrast, Contrast],
    seeds: tuple[int, ...],
    unit: str,
    lacking: str | None,
) -> Measured:
    """The distance of the far row to the reference less that of the near one."""
    near, far = distances
    levels = {"": {arm.spec.identity: own.by_seed for arm, own in zip(three, distances, strict=False)}}
    return Measured(line.name, far.minus(near), seeds, unit, lacking=lacking, levels=levels)


def _losses(record: dict[str, Any]) -> dict[tuple[int, float], float]:
    """(stage, step) -> loss."""
    stages = record["training"].get("stages", [])
    return {(n, entry["step"]): entry["loss"] for n, stage in enumerate(stages) for entry in stage["losses"]}


def answer_distance(claim: Claim, line: Line, arms: list[Arm], scores: Scores) -> Measured:
    """The other row's distance to the reference's scores less this one's, item by item."""
    three = _nearer(claim, line, arms)
    tasks = common_tasks(three)
    seeds, lacking = usable(claim, three, scores, tasks)
    if not seeds:
        return Measured(line.name, lacking=lacking)
    paired = Paired(scores, dict.fromkeys(tasks, claim.metrics), seeds)
    sums: tuple[dict[Cell, Array], dict[Cell, Array]] = ({}, {})
    for task in tasks:
        _add(sums, [paired.values(arm, task) for arm in three], 1)
    near, far = (_mean(own, paired.items) for own in sums)
    return _nearness(line, three, (near, far), seeds, "points", lacking)


def course_distance(claim: Claim, line: Line, arms: list[Arm], scores: Scores) -> Measured:
    """As `answer_distance`, the mean over the points of the trace (what is not trained yet left out)."""
    three = _nearer(claim, line, arms)
    tasks = common_tasks(three)
    seeds, lacking = usable(claim, three, scores, tasks)
    if not seeds:
        return Measured(line.name, lacking=lacking)
    items = Items(dict.fromkeys(tasks, claim.metrics))
    sums: tuple[dict[Cell, Array], dict[Cell, Array]] = ({}, {})
    for task in tasks:
        traces = [[read_trace(scores.folder(arm, task)[seed]) for seed in seeds] for arm in three]
        moments = [_moments(table, task) for own in traces for table in own]
        if any(found != moments[0] for found in moments) or not moments[0]:
            return Measured(line.name, lacking="not tested at the same points of their training")
        for moment in moments[0]:
            here = [
                items.scores(task, [table[_at(table, task, moment)] for table in own], arm.name)
                for own, arm in zip(traces, three, strict=True)
            ]
            _add(sums, here, len(moments[0]))
    near, far = (_mean(own, items) for own in sums)
    return _nearness(line, three, (near, far), seeds, "points", lacking)


def _moments(trace: pd.DataFrame, task: str) -> list[tuple[int, float]]:
    """(stage, epoch) of the points after the start."""
    own = trace[(trace["task"] == task) & (trace["stage"] > 0)]
    return list(own[["stage", "epoch"]].drop_duplicates().itertuples(index=False, name=None))


def _at(trace: pd.DataFrame, task: str, moment: tuple[int, float]) -> pd.Series[bool]:
    return (trace["task"] == task) & (trace["stage"] == moment[0]) & (trace["epoch"] == moment[1])


def _add(sums: Sequence[dict[Cell, Array]], three: Sequence[Values], parts: int) -> None:
    """Adds each item's distance to the reference, of the near and of the far row, to what is there."""
    *rows, reference = three
    for own, values in zip(sums, rows, strict=True):
        for cell, found in values.items():
            own[cell] = own.get(cell, 0.0) + np.abs(found - reference[cell]) / parts


def _mean(values: dict[Cell, Array], items: Items) -> Contrast:
    """The plain mean over all figures of all tasks."""
    return Contrast(tuple(Term(cell[0], 1 / len(values), own, items.clusters[cell]) for cell, own in values.items()))
