"""Runs of a dual encoder: images are classified by prompts; training uses the same prompts, and adds no layer."""

from __future__ import annotations

from pathlib import Path

import torch

from medbench.adapters.upcycle import UpcycledLinear
from medbench.backbones.clip import Clip, load_clip
from medbench.data.card import Card
from medbench.inference.embeddings import EmbeddingStore
from medbench.inference.zero_shot import ZeroShotPredictor, store_namespace
from medbench.job import Data, Job
from medbench.routes import RoutedZeroShot, Router
from medbench.spec import DataSpec, Stage
from medbench.training.augment import Augmentation
from medbench.training.prompts import PromptExample, PromptObjective, PromptPart


def load(job: Job, dtype: torch.dtype, device: torch.device, weights: Path | None = None) -> Clip:
    """See `medbench.backbones.clip.load_clip`."""
    return load_clip(job.backbone, dtype, device, weights)


def to_train(job: Job, data: Data, model: Clip, stage: Stage) -> tuple[list[list[PromptExample]], PromptObjective]:
    """Images with their classes, or with their texts."""
    parts, examples = [], []
    for number, part in enumerate(stage.mixture):
        card = job.cards[part.data.task]
        classifies = card.metadata.kind == "classification"
        drawn = card.metadata.augment
        about = Augmentation() if drawn is None else Augmentation(**drawn.model_dump())
        parts.append(PromptPart(_prompts(job, card) if classifies else {}, about))
        examples.append(
            [
                PromptExample(item, number, "" if classifies else card.render_target(item))
                for item in data.items(part.data).items
            ]
        )
    return examples, PromptObjective(model, parts, job.spec.seed)


def answers(job: Job, model: Clip, test: DataSpec, router: Router | None) -> ZeroShotPredictor:
    """Classifies by the card's prompts; embeddings of a tower that is as published are kept by content."""
    prompts = _prompts(job, job.cards[test.task])
    images, texts = (_store(job, model, tower) for tower in ("vision", "text"))
    batch_size = job.spec.generation.batch_size
    if router is None:
        return ZeroShotPredictor(model, prompts, batch_size, images, texts)
    return RoutedZeroShot(router.log, test.split, model, prompts, batch_size, images, texts)


def _prompts(job: Job, card: Card) -> dict[str, list[str]]:
    return card.prompts(single=job.spec.prompts == "single")


def _store(job: Job, model: Clip, tower: str) -> EmbeddingStore | None:
    if job.embedding_cache is None or job.spec.method.tuner == "full" or tower in _adapted(model):
        return None
    name = store_namespace(model, job.spec.backbone.weights, job.spec.dtype, tower)
    return EmbeddingStore(job.embedding_cache, name, int(job.cache_gb * 2**30))


def _adapted(model: Clip) -> set[str]:
    """The towers in which any layer is not the backbone's own."""
    found = set()
    for name, module in model.base.named_modules():
        if isinstance(module, UpcycledLinear) or hasattr(module, "base_layer"):
            found.add("vision" if name.startswith("visual.") else "text")
    return found
