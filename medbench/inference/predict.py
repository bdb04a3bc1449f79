"""Answers a task's questions: greedy text, and for closed questions the probabilities of the candidate answers.

Items are cut into chunks of whole images. A chunk's images are encoded once, its questions are sorted by length
(image tokens counted) and batched; a chunk is also the unit that is stored and, after a kill, not done again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from medbench.backbones.vlm import Batch, Vlm
from medbench.data.card import Card
from medbench.data.item import Item
from medbench.errors import WorkError
from medbench.inference.features import ImageFeatures
from medbench.spec import Generation

#: A chunk holds at least this many batches of questions.
CHUNK_BATCHES = 8
Prediction = dict[str, Any]


def chunks(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Cuts items into chunks of at least `CHUNK_BATCHES` batches that never share an image, in order of first use."""
    by_image: dict[str, list[Item]] = {}
    for item in items:
        by_image.setdefault(item.image.key, []).append(item)
    cut: list[list[Item]] = [[]]
    for group in by_image.values():
        if len(cut[-1]) >= CHUNK_BATCHES * batch_size:
            cut.append([])
        cut[-1] += group
    return cut


class Predictor:
    """Answers questions of one task with one model."""

    def __init__(self, vlm: Vlm, card: Card, generation: Generation):
        """Args: the model in eval mode, the task, how to generate."""
        from transformers import GenerationConfig

        self.vlm, self.card, self.generation = vlm, card, generation
        self.features = ImageFeatures(vlm)
        own = card.generation_kwargs
        ends = vlm.base.generation_config.eos_token_id
        self.config = GenerationConfig(
            max_new_tokens=generation.max_new_tokens or own.max_gen_toks,
            do_sample=False,
            eos_token_id=vlm.end_id if ends is None else ends,
            pad_token_id=vlm.processor.tokenizer.pad_token_id,
        )

    @torch.inference_mode()
    def predict(self, items: Sequence[Item], step: Callable[[int], None]) -> list[Prediction]:
        """Answers a chunk.

        Args:
            items: of one chunk.
            step: called with the number of questions answered at a time.

        Returns:
            One row an item, in the order given: id, cluster, prediction, probabilities (JSON object or None).

        Raises:
            BadItemError: an image cannot be read.
        """
        by_image: dict[str, Item] = {}
        for item in items:
            by_image.setdefault(self.vlm.image_key(item), item)
        self.features.encode(by_image, self.generation.batch_size)
        prompts = [self.vlm.chat(self.card.render_prompt(item)) for item in items]
        length = [
            len(self.vlm.completion_ids(prompt)) + self.features.tokens[self.vlm.image_key(item)]
            for prompt, item in zip(prompts, items, strict=True)
        ]
        order = sorted(range(len(items)), key=lambda i: (-length[i], i))
        rows: dict[int, Prediction] = {}
        for batch in _batches(order, self.generation.batch_size):
            chosen = [items[i] for i in batch]
            answers = self.answer(chosen, [prompts[i] for i in batch])
            rows.update(zip(batch, answers, strict=True))
            step(len(batch))
        return [rows[i] for i in range(len(items))]

    def answer(self, items: Sequence[Item], prompts: Sequence[str]) -> list[Prediction]:
        """The rows of a batch, whose images are encoded; a subclass may say something else of its answers.

        Args:
            items: of one batch.
            prompts: their chat texts.

        Raises:
            WorkError: the model gives a candidate no likelihood.
        """
        new, first = self.generate(items, prompts)
        texts = self.vlm.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
        scores = self.loglikelihoods(items, prompts, first)
        return [
            {
                "id": item.id,
                "cluster": item.image.key,
                "prediction": _cut(text, self.card.generation_kwargs.until),
                "probabilities": candidate_probabilities(item.candidates, score) if item.candidates else None,
            }
            for item, text, score in zip(items, texts, scores, strict=True)
        ]

    def generate(self, items: Sequence[Item], prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Greedy answers to a batch.

        Returns:
            New tokens [B, T], padded at the end, and the log-probabilities of the first one [B, V].
        """
        from transformers import LogitsProcessorList

        batch, first = self._batch(items, prompts), _FirstLogits()
        with _settings(self.vlm.base, self.config):
            generated = self.vlm.model.generate(
                **self.features.inputs(batch, [self.vlm.image_key(item) for item in items]),
                generation_config=self.config,
                logits_processor=LogitsProcessorList([first]),
            )
        return generated[:, batch["input_ids"].shape[1] :], first.logprobs

    def _batch(self, items: Sequence[Item], prompts: Sequence[str]) -> Batch:
        return self.vlm.prompt_batch(prompts, [self.vlm.load_image(item) for item in items])

    def loglikelihoods(self, items: Sequence[Item], prompts: Sequence[str], first: torch.Tensor) -> list[list[float]]:
        """Log p(candidate | prompt) for each item's candidates, end token not counted (as lm-eval does).

        The first token's comes with the generation; only candidates of several tokens need a forward of their own.

        Args:
            items: of one batch.
            prompts: their chat texts.
            first: log-probabilities of the first generated token, [B, V].
        """
        scores = [[0.0] * len(item.candidates) for item in items]
        longer: list[tuple[int, int, list[int]]] = []
        for row, item in enumerate(items):
            for column, candidate in enumerate(item.candidates):
                ids = self.vlm.completion_ids(candidate)
                if len(ids) == 1:
                    scores[row][column] = float(first[row, ids[0]])
                else:
                    longer.append((row, column, ids))
        for batch in _batches(longer, self.generation.batch_size):
            keys = [self.vlm.image_key(items[row]) for row, _, _ in batch]
            prompt = self._batch([items[row] for row, _, _ in batch], [prompts[row] for row, _, _ in batch])
            inputs = self.features.inputs(self.vlm.with_completions(prompt, [ids for _, _, ids in batch]), keys)
            labels = inputs.pop("labels")
            width = max(len(ids) for _, _, ids in batch)
            last = {"logits_to_keep": width + 1} if self.vlm.keeps_logits else {}
            logits = self.vlm.model(**inputs, **last, use_cache=False).logits[:, -(width + 1) : -1].float()
            logprobs = logits.log_softmax(-1)
            wanted = labels[:, -width:]
            picked = logprobs.gather(-1, wanted.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            totals = (picked * wanted.ge(0)).sum(-1)
            for (row, column, _), total in zip(batch, totals.tolist(), strict=True):
                scores[row][column] = total
        return scores


@contextmanager
def _settings(model: Any, config: Any) -> Iterator[None]:
    # `generate` fills what a given config leaves unset from the model's own (repetition penalty, sampling, suppressed
    # tokens, ...), so that one is put aside.
    own, model.generation_config = model.generation_config, config
    try:
        yield
    finally:
        model.generation_config = own


class _FirstLogits:
    """A logits processor that changes nothing and keeps the log-probabilities of the first step."""

    logprobs: torch.Tensor

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.seen:
            self.logprobs, self.seen = scores.float().log_softmax(-1), True
        return scores


def _batches(sequence: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (sequence[start : start + size] for start in range(0, len(sequence), size))


def _cut(text: str, until: Sequence[str]) -> str:
    for stop in until:
        text = text.split(stop)[0]
    return text


def candidate_probabilities(candidates: Sequence[str], scores: Sequence[float]) -> str:
    """The softmax of candidates' log-likelihoods, as a prediction stores it: JSON, candidate -> probability.

    Raises:
        WorkError: a log-likelihood is no number, or none is finite.

    Example:
        >>> candidate_probabilities(["yes", "no"], [-700.0, -700.0])
        '{"yes": 0.5, "no": 0.5}'
    """
    given = np.asarray(scores, dtype=np.float64)
    highest = given.max()  # NaN where any is
    if not np.isfinite(highest):
        said = ", ".join(f"{candidate!r} {score}" for candidate, score in zip(candidates, scores, strict=True))
        raise WorkError(
            f"the model's log-likelihoods are no numbers ({said[:80]}): its weights are damaged or its training "
            "diverged, or the arithmetic overflows (then --dtype float32 helps)"
        )
    shifted = np.exp(given - highest)
    return json.dumps(dict(zip(candidates, (shifted / shifted.sum()).tolist(), strict=True)))
