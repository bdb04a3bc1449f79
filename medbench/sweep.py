"""A sweep: a grid as a list of independent runs, done one after another; one that fails does not stop the others."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medbench.backbones.registry import get_backbone
from medbench.budget import parse_budget
from medbench.catalog import Catalog
from medbench.data.load import locate_or_fetch
from medbench.errors import HeldError, MedbenchError, RequestError, did_you_mean
from medbench.grid import Grid, check_settings, request_of
from medbench.grid_fields import Point, same, shown_point
from medbench.job import Job, jobs_of
from medbench.plan import Plan, Request, resolve
from medbench.plan_data import assignments, cards_of, check_kinds, data_of, part_of
from medbench.progress import note
from medbench.results.record import is_finished
from medbench.run import check_adapter, run
from medbench.scoring.kinds import known_names
from medbench.spec import RunSpec


@dataclass(frozen=True)
class Cell:
    """A point of a grid and its runs, one a seed.

    Attributes:
        point: what sets it apart; fields in which cells of the very same runs differ are left out of it.
        plan: the resolved request; None where its settings cannot exist.
        problem: why they cannot.
    """

    point: Point
    plan: Plan | None = None
    problem: str | None = None

    @property
    def specs(self) -> list[RunSpec]:
        """The runs; none where the settings cannot exist."""
        return self.plan.specs if self.plan else []


@dataclass(frozen=True)
class Sweep:
    """A grid with its cells resolved; `seeds` are the grid's own, or those asked for."""

    grid: Grid
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    data_root: Path | None = None


def plan_sweep(
    grid: Grid, catalog: Catalog, data_root: Path | None = None, seeds: Sequence[int] | None = None
) -> Sweep:
    """Resolves every point of a grid; points that are the same runs (`none` at every learning rate) are one cell.

    A cell whose settings cannot exist (16 experts at rank 8) is kept with its problem.

    Raises:
        RequestError: an unknown name or metric, a budget that is none, a task that cannot be trained on; or no cell
            can exist.
    """
    check_settings(grid, catalog)
    metric = grid.plot.metric
    if metric is not None and metric not in known_names():
        raise RequestError(
            f"{grid.path}: plot.metric: unknown metric {metric!r}; {did_you_mean(metric, known_names())}"
        )
    found: dict[tuple[Any, ...], Cell] = {}
    for point in grid.points():
        try:
            cell = _resolved(point, request_of(grid, point, catalog, data_root, seeds), catalog)
        except RequestError as error:
            raise RequestError(f"{grid.path}: {shown_point(point)}: {error}") from error
        key = tuple(spec.identity for spec in cell.specs) or (shown_point(point),)
        if key in found:
            known = found[key].point
            common = {
                name: value for name, value in known.items() if name in point and same(point[name]) == same(value)
            }
            cell = replace(found[key], point=common)
        found[key] = cell
    cells = tuple(found.values())
    if not any(cell.plan for cell in cells):
        raise RequestError(f"{grid.path}: no cell can be run; {shown_point(cells[0].point)}: {cells[0].problem}")
    return Sweep(grid, cells, tuple(grid.seeds if seeds is None else seeds), data_root)


def _resolved(point: Point, request: Request, catalog: Catalog) -> Cell:
    try:
        plan = resolve(request, catalog)
        for spec in plan.specs[:1]:  # the others differ in the seed, or in what is tested
            check_adapter(spec, plan.backbone)
    except RequestError as error:
        _check_names(request, catalog)
        return Cell(point, problem=str(error))
    return Cell(point, plan)


def _check_names(request: Request, catalog: Catalog) -> None:
    """Raises what is wrong with a refused request apart from its settings: its names, its data, its budget's text."""
    backbone = get_backbone(request.backbone)
    backbone.check_runnable()
    budget = parse_budget(request.budget, backbone.default_rank)
    methods = [catalog.method(name) for name in (*request.methods, *([budget.method] if budget.method else []))]
    tested = cards_of(request.tasks, catalog)
    stages = [cards_of(stage, catalog) for stage in request.train_tasks]
    if not tested or not all(stages):
        raise RequestError("a point without tasks, or with a stage without tasks; give `tasks` in base or as an axis")
    check_kinds(backbone, tested, [card for stage in stages for card in stage])
    for those, parts in assignments(tested, stages, request.protocol):
        for card in those:
            data_of(card, request.split, request.limit, request.data_root)
        for card in (card for stage in parts for card in stage if methods[0].tuner != "none"):
            part_of(card, 1.0, request)


def sweep_jobs(sweep: Sweep, catalog: Catalog, out: Path, device: str = "auto", command: str = "") -> dict[str, Job]:
    """The runs of a sweep by identity, each once, in the order of the cells and their seeds."""
    jobs: dict[str, Job] = {}
    for plan in (cell.plan for cell in sweep.cells if cell.plan):
        for job in jobs_of(plan, catalog.settings, out, sweep.data_root, device, command=command):
            jobs.setdefault(job.spec.identity, job)
    return jobs


def check_data(sweep: Sweep, jobs: Mapping[str, Job], weights: bool = True) -> None:
    """Looks whether the data (and the backbones' weights) are there for every run that is not finished.

    Raises:
        RequestError: they are not; says how to get them.
    """
    left = [job for job in jobs.values() if not is_finished(job.folder)]
    if left and sweep.grid.data_root and sweep.data_root is None:
        raise RequestError(f"grid {sweep.grid.name} is of local data: pass --data-root DIR (see `data status`)")
    cards = {card.name: card for job in left for card in job.cards.values()}
    for card in cards.values():
        locate_or_fetch(card, sweep.data_root)
    for backbone in {job.backbone.name: job.backbone for job in left if weights}.values():
        backbone.folder()


def run_sweep(sweep: Sweep, jobs: Mapping[str, Job], announce: Callable[[str], None] = note) -> dict[str, str]:
    """Does the runs that are not finished. One that fails is announced with its point, and the next one is begun.

    One that another process is at is left to it: it is waited for at the end, so that two commands may share a grid.

    Args:
        sweep: the cells.
        jobs: their runs (`sweep_jobs`).
        announce: takes one line a run, with its number, what failed so far, and about how long the rest will take.

    Returns:
        Identity -> error, of the runs that failed.

    Raises:
        RequestError: data or weights are not there (`check_data`); then none is begun.
    """
    check_data(sweep, jobs)
    for cell in sweep.cells:
        if cell.problem:
            announce(f"{shown_point(cell.point)}: failed: {cell.problem}")
    points = {spec.identity: cell.point for cell in sweep.cells for spec in cell.specs}
    failed: dict[str, str] = {}
    left = sum(not is_finished(job.folder) for job in jobs.values())
    took: list[float] = []
    held: dict[str, str] = {}

    def do(identity: str, name: str, wait: bool = False) -> None:
        if problem := _problem_of(jobs[identity], wait):
            failed[identity] = problem
            announce(f"{name}: failed: {problem}")

    for number, (identity, job) in enumerate(jobs.items(), start=1):
        name = f"[{number}/{len(jobs)}] {shown_point(points[identity])} seed {job.spec.seed}, run {identity[:12]}"
        before = is_finished(job.folder)
        announce(name + (": finished before" if before else _so_far(took, left - len(took), len(failed))))
        started = time.monotonic()
        try:
            do(identity, name)
        except HeldError as error:
            if _launched():
                raise
            held[identity] = name
            announce(f"{name}: left for later: {str(error).partition(';')[0]}")
            continue
        if not before:
            took.append(time.monotonic() - started)
    for identity, name in held.items():
        if not is_finished(jobs[identity].folder):
            announce(f"{name}: waiting for the process that is at it")
        do(identity, name, wait=True)
    return failed


def _problem_of(job: Job, wait: bool) -> str | None:
    """Does a run; what went wrong, in one line. Anything may: memory, a diverging loss, a fault in a user's tuner."""
    try:
        run(job, wait)
    except Exception as error:
        if _launched() or isinstance(error, HeldError):
            raise
        kind = "" if isinstance(error, MedbenchError) else f"{type(error).__name__}: "
        return " ".join(f"{kind}{error}".split())
    return None


def _launched() -> bool:
    """Whether a launcher's other processes wait for this one, so that it must not go on after a failure."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _so_far(took: Sequence[float], left: int, failed: int) -> str:
    """How many failed, and how long the rest will take at the pace of those done (at least 1 minute)."""
    words = [f"{failed} failed"] if failed else []
    if took:
        minutes = max(1, round(left * sum(took) / len(took) / 60))
        words.append(f"about {minutes} min left")
    return f" ({', '.join(words)})" if words else ""


def failures(sweep: Sweep, failed: Mapping[str, str]) -> list[str]:
    """The cells that have no result, or lack a seed, in words; in order."""
    found = []
    for cell in sweep.cells:
        seeds = [str(spec.seed) for spec in cell.specs if spec.identity in failed]
        if cell.problem or seeds:
            found.append(shown_point(cell.point) + (f" seed {','.join(seeds)}" if seeds else ""))
    return found
