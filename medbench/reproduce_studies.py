"""Studies of forgetting and interference in the shape of T5."""

from __future__ import annotations

from pathlib import Path

from medbench.errors import RequestError
from medbench.reproduce_plan import Part, Reproduction
from medbench.reproduce_table import Column, Entry
from medbench.results.forgetting import read_forgetting
from medbench.results.interference import read_interference
from medbench.results.published import Published
from medbench.results.study_scores import MEAN
from medbench.results.writing import INTERVALS
from medbench.scoring.contrasts import Figure


def fold_studies(
    found: Reproduction, published: Published, resamples: int
) -> tuple[list[Column], list[str], dict[tuple[str, str], Entry], list[str]]:
    """The columns, methods, figures and notes of T5.

    The drop on the first task of each sequence, in points and relative, and the interference of mixtures.
    """
    columns: list[Column] = []
    entries: dict[tuple[str, str], Entry] = {}
    methods: dict[str, None] = {}
    for part in found.parts:
        if part.study is None:
            continue
        methods |= dict.fromkeys(part.study.methods)
        own = _drops(part, found, resamples) if part.kind == "forgetting" else _interference(part, found, resamples)
        columns += own[0]
        entries |= own[1]
    columns.append(Column("drop", published.columns["drop"].title, "points", "drop"))
    entries |= {(method, "drop"): Entry(None, reason="not of this scale") for method in methods}
    notes = [
        "Drop on the first task: after its own stage less after the last one, mean over its figures, in points and as "
        "a share of what it was. Mixed less alone: below 0, the other tasks cost something. Percent and points with "
        f"{INTERVALS}, ± the deviation between seeds.",
        "The published drops are on Harvard-FairVLMed after PathVQA, in points or percent, which is not known.",
    ]
    return columns, list(methods), entries, notes


def study_folder(part: Part, found: Reproduction) -> Path:
    """The folder in which all of a study's runs are finished.

    Raises:
        RequestError: a run is not finished, or they lie in several folders.
    """
    identities = [spec.identity for cell in part.sweep.cells for spec in cell.specs]
    left = [identity for identity in identities if identity not in found.finished]
    if left:
        raise RequestError(f"{len(left)} of its {len(identities)} runs are not finished")
    folders = {found.finished[identity].parent for identity in identities}
    if len(folders) > 1:
        raise RequestError(f"its runs lie in several folders: {', '.join(map(str, sorted(folders)))}")
    return folders.pop()


def _drops(part: Part, found: Reproduction, resamples: int) -> tuple[list[Column], dict[tuple[str, str], Entry]]:
    columns = [
        Column(f"drop:{part.name}", f"{part.name}: drop", "points"),
        Column(f"relative:{part.name}", f"{part.name}: drop, relative (%)", "relative"),
    ]
    assert part.study is not None
    methods = part.study.methods
    try:
        read = read_forgetting(part.study, study_folder(part, found))
    except RequestError as error:
        return columns, {(m, c.key): Entry(None, reason=f"{part.name}: {error}") for m in methods for c in columns}
    scopes = read.items.scopes()
    scope = scopes.get(MEAN) or next(iter(scopes.values()))
    entries = {}
    for method in methods:
        drop = read.summary(method, scope)["first_task_drop"].figure(resamples)
        entries[method, columns[0].key] = _entry(drop, part)
        entries[method, columns[1].key] = _entry(read.relative_drop(method, scope, resamples), part)
    return columns, entries


def _interference(part: Part, found: Reproduction, resamples: int) -> tuple[list[Column], dict[tuple[str, str], Entry]]:
    columns = [Column(f"mixed:{part.name}", f"{part.name}: mixed less alone", "points")]
    assert part.study is not None
    methods = part.study.methods
    try:
        read = read_interference(part.study, study_folder(part, found))
    except RequestError as error:
        return columns, {(m, columns[0].key): Entry(None, reason=f"{part.name}: {error}") for m in methods}
    scopes = read.items.scopes()
    scope = scopes.get(MEAN) or next(iter(scopes.values()))
    figures = {method: read.average(method, scope).figure(resamples) for method in methods}
    return columns, {(method, columns[0].key): _entry(figure, part) for method, figure in figures.items()}


def _entry(figure: Figure, part: Part) -> Entry:
    seeds = part.sweep.seeds
    return Entry.of(figure.estimate, seeds, len(seeds), figure.seed_sd)
