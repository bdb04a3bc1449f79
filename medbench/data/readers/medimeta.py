"""Layout `medimeta`: a data set of MedIMeta: `info.yaml`, `annotations.csv`, `images/` and lists of the splits.

`info.yaml` has the tasks with their labels (`tasks: [{task_name, labels: {0: heart, ...}}]`); `annotations.csv` has
`filepath` (`images/000000.tiff`), the label's number under `tasks/<task_name>`, `original_filepath` and, in some sets,
`patient_id`; `splits/{train,val,test}.txt`, or `original_splits/`, list the paths of each split. Ids are those paths.

Options: `task`, its name; `labels`, the label's name -> class of the card (default: the same); `splits`, `splits` or
`original_splits`; `group`, the column that names the patient or the volume.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medbench.data.item import FileImage
from medbench.data.readers import Row, image_field, utf8
from medbench.data.readers.csv_rows import number_of, read_table
from medbench.data.readers.json_rows import missing, read_bytes
from medbench.errors import WorkError

PARTS = {"train": "train", "validation": "val", "test": "test"}


def find(folder: Path, options: Mapping[str, Any]) -> str | None:
    """None when the tables, the images and the lists of the splits are there."""
    lists = [f"{options.get('splits', 'splits')}/{part}.txt" for part in ("train", "test")]
    return missing(folder, ["info.yaml", "annotations.csv", "images", *lists])


def rows(folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
    """The images of a split, in the order of its list."""
    listed = folder / options.get("splits", "splits") / f"{PARTS[split]}.txt"
    names = _labels(folder / "info.yaml", options["task"])
    table, column, group = folder / "annotations.csv", f"tasks/{options['task']}", options.get("group")
    about = {
        record["filepath"]: record for record in read_table(table, "filepath", column, *([group] if group else []))
    }
    try:
        paths = [line.strip() for line in read_bytes(listed).decode("utf-8-sig").splitlines() if line.strip()]
    except ValueError as error:
        raise WorkError(f"{listed}: not readable as text ({error})") from error
    found = []
    for path in paths:
        try:
            utf8(image_field({"filepath": path}, "filepath"), "filepath")
            if path not in about:
                raise KeyError(f"{table.name} has no row of it")
            label = _label(about[path][column], names)
        except KeyError as error:
            found.append(Row(path, error=f"item {path} in {listed}: {error.args[0]}"))
            continue
        answer = options.get("labels", {}).get(label, label)
        found.append(Row(path, FileImage(path, folder / path), "", answer, group=about[path][group] if group else ""))
    return found


def _labels(path: Path, task: str) -> dict[int, str]:
    """The labels of a task of `info.yaml`, by number."""
    try:
        content = yaml.safe_load(read_bytes(path))
        tasks = {about["task_name"]: about["labels"] for about in content["tasks"]}
        if task not in tasks:
            raise WorkError(f"{path}: there is no task {task!r}; there are {', '.join(map(repr, tasks))}")
        return {int(number): str(name) for number, name in tasks[task].items()}
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        told = " ".join(str(error).split())[:120]
        raise WorkError(f"{path}: not a description of MedIMeta's form, no tasks with labels ({told})") from error


def _label(cell: str, names: Mapping[int, str]) -> str:
    number = number_of(cell)
    if number is None or number not in names:
        raise KeyError(f"the label {cell[:40]!r} is none of the numbers {', '.join(map(str, names))}")
    return names[int(number)]
