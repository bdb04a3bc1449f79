"""What a sweep would do (`--dry-run`), and what it gave (`--json`): rows and documents, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.data.load import locate
from medbench.errors import RequestError
from medbench.grid_fields import shown, shown_point
from medbench.job import Job
from medbench.listing import text_table
from medbench.preview import preview
from medbench.results.axis_table import Figure
from medbench.results.record import is_finished, read_record
from medbench.sweep import Sweep, check_data


def report_json(
    sweep: Sweep, failed: Mapping[str, str], measured: Sequence[Figure], files: Sequence[Path]
) -> dict[str, Any]:
    """A sweep's outcome as one JSON document: every cell with its runs, its errors and its figures; the plots."""
    cells = []
    for cell in sweep.cells:
        errors = {str(spec.seed): failed[spec.identity] for spec in cell.specs if spec.identity in failed}
        tasks: dict[str, dict[str, Any]] = {}
        for figure in (figure for figure in measured if figure.point is cell.point):
            about = figure.estimate.to_json() | {"seeds": list(figure.seeds), "seed_sd": figure.seed_sd}
            tasks.setdefault(figure.task, {})[figure.metric] = about
        cells.append(
            {
                "point": cell.point,
                "status": "failed" if cell.problem or errors else "finished",
                "problem": cell.problem,
                "errors": errors,
                "runs": [spec.identity for spec in cell.specs],
                "tasks": tasks,
            }
        )
    return {
        "grid": sweep.grid.name,
        "axes": sweep.grid.axes,
        "seeds": list(sweep.seeds),
        "cells": cells,
        "plots": [str(path) for path in files],
    }


def preview_rows(sweep: Sweep, jobs: Mapping[str, Job]) -> list[dict[str, Any]]:
    """What a sweep would do, a row a run: its point, rank, parameters, steps, items, and whether it is finished.

    A finished run needs no data: without them its steps and training items are not known (None).

    Raises:
        RequestError: the data of a run that is not finished is not there.
    """
    check_data(sweep, jobs, weights=False)
    rows: list[dict[str, Any]] = []
    listed: set[str] = set()
    for cell in sweep.cells:
        if cell.plan is None:
            rows.append({"point": cell.point, "status": "impossible", "problem": cell.problem})
            continue
        for spec in cell.plan.specs:
            if spec.identity not in listed:
                listed.add(spec.identity)
                job = jobs[spec.identity]
                done = is_finished(job.folder)
                about = _of_record(job) if done and not _has_data(job) else preview(spec, cell.plan, sweep.data_root)
                rows.append({"point": cell.point, "status": "finished" if done else "to do", "problem": None} | about)
    return rows


def _of_record(job: Job) -> dict[str, Any]:
    spec = job.spec
    return {
        "run": spec.identity,
        "method": spec.method.name,
        "seed": spec.seed,
        "rank": spec.method.adapter.get("r"),
        "trainable_parameters": spec.budget.trainable,
        "stages": None,
        "test_items": {task: about["n"] for task, about in read_record(job.folder)["tasks"].items()},
    }


def _has_data(job: Job) -> bool:
    try:
        for card in job.cards.values():
            locate(card, job.data_root)
    except RequestError:
        return False
    return True


def preview_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of `preview_rows` as a table, and the sum of what is to be done."""
    names = list(dict.fromkeys(name for row in rows for name in row["point"]))
    lines = []
    for row in rows:
        stages = row.get("stages")
        lines.append(
            {name: shown(row["point"][name]) if name in row["point"] else None for name in names}
            | {
                "seed": row.get("seed"),
                "rank": row.get("rank"),
                "trainable": row.get("trainable_parameters"),
                "steps": None if stages is None else [stage["steps"] for stage in stages],
                "train items": None
                if stages is None
                else [f"{task} {n:,}" for stage in stages for task, n in stage["train_items"].items()],
                "test items": [f"{task} {n:,}" for task, n in row.get("test_items", {}).items()],
                "status": row["status"],
                "run": row.get("run", "")[:12],
            }
        )
    to_do = [row for row in rows if row["status"] == "to do"]
    steps = sum(stage["steps"] for row in to_do for stage in row["stages"])
    counts = {status: sum(row["status"] == status for row in rows) for status in ("finished", "to do", "impossible")}
    impossible = [f"impossible: {shown_point(row['point'])}: {row['problem']}" for row in rows if row["problem"]]
    total = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    runs = len(rows) - counts["impossible"]
    return "\n".join([text_table(lines), "", f"{runs} runs: {total}; {steps:,} steps to do.", *impossible])
