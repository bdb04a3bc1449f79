"""Finds the runs of two methods that may be compared, and says why where none or too many may."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from medbench.errors import RequestError, did_you_mean
from medbench.results.agreement import disagreement, field_values, trains
from medbench.results.rows import Group, about_runs, row_order, shown_value

#: A field that runs must have, and the method that this is asked of (None: all).
Where = tuple[str | None, str, Any]
_LISTED = 8


def candidates(groups: Sequence[Group], method: str, task: str, split: str, where: Sequence[Where]) -> list[Group]:
    """The groups of runs of a method that were tested on a task and have the fields asked for.

    Raises:
        RequestError: none; says what there is.
    """
    records = [next(iter(group.values()))[1] for group in groups]
    own = [
        (group, record["tasks"]) for group, record in zip(groups, records, strict=True) if record["method"] == method
    ]
    if not own:
        known = sorted({record["method"] for record in records})
        raise RequestError(f"no finished run of {method} here; {did_you_mean(method, known)}")
    found = [group for group, tasks in own if tasks.get(task, {}).get("split") == split]
    if not found:
        known = sorted({f"{name} ({about['split']})" for _, tasks in own for name, about in tasks.items()})
        raise RequestError(f"no finished run of {method} was tested on {task} ({split}), but on {', '.join(known)}")
    for name, field, value in where:
        if name in (None, method):
            found = _with_field(found, field, value, method)
    return sorted(found, key=lambda group: row_order(about_runs(group)))


def _with_field(groups: Sequence[Group], field: str, value: Any, method: str) -> list[Group]:
    there = [field_values(group, field) for group in groups]
    if not any(there):
        raise RequestError(
            f"--where {field}: the runs of {method} have no such field; their spec.json shows what they have"
        )
    found = [group for group, values in zip(groups, there, strict=True) if value in (values or [None])]
    if not found:
        known = sorted({str(v) for values in there for v in values or [None]})
        raise RequestError(f"--where {field}={value}: no run of {method} has it; there are {', '.join(known)}")
    return found


def agreeing(first: Sequence[Group], second: Sequence[Group], task: str) -> list[tuple[Group, Group]]:
    """The pairs of groups that agree in everything but the method, its training settings and the seed.

    Raises:
        RequestError: none (names the fields in which the nearest pair differs), or two groups of one method that
            differ in these settings alone, so that it is not clear which is meant (names those).
    """
    pairs = [(one, two, disagreement(one, two, task)) for one in first for two in second]
    found = [(one, two) for one, two, apart in pairs if not apart]
    if not found:
        one, two, apart = min(pairs, key=lambda pair: len(pair[2]))
        if "stages.trained_on" in apart:  # says what follows from it
            apart = {key: both for key, both in apart.items() if key == "stages.trained_on" or not _trained(key)}
        fields = "; ".join(
            f"{key.removeprefix('stages.')} ({shown_value(a)} and {shown_value(b)})" for key, (a, b) in apart.items()
        )
        raise RequestError(
            f"no runs of these methods agree in everything but the method; the nearest, {described(one)} and "
            f"{described(two)}, differ in {fields}. Candidates: {_listed([*first, *second])}"
        )
    for side in (0, 1):
        for one, two in combinations({id(pair[side]): pair[side] for pair in found}.values(), 2):
            if not disagreement(one, two, task):
                _refuse(one, two, first if side == 0 else second)
    return found


def _trained(field: str) -> bool:
    return field.startswith(("stages.", "trained."))


def _refuse(one: Group, two: Group, of_method: Sequence[Group]) -> None:
    a, b = (about_runs(group).setting for group in (one, two))
    keys = [key for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
    fields = "; ".join(f"{key} ({shown_value(a.get(key))} and {shown_value(b.get(key))})" for key in keys)
    raise RequestError(
        f"{described(one)} and {described(two)} would both do, and differ in {fields}: choose with "
        f"--where {about_runs(one).method}:FIELD=VALUE. Candidates: {_listed(of_method)}"
    )


def common_seeds(one: Group, two: Group) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The seeds to compare of each side: those that both have; all, where a side was not trained and has no variance.

    Raises:
        RequestError: there is no such seed.
    """
    if not trains(one) or not trains(two):
        return tuple(one), tuple(two)
    both = tuple(seed for seed in one if seed in two)
    if not both:
        raise RequestError(f"{described(one)} and {described(two)} have no seed in common; run one with the other's")
    return both, both


def described(group: Group) -> str:
    """A group in words: method, training, blindness, seeds, and where its first run lies."""
    row = about_runs(group)
    kind = f", blind {row.blind}" if row.blind else ""
    folder, _ = next(iter(group.values()))
    seeds = ", ".join(map(str, row.seeds))
    return f"{row.method} (trained on {row.trained_on or 'nothing'}{kind}; seeds {seeds}; {folder.name[:8]})"


def _listed(groups: Sequence[Group]) -> str:
    return ", ".join(map(described, groups[:_LISTED])) + (", ..." if len(groups) > _LISTED else "")
