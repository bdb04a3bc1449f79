"""`medbench reproduce`: does what is left of a table's runs, and says what is there. The table: `reproduce_fold`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from medbench.errors import RequestError
from medbench.progress import note
from medbench.reproduce_plan import Reproduction
from medbench.sweep import check_data, run_sweep


def progress(found: Reproduction) -> str:
    """What is finished and what is left, in a line."""
    left = len(found.jobs) - len(found.finished)
    parts = ", ".join(part.name for part in found.parts)
    begun = f", {len(found.started)} of them begun and not finished" if found.started else ""
    return (
        f"{found.table} at scale {found.scale} ({parts}): {len(found.jobs)} runs, {len(found.finished)} finished, "
        f"{left} left{begun}"
    )


def without_data(found: Reproduction) -> dict[str, str]:
    """Identity -> why it cannot be done here: runs that are not finished and whose data or weights are not here."""
    problems: dict[str, str] = {}
    for part in found.parts:
        own = {spec.identity for cell in part.sweep.cells for spec in cell.specs}
        for identity in own - set(found.finished):
            try:
                check_data(part.sweep, {identity: found.jobs[identity]})
            except RequestError as error:
                problems[identity] = str(error)
    return problems


def reproduce(found: Reproduction, announce: Callable[[str], None] = note) -> tuple[dict[str, str], dict[str, str]]:
    """Does the runs that are left, one after another; what has no data here is left out and said once.

    Returns:
        Identity -> why it was left out; identity -> error, of the runs that failed.

    Raises:
        RequestError: nothing is finished, and nothing can be done here.
    """
    announce(progress(found))
    lacking = without_data(found)
    if lacking and len(lacking) == len(found.jobs):
        raise RequestError(next(iter(lacking.values())))
    for problem in dict.fromkeys(lacking.values()):
        announce(f"left out, {list(lacking.values()).count(problem)} runs: {problem}")
    failed: dict[str, str] = {}
    done: set[str] = set()
    for part in found.parts:
        own = [spec.identity for cell in part.sweep.cells for spec in cell.specs]
        jobs = {identity: found.jobs[identity] for identity in own if identity not in lacking and identity not in done}
        if any(identity not in found.finished for identity in jobs):
            failed |= run_sweep(part.sweep, jobs, announce)
        done |= set(jobs)
    return lacking, failed


def outcome_json(found: Reproduction) -> dict[str, Any]:
    """Which runs there are, finished or not, by part."""
    finished = found.finished
    return {
        "table": found.table,
        "scale": found.scale,
        "runs": len(found.jobs),
        "finished": len(finished),
        "parts": [
            {
                "name": part.name,
                "kind": part.kind,
                "runs": [spec.identity for cell in part.sweep.cells for spec in cell.specs],
                "left": [s.identity for cell in part.sweep.cells for s in cell.specs if s.identity not in finished],
            }
            for part in found.parts
        ],
    }
