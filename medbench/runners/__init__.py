"""How each kind of backbone is loaded, trained on and tested in a run; a kind is a module and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from medbench.data.item import Item
from medbench.inference.predict import Prediction
from medbench.job import Data, Job
from medbench.routes import Router
from medbench.spec import DataSpec, Stage
from medbench.training.collate import Objective

RUNNERS = {"vlm": "medbench.runners.vlm", "clip": "medbench.runners.clip"}
"""Kind of backbone -> the module of its runner."""


class Features(Protocol):
    """What a predictor says of the images it was asked about."""

    encoded: int
    """How many went through the tower."""
    cached: bool
    """Whether an image that is asked about again is not encoded again."""


class Answers(Protocol):
    """A model that answers the items of one task."""

    @property
    def features(self) -> Features:
        """Of its images."""
        ...

    def predict(self, items: Sequence[Item], step: Callable[[int], None]) -> list[Prediction]:
        """One row an item of a chunk, in order; `step` is called with the number of items answered at a time."""
        ...


class Runner(Protocol):
    """What the module of a kind of backbone offers."""

    def load(self, job: Job, dtype: torch.dtype, device: torch.device, weights: Path | None = None) -> Any:
        """The unadapted backbone of a run, frozen; `weights` is a folder of fully tuned ones instead of its own."""
        ...

    def to_train(self, job: Job, data: Data, model: Any, stage: Stage) -> tuple[list[list[Any]], Objective]:
        """The examples of each part of a stage, and what is trained on."""
        ...

    def answers(self, job: Job, model: Any, test: DataSpec, router: Router | None) -> Answers:
        """What answers a test; with a router, it also has `use`, what the last chunk used (`medbench.routes`)."""
        ...


def get_runner(kind: str) -> Runner:
    """The runner of a kind of backbone."""
    return cast(Runner, import_module(RUNNERS[kind]))
