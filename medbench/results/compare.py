"""A method against others on one task: the paired differences, whether they are there, and what would be seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.results.agreement import training_differences
from medbench.results.matching import Where, agreeing, candidates, common_seeds, described
from medbench.results.record import read_scores
from medbench.results.rows import Group, Row, about_runs, known_metrics, read_groups
from medbench.scoring.analytic import ALPHA, minimal_detectable_effect
from medbench.scoring.figures import better
from medbench.scoring.kinds import measures_of
from medbench.scoring.paired import Tested, compare_paired
from medbench.scoring.permutation import holm
from medbench.scoring.stats import metric_values, seed_sd


@dataclass(frozen=True)
class Side:
    """The runs of one method in a comparison: what they are, their hashes, and the seeds that were used."""

    row: Row
    runs: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Comparison:
    """A metric of two groups of runs that differ in method and training settings alone.

    Attributes:
        first: the runs of the first method.
        second: the runs of the other one.
        metric: the metric.
        tested: both figures, their difference, its standard error and its test.
        training: training settings in which the two differ: field -> both values.
        p: of the test, corrected over the comparisons of this metric (Holm); None where there is no test.
        detectable: the minimal detectable effect (`minimal_detectable_effect`), None where the standard error is not
            known, or zero because the sides differ by the same in every cluster (as a rule: not at all).
        seed_sd: standard deviation of the difference between the seeds, None with one seed.
        verdict: of the first: `better`, `worse` (`higher`, `lower` where neither is good) or `not separable`, by the
            corrected p, or where there is none by the interval; None where the difference is undefined.
    """

    first: Side
    second: Side
    metric: str
    tested: Tested
    training: dict[str, tuple[object, object]]
    p: float | None = None
    detectable: float | None = None
    seed_sd: float | None = None
    verdict: str | None = None


@dataclass(frozen=True)
class Comparisons:
    """What was compared on a task, in the order of the methods; `unused` seeds and `incomplete` runs were left out."""

    task: str
    split: str
    lines: tuple[Comparison, ...]
    unused: tuple[str, ...]
    incomplete: tuple[str, ...]


def compare_methods(
    paths: Iterable[Path],
    first: str,
    others: Sequence[str],
    task: str,
    split: str = "test",
    metrics: Sequence[str] = ("all",),
    where: Sequence[Where] = (),
) -> Comparisons:
    """Compares a method with others on a task, wherever runs of both agree in everything but the method.

    Groups of runs (one spec, several seeds) are compared if they were tested on the same version, items, images and
    profile of the task, after training on the same data, on the same backbone, under the same budget. What agrees in
    several ways (trained on one set, trained on two) is compared in each. Of two trained methods the seeds that both
    have are used, each item averaged over them.

    Args:
        paths: run folders, or folders of run folders.
        first: a method.
        others: the methods that it is compared with; Holm's correction is over all comparisons of a metric.
        task: the task.
        split: of the task.
        metrics: names of figures, or `all` that the task has.
        where: fields that runs must have, where several groups of a method would do.

    Raises:
        RequestError: no run of a method on this task, none that agree (names the fields in which the nearest differ),
            several that would do (names the fields in which these differ), no seed that both have, or an unknown name.
        WorkError: runs that should have answered the same items did not.
    """
    others = list(dict.fromkeys(others))
    if not others or first in others:
        raise RequestError(f"compare {first} {','.join(others)}: expected a method and others than itself")
    every, wanted = tuple(metrics) == ("all",), known_metrics(metrics)
    groups, incomplete = read_groups(paths)
    own = candidates(groups, first, task, split, where)
    lines: list[Comparison] = []
    unused: dict[str, None] = {}
    for other in others:
        for one, two in agreeing(own, candidates(groups, other, task, split, where), task):
            sides = [_side(group, seeds) for group, seeds in zip((one, two), common_seeds(one, two), strict=True)]
            lines += _lines((one, two), sides, task, wanted, every)
            unused |= dict.fromkeys(_unused(one, sides[0]) + _unused(two, sides[1]))
    return Comparisons(task, split, tuple(_judged(lines)), tuple(unused), tuple(map(str, incomplete)))


def _lines(
    groups: tuple[Group, Group], sides: Sequence[Side], task: str, wanted: Sequence[str], every: bool
) -> Iterator[Comparison]:
    one, two = (
        [read_scores(group[seed][0], task) for seed in side.seeds] for group, side in zip(groups, sides, strict=True)
    )
    measures = measures_of(one[0])
    for name in wanted:
        if name not in measures and not every:
            raise RequestError(f"{task} has no {name}; {did_you_mean(name, measures)}")
    training = training_differences(*groups)
    values = [[metric_values(table, wanted) for table in tables] for tables in (one, two)]
    for name in (name for name in wanted if name in measures):
        try:
            tested = compare_paired(one, two, name)
        except WorkError as error:
            raise WorkError(f"{described(groups[0])} and {described(groups[1])}, task {task}: {error}") from error
        if tested.figures.difference.value is not None or not every:
            sd = _sd_of_difference(*([seed[name] for seed in side] for side in values))
            yield Comparison(sides[0], sides[1], name, tested, training, seed_sd=sd)


def _side(group: Group, seeds: tuple[int, ...]) -> Side:
    return Side(about_runs(group), tuple(group[seed][1]["run"] for seed in seeds), seeds)


def _unused(group: Group, side: Side) -> list[str]:
    return [f"{side.row.method} {seed}" for seed in group if seed not in side.seeds]


def _sd_of_difference(one: Sequence[float | None], two: Sequence[float | None]) -> float | None:
    """Between seeds; a side that was not trained is the same for every seed of the other."""
    count = max(len(one), len(two))
    sides = [list(side) * count if len(side) == 1 else list(side) for side in (one, two)]
    if len(sides[0]) != len(sides[1]):  # seeds of what was not trained, which are no pairs
        return None
    return seed_sd([None if a is None or b is None else a - b for a, b in zip(*sides, strict=True)])


def _judged(lines: Sequence[Comparison]) -> list[Comparison]:
    """With p corrected over the comparisons of each metric, and what follows from it."""
    corrected: dict[int, float] = {}
    for metric in dict.fromkeys(line.metric for line in lines):
        found = {n: line.tested.flip.p for n, line in enumerate(lines) if line.metric == metric and line.tested.flip}
        corrected |= dict(zip(found, holm(list(found.values())), strict=True))
    judged = []
    for number, line in enumerate(lines):
        p, se = corrected.get(number), line.tested.se
        detectable = minimal_detectable_effect(se) if se else None
        judged.append(replace(line, p=p, detectable=detectable, verdict=_verdict(line, p)))
    return judged


def _verdict(line: Comparison, p: float | None) -> str | None:
    difference = line.tested.figures.difference
    if difference.value is None:
        return None
    if p is None:
        low, high = difference.low, difference.high
        apart = low is not None and high is not None and not low <= 0 <= high
    else:
        apart = p <= ALPHA
    if not apart:
        return "not separable"
    sign = better(line.metric)
    if not sign:
        return "higher" if difference.value > 0 else "lower"
    return "better" if sign * difference.value > 0 else "worse"
