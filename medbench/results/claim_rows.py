"""The rows of a claim among the arms of its grids, and what a line of it is measured by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medbench.errors import RequestError
from medbench.results.arms import Arm, Scores
from medbench.results.claim_schema import Claim, Gap, Rows
from medbench.scoring.contrasts import Contrast
from medbench.scoring.weighted import Array


@dataclass(frozen=True, eq=False)
class Measured:
    """A line before it is judged.

    Attributes:
        name: of the line.
        contrast: what is claimed to be above zero; None without runs.
        seeds: that it is over.
        unit: `points`, `nats` or `distance`.
        gap: what is published of it.
        lacking: why it cannot be judged.
        p: where it is not that of the contrast alone.
        judged: whether the claim stands or falls with it.
        pool: lines with the same one are of the same grids or study, so that the seeds of their rows differ alike.
        levels: the rows that the line is a sum of, by group (what is measured alike) and name: the value of each seed,
            [seeds]. What is not trained has no seeds and is left out.
        spread: the sum of the squares of the rows' weights in the line: 2 for a difference of two.
    """

    name: str
    contrast: Contrast | None = None
    seeds: tuple[int, ...] = ()
    unit: str = "points"
    gap: Gap | None = None
    lacking: str | None = None
    p: float | None = None
    judged: bool = True
    pool: str = ""
    levels: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    spread: float = 2.0


def fitting(claim: Claim, arms: Sequence[Arm], rows: Rows) -> list[Arm]:
    """The arms that have these values.

    Raises:
        RequestError: none has.
    """
    found = [arm for arm in arms if arm.fits(rows)]
    if not found:
        raise RequestError(f"claim {claim.id}: no row of its grids has {claim.among | rows}")
    return found


def common_tasks(arms: Sequence[Arm]) -> list[str]:
    """The tasks that all arms are tested on."""
    return [task for task in arms[0].runs if all(task in arm.runs for arm in arms)]


def usable(
    claim: Claim, arms: Sequence[Arm], scores: Scores, tasks: Sequence[str]
) -> tuple[tuple[int, ...], str | None]:
    """The seeds that all rows have finished, and why there is no verdict with them, where there is none."""
    without = [arm.name for arm in arms if any(not scores.tables(arm, task) for task in tasks)]
    if without or not tasks:
        return (), f"not run, or not finished: {', '.join(dict.fromkeys(without)) or 'no task in common'}"
    seeds = scores.seeds(arms, tasks)
    if not seeds:
        return (), "no seed that all of its rows have finished"
    enough = None if len(seeds) >= claim.seeds else f"{len(seeds)} of at least {claim.seeds} seeds"
    return seeds, enough
