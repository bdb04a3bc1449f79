"""Turns items into training batches: images are decoded here, when their batch is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from medbench.backbones.vlm import Batch, Vlm
from medbench.data.card import Card
from medbench.data.item import Item


@dataclass(frozen=True)
class Example:
    """An item with its rendered prompt (chat text) and target (token ids, end token included)."""

    item: Item
    prompt: str
    target: tuple[int, ...]
    length: int


def examples(vlm: Vlm, card: Card, items: Sequence[Item], image_tokens: dict[str, int]) -> list[Example]:
    """Renders a task's items for training.

    Args:
        vlm: the backbone, for chat format and tokens.
        card: the task.
        items: its items.
        image_tokens: tokens of each image, by key.
    """
    made = []
    for item in items:
        prompt = vlm.chat(card.render_prompt(item))
        target = (*vlm.completion_ids(card.render_target(item)), vlm.end_id)
        length = len(vlm.completion_ids(prompt)) + len(target) + image_tokens[item.image.key]
        made.append(Example(item, prompt, target, length))
    return made


@dataclass
class Collator:
    """Examples -> a batch with `labels` over the completions only."""

    vlm: Vlm

    def __call__(self, batch: Sequence[Example]) -> Batch:
        """A left-padded training batch."""
        images = [self.vlm.load_image(example.item) for example in batch]
        prompts = self.vlm.prompt_batch([example.prompt for example in batch], images)
        return self.vlm.with_completions(prompts, [example.target for example in batch])
