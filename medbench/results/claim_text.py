"""Judged claims as text and as plain values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from medbench.results.claims import NO_TEST, SHOWN, ClaimVerdict, LineVerdict
from medbench.results.study_text import markdown, p_text

#: What a value of a unit is multiplied with to be shown, and its decimals.
_UNITS = {"points": (100.0, 1), "percent": (100.0, 1), "nats": (1.0, 3), "distance": (1.0, 3)}
_NOTES = (
    "The effect is what is claimed to be above zero, with an image-clustered 95 % bootstrap interval; ± is the "
    "deviation between seeds. Intervals are conditional on the seeds trained; verdicts are not.",
    "p (images): sign flips of whole images, two-sided. p (seeds): a t test against the deviation between seeds of "
    "rows of the same grids or study (of rows by seeds, what is left without the mean of each row and of each seed). "
    "The larger one, corrected over all judged lines of the table (Holm), makes the verdict (5 %).",
    "detectable: the smallest true effect that both tests would find with probability 0.8, of such items and seeds. "
    "items needed: for the published difference, if further items differed as these do; where the seeds alone differ "
    "too much, how many seeds it would take even with items without end.",
    "A claim is supported where all of its lines are, and contradicted where one is. Lines that are shown alone count "
    "for neither.",
)


def claims_json(found: Sequence[ClaimVerdict]) -> list[dict[str, Any]]:
    """The claims with their lines; effects in points are in points, losses in nats, distances as they are."""
    return [
        {
            "table": judged.table,
            **{key: getattr(judged.claim, key) for key in ("id", "text", "source", "kind", "note")},
            "verdict": judged.verdict,
            "command": judged.command,
            "lines": [_line(line) for line in judged.lines],
        }
        for judged in found
    ]


def _line(line: LineVerdict) -> dict[str, Any]:
    scale = _UNITS[line.unit][0]
    effect = line.effect
    numbers = {
        **{key: getattr(effect, key) if effect else None for key in ("value", "low", "high")},
        **{key: getattr(line, key) for key in ("seed_sd", "detectable", "gap")},
    }
    return {
        **{"name": line.name, "verdict": line.verdict, "unit": line.unit},
        **{key: None if value is None else scale * value for key, value in numbers.items()},
        **{"n": effect.n if effect else 0, "clusters": effect.clusters if effect else 0, "seeds": list(line.seeds)},
        **{"p": line.p, "p_seeds": line.p_seeds, "p_holm": line.p_holm, "reason": line.reason},
        **{"items_needed": None if line.needed == math.inf else line.needed, "seeds_needed": line.needed_seeds},
    }


def render_claims(found: Sequence[ClaimVerdict]) -> str:
    """Markdown: each claim with its verdict, its lines below it, and what must be known to read them."""
    parts = []
    for judged in found:
        claim = judged.claim
        counts = [line.verdict for line in judged.lines if line.verdict != SHOWN]
        several = f" ({counts.count('supported')} of {len(counts)} lines supported)" if len(counts) > 1 else ""
        head = f"## {judged.table} {claim.id}: {judged.verdict}{several}\n\n{claim.text} ({claim.source})"
        head += f" {claim.note}" if claim.note else ""
        lacking = [f"- {reason}; `{judged.command}` does them." for reason in _reasons(judged.lines)]
        lacking += [f"- {line.name}: {line.reason}." for line in judged.lines if line.verdict == NO_TEST]
        body = [_cells(line) for line in judged.lines if line.effect is not None]
        header = ["line", "verdict", "effect", "p (images)", "p (seeds)", "p (Holm)"]
        header += ["detectable", "published", "items", "items needed"]
        table = [markdown(header, body)] if body else []
        parts.append("\n\n".join([head, *table, *(["\n".join(lacking)] if lacking else [])]).rstrip() + "\n")
    verdicts = [judged.verdict for judged in found]
    counts_text = ", ".join(f"{verdicts.count(name)} {name}" for name in dict.fromkeys(verdicts))
    parts.append(f"{len(found)} claims: {counts_text}.\n\n" + "\n".join(f"- {note}" for note in _NOTES) + "\n")
    return "\n".join(parts)


def _reasons(lines: Sequence[LineVerdict]) -> list[str]:
    """Why lines have no verdict, once each; rows that were not run are named together."""
    found: dict[str, dict[str, None]] = {}
    for line in lines:
        if line.reason and line.verdict != NO_TEST:
            why, _, rows = line.reason.partition(": ")
            found.setdefault(why, {}).update(dict.fromkeys(rows.split(", ") if rows else []))
    return [f"{why}: {', '.join(rows)}" if rows else why for why, rows in found.items()]


def _cells(line: LineVerdict) -> list[str]:
    scale, places = _UNITS[line.unit]

    def shown(value: float | None, sign: str = "+") -> str:
        return "-" if value is None else f"{scale * value:{sign}.{places}f}"

    effect = line.effect
    text = shown(effect.value if effect else None) + (
        f" ± {shown(line.seed_sd, '')}" if line.seed_sd is not None else ""
    )
    if effect is not None and effect.low is not None and effect.high is not None:
        text += f" [{shown(effect.low)}, {shown(effect.high)}]"
    text += {"points": "", "percent": " %"}.get(line.unit, f" {line.unit}")
    return [
        *(line.name, line.verdict, text),
        *("-" if value is None else p_text(value) for value in (line.p, line.p_seeds, line.p_holm)),
        *(shown(line.detectable, ""), shown(line.gap), f"{effect.n:,}" if effect else "-"),
        "-"
        if line.needed is None
        else f"> {line.needed_seeds:,.0f} seeds"
        if line.needed_seeds
        else f"{line.needed:,.0f}",
    ]
