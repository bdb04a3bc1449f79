"""The paper's claims, judged by finished runs: supported, contradicted, or not separable.

Each line of a claim is a paired difference (`medbench.scoring.contrasts`) with an interval that is bootstrapped by
image. Two tests must both speak, of other images and of other seeds (`medbench.results.claim_tests`). The larger p is
corrected over all judged lines of the claims of one table, run or not (Holm). What is significant in the claimed
direction supports it, what is significant in the other contradicts it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from medbench.catalog import Catalog
from medbench.results.claim_measures import measure
from medbench.results.claim_place import Workplace
from medbench.results.claim_rows import Measured
from medbench.results.claim_schema import Claim, Gap, claim_tables, load_claims, read_claims
from medbench.results.claim_tests import LineTests, both_tests, detectable_effect, deviation, needed_items, needed_seeds
from medbench.results.published import load_published
from medbench.scoring.analytic import ALPHA
from medbench.scoring.bootstrap import RESAMPLES, Estimate
from medbench.scoring.contrasts import Contrast, Figure
from medbench.scoring.permutation import holm

NO_RUNS, FEW_SEEDS, INCOMPLETE = "no runs", "too few seeds", "incomplete"
#: There are so few clusters that no outcome could be significant. A line that the claim does not rest on.
NO_TEST, SHOWN = "cannot be tested", "shown alone"
SUPPORTED, CONTRADICTED, NOT_SEPARABLE = "supported", "contradicted", "not separable"


@dataclass(frozen=True)
class LineVerdict:
    """A line of a claim, judged.

    Attributes:
        name: of the line.
        verdict: one of the constants above.
        effect: what is claimed to be above zero; None without runs.
        unit: `points` and `percent` (fractions here), `nats` or `distance`.
        seed_sd: between seeds.
        seeds: that it is over.
        p: of the sign-flip test; p_seeds: of the deviation between seeds; p_holm: the larger one, corrected over the
            lines of the table.
        detectable: the smallest true effect that both tests would find, at the strictest step of that correction.
        gap: what is published, as a fraction; None where it is not known, or only a bound is.
        needed: about how many items would show `gap` with probability 0.8, if they differed as these do; infinite
            where only more seeds could.
        needed_seeds: then, how many seeds at least, with items without end.
        reason: why there is no verdict.
    """

    name: str
    verdict: str
    effect: Estimate | None = None
    unit: str = "points"
    seed_sd: float | None = None
    seeds: tuple[int, ...] = ()
    p: float | None = None
    p_seeds: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    gap: float | None = None
    needed: float | None = None
    needed_seeds: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim, judged: by all of its lines (`overall`); `command` does the runs that are missing."""

    table: str
    claim: Claim
    lines: tuple[LineVerdict, ...]
    command: str

    @property
    def verdict(self) -> str:
        """Of the claim as a whole."""
        return overall([line.verdict for line in self.lines])


def overall(verdicts: Sequence[str]) -> str:
    """A claim holds where all of its judged lines do, and is contradicted where one of them is.

    Example:
        >>> overall(["supported", "not separable"]), overall(["supported", "contradicted"]), overall(["no runs"] * 2)
        ('not separable', 'contradicted', 'no runs')
    """
    judged = {verdict for verdict in verdicts if verdict != SHOWN}
    if CONTRADICTED in judged:
        return CONTRADICTED
    if lacking := judged & {NO_RUNS, FEW_SEEDS, NO_TEST}:
        return min(lacking) if len(judged) == 1 else INCOMPLETE
    return SUPPORTED if judged == {SUPPORTED} else NOT_SEPARABLE


def judge_claims(
    paths: Iterable[Path],
    scale: str,
    catalog: Catalog,
    table: str | None = None,
    data_root: Path | None = None,
    resamples: int = RESAMPLES,
    seeds: Sequence[int] | None = None,
    file: Path | None = None,
) -> list[ClaimVerdict]:
    """Judges the claims of a table, or of all, or those of a file of one's own.

    Args:
        paths: folders of run folders; those one below are looked into, too.
        scale: whose grids.
        catalog: where grids, tasks and methods are looked up.
        table: `T3`, ...; None for all that have claims.
        data_root: for grids whose cards do not pin their data.
        resamples: of the intervals.
        seeds: of the runs, instead of those of the grids.
        file: claims of one's own (`medbench.results.claim_schema`), instead of the package's.

    Raises:
        RequestError: an unknown table or scale, a folder that is not there, or a claim whose rows are in no grid.
        WorkError: broken records or scores, or of another schema version; runs that do not fit one another.
    """
    files = [read_claims(file)] if file else [load_claims(name) for name in ([table] if table else claim_tables())]
    place = Workplace(list(paths), scale, catalog, data_root, seeds, file.parent if file else None)
    found = []
    for own in files:
        measured = [measure(place, own.table, claim) for claim in own.claims]
        gaps = [[_gap(own.table, one.gap) for one in lines] for lines in measured]
        judged = iter(judge(list(chain(*measured)), list(chain(*gaps)), resamples))
        for claim, lines in zip(own.claims, measured, strict=True):
            verdicts = tuple(next(judged) for _ in lines)
            found.append(ClaimVerdict(own.table, claim, verdicts, place.command(own.table, claim)))
    return found


def judge(
    measured: Sequence[Measured], gaps: Sequence[float | None] | None = None, resamples: int = RESAMPLES
) -> list[LineVerdict]:
    """The verdicts of the lines of a table, in order; p is corrected over all that are judged, run or not.

    Args:
        measured: the lines.
        gaps: what is published of each, as a fraction.
        resamples: of the intervals.
    """
    figures = [one.contrast.figure(resamples) if one.contrast else None for one in measured]
    pools: dict[tuple[str, str], list[Measured]] = {}
    for one in measured:
        pools.setdefault((one.unit, one.pool), []).append(one)
    between = {key: deviation(lines) for key, lines in pools.items()}
    family = sum(one.judged for one in measured)
    tests = [both_tests(one, between[one.unit, one.pool], resamples) if _testable(one) else None for one in measured]
    known = [max(test.p, test.p_seeds or 0.0) for test in tests if test]
    corrected = iter(holm([*known, *[1.0] * (family - len(known))]))
    found = []
    for one, figure, test, gap in zip(measured, figures, tests, gaps or [None] * len(measured), strict=True):
        verdict = _judged(one, figure, test, next(corrected) if test else None)
        found.append(_with_gap(verdict, gap, test, family))
    return found


def _testable(one: Measured) -> bool:
    return one.contrast is not None and one.lacking is None and one.judged and not _too_few(one.contrast)


def _too_few(contrast: Contrast) -> bool:
    """Whether even clusters that all agree would not be significant: there are 2^k sign flips of k clusters."""
    return 2.0 ** (1 - sum(contrast.clusters.values())) > ALPHA


def _judged(one: Measured, figure: Figure | None, test: LineTests | None, p_holm: float | None) -> LineVerdict:
    if one.contrast is None or figure is None:
        return LineVerdict(one.name, NO_RUNS, unit=one.unit, reason=one.lacking)
    about = LineVerdict(
        *(one.name, FEW_SEEDS, figure.estimate, one.unit, figure.seed_sd, one.seeds), reason=one.lacking
    )
    if one.lacking is not None:
        return about
    if test is None or p_holm is None:
        if not one.judged:
            return replace(about, verdict=SHOWN)
        count = sum(one.contrast.clusters.values())
        return replace(about, verdict=NO_TEST, reason=f"{count} parts that flip as a whole are too few for any test")
    verdict = NOT_SEPARABLE
    if p_holm <= ALPHA:
        verdict = SUPPORTED if (figure.estimate.value or 0.0) > 0 else CONTRADICTED
    return replace(about, verdict=verdict, p=test.p, p_seeds=test.p_seeds, p_holm=p_holm)


def _gap(table: str, gap: Gap | None) -> float | None:
    """What is published of a line, as a fraction; None where a figure of it is not known, or only a bound is.

    Raises:
        RequestError: it names what is not in the table.
    """
    if gap is None:
        return None
    published = load_published(table)
    sides = [[published.find(name) for name in names] for names in (gap.first, gap.second)]
    if any(cell.value is None or cell.bound == "above" for side in sides for cell in side):
        return None
    means = [sum(cell.value or 0.0 for cell in side) / len(side) if side else 0.0 for side in sides]
    return (means[0] - means[1]) / 100


def _with_gap(line: LineVerdict, gap: float | None, test: LineTests | None, family: int) -> LineVerdict:
    """With what could have been detected at the strictest step of the correction, and what the published gap needs."""
    if test is None or test.se is None:
        return replace(line, gap=gap if line.unit == "points" else None)
    alpha = ALPHA / family
    line = replace(line, detectable=detectable_effect(test, alpha))
    if not gap or line.unit != "points" or line.effect is None:
        return replace(line, gap=gap if line.unit == "points" else None)
    items = needed_items(line.effect.n, test, gap, alpha)
    seeds = needed_seeds(test, gap, alpha) if items == math.inf else None
    return replace(line, gap=gap, needed=items, needed_seeds=seeds)
