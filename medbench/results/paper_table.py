"""`medbench table --paper`: our runs in the shape of one of the paper's tables, with what is published beside them.

So far this is T2, classification under `transfer` and `in_domain`. A table of the same kind (one figure a set, and
their mean) is one more `Shape`. Rows are folded by `medbench.results.paper_fold` and shown by
`medbench.results.paper_text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medbench.catalog import Catalog
from medbench.errors import RequestError
from medbench.files import canonical_json
from medbench.results.agreement import conditions
from medbench.results.marks import ItemValues, Standing, item_values, judged, standings, takes_part
from medbench.results.matching import Where
from medbench.results.paper_fold import PROTOCOLS, Row, fold, group_cards, having, transfer_sets
from medbench.results.published import Published, load_published
from medbench.results.rows import read_groups
from medbench.results.tables import differing_tests
from medbench.scoring.bootstrap import RESAMPLES
from medbench.scoring.figures import better
from medbench.scoring.paired import measure_of

AVERAGE = "average"


@dataclass(frozen=True)
class Shape:
    """A table of one figure a set: the group of its sets, their kind, and the figure."""

    group: str
    kind: str
    metric: str


SHAPES = {"T2": Shape("radiology9", "classification", "accuracy")}


@dataclass(frozen=True)
class PaperTable:
    """Our rows, and the published table whose shape they have.

    Attributes:
        group: the group of tasks.
        tasks: the columns, in its order.
        rows: by backbone, protocol and method.
        standings: (row's number, task or `average`) -> whether the row is the best of its column, or a tie with it.
        uneven: column -> in which fields its rows were given other items, images or another rule.
        left_out: why -> how many cells' runs are in no row.
        incomplete: how many runs are not finished.
    """

    group: str
    metric: str
    tasks: tuple[str, ...]
    rows: tuple[Row, ...]
    standings: dict[tuple[int, str], Standing]
    uneven: dict[str, tuple[str, ...]]
    left_out: dict[str, int]
    incomplete: int
    published: Published

    @property
    def cited(self) -> dict[str, str]:
        """Task -> the published table's column of it, for all of its sets."""
        columns = self.published.columns.items()
        return {about.task: key for key, about in columns if about.metric == self.metric and about.task}

    @property
    def same_sets(self) -> bool:
        """Whether the published averages are over these very sets."""
        return set(self.cited) == set(self.tasks)


def build_paper_table(
    paths: Iterable[Path],
    name: str,
    catalog: Catalog,
    group: str | None = None,
    where: Sequence[Where] = (),
    resamples: int = RESAMPLES,
) -> PaperTable:
    """Folds runs into a table of a shape of the paper's.

    Args:
        paths: run folders, or folders of run folders.
        name: `T2`.
        catalog: where the group's cards are.
        group: another group of tasks of the same kind.
        where: fields that runs must have, where several would fill one cell.
        resamples: of the intervals.

    Raises:
        RequestError: no table of this name can be folded, no finished run fits, runs that differ in what a cell or a
            row should share, or an unknown group.
        WorkError: as `read_groups`.
    """
    if name not in SHAPES:
        raise RequestError(
            f"--paper {name}: only {', '.join(SHAPES)} can be folded so far; `table` alone shows all runs"
        )
    shape = SHAPES[name]
    others = transfer_sets(group_cards(catalog, group or shape.group, shape.kind))
    groups, incomplete = read_groups(paths)
    rows, left_out = fold(having(groups, where), others, shape.metric, resamples)
    if not rows:
        why = f" ({counted(left_out)})" if left_out else ""
        raise RequestError(f"no finished run here belongs in {name} over {group or shape.group}{why}")
    published = load_published(name)
    order = [row.method for row in published.rows.values()]
    rows.sort(key=lambda row: _order(row, order))
    table = (group or shape.group, shape.metric, tuple(others), tuple(rows))
    marks = _standings(rows, shape.metric) | _average_standings(rows, shape.metric)
    return PaperTable(*table, marks, _uneven(rows, list(others)), left_out, len(incomplete), published)


def _order(row: Row, published: Sequence[str | None]) -> tuple[Any, ...]:
    """By backbone and protocol; the plain model first, then as the published table has the methods."""
    key = row.key
    place = published.index(key.method) if key.method in published else len(published)
    return (key.backbone, *(list(PROTOCOLS).index(key.protocol), key.method != "none", place, key.method, key.variant))


def _standings(rows: Sequence[Row], metric: str) -> dict[tuple[int, str], Standing]:
    found: dict[tuple[int, str], Standing] = {}
    for task in {task: None for row in rows for task in row.cells}:
        here = {
            n: (filled.group, filled.tables)
            for n, row in enumerate(rows)
            if (filled := row.cells.get(task)) is not None
        }
        found |= {(n, task): standing for n, standing in (standings(here, metric) or {}).items()}
    return found


def _average_standings(rows: Sequence[Row], metric: str) -> dict[tuple[int, str], Standing]:
    """As `standings`, of the mean over the sets: rows that share the conditions of every set."""
    blocks: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if row.average and all(takes_part(filled.group) for filled in row.cells.values()):
            shared = {task: conditions(filled.group, task) for task, filled in row.cells.items()}
            blocks.setdefault(canonical_json(shared), []).append(number)
    kept = [block for block in blocks.values() if len(block) > 1]
    values: dict[int, ItemValues] = {}
    for block in kept:
        values |= _weighed({number: rows[number] for number in block}, metric)
    return {(number, AVERAGE): standing for number, standing in judged(kept, values, better(metric)).items()}


def _weighed(rows: dict[int, Row], metric: str) -> dict[int, ItemValues]:
    """The items of all sets, weighed so that their mean is the mean of the sets' means; clusters stay within a set."""
    parts: dict[int, list[ItemValues]] = {number: [] for number in rows}
    for task in next(iter(rows.values())).cells:
        tables = {number: row.cells[task].tables for number, row in rows.items()}
        measure = measure_of(next(iter(tables.values()))[0], metric)
        for number, own in item_values(tables, measure).items():
            named = np.array([f"{task}/{cluster}" for cluster in own.clusters], dtype=object)
            parts[number].append(ItemValues(own.items, named))
    found = {}
    for number, sets in parts.items():
        n = sum(len(own.items) for own in sets)
        items = np.concatenate([own.items * n / (len(sets) * len(own.items)) for own in sets])
        found[number] = ItemValues(items, np.concatenate([own.clusters for own in sets]))
    return found


def _uneven(rows: Sequence[Row], tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for task in tasks:
        here = [(filled.group, filled.tables) for row in rows if (filled := row.cells.get(task)) is not None]
        fields = differing_tests(here) if here else ()
        found |= {task: fields} if fields else {}
    return found


def counted(left_out: dict[str, int]) -> str:
    """What is in no row, in words."""
    return ", ".join(f"{count} of runs {why}" for why, count in left_out.items())
