"""Runs folded into the rows of a table like one of the paper's: a method under a protocol, its figure on every set.

A row takes its sets from many runs: of `in_domain` each set has a run that was trained on it alone, of `transfer` each
has one that was trained on the others. What a reader takes to be the same along a row is checked to be the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.errors import RequestError
from medbench.results.agreement import conditions, field_values, spec_of
from medbench.results.matching import Where
from medbench.results.record import read_scores
from medbench.results.rows import Cell, Group, about_runs, is_imported, setting_of, shown_value
from medbench.scoring.bootstrap import LEVEL, RESAMPLES, Estimate, cluster_draws, estimate_of_draws
from medbench.scoring.measures import Measure, aligned, estimate_measures
from medbench.scoring.paired import measure_of
from medbench.scoring.stats import seed_sd
from medbench.scoring.weighted import ratio_statistic

#: What each protocol of a row says, as a note below a table.
PROTOCOLS = {
    "zero_shot": "zero_shot: not trained here",
    "transfer": "transfer: trained on the other sets of the group that are not of the same data set",
    "in_domain": "in_domain: trained on the training split of this very set alone",
    "seen": "seen: not trained here, but the backbone or the adapter was trained on this data set elsewhere",
    "unknown": "unknown: nothing is known of what it was trained on",
}
#: Fields of a cell that belong to its set, not to its row.
_OF_THE_SET = ("tests.", "data.", "tasks.", "trained.", "stages.")


@dataclass(frozen=True)
class Key:
    """What a row is. `variant` says in words what else sets it apart: `4-shot`, `single prompt`."""

    backbone: str
    protocol: str
    method: str
    variant: str


@dataclass(frozen=True)
class Filled:
    """A cell's runs (of one spec, by seed), their score tables in the order of one, and its figure."""

    group: Group
    tables: tuple[pd.DataFrame, ...]
    cell: Cell


@dataclass(frozen=True)
class Row:
    """A row: its cells by set, and their plain mean, which is None while one of them is missing."""

    key: Key
    parameters: dict[str, Any]
    cells: dict[str, Filled]
    average: Estimate | None
    average_sd: float | None
    missing: tuple[str, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """How many seeds the cells have: each number once, rising."""
        return tuple(sorted({len(filled.group) for filled in self.cells.values()}))


def transfer_sets(cards: Sequence[Card]) -> dict[str, frozenset[str]]:
    """Task -> the tasks that `--protocol transfer` trains on when it is left out (`medbench.plan_data.assignments`)."""
    return {
        card.name: frozenset(
            other.name
            for other in cards
            if "train" in other.metadata.splits and not other.metadata.datasets & card.metadata.datasets
        )
        for card in cards
    }


def group_cards(catalog: Catalog, group: str, kind: str) -> list[Card]:
    """The cards of a group of tasks of one kind, in the group's order.

    Raises:
        RequestError: no such group, a member without a card, or of another kind.
    """
    try:
        names = catalog.task_names(group)
    except RequestError as error:
        raise RequestError(f"--group {group}: {error}") from error
    cards = [catalog.task(name) for name in names]
    for card in cards:
        if card.metadata.kind != kind:
            raise RequestError(
                f"--group {group}: task {card.name} is of kind {card.metadata.kind}; this table is of kind {kind}"
            )
    return cards


def protocol_of(record: Mapping[str, Any], task: str, others: frozenset[str]) -> str | None:
    """Under which protocol a run answered a task; None where it was trained on something else than a table is about.

    Args:
        record: of the run.
        task: that it was tested on.
        others: what is trained on under `transfer` when the task is left out.
    """
    told: str = record["tasks"][task]["protocol"]
    if not record["stages"]:
        return "seen" if told == "in_domain" else told
    if len(record["stages"]) > 1:
        return None
    trained = frozenset(record["stages"][0])
    if trained == {task}:
        return "in_domain"
    return "transfer" if others and trained == others and told != "in_domain" else None


def having(groups: Sequence[Group], where: Sequence[Where]) -> list[Group]:
    """The groups that have the fields asked for; one that has no such field, or is of another method, stays.

    Raises:
        RequestError: no group has the field, or none has the value; says which there are.
    """
    for method, name, value in where:
        asked = [group for group in groups if method in (None, about_runs(group).method)]
        there = {id(group): values for group in asked if (values := field_values(group, name))}
        known = sorted({str(each) for values in there.values() for each in values})
        if not any(value in values for values in there.values()):
            said = f"there are {', '.join(known)}" if known else "no run has such a field"
            raise RequestError(f"--where {name}={value}: no run has it; {said}")
        groups = [group for group in groups if id(group) not in there or value in there[id(group)]]
    return list(groups)


def fold(
    groups: Iterable[Group], others: Mapping[str, frozenset[str]], metric: str, resamples: int = RESAMPLES
) -> tuple[list[Row], dict[str, int]]:
    """The rows, and why how many cells' runs are in none.

    Args:
        groups: finished runs, of `medbench.results.rows.read_groups`.
        others: the table's sets, in its order -> what is trained on under `transfer` (`transfer_sets`).
        metric: of the columns; a mean over items.
        resamples: of the intervals; 0 for none.

    Raises:
        RequestError: two sets of runs would fill one cell, or the cells of a row were not run alike: names the fields.
    """
    found: dict[Key, dict[str, list[Group]]] = {}
    left_out: dict[str, int] = {}
    for group in groups:
        _, record = next(iter(group.values()))
        for task in (task for task in others if task in record["tasks"]):
            place = _place(group, record, task, others[task])
            if isinstance(place, Key):
                found.setdefault(place, {}).setdefault(task, []).append(group)
            else:
                left_out[place] = left_out.get(place, 0) + 1
    rows = []
    for key, by_task in found.items():
        chosen = {task: _only(key, task, by_task[task]) for task in others if task in by_task}
        _check_row(key, chosen)
        cells = {task: _filled(group, task, metric, resamples) for task, group in chosen.items()}
        rows.append(_row(key, cells, list(others), metric, resamples))
    return rows, left_out


def set_mean(sets: Sequence[tuple[Any, Any]], resamples: int = RESAMPLES, level: float = LEVEL) -> Estimate:
    """The plain mean of the means of several sets, with a percentile interval.

    The sets are independent, so each is resampled by itself (clusters, with draws of its own) and the means of the
    resamples are averaged.

    Args:
        sets: (values of the items, their clusters) of each; shape (n,) each.
        resamples: how many; 0 for no interval.
        level: coverage of the interval.

    Example:
        >>> set_mean([([1.0, 0.0], ["a", "b"]), ([1.0], ["a"])], resamples=0).value
        0.75
    """
    values = [np.asarray(items, dtype=np.float64) for items, _ in sets]
    counts = [len(np.unique(np.asarray(clusters).astype(str))) for _, clusters in sets]
    value, n = float(np.mean([items.mean() for items in values])), sum(map(len, values))
    if min(counts) < 2 or not resamples:
        reason = "a set has fewer than two clusters: no interval" if min(counts) < 2 else "no resamples: no interval"
        return Estimate(value, None, None, n, sum(counts), reason)
    drawn = [
        cluster_draws(ratio_statistic(items, np.ones(len(items))), clusters, resamples, seed)
        for seed, (items, (_, clusters)) in enumerate(zip(values, sets, strict=True))
    ]
    return estimate_of_draws(value, np.mean(drawn, axis=0), n, sum(counts), level)


def _place(group: Group, record: Mapping[str, Any], task: str, others: frozenset[str]) -> Key | str:
    """The row of a task's runs, or why they are in none."""
    if record["tasks"][task]["split"] != "test":
        return "not of the test split"
    if record["spec"].get("blind"):
        return "blind"
    protocol = protocol_of(record, task, others)
    if protocol is None:
        return "trained neither on the set alone nor on all the others"
    spec = record["spec"]
    shots = {part["data"].get("shots") for stage in spec["stages"] for part in stage["mixture"]} - {None}
    variant = [f"{number}-shot" for number in sorted(shots)]
    variant += [f"{spec['prompts']} prompt"] if spec.get("prompts") else []
    about = about_runs(group)
    return Key("-" if about.imported else about.backbone, protocol, about.method, ", ".join(variant))


def _fields(group: Group, task: str) -> dict[str, Any]:
    """Everything that a cell's runs share and that could set them apart from others: dotted field -> value."""
    spec = spec_of(group)
    flat = setting_of(spec | {"tests": [test for test in spec["tests"] if test["task"] == task]})
    own = {name: value for name, value in flat.items() if name.startswith("method.") or ".training." in name}
    found = conditions(group, task) | own
    # An imported model's weights are the file of its answers, which is another for every set.
    return {name: value for name, value in found.items() if not (is_imported(group) and name == "method.weights")}


def _apart(one: Mapping[str, Any], two: Mapping[str, Any]) -> str:
    """In which fields two cells differ, with both values."""
    names = [name for name in sorted({*one, *two}) if one.get(name) != two.get(name)]
    return "; ".join(f"{name} ({shown_value(one.get(name))} and {shown_value(two.get(name))})" for name in names)


def _only(key: Key, task: str, groups: Sequence[Group]) -> Group:
    """The runs of a cell; of runs that say the same of it (tested with other tasks, too) those of most seeds."""
    for other in groups[1:]:
        apart = _apart(_fields(groups[0], task), _fields(other, task))
        if apart:
            raise RequestError(
                f"{key.method}, {key.protocol}, {task}: runs that differ in {apart} would fill one cell; choose with "
                "--where FIELD=VALUE, or name the folders of one kind only"
            )
    return max(groups, key=len)


def _check_row(key: Key, chosen: Mapping[str, Group]) -> None:
    """Refuses a row whose cells were not run alike; how each was trained is its own."""
    tasks = list(chosen)
    each = {
        task: {name: value for name, value in _fields(group, task).items() if not name.startswith(_OF_THE_SET)}
        for task, group in chosen.items()
    }
    for task in tasks[1:]:
        apart = _apart(each[tasks[0]], each[task])
        if apart:
            raise RequestError(
                f"{key.method}, {key.protocol}: {tasks[0]} and {task} stand in one row, but their runs differ in "
                f"{apart}; choose with --where FIELD=VALUE, or name the folders of one kind only"
            )


def _filled(group: Group, task: str, metric: str, resamples: int) -> Filled:
    tables = aligned([read_scores(folder, task) for folder, _ in group.values()])
    measure = measure_of(tables[0], metric)
    if measure.statistic is not None:
        raise RequestError(f"{metric} is no mean over items, so this table cannot be of it")
    asked = {metric: measure}
    estimate = estimate_measures(asked, tables, {"resamples": resamples, "level": LEVEL, "seed": 0})[metric]
    return Filled(group, tuple(tables), Cell(task, metric, estimate, seed_sd(_by_seed(measure, tables))))


def _by_seed(measure: Measure, tables: Sequence[pd.DataFrame]) -> list[float]:
    return [float(measure.means([table], measure.usable([table])).mean()) for table in tables]


def _row(key: Key, cells: dict[str, Filled], tasks: Sequence[str], metric: str, resamples: int) -> Row:
    first = next(iter(cells.values()))
    about = about_runs(first.group)
    missing = tuple(task for task in tasks if task not in cells)
    average, sd = None, None
    if not missing:
        measures = {task: measure_of(cells[task].tables[0], metric) for task in tasks}
        used = {task: measures[task].usable(cells[task].tables) for task in tasks}
        average = set_mean(
            [
                (measures[task].means(cells[task].tables, used[task]), cells[task].tables[0].loc[used[task], "cluster"])
                for task in tasks
            ],
            resamples,
        )
        if len({tuple(cells[task].group) for task in tasks}) == 1:  # one seed trains each of the sets' adapters
            by_seed = np.mean([_by_seed(measures[task], cells[task].tables) for task in tasks], axis=0)
            sd = seed_sd(by_seed.tolist())
    return Row(key, about.parameters, cells, average, sd, missing)
