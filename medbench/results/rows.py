"""The rows of tables: finished runs that differ in nothing but the seed, and what sets them apart from others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.errors import RequestError, did_you_mean
from medbench.files import canonical_json
from medbench.results.record import read_record, run_folders
from medbench.scoring.stats import Estimate
from medbench.scoring.vqa import METRICS, PROBABILITY_METRICS

_KNOWN = (*METRICS, *PROBABILITY_METRICS)
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
    """Runs that differ in nothing but the seed; `blind` ones are rows of their own."""

    method: str
    backbone: str
    trained_on: str
    setting: dict[str, Any]
    seeds: tuple[int, ...]
    parameters: dict[str, Any]
    cells: tuple[Cell, ...] = ()
    blind: str | None = None

    def cell(self, task: str, metric: str) -> Cell | None:
        """The cell of a column, None where it was not measured."""
        return next((c for c in self.cells if (c.task, c.metric) == (task, metric)), None)


def known_metrics(names: Sequence[str]) -> Sequence[str]:
    """The metrics of a request; `all` is all of them.

    Raises:
        RequestError: an unknown metric.
    """
    if tuple(names) == ("all",):
        return _KNOWN
    for name in names:
        if name not in _KNOWN:
            raise RequestError(f"unknown metric {name!r}; {did_you_mean(name, _KNOWN)}")
    return names


def read_groups(paths: Iterable[Path]) -> tuple[list[Group], list[Path]]:
    """The finished runs among and below `paths`, by all of their specs but the seed, and the incomplete ones.

    Raises:
        RequestError: no complete run.
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
        group.setdefault(record["seed"], (folder, record))  # a run named twice, or copied, counts once
    return [dict(sorted(group.items())) for group in groups.values()], incomplete


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
        trained_on=" then ".join("+".join(stage) for stage in record["stages"]),
        setting=flatten(without(record["spec"], "seed")),
        seeds=tuple(group),
        parameters=record["parameters"],
        blind=record["spec"].get("blind"),
    )


def column_name(task: str, split: str) -> str:
    """How a tested task is named: its split, too, where that is not `test`."""
    return task if split == "test" else f"{task} ({split})"


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
    keys = sorted({key for other in same for key in {*row.setting, *other.setting}})
    told = (
        *("method.adapter.", "method.weights", "stages.", "backbone.processor", "backbone.weights"),
        *("generation.", "dtype", "on_bad_item", "version"),
    )
    keys = [key for key in keys if (key.startswith(told) and ".mixture." not in key) or key.endswith(".weight")]
    changed = [key for key in keys if len({canonical_json(r.setting.get(key)) for r in same}) > 1]
    return ", ".join(f"{_short(key)}={_shown(row.setting.get(key))}" for key in changed)


def _shown(value: Any) -> Any:
    """A value as a table shows it: of a digest the head."""
    return value[:15] if isinstance(value, str) and value.startswith("sha256:") else value


def _short(key: str) -> str:
    return key.removeprefix("stages.0.").removeprefix("method.")
