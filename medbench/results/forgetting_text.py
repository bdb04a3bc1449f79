"""A forgetting report as text for people and as a long table, from its plain values (`forgetting_json`)."""

from __future__ import annotations

from typing import Any

import pandas as pd

from medbench.results.study_text import FIGURE, Found, cell_text, comparison_table, markdown, shared_notes

#: Name of a figure of the summary -> its column, and whether it has a sign.
SUMMARY = {
    "final_average": ("final average", ""),
    "backward_transfer": ("BWT", "+"),
    "forward_transfer": ("FWT", "+"),
    "forgetting": ("forgetting", "+"),
    "first_task_drop": ("drop on the first task", "+"),
    "first_task_drop_relative": ("drop, share of it (%)", "+"),
    "less_joint": ("end less joint", "+"),
    "less_alone": ("end less alone", "+"),
}


def render_forgetting(found: Found) -> str:
    """Three Markdown tables (the matrix with its bounds, the summary, the comparisons) and how to read them."""
    several = len(found["methods"]) > 1
    parts = [
        f"## After each stage: {' then '.join(found['sequence'])}\n\n{_matrix(found)}",
        f"## Summary\n\n{_summary(found)}",
        *([f"## Which method forgets less\n\n{_comparisons(found)}"] if several else []),
        "\n".join(f"- {note}" for note in notes(found)) + "\n",
    ]
    return "\n".join(parts)


def _comparisons(found: Found) -> str:
    return comparison_table(found["comparisons"], "forgetting")


def _columns(found: Found) -> list[tuple[str, str]]:
    cells = [(cell["task"], cell["metric"]) for cell in found["methods"][0]["matrix"]]
    return list(dict.fromkeys(cells))


def _matrix(found: Found) -> str:
    columns, sequence = _columns(found), found["sequence"]
    body = []

    def line(method: str, after: str, cells: list[Any]) -> None:
        at = {(cell["task"], cell["metric"]): cell for cell in cells}
        body.append([method, after, *(cell_text(at.get(column)) for column in columns)])

    if found["none"] is not None:
        line("none", "nothing", found["none"])
    for method in found["methods"]:
        for stage in range(_untrained_is_none(found, method), len(sequence) + 1):
            after = f"{stage}: {sequence[stage - 1]}" if stage else "nothing"
            line(method["method"], after, [cell for cell in method["matrix"] if cell["after"] == stage])
        for bound, said in (("alone", "(each task alone)"), ("joint", "(all tasks at once)")):
            if cells := [cell for cell in method["bounds"] if cell["bound"] == bound]:
                line(method["method"], said, cells)
    return markdown(["method", "after", *(f"{task} {metric}" for task, metric in columns)], body)


def _untrained_is_none(found: Found, method: Found) -> bool:
    """Whether the row before any training says what the row of the bare backbone says."""
    figures = [{key: cell[key] for key in ("task", "metric", "value")} for cell in found["none"] or []]
    start = [cell for cell in method["matrix"] if cell["after"] == 0]
    return figures == [{key: cell[key] for key in ("task", "metric", "value")} for cell in start]


def _summary(found: Found) -> str:
    there = {line["name"] for method in found["methods"] for line in method["summary"]}
    names = [name for name in SUMMARY if name in there]
    body = []
    for method in found["methods"]:
        for scope in found["scopes"]:
            at = {line["name"]: line for line in method["summary"] if line["scope"] == scope}
            body.append([method["method"], scope, *(cell_text(at[name], SUMMARY[name][1]) for name in names)])
    return markdown(["method", "figure", *(SUMMARY[name][0] for name in names)], body)


def notes(found: Found) -> list[str]:
    """What has to be known to read a report, in sentences."""
    said = shared_notes(found, "Summary")
    said.append(
        "BWT and FWT: Lopez-Paz & Ranzato 2017 (arXiv 1706.08840), FWT against the untrained adapter; forgetting: "
        "Chaudhry et al. 2018 (arXiv 1801.10112), the best earlier stage less the last, over all tasks but the last. "
        "More forgetting and a greater drop are worse; less than 0 is a gain."
    )
    if len(found["sequence"]) == 2:
        said.append("With two tasks, forgetting is minus BWT, and of the first task alone.")
    else:
        said.append("The best stage is picked on the items that it is judged by, which makes forgetting look greater.")
    if found["none"] is not None:
        first = found["sequence"][0]
        said.append(
            f"Alone: one training a task; {first} alone is the sequence's first stage. none: nothing trained, as every "
            "method is before its first stage (a row of its own where it is not)."
        )
    return said


def forgetting_frame(found: Found) -> pd.DataFrame:
    """The report as a long table: one row a figure, `part` says of what (matrix, bound, summary, trace, versus)."""
    rows: list[dict[str, Any]] = []
    for cell in found["none"] or []:
        rows.append({"part": "none", "method": "none"} | cell)
    for method in found["methods"]:
        for part, lines in (("matrix", method["matrix"]), ("bound", method["bounds"]), ("trace", method["trace"])):
            rows += [{"part": part, "method": method["method"]} | line for line in lines]
        rows += [{"part": "summary", "method": method["method"]} | line for line in method["summary"]]
    for line in found["comparisons"]:
        told = {key: line[key] for key in ("scope", "p", "p_holm", "detectable", "verdict")}
        both = {"method": line["first"], "versus": line["second"], "name": "forgetting"}
        rows.append({"part": "versus"} | both | told | line["difference"])
    columns = [
        "part",
        "method",
        "versus",
        "bound",
        "scope",
        "name",
        "after",
        "stage",
        "epoch",
        "step",
        "task",
        "metric",
    ]
    return pd.DataFrame(rows, columns=[*columns, *FIGURE, "p", "p_holm", "detectable", "verdict"])
