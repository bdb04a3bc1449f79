"""Training a dual encoder: images are classified by the prompts of their classes, or matched with their own texts.

No layer is added: the logits are those of zero-shot classification (cosines of image embeddings and class weights at
the model's scale), and the loss is their cross-entropy. Of image-text data (reports) the loss is the symmetric
contrastive one of CLIP (Radford et al. 2021, arXiv 2103.00020) among the pairs of one forward pass; equal texts are
all right answers, in equal parts.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from medbench.backbones.vlm import Batch
from medbench.data.item import Item
from medbench.inference.zero_shot import class_weights
from medbench.training.augment import Augmentation

if TYPE_CHECKING:
    from medbench.backbones.clip import Clip


@dataclass(frozen=True)
class PromptPart:
    """A part of a mixture.

    Attributes:
        prompts: class -> its prompts; none for image-text data.
        augmentation: what is drawn for each image.
    """

    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class PromptExample:
    """An item of a part.

    Attributes:
        item: its image, and its class (or text) as answer.
        part: number of its part.
        text: what it is matched with; of image-text data only.
        draw: what its augmentation is drawn from.
        length: all examples are as long as one another.
    """

    item: Item
    part: int
    text: str = ""
    draw: int = 0
    length: int = 1


class PromptObjective:
    """Cross-entropy over prompt logits, and the contrastive loss of image-text pairs.

    The text tower's embeddings of the classes are computed once where it is frozen, in every step where it is not.
    """

    def __init__(self, clip: Clip, parts: Sequence[PromptPart], seed: int):
        """Args: the model with its adapter attached; the parts of the mixture; decides what is drawn."""
        self.clip, self.parts, self.seed = clip, parts, seed
        self.trains_text = any(p.requires_grad and ".visual." not in f".{n}" for n, p in clip.model.named_parameters())
        clip.model.eval()
        with torch.no_grad():
            self.weights = [class_weights(clip, part.prompts) if part.prompts else None for part in parts]

    def place(self, example: PromptExample, position: int) -> PromptExample:
        """The example with what is drawn for it at this position of the stage."""
        return replace(example, draw=position)

    def collate(self, batch: Sequence[PromptExample]) -> Batch:
        """Pixels [B, 3, H, W], labels [B] (the class's number; 0 for image-text pairs), parts [B], tokens of texts."""
        pixels, labels = [], []
        for example in batch:
            part = self.parts[example.part]
            draw = random.Random(f"{self.seed}:{example.draw}:{example.item.id}")  # noqa: S311 (no secret)
            pixels.append(self.clip.transform(part.augmentation(self.clip.load_image(example.item), draw)))
            labels.append(list(part.prompts).index(example.item.answer) if part.prompts else 0)
        found: Batch = {
            "pixels": torch.stack(pixels),
            "labels": torch.tensor(labels),
            "parts": torch.tensor([example.part for example in batch]),
        }
        texts = [example.text for example in batch if not self.parts[example.part].prompts]
        if texts:
            found["tokens"] = self.clip.tokenizer(texts)
        return found

    def loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """The summed loss of a batch; each image, and each pair, counts once."""
        of_part, labels = inputs["parts"], inputs["labels"]
        present = sorted(set(of_part.tolist()))
        named = [number for number in present if self.parts[number].prompts]
        pairs = torch.isin(of_part, torch.tensor([n for n in present if n not in named], device=of_part.device))
        texts = self._texts(named, inputs)
        if self.trains_text and texts:
            image, rows, scale = model(image=inputs["pixels"], text=torch.cat(list(texts.values())))
            embedded = dict(zip(texts, rows.split([len(tokens) for tokens in texts.values()]), strict=True))
        else:
            # Before the images: a forward pass forgets the balance loss of the one before it.
            embedded = self._frozen(texts)
            image, _, scale = model(image=inputs["pixels"], text=None)
        total = image.sum() * 0.0
        for number in named:
            rows = of_part == number
            weights = self._class_weights(number, embedded)
            logits = scale.float() * image[rows].float() @ weights.to(image.device).T
            total = total + F.cross_entropy(logits, labels[rows], reduction="sum")
        if bool(pairs.any()):
            total = total + contrastive(image[pairs].float(), embedded[-1].float(), scale.float(), inputs["tokens"])
        return total

    def _texts(self, named: Sequence[int], inputs: Batch) -> dict[int, torch.Tensor]:
        """Tokens that must go through the text tower in this step, by part; -1 is the pairs' texts."""
        found: dict[int, torch.Tensor] = {}
        if self.trains_text:
            for number in named:
                texts = [text for of_class in self.parts[number].prompts.values() for text in of_class]
                found[number] = self.clip.tokenizer(texts).to(inputs["pixels"].device)
        if "tokens" in inputs:
            found[-1] = inputs["tokens"]
        return found

    @torch.no_grad()
    def _frozen(self, texts: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Embeddings of a text tower that is not trained, hence without its dropout."""
        tower = getattr(self.clip.base, "text", None)
        if texts and tower is not None:
            tower.eval()
        rows = {number: self.clip.forward(tokens=tokens)[1] for number, tokens in texts.items()}
        return {number: found for number, found in rows.items() if found is not None}

    def _class_weights(self, number: int, embedded: Mapping[int, torch.Tensor]) -> torch.Tensor:
        if number not in embedded:
            weights = self.weights[number]
            assert weights is not None
            return weights
        counts = [len(of_class) for of_class in self.parts[number].prompts.values()]
        return F.normalize(torch.stack([rows.float().mean(0) for rows in embedded[number].split(counts)]), dim=-1)

    def checkpoint_activations(self) -> None:
        """As open_clip and timm do it."""
        self.clip.base.set_grad_checkpointing(True)


def contrastive(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """The symmetric contrastive loss, summed over pairs.

    Args:
        image: [B, D], normalised.
        text: [B, D], normalised; row i is of image i.
        scale: what cosines are multiplied by.
        tokens: [B, L], the texts; pairs with equal ones are right answers for one another.

    Returns:
        The sum over pairs of the mean of both directions' cross-entropies, a scalar.
    """
    same = (tokens[:, None] == tokens[None]).all(-1).float()
    wanted = same / same.sum(1, keepdim=True)
    logits = scale * image @ text.T
    return (F.cross_entropy(logits, wanted, reduction="sum") + F.cross_entropy(logits.T, wanted, reduction="sum")) / 2
