"""A comparison of methods as a table for people, and as plain values for `--json`."""

from __future__ import annotations

import math
from typing import Any

from medbench.results.agreement import is_reference
from medbench.results.compare import Comparison, Comparisons
from medbench.results.writing import points, shown, with_notes
from medbench.scoring.figures import LOWER_IS_BETTER, UNBOUNDED, scale_of
from medbench.scoring.permutation import EXACT_UP_TO


def numbers(found: Comparisons) -> dict[str, Any]:
    """Plain JSON values, fractions in [0, 1]; `notes` are what the table says below it."""
    about = {"task": found.task, "split": found.split, "comparisons": [_numbers(line) for line in found.lines]}
    return about | {"notes": notes(found)}


def _numbers(line: Comparison) -> dict[str, Any]:
    figures, flip = line.tested.figures, line.tested.flip
    sides = {
        name: {"method": side.row.method, "seeds": side.seeds, "runs": side.runs, **estimate.to_json()}
        for name, side, estimate in (("first", line.first, figures.first), ("second", line.second, figures.second))
    }
    return {
        "metric": line.metric,
        "trained_on": line.first.row.trained_on or line.second.row.trained_on,
        "blind": line.first.row.blind,
        "backbone": line.first.row.backbone,
        "budget": [side.row.parameters["budget"] for side in (line.first, line.second)],
        **sides,
        "difference": figures.difference.to_json(),
        "se": line.tested.se,
        "seed_sd": line.seed_sd,
        "p": flip.p if flip else None,
        "p_holm": line.p,
        "exact": flip.exact if flip else None,
        "patterns": flip.patterns if flip else None,
        "reason": line.tested.reason,
        "detectable": line.detectable,
        "verdict": line.verdict,
        "training_differs": line.training,
    }


def render_comparisons(found: Comparisons) -> str:
    """A table of one line a comparison and metric, in points, and what has to be known to read it."""
    rows = [(line.first.row, line.second.row) for line in found.lines]
    optional = {
        "backbone": len({one.backbone for one, _ in rows}) > 1,
        "trained on": True,
        "blind": any(one.blind for one, _ in rows),
        "budget": len({one.parameters["budget"] for one, _ in rows}) > 1,
        "first": True,
        "second": True,
    }
    header = [name for name, wanted in optional.items() if wanted]
    header += ["seeds", "metric", "n", "images", "first is at", "second is at", "difference", "p", "p (Holm)"]
    header += ["detectable", "first is"]
    body = []
    for line, (one, two) in zip(found.lines, rows, strict=True):
        figures, flip = line.tested.figures, line.tested.flip
        told = {
            "backbone": one.backbone,
            "trained on": one.trained_on or two.trained_on or "-",
            "blind": one.blind or "-",
            "budget": one.parameters["budget"] or "-",
            "first": one.method,
            "second": two.method,
        }
        cells = [told[name] for name, wanted in optional.items() if wanted]
        cells += [str(max(len(line.first.seeds), len(line.second.seeds))), line.metric]
        cells += [str(figures.difference.n), str(figures.difference.clusters)]
        scale = scale_of(line.metric)
        cells += [points(side, scale=scale) for side in (figures.first, figures.second)]
        cells += [points(figures.difference, "+", line.seed_sd, scale)]
        cells += [_p(flip.p, flip.exact) if flip else "-", _p(line.p)]
        cells += [shown(line.detectable, scale=scale), line.verdict or "-"]
        body.append(cells)
    return with_notes(header, body, notes(found), "md")


def _p(value: float | None, exact: bool = False) -> str:
    if value is None:
        return "-"
    return (f"{value:.4f}" if value >= 0.00005 else f"{value:.0e}") + (" (exact)" if exact else "")


def notes(found: Comparisons) -> list[str]:
    """What has to be known to read a comparison, in sentences."""
    lines = found.lines
    if not lines:
        return ["No metric that both sides have."]
    each = {metric: sum(line.metric == metric for line in lines) for metric in (line.metric for line in lines)}
    family = max(each.values())
    tests = [line.tested.flip for line in lines if line.tested.flip]
    backbones = ", ".join(sorted({line.first.row.backbone for line in lines}))
    said = [
        f"{found.task} ({found.split}), backbone {backbones}. Percent; the difference is first less second, in points, "
        "over the same items, each averaged over the seeds, with 95 % bootstrap intervals clustered by image."
    ]
    if tests:
        corrected = f"Holm's correction over the {family} comparisons of a metric" if family > 1 else "one comparison"
        random = {flip.patterns for flip in tests if not flip.exact}
        drawn = f"{', '.join(f'{n:,}' for n in sorted(random))} random patterns and the one observed" if random else ""
        exact = f"exact: all patterns, where at most {EXACT_UP_TO} images differ" if len(random) < len(tests) else ""
        how = "; ".join(text for text in (drawn, exact) if text)
        said.append(f"p: sign flips of whole images, two-sided ({how}); {corrected}, which the verdict follows (5 %).")
    said.append(
        "detectable: the smallest true difference that a test at level 0.05 would find with probability 0.8, from the "
        "clustered standard error of the differences (2.8 of them); smaller ones are out of sight here."
    )
    untested = dict.fromkeys(line.metric for line in lines if line.verdict and not line.tested.flip)
    if untested:
        said.append(
            f"{', '.join(untested)}: no means over items, so no sign flips and no p; what is said of them is by the "
            "interval, uncorrected."
        )
    if unbounded := [name for name in each if name in UNBOUNDED]:
        said.append(f"{', '.join(unbounded)}: no percentage, and no points.")
    if lower := [name for name in each if name in LOWER_IS_BETTER]:
        said.append(f"{', '.join(lower)}: the lower the better.")
    return said + _about_runs(found)


def _within_seeds(line: Comparison) -> bool:
    """Whether a difference that is called one is no larger than what the seeds alone could make of it."""
    difference, seeds = line.tested.figures.difference.value, max(len(line.first.seeds), len(line.second.seeds))
    if line.seed_sd is None or difference is None or line.verdict in (None, "not separable"):
        return False
    return abs(difference) < 2 * line.seed_sd / math.sqrt(seeds)


def _about_runs(found: Comparisons) -> list[str]:
    said = []
    if any(max(len(line.first.seeds), len(line.second.seeds)) == 1 for line in found.lines):
        said.append(
            "One seed: training variance unknown; another seed of the same methods may reverse what is said here."
        )
    if any(line.seed_sd is not None for line in found.lines):
        said.append(
            "± is the deviation of the difference between seeds; intervals and p are conditional on the seeds trained."
        )
    if shaky := [f"{line.metric} against {line.second.row.method}" for line in found.lines if _within_seeds(line)]:
        said.append(
            "Separable on these seeds, yet less than two standard errors of the variation between them (± / "
            f"sqrt(seeds)), so other seeds may say otherwise: {', '.join(dict.fromkeys(shaky))}."
        )
    training = {
        f"{field.removeprefix('stages.0.')} {one} ({line.first.row.method}) and {two} ({line.second.row.method})": None
        for line in found.lines
        for field, (one, two) in line.training.items()
    }
    if training:
        said.append(f"The training differs: {'; '.join(training)}.")
    reference = dict.fromkeys(
        side.row.method for line in found.lines for side in (line.first, line.second) if is_reference(side.row)
    )
    if reference:
        said.append(f"Outside the budget: {', '.join(reference)}.")
    if found.unused:
        said.append(f"Seeds that only one side has are left out: {', '.join(found.unused)}.")
    if found.incomplete:
        said.append(f"{len(found.incomplete)} incomplete runs are left out.")
    return said
