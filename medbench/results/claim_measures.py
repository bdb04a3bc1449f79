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
from medbench.scoring.weighted import Array
from medbench.studies import Study


def measure(place: Workplace, table: str, claim: Claim) -> list[Measured]:
    """The lines of a claim; those without runs say why.

    Raises:
        RequestError: a grid that is not there, or rows that are in none. WorkError: runs that are broken.
    """
    if claim.kind in ("forgetting", "interference"):
        return _of_studies(place, table, claim)
    for name in place.grids(claim):
        place.grid(name)  # a wrong one is an error, not a claim without runs
    try:
        arms, scores = place.arms(claim)
    except RequestError as error:
        names = [line.name for line in claim.lines] or [claim.id]
        gaps = [line.published for line in claim.lines] or [None]
        return [Measured(name, gap=gap, lacking=str(error)) for name, gap in zip(names, gaps, strict=True)]
    measure_of_kind = "difference" if claim.kind == "best" else claim.kind
    pool = f"{' '.join(place.grids(claim))} {measure_of_kind} {claim.metrics}"
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
    return [replace(found, judged=line.judged, pool=found.pool or pool) for line, found in each]


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
    paired = Paired(scores, dict.fromkeys(tasks, claim.metrics), seeds)
    weights: dict[str, float] = {}
    for weight, arms_of_term in terms:
        for arm in (arm for arm in arms_of_term if arm.spec.stages):
            key = arm.spec.identity
            weights[key] = weights.get(key, 0.0) + weight / len(arms_of_term)
    spread = sum(weight**2 for weight in weights.values())
    # All rows of the claim that have these seeds say how much seeds differ, not only those of this line.
    rows = [arm for arm in arms if all(set(seeds) <= set(scores.tables(arm, task)) for task in tasks)]
    contrast, levels = paired.contrast(terms), {" ".join(tasks): _levels(paired, rows)}
    found = Measured(line.name, contrast, seeds, gap=line.published, lacking=lacking, levels=levels, spread=spread)
    if abs(sum(weights.values())) < 1e-9:
        return found
    # Over a row that is not trained: what a seed does to all rows does not cancel, so its own seeds alone speak.
    return replace(found, levels={line.name: {line.name: contrast.by_seed}}, spread=1.0, pool=f"{claim.id} {line.name}")


def _levels(paired: Paired, arms: Sequence[Arm]) -> dict[str, Array]:
    """The value of each seed of each row that is trained."""
    return {arm.spec.identity: paired.contrast([(1.0, [arm])]).by_seed for arm in arms if arm.spec.stages}


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
    levels: dict[str, dict[str, Array]] = {}
    for task in tasks:
        paired = Paired(scores, {task: claim.metrics}, seeds)
        levels[task] = _levels(paired, arms)
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
    return Measured(name, regrets[least][2], seeds, lacking=lacking, p=worst, levels=levels)


def _of_studies(place: Workplace, table: str, claim: Claim) -> list[Measured]:
    """The lines of each study and comparison: how much less is forgotten, or is lost to the other tasks."""
    try:
        studies = place.studies(table, claim.kind)
    except RequestError as error:
        return [Measured(line.name, gap=line.published, lacking=str(error)) for line in claim.lines]
    found = []
    for part, folder, why in studies:
        if folder is None or part.study is None:
            lines = [Measured("", unit=unit, lacking=f"{why} ({part.name})") for unit in _units(claim)]
            each = [(line, one) for line in claim.lines for one in lines]
        else:
            each = _study_lines(part.study, folder, claim)
        for line, one in each:
            name = f"{part.name}: {line.name}{', as a share' if one.unit == 'percent' else ''}"
            gap = line.published if one.unit == "points" else None
            found.append(replace(one, name=name, gap=gap, pool=part.name))
    return found or [Measured(claim.id, lacking=f"no study at scale {place.scale}")]


def _units(claim: Claim) -> tuple[str, ...]:
    """What is lost is lost in points; of forgetting also as a share of what there was to forget."""
    return ("points", "percent") if claim.kind == "forgetting" else ("points",)


def _study_lines(study: Study, folder: Path, claim: Claim) -> list[tuple[Line, Measured]]:
    """What the lower row loses more than the higher one, in each unit."""
    enough = len(study.seeds) >= claim.seeds
    lacking = None if enough else f"{len(study.seeds)} of at least {claim.seeds} seeds"
    lost = _lost(study, folder, claim)
    found = []
    for line in claim.lines:
        higher, lower = str(line.higher.get("method")), str(line.lower.get("method"))
        for unit in _units(claim):
            each = {name: lost(name, unit) for name in (lower, higher)}
            if any(own is None for own in each.values()):
                why = lacking or "one of the two had nothing to forget"
                found.append((line, Measured("", seeds=study.seeds, unit=unit, lacking=why)))
                continue
            more, less = (own for own in each.values() if own is not None)
            rows = {name: own.by_seed for name, own in zip(each, (more, less), strict=True)}
            found.append((line, Measured("", more.minus(less), study.seeds, unit, lacking=lacking, levels={"": rows})))
    return found


def _lost(study: Study, folder: Path, claim: Claim) -> Callable[[str, str], Contrast | None]:
    """What a method loses, in a unit: more is worse."""
    for line in claim.lines:
        for name in (str(rows.get("method")) for rows in (line.higher, line.lower)):
            if name not in study.methods:
                raise RequestError(
                    f"claim {claim.id}: its studies have no method {name}; {did_you_mean(name, study.methods)}"
                )
    if claim.kind == "interference":
        mixed = read_interference(study, folder)
        scope = _scope(mixed.items)
        return lambda name, unit: mixed.average(name, scope).times(-1.0)
    course = read_forgetting(study, folder)
    scope = _scope(course.items)

    def forgotten(name: str, unit: str) -> Contrast | None:
        if unit == "percent":
            return course.forgotten_share(name, scope)
        return course.summary(name, scope)["forgetting"]

    return forgotten


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
    levels = {
        f"{arm.name} on {' '.join(tasks)}": np.array([np.mean(list(found.values())) for found in own])
        for arm, tasks, own in ((near, shifted, one), (far, others, two))
    }
    blocks = np.array([layer_name(name).block or name for name in names])
    contrast = Contrast((Term("layers", 1.0, values, blocks),))
    return Measured(line.name, contrast, seeds, "distance", lacking=lacking, levels={"": levels})


def _distances(routes: Routes, clean: str, tasks: Sequence[str]) -> dict[str, float]:
    """Layer -> the mean distance between the use of its experts on one task and on others."""
    each = [consistency(task_shares(routes, clean), task_shares(routes, task)).layers for task in tasks]
    return {name: float(np.mean([found[name] for found in each])) for name in each[0]}
