"""One run, top to bottom: check data -> fit -> predict -> score and record.

Each arrow leaves its artefact in the run's folder, written atomically; an arrow whose artefact is there, made from
the same inputs, is not done again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from medbench.backbones.registry import Backbone
from medbench.data.load import locate_or_fetch
from medbench.errors import WorkError
from medbench.files import canonical_json, run_lock
from medbench.job import Job
from medbench.progress import note
from medbench.protocol import refuse_leaks
from medbench.results.record import is_finished, read_record, write_record
from medbench.spec import RunSpec
from medbench.tuners import get_tuner


def run(job: Job, wait: bool = False) -> Path:
    """Does what is left of a run and returns its folder. A finished run costs one look.

    Under `accelerate launch` every process calls this: all fit and predict, the first one does the rest.

    Args:
        job: the run.
        wait: whether to wait for another process that is at this run; else that is an error.

    Raises:
        HeldError: another process is at it.
        MedbenchError: see the steps; what was finished before stays and is not done again.
    """
    if is_finished(job.folder):
        _refuse_leaks(job)
        _tidy(job.folder)
        return job.folder
    # Imported here: a finished run, and everything that only reads runs, needs no torch.
    from medbench.steps import fit, predict
    from medbench.steps_data import check_data
    from medbench.workplace import Workplace

    work = Workplace.of(job)
    with run_lock(job.folder, wait=wait) if work.is_first else nullcontext():
        # Another process may have finished it between the first look and the lock.
        work.wait()
        if is_finished(job.folder):
            _refuse_leaks(job)
            return job.folder
        if work.is_first:
            _begin(job)
        work.wait()
        data = check_data(job, work)
        to_fit = bool(job.spec.stages) and job.step("fit") is None
        work.wait()  # all have looked before one of them may finish the step
        if to_fit:
            fit(job, work, data)
        if job.step("predict") is None:
            predict(job, work, data)
        if work.is_first:
            write_record(job, data)
            _tidy(job.folder)
        work.wait()
    return job.folder


def _refuse_leaks(job: Job) -> None:
    """Of a finished run: whoever did it may have asked for another protocol."""
    refuse_leaks((read_record(job.folder).get("leaks") or {}).get("overlaps", []), job.protocol)


def _begin(job: Job) -> None:
    path = job.folder / "spec.json"
    if path.exists() and path.read_text(encoding="utf-8") != canonical_json(job.spec.to_json()):
        raise WorkError(f"{path}: is not the spec of this run; move the folder away")
    job.spec.save(job.folder)


def _tidy(folder: Path) -> None:
    """Removes what only resuming needs (checkpoints with optimiser state, parts, step marks) and broken writes."""
    for name in ("fit", "parts", "adapter.tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
    marks = [folder / f"{name}.json" for name in ("data", "fit", "predict")]
    for path in (*marks, *folder.glob(".*.tmp"), folder / ".lock.holder"):
        path.unlink(missing_ok=True)


def check_adapter(spec: RunSpec, backbone: Backbone) -> None:
    """Builds the configuration of a run's adapter, so that a wrong setting is known before anything is done.

    Which names stand for which layers is the backbone's; of one that only its model knows, the usual ones.

    Raises:
        RequestError: the tuner refuses a setting.
    """
    if spec.method.tuner not in ("adapter", "none") and not get_tuner(spec.method.tuner).trains_base:
        from medbench.backbones.adapt import adapter_config

        adapter_config(spec.method, backbone.architecture or "", spec.seed)


def run_all(jobs: list[Job], announce: Callable[[str], None] = note, heading: str = "") -> list[Path]:
    """Does several runs one after another; the first failure stops. `heading` is announced once all is checked.

    Raises:
        RequestError: a run that is not finished has no data, no backbone or impossible settings; then none is
            begun.
        MedbenchError: see `run`.
    """
    for job in jobs:
        if not is_finished(job.folder):
            check_adapter(job.spec, job.backbone)
            job.backbone.folder()
            for card in job.cards.values():
                locate_or_fetch(card, job.data_root)
    if heading:
        announce(heading)
    folders = []
    for number, job in enumerate(jobs, start=1):
        blind = f" blind {job.spec.blind}" if job.spec.blind else ""
        about = f"{job.spec.method.name} seed {job.spec.seed}{blind}"
        name = f"[{number}/{len(jobs)}] {about}, run {job.folder.name[:12]}"
        announce(f"{name}: finished before" if is_finished(job.folder) else name)
        folders.append(run(job))
    return folders
