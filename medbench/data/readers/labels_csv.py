"""Layout `labels_csv`: images and a CSV of their labels; the one for a data set of one's own.

One CSV with a column of the split (`file`), or a CSV a split (`files`). An item is a row; its id and its image's key
are what the column of the file holds, so no file may stand in a split twice.

Options:

* `file`, or `files` (split -> CSV); either may be compressed (`.gz`);
* `images`, the folder that the column of the file is relative to (default: the data set's folder);
* `columns`, the names of the columns `file`, `label`, `split` and, if there is one, `group` (patient or examination);
* `splits`, split -> what the column of the split holds (default: train; val, valid or validation; test);
* `labels`, the file's label -> class of the card; a label that is not named is a class itself;
* `only`, column -> the values of the rows that are used; the other rows are no part of the set;
* `agree`, columns that must hold the same in the rows that are used (two readers, say).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, utf8
from medbench.data.readers.csv_rows import read_table
from medbench.data.readers.json_rows import missing, packed
from medbench.errors import WorkError

NAMES = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the CSVs and the folder of the images are there; whether each image is, is found when it is read."""
    tables = [options["file"]] if options.get("file") else list(options["files"].values())
    images = [options["images"]] if options.get("images") else []
    return missing(folder, [*(packed(folder, name).name for name in tables), *images])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The rows of a split that are used, in the file's order."""
    columns = {"file": "file", "label": "label", "split": "split"} | dict(options.get("columns", {}))
    path = packed(folder, options.get("file") or options["files"][split])
    splits = _splits(options, columns, split) if options.get("file") else None
    needed = [name for key, name in columns.items() if name and (key != "split" or splits)]
    needed += [*options.get("only", {}), *options.get("agree", ())]
    images = folder / options["images"] if options.get("images") else folder
    found = []
    for number, record in enumerate(read_table(path, *needed), start=1):
        if not _is_used(record, options):
            continue
        if splits is not None:
            name = record[columns["split"]]
            if name not in splits:
                told = f"row {number}: column {columns['split']!r} holds {name[:40]!r}"
                raise WorkError(f"{path}: {told}, expected one of {', '.join(splits)}")
            if splits[name] != split:
                continue
        found.append(_row(record, number, path, images, columns, options))
    return found


def _splits(options: Mapping[str, Any], columns: Mapping[str, str], split: str) -> dict[str, str]:
    """What the column of the split may hold -> our name."""
    said = options.get("splits", {})
    return {name: ours for ours, names in NAMES.items() for name in ((said[ours],) if ours in said else names)}


def _is_used(record: Mapping[str, str], options: Mapping[str, Any]) -> bool:
    if any(record[column] not in values for column, values in options.get("only", {}).items()):
        return False
    return len({record[column] for column in options.get("agree", ())}) <= 1


def _row(
    record: Mapping[str, str],
    number: int,
    path: Path,
    images: Path,
    columns: Mapping[str, str],
    options: Mapping[str, Any],
) -> Row:
    identity = f"row {number}"
    try:
        if not record[columns["file"]]:
            raise KeyError(f"column {columns['file']!r} is empty")
        identity = name = utf8(image_field(record, columns["file"]), columns["file"])
        label = utf8(record[columns["label"]], columns["label"])
        if not label:
            raise KeyError(f"column {columns['label']!r} is empty")
    except KeyError as error:
        return Row(identity, error=f"item {identity} in {path}: {error.args[0]}")
    group = record[columns["group"]] if columns.get("group") else ""
    answer = options.get("labels", {}).get(label, label)
    return Row(identity, FileImage(name, images / name), "", answer, group=group)
