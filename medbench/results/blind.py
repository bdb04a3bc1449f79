"""What the image adds: sighted runs beside their blind twins, paired item by item. Needs no data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.errors import RequestError, WorkError
from medbench.files import canonical_json
from medbench.results.record import read_scores
from medbench.results.rows import (
    Group,
    Row,
    about_runs,
    column_name,
    differing,
    is_imported,
    known_metrics,
    read_groups,
    row_order,
    without,
)
from medbench.results.tables import DEFAULT_METRICS
from medbench.results.writing import Format, points, with_notes
from medbench.scoring.figures import scale_of
from medbench.scoring.kinds import measures_of
from medbench.scoring.paired import Paired, estimate_paired

KINDS = ("test", "train")


@dataclass(frozen=True)
class Line:
    """One figure of a sighted row (`figures.first`) and of its blind twin, over the seeds that both have."""

    row: Row
    setting: str
    blind: str
    seeds: tuple[int, ...]
    task: str
    metric: str
    figures: Paired


@dataclass(frozen=True)
class BlindTable:
    """The lines, and what is not in them.

    Attributes:
        lines: one a sighted row, kind of blindness, task and metric, in the order of `build_table`'s rows.
        alone: how many sighted rows have no blind twin.
        orphans: how many blind rows have no sighted twin.
        retrained: whether some blind test has another adapter than its sighted twin (it trained for itself).
        uneven: whether seeds were left out that only one of two twins has.
        incomplete: runs that are not finished.
        imported: how many rows are other systems' answers, which have no blind twin to be had.
    """

    lines: tuple[Line, ...]
    alone: int
    orphans: int
    retrained: bool
    uneven: bool
    incomplete: tuple[str, ...]
    imported: int = 0

    def frame(self) -> pd.DataFrame:
        """One row a line, numbers as measured: what `--format csv` writes."""
        return pd.DataFrame([_numbers(line) for line in self.lines])


def build_blind_table(paths: Iterable[Path], metrics: Sequence[str] = DEFAULT_METRICS) -> BlindTable:
    """Sets each sighted row against its blind twins: runs whose specs differ in nothing but `blind` and the seed.

    Args:
        paths: run folders, or folders of run folders.
        metrics: names of figures, or `all`.

    Raises:
        RequestError: no complete run, an unknown metric, or no run that has a blind twin.
        WorkError: two twins answered different items or images.
    """
    metrics = known_metrics(metrics)
    found, incomplete = read_groups(paths)
    groups = [group for group in found if not is_imported(group)]
    imported = len(found) - len(groups)
    twins: dict[str, dict[str | None, Group]] = {}
    for group in groups:
        _, record = next(iter(group.values()))
        key = canonical_json(without(record["spec"], "seed", "blind"))
        twins.setdefault(key, {})[record["spec"].get("blind")] = group
    sighted = {key: about_runs(kinds[None]) for key, kinds in twins.items() if None in kinds}
    lines: list[Line] = []
    alone, uneven, retrained = 0, False, False
    for key, row in sorted(sighted.items(), key=lambda pair: row_order(pair[1])):
        setting, own = differing(row, list(sighted.values())), twins[key][None]
        for kind in KINDS:
            other = twins[key].get(kind, {})
            seeds = tuple(seed for seed in own if seed in other)
            if seeds:
                uneven |= set(own) != set(other)
                retrained |= kind == "test" and any(_adapter(own[seed]) != _adapter(other[seed]) for seed in seeds)
                lines += [
                    Line(row, setting, kind, seeds, task, metric, figures)
                    for task, metric, figures in _figures(own, other, seeds, metrics)
                ]
        alone += not any(set(own) & set(twins[key].get(kind, {})) for kind in KINDS)
    if not lines:
        raise RequestError(
            f"nothing here has a blind twin ({len(sighted)} sighted rows, {len(groups) - len(sighted)} blind ones, "
            + (f"{imported} imported, " if imported else "")
            + f"{len(incomplete)} runs incomplete); "
            "run the command of a sighted run again with --blind test or --blind train"
        )
    orphans = sum(len(kinds) for kinds in twins.values() if None not in kinds)
    return BlindTable(tuple(lines), alone, orphans, retrained, uneven, tuple(map(str, incomplete)), imported)


def _adapter(run: tuple[Path, dict[str, Any]]) -> Any:
    """The digest of the weights that a run was tested with."""
    return run[1]["weights"]["adapter"]


def _figures(
    own: Group, other: Group, seeds: Sequence[int], metrics: Sequence[str]
) -> Iterator[tuple[str, str, Paired]]:
    """(task, metric, figures) wherever both twins have the figure."""
    sides = [[group[seed] for seed in seeds] for group in (own, other)]
    for task, content in sides[0][0][1]["tasks"].items():
        runs = [run for side in sides for run in side]
        for data in runs[0][1]["data"]:  # what was trained on, too
            _check_data(data, runs)
        first, second = ([read_scores(folder, task) for folder, _ in side] for side in sides)
        for metric in (name for name in metrics if name in measures_of(first[0])):
            try:
                figures = estimate_paired(first, second, metric)
            except WorkError as error:
                raise WorkError(f"{sides[0][0][0]} and {sides[1][0][0]}, task {task}: {error}") from error
            if figures.difference.value is not None:
                yield column_name(task, content["split"]), metric, figures


def _check_data(data: str, runs: Sequence[tuple[Path, dict[str, Any]]]) -> None:
    """Twins must have been given the same items and images, also images that the blind one was not shown."""
    (first, record), *others = runs
    for folder, other in others:
        if any(record["data"][data][key] != other["data"][data][key] for key in ("digest", "images_digest")):
            raise WorkError(f"{first} and {folder} had different items or images of {data}: no twins")


def _numbers(line: Line) -> dict[str, Any]:
    row, figures = line.row, line.figures
    numbers: dict[str, Any] = {"method": row.method, "backbone": row.backbone, "trained_on": row.trained_on}
    numbers |= {"blind": line.blind, "setting": line.setting, "task": line.task, "metric": line.metric}
    for name, estimate in (("sighted", figures.first), ("blank", figures.second), ("adds", figures.difference)):
        numbers |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    difference = figures.difference
    numbers |= {"n": difference.n, "clusters": difference.clusters, "seeds": len(line.seeds)}
    return numbers | {"reason": difference.reason}


def render_blind(table: BlindTable, form: Format) -> str:
    """The table as Markdown, LaTeX (booktabs), HTML (escaped) or CSV (one row a figure)."""
    if form == "csv":
        return table.frame().to_csv(index=False)
    several = len({line.row.backbone for line in table.lines}) > 1
    with_setting = any(line.setting for line in table.lines)
    header = [*(["backbone"] if several else []), "method", "trained on", *(["setting"] if with_setting else [])]
    header += ["blind", "seeds", "task", "metric", "n", "images", "sighted", "blank", "image adds"]
    body = []
    for line in table.lines:
        figures = line.figures
        cells = [*([line.row.backbone] if several else []), line.row.method, line.row.trained_on or "-"]
        cells += [line.setting or "-"] if with_setting else []
        cells += [line.blind, str(len(line.seeds)), line.task, line.metric]
        cells += [str(figures.difference.n), str(figures.difference.clusters)]
        scale = scale_of(line.metric)
        cells += [points(each, scale=scale) for each in (figures.first, figures.second)]
        cells += [points(figures.difference, "+", scale=scale)]
        body.append(cells)
    return with_notes(header, body, _notes(table), form)


def _notes(table: BlindTable) -> list[str]:
    backbones = ", ".join(sorted({line.row.backbone for line in table.lines}))
    kinds = {line.blind for line in table.lines}
    notes = [
        f"Backbone: {backbones}. Percent; image adds: sighted less blank, in points, over the same items, "
        "paired, each item averaged over the seeds. Image-clustered 95 % bootstrap intervals."
    ]
    if "test" in kinds:
        notes.append("blind test: the same training, blank images at the test only.")
    if "train" in kinds:
        notes.append("blind train: blank images in training and test, what the text alone gives.")
    if any(len(line.seeds) == 1 and line.row.trained_on for line in table.lines):
        notes.append("Rows of one seed: the variance of training is unknown.")
    if any(line.metric == "ece" for line in table.lines):
        notes.append("ece is better the lower it is: there the image helps where it adds less than 0.")
    if table.uneven:
        notes.append("Seeds that only one of two twins has are left out.")
    if table.retrained:
        notes.append("Some blind tests trained for themselves: their adapter is not bit for bit the sighted one's.")
    if table.orphans:
        notes.append(f"Blind rows without a sighted twin, left out: {table.orphans}.")
    if table.alone:
        notes.append(f"Sighted rows without a blind twin, left out: {table.alone}.")
    if table.imported:
        notes.append(f"Imported rows, left out: {table.imported}.")
    if table.incomplete:
        notes.append(f"{len(table.incomplete)} incomplete runs are left out.")
    return notes
