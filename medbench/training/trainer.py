"""The `transformers.Trainer` of this project: loss over the whole step, balance loss, exact checkpoints."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from medbench.backbones.vlm import Batch
from medbench.errors import WorkError
from medbench.files import write_atomic

WEIGHTS = "trained.safetensors"
COMPLETE = "complete"


class StageTrainer(Trainer):
    """Trains the parameters that require a gradient; the order of items is given, never drawn here."""

    def __init__(
        self,
        *args: Any,
        summed_loss: Callable[[Any, Batch], torch.Tensor],
        penalty: Callable[[], torch.Tensor] | None = None,
        **kwargs: Any,
    ):
        """As `Trainer`.

        Args:
            args: passed on.
            summed_loss: (model, batch) -> the loss summed over the batch's targets (`Objective.loss`).
            penalty: what is added to the loss after each forward pass: balance loss, regularisers.
            kwargs: passed on.
        """
        super().__init__(*args, **kwargs)
        self.penalty = penalty
        self.summed_loss = summed_loss
        # Makes the Trainer count the targets of the whole step (all accumulation steps and processes).
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset)  # type: ignore[arg-type]

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The loss summed over this forward's targets, divided by the targets of the whole step.

        A target is an entry of `labels` that is not -100. The penalty is averaged over the step's forwards. With P
        processes the gradient is averaged over them, so the share is multiplied by P: two processes give the loss of
        one with two accumulation steps.

        Raises:
            WorkError: the loss is not finite; names the step.
        """
        summed = self.summed_loss(model, inputs)
        world = self.accelerator.num_processes
        loss = summed * world / num_items_in_batch
        if self.penalty is not None:
            loss = loss + self.penalty() / getattr(self, "current_gradient_accumulation_steps", 1)
        if not torch.isfinite(loss):
            settings = self.args
            raise WorkError(
                f"the loss is {loss.item()} at step {self.state.global_step + 1} of {self.state.max_steps} "
                f"(lr {settings.learning_rate:g}); a lower training.lr or dtype float32 is the usual remedy"
            )
        return loss

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Our own file for every tuner: transformers renames keys when it saves a whole model, and resuming by those
        # names would silently load nothing.
        if not self.is_world_process_zero():  # all processes have the same weights, and may share the folder
            return
        folder = Path(output_dir or self.args.output_dir or ".")
        folder.mkdir(parents=True, exist_ok=True)
        save_trained(self.accelerator.unwrap_model(self.model), folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.accelerator.unwrap_model(self.model), Path(resume_from_checkpoint) / WEIGHTS)


def _trained(model: Any) -> dict[str, torch.nn.Parameter]:
    # Frozen factors of an adapter belong to its checkpoint: they are stored, never computed again.
    prefix = getattr(getattr(model, "base_model", None), "prefix", None)
    return {name: p for name, p in model.named_parameters() if p.requires_grad or (prefix and f".{prefix}" in name)}


def save_trained(model: Any, path: Path) -> None:
    """Saves the parameters that are trained, with an adapter's frozen factors."""
    tensors = {name: p.detach().cpu().contiguous() for name, p in _trained(model).items()}
    write_atomic(path, lambda temporary: save_file(tensors, temporary))


def load_trained(model: Any, path: Path) -> None:
    """Loads what `save_trained` saved, bit for bit.

    Raises:
        WorkError: it is of another model.
    """
    stored, trained = load_file(path), _trained(model)
    if stored.keys() != trained.keys():
        raise WorkError(f"{path}: the checkpoint is of another model; remove the run's fit folder")
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(stored[name])


class StepCallback(TrainerCallback):
    """Tells a progress bar of each step, and marks each checkpoint as whole once all of it is on disk."""

    def __init__(self, folder: Path, step: Callable[[int], None]):
        """Args: the stage's folder; what to call after each step with the steps done."""
        self.folder, self.step = folder, step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Reports progress."""
        self.step(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the completion marker, last."""
        if not state.is_world_process_zero:
            return
        checkpoint = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # Other processes may still be writing their random states; a file that is gone was a temporary one.
        for file in [path for path in checkpoint.iterdir() if not path.name.startswith(".")]:
            handle = os.open(file, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
        (checkpoint / COMPLETE).touch()


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; parts of others (a killed write) are removed."""
    newest: tuple[float, Path | None] = (-math.inf, None)
    for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if not (checkpoint / COMPLETE).exists():
            shutil.rmtree(checkpoint)
        else:
            newest = max(newest, (float(checkpoint.name.rpartition("-")[2]), checkpoint), key=lambda pair: pair[0])
    return newest[1]
