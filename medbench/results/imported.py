"""Imported runs: another system's answers, scored here, so that it has a row beside the trained methods.

What such a run is, its spec says: the model's name, the sha256 of the file of answers, and the card that was answered.
How the answers came about (weights, training data, prompt) nobody here knows, so its protocol is `unknown`, it stands
under no budget, and its record gives no parameters. It holds what any run holds and is scored by the same code.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.data.check import check_images
from medbench.data.item import Item
from medbench.data.load import load_items, published_splits
from medbench.errors import RequestError, WorkError
from medbench.files import file_digest, publish_folder, write_json, write_parquet
from medbench.progress import progress_bar
from medbench.results.environment import software
from medbench.results.record import RECORD_SCHEMA, is_finished, task_figures
from medbench.scoring.jsonl import read_predictions
from medbench.scoring.predictions import gold_table, score_task, scoring_of
from medbench.spec import BackboneSpec, BudgetSpec, DataSpec, MethodSpec, RunSpec

BackboneKnown = Literal["unknown", "none"]
_NAME = re.compile(r"\w[\w .:/@+()-]{0,79}")
_NOTHING: dict[str, Any] = {
    **dict.fromkeys(("rank", "trainable", "total", "percent", "budget", "budget_distance")),
    "comparable": False,
}


def import_predictions(
    predictions: Path,
    model: str,
    card: Card,
    split: Literal["validation", "test"],
    data_root: Path | None,
    out: Path,
    backbone: BackboneKnown = "unknown",
    command: str = "",
) -> Path:
    """Turns a file of answers into a run folder under the model's name; the same file twice is the same run.

    Args:
        predictions: a JSONL or parquet with an answer to every item (see `medbench.scoring.jsonl.read_predictions`).
        model: whose answers they are, as tables name it.
        card: the task that was answered.
        split: the split that was answered.
        data_root: where the data lies.
        out: the folder of the run folders.
        backbone: `none` for a model that is no adapter on a backbone (an API), `unknown` where nothing is said.
        command: the request in words, for the record.

    Returns:
        The run's folder. An import that was done before costs one look at the file.

    Raises:
        RequestError: no such file, a bad name, a broken line, or ids that are not those of the items.
        WorkError: the data or a file is damaged, or the folder cannot be written.
    """
    if not _NAME.fullmatch(model):
        raise RequestError(f"--model {model!r}: expected up to 80 letters, digits, spaces or . : / @ + ( ) - _")
    if model in Catalog().method_names():
        raise RequestError(f"--model {model}: a method here has that name; name the imported model otherwise")
    if not predictions.is_file():
        raise RequestError(f"{predictions}: no such file; expected a JSONL or parquet of answers")
    started = time.monotonic()
    digest = f"sha256:{file_digest(predictions)}"
    spec = imported_spec(model, digest, card, split, data_root, backbone)
    folder = out / spec.identity
    if is_finished(folder):
        return folder
    items, about = _data(card, split, data_root)
    answers = _answers(card.name, split, items, read_predictions(predictions, card.name, split))
    scored = score_task(card.name, split, items, answers, **scoring_of(card))
    record = _record(spec, task_figures([scored]), about) | {
        "imported": {"file": predictions.name, "digest": digest, "seconds": time.monotonic() - started},
        "environment": {"fit": None, "predict": None, "import": software()},
        "command": command,
    }
    _publish(folder, spec, answers, scored, record)
    return folder


def imported_spec(
    model: str,
    digest: str,
    card: Card,
    split: Literal["validation", "test"],
    data_root: Path | None,
    backbone: BackboneKnown = "unknown",
) -> RunSpec:
    """What an imported run is. Its dtype, generation and seed are the defaults and say nothing about the model.

    Args:
        model: its name.
        digest: of the file of answers.
        card: the task.
        split: that was answered.
        data_root: where the data lies; read where the card pins no digest.
        backbone: what is known of it.

    Raises:
        RequestError: the task has no such split, or no data.
    """
    if split not in published_splits(card) or "test" not in card.metadata.splits:
        raise RequestError(f"task {card.name} has no split {split!r} to answer; it has {published_splits(card)}")
    pinned = card.metadata.splits.get(split) or card.metadata.splits.get("train")
    found = None
    if pinned is None or pinned.digest is None:
        found = load_items(card, split, data_root, "skip").digest
    return RunSpec(
        backbone=BackboneSpec(backbone, backbone),
        method=MethodSpec(model, "imported", weights=digest),
        budget=BudgetSpec("", 0),
        stages=(),
        tests=(DataSpec(card.name, split, card.metadata.version, card.digest, found),),
        protocol="unknown",
        seed=0,
    )


def _data(card: Card, split: str, data_root: Path | None) -> tuple[Sequence[Item], dict[str, Any]]:
    """The items to be answered, and what a record says about them: the same as of any run, so that rows compare."""
    loaded = load_items(card, split, data_root)
    with progress_bar("checking images") as step:
        checked = check_images(card.name, loaded.items, "fail", step)
    return checked.items, {
        "layout": loaded.layout,
        "items": len(checked.items),
        "images": len(checked.sizes),
        "digest": loaded.digest,
        "images_digest": checked.images,
        "skipped": 0,
        "skipped_items": [],
        **({"left_out": loaded.left_out} if loaded.left_out else {}),
    }


def _answers(task: str, split: str, items: Sequence[Item], given: pd.DataFrame) -> pd.DataFrame:
    """The answers as a run stores them, in the data's order."""
    joined = gold_table(task, items, given).set_index("id").loc[[item.id for item in items]].reset_index()
    for identity, text in zip(joined["id"], joined["prediction"], strict=True):
        if isinstance(text, str) and any("\ud800" <= char <= "\udfff" for char in text):
            raise RequestError(f"item {identity!r}: the prediction holds half a character (a lone surrogate)")
    joined = joined.assign(task=task, split=split)
    if "probabilities" not in joined:
        joined["probabilities"] = None
    return joined[["task", "split", "id", "cluster", "prediction", "probabilities"]]


def _record(spec: RunSpec, figures: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    (test,) = spec.tests
    task = {**figures, "protocol": spec.protocol, "split": test.split, "profile": "medbench", "skipped": 0}
    if "left_out" in about:
        task["left_out"] = about["left_out"]
    return {
        "schema": RECORD_SCHEMA,
        "run": spec.identity,
        "method": spec.method.name,
        "seed": spec.seed,
        "backbone": spec.backbone.name,
        "protocol": spec.protocol,
        "blind": None,
        "tasks": {test.task: task},
        "trained_on": [],
        "stages": [],
        "parameters": _NOTHING,
        "data": {f"{test.task}/{test.split}": dict(about)},
        "leaks": None,
        "weights": {"backbone": None, "commit": None, "adapter": None},
        "training": {},
        "prediction": {},
        "seconds": {"fit": None, "predict": None},
        "memory": {"fit": None, "predict": None},
        "dtype": None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": spec.to_json(),
    }


def _publish(
    folder: Path, spec: RunSpec, answers: pd.DataFrame, scored: pd.DataFrame, record: Mapping[str, Any]
) -> None:
    """Writes a run folder beside its place and renames it: it is whole or not there."""
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".import-", dir=folder.parent))
        temporary.chmod(0o755)
        write_parquet(temporary / "predictions.parquet", answers)
        write_parquet(temporary / "scores.parquet", scored)
        write_json(temporary / "record.json", record)
        spec.save(temporary)  # last: what makes it a run folder
        publish_folder(temporary, folder)
    except OSError as error:
        raise WorkError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
