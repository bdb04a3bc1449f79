"""What the reports of studies (`forget`, `interference`) share: cells, the table of comparisons, files, notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.files import digest, write_json, write_text
from medbench.results.writing import points, shown, with_notes
from medbench.scoring.bootstrap import Estimate
from medbench.scoring.permutation import EXACT_UP_TO

Found = Mapping[str, Any]
#: The columns of a report as CSV, those that are not of its own.
FIGURE = ("value", "low", "high", "n", "clusters", "seed_sd", "reason")


def cell_text(figure: Found | None, sign: str = "") -> str:
    """A figure of a report as a table shows it, in points: value, deviation between seeds, interval; `-` for none."""
    if figure is None:
        return "-"
    estimate = Estimate(*(figure[name] for name in ("value", "low", "high", "n", "clusters")))
    return points(estimate, sign, figure["seed_sd"])


def p_text(value: float, exact: bool = False) -> str:
    """A p-value, marked where it is exact."""
    return (f"{value:.4f}" if value >= 0.00005 else f"{value:.0e}") + (" (exact)" if exact else "")


def comparison_table(lines: Sequence[Found], what: str) -> str:
    """The pairs of methods as Markdown; nothing where there is one method."""
    if not lines:
        return ""
    header = ["figure", "first", "second", f"{what}, first less second", "p", "p (Holm)", "detectable", "first"]
    body = [
        [
            *(line["scope"], line["first"], line["second"], cell_text(line["difference"], "+")),
            *(p_text(line["p"], line["exact"]), p_text(line["p_holm"]), shown(line["detectable"]), line["verdict"]),
        ]
        for line in lines
    ]
    return markdown(header, body)


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table without notes."""
    return with_notes(header, body, [], "md").rstrip("\n") + "\n"


def shared_notes(found: Found, what: str) -> list[str]:
    """What has to be known to read any of these reports, in sentences."""
    seeds = found["seeds"]
    said = [
        f"Backbone {found['backbone']}. Percent and points, over the same items, each averaged over the seeds "
        f"({', '.join(map(str, seeds))}); 95 % bootstrap intervals clustered by image, tasks resampled apart."
    ]
    if len(found["scopes"]) > 1:
        said.append(f"{what} of `mean`: over all tasks alike, of each task the mean of its figures.")
    if found["comparisons"]:
        patterns = {line["patterns"] for line in found["comparisons"] if not line["exact"]}
        drawn = [f"{', '.join(f'{n:,}' for n in sorted(patterns))} random patterns"] if patterns else []
        if any(line["exact"] for line in found["comparisons"]):
            drawn.append(f"exact where at most {EXACT_UP_TO} images differ")
        said.append(
            f"p: sign flips of whole images, two-sided ({'; '.join(drawn)}), corrected over the pairs of methods of a "
            "figure (Holm), which the verdict follows (5 %). detectable: the smallest true difference that such a test "
            "would find with probability 0.8."
        )
    if len(seeds) == 1:
        said.append("One seed: the variance of training is unknown; another seed may say otherwise.")
    else:
        said.append(
            "± is the deviation between seeds; intervals and p are conditional on the seeds trained. Where it says 'on "
            "these seeds', a difference is less than two standard errors of the variation between them."
        )
    budgets = {method["budget"] for method in found["methods"]}
    off = [m["method"] for m in found["methods"] if not m["comparable"]]
    if len(budgets) > 1 or off:
        said.append(f"Not to be compared by budget: {', '.join(off) or 'the methods were given different ones'}.")
    return said


def report_folder(out: Path, found: Found) -> Path:
    """Where a report lies by default: named after what it is of, and its runs (other settings are another report)."""
    names = found["sequence"] if "sequence" in found else found["tasks"]
    runs = sorted(run for method in found["methods"] for run in method["runs"])
    return out / f"{found['kind']}-{'-'.join(names)[:80]}-{digest([runs, found['metrics']])[:8]}"


def write_report(folder: Path, found: Found, text: str, frame: pd.DataFrame) -> list[Path]:
    """Writes `<kind>.json`, `.md` and `.csv`, each atomically; equal reports are equal bytes."""
    paths = [folder / f"{found['kind']}.{form}" for form in ("json", "md", "csv")]
    write_json(paths[0], found)
    write_text(paths[1], text)
    write_text(paths[2], frame.to_csv(index=False))
    return paths
