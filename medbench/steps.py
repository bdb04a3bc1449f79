"""The steps of a run that need torch: fit and predict."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from medbench.backbones.adapt import attach, load_adapter, penalty_of, save_adapted, trainable_parameters
from medbench.data.seen import write_seen
from medbench.errors import WorkError
from medbench.files import folder_digest, publish_folder, read_parquet, write_parquet
from medbench.inference.predict import chunks
from medbench.job import Data, Job
from medbench.progress import progress_bar
from medbench.results.environment import environment, peak_memory, reset_peak_memory
from medbench.results.routes import part_path, write_part
from medbench.routes import router_of
from medbench.runners import get_runner
from medbench.spec import DataSpec, Stage
from medbench.tuners import get_tuner
from medbench.twin import borrow_fit
from medbench.workplace import Workplace


def fit(job: Job, work: Workplace, data: Data) -> None:
    """Trains the stages in turn on one adapter (or takes the sighted twin's), and publishes `adapter/`."""
    from transformers import set_seed

    from medbench.adapters.decomposition_cache import GIB, decomposition_cache
    from medbench.trace import Tracer
    from medbench.training.fit import FitResult, Runtime
    from medbench.training.trainer import load_trained, save_trained

    spec = job.spec
    if work.is_first:
        # Answers of an adapter that is gone must not stand beside the new one's.
        shutil.rmtree(job.folder / "parts", ignore_errors=True)
        (job.folder / "predict.json").unlink(missing_ok=True)
        borrow_fit(job, data)
    work.wait()
    if job.step("fit") is not None:
        return
    reset_peak_memory(work.device)
    set_seed(spec.seed)
    # Weights that are trained stay float32; a frozen base is kept in the run's dtype.
    whole = get_tuner(spec.method.tuner).trains_base
    runner = get_runner(spec.backbone.kind)
    model = runner.load(job, torch.float32 if whole else work.dtype, work.device)
    model.blind = spec.blind == "train"
    total = sum(p.numel() for p in model.model.parameters())
    with decomposition_cache(job.svd_cache, int(job.cache_gb * GIB)):
        attach(model, spec.method, spec.seed)
    trainable = trainable_parameters(model)
    if trainable != spec.budget.trainable:
        raise WorkError(f"{trainable:,} parameters would be trained, the budget says {spec.budget.trainable:,}")
    workers = 0 if work.device.type == "cpu" else 4
    runtime = Runtime(work.device, workers, job.report_to)
    results: list[FitResult] = []
    tracer = Tracer(job, work, data) if spec.trace else None
    marks = [job.folder / "fit" / f"stage-{number}.safetensors" for number in range(len(spec.stages))]
    done = max((n + 1 for n, mark in enumerate(marks) if mark.exists()), default=0)
    if done:
        load_trained(model.model, marks[done - 1])
    for number, stage in enumerate(spec.stages[done:], start=done):
        title = f"fit {spec.method.name} seed {spec.seed}" + (f" stage {number + 1}" if len(marks) > 1 else "")
        with progress_bar(title) as advance:
            callbacks = [tracer.callback(model, number + 1)] if tracer else []
            traced = tracer.seconds if tracer else 0.0
            result = _fit_stage(job, work, data, model, stage, number, runtime, advance, callbacks)
            results.append(replace(result, seconds=result.seconds - (tracer.seconds - traced if tracer else 0.0)))
        if work.is_first and len(marks) > 1:
            save_trained(model.model, marks[number])
        work.wait()
    if work.is_first:
        _publish(job, model, data)
        job.finish(
            "fit",
            {
                "stages": [asdict(result) for result in results],
                "stages_done_before": done,
                "seconds": sum(result.seconds for result in results),
                **({"trace_seconds": tracer.seconds} if tracer else {}),
                "parameters": {"trainable": trainable, "total": total},
                "weights": {
                    "backbone": spec.backbone.weights,
                    "commit": model.commit,
                    "adapter": _adapter_digest(job),
                },
                "environment": environment(work.device) | {"processes": work.state.num_processes},
                "memory": peak_memory(work.device),
            },
        )
    work.wait()


def _fit_stage(
    job: Job,
    work: Workplace,
    data: Data,
    model: Any,
    stage: Stage,
    number: int,
    runtime: Any,
    advance: Any,
    callbacks: Sequence[Any],
) -> Any:
    from medbench.training.fit import fit_stage

    parts, objective = get_runner(job.spec.backbone.kind).to_train(job, data, model, stage)
    return fit_stage(
        model,
        parts,
        [part.weight for part in stage.mixture],
        stage.training,
        seed=job.spec.seed + 1000 * number,
        dtype=work.dtype,
        penalty=penalty_of(model, job.spec.method),
        folder=job.folder / "fit" / f"stage-{number}",
        runtime=runtime,
        progress=advance,
        objective=objective,
        callbacks=callbacks,
    )


def _publish(job: Job, model: Any, data: Data) -> None:
    temporary = job.folder / "adapter.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_adapted(model, job.spec, temporary)
        write_seen(temporary, [data.items(part.data) for stage in job.spec.stages for part in stage.mixture])
        publish_folder(temporary, job.folder / "adapter")
    except OSError as error:
        raise WorkError(f"cannot write {job.folder / 'adapter'}: {error.strerror or error}") from error


def _adapter_digest(job: Job) -> str | None:
    folder = job.adapter or job.folder / "adapter"
    return folder_digest(folder, "*.safetensors") if folder.is_dir() else None


def load_run_model(job: Job, work: Workplace) -> Any:
    """The model a run is tested with (`Vlm`, `Clip`), always loaded from its files.

    Raises:
        WorkError: the adapter's files are gone or changed since the fit.
    """
    spec = job.spec
    folder = job.adapter or job.folder / "adapter"
    fitted = job.step("fit")
    if fitted is not None and fitted["weights"]["adapter"] != _adapter_digest(job):
        raise WorkError(f"{folder}: the weights are gone or changed since the fit; remove {job.folder / 'fit.json'}")
    full = spec.method.tuner == "full"
    runner = get_runner(spec.backbone.kind)
    model = runner.load(job, work.dtype, work.device, folder if full else None)
    model.blind = spec.blind is not None
    if spec.method.tuner == "upcycle":
        from medbench.adapters.upcycle import load_upcycled

        load_upcycled(model.model, folder)
    elif spec.method.tuner not in ("none", "full"):
        load_adapter(model, folder)
    return model


def predict(job: Job, work: Workplace, data: Data) -> None:
    """Answers every test, chunk by chunk, and publishes `predictions.parquet`."""
    started = time.monotonic()
    reset_peak_memory(work.device)
    model = load_run_model(job, work)
    router = router_of(model, job.spec.method)
    parts: list[tuple[DataSpec, int, Path]] = []
    encoded, cached = 0, True
    # Counted by one process that answers everything; otherwise the record does not say.
    counted = work.state.num_processes == 1
    for test in job.spec.tests:
        items = data.items(test).items
        cut = chunks(items, job.spec.generation.batch_size)
        paths = [job.folder / "parts" / f"{test.task}-{n}-of-{len(cut)}.parquet" for n in range(len(cut))]
        parts += [(test, n, path) for n, path in enumerate(paths)]
        predictor = get_runner(job.spec.backbone.kind).answers(job, model, test, router)
        with progress_bar(f"predict {test.task}") as advance:
            answered = 0

            def step(count: int, total: int = len(items), advance: Any = advance) -> None:
                nonlocal answered
                answered += count
                advance(answered, total)

            for number, (chunk, path) in enumerate(zip(cut, paths, strict=True)):
                if path.exists() and (router is None or part_path(path).exists()):
                    counted = False
                    step(len(chunk))
                elif number % work.state.num_processes == work.state.process_index:
                    rows = pd.DataFrame(predictor.predict(chunk, step))
                    rows.insert(0, "split", test.split)
                    rows.insert(0, "task", test.task)
                    if router is not None:
                        write_part(path, cast(Any, predictor).use)  # first: answers without it are not done
                    write_parquet(path, rows)
        encoded += predictor.features.encoded
        cached = cached and predictor.features.cached
    work.wait()
    if work.is_first:
        table = pd.concat([read_parquet(path) for _, _, path in parts], ignore_index=True)
        if router is not None:
            answers = [[path for test, _, path in parts if test is tested] for tested in job.spec.tests]
            router.write(job.folder, job.spec.tests, answers)
        write_parquet(job.folder / "predictions.parquet", table)
        job.finish(
            "predict",
            {
                "seconds": time.monotonic() - started,
                "images_encoded": encoded if counted else None,
                "image_features_cached": cached,
                "parameters": {"total": _total(model)},
                "weights": {
                    "backbone": job.spec.backbone.weights,
                    "commit": model.commit,
                    "adapter": _adapter_digest(job),
                },
                "environment": environment(work.device) | {"processes": work.state.num_processes},
                "memory": peak_memory(work.device),
            },
        )
    work.wait()


def _total(model: Any) -> int:
    """Parameters of the unadapted model."""
    total = sum(p.numel() for p in model.model.parameters())
    if hasattr(model.model, "peft_config"):
        prefix = model.model.base_model.prefix
        return total - sum(p.numel() for n, p in model.model.named_parameters() if f".{prefix}" in n)
    if hasattr(model.model, "routing_log"):
        from medbench.adapters.upcycle import layers_of

        for layer in layers_of(model.model).values():
            total -= layer.weight.numel() - layer.weight[0].numel() + layer.router.numel()
    return total
