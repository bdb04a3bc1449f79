"""Fits one stage: a mixture of tasks on a backbone with its adapter attached."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from medbench.backbones.vlm import Vlm
from medbench.errors import RequestError, WorkError
from medbench.methods import Training
from medbench.training.collate import CompletionObjective, Objective
from medbench.training.order import stage_order
from medbench.training.trainer import StageTrainer, StepCallback, last_checkpoint

if TYPE_CHECKING:
    from medbench.backbones.clip import Clip


@dataclass(frozen=True)
class Runtime:
    """How a machine does the work; nothing here is part of a run's identity.

    Attributes:
        device: where to compute.
        workers: processes that decode images and build batches; 0 does it in the main process.
        report_to: experiment trackers, as `transformers` names them.
    """

    device: torch.device
    workers: int = 0
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class FitResult:
    """What a stage did: optimiser steps, seconds of this process, and the loss as it was logged."""

    steps: int
    seconds: float
    losses: list[dict[str, float]]
    resumed_from: int


def fit_stage(
    vlm: Vlm | Clip,
    parts: Sequence[Sequence[Any]],
    weights: Sequence[float],
    training: Training,
    seed: int,
    dtype: torch.dtype,
    penalty: Callable[[], torch.Tensor] | None,
    folder: Path,
    runtime: Runtime,
    progress: Callable[[int, int], None],
    objective: Objective | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> FitResult:
    """Trains what requires a gradient; resumes from the newest whole checkpoint in `folder`.

    Args:
        vlm: the backbone with its adapter attached.
        parts: the examples of each part of the mixture; each has a `length`.
        weights: how often an epoch sees each part.
        training: settings.
        seed: decides the order of items and dropout.
        dtype: bfloat16 and float16 compute in autocast; weights that are trained stay float32.
        penalty: what is added to the loss after each forward pass (balance loss, regularisers).
        folder: for checkpoints; the caller removes it after the adapter is saved.
        runtime: device and workers.
        progress: called with (steps done, steps in all).
        objective: what is trained on; by default the answers of a vision-language model.
        callbacks: called beside ours; what they do at the end of a step is done before its checkpoint is written.

    Raises:
        WorkError: the loss is not finite, an image cannot be read.
        RequestError: the batch size does not divide over the processes.
    """
    if objective is None:
        assert isinstance(vlm, Vlm)
        objective = CompletionObjective(vlm)
    everything = [example for part in parts for example in part]
    order = stage_order(
        [len(part) for part in parts],
        weights,
        [example.length for example in everything],
        training.epochs,
        training.batch_size,
        seed,
    )
    steps = len(order)
    if training.gradient_checkpointing:
        objective.checkpoint_activations()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = _arguments(training, steps, seed, dtype, folder, runtime)
    try:
        trainer = StageTrainer(
            model=vlm.model,
            args=arguments,
            data_collator=objective.collate,
            train_dataset=[objective.place(everything[i], n) for n, i in enumerate(order.ravel())],
            summed_loss=objective.loss,
            penalty=penalty,
        )
    except (ValueError, RuntimeError) as error:
        if not runtime.report_to:
            raise
        raise RequestError(f"--report-to {','.join(runtime.report_to)}: {str(error).splitlines()[0]}") from error
    trainer.remove_callback(PrinterCallback)
    for callback in (StepCallback(folder, lambda done: progress(done, steps)), *callbacks):
        trainer.add_callback(callback)
    checkpoint = last_checkpoint(folder) if arguments.should_save else None
    checkpoint = _same_everywhere(trainer, checkpoint)
    started = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise WorkError(
            f"out of memory on {runtime.device} with micro_batch_size {training.micro_batch_size}; "
            "try --set training.micro_batch_size=1 --set training.gradient_checkpointing=true"
        ) from error
    except RuntimeError as error:
        # How torch.save says that a file cannot be written.
        if not any(sign in str(error) for sign in ("inline_container", "PytorchStreamWriter")):
            raise
        raise WorkError(f"cannot write a checkpoint in {folder}: is the disk full?") from error
    vlm.model = trainer.accelerator.unwrap_model(trainer.model)
    vlm.model.eval()
    losses = [
        {"step": float(entry["step"]), "loss": float(entry["loss"])}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    resumed = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    return FitResult(steps, time.monotonic() - started, losses, resumed)


def _same_everywhere(trainer: Any, checkpoint: Path | None) -> Path | None:
    """The first process's choice of checkpoint, in every process."""
    if trainer.accelerator.num_processes == 1:
        return checkpoint
    from accelerate.utils import broadcast_object_list

    found: list[Path | None] = broadcast_object_list([checkpoint])
    return found[0]


def _arguments(
    training: Training, steps: int, seed: int, dtype: torch.dtype, folder: Path, runtime: Runtime
) -> TrainingArguments:
    from accelerate import PartialState

    world = PartialState().num_processes
    if training.batch_size % (training.micro_batch_size * world):
        raise RequestError(
            f"batch_size {training.batch_size} does not divide into {world} processes of micro_batch_size "
            f"{training.micro_batch_size}; choose --set training.micro_batch_size="
            f"{max(1, training.batch_size // world)} or another number of processes"
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=training.micro_batch_size,
        gradient_accumulation_steps=training.batch_size // (training.micro_batch_size * world),
        learning_rate=training.lr,
        lr_scheduler_type=training.schedule,
        warmup_steps=round(training.warmup * steps),
        weight_decay=training.weight_decay,
        optim=training.optimizer,
        max_grad_norm=training.max_grad_norm,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        seed=seed,
        save_strategy="steps",
        save_steps=min(training.checkpoint_steps, steps),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=max(1, steps // 50),
        logging_nan_inf_filter=False,
        report_to=list(runtime.report_to) or "none",
        disable_tqdm=True,
        use_cpu=runtime.device.type == "cpu",
        dataloader_num_workers=runtime.workers,
        dataloader_pin_memory=runtime.device.type == "cuda",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        label_names=["labels"],
        log_level="error",
    )
    # One process is one device: with several GPUs in sight, the Trainer would split batches over them on its own.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments
