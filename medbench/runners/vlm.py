"""Runs of a vision-language model: questions are answered by generation and by the likelihood of the candidates."""

from __future__ import annotations

from pathlib import Path

import torch

from medbench.backbones.vlm import Vlm, load_vlm
from medbench.inference.predict import Predictor
from medbench.job import Data, Job
from medbench.routes import RoutedPredictor, Router
from medbench.spec import DataSpec, Stage
from medbench.training.collate import CompletionObjective, Example, examples


def load(job: Job, dtype: torch.dtype, device: torch.device, weights: Path | None = None) -> Vlm:
    """See `medbench.backbones.vlm.load_vlm`."""
    return load_vlm(job.backbone, dtype, device, job.spec.backbone.processor, weights)


def to_train(job: Job, data: Data, model: Vlm, stage: Stage) -> tuple[list[list[Example]], CompletionObjective]:
    """Questions with their answers."""
    parts = []
    for part in stage.mixture:
        checked = data.items(part.data)
        keys = list(checked.sizes)
        tokens = dict(zip(keys, model.image_tokens([checked.sizes[k] for k in keys]), strict=True))
        parts.append(examples(model, job.cards[part.data.task], checked.items, tokens))
    return parts, CompletionObjective(model)


def answers(job: Job, model: Vlm, test: DataSpec, router: Router | None) -> Predictor:
    """Generates, greedily."""
    card, generation = job.cards[test.task], job.spec.generation
    if router is None:
        return Predictor(model, card, generation)
    return RoutedPredictor(router.log, test.split, model, card, generation)
