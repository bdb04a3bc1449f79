"""Runs folded in the shape of each of the paper's tables, with what is published beside them, never mixed with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medbench.catalog import Catalog
from medbench.errors import RequestError, WorkError
from medbench.reproduce_plan import Reproduction
from medbench.reproduce_studies import fold_studies
from medbench.reproduce_table import Column, Entry, Folded, published_rows
from medbench.results.arms import VQA_METRICS, Arm, Paired, Scores, arms_of
from medbench.results.paper_table import AVERAGE, build_paper_table
from medbench.results.paper_text import render_paper
from medbench.results.published import Published, load_published
from medbench.results.writing import INTERVALS
from medbench.scoring.bootstrap import RESAMPLES
from medbench.scoring.kinds import measures_of
from medbench.scoring.measures import aligned, estimate_measures
from medbench.scoring.stats import metric_values, seed_sd

#: The figures of T4, by kind of task; the published BLEU is a mean of orders or not, which is not said.
_T4 = {"report": ("bleu_mean", "rouge_l", "meteor"), "hallucination": ("accuracy", "f1", "auroc")}
_CONDITIONAL = (
    f"Percent with {INTERVALS}, ± the deviation between seeds. An average is the plain "
    "mean of its columns, and there is none while one of them is missing."
)


def fold_table(found: Reproduction, catalog: Catalog, resamples: int = RESAMPLES) -> Folded:
    """The finished runs of a table in its shape.

    Raises:
        RequestError: T2 without a finished run. WorkError: broken records, or runs that do not fit one another.
    """
    published = load_published(found.table)
    if found.table == "T2":
        return _t2(found, catalog, published, resamples)
    scores = Scores(found.finished)
    arms = arms_of([part.sweep for part in found.parts if part.study is None])
    if found.table in ("T1", "T4", "T7"):
        return _rows_of_arms(found, published, scores, arms, resamples)
    shapes: dict[str, Callable[..., Folded]] = {"T3": _t3, "T6": _t6}
    if found.table in shapes:
        return shapes[found.table](found, published, scores, arms, resamples)
    columns, methods, entries, notes = fold_studies(found, published, resamples)
    return _folded(found, published, columns, methods, entries, notes)


def one_figure(scores: Scores, arm: Arm, task: str, metric: str, resamples: int) -> Entry:
    """A figure of an arm on a task."""
    tables, planned = scores.tables(arm, task), len(arm.runs.get(task, ()))
    if not tables:
        return Entry(None, planned=planned, reason=_why(arm, task))
    own = aligned(list(tables.values()))
    measure = measures_of(own[0]).get(metric)
    if measure is None:
        return Entry(None, planned=planned, reason=f"{task} has no {metric}")
    estimate = estimate_measures({metric: measure}, own, {"resamples": resamples, "level": 0.95, "seed": 0})[metric]
    each = [metric_values(table, (metric,))[metric] for table in own]
    return Entry.of(estimate, list(tables), planned, seed_sd(each))


def average(scores: Scores, arm: Arm | None, metrics: Mapping[str, Sequence[str]], resamples: int) -> Entry:
    """The mean over an arm's tasks and their figures; none while a run of all seeds is missing."""
    if arm is None:
        return Entry(None, reason="no such setting in these grids")
    planned = max((len(arm.runs.get(task, ())) for task in metrics), default=0)
    lacking = [task for task in metrics if not scores.tables(arm, task)]
    if lacking or not metrics:
        return Entry(None, planned=planned, reason=_why(arm, lacking[0] if lacking else None))
    seeds = scores.seeds([arm], list(metrics))
    if not seeds:
        return Entry(None, planned=planned, reason="no seed is finished on every set")
    figure = Paired(scores, metrics, seeds).contrast([(1.0, [arm])]).figure(resamples)
    return Entry.of(figure.estimate, seeds, planned, figure.seed_sd)


def _why(arm: Arm, task: str | None) -> str:
    if arm.problem:
        return arm.problem
    if task is None or task not in arm.runs:
        return "not tested at this scale"
    return "not run, or not finished"


def _tasks(arms: Sequence[Arm]) -> list[str]:
    return list(dict.fromkeys(task for arm in arms for task in arm.runs))


def _kinds(found: Reproduction) -> dict[str, str]:
    return {name: card.metadata.kind for job in found.jobs.values() for name, card in job.cards.items()}


def _rows_of_arms(
    found: Reproduction, published: Published, scores: Scores, arms: Sequence[Arm], resamples: int
) -> Folded:
    """T1, T4, T7: a row a setting, a column a task and figure."""
    kinds = _kinds(found)
    metrics = {task: _T4.get(kinds[task], VQA_METRICS) for task in _tasks(arms)}
    columns = [
        Column(f"{task}.{metric}", f"{task} {metric}", published=published.column_of(task, metric))
        for task, names in metrics.items()
        for metric in names
    ]
    ours = {column.published for column in columns}
    columns += [Column(key, about.title, published=key) for key, about in published.columns.items() if key not in ours]
    averaged = AVERAGE in published.columns
    entries: dict[tuple[str, str], Entry] = {}
    names = {arm.label: arm for arm in arms}
    for name, arm in names.items():
        for task, wanted in metrics.items():
            for metric in wanted:
                entries[name, f"{task}.{metric}"] = one_figure(scores, arm, task, metric, resamples)
        if averaged:
            tested = metrics if found.table == "T1" else {task: metrics[task] for task in arm.runs}
            entries[name, AVERAGE] = average(scores, arm, tested, resamples)
        for column in columns:
            entries.setdefault((name, column.key), Entry(None, reason="not tested at this scale"))
    notes = [_CONDITIONAL] if averaged else [_CONDITIONAL.split(" An average")[0]]
    if averaged and ours != {column.published for column in columns} - {AVERAGE}:
        notes.append("The published averages are over other sets than these: never compare them.")
    return _folded(found, published, columns, list(names), entries, notes)


def _folded(
    found: Reproduction,
    published: Published,
    columns: Sequence[Column],
    rows: Sequence[str],
    entries: dict[tuple[str, str], Entry],
    notes: Sequence[str],
) -> Folded:
    backbones = tuple(dict.fromkeys(job.backbone.name for job in found.jobs.values()))
    lines = [
        f"Measured on {', '.join(backbones)}, scale {found.scale}; the published rows are of other backbones and data, "
        "and stand apart.",
        *notes,
        *([found.plan.note] if found.plan.note else []),
        *([f"{len(found.started)} runs were begun and are not finished: left out."] if found.started else []),
        *published.text().splitlines(),
    ]
    cells = published_rows(published, columns)
    return Folded(found.table, found.scale, backbones, tuple(columns), tuple(rows), entries, cells, tuple(lines))


def _t3(found: Reproduction, published: Published, scores: Scores, arms: Sequence[Arm], resamples: int) -> Folded:
    """Initialisations by scaling; each cell the mean over the sets, closed and open questions alike."""
    metrics = dict.fromkeys(_tasks(arms), VQA_METRICS)
    columns = [Column(key, about.title, published=key) for key, about in published.columns.items()]
    entries: dict[tuple[str, str], Entry] = {}
    for row in published.rows.values():
        for key, column in published.columns.items():
            wanted = {"adapter.router": "topk"} | row.settings | column.settings
            wanted.pop("adapter.alpha_over_r", None)  # what `alpha` scaling is by default
            arm = next((arm for arm in arms if arm.fits(wanted)), None)
            entries[row.title, key] = average(scores, arm, metrics, resamples)
    rows = [row.title for row in published.rows.values()]
    about = f"Each cell is the mean over {', '.join(metrics)} of closed accuracy and open recall."
    return _folded(found, published, columns, rows, entries, [about, _CONDITIONAL])


def _t6(found: Reproduction, published: Published, scores: Scores, arms: Sequence[Arm], resamples: int) -> Folded:
    """What training cost, from the runs' own records, and as ratios to LoRA."""
    columns = [
        Column("memory", "memory of training (GiB)", "GiB", "memory"),
        Column("step", "a step (s)", "seconds"),
        Column("step_ratio", "step, of lora's", "of lora"),
        Column("parameters", "trained parameters", "parameters"),
        Column("params", "trained (%)", "percent", "params"),
        Column("epoch", "an epoch (minutes)", "minutes", "epoch"),
    ]
    costs = {arm.label: _costs(scores, arm) for arm in arms}
    lora = next((costs[arm.label] for arm in arms if arm.runs and arm.fits({"method": "lora"})), {})
    entries: dict[tuple[str, str], Entry] = {}
    for arm in arms:
        own = costs[arm.label]
        shared = [seed for seed in own if seed in lora]
        for column in ("memory", "step", "parameters", "params", "epoch"):
            entries[arm.label, column] = _over_seeds({seed: about[column] for seed, about in own.items()}, arm)
        ratios = {seed: own[seed]["step"] / lora[seed]["step"] for seed in shared}
        entries[arm.label, "step_ratio"] = _over_seeds(ratios, arm)
    notes = [
        "From the records of our runs: the peak of the process (on a GPU: of its memory), a step as the seconds of "
        "training over its steps, mean over the seeds, ± the deviation between them. An epoch is as many items as the "
        "grid trains on.",
        "Times and memory are of the machine on which they fell. On a machine that other work shares they compare only "
        "within one run of the whole grid, and roughly; the ratios are to LoRA of the same seed.",
    ]
    return _folded(found, published, columns, [arm.label for arm in arms], entries, notes)


def _costs(scores: Scores, arm: Arm) -> dict[int, dict[str, float]]:
    """Seed -> memory in GiB, seconds a step and an epoch, trained parameters and their share."""
    found = {}
    for seed, record in scores.records(arm, next(iter(arm.runs), "")).items():
        try:
            found[seed] = _cost(record)
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise WorkError(f"run {record['run']}: broken record, without what its training cost; run again") from error
    return found


def _cost(record: dict[str, Any]) -> dict[str, float]:
    stage = record["training"]["stages"][-1]
    done = stage["steps"] - (stage["resumed_from"] or 0)  # in the seconds that are counted
    memory = record["memory"]["fit"] or {}
    peak = next((memory[key] for key in ("device_bytes", "process_bytes") if memory.get(key)), np.nan)
    epochs = record["spec"]["stages"][-1]["training"]["epochs"]
    return {
        "memory": peak / 2**30,
        "step": stage["seconds"] / done if done else np.nan,
        "epoch": stage["seconds"] / done * stage["steps"] / epochs / 60 if done else np.nan,
        "parameters": float(record["parameters"]["trainable"]),
        "params": record["parameters"]["percent"] / 100,
    }


def _over_seeds(values: Mapping[int, float], arm: Arm) -> Entry:
    planned = max((len(specs) for specs in arm.runs.values()), default=0)
    usable = {seed: value for seed, value in values.items() if np.isfinite(value)}
    if not usable:
        return Entry(None, planned=planned, reason="not run, or not recorded")
    each = list(usable.values())
    return Entry(float(np.mean(each)), seeds=tuple(usable), planned=planned, seed_sd=seed_sd(each))


def _t2(found: Reproduction, catalog: Catalog, published: Published, resamples: int) -> Folded:
    """As `medbench table --paper T2`, of these runs alone."""
    folders = list(found.finished.values())
    if not folders:
        raise RequestError(f"{found.table} at scale {found.scale}: no run is finished; {found.command} does them")
    table = build_paper_table(folders, "T2", catalog, found.plan.group, resamples=resamples)
    columns = [Column(task, task) for task in table.tasks] + [Column(AVERAGE, "Avg", published=AVERAGE)]
    entries: dict[tuple[str, str], Entry] = {}
    rows = []
    for row in table.rows:
        name = ", ".join(part for part in (row.key.method, row.key.protocol, row.key.variant) if part)
        rows.append(name)
        planned = 1 if row.key.method == "none" else max(len(part.sweep.seeds) for part in found.parts)
        for task in table.tasks:
            if (filled := row.cells.get(task)) is not None:
                about = (filled.cell.estimate, list(filled.group), planned, filled.cell.seed_sd)
                entries[name, task] = Entry.of(*about)
            else:
                entries[name, task] = Entry(None, reason="not run, or not finished")
        reason = f"without {', '.join(row.missing)}"
        mean = Entry(None, reason=reason)
        if row.average is not None:
            mean = Entry.of(row.average, range(max(row.seeds)), planned, row.average_sd)
        entries[name, AVERAGE] = mean
    lines = [f"\n{found.plan.note}\n"] if found.plan.note else []
    left = len(found.jobs) - len(found.finished)
    lines += [f"\n{left} of {len(found.jobs)} runs are not finished.\n"] if left else []
    own = _folded(found, published, columns, rows, entries, [])
    return Folded(**{**own.__dict__, "text": render_paper(table, "md") + "".join(lines)})
