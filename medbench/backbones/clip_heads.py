"""What the pretraining of `nano-clip` asks beside the contrast, through heads that are thrown away with it.

The contrast alone stays for long where it knows the modality: texts of a modality lie together, so no image gains by
moving towards one of them, and the other way round. `Facts` asks both sides the same questions through one head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medbench.backbones.grounding import Grounding
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.captions import Level
from medbench.phantom.scene import Scene

#: Multiplies an embedding of length one, so that a head with weights of order one can be sure of something.
_SCALE = 8.0
_WEIGHT = 0.2


class Facts(torch.nn.Module):
    """One linear head over embeddings of images and of captions: which kinds of lesion there are, and where."""

    def __init__(self, width: int):
        """Args: the width of an embedding."""
        super().__init__()
        self.kinds = [(about.name, kind) for about in MODALITIES.values() for kind in about.kinds]
        self.head = torch.nn.Linear(width, 5 * len(self.kinds))
        # Most answers are no: to begin with saying so keeps this loss from drowning the others.
        torch.nn.init.constant_(self.head.bias, -3.0)

    def forward(self, embeddings: torch.Tensor, scenes: Sequence[Scene], level: Level) -> torch.Tensor:
        """A fifth of the cross-entropy of yes or no, summed over kinds and, from level `site` on, half that over sites.

        Args:
            embeddings: [rows, width], L2-normalised.
            scenes: a row's, or the one that it is a caption of.
            level: what the rows can know; images: `full`.

        Returns:
            The mean over rows; 0 for captions of the modality alone.
        """
        count = len(self.kinds)
        wanted = torch.zeros(len(scenes), 5 * count)
        for row, scene in enumerate(scenes):
            for lesion in scene.lesions:
                kind = self.kinds.index((scene.modality, lesion.kind))
                wanted[row, kind] = 1
                wanted[row, count + 4 * kind + lesion.site] = 1
        weight = torch.zeros(5 * count)
        weight[:count] = level != "modality"
        weight[count:] = 0.5 * (level in ("site", "full"))
        found = self.head(_SCALE * embeddings.float())
        wanted, weight = wanted.to(found.device), weight.to(found.device)
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(found, wanted, reduction="none")
        return _WEIGHT * (entropy * weight).sum(1).mean()


class Heads(torch.nn.Module):
    """Both heads: of the image tokens (`Grounding`) and of the embeddings (`Facts`)."""

    def __init__(self, tower: int, tokens: int, width: int):
        """Args: width of the vision tower, its patches, and width of an embedding."""
        super().__init__()
        self.patches = Grounding(tower, tokens)
        self.facts = Facts(width)
