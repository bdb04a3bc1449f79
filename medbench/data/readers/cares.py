"""Layout `cares`: CARES' factuality questions with options, a JSONL over another set's images.

A line is `{question_id, text, options, fig_caption, image, ...}`; `options` is one line, `A:ear, B:hand`, which `text`
repeats inside a prompt; the question is what stands between `The Question is:` and `The candidate Options are:`.
`fig_caption` is the right option. `question_id` names the image, so an item's id is `<question_id>-<k>`, k from 0 in
the file's order. The file may be compressed (`.gz`).

Options: `files`, split -> file name; `images`, the folder of the images, relative to the data root.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.data.readers import Row, text_field
from medbench.data.readers.choices import gold_option, split_options
from medbench.data.readers.json_rows import missing, packed, read_lines, to_row

_ASKED = re.compile(r"The Question is:(?P<question>.*?)The candidate Options are:", re.DOTALL)


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the question files are there; whether the images are is found when they are read."""
    return missing(folder, [packed(folder, name).name for name in options["files"].values()])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split, in the file's order; a broken line is a row with an error."""
    path, images = packed(folder, options["files"][split]), folder.parent / options["images"]
    seen: Counter[str] = Counter()
    found = []
    for number, record in read_lines(path):
        if isinstance(record, str):
            found.append(Row(f"line {number}", error=f"line {number} in {path}: {record}"))
            continue
        own = str(record.get("question_id", f"line {number}"))
        found.append(_row(record, f"{own}-{seen[own]}", number, path, images))
        seen[own] += 1
    return found


def _row(record: Mapping[str, Any], identity: str, number: int, path: Path, images: Path) -> Row:
    try:
        asked = _ASKED.search(text_field(record, "text"))
        if asked is None:
            raise KeyError("field 'text' holds no 'The Question is:' before 'The candidate Options are:'")
        offered = split_options(text_field(record, "options"))
        gold = gold_option(text_field(record, "fig_caption"), offered)
    except KeyError as error:
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
    plain = dict(record) | {"question_id": identity, "question": asked["question"], "answer": gold}
    return replace(to_row(plain, number, path, images, "image", "question_id"), options=offered)
