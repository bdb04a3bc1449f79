"""The record of a run: `record.json`, written last, and the table of many records."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from medbench.data.fingerprint import ABOUT
from medbench.errors import RequestError, WorkError
from medbench.files import read_json, read_parquet, write_json, write_parquet
from medbench.job import Data, Job
from medbench.protocol import leaking_tasks, task_protocols
from medbench.scoring.kinds import get_family, kind_of
from medbench.scoring.predictions import score_task, scoring_of
from medbench.scoring.stats import RESAMPLES, estimate_metrics
from medbench.scoring.vqa import ITEM_COLUMNS

#: Raised when the meaning of a record's field changes; records of another version are refused, never guessed at.
RECORD_SCHEMA = 1
ARTEFACTS = ("spec.json", "predictions.parquet", "scores.parquet", "record.json")


def is_finished(folder: Path) -> bool:
    """Whether a run is complete (its weights may be gone)."""
    return all((folder / name).exists() for name in ARTEFACTS)


def score_run(job: Job, data: Data) -> dict[str, Any]:
    """Scores a run's stored predictions: writes `scores.parquet`, returns figures by task."""
    stored = read_parquet(job.folder / "predictions.parquet")
    tables, figures = [], {}
    for test in job.spec.tests:
        rows = stored[(stored["task"] == test.task) & (stored["split"] == test.split)]
        about = scoring_of(job.cards[test.task])
        scored = score_task(test.task, test.split, data.items(test).items, rows, **about)
        tables.append(scored)
        figures[test.task] = task_figures([scored])
    write_parquet(job.folder / "scores.parquet", pd.concat(tables, ignore_index=True))
    return figures


def task_figures(tables: Sequence[pd.DataFrame], resamples: int = RESAMPLES) -> dict[str, Any]:
    """What a record and `--json` say of a task, from one score table a seed.

    n, clusters and metrics; what else the kind's family has to say (`about`); and n, clusters and metrics of each type
    of question, where the card names a field that types them.
    """
    kind = kind_of(tables[0])
    family = get_family(kind)
    figures = _figures(tables, resamples) if kind == "vqa" else {"kind": kind, **_figures(tables, resamples)}
    if hasattr(family, "about"):
        figures |= family.about(tables)
    types = sorted(set(tables[0]["question_type"].dropna()) - {""}) if "question_type" in tables[0] else []
    if types:
        each = {t: [table[table["question_type"] == t] for table in tables] for t in types}
        figures["types"] = {t: _figures(those, resamples) for t, those in each.items()}
    return figures


def _figures(tables: Sequence[pd.DataFrame], resamples: int) -> dict[str, Any]:
    metrics = {name: estimate.to_json() for name, estimate in estimate_metrics(tables, resamples).items()}
    return {"n": len(tables[0]), "clusters": int(tables[0]["cluster"].nunique()), "metrics": metrics}


def write_record(job: Job, data: Data) -> Path:
    """Scores a run and writes its record: the last step."""
    from medbench.results.traces import write_trace  # which needs the figures of this module

    started = time.monotonic()
    spec = job.spec
    fitted, predicted = job.step("fit") or {}, job.step("predict")
    if predicted is None:
        raise WorkError(f"run {job.folder.name[:12]}: nothing was predicted")
    tasks = score_run(job, data)
    traced = write_trace(job, data) if spec.trace else None
    protocols = task_protocols(spec, job.cards, job.backbone.pretrained_on)
    protocols |= dict.fromkeys(leaking_tasks(data.leaks), "in_domain")
    for test in spec.tests:
        about = data.about[f"{test.task}/{test.split}"]
        tasks[test.task] |= {
            "protocol": protocols[test.task],
            "split": test.split,
            "profile": "medbench",
            "skipped": about["skipped"],
        }
        if "left_out" in about:
            tasks[test.task]["left_out"] = about["left_out"]
    total = predicted["parameters"]["total"]
    trainable = spec.budget.trainable
    record = {
        "schema": RECORD_SCHEMA,
        "run": spec.identity,
        "method": spec.method.name,
        "seed": spec.seed,
        "backbone": spec.backbone.name,
        # By names the spec's; by pixels more may be known.
        "protocol": "in_domain" if leaking_tasks(data.leaks) else spec.protocol,
        "blind": spec.blind,
        "tasks": tasks,
        "trained_on": spec.trained_tasks,
        "stages": [[part.data.task for part in stage.mixture] for stage in spec.stages],
        "parameters": {
            "rank": spec.method.adapter.get("r"),
            "trainable": trainable,
            "total": total,
            "percent": 100 * trainable / total,
            "budget": spec.budget.request or None,
            "budget_distance": spec.budget.distance,
            "comparable": spec.budget.comparable,
        },
        "data": data.about,
        # Records from before this field lack it; none without training here.
        "leaks": {"hashes": ABOUT, "overlaps": data.leaks} if data.leaks else None,
        "weights": predicted["weights"],
        "training": {k: fitted[k] for k in ("stages", "stages_done_before", "from_run") if k in fitted},
        "prediction": {k: predicted[k] for k in ("images_encoded", "image_features_cached")},
        # Of traced runs alone.
        **({"trace": traced} if traced is not None else {}),
        "seconds": {
            "fit": fitted.get("seconds", 0.0),
            **({"trace": fitted["trace_seconds"]} if "trace_seconds" in fitted else {}),
            "predict": predicted["seconds"],
            "score": time.monotonic() - started,
        },
        "memory": {"fit": fitted.get("memory"), "predict": predicted["memory"]},
        "environment": {"fit": fitted.get("environment"), "predict": predicted["environment"]},
        "dtype": spec.dtype,
        "command": job.command,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": spec.to_json(),
    }
    write_json(job.folder / "record.json", record)
    return job.folder / "record.json"


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a run folder.

    Raises:
        RequestError: there is none (the run is incomplete).
        WorkError: it is of another schema version.
    """
    path = folder / "record.json"
    if not path.exists():
        raise RequestError(f"{folder}: no record.json; the run is incomplete, or this is no run folder")
    record: dict[str, Any] = read_json(path)
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != RECORD_SCHEMA:
        raise WorkError(f"{path}: record schema {schema!r}, this medbench reads {RECORD_SCHEMA}")
    plain = ("run", "method", "seed", "backbone", "stages", "weights")
    mappings = ("tasks", "parameters", "data", "spec")
    missing = [key for key in plain if key not in record]
    missing += [key for key in mappings if not isinstance(record.get(key), dict)]
    for task, content in record["tasks"].items() if "tasks" not in missing else ():
        if not isinstance(content, dict) or not {"n", "split", "metrics", "protocol"} <= content.keys():
            missing.append(f"the figures of {task}")
    if missing:
        raise WorkError(f"{path}: broken record, without {', '.join(missing)}; remove it and run again")
    if len(folder.name) == len(str(record["run"])) and folder.name != record["run"]:
        raise WorkError(f"{path}: is of run {record['run'][:12]}, not of this folder; remove it and run again")
    return record


def read_scores(folder: Path, task: str) -> pd.DataFrame:
    """The score table of a task of a run.

    Raises:
        WorkError: the file is broken, or not the scores of this task.
    """
    path = folder / "scores.parquet"
    table = read_parquet(path)
    found = table[table["task"] == task] if "task" in table else table
    family = get_family(kind_of(found))
    columns, texts = getattr(family, "COLUMNS", ()), getattr(family, "TEXTS", ())
    lacking = [name for name in ("task", *ITEM_COLUMNS, *columns) if name not in table]
    numbers = [name for name in columns if name not in (*lacking, *texts)]
    wrong = [name for name in numbers if not pd.api.types.is_numeric_dtype(table[name])]
    if lacking or wrong:
        raise WorkError(f"{path}: broken scores (columns {', '.join(lacking + wrong)}); score or run again")
    if found.empty:
        raise WorkError(f"{path}: no scores of task {task}; score or run again")
    return found


def run_folders(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The run folders among and directly below `paths`: (complete, incomplete).

    Raises:
        RequestError: a path does not exist.
    """
    complete: list[Path] = []
    incomplete: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise RequestError(f"{path}: no such folder")
        found = [path] if (path / "spec.json").exists() else sorted(p.parent for p in path.glob("*/spec.json"))
        for folder in found:
            (complete if is_finished(folder) else incomplete).append(folder)
    return complete, incomplete


def load_records(path: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """All records below one or more folders, one row for each run, task and metric.

    Incomplete runs are left out and named in `frame.attrs["incomplete"]`.

    Returns:
        Columns run, folder, method, seed, backbone, protocol, trained_on ("unknown" of imported runs), blind ("train"
        or "test", missing for sighted runs: never average over it), rank, trainable, percent, budget, budget_distance,
        comparable, dtype, task, split, metric, value, low, high, n, clusters, reason.

    Example:
        >>> import medbench
        >>> medbench.load_records("results/measured").query("metric == 'closed_accuracy'")  # doctest: +SKIP
    """
    paths = [Path(path)] if isinstance(path, str | Path) else [Path(p) for p in path]
    complete, incomplete = run_folders(paths)
    rows = [row for folder in complete for row in _rows(folder, read_record(folder))]
    columns = [
        *("run", "folder", "method", "seed", "backbone", "protocol", "trained_on", "blind"),
        *("rank", "trainable", "percent", "budget", "budget_distance", "comparable", "dtype"),
        *("task", "split", "metric", "value", "low", "high", "n", "clusters", "reason"),
    ]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["incomplete"] = [str(folder) for folder in incomplete]
    return frame


def _rows(folder: Path, record: dict[str, Any]) -> list[dict[str, Any]]:
    parameters = record["parameters"]
    run = {key: record[key] for key in ("run", "method", "seed", "backbone", "dtype")}
    run |= {key: parameters[key] for key in parameters if key != "total"}
    run |= {"folder": str(folder), "trained_on": "+".join(record["trained_on"])}
    if record.get("imported"):
        run["trained_on"] = "unknown"
    run["blind"] = record.get("blind")  # not in the records of before there were blind runs
    return [
        run
        | {"task": task, "split": content["split"], "protocol": content["protocol"], "metric": name, "reason": None}
        | figures
        for task, content in record["tasks"].items()
        for name, figures in content["metrics"].items()
    ]
