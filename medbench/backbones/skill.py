"""What a pretrained `nano-vl` can do: describe phantoms that it has not seen; its captions are read back as facts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from medbench.backbones.pretrain import scene_image
from medbench.backbones.vlm import Vlm
from medbench.phantom.anatomy import MODALITIES, SIZES
from medbench.phantom.draws import Draws
from medbench.phantom.pretraining import CAPTION_PROMPTS, caption, exchanges, pretraining_scene
from medbench.phantom.scene import Scene

Lesions = dict[str, tuple[str, str]]
_KINDS = sorted({kind for about in MODALITIES.values() for kind in about.kinds})
_LESION = re.compile(rf"([a-z ]+) ({'|'.join(SIZES)}) ({'|'.join(_KINDS)})$")


def read_caption(text: str) -> tuple[str, Lesions]:
    """A caption as (modality as a reader calls it, site -> (size, kind)).

    Example:
        >>> read_caption("CT slice: liver small cyst; spleen large mass; right kidney clear; left kidney clear")
        ('CT slice', {'liver': ('small', 'cyst'), 'spleen': ('large', 'mass')})
    """
    modality, _, sites = text.partition(":")
    found = [m for part in sites.split(";") if (m := _LESION.search(part.strip()))]
    return modality.strip(), {m[1]: (m[2], m[3]) for m in found}


def caption_scores(truth: Sequence[str], told: Sequence[str]) -> dict[str, float]:
    """Captions against the truth, read as facts.

    Returns:
        modality: share that names the right one; site_f1: of the sites with a lesion; lesion_f1: site and kind must
        agree; size_accuracy: of the lesions whose site and kind agree; exact: share of captions with every fact right.
    """
    pairs = [(read_caption(a), read_caption(b)) for a, b in zip(truth, told, strict=True)]
    real = sum(len(a[1]) for a, _ in pairs)
    said = sum(len(b[1]) for _, b in pairs)
    sites = sum(len(a[1].keys() & b[1].keys()) for a, b in pairs)
    agreed = [(a[1][s], b[1][s]) for a, b in pairs for s in a[1].keys() & b[1].keys() if a[1][s][1] == b[1][s][1]]
    return {
        "modality": _share([a[0] == b[0] for a, b in pairs]),
        "site_f1": 2 * sites / max(1, real + said),
        "lesion_f1": 2 * len(agreed) / max(1, real + said),
        "size_accuracy": _share([a[0] == b[0] for a, b in agreed]),
        "exact": _share([a == b for a, b in pairs]),
    }


def skill(vlm: Vlm, seed: int, scenes: int, blind: bool, batch_size: int = 50) -> dict[str, Any]:
    """Describes held-out scenes and answers held-out yes/no questions about them.

    Args:
        vlm: the model.
        seed: of the scenes.
        scenes: how many.
        blind: shows mid-grey images instead.
        batch_size: captions at once.

    Returns:
        `captions` (see `caption_scores`), the same of `shuffled` captions (the truth of another scene of the same
        modality: what knowing the modality alone gives), and the balanced accuracy of `yes_no` questions.
    """
    drawn = [pretraining_scene(seed, number, "pretrain_test") for number in range(scenes)]
    truth = [caption(scene) for scene in drawn]
    told = _answers(vlm, [(CAPTION_PROMPTS[0], scene) for scene in drawn], 64, blind, batch_size)
    asked = [
        (exchange, scene)
        for scene in drawn
        for exchange in exchanges(scene, Draws(f"{scene.digest}:skill"), 6)
        if exchange.answer in ("yes", "no") and scene.lesions
    ]
    replies = _answers(vlm, [(exchange.prompt, scene) for exchange, scene in asked], 4, blind, batch_size)
    right = {
        answer: _share([r == answer for r, (e, _) in zip(replies, asked, strict=True) if e.answer == answer])
        for answer in ("yes", "no")
    }
    return {
        "scenes": scenes,
        "captions": caption_scores(truth, told),
        "shuffled": caption_scores(truth, _shuffled(drawn, truth)),
        "yes_no": {"n": len(asked), "balanced_accuracy": sum(right.values()) / 2},
    }


@torch.inference_mode()
def _answers(
    vlm: Vlm, asked: Sequence[tuple[str, Scene]], max_new_tokens: int, blind: bool, batch_size: int
) -> list[str]:
    vlm.model.eval()
    found: list[str] = []
    for start in range(0, len(asked), batch_size):
        part = asked[start : start + batch_size]
        batch = vlm.prompt_batch([vlm.chat(p) for p, _ in part], [scene_image(s, blind) for _, s in part])
        inputs = {k: v.to(vlm.device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
        made = vlm.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=vlm.end_id,
            pad_token_id=vlm.processor.tokenizer.pad_token_id,
        )
        new = made[:, batch["input_ids"].shape[1] :]
        found += [t.strip() for t in vlm.processor.tokenizer.batch_decode(new, skip_special_tokens=True)]
    return found


def _shuffled(scenes: Sequence[Scene], captions: Sequence[str]) -> list[str]:
    """Each caption replaced by that of another scene of its modality."""
    found = list(captions)
    for name in MODALITIES:
        places = [i for i, scene in enumerate(scenes) if scene.modality == name]
        for here, there in zip(places, places[1:] + places[:1], strict=True):
            found[here] = captions[there]
    return found


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
