"""The sighted twin of a `--blind test` run: the same run but for blindness. Both train the very same adapter."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.errors import MedbenchError, WorkError
from medbench.files import folder_digest, publish_folder
from medbench.job import Data, Job
from medbench.results.record import is_finished, read_record


def borrow_fit(job: Job, data: Data) -> bool:
    """Takes over the adapter of the sighted twin beside this run, instead of training the same one again.

    Only a finished twin will do whose weights are still there and unchanged, and which was trained on the same
    data, images included. The adapter is copied; the record names the run it comes from (`training.from_run`), and
    its seconds of training are 0.

    Returns:
        Whether it was done; otherwise the run trains for itself.
    """
    twin = _twin(job)
    if twin is None or not is_finished(twin) or not (twin / "adapter").is_dir():
        return False
    try:
        record = read_record(twin)
    except MedbenchError:  # a record of another version: the run can train for itself
        return False
    trained_on = {f"{part.data.task}/{part.data.split}" for stage in job.spec.stages for part in stage.mixture}
    same_data = all(record["data"].get(key) == data.about[key] for key in trained_on)
    if not same_data or folder_digest(twin / "adapter", "*.safetensors") != record["weights"]["adapter"]:
        return False
    _copy(twin / "adapter", job.folder / "adapter")
    shutil.rmtree(job.folder / "fit", ignore_errors=True)
    content: dict[str, Any] = {**record["training"], "from_run": twin.name, "seconds": 0.0}
    content |= {"weights": record["weights"], "environment": record["environment"]["fit"], "memory": None}
    job.finish("fit", content)
    return True


def _twin(job: Job) -> Path | None:
    return job.folder.parent / replace(job.spec, blind=None).identity if job.spec.blind == "test" else None


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_suffix(".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(source, temporary)
        publish_folder(temporary, target)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise WorkError(f"cannot write {target}: {getattr(error, 'strerror', None) or error}") from error
