"""The rows of tables: finished runs that differ in nothing but the seed, and what sets them apart from others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.files import canonical_json
from medbench.results.record import read_record, run_folders
from medbench.scoring.kinds import known_names
from medbench.scoring.stats import Estimate

#: What an imported row was trained on.
IMPORTED = "unknown (imported)"
#: Finished runs that differ in nothing but the seed: seed -> (folder, record), seeds in order.
Group = dict[int, tuple[Path, dict[str, Any]]]


@dataclass(frozen=True)
class Cell:
    """One figure of one row: the estimate over the seeds, and the standard deviation between them."""

    task: str
    metric: str
    estimate: Estimate
    seed_sd: float | None


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed; `blind` ones are rows of their own, and so are `imported` ones."""

    method: str
    backbone: str
    trained_on: str
    setting: dict[str, Any]
    seeds: tuple[int, ...]
    parameters: dict[str, Any]
    cells: tuple[Cell, ...] = ()
    blind: str | None = None
    imported: bool = False

    def cell(self, task: str, metric: str) -> Cell | None:
        """The cell of a column, None where it was not measured."""
        return next((c for c in self.cells if (c.task, c.metric) == (task, metric)), None)


def known_metrics(names: Sequence[str]) -> Sequence[str]:
    """The metrics of a request; `all` is all of them, of all kinds of task.

    Raises:
        RequestError: an unknown metric.
    """
    known = known_names()
    if tuple(names) == ("all",):
        return known
    for name in names:
        if name not in known:
            raise RequestError(f"unknown metric {name!r}; {did_you_mean(name, known)}")
    return names


def read_groups(paths: Iterable[Path]) -> tuple[list[Group], list[Path]]:
    """The finished runs among and below `paths`, by all of their specs but the seed, and the incomplete ones.

    So runs of different task versions, budgets, backbones or settings are different groups, and are never averaged.

    Raises:
        RequestError: no complete run.
        WorkError: runs of one spec differ in what it does not pin (`pinned`); names the field.
    """
    paths = list(paths)
    complete, incomplete = run_folders(paths)
    if not complete:
        where = ", ".join(map(str, paths))
        raise RequestError(f"no finished run in {where} ({len(incomplete)} incomplete)")
    groups: dict[str, Group] = {}
    for folder in complete:
        record = read_record(folder)
        group = groups.setdefault(canonical_json(without(record["spec"], "seed")), {})
        for other, known in list(group.values())[:1]:
            _check_same(other, known, folder, record)
        group.setdefault(record["seed"], (folder, record))  # a run named twice, or copied, counts once
    return [dict(sorted(group.items())) for group in groups.values()], incomplete


_PINNED_KEYS = ("digest", "images_digest", "items", "profile", "split", "protocol", "n", "clusters")


def pinned(record: dict[str, Any]) -> dict[str, Any]:
    """What a spec does not pin and yet decides what a figure means: dotted name of the record -> value.

    Data digests, the scoring profile, the weights that a hub id resolved to, the parameters counted.
    """
    fields: dict[str, Any] = {name: record[name] for name in ("method", "backbone")}
    fields |= {f"weights.{name}": record["weights"].get(name) for name in ("backbone", "commit")}
    fields |= {f"parameters.{name}": value for name, value in record["parameters"].items()}
    for part in ("data", "tasks"):
        for name, about in record[part].items():
            fields |= {f"{part}.{name}.{key}": about.get(key) for key in _PINNED_KEYS if key in about}
    return fields


def _check_same(first: Path, known: dict[str, Any], second: Path, record: dict[str, Any]) -> None:
    """Refuses to average two runs of one spec that were not given the same data, weights or scoring rule."""
    one, two = pinned(known), pinned(record)
    names = {*one, *two}
    if known["seed"] != record["seed"]:
        names -= _drawn(record["spec"])
    for name in sorted(names):
        if one.get(name) != two.get(name):
            values = f"{shown_value(one.get(name))} and {shown_value(two.get(name))}"
            raise WorkError(
                f"{first} and {second} are of one spec but differ in {name} ({values}): never averaged; "
                "run one of them again, or name the folders of one kind only"
            )


def _drawn(spec: dict[str, Any]) -> set[str]:
    """The fields of `pinned` in which the seeds of a spec differ by design: the images of shots, which a seed draws."""
    parts = [part["data"] for stage in spec["stages"] for part in stage["mixture"]]
    return {f"data.{part['task']}/{part['split']}.images_digest" for part in parts if part.get("shots") is not None}


def without(spec: dict[str, Any], *names: str) -> dict[str, Any]:
    """A spec (or a row's setting) without some of its fields."""
    return {key: value for key, value in spec.items() if key not in names}


def row_order(row: Row) -> tuple[Any, ...]:
    """Sorts rows: the plain backbone first, then by training and method, blind rows after their sighted one."""
    setting = canonical_json(without(row.setting, "blind"))
    trained_on = (row.trained_on != "", row.trained_on)
    return (row.backbone, *trained_on, row.method != "none", row.method, setting, row.blind or "")


def about_runs(group: Group) -> Row:
    """What the runs of a group are: their row, without figures."""
    _, record = next(iter(group.values()))
    return Row(
        method=record["method"],
        backbone=record["backbone"],
        trained_on=IMPORTED if is_imported(group) else " then ".join("+".join(stage) for stage in record["stages"]),
        setting=setting_of(record["spec"]),
        seeds=tuple(group),
        parameters=record["parameters"],
        blind=record["spec"].get("blind"),
        imported=is_imported(group),
    )


def is_imported(group: Group) -> bool:
    """Whether a group is another system's answers (`medbench import`)."""
    _, record = next(iter(group.values()))
    return bool(record.get("imported"))


def column_name(task: str, split: str) -> str:
    """How a tested task is named: its split, too, where that is not `test`."""
    return task if split == "test" else f"{task} ({split})"


def setting_of(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec but its seed as dotted keys, tasks by name: `stages.0.mixture.slake` is a weight, `tests.slake.limit`."""
    flat = flatten(without(spec, "seed", "stages", "tests"))
    for number, stage in enumerate(spec["stages"]):
        flat |= flatten(without(stage, "mixture"), f"stages.{number}")
        for part in stage["mixture"]:
            name = f"stages.{number}.mixture.{part['data']['task']}"
            flat |= {name: part["weight"]} | flatten(without(part["data"], "task"), name)
    for test in spec["tests"]:
        flat |= flatten(without(test, "task"), f"tests.{test['task']}")
    return flat


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists are numbered."""
    if isinstance(value, dict):
        pairs = value.items()
    elif isinstance(value, list):
        pairs = dict(enumerate(value)).items()
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in pairs:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing(row: Row, rows: Sequence[Row]) -> str:
    """What sets a row apart from the others of its method and training: `training.lr=0.001`, or nothing."""
    same = [r for r in rows if (r.method, r.backbone, r.trained_on) == (row.method, row.backbone, row.trained_on)]
    told = (
        *("method.adapter.", "method.weights", "stages.", "tests.", "backbone.processor", "backbone.weights"),
        *("generation.", "dtype", "on_bad_item", "version"),
    )
    keys = sorted({key for other in same for key in other.setting if key.startswith(told)})
    keys = [key for key in keys if not (key.startswith("tests.") and key.endswith(".split"))]  # another column
    changed = [key for key in keys if len({canonical_json(value) for value in _values(key, same)}) > 1]
    # Another version of a card has another digest, too.
    changed = [key for key in changed if not (key.endswith(".card") and key[:-4] + "version" in changed)]
    return ", ".join(f"{_short(key)}={shown_value(row.setting[key])}" for key in changed if _has(key, row))


def _values(key: str, rows: Sequence[Row]) -> list[Any]:
    """The values of a setting; of a test only in the rows that have it: which tasks were tested, the columns show."""
    return [row.setting.get(key) for row in rows if _has(key, row) or not key.startswith("tests.")]


def _has(key: str, row: Row) -> bool:
    return key in row.setting


def shown_value(value: Any) -> Any:
    """A value as a table shows it: of a digest the head."""
    if isinstance(value, str) and value.startswith("sha256:"):
        return value[:15]
    if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"):
        return value[:8]
    return "none" if value is None else value


def _short(key: str) -> str:
    return key.removeprefix("stages.0.").removeprefix("method.")
