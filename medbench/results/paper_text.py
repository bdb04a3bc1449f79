"""A table of `medbench.results.paper_table` as text and as numbers, with the notes below it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pandas as pd

from medbench.results.agreement import spec_of
from medbench.results.paper_fold import PROTOCOLS, Row
from medbench.results.paper_table import AVERAGE, PaperTable, counted
from medbench.results.published import Cell, Published
from medbench.results.tables import budget_cells
from medbench.results.writing import Format, marked, points, with_notes
from medbench.scoring.bootstrap import Estimate


def paper_frame(table: PaperTable) -> pd.DataFrame:
    """One row a figure, as fractions: ours, then the published ones (of the published table's own sets)."""
    return pd.DataFrame([*_measured(table), *_cited(table)])


def render_paper(table: PaperTable, form: Format) -> str:
    """The table as Markdown, LaTeX (booktabs), HTML (escaped) or CSV (one row a figure)."""
    if form == "csv":
        return paper_frame(table).to_csv(index=False)
    variant = any(row.key.variant for row in table.rows)
    header = ["method", "protocol", "backbone", *(["setting"] if variant else [])]
    header += ["trainable %", "budget", "of budget", "seeds", *(_heading(table, task) for task in table.tasks), "Avg"]
    body = []
    for number, row in enumerate(table.rows):
        told = [row.key.method, row.key.protocol, row.key.backbone]
        told += [*([row.key.variant or "-"] if variant else []), *budget_cells(row.key.method, row.parameters)]
        told.append("-" if row.key.protocol == "unknown" else " to ".join(map(str, _ends(row.seeds))))
        body.append([*told, *(_text(table, number, task) for task in table.tasks), _average(table, number)])
    for key, published in table.published.rows.items():
        named = f"{published.method or key}, published ({published.title})"
        body.append(
            [
                named,
                "not stated",
                "the paper's",
                *(["-"] if variant else []),
                _cited_text(_param(table.published, key)),
                "-",
                "-",
                "-",
            ]
        )
        body[-1] += [_cited_text(_published_cell(table, key, task)) for task in (*table.tasks, AVERAGE)]
        if not table.same_sets and body[-1][-1] != "-":
            body[-1][-1] += f" over {len(table.cited)} other sets"
    return with_notes(header, body, _notes(table), form)


def _ends(seeds: Sequence[int]) -> tuple[int, ...]:
    return (seeds[0], seeds[-1]) if len(seeds) > 1 else tuple(seeds)


def _sizes(table: PaperTable, task: str) -> set[int]:
    return {filled.cell.estimate.n for row in table.rows if (filled := row.cells.get(task)) is not None}


def _heading(table: PaperTable, task: str) -> str:
    sizes = _sizes(table, task)
    return f"{task} (n={sizes.pop()})" if len(sizes) == 1 else task


def _text(table: PaperTable, number: int, task: str) -> str:
    filled = table.rows[number].cells.get(task)
    if filled is None:
        return "-"
    text = points(filled.cell.estimate, sd=filled.cell.seed_sd)
    text += f" n={filled.cell.estimate.n}" if len(_sizes(table, task)) > 1 else ""
    standing = table.standings.get((number, task))
    return marked(text, standing.mark if standing else None)


def _average(table: PaperTable, number: int) -> str:
    row = table.rows[number]
    if row.average is None:
        return f"missing: {', '.join(row.missing)}"
    standing = table.standings.get((number, AVERAGE))
    return marked(points(row.average, sd=row.average_sd), standing.mark if standing else None)


def _notes(table: PaperTable) -> list[str]:
    protocols = dict.fromkeys(row.key.protocol for row in table.rows)
    lines = [
        f"{table.metric.capitalize()} in percent on the {len(table.tasks)} sets of {table.group}, with clustered 95 % "
        "bootstrap intervals (clusters are patients where the data names them, else images); n is items.",
        ". ".join(PROTOCOLS[name] for name in PROTOCOLS if name in protocols) + ".",
        "Avg is the plain mean of the sets; for its interval each set is resampled by itself. While a set is missing "
        "there is no mean.",
    ]
    if max(seed for row in table.rows for seed in row.seeds) > 1:
        lines.append("± is the deviation between seeds; of Avg, where all sets have the same seeds.")
    if any(row.seeds[0] == 1 and row.key.protocol != "unknown" and _trained(row) for row in table.rows):
        lines.append("Cells of one seed: the variance of training is unknown.")
    if table.standings:
        lines.append(
            f"{marked('Bold', 'best')}: the best of its column among the rows of one budget, training and test data; "
            f"{marked('italic', 'tie')}: not separable from it (sign flips by cluster, Holm's correction over all "
            "pairs of these rows in the column, 5 %; conditional on these seeds). Reference rows are not compared."
        )
    lines += [f"Limited: {', '.join(found)}." for found in [_limits(table.rows)] if found]
    lines += [f"{task}: the rows differ in {', '.join(fields)}." for task, fields in table.uneven.items()]
    if table.left_out:
        lines.append(f"Left out: {counted(table.left_out)}.")
    if table.incomplete:
        lines.append(f"{table.incomplete} incomplete runs are left out.")
    return [*lines, *_published_notes(table)]


def _limits(rows: Iterable[Row]) -> list[str]:
    """What was limited, in words: `at most 500 training items of slake`."""
    found: dict[str, None] = {}
    for filled in (filled for row in rows for filled in row.cells.values()):
        spec = spec_of(filled.group)
        tested = [("test", test) for test in spec["tests"] if test["task"] == filled.cell.task]
        trained = [("training", part["data"]) for stage in spec["stages"] for part in stage["mixture"]]
        found |= {
            f"at most {data['limit']} {what} items of {data['task']}": None
            for what, data in (*tested, *trained)
            if data["limit"] is not None
        }
    return list(found)


def _trained(row: Row) -> bool:
    return any(record["stages"] for filled in row.cells.values() for _, record in filled.group.values())


def _published_notes(table: PaperTable) -> list[str]:
    """What must be known of the published rows: caveats, sources, and why figures are missing."""
    keys = [(key, task) for key in table.published.rows for task in (*table.tasks, AVERAGE)]
    reasons = dict.fromkeys(
        cell.reason for pair in keys if (cell := _published_cell(table, *pair)) is not None and cell.reason
    )
    lines = [] if table.same_sets else ["The published averages are over other sets than these: never compare them."]
    lines += ["A letter after a published figure is its source, with the confidence where that is not high."]
    return [*lines, *table.published.text().splitlines(), *(f"- Not known: {reason}." for reason in reasons)]


def _published_cell(table: PaperTable, key: str, task: str) -> Cell | None:
    """The published figure of a row; None where nothing is published on the set."""
    column = AVERAGE if task == AVERAGE else table.cited.get(task)
    return None if column is None else table.published.cell(key, column)


def _param(published: Published, key: str) -> Cell | None:
    return published.cell(key, "params") if "params" in published.columns else None


def _cited_text(cell: Cell | None) -> str:
    if cell is None or cell.text() == "-":
        return "-"
    return f"{cell.text()} [{cell.source}{'' if cell.confidence == 'high' else f', {cell.confidence}'}]"


def _measured(table: PaperTable) -> Iterator[dict[str, Any]]:
    for number, row in enumerate(table.rows):
        about = {"source": "measured", "method": row.key.method, "backbone": row.key.backbone}
        about |= {"protocol": row.key.protocol, "setting": row.key.variant}
        about |= {name: row.parameters[name] for name in ("rank", "trainable", "percent", "budget", "budget_distance")}
        figures: list[tuple[str, Estimate | None, float | None, int | None]] = [
            (task, filled.cell.estimate, filled.cell.seed_sd, len(filled.group)) for task, filled in row.cells.items()
        ]
        same = row.seeds[0] if len(row.seeds) == 1 else None
        for task, estimate, sd, seeds in [*figures, (AVERAGE, row.average, row.average_sd, same)]:
            found = estimate or Estimate(None, None, None, 0, 0, f"missing: {', '.join(row.missing)}")
            standing = table.standings.get((number, task))
            yield {
                **about,
                "task": task,
                "metric": table.metric,
                **{name: getattr(found, name) for name in ("value", "low", "high", "n", "clusters")},
                "seeds": seeds,
                "seed_sd": sd,
                "reason": found.reason,
                "mark": standing.mark if standing else None,
                "p_against_best": standing.p if standing else None,
            }


def _cited(table: PaperTable) -> Iterator[dict[str, Any]]:
    for key, row in table.published.rows.items():
        share = _param(table.published, key)
        about = {"source": "published", "method": row.method or key, "setting": row.title, "rank": row.rank}
        for task, column in (table.cited | {AVERAGE: AVERAGE}).items():
            cell = table.published.cell(key, column)
            yield {
                **about,
                "percent": share.value if share else None,
                "task": task,
                "metric": table.metric,
                "value": None if cell.value is None else cell.value / 100,
                "reason": cell.reason,
                "cited": cell.source,
                "confidence": cell.confidence,
            }
