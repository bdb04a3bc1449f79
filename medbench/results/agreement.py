"""What two rows must share for their figures to be compared: everything but the method, its training and the seed."""

from __future__ import annotations

from typing import Any

from medbench.results.rows import Group, Row, about_runs, is_imported, pinned, setting_of

#: Fields that follow from the method, not from the request; and the trace, which changes no figure.
_OF_THE_METHOD = ("method.", "budget.", "protocol", "backbone.kind", "trace")
_BACKBONE = ("backbone", "dtype", "generation.", "on_bad_item", "version", "weights.")


def spec_of(group: Group) -> dict[str, Any]:
    """The spec of a group's runs; they share all of it but the seed."""
    _, record = next(iter(group.values()))
    spec: dict[str, Any] = record["spec"]
    return spec


def trains(group: Group) -> bool:
    """Whether a row was trained here: the seeds of others are one and the same answer."""
    return bool(spec_of(group)["stages"])


def is_reference(row: Row) -> bool:
    """Whether a row stands outside all budgets: `none`, `full_ft`, an adapter from elsewhere, an imported model."""
    return not row.parameters["budget"]


def conditions(group: Group, task: str) -> dict[str, Any]:
    """Under which conditions a group gives its figures of a task: dotted field -> value.

    The backbone and its settings, the budget that was asked for, what was trained on, blindness, and of the task the
    version, card, split, limit, profile and the digests of its items and images. Not in it: the method with its
    settings, how it was trained (each recipe has its own learning rate) and the seed.
    """
    _, record = next(iter(group.values()))
    spec = record["spec"]
    flat = setting_of(spec | {"tests": [test for test in spec["tests"] if test["task"] == task]})
    found = {key: value for key, value in flat.items() if not key.startswith(_OF_THE_METHOD)}
    found = {key: value for key, value in found.items() if not (key.startswith("stages.") and ".training." in key)}
    found |= {"budget": spec["budget"]["request"], "blind": spec.get("blind")}
    found["stages.trained_on"] = about_runs(group).trained_on
    parts = [part["data"] for stage in spec["stages"] for part in stage["mixture"]]
    used = {f"{part['task']}/{part['split']}" for part in parts}
    tested = f"{task}/{record['tasks'][task]['split']}"
    for name, value in pinned(record).items():
        head, _, rest = name.partition(".")
        source, _, key = rest.rpartition(".")
        if head == "data" and key in ("digest", "images_digest"):
            found |= {name: value} if source == tested else {}
            found |= {f"trained.{rest}": value} if source in used else {}
        elif name == f"tasks.{task}.profile" or head == "weights":
            found[name] = value
    return found


def tested_conditions(group: Group, task: str) -> dict[str, Any]:
    """The part of the conditions that says what was answered and how it was scored."""
    found = conditions(group, task)
    return {key: value for key, value in found.items() if key.startswith(("tests.", "data.", "tasks."))}


def disagreement(first: Group, second: Group, task: str) -> dict[str, tuple[Any, Any]]:
    """The conditions in which two groups differ: field -> both values; empty where they can be compared.

    A row that has no training, no budget or no backbone known here is not held to the other's.
    """
    one, two = conditions(first, task), conditions(second, task)
    free = (*_free(first), *_free(second))
    keys = [key for key in sorted({*one, *two}) if not key.startswith(free)] if free else sorted({*one, *two})
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}


def _free(group: Group) -> tuple[str, ...]:
    free: tuple[str, ...] = ()
    if not trains(group):
        free += ("stages.", "trained.")
    if not spec_of(group)["budget"]["request"]:
        free += ("budget",)
    if is_imported(group):
        free += _BACKBONE
    return free


def field_values(group: Group, name: str) -> list[Any]:
    """The values of the fields with this name, or whose dotted name ends so; empty where there is none.

    `training.lr` is every stage's; `budget`, `trained_on`, `backbone` and `blind` are as a table shows them.
    """
    spec = spec_of(group)
    short = {"budget": spec["budget"]["request"], "trained_on": about_runs(group).trained_on}
    short |= {"backbone": spec["backbone"]["name"], "blind": spec.get("blind")}
    if name in short:
        return [short[name]]
    flat = setting_of(spec)
    return [value for key, value in flat.items() if key == name or key.endswith("." + name)]


def training_differences(first: Group, second: Group) -> dict[str, tuple[Any, Any]]:
    """The training settings in which two groups differ (`training.lr`), where both were trained."""
    if not (trains(first) and trains(second)):
        return {}
    one, two = (setting_of(spec_of(group)) for group in (first, second))
    keys = [key for key in sorted({*one, *two}) if key.startswith("stages.") and ".training." in key]
    return {key: (one.get(key), two.get(key)) for key in keys if one.get(key) != two.get(key)}
