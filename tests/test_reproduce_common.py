"""Folders of made-up runs of packaged grids and studies, as `reproduce` and `claims` look for them (no tests here)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from test_compare_common import make_record, scores

from medbench.files import canonical_json
from medbench.reproduce_plan import CostCatalog, ReadOnce, Reproduction, plan_reproduction
from medbench.spec import RunSpec
from medbench.sweep import Sweep, plan_sweep

#: Of a run on a task: how much likelier than by chance its items are right.
Skill = Callable[[RunSpec, str], float]
IMAGES = 60
CATALOG, PRICED = ReadOnce(), CostCatalog()


@cache
def planned(table: str, scale: str) -> Reproduction:
    """A table's runs, resolved once."""
    return plan_reproduction(table, scale, PRICED if scale == "full" else CATALOG, Path("nowhere"))


@cache
def sweep_of(name: str) -> Sweep:
    """A packaged grid, resolved once."""
    return plan_sweep(CATALOG.grid(name), CATALOG)


def grid_specs(name: str) -> list[RunSpec]:
    """The runs of a packaged grid."""
    return [spec for cell in sweep_of(name).cells for spec in cell.specs]


@cache
def made_up(task: str, seed: int, skill: float) -> pd.DataFrame:
    """A score table; what makes an image hard is the same for all, seeds differ in a few items."""
    hard = np.repeat(np.random.default_rng(len(task)).random(IMAGES), 2)
    noise = 0.02 * np.random.default_rng(seed).standard_normal((2, len(hard)))
    return scores(*(hard < 0.5 + skill + noise), seed=seed, task=task)


def write_runs(
    out: Path,
    specs: Iterable[RunSpec],
    skill: Skill,
    losses: Callable[[RunSpec], list[float]] | None = None,
    traced: Callable[[RunSpec, int, str], float] | None = None,
) -> None:
    """Finished runs of these specs; `losses` are of their training, `traced` the skill after a stage on a task."""
    for spec in specs:
        folder = out / spec.identity
        if folder.exists():
            continue
        folder.mkdir(parents=True)
        tables = [made_up(task, spec.seed, skill(spec, task)) for task in spec.tasks]
        record = _record(spec, tables, losses(spec) if losses else [1.0, 0.5])
        (folder / "spec.json").write_text(canonical_json(spec.to_json()))
        (folder / "record.json").write_text(json.dumps(record))
        everything = pd.concat(tables, ignore_index=True)
        everything.to_parquet(folder / "scores.parquet")
        (folder / "predictions.parquet").touch()  # never read: scores are
        if traced and spec.trace:
            points = [(stage, task) for stage in range(len(spec.stages) + 1) for task in spec.tasks]
            each = [
                made_up(task, spec.seed, traced(spec, stage, task)).assign(
                    stage=stage, epoch=float(stage > 0), step=10 * stage, kind="vqa"
                )
                for stage, task in points
            ]
            pd.concat(each, ignore_index=True).to_parquet(folder / "trace.parquet")


def _record(spec: RunSpec, tables: list[pd.DataFrame], losses: list[float]) -> dict[str, Any]:
    record = make_record(spec.method.name, spec.seed)
    curve = [{"step": 2.0 * n, "loss": loss} for n, loss in enumerate(losses, start=1)]
    stage = {"steps": 2 * len(losses), "seconds": 4.0 * len(losses), "losses": curve, "resumed_from": None}
    record |= {
        "run": spec.identity,
        "backbone": spec.backbone.name,
        "stages": [[part.data.task for part in stage.mixture] for stage in spec.stages],
        "spec": spec.to_json(),
        "training": {"stages": [stage] * len(spec.stages)},
        "memory": {"fit": {"process_bytes": 2**30}, "predict": {"process_bytes": 2**30}},
    }
    record["parameters"] |= {"trainable": spec.budget.trainable, "rank": spec.method.adapter.get("r")}
    about = {"protocol": "in_domain", "split": "test", "profile": "medbench", "skipped": 0}
    sizes = zip(spec.tasks, map(len, tables), strict=True)
    record["tasks"] = {task: {"n": n, "clusters": IMAGES, "metrics": {}} | about for task, n in sizes}
    return record
