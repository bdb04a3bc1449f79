"""Layout `r2gen_annotation`: the `annotation.json` of R2Gen, for IU-Xray and for MIMIC-CXR.

One object, split -> list of `{id, report, image_path: [one or more], split}`; of MIMIC-CXR also `study_id`, with an
entry an image that repeats its study's report: here a study is one item, with the images in the file's order. Ids are
`study_id`, else `id`. The report is the findings section, as R2Gen took it.

Options: `file`; `images`, the folder that `image_path` is relative to, itself relative to the data root (the folder
that holds the data sets' folders); `views` and `sections` (see `medbench.data.readers.studies`); `question`, what the
model is asked; `texts`, for other sections than findings: the Indiana collection's CSV with the columns `uid`,
`findings`, `impression`, where the study `CXR12_IM-0345` is uid 12. Both files may be compressed (`.gz`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.readers import Row, text_field, utf8
from medbench.data.readers.json_rows import missing, packed, read_bytes
from medbench.data.readers.studies import StudyImage, chosen, joined
from medbench.errors import WorkError

NAMES = {"train": ("train",), "validation": ("val", "validate"), "test": ("test",)}


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the annotation (and the CSV, if the card names one) is there; images are looked for when read."""
    names = [options["file"], *([options["texts"]] if options.get("texts") else [])]
    return missing(folder, [packed(folder, name).name for name in names])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The studies of a split, in the file's order; a report without a wanted section is an empty answer."""
    path = packed(folder, options["file"])
    texts = _texts(packed(folder, options["texts"])) if options.get("texts") else None
    found: dict[str, Row] = {}
    for number, record in enumerate(_entries(path, split)):
        row = _row(record, number, path, folder.parent / options["images"], options, texts)
        # Without a study to share, two entries of one id are two rows: a mistake that is named later.
        shared = isinstance(record, Mapping) and record.get("study_id") is not None
        key = row.id if shared else f"entry {number}"
        found[key] = _merged(found[key], row, options["views"]) if key in found else row
    return list(found.values())


def _entries(path: Path, split: str) -> list[Any]:
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise WorkError(f"{path}: not readable as JSON ({error})") from error
    keys = list(content) if isinstance(content, dict) else []
    name = next((name for name in NAMES[split] if name in keys), None)
    if name is None or not isinstance(content[name], list):
        there = ", ".join(map(repr, keys)) or "nothing"
        raise WorkError(f"{path}: expected a list under {NAMES[split][0]!r}; there is {there}"[:300])
    entries: list[Any] = content[name]
    return entries


def _row(
    record: Any,
    number: int,
    path: Path,
    images: Path,
    options: Mapping[str, Any],
    texts: Mapping[str, Mapping[str, str]] | None,
) -> Row:
    identity = f"row {number}"
    try:
        if not isinstance(record, Mapping):
            raise KeyError(f"should be an object, is {type(record).__name__}")
        identity = text_field(record, "study_id" if record.get("study_id") is not None else "id")
        named = record.get("image_path")
        if not isinstance(named, list) or not named:
            raise KeyError(f"field 'image_path' should be a list of files, is {named!r}"[:120])
        paths = [images / _inside(name) for name in named]
        report = text_field(record, "report")
        if texts is not None:
            report = joined(_sections(texts, identity), options["sections"])
        else:
            report = " ".join(report.split())
    except KeyError as error:
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
    return Row(identity, StudyImage(identity, chosen(paths, options["views"])), options["question"], report)


def _merged(first: Row, second: Row, views: str) -> Row:
    """Two entries of one study as one: the images of both, in order."""
    if first.error is not None or second.error is not None:
        return first if first.error is not None else second
    if first.answer != second.answer:
        return Row(first.id, error=f"item {first.id}: two entries of this study have different reports")
    one, two = first.image, second.image
    assert isinstance(one, StudyImage) and isinstance(two, StudyImage)
    return Row(first.id, StudyImage(one.key, chosen((*one.paths, *two.paths), views)), first.question, first.answer)


def _inside(name: Any) -> str:
    if not isinstance(name, str) or not name.strip():
        raise KeyError(f"field 'image_path' should name files, has {name!r}"[:120])
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise KeyError(f"field 'image_path' leaves the data folder: {name!r}"[:120])
    return utf8(name, "image_path")


def _texts(path: Path) -> dict[str, dict[str, str]]:
    """The rows of the Indiana CSV by `uid`."""
    try:
        table = csv.DictReader(io.StringIO(read_bytes(path).decode("utf-8-sig"), newline=""))
        found = {str(row.get("uid", "")).strip(): {k: v or "" for k, v in row.items() if k} for row in table}
    except (ValueError, csv.Error) as error:
        raise WorkError(f"{path}: not readable as CSV ({error})") from error
    lacking = [name for name in ("uid", "findings", "impression") if name not in (table.fieldnames or ())]
    if lacking:
        raise WorkError(f"{path}: lacks the column {lacking[0]!r}")
    return found


def _sections(texts: Mapping[str, Mapping[str, str]], identity: str) -> Mapping[str, str]:
    number = identity.partition("_")[0].removeprefix("CXR")
    if number not in texts:
        raise KeyError(f"the CSV of the texts has no uid {number!r}")
    return texts[number]
