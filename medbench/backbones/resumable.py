"""A pretraining that can be stopped at any moment and goes on to the same bits.

A step is a pure function of the recipe and its number, and everything that a step changes is in `state.safetensors`; so
a run that was stopped, or killed, goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from medbench.errors import WorkError
from medbench.files import write_atomic

STATE = "state.safetensors"


class Resumable(ABC):
    """A pretraining under way: the model, its optimiser, the number of steps done and the losses so far."""

    def __init__(
        self,
        model: Any,
        head: torch.nn.Module,
        device: torch.device,
        recipe: Any,
        folder: Path,
        base: str = "",
        history: Sequence[dict[str, Any]] = (),
        start: Path | None = None,
    ):
        """Resumes from `folder/state.safetensors` when it is there, else starts.

        Args:
            model: with fresh weights; all of them are trained.
            head: of an auxiliary loss, trained with it and thrown away (named `grounding` in the state).
            device: where both are.
            recipe: a frozen dataclass with `steps`, `lr`, `weight_decay`, `dtype` and `rate(step)`.
            folder: of the state.
            base: digest of architecture and processor; a state of another is refused.
            history: the earlier stages, kept in the state.
            start: the state of a finished stage to start from (weights and head, not moments).

        Raises:
            WorkError: the state there is of another recipe or base, or broken.
        """
        self.model, self.head, self.device, self.folder = model, head, device, folder
        self.recipe, self.base, self.history = recipe, base, list(history)
        self.done, self.seconds = 0, 0.0
        self.losses: list[list[float]] = []
        model.train()
        model.requires_grad_(True)
        self.names = dict((*model.named_parameters(), *head.named_parameters("grounding")))
        matrices = [p for p in self.names.values() if p.ndim > 1]
        others = [p for p in self.names.values() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), fused=True)
        if (folder / STATE).exists():
            self._load(folder / STATE)
        elif start is not None:
            _, stored = read_state(start)
            self._take(stored, start)

    @abstractmethod
    def losses_of(self, step: int) -> torch.Tensor:
        """The losses of a step, to be added: a vector. A pure function of the weights, the recipe and the step."""

    def run(self, stop: Callable[[], bool], save_steps: int, progress: Callable[[int, int], None]) -> bool:
        """Takes steps until all are done or `stop()`, asked before each; saves every `save_steps` and at the end.

        Returns:
            Whether all steps are done.

        Raises:
            WorkError: the loss is not finite.
        """
        recipe, started, before = self.recipe, time.monotonic(), self.seconds
        while self.done < recipe.steps and not stop():
            low = recipe.dtype == "bfloat16"
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.rate(self.done)
            with torch.autocast(self.device.type, torch.bfloat16) if low else nullcontext():
                losses = self.losses_of(self.done)
            loss = losses.sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.names.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            value = loss.item()
            if not math.isfinite(value):
                raise WorkError(f"pretraining: the loss of step {self.done + 1} is {value}; try a lower --lr")
            self.losses.append([round(part, 4) for part in losses.tolist()])
            self.done += 1
            self.seconds = before + time.monotonic() - started
            progress(self.done, recipe.steps)
            if self.done % save_steps == 0:
                self.save()
        self.save()
        return self.done >= recipe.steps

    def save(self) -> None:
        """Writes the state, whole.

        Raises:
            WorkError: a weight is not finite (the state before stays), or the disk refuses.
        """
        if not all(p.isfinite().all() for p in self.names.values()):
            raise WorkError(f"pretraining: step {self.done} left weights that are not finite; try a lower --lr")
        tensors = {f"weight/{name}": p.detach() for name, p in self.names.items()}
        for name, p in self.names.items():
            for key, value in self.optimizer.state[p].items():
                tensors[f"{key}/{name}"] = value
        about: dict[str, Any] = {"recipe": asdict(self.recipe), "base": self.base, "history": self.history}
        about |= {"done": self.done, "losses": self.losses, "seconds": self.seconds}
        plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        write_atomic(
            self.folder / STATE, lambda path: save_file(plain, str(path), metadata={"about": json.dumps(about)})
        )

    def _load(self, path: Path) -> None:
        about, stored = read_state(path)
        mine = asdict(self.recipe) | {"base": self.base}
        theirs = about["recipe"] | {"base": about["base"]}
        changed = [key for key, value in mine.items() if theirs.get(key) != value]
        if changed:
            raise WorkError(f"{path}: another recipe ({', '.join(changed)} differ); choose another --out, or remove it")
        self._take(stored, path)
        for name, p in self.names.items():
            state = {k.partition("/")[0]: v.to(p.device) for k, v in stored.items() if k.partition("/")[2] == name}
            del state["weight"]
            self.optimizer.state[p] = state
        self.done, self.losses, self.seconds = about["done"], about["losses"], about["seconds"]

    def _take(self, stored: dict[str, torch.Tensor], path: Path) -> None:
        with torch.no_grad():
            for name, p in self.names.items():
                found = stored.get(f"weight/{name}")
                if found is None or found.shape != p.shape:
                    raise WorkError(f"{path}: its weights are of another architecture ({name})")
                p.copy_(found)


def read_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What a state says of itself, and its tensors.

    Raises:
        WorkError: it is broken.
    """
    try:
        with safe_open(str(path), "pt", device="cpu") as file:
            about = json.loads((file.metadata() or {})["about"])
            lacking = {"recipe", "base", "history", "done", "losses", "seconds"} - about.keys()
            if lacking:
                raise ValueError(f"without {', '.join(sorted(lacking))}")
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # safetensors has its own error classes
        raise WorkError(f"{path}: not a readable state ({error}); remove it to start again") from error
    return about, stored
