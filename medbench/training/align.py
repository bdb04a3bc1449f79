"""Gives two towers that never met a common space: trains their projections, and the temperature, with both frozen.

Every image and every prompt goes through its tower once; what is trained are two matrices on those features, by the
cross-entropy over prompt logits that also trains adapters (`medbench.training.prompts`), each task counting as much as
every other. The result is a dual encoder (`medbench.backbones.dual`) that knows what its projections have seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from medbench.backbones.clip import Clip
from medbench.data.item import Item
from medbench.errors import WorkError
from medbench.inference.zero_shot import TEXT_BATCH, ImageEmbedder

#: Images of each task a step, and the largest scale (as CLIP clips it).
BATCH, LARGEST_SCALE = 64, 100.0


@dataclass(frozen=True)
class AlignTask:
    """A task to align on: its training items, and class -> prompts."""

    name: str
    items: Sequence[Item]
    prompts: Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class _Features:
    """What the towers say of a task: images [n, Dv], labels [n], prompts [p, Dt], the class of each prompt [p]."""

    images: torch.Tensor
    labels: torch.Tensor
    prompts: torch.Tensor
    of_class: torch.Tensor
    classes: int


def align(
    clip: Clip,
    tasks: Sequence[AlignTask],
    steps: int,
    lr: float,
    seed: int,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, dict[str, float]]:
    """Trains the projections of a new dual encoder, in place.

    Args:
        clip: of `medbench.backbones.clip.new_dual`.
        tasks: what to train on.
        steps: of the optimiser (AdamW, cosine to zero, weight decay .01).
        lr: its peak.
        seed: of the batches.
        progress: called with (what, done, in all).

    Returns:
        Task -> images, and the accuracy on the very images that were trained on.

    Raises:
        WorkError: the loss is not finite.
        BadItemError: an image cannot be read.
    """
    features = [_features(clip, task, partial(progress, task.name)) for task in tasks]
    visual, text = clip.base.visual.proj, clip.base.text.proj
    scale = clip.base.logit_scale
    parameters = [*visual.parameters(), *text.parameters(), scale]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 0.5 * (1 + math.cos(math.pi * n / steps)))
    draws = torch.Generator().manual_seed(seed)
    for step in range(steps):
        losses = []
        for found in features:
            rows = torch.randint(len(found.labels), (BATCH,), generator=draws)
            logits = _logits(found, found.images[rows], visual, text, scale)
            losses.append(F.cross_entropy(logits, found.labels[rows]))
        loss = torch.stack(losses).mean()
        if not torch.isfinite(loss):
            raise WorkError(f"align: the loss is {loss.item()} at step {step + 1}; a lower --lr is the usual remedy")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        scale.data.clamp_(max=math.log(LARGEST_SCALE))
        progress("projections", step + 1, steps)
    for parameter in parameters:
        parameter.requires_grad_(False)
    said = {}
    for task, found in zip(tasks, features, strict=True):
        with torch.no_grad():
            right = _logits(found, found.images, visual, text, scale).argmax(-1) == found.labels
        said[task.name] = {"images": len(found.labels), "training_accuracy": float(right.float().mean())}
    return said


def _logits(
    found: _Features, images: torch.Tensor, visual: nn.Module, text: nn.Module, scale: torch.Tensor
) -> torch.Tensor:
    """[n, C]: as zero-shot classification has them."""
    prompts = F.normalize(text(found.prompts), dim=-1)
    summed = prompts.new_zeros(found.classes, prompts.shape[1]).index_add(0, found.of_class, prompts)
    weights = F.normalize(summed, dim=-1)
    return scale.exp() * F.normalize(visual(images), dim=-1) @ weights.T


def _features(clip: Clip, task: AlignTask, step: Callable[[int, int], None]) -> _Features:
    classes = list(task.prompts)
    with _inputs_of(clip.base.visual.proj) as images:
        done = 0
        for batch, _ in ImageEmbedder(clip).batches(task.items, BATCH):
            done += len(batch)
            step(done, len(task.items))
    texts = [text for of_class in task.prompts.values() for text in of_class]
    with _inputs_of(clip.base.text.proj) as prompts, torch.inference_mode():
        for start in range(0, len(texts), TEXT_BATCH):
            clip.forward(tokens=clip.tokenizer(texts[start : start + TEXT_BATCH]))
    of_class = [number for number, name in enumerate(classes) for _ in task.prompts[name]]
    labels = [classes.index(item.answer) for item in task.items]
    device = clip.device
    # Copies: what was computed for inference alone cannot be trained on.
    return _Features(
        torch.cat(images).clone(),
        torch.tensor(labels, device=device),
        torch.cat(prompts).clone(),
        torch.tensor(of_class, device=device),
        len(classes),
    )


@contextmanager
def _inputs_of(module: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collects what a module is given."""
    found: list[torch.Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))
    try:
        yield found
    finally:
        handle.remove()
