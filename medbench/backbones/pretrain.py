"""The pretraining of `nano-vl`: captions and questions about generated phantoms, from random weights.

Three losses are added: of the captions, of the answers, and of what each image token should know (`Grounding`), without
which a model of this size learns to look only after many times the steps.

A step is a pure function of the seed and its number (its scenes, its exchanges). An image is encoded once a step,
however many exchanges are about it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from medbench.backbones.grounding import Grounding
from medbench.backbones.pixels import blank_image
from medbench.backbones.resumable import Resumable
from medbench.backbones.vlm import IGNORE, Vlm
from medbench.errors import RequestError
from medbench.phantom.draws import Draws
from medbench.phantom.pretraining import LISTING_FROM, Exchange, exchanges, pretraining_scene
from medbench.phantom.scene import Scene


@dataclass(frozen=True)
class Recipe:
    """What decides the weights, up to rounding.

    Attributes:
        steps: optimiser steps; the learning rate falls to zero over them (cosine, after `warmup` steps).
        images: a step.
        exchanges: about each image, at least two: a caption, of three or more a listing, and questions.
        lr: highest learning rate (AdamW, betas 0.9 and 0.98, gradient norm clipped at 1).
        weight_decay: of matrices.
        seed: of the weights, the scenes and the exchanges.
        dtype: of the forward computation; weights and moments are float32.
        blind: every image is mid-grey (what text alone gives).
        first: number of the first scene, so that a later stage sees new ones.
        start: sha256 of the weights that the stage starts from; empty: weights drawn from the seed.
    """

    steps: int = 1800
    images: int = 32
    exchanges: int = 2
    lr: float = 1.5e-3
    warmup: int = 100
    weight_decay: float = 0.05
    seed: int = 0
    dtype: str = "float32"
    blind: bool = False
    first: int = 0
    start: str = ""

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


def scene_image(scene: Scene, blind: bool = False) -> Any:
    """A scene as an RGB image."""
    from PIL import Image

    from medbench.phantom.image import pixels

    return blank_image() if blind else Image.fromarray(pixels(scene)).convert("RGB")


def fresh_vlm(base: Path, seed: int, device: torch.device) -> Vlm:
    """A model of the architecture in `base`, with its processor, and weights drawn from the seed.

    Raises:
        RequestError: `base` is no backbone's folder.
    """
    from transformers import AutoConfig

    try:
        processor = AutoProcessor.from_pretrained(str(base), trust_remote_code=False)
        config = AutoConfig.from_pretrained(str(base), trust_remote_code=False)
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RequestError(f"--base {base}: not a backbone's folder ({reason})") from error
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return Vlm(model.to(device), processor, device)


def fresh_grounding(vlm: Vlm, seed: int) -> Grounding:
    """The head for a model, with weights drawn from the seed."""
    image = scene_image(pretraining_scene(seed, 0))
    grid = vlm.processor.image_processor([image], return_tensors="pt")["image_grid_thw"]
    tokens = int(grid.prod()) // vlm.processor.image_processor.merge_size**2
    torch.manual_seed(seed)
    return Grounding(vlm.base.config.vision_config.out_hidden_size, tokens).to(vlm.device)


def step_loss(vlm: Vlm, grounding: Grounding, recipe: Recipe, step: int) -> torch.Tensor:
    """The loss of a step: captions (and listings), the other answers, the grounding; each a mean over tokens.

    Returns:
        [3]: the three losses.
    """
    scenes = [pretraining_scene(recipe.seed, recipe.first + step * recipe.images + i) for i in range(recipe.images)]
    asked = [exchanges(scene, Draws(f"{scene.digest}:exchanges"), recipe.exchanges) for scene in scenes]
    images = [scene_image(scene, recipe.blind) for scene in scenes]
    pixels = vlm.processor.image_processor(images, return_tensors="pt")
    features = vlm.base.get_image_features(
        **{name: value.to(vlm.device) for name, value in pixels.items()}, return_dict=True
    ).pooler_output
    long = 2 if recipe.exchanges >= LISTING_FROM else 1
    captions = [(i, exchange) for i, found in enumerate(asked) for exchange in found[:long]]
    questions = [(i, exchange) for i, found in enumerate(asked) for exchange in found[long:]]
    texts = [_part_loss(vlm, part, images, features) for part in (captions, questions)]
    return torch.stack([*texts, grounding(torch.stack(list(features)), scenes)])


def _part_loss(
    vlm: Vlm, part: Sequence[tuple[int, Exchange]], images: Sequence[Any], features: Sequence[torch.Tensor]
) -> torch.Tensor:
    batch = vlm.prompt_batch([vlm.chat(e.prompt) for _, e in part], [images[i] for i, _ in part])
    batch = vlm.with_completions(batch, [[*vlm.completion_ids(e.answer), vlm.end_id] for _, e in part])
    labels = batch.pop("labels").to(vlm.device)
    width = int(labels.ne(IGNORE).any(0).sum())
    inputs = {k: v.to(vlm.device) for k, v in batch.items() if not k.startswith("pixel")}
    inputs["mm_encoder_outputs"] = {
        "image": BaseModelOutputWithPooling(pooler_output=tuple(features[i] for i, _ in part))  # type: ignore[arg-type]
    }
    logits = vlm.model(**inputs, use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, -width:].flatten(), ignore_index=IGNORE
    )


class Pretraining(Resumable):
    """The pretraining of `nano-vl` under way."""

    def __init__(
        self,
        vlm: Vlm,
        recipe: Recipe,
        folder: Path,
        base: str = "",
        history: Sequence[dict[str, Any]] = (),
        start: Path | None = None,
    ):
        """Resumes from `folder/state.safetensors` when it is there, else starts; see `Resumable`."""
        self.vlm = vlm
        self.grounding = fresh_grounding(vlm, recipe.seed)
        super().__init__(vlm.model, self.grounding, vlm.device, recipe, folder, base, history, start)

    def losses_of(self, step: int) -> torch.Tensor:
        """[3]: captions, other answers, grounding."""
        return step_loss(self.vlm, self.grounding, self.recipe, step)
