"""Recomputes every derived figure of the published tables from its rule, and says which hold and which do not.

A published figure that does not add up is a finding: the data then says what the rule gives instead and why. What fails
an audit is a figure that disagrees with its rule without that, one whose rule gives something else than is said, and
one said not to hold that does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from medbench.backbones.registry import Backbone, get_backbone, shipped_table
from medbench.budget_table import targets_of
from medbench.catalog import packaged, read_yaml
from medbench.errors import RequestError
from medbench.methods import Method, Recipe
from medbench.results.published import Cell, Published, load_published, published_names, resolve
from medbench.results.published_schema import Parameters, Rule
from medbench.tuners import get_tuner

Verdict = Literal["holds", "does not hold", "cannot be checked"]
#: How a unit is written behind a figure.
_SIGNS = {"percent": " %", "times": " x", "minutes": " min", "points": " points", "points or percent": " points or %"}


#: A reading's name, rule, printed value, what the rule is said to give, and why.
_Read = tuple[str | None, Rule, float | None, float | None, str | None]


@dataclass(frozen=True)
class Check:
    """One derived figure, in one reading.

    Attributes:
        table, figure: where it stands.
        title: what it is.
        reading: how it is read; None for the plain one.
        printed: the figure; for one that is not printed (an alternative), what it would be.
        decimals: how many are printed.
        rule: the rule, as in the file.
        recomputed: what the rule gives, not rounded; None where that cannot be said.
        cut_off: whether it holds if the printed figure was cut off instead of rounded; None where it holds anyway.
        why: why it does not hold or cannot be checked; for one that holds, what should be known about it, or None.
        failure: why the data is at fault, which fails the audit; None where it is not.
    """

    table: str
    figure: str
    title: str
    reading: str | None
    verdict: Verdict
    printed: float
    decimals: int
    unit: str
    source: str
    confidence: str
    rule: dict[str, Any]
    recomputed: float | None
    cut_off: bool | None
    why: str | None
    failure: str | None


class _UnknownError(Exception):
    """An input of a rule is not known; says which and why."""


def audit_published(folder: Path | None = None) -> list[Check]:
    """Every derived figure of the published tables, recomputed.

    Args:
        folder: where the tables lie; by default those that this package carries.

    Raises:
        RequestError: no tables there, or a file that is wrong: names file, field and what would be right.
    """
    folder = folder or packaged("results/paper")
    tables = {name: load_published(name, folder) for name in published_names(folder)}
    if not tables:
        raise RequestError(f"{folder}: no published tables (*.yaml) here")
    return [check for table in tables.values() for check in _checks(table, tables)]


def _checks(table: Published, tables: dict[str, Published]) -> Iterator[Check]:
    for cell in (*table.cells.values(), *table.figures.values()):
        read: list[_Read] = [(None, cell.rule, cell.value, cell.gives, cell.why)] if cell.rule else []
        read += [(other.reading, other.rule, cell.value, other.gives, other.why) for other in cell.readings]
        read += [(other.reading, other.rule, other.value, other.gives, other.why) for other in cell.alternatives]
        for reading, rule, printed, gives, why in read:
            assert printed is not None  # the schema gives rules to figures with a value only
            try:
                value = recompute(rule, lambda reference: resolve(table, reference, tables.__getitem__))
            except _UnknownError as unknown:
                yield _check(table, cell, reading, "cannot be checked", printed, rule, None, str(unknown), None)
                continue
            except ZeroDivisionError as error:
                raise RequestError(f"{table.name}: {cell.name}: rule {rule.kind} divides by 0") from error
            except RequestError as error:
                raise RequestError(f"{table.name}: {cell.name}: rule: {error}") from error
            holds = agrees(value, printed, cell.decimals)
            failure = _failure(holds, value, cell, printed, gives)
            verdict: Verdict = "holds" if holds else "does not hold"
            why = why or (cell.reason if cell.value is None else None)
            yield _check(table, cell, reading, verdict, printed, rule, value, why, failure)


def _check(
    table: Published,
    cell: Cell,
    reading: str | None,
    verdict: Verdict,
    printed: float,
    rule: Rule,
    recomputed: float | None,
    why: str | None,
    failure: str | None,
) -> Check:
    cut = None
    if verdict == "does not hold" and recomputed is not None:
        cut = math.isclose(math.trunc(recomputed * 10**cell.decimals), printed * 10**cell.decimals)
    content = rule.model_dump(mode="json", exclude_unset=True)
    about = (cell.unit, cell.source, cell.confidence, content, recomputed, cut, why, failure)
    return Check(table.name, cell.name, cell.title, reading, verdict, printed, cell.decimals, *about)


def _failure(holds: bool, value: float, cell: Cell, printed: float, gives: float | None) -> str | None:
    if gives is None:
        shown = f"{printed:.{cell.decimals}f}, its rule gives {value:.{cell.decimals + 2}f}"
        return None if holds else f"is {shown}; correct it, or say under 'gives' and 'why' what it gives and why"
    if holds:
        return f"is said not to hold (gives: {gives:g}), but its rule gives what is printed; remove 'gives'"
    if not agrees(value, gives, max(0, -int(Decimal(str(gives)).as_tuple().exponent))):
        return f"is said to give {gives:g}, but its rule gives {value:.{cell.decimals + 2}f}; correct 'gives' and 'why'"
    return None


def agrees(value: float, printed: float, decimals: int) -> bool:
    """Whether a value is printed so, rounded to that many decimals (a half may go either way).

    Example:
        >>> agrees(95.318, 95.32, 2), agrees(95.318, 95.31, 2)
        (True, False)
    """
    return abs(value - printed) <= 0.5 * 10.0**-decimals + 1e-9


def recompute(rule: Rule, find: Callable[[str], Cell]) -> float:
    """What a rule gives, in the unit of its figure; percentages are from 0 to 100.

    Args:
        rule: the rule.
        find: gives the figure that a reference names.

    Raises:
        _UnknownError: an input is not known.
        ZeroDivisionError: it divides by a figure that is 0.
    """
    if rule.kind == "parameters":
        return float(parameter_percentage(rule.value))
    inputs = [_known(find(reference)) for reference in rule.inputs]
    if rule.kind == "mean":
        return math.fsum(inputs) / len(inputs)
    if rule.kind == "same_as":
        return inputs[0]
    a, b = inputs
    match rule.kind:
        case "difference":
            return a - b
        case "ratio":
            return a / b
        case "percentage":
            return 100 * a / b
        case "relative_change":
            return 100 * (a - b) / b
        case "before_relative_change":
            return a / (1 + b / 100)
    raise NotImplementedError(f"rule {rule.kind}")


def _known(cell: Cell) -> float:
    if cell.value is None:
        raise _UnknownError(f"{cell.name} is not known: {cell.reason}")
    if cell.bound == "above":
        raise _UnknownError(f"of {cell.name} only a bound is known: {cell.text()}")
    return cell.value


@cache  # of what the package carries, which does not change
def parameter_percentage(about: Parameters) -> Fraction:
    """A method's trainable parameters in percent, exactly: by the papers' formulas, or over the layer table.

    Raises:
        RequestError: no formula is published for this method or architecture, or nothing to take a share of.
    """
    backbone = get_backbone(about.architecture)
    method, recipe = _recipe(about.method, backbone)
    tuner, where = get_tuner(method.tuner), f"parameters of {about.method} on {about.architecture}"
    published = backbone.published
    if tuner.ranked == (about.rank is None):
        raise RequestError(f"{where}: {'needs a rank' if tuner.ranked else 'has no rank'}")
    if about.rank is not None and about.rank % tuner.step(recipe.adapter):
        raise RequestError(f"{where}: rank {about.rank} is no multiple of its {tuner.step(recipe.adapter)} experts")
    table = shipped_table(backbone, targets_of(recipe, backbone))
    if table is None:
        raise RequestError(f"{where}: no layer table of its targets is shipped")
    count: Fraction | int | None = None
    if about.counting == "exact":
        count = tuner.count(recipe.adapter, about.rank or 0, table)
    elif published is not None:
        count = tuner.count_published(recipe.adapter, about.rank or 0, published)
    if count is None:
        raise RequestError(f"{where}: no formula is published; use 'counting: exact'")
    named = {"published": published.denominator if published else None, "model": table.total, "tower": table.tower}
    denominator = about.denominator if isinstance(about.denominator, int) else named[about.denominator]
    if denominator is None:
        raise RequestError(f"{where}: nothing is known to be its 'denominator: {about.denominator}'")
    return Fraction(100 * count) / denominator


def _recipe(name: str, backbone: Backbone) -> tuple[Method, Recipe]:
    """The packaged method and its recipe on a backbone; a user's own of the name is not meant."""
    path = packaged("baselines") / f"{name}.yaml"
    method = Method.parse(read_yaml(path), path)
    return method, method.at(backbone.scale)


def audit_text(checks: list[Check]) -> str:
    """The checks as a table for people: what does not hold first, then what cannot be checked, then what holds."""
    from tabulate import tabulate

    order: tuple[Verdict, ...] = ("does not hold", "cannot be checked", "holds")
    rows = [
        {
            "verdict": check.verdict if check.failure is None else f"{check.verdict} (!)",
            "figure": f"{check.table} {check.figure}" + (f" ({check.reading})" if check.reading else ""),
            "printed": f"{check.printed:.{check.decimals}f}{_SIGNS.get(check.unit, f' {check.unit}')}",
            "recomputed": "-" if check.recomputed is None else f"{check.recomputed:.{check.decimals + 2}f}",
            "why": check.failure or check.why or "",
        }
        for check in sorted(checks, key=lambda check: order.index(check.verdict))
    ]
    table = tabulate(
        rows, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=[None, 38, 18, 11, 60]
    )
    counts = Counter(check.verdict for check in checks)
    faults = sum(check.failure is not None for check in checks)
    said = f"{faults} without a right explanation (!)" if faults else "all of them explained"
    return (
        f"{table}\n\n{len(checks)} derived figures: {counts['holds']} hold, {counts['does not hold']} do not, "
        f"{counts['cannot be checked']} cannot be checked; {said}."
    )


def audit_json(checks: list[Check]) -> dict[str, Any]:
    """The checks as one JSON document: `checks`, `counts` by verdict, and how many fail the audit."""
    counts = Counter(check.verdict for check in checks)
    return {
        "checks": [asdict(check) for check in checks],
        "counts": {verdict: counts[verdict] for verdict in get_args(Verdict)},
        "failures": sum(check.failure is not None for check in checks),
    }
