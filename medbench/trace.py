"""Tests a run while it is trained, and leaves no sign of it in the weights (see `medbench.results.traces`)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import TrainerCallback

from medbench.files import write_parquet
from medbench.inference.predict import chunks
from medbench.job import Data, Job
from medbench.progress import progress_bar
from medbench.results.traces import START, Point, part_paths, points_of
from medbench.runners import get_runner
from medbench.workplace import Workplace


class Tracer:
    """Answers a run's tests at the points of its trace.

    The answers of a chunk are a file each under `fit/trace/`, and what is there is not done again. They are on disk
    before the checkpoint of their step is written, so a run that goes on from a checkpoint lacks none before it.
    Several processes share the chunks, as they do in `medbench.steps.predict`, and wait for one another.

    Attributes:
        seconds: that this process spent so far.
    """

    def __init__(self, job: Job, work: Workplace, data: Data):
        """Args: a traced run; where it is computed; its checked data."""
        self.job, self.work, self.data = job, work, data
        self.points = points_of(job, data)
        self.seconds = 0.0

    def callback(self, model: Any, stage: int) -> TrainerCallback:
        """What tests `model` at the points of a stage (1 for the first) while a trainer trains it.

        The end of the last stage is left out: there the run is tested anyhow, with the adapter as it is stored.
        """
        points = {point.at: point for point in self.points[:-1] if point.stage == stage}
        if stage == 1:
            points[0] = START
        return _AtSteps(self, model, points)

    def test(self, model: Any, point: Point) -> None:
        """Answers all tests with the model as it is now.

        Args:
            model: `Vlm` or `Clip`, in training.
            point: names the files.

        Raises:
            BadItemError: an image cannot be read.
        """
        started, state = time.monotonic(), self.work.state
        with undisturbed(model.model):
            for test in self.job.spec.tests:
                cut = chunks(self.data.items(test).items, self.job.spec.generation.batch_size)
                answers = get_runner(self.job.spec.backbone.kind).answers(self.job, model, test, None)
                with progress_bar(f"test {test.task} at step {point.step}") as advance:
                    for number, path in enumerate(part_paths(self.job, point, test, len(cut))):
                        if number % state.num_processes == state.process_index and not path.exists():
                            write_parquet(path, pd.DataFrame(answers.predict(cut[number], lambda count: None)))
                        advance(number + 1, len(cut))
        self.work.wait()
        self.seconds += time.monotonic() - started


class _AtSteps(TrainerCallback):
    """Tests at some steps of one stage."""

    def __init__(self, tracer: Tracer, model: Any, points: dict[int, Point]):
        self.tracer, self.model, self.points = tracer, model, points

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tests what is not trained yet; not where training goes on from a checkpoint."""
        if state.global_step == 0:
            self._test(0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tests after the step, before its checkpoint."""
        self._test(state.global_step)

    def _test(self, step: int) -> None:
        if step in self.points:
            self.tracer.test(self.model, self.points[step])


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """The model in evaluation mode, inside; afterwards every module's mode and every random state are as before.

    A trainer may have put autocast around the forward of the whole model (bfloat16, float16); that is put aside too,
    since a run is tested without.
    """
    modes = [(module, module.training) for module in model.modules()]
    generators = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    wrapped = vars(model).pop("forward", None)
    model.eval()
    try:
        yield
    finally:
        if wrapped is not None:
            vars(model)["forward"] = wrapped
        for module, mode in modes:
            module.training = mode
        random.setstate(generators[0])
        np.random.set_state(generators[1])
        torch.set_rng_state(generators[2])
        if devices:
            torch.cuda.set_rng_state_all(devices)
