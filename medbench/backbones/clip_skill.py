"""What a pretrained `nano-clip` can do: tell the classes of phantoms that it has not seen, by prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from medbench.backbones.clip import Clip, load_clip
from medbench.backbones.registry import get_backbone
from medbench.catalog import Catalog
from medbench.data.item import Item
from medbench.data.load import load_items
from medbench.inference.zero_shot import ZeroShotPredictor
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.image import SCANNERS
from medbench.phantom.questions import classes

TASK = "phantom_clip"
_BATCH = 50


def folder_skill(folder: Path, device: torch.device, scenes: int | None = None, blind: bool = False) -> dict[str, Any]:
    """Classifies the test split of `phantom_clip`, and of its changed scanners, with the backbone in a folder.

    Args:
        folder: in open_clip's format.
        device: where to compute.
        scenes: only the first ones; None: all.
        blind: shows blank images instead.

    Returns:
        `n`; `chance` and what knowing the modality alone gives (`modality_alone`); of the single prompt and of the
        ensemble: `accuracy`, `modality` (the class told is of the right modality), `accuracy_by_modality` (None where
        no image is of it); and, of the ensemble, `accuracy_by_scanner`.

    Raises:
        RequestError: the folder holds no such backbone. WorkError: its weights cannot be read.
    """
    clip = replace(load_clip(get_backbone(f"local-dir:{folder}"), torch.float32, device), blind=blind)
    items = _items(TASK, scenes)
    names = classes(tuple(MODALITIES))
    found: dict[str, Any] = {
        "task": TASK,
        "n": len(items),
        "chance": 1 / len(names),
        "modality_alone": len(MODALITIES) / len(names),
    }
    for name, single in (("single", True), ("ensemble", False)):
        told = _told(clip, TASK, items, single)
        found[name] = {
            "accuracy": _share([answer == true for true, answer in told]),
            "modality": _share([modality(answer) == modality(true) for true, answer in told]),
            "accuracy_by_modality": {
                key: _share([answer == true for true, answer in told if modality(true) == key]) for key in MODALITIES
            },
        }
    found["accuracy_by_scanner"] = {
        scanner: _share([answer == true for true, answer in _told(clip, task, _items(task, scenes), False)])
        for scanner, task in ((name, f"{TASK}_{name}") for name in SCANNERS if name != "standard")
    }
    return found


def modality(name: str) -> str:
    """The modality that a class of `phantom_clip` is of.

    Example:
        >>> modality("cyst on an MR slice")
        'mr'
    """
    return next(key for key in MODALITIES if name in classes((key,)))


def _items(task: str, scenes: int | None) -> list[Item]:
    return list(load_items(Catalog().task(task), "test", None).items)[:scenes]


def _told(clip: Clip, task: str, items: Sequence[Item], single: bool) -> list[tuple[str, str]]:
    """The class of each item, and the one that it is given."""
    predictor = ZeroShotPredictor(clip, Catalog().task(task).prompts(single), _BATCH)
    predicted = predictor.predict(items, lambda count: None)
    return [(item.answer, str(row["prediction"])) for item, row in zip(items, predicted, strict=True)]


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None


def skill_text(found: dict[str, Any]) -> str:
    """The figures in a few lines, per cent."""
    lines = [
        f"zero-shot on {found['n']} test images of {found['task']}, 16 classes "
        f"(chance {100 * found['chance']:.1f}, the modality alone {100 * found['modality_alone']:.1f}):"
    ]
    for name, prompts in (("single", "one prompt a class"), ("ensemble", "ensemble of prompts")):
        of = found[name]
        by = ", ".join(f"{m} {100 * v:.1f}" for m, v in of["accuracy_by_modality"].items() if v is not None)
        lines.append(f"  {prompts} {100 * of['accuracy']:.1f} ({by}); the modality {100 * of['modality']:.1f}")
    by = ", ".join(f"{name.replace('_', ' ')} {100 * v:.1f}" for name, v in found["accuracy_by_scanner"].items())
    return "\n".join([*lines, f"  ensemble, changed scanners: {by}"])
