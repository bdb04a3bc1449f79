"""Training a vision-language model: items become batches (decoded when their batch is built), batches a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from medbench.backbones.vlm import IGNORE, Batch, Vlm
from medbench.data.card import Card
from medbench.data.item import Item


class Objective(Protocol):
    """What a stage trains on, for one kind of backbone."""

    def place(self, example: Any, position: int) -> Any:
        """An example as it is seen at a position of the stage's order (what is drawn for it is drawn from that)."""
        ...

    def collate(self, batch: Sequence[Any]) -> Batch:
        """A batch of placed examples, with `labels`; an entry of -100 is no target."""
        ...

    def loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """The loss summed over a batch's targets, a scalar; `model` may be wrapped for several processes."""
        ...

    def checkpoint_activations(self) -> None:
        """Keeps no activations for the backward pass but recomputes them."""
        ...


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


@dataclass
class CompletionObjective:
    """Cross-entropy over the tokens of the answers."""

    vlm: Vlm

    def __post_init__(self) -> None:
        """Sets the collator up."""
        self.collate = Collator(self.vlm)

    def place(self, example: Example, position: int) -> Example:
        """The example itself: nothing is drawn."""
        return example

    def loss(self, model: Any, inputs: Batch) -> torch.Tensor:
        """Summed cross-entropy over the target tokens."""
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        width = int(labels.ne(IGNORE).any(0).sum())
        if self.vlm.keeps_logits:
            inputs["logits_to_keep"] = width + 1
        logits = model(**inputs, use_cache=False).logits[:, -(width + 1) : -1]
        return torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, -width:].flatten(), ignore_index=IGNORE, reduction="sum"
        )

    def checkpoint_activations(self) -> None:
        """As transformers does it; inputs need a gradient for adapters to get one."""
        self.vlm.base.gradient_checkpointing_enable({"use_reentrant": False})
        self.vlm.base.enable_input_require_grads()
