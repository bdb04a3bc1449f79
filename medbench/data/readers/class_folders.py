"""Layout `class_folders`: a folder a class, with that class's images below it.

An item is an image file, also in folders below the class's; its id and its image's key are its path from the root, so
that files of one name in two folders are two items. Files that are no images, and hidden ones, are passed over.

Options:

* `root`, the folder below the data set's that holds it all (default: the data set's own);
* `labels`, class folder -> class of the card; other folders are not looked into;
* `splits`, split -> the folder that holds the class folders of that split; or
* `split_file`, a CSV of `file` and `split` (train; val, valid or validation; test), or the JSON of CoOp's splits
  (`{train, val, test: [[file, number, name], ...]}`), files relative to the root; either may be compressed (`.gz`);
  with none of the two, everything is of the card's one split;
* `ignore`, patterns of file names that are passed over (`*_mask*.png`).
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, utf8
from medbench.data.readers.csv_rows import read_table
from medbench.data.readers.json_rows import missing, packed, read_bytes
from medbench.data.readers.labels_csv import NAMES
from medbench.errors import WorkError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".dcm", ".dicom")


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when every class folder of every split, and the file of the split, is there."""
    if options.get("split_file"):
        problem = missing(folder, [packed(folder, options["split_file"]).name])
        if problem:
            return problem
    root = _root(folder, options)
    tops = [root / name for name in options.get("splits", {}).values()] or [root]
    return next((told for top in tops if (told := missing(top, list(options["labels"])))), None)


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The images of a split: by class folder in the card's order and by path, or in the order of the split file."""
    root = _root(folder, options)
    if options.get("split_file"):
        path = packed(folder, options["split_file"])
        return [_row(name, number, root, path, options) for number, name in enumerate(_listed(path, split), start=1)]
    top = root / options.get("splits", {}).get(split, "")
    return [row for name, label in options["labels"].items() for row in _of_class(top / name, label, root, options)]


def _root(folder: Path, options: Mapping[str, Any]) -> Path:
    return folder / options["root"] if options.get("root") else folder


def _of_class(folder: Path, label: str, root: Path, options: Mapping[str, Any]) -> list[Row]:
    ignored = options.get("ignore", ())
    names = sorted(
        path.relative_to(root).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in ignored)
        and path.is_file()
    )
    if not names:
        raise WorkError(f"{folder}: the folder of class {label!r} holds no image ({', '.join(SUFFIXES[:3])}, ...)")
    return [_image(name, label, root) for name in names]


def _image(name: str, label: str, root: Path) -> Row:
    try:
        utf8(name, "file")
    except KeyError as error:
        shown = name.encode(errors="replace").decode()
        return Row(shown, error=f"item {shown} in {root}: {error.args[0]}")
    return Row(name, FileImage(name, root / name), "", label)


def _row(name: str, number: int, root: Path, path: Path, options: Mapping[str, Any]) -> Row:
    """A file that the split file names; its class is that of the longest class folder it lies in."""
    try:
        inside = PurePosixPath(utf8(image_field({"file": name}, "file"), "file"))
        within = [folder for folder in options["labels"] if inside.is_relative_to(folder)]
        if not within:
            raise KeyError(f"lies in none of the class folders {', '.join(options['labels'])}")
    except KeyError as error:
        return Row(f"row {number}", error=f"item {name[:80]!r} in {path}: {error.args[0]}")
    return _image(inside.as_posix(), options["labels"][max(within, key=len)], root)


def _listed(path: Path, split: str) -> list[str]:
    """The files that a split file names for a split."""
    if path.name.removesuffix(".gz").endswith(".csv"):
        known = {name: ours for ours, names in NAMES.items() for name in names}
        found = []
        for number, record in enumerate(read_table(path, "file", "split"), start=1):
            if record["split"] not in known:
                told = f"row {number}: column 'split' holds {record['split'][:40]!r}"
                raise WorkError(f"{path}: {told}, expected one of {', '.join(known)}")
            if known[record["split"]] == split:
                found.append(record["file"])
        return found
    try:
        content = json.loads(read_bytes(path).decode("utf-8-sig"))
        name = next(name for name in NAMES[split] if name in content)
        return [str(entry[0]) for entry in content[name]]
    except StopIteration as error:
        raise WorkError(f"{path}: there is no list {' or '.join(map(repr, NAMES[split]))}") from error
    except (ValueError, RecursionError, TypeError, IndexError, KeyError) as error:
        raise WorkError(f"{path}: not readable as a CSV or as a JSON of CoOp's splits ({error})") from error
