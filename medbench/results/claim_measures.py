"""What the lines of a claim are measured by, from finished runs: paired differences, by kind of claim."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from medbench.errors import RequestError, did_you_mean
from medbench.results.arms import Arm, Paired, Scores
from medbench.results.claim_nearness import answer_distance, course_distance, loss_distance
from medbench.results.claim_place import Workplace
from medbench.results.claim_rows import Measured, common_tasks, fitting, usable
from medbench.results.claim_schema import Claim, Line
from medbench.results.forgetting import read_forgetting
from medbench.results.interference import read_interference
from medbench.results.route_summary import consistency, layer_name, task_shares
from medbench.results.routes import Routes, read_routes
from medbench.results.study_scores import MEAN, Items, Scope
from medbench.scoring.contrasts import Contrast, Term
from medbench.scoring.permutation import holm
from medbench.scoring.stats import seed_sd
from medbench.scoring.weighted import Array
from medbench.studies import Study


def measure(place: Workplace, table: str, claim: Claim) -> list[Measured]:
    """The lines of a claim; those without runs say why.

    Raises:
        RequestError: rows that are in none of the claim's grids. WorkError: runs that are broken.
    """
    if claim.kind in ("forgetting", "interference"):
        return _of_studies(place, table, claim)
    try:
        arms, scores = place.arms(claim)
    except RequestError as error:
        names = [line.name for line in claim.lines] or [claim.id]
        gaps = [line.published for line in claim.lines] or [None]
        return [Measured(name, gap=gap, lacking=str(error)) for name, gap in zip(names, gaps, strict=True)]
    pool = " ".join(place.grids(claim))
    if claim.kind == "no_best":
        return [replace(_no_best(claim, arms, scores), pool=pool)]
    of_kind: dict[str, Callable[[Claim, Line, list[Arm], Scores], Measured]] = {
        "difference": _difference,
        "best": _difference,
        "curve": loss_distance,
        "answers": answer_distance,
        "course": course_distance,
        "routing": _routing,
    }
    each = [(line, of_kind[claim.kind](claim, line, arms, scores)) for line in _lines(claim, arms)]
    return [replace(found, judged=line.judged, pool=pool) for line, found in each]


def _lines(claim: Claim, arms: Sequence[Arm]) -> Sequence[Line]:
    if claim.kind != "best":
        return claim.lines
    first = fitting(claim, arms, claim.first)
    others = [arm for arm in arms if arm not in first]
    return [Line(name=f"over {arm.name}", higher=claim.first, lower=arm.point) for arm in others]


def _difference(claim: Claim, line: Line, arms: list[Arm], scores: Scores) -> Measured:
    terms = [(term.weight, fitting(claim, arms, term.rows)) for term in line.terms]
    named = [arm for _, own in terms for arm in own]
    tasks = common_tasks(named)
    seeds, lacking = usable(claim, named, scores, tasks)
    if not seeds:
        return Measured(line.name, gap=line.published, lacking=lacking)
    contrast = Paired(scores, dict.fromkeys(tasks, claim.metrics), seeds).contrast(terms)
    return Measured(line.name, contrast, seeds, gap=line.published, lacking=lacking)


def _no_best(claim: Claim, arms: list[Arm], scores: Scores) -> Measured:
    """Whether every row is beaten by another one on some set: the least regret of a row, with p of all of them.

    The regret of a row is the most that another one has over it on a set. p: of all pairs on all sets (Holm), the
    smallest that beats each row, and of these the largest; where one row is ahead of all on all sets, the largest of
    its pairs.
    """
    tasks = common_tasks(arms)
    seeds, lacking = usable(claim, arms, scores, tasks)
    if not seeds:
        return Measured(claim.id, lacking=lacking)
    pairs: list[tuple[int, int, Contrast]] = []
    for task in tasks:
        paired = Paired(scores, {task: claim.metrics}, seeds)
        for one, two in combinations(range(len(arms)), 2):
            pairs.append((one, two, paired.contrast([(1.0, [arms[one]]), (-1.0, [arms[two]])])))
    p = holm([contrast.test().p for _, _, contrast in pairs])
    # Of each row: every other one less it, on every set, with p.
    less: dict[int, list[tuple[float, float, Contrast]]] = {number: [] for number in range(len(arms))}
    for (one, two, contrast), own in zip(pairs, p, strict=True):
        swapped = Contrast(tuple(Term(t.task, t.weight, -t.values, t.clusters) for t in contrast.terms))
        less[two].append((contrast.value, own, contrast))
        less[one].append((swapped.value, own, swapped))
    regrets = {number: max(own, key=lambda entry: entry[0]) for number, own in less.items()}
    least = min(regrets, key=lambda number: regrets[number][0])
    if regrets[least][0] > 0:
        beaten = [min((own for value, own, _ in entries if value > 0), default=1.0) for entries in less.values()]
        worst = max(beaten)
    else:
        worst = max(own for _, own, _ in less[least])
    name = f"least regret: {arms[least].name}"
    sds = [seed_sd([float(value) for value in contrast.by_seed]) for _, _, contrast in pairs]
    others = tuple(sd for sd in sds if sd is not None)
    return Measured(name, regrets[least][2], seeds, lacking=lacking, p=worst, others=others)


def _of_studies(place: Workplace, table: str, claim: Claim) -> list[Measured]:
    """The lines of each study and comparison: how much less is forgotten, or is lost to the other tasks."""
    try:
        studies = place.studies(table, claim.kind)
    except RequestError as error:
        return [Measured(line.name, gap=line.published, lacking=str(error)) for line in claim.lines]
    found = []
    for part, folder, why in studies:
        if folder is None or part.study is None:
            why = f"{why} ({part.name})"
            found += [Measured(f"{part.name}: {li.name}", gap=li.published, lacking=why) for li in claim.lines]
            continue
        seeds = part.study.seeds
        lacking = None if len(seeds) >= claim.seeds else f"{len(seeds)} of at least {claim.seeds} seeds"
        for line, unit, contrast in _study_contrasts(part.study, folder, claim):
            name = f"{part.name}: {line.name}{', as a share' if unit == 'percent' else ''}"
            gap = line.published if unit == "points" else None
            empty = None if contrast else "one of the two had nothing to forget"
            found.append(Measured(name, contrast, seeds, unit, gap, lacking or empty, pool=part.name))
    return found or [Measured(claim.id, lacking=f"no study at scale {place.scale}")]


def _study_contrasts(study: Study, folder: Path, claim: Claim) -> list[tuple[Line, str, Contrast | None]]:
    """What the lower row loses more than the higher one; of forgetting also as a share of what there was to forget."""
    pairs = [(line, str(line.higher.get("method")), str(line.lower.get("method"))) for line in claim.lines]
    for name in (name for _, *pair in pairs for name in pair):
        if name not in study.methods:
            raise RequestError(
                f"claim {claim.id}: its studies have no method {name}; {did_you_mean(name, study.methods)}"
            )
    if claim.kind == "interference":
        mixed = read_interference(study, folder)
        scope = _scope(mixed.items)
        return [
            (line, "points", mixed.average(higher, scope).minus(mixed.average(lower, scope)))
            for line, higher, lower in pairs
        ]
    course = read_forgetting(study, folder)
    scope = _scope(course.items)
    found: list[tuple[Line, str, Contrast | None]] = []
    for line, higher, lower in pairs:
        more, less = (course.summary(name, scope)["forgetting"] for name in (lower, higher))
        found.append((line, "points", more.minus(less)))
        whole, part = (course.forgotten_share(name, scope) for name in (lower, higher))
        found.append((line, "percent", whole.minus(part) if whole and part else None))
    return found


def _scope(items: Items) -> Scope:
    scopes = items.scopes()
    return scopes.get(MEAN) or next(iter(scopes.values()))


def _routing(claim: Claim, line: Line, arms: list[Arm], scores: Scores) -> Measured:
    """How much farther expert use lies apart on `against` (or of the other row) than on the shifted tasks, by layer."""
    near = fitting(claim, arms, line.higher)[0]
    far = near if line.against else fitting(claim, arms, line.lower)[0]
    clean = near.spec.trained_tasks[0]
    shifted = [task for task in line.tasks if task in near.runs and task in far.runs]
    others = [task for task in line.against if task in near.runs] if line.against else shifted
    if not shifted or not others:
        raise RequestError(f"claim {claim.id}: line {line.name!r}: its grids test none of its tasks")
    seeds, lacking = usable(claim, [near, far], scores, [clean, *shifted, *others])
    if not seeds:
        return Measured(line.name, unit="distance", lacking=lacking)
    try:
        one = [_distances(read_routes(scores.folder(near, clean)[seed]), clean, shifted) for seed in seeds]
        two = [_distances(read_routes(scores.folder(far, clean)[seed]), clean, others) for seed in seeds]
    except RequestError as error:
        return Measured(line.name, unit="distance", lacking=str(error))
    names = list(one[0])
    if any(list(found) != names for found in (*one, *two)):
        return Measured(line.name, unit="distance", lacking="the two rows are routed in different layers")
    values: Array = np.array([[b[name] - a[name] for name in names] for a, b in zip(one, two, strict=True)])
    blocks = np.array([layer_name(name).block or name for name in names])
    return Measured(line.name, Contrast((Term("layers", 1.0, values, blocks),)), seeds, "distance", lacking=lacking)


def _distances(routes: Routes, clean: str, tasks: Sequence[str]) -> dict[str, float]:
    """Layer -> the mean distance between the use of its experts on one task and on others."""
    each = [consistency(task_shares(routes, clean), task_shares(routes, task)).layers for task in tasks]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}
