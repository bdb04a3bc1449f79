"""What each image token of the small backbone should know, as a loss of its pretraining."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medbench.backbones.vlm import IGNORE
from medbench.phantom.anatomy import MODALITIES, SIZES
from medbench.phantom.scene import Scene


class Grounding(torch.nn.Module):
    """A linear head over image tokens, for pretraining alone: the lesion centred there (kind, size), and its place.

    A blind run has it too, and learns nothing from it but how often kinds occur.
    """

    def __init__(self, width: int, tokens: int):
        """Args: the width of an image token; how many an image has (a square number)."""
        super().__init__()
        self.kinds = [(about.name, kind) for about in MODALITIES.values() for kind in about.kinds]
        self.parts = (1 + len(self.kinds), len(SIZES), tokens)
        self.tokens, self.side = tokens, math.isqrt(tokens)
        self.head = torch.nn.Linear(width, sum(self.parts))

    def forward(self, features: torch.Tensor, scenes: Sequence[Scene]) -> torch.Tensor:
        """The mean cross-entropy of kind (none counts a fifth), half that of size, half that of place.

        Args:
            features: [images, tokens, width].
            scenes: what the images show.
        """
        kind = torch.zeros(len(scenes), self.tokens, dtype=torch.long)
        size = torch.full((len(scenes), self.tokens), IGNORE)
        for row, scene in enumerate(scenes):
            for lesion in scene.lesions:
                token = lesion.y * self.side // 1000 * self.side + lesion.x * self.side // 1000
                kind[row, token] = 1 + self.kinds.index((scene.modality, lesion.kind))
                size[row, token] = list(SIZES).index(lesion.size)
        place = torch.arange(self.tokens).repeat(len(scenes))
        found = self.head(features.float()).flatten(0, 1).split(self.parts, -1)
        rare = torch.tensor([0.2] + [1.0] * len(self.kinds), device=features.device)
        wanted = [t.flatten().to(features.device) for t in (kind, size, place)]
        entropy = torch.nn.functional.cross_entropy
        # A batch of normal images has no size to tell: the sum over none is 0, not 0 / 0.
        sizes = entropy(found[1], wanted[1], ignore_index=IGNORE, reduction="sum") / max(1, int((size >= 0).sum()))
        return entropy(found[0], wanted[0], weight=rare) + 0.5 * sizes + 0.5 * entropy(found[2], wanted[2])
