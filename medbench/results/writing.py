"""Tables as text: Markdown, LaTeX, HTML, with what is marked in them and the notes below."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from typing import Any, Literal

import pandas as pd
from tabulate import tabulate

from medbench.scoring.bootstrap import Estimate

Format = Literal["md", "csv", "latex", "html"]
Mark = Literal["best", "tie"]
#: Private characters around a marked text: they go through the writers' escaping and are replaced after it.
_SIGNS = {"best": ("\ue000", "\ue001"), "tie": ("\ue002", "\ue003")}
_AS = {
    "md": {"best": ("**", "**"), "tie": ("_", "_")},
    "latex": {"best": (r"\textbf{", "}"), "tie": (r"\textit{", "}")},
    "html": {"best": ("<strong>", "</strong>"), "tie": ("<em>", "</em>")},
}

#: What a table says of its intervals: what is drawn in the bootstrap.
INTERVALS = "95 % bootstrap intervals, clustered by patient or study where the data names it and else by image"


def marked(text: str, mark: Mark | None) -> str:
    """A cell's text, marked as the best of its column or as not separable from it; `with_notes` writes the mark."""
    before, after = _SIGNS[mark] if mark else ("", "")
    return before + text + after


def with_notes(header: Sequence[str], body: Sequence[Sequence[str]], notes: Sequence[str], form: Format) -> str:
    """A table's text in Markdown, LaTeX (booktabs) or HTML (escaped); the notes stand below it.

    Args:
        header: the columns' names.
        body: the cells of each row.
        notes: plain sentences.
        form: any but csv.
    """
    formats = {"md": "github", "latex": "latex_booktabs", "html": "html"}
    notes = [_write_marks(escape(note, quote=False) if form == "html" else note, form) for note in notes]
    if form == "md":  # before the columns are aligned
        header, body = [_write_marks(name, form) for name in header], [[_write_marks(c, form) for c in r] for r in body]
    text = _write_marks(tabulate(body, header, tablefmt=formats[form], disable_numparse=True), form)
    if form == "html":
        return _page(text + "".join(f"\n<p>{note}</p>" for note in notes))
    sign = {"md": "", "latex": "% "}[form]
    return text + "\n\n" + "\n".join(sign + note for note in notes) + "\n"


def _write_marks(text: str, form: Format) -> str:
    for mark, signs in _SIGNS.items():
        for sign, written in zip(signs, _AS[form][mark], strict=True):
            text = text.replace(sign, written)
    return text


def shown(value: float | None, sign: str = "", scale: float = 100) -> str:
    """A figure as tables show it: in points with one place, or with `scale` 1 (`scale_of`) as it is, with three.

    Example:
        >>> shown(0.1234), shown(0.1234, "+"), shown(1.5, scale=1), shown(None)
        ('12.3', '+12.3', '1.500', '-')
    """
    return "-" if value is None else f"{scale * value:{sign}.{1 if scale == 100 else 3}f}"


def points(estimate: Estimate, sign: str = "", sd: float | None = None, scale: float = 100) -> str:
    """An estimate in points: its value, deviation between seeds and interval, as far as there are any.

    `scale` is that of the metric (`medbench.scoring.figures.scale_of`).

    Example:
        >>> points(Estimate(0.5, 0.4, 0.61, n=10, clusters=5), sd=0.02), points(Estimate(0.5, None, None, 1, 1), "+")
        ('50.0 ± 2.0 [40.0, 61.0]', '+50.0')
        >>> points(Estimate(None, None, None, 0, 0))
        '-'
    """
    if estimate.value is None:
        return "-"
    text = shown(estimate.value, sign, scale) + (f" ± {shown(sd, scale=scale)}" if sd is not None else "")
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{shown(estimate.low, sign, scale)}, {shown(estimate.high, sign, scale)}]"


def json_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame as plain JSON values, null where there is none."""
    rows: list[dict[str, Any]] = json.loads(frame.to_json(orient="records"))
    return rows


def _page(body: str) -> str:
    """A page of its own, nothing fetched from elsewhere."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#222}"
        "table{border-collapse:collapse;font-variant-numeric:tabular-nums}p{color:#555}"
        "th,td{padding:.35em .8em;text-align:left;border-bottom:1px solid #ddd}"
        "td{white-space:nowrap}th{border-bottom:2px solid #222}"
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8"><title>medbench</title>'
        f"<style>{style}</style></head>\n<body>\n{body}\n</body>\n</html>\n"
    )
