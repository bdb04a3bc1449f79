"""What `medbench reproduce` runs: `baselines/reproduce/*.yaml`, one file a table, as runs that are not yet done.

A table at a scale is packaged grids, and studies of forgetting and interference (`medbench.studies`): lists of
RunSpecs, like those of any sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ConfigDict, Field

from medbench.catalog import Catalog, packaged, read_yaml
from medbench.data.card import Card, validated
from medbench.errors import RequestError, did_you_mean
from medbench.grid import Grid
from medbench.job import Job
from medbench.methods import Method
from medbench.plan import Plan
from medbench.request import Request
from medbench.results.record import is_finished
from medbench.studies import Study, forgetting_study, interference_study
from medbench.sweep import Cell, Sweep, plan_sweep, sweep_jobs

Scale = Literal["ci", "nano", "full"]
SCALES: tuple[Scale, ...] = get_args(Scale)
_STRICT = ConfigDict(extra="forbid", frozen=True)
#: Stands for the digest of a set that is not there, in a plan whose cost alone is asked for.
_NOT_READ = "0" * 64


class StudyPlan(BaseModel):
    """A study of a table: the options of `medbench forget` (without its bounds) or `medbench interference`."""

    model_config = _STRICT

    kind: Literal["forgetting", "interference"] = "forgetting"
    tasks: list[str] = Field(min_length=2)
    methods: list[str] = Field(min_length=1)
    seeds: list[int] = [0]
    trace: Literal["epoch", "stage"] = "epoch"
    backbone: str = "nano-vl"
    train_limit: int | None = None
    limit: int | None = None
    set: dict[str, Any] = {}
    data_root: bool = False

    @property
    def name(self) -> str:
        """`slake then vqa_rad`, `slake with vqa_rad`."""
        return (" then " if self.kind == "forgetting" else " with ").join(self.tasks)

    def resolve(self, catalog: Catalog, data_root: Path | None, seeds: Sequence[int] | None) -> Study:
        """The runs of the study.

        Raises:
            RequestError: as `forgetting_study` and `interference_study`.
        """
        request = Request(
            tasks=self.tasks,
            methods=self.methods,
            backbone=self.backbone,
            seeds=self.seeds if seeds is None else seeds,
            limit=self.limit,
            train_limit=self.train_limit,
            settings=self.set,
            data_root=data_root,
            trace=self.trace if self.kind == "forgetting" else None,
        )
        if self.kind == "interference":
            return interference_study(request, catalog)
        return forgetting_study(request, catalog, bounds=False)


class ScalePlan(BaseModel):
    """A table at a scale.

    Attributes:
        grids: names of packaged grids, or YAML files, relative to the plan's folder.
        studies: of forgetting and interference.
        group: of T2, the group of its sets.
        assumed_items: how many training items a set is taken to have whose card does not say, for the cost.
        note: what a reader must know.
    """

    model_config = _STRICT

    grids: list[str] = []
    studies: list[StudyPlan] = []
    group: str | None = None
    assumed_items: dict[str, int] = {}
    note: str = ""


class TablePlan(BaseModel):
    """A table, at each scale."""

    model_config = _STRICT

    table: str
    scales: dict[Scale, ScalePlan]


@dataclass(frozen=True)
class Part:
    """A grid or a study of a table: its runs as a sweep, and how they can be done without `reproduce`."""

    name: str
    sweep: Sweep
    study: Study | None = None
    kind: Literal["grid", "forgetting", "interference"] = "grid"


@dataclass(frozen=True)
class Reproduction:
    """A table at a scale, resolved.

    Attributes:
        parts: its grids, then its studies.
        jobs: the runs by identity, each once; of a finished run the folder is where it was found.
    """

    table: str
    scale: Scale
    plan: ScalePlan
    parts: tuple[Part, ...]
    jobs: Mapping[str, Job]

    @property
    def finished(self) -> dict[str, Path]:
        """Identity -> folder of the runs that are done."""
        return {identity: job.folder for identity, job in self.jobs.items() if is_finished(job.folder)}

    @property
    def started(self) -> list[Path]:
        """The folders of runs that were begun and not finished."""
        return [job.folder for job in self.jobs.values() if job.folder.is_dir() and not is_finished(job.folder)]

    @property
    def command(self) -> str:
        """The command that does what is left."""
        return f"medbench reproduce {self.table} --scale {self.scale}"


@dataclass
class ReadOnce(Catalog):
    """A catalogue that reads each card and recipe once: a table names the same few for every run."""

    _cards: dict[str, Card] = field(default_factory=dict, init=False, repr=False)
    _methods: dict[str, Method] = field(default_factory=dict, init=False, repr=False)

    def task(self, name: str) -> Card:
        """The card of a task, by name or path."""
        if name not in self._cards:
            self._cards[name] = super().task(name)
        return self._cards[name]

    def method(self, name: str) -> Method:
        """The recipe of a method, by name or path."""
        if name not in self._methods:
            self._methods[name] = super().method(name)
        return self._methods[name]


@dataclass
class CostCatalog(ReadOnce):
    """A catalogue whose cards are taken to pin their data, so that a plan can be priced where the data is not.

    What it resolves has other identities than the runs; nothing may be run or looked up by them.
    """

    def task(self, name: str) -> Card:
        """The card of a task, its splits pinned by a digest that stands for none."""
        card = super().task(name)
        splits = {
            key: split if split.digest else split.model_copy(update={"digest": _NOT_READ})
            for key, split in card.metadata.splits.items()
        }
        return card.model_copy(update={"metadata": card.metadata.model_copy(update={"splits": splits})})


def table_names() -> list[str]:
    """The tables that can be reproduced."""
    return sorted(path.stem for path in packaged("baselines/reproduce").glob("*.yaml"))


def load_plan(table: str, scale: str) -> ScalePlan:
    """What a table is made of at a scale.

    Raises:
        RequestError: an unknown table or scale, or a file that is wrong.
    """
    if table not in table_names():
        raise RequestError(f"reproduce {table}: no such table; {did_you_mean(table, table_names())}")
    if scale not in SCALES:
        raise RequestError(f"--scale {scale!r}: {did_you_mean(scale, SCALES)}")
    path = packaged("baselines/reproduce") / f"{table}.yaml"
    found = validated(TablePlan, read_yaml(path), path)
    if found.table != table or scale not in found.scales:
        raise RequestError(f"{path}: table: {found.table}, scales {', '.join(found.scales)}; expected {table}, {scale}")
    return found.scales[scale]


def plan_reproduction(
    table: str,
    scale: str,
    catalog: Catalog,
    out: Path,
    data_root: Path | None = None,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    command: str = "",
    places: Sequence[Path] = (),
) -> Reproduction:
    """Resolves a table's runs, and finds those that are done.

    Args:
        table: `T1` to `T7`.
        scale: `ci`, `nano` or `full`.
        catalog: where names are looked up.
        out: where runs are done; finished ones are looked for there, in the folders one below, and in `places`.
        data_root: where local data lies.
        seeds: instead of the plan's own.
        device: as for `run`.
        command: the request in words, for the records.
        places: further folders with finished runs.

    Raises:
        RequestError: an unknown table or scale, a folder that is not there; data that is not there, where a set's card
            does not pin it.
    """
    plan = load_plan(table, scale)
    for place in places:
        if not place.is_dir():
            raise RequestError(f"--runs {place}: no such folder")
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out}: is no folder")
    priced = isinstance(catalog, CostCatalog)
    if scale == "full" and data_root is None and not priced:
        raise RequestError(f"{table} at scale full needs local data: pass --data-root; --dry-run shows what it costs")
    try:
        parts = (*_grids(plan, catalog, data_root, seeds), *_studies(plan, catalog, data_root, seeds))
    except RequestError as error:
        if scale != "full" or priced:
            raise
        raise RequestError(f"{table} at scale full: {error}; --dry-run shows what it costs") from error
    jobs: dict[str, Job] = {}
    for part in parts:
        jobs |= sweep_jobs(part.sweep, catalog, out, device, command)
    folders = [folder for place in (out, *places) for folder in searched(place)]
    return Reproduction(
        table, cast(Scale, scale), plan, parts, {key: _found(job, folders) for key, job in jobs.items()}
    )


def _grids(plan: ScalePlan, catalog: Catalog, data_root: Path | None, seeds: Sequence[int] | None) -> list[Part]:
    folder = packaged("baselines/reproduce")
    names = [str(folder / name) if name.endswith(".yaml") else name for name in plan.grids]
    sweeps = [plan_sweep(catalog.grid(name), catalog, data_root, seeds) for name in names]
    return [Part(sweep.grid.name, sweep) for sweep in sweeps]


def _studies(plan: ScalePlan, catalog: Catalog, data_root: Path | None, seeds: Sequence[int] | None) -> list[Part]:
    parts = []
    for about in plan.studies:
        study = about.resolve(catalog, data_root, seeds)
        cells: dict[tuple[str, ...], list[Any]] = {}
        for member in study.members:
            cells.setdefault((member.role, member.task or "", member.spec.method.name), []).append(member.spec)
        points = [{"part": role, "task": task or about.name, "method": method} for role, task, method in cells]
        plans = [replace(study.plan, specs=specs) for specs in cells.values()]
        grid = Grid(name=about.name, description=about.kind, source="", data_root=about.data_root)
        found = Sweep(grid, tuple(map(Cell, points, plans)), study.seeds, data_root)
        parts.append(Part(about.name, found, study, about.kind))
    return parts


def searched(place: Path) -> list[Path]:
    """A folder and the folders below it that are no runs themselves."""
    if not place.is_dir():
        return []
    below = [path for path in sorted(place.iterdir()) if path.is_dir() and not (path / "spec.json").exists()]
    return [place, *below]


def _found(job: Job, folders: Sequence[Path]) -> Job:
    """The job with the folder in which it is finished, where it is."""
    for folder in folders:
        if is_finished(folder / job.spec.identity):
            return replace(job, folder=folder / job.spec.identity)
    return job


def plans_of(reproduction: Reproduction) -> list[tuple[Part, Plan]]:
    """The resolved requests of all cells, with their part."""
    return [(part, cell.plan) for part in reproduction.parts for cell in part.sweep.cells if cell.plan]
