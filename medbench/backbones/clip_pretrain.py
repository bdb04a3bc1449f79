"""The contrastive pretraining of `nano-clip`: captions against images of generated phantoms, from random weights.

Losses are added: of captions that name the kinds of lesion (as class names do), of captions that say more (a level of
detail a step), of what each image token should know, and of what both kinds of embedding should (`clip_heads`). A
caption that is true of several images of the batch has all of them as positives. The last loss is of texts alone: words
of the whole vocabulary in two wordings against each other, since a text tower that has met few words takes all others
for one, and the class names of real data sets are made of others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

from medbench.backbones.clip_heads import Heads
from medbench.backbones.pixels import BLANK_GREY
from medbench.backbones.resumable import Resumable
from medbench.phantom.captions import LEVELS, Level, caption_scene, fact, word_pairs, wording
from medbench.phantom.draws import Draws
from medbench.phantom.image import pixels
from medbench.phantom.scene import Scene
from medbench.phantom.shapes import SIDE

#: The parts of a step's loss, in order.
PARTS = ("kinds", "details", "grounding", "facts", "words")
#: exp(logit_scale) never exceeds it (as in CLIP).
MAX_SCALE = 100.0


@dataclass(frozen=True)
class ClipRecipe:
    """What decides the weights, up to rounding.

    Attributes:
        steps: optimiser steps; the learning rate falls to zero over them (cosine, after `warmup` steps).
        images: a step; each has a caption of kinds and one of more detail.
        lr: highest learning rate (AdamW, betas 0.9 and 0.98, gradient norm clipped at 1).
        weight_decay: of matrices.
        seed: of the weights, the scenes and the captions.
        dtype: of the forward computation; weights and moments are float32.
        blind: every image is mid-grey (what text alone gives).
    """

    steps: int = 1200
    images: int = 48
    lr: float = 1e-3
    warmup: int = 80
    weight_decay: float = 0.05
    seed: int = 0
    dtype: str = "bfloat16"
    blind: bool = False

    def rate(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * 0.5 * (1 + math.cos(math.pi * (step - self.warmup) / max(1, self.steps - self.warmup)))


@dataclass(frozen=True)
class Texts:
    """Captions of a batch, without repetition.

    Attributes:
        level: of all of them.
        words: the captions.
        sources: the scene that each was written of.
        truth: which images each is true of, bool [texts, images].
    """

    level: Level
    words: tuple[str, ...]
    sources: tuple[Scene, ...]
    truth: torch.Tensor


def step_scenes(recipe: ClipRecipe, step: int) -> list[Scene]:
    """The scenes of a step; no two steps share one."""
    return [caption_scene(recipe.seed, step * recipe.images + i) for i in range(recipe.images)]


def step_texts(scenes: Sequence[Scene], recipe: ClipRecipe, step: int) -> tuple[Texts, Texts]:
    """The captions of kinds, and those of a level of detail that is drawn for the step."""
    draws = Draws(f"clip:{recipe.seed}:{step}:captions")
    detail = draws.pick(("full", "full", "site", LEVELS[0]))
    return _texts(scenes, "kind", draws), _texts(scenes, detail, draws)


def _texts(scenes: Sequence[Scene], level: Level, draws: Draws) -> Texts:
    facts = [fact(scene, level) for scene in scenes]
    said = {wording(scene, level, draws): index for index, scene in enumerate(scenes)}
    truth = torch.tensor([[facts[index] == known for known in facts] for index in said.values()])
    return Texts(level, tuple(said), tuple(scenes[index] for index in said.values()), truth)


def vocabulary(tokenizer: Any) -> tuple[list[str], list[str]]:
    """A byte-level tokenizer's entries of letters: those that begin a word, and those that go on with one."""
    entries = sorted(tokenizer.tokenizer.get_vocab())
    begin = [entry[1:] for entry in entries if re.fullmatch("\u0120[a-z]{3,}", entry)]
    return begin, [entry for entry in entries if re.fullmatch("[a-z]{2,}", entry)]


def step_words(words: tuple[list[str], list[str]], recipe: ClipRecipe, step: int) -> list[tuple[str, str]]:
    """The word pairs of a step, half as many as images."""
    return word_pairs(*words, max(2, recipe.images // 2), Draws(f"clip:{recipe.seed}:{step}:words"))


def contrastive(image: torch.Tensor, text: torch.Tensor, truth: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric contrastive loss with several positives: the divergence from the uniform choice among true ones.

    With one true text an image and one image a text it is CLIP's InfoNCE (arXiv 2103.00020, figure 3).

    Args:
        image: [images, width], L2-normalised.
        text: [texts, width], L2-normalised.
        truth: bool [texts, images]; at least one True in each row and column.
        scale: the temperature's inverse.
    """
    logits = scale * text @ image.T
    return 0.5 * (_divergence(logits, truth) + _divergence(logits.T, truth.T))


def _divergence(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    wanted = truth / truth.sum(1, keepdim=True)
    return torch.nn.functional.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")


def scene_pixels(model: Any, scenes: Sequence[Scene], blind: bool = False) -> torch.Tensor:
    """Scenes as the model's input: float32 [scenes, 3, side, side], with the mean and deviation of its configuration.

    The same as open_clip's transform of the images at their own side, without the way through PIL.
    """
    mean, std = model.visual.preprocess_cfg["mean"], model.visual.preprocess_cfg["std"]
    grey = [np.full((SIDE, SIDE), BLANK_GREY, np.uint8) if blind else pixels(scene) for scene in scenes]
    values = torch.from_numpy(np.stack(grey)).float()[:, None].expand(-1, 3, -1, -1) / 255
    return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def encode_tokens(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What `model.encode_text(tokens, normalize=True)` gives, without computing the padding behind the last caption.

    The text tower is causal and reads the end token, so what comes after it changes nothing.
    """
    length = int((tokens == model.text_eos_id).int().argmax(1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    ends = (tokens == model.text_eos_id).int().argmax(1)
    return normalize(x[torch.arange(len(x), device=x.device), ends] @ model.text_projection, dim=-1)


def fresh_heads(model: Any, seed: int) -> Heads:
    """The heads for a model, with weights drawn from the seed."""
    torch.manual_seed(seed)
    rows, columns = model.visual.grid_size
    return Heads(model.visual.conv1.out_channels, rows * columns, model.visual.output_dim)


class ClipPretraining(Resumable):
    """The pretraining of `nano-clip` under way."""

    def __init__(
        self, model: Any, tokenizer: Any, recipe: ClipRecipe, folder: Path, device: torch.device, base: str = ""
    ):
        """Resumes from `folder/state.safetensors` when it is there, else starts; see `Resumable`.

        Args:
            model: open_clip's, with a transformer of its own for texts, and fresh weights.
            tokenizer: texts -> tokens.
            recipe: what to do.
            folder: of the state.
            device: where to compute.
            base: digest of architecture and tokenizer.
        """
        self.tokenizer, self.words = tokenizer, vocabulary(tokenizer)
        self.heads = fresh_heads(model, recipe.seed).to(device)
        super().__init__(model.to(device), self.heads, device, recipe, folder, base)

    def losses_of(self, step: int) -> torch.Tensor:
        """[5]: see `PARTS`."""
        model, recipe = self.model, self.recipe
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(MAX_SCALE))
        scenes = step_scenes(recipe, step)
        both = step_texts(scenes, recipe, step)
        seen, patches = self._look(scene_pixels(model, scenes, recipe.blind).to(self.device))
        tokens = self.tokenizer([word for texts in both for word in texts.words]).to(self.device)
        said = encode_tokens(model, tokens).float().split([len(texts.words) for texts in both])
        scale = model.logit_scale.exp()
        parts = [contrastive(seen, t, texts.truth.to(self.device), scale) for t, texts in zip(said, both, strict=True)]
        facts = self.heads.facts(seen, scenes, "full")
        for t, texts in zip(said, both, strict=True):
            facts = facts + self.heads.facts(t, texts.sources, texts.level)
        return torch.stack([*parts, self.heads.patches(patches, scenes), facts, self._words(step)])

    def _words(self, step: int) -> torch.Tensor:
        """Half the contrastive loss of a step's word pairs, each pair against the others."""
        pairs = step_words(self.words, self.recipe, step)
        tokens = self.tokenizer([text for side in zip(*pairs, strict=True) for text in side]).to(self.device)
        one, other = encode_tokens(self.model, tokens).float().split(len(pairs))
        truth = torch.eye(len(pairs), dtype=torch.bool, device=self.device)
        return 0.5 * contrastive(one, other, truth, self.model.logit_scale.exp())

    def _look(self, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [images, width], L2-normalised, and patch tokens [images, patches, tower's width]."""
        visual = self.model.visual
        visual.output_tokens = True
        try:
            pooled, patches = visual(batch)
        finally:
            visual.output_tokens = False
        return normalize(pooled.float(), dim=-1), patches
