"""Training on prompts: the loss is that of zero-shot logits, and what trains is what should."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_clip_common import KINDS
from test_zero_shot_common import card_at, clip_of, draw_set, items_of, written
from torch.nn import functional as F

from medbench.backbones.adapt import attach, penalty_of
from medbench.backbones.clip import Clip
from medbench.inference.zero_shot import class_weights
from medbench.spec import MethodSpec
from medbench.training.augment import Augmentation
from medbench.training.prompts import PromptExample, PromptObjective, PromptPart, contrastive


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"), "shades")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("backbones"))


def adapted(folders: Path, kind: str, targets: str = "vision") -> Clip:
    clip = clip_of(folders, kind)
    torch.manual_seed(0)
    attach(clip, MethodSpec("lora", "lora", {"targets": targets, "alpha_over_r": 2.0, "dropout": 0.0, "r": 4}), 0)
    return clip


def placed(card: Path, part: int = 0, text: str = "") -> list[PromptExample]:
    return [PromptExample(item, part, text, draw=n) for n, item in enumerate(items_of(card, "train"))]


def part_of(card: Path) -> PromptPart:
    return PromptPart(card_at(card).prompts(single=False))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["vision", "vision+text"])
def test_the_loss_is_the_cross_entropy_of_zero_shot_logits(kind: str, targets: str, folders: Path, card: Path) -> None:
    clip = adapted(folders, kind, targets)
    objective = PromptObjective(clip, [part_of(card)], 0)
    assert objective.trains_text == ("text" in targets)
    batch = objective.collate(placed(card))
    loss = objective.loss(clip.model, batch)
    with torch.no_grad():
        weights = class_weights(clip, card_at(card).prompts(single=False))
        image, _, scale = clip.forward(pixels=batch["pixels"])
        wanted = F.cross_entropy(scale * image @ weights.T, batch["labels"], reduction="sum")
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)
    loss.backward()
    trained = {n: p for n, p in clip.model.named_parameters() if p.requires_grad}
    moved = {n for n, p in trained.items() if p.grad is not None and bool(p.grad.abs().max() > 0)}
    assert moved >= {n for n in trained if "lora_B" in n}
    assert any(".visual." in n for n in moved)
    assert any(".visual." not in n for n in moved) == ("text" in targets)


def test_a_batch_of_two_parts_is_the_sum_of_both(folders: Path, card: Path) -> None:
    clip = adapted(folders, "native")
    other = PromptPart({"malignant": ["a photo of a"], "normal": ["normal breast"], "benign": ["ultrasound"]})
    objective = PromptObjective(clip, [part_of(card), other], 0)
    first, second = placed(card, 0)[:5], placed(card, 1)[5:9]
    together = objective.loss(clip.model, objective.collate([*first, *second]))
    apart = [objective.loss(clip.model, objective.collate(part)) for part in (first, second)]
    torch.testing.assert_close(together, sum(apart), atol=1e-4, rtol=1e-5)


def test_pairs_are_matched_in_both_directions(folders: Path, card: Path) -> None:
    clip = adapted(folders, "biomed")
    objective = PromptObjective(clip, [PromptPart()], 0)
    texts = ["a photo", "ultrasound of a normal breast", "a benign tumour"]
    examples = [PromptExample(item, 0, text) for item, text in zip(items_of(card)[:3], texts, strict=True)]
    batch = objective.collate(examples)
    clip.model.train()
    loss = objective.loss(clip.model, batch)
    clip.model.eval()
    with torch.no_grad():
        image, text, scale = clip.forward(batch["pixels"], batch["tokens"])
        logits = scale * image @ text.T
        right = torch.arange(3)
        wanted = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2 * 3
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-5)  # a frozen text tower has no dropout


def test_equal_texts_are_right_answers_in_equal_parts() -> None:
    image = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    text = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)), dim=-1)
    text[2] = text[0]
    tokens = torch.tensor([[1, 2], [1, 3], [1, 2], [4, 0]])
    logits = 5 * image @ text.T
    target = torch.tensor([[0.5, 0, 0.5, 0], [0, 1, 0, 0], [0.5, 0, 0.5, 0], [0, 0, 0, 1.0]])
    wanted = -(target * (logits.log_softmax(1) + logits.log_softmax(0))).sum() / 2
    torch.testing.assert_close(contrastive(image, text, torch.tensor(5.0), tokens), wanted)


def test_augmentation_is_drawn_from_the_position(folders: Path, card: Path) -> None:
    clip = adapted(folders, "native")
    about = PromptPart(card_at(card).prompts(single=True), Augmentation(flip=True, crop=0.5, brightness=0.4))
    objective = PromptObjective(clip, [about], 0)
    example = placed(card)[0]
    seen = [objective.collate([objective.place(example, n)])["pixels"] for n in (0, 1, 0)]
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[1])
    other = PromptObjective(clip, [about], 1).collate([objective.place(example, 0)])["pixels"]
    assert not torch.equal(seen[0], other)


def test_the_balance_loss_of_the_images_is_left_to_be_taken(folders: Path, card: Path) -> None:
    clip = clip_of(folders, "native")
    torch.manual_seed(0)
    settings = {"targets": "vision", "r": 8, "num_experts": 4, "top_k": 2, "eta": 1.0, "balance_coefficient": 1.0}
    method = MethodSpec("spectral_moe", "expert_lora", settings)
    attach(clip, method, 0)
    clip.model.train()
    objective = PromptObjective(clip, [part_of(card), PromptPart()], 0)
    clip.model.train()
    pairs = [PromptExample(item, 1, "a photo") for item in items_of(card)[:3]]
    objective.loss(clip.model, objective.collate([*placed(card)[:3], *pairs]))
    penalty = penalty_of(clip, method)
    assert penalty is not None
    assert float(penalty()) >= 1.0  # L_b is 1 when balanced, and never less
