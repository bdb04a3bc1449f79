"""The paper's claims, judged by finished runs: supported, contradicted, or not separable.

Each line of a claim is a paired difference (`medbench.scoring.contrasts`): its interval is bootstrapped by image, its
p is of sign flips of whole images, corrected over all lines of the claims of one table (Holm). What is significant in
the claimed direction supports it, what is significant in the other contradicts it; with fewer seeds than a claim asks
for, or without its runs, there is no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.catalog import Catalog
from medbench.errors import RequestError
from medbench.results.claim_measures import measure
from medbench.results.claim_place import Workplace
from medbench.results.claim_rows import Measured
from medbench.results.claim_schema import Claim, Gap, claim_tables, load_claims
from medbench.results.published import load_published
from medbench.scoring.analytic import ALPHA, minimal_detectable_effect
from medbench.scoring.bootstrap import RESAMPLES, Estimate
from medbench.scoring.permutation import holm

NO_RUNS, FEW_SEEDS, INCOMPLETE = "no runs", "too few seeds", "incomplete"
SUPPORTED, CONTRADICTED, NOT_SEPARABLE = "supported", "contradicted", "not separable"


@dataclass(frozen=True)
class LineVerdict:
    """A line of a claim, judged.

    Attributes:
        name: of the line.
        verdict: one of the constants above.
        effect: what is claimed to be above zero; None without runs.
        unit: `points` (fractions here), `nats` or `distance`.
        seed_sd: between seeds.
        seeds: that it is over.
        p: of the sign-flip test; p_holm: corrected over the lines of the table.
        detectable: the minimal detectable effect.
        gap: what is published, as a fraction; None where it is not known.
        needed: about how many items would show `gap` with probability 0.8, if they differed as these do.
        reason: why there is no verdict.
    """

    name: str
    verdict: str
    effect: Estimate | None = None
    unit: str = "points"
    seed_sd: float | None = None
    seeds: tuple[int, ...] = ()
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    gap: float | None = None
    needed: int | None = None
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
    """A claim holds where all of its lines do, and is contradicted where one of them is.

    Example:
        >>> overall(["supported", "not separable"]), overall(["supported", "contradicted"]), overall(["no runs"] * 2)
        ('not separable', 'contradicted', 'no runs')
    """
    if CONTRADICTED in verdicts:
        return CONTRADICTED
    lacking = [verdict for verdict in verdicts if verdict in (NO_RUNS, FEW_SEEDS)]
    if lacking:
        return lacking[0] if len(set(verdicts)) == 1 else INCOMPLETE
    return SUPPORTED if set(verdicts) == {SUPPORTED} else NOT_SEPARABLE


def judge_claims(
    paths: Iterable[Path],
    scale: str,
    catalog: Catalog,
    table: str | None = None,
    data_root: Path | None = None,
    resamples: int = RESAMPLES,
) -> list[ClaimVerdict]:
    """Judges the claims of a table, or of all.

    Args:
        paths: folders of run folders; those one below are looked into, too.
        scale: whose grids.
        catalog: where grids, tasks and methods are looked up.
        table: `T3`, ...; None for all that have claims.
        data_root: for grids whose cards do not pin their data.
        resamples: of the intervals.

    Raises:
        RequestError: an unknown table or scale, a folder that is not there, or a claim whose rows are in no grid.
        WorkError: broken records or scores, or of another schema version; runs that do not fit one another.
    """
    place = Workplace(list(paths), scale, catalog, data_root)
    found = []
    for name in [table] if table else claim_tables():
        claims = load_claims(name).claims
        measured = [measure(place, name, claim) for claim in claims]
        judged = iter(judge([one for own in measured for one in own], resamples))
        for claim, own in zip(claims, measured, strict=True):
            lines = tuple(_with_gap(next(judged), _gap(name, one.gap)) for one in own)
            found.append(ClaimVerdict(name, claim, lines, place.command(name, claim)))
    return found


def judge(measured: Sequence[Measured], resamples: int = RESAMPLES) -> list[LineVerdict]:
    """The verdicts of lines, in order; p is corrected over those that have enough seeds."""
    tested = [one for one in measured if one.contrast is not None and one.lacking is None]
    values = [one.p if one.p is not None else _p(one) for one in tested]
    corrected = dict(zip(map(id, tested), zip(values, holm(values), strict=True), strict=True))
    return [_judged(one, corrected.get(id(one)), resamples) for one in measured]


def _p(one: Measured) -> float:
    assert one.contrast is not None
    return one.contrast.test().p


def _judged(one: Measured, tested: tuple[float, float] | None, resamples: int) -> LineVerdict:
    if one.contrast is None:
        return LineVerdict(one.name, NO_RUNS, unit=one.unit, reason=one.lacking)
    figure, se = one.contrast.figure(resamples), one.contrast.standard_error(resamples)
    detectable = minimal_detectable_effect(se) if se else None
    about = LineVerdict(
        *(one.name, FEW_SEEDS, figure.estimate, one.unit, figure.seed_sd, one.seeds),
        detectable=detectable,
        reason=one.lacking,
    )
    if tested is None:
        return about
    p, p_holm = tested
    verdict = NOT_SEPARABLE
    if p_holm <= ALPHA:
        verdict = SUPPORTED if (figure.estimate.value or 0.0) > 0 else CONTRADICTED
    return replace(about, verdict=verdict, p=p, p_holm=p_holm)


def _gap(table: str, gap: Gap | None) -> float | None:
    """What is published of a line, as a fraction; None where a figure of it is not known.

    Raises:
        RequestError: it names what is not in the table.
    """
    if gap is None:
        return None
    published = load_published(table)
    sides = [[published.find(name).value for name in names] for names in (gap.first, gap.second)]
    if any(value is None for side in sides for value in side):
        return None
    means = [sum(value or 0.0 for value in side) / len(side) if side else 0.0 for side in sides]
    return (means[0] - means[1]) / 100


def _with_gap(line: LineVerdict, gap: float | None) -> LineVerdict:
    if gap is None or line.unit != "points":
        return line
    needed = None
    if line.detectable and line.effect and gap:
        needed = needed_items(line.effect.n, line.detectable, gap)
    return replace(line, gap=gap, needed=needed)


def needed_items(n: int, detectable: float, gap: float) -> int:
    """About how many items would show a gap, where n would show `detectable`: that falls as one over the root of n.

    Example:
        >>> needed_items(1000, 0.04, 0.01)
        16000
    """
    if not gap:
        raise RequestError("no number of items shows a gap of zero")
    return math.ceil(round(n * (detectable / gap) ** 2, 6))
