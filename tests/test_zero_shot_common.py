"""Coloured pictures to classify, and runs on small dual encoders (no tests in here)."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from test_clip_common import KINDS, build, loaded
from test_run_common import jobs_of

from medbench.backbones.clip import Clip
from medbench.backbones.registry import get_backbone
from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.data.item import Item
from medbench.data.load import load_items
from medbench.plan import Request
from medbench.run import run_all

SHADES = {"benign": (180, 60, 60), "malignant": (60, 180, 60), "normal": (60, 60, 180)}
COUNTS = {"train": 24, "val": 9, "test": 15}
SETTINGS = {
    "training.batch_size": 8,
    "training.micro_batch_size": 8,
    "training.lr": 0.01,
    "training.epochs": 3,
    "adapter.num_experts": 4,
}


def draw_set(root: Path, name: str, seed: int = 0, counts: Mapping[str, int] = COUNTS, **changes: Any) -> Path:
    """Writes a set of noisy one-coloured pictures below a data root, and its card; returns the card's path."""
    draws = np.random.default_rng(seed)
    rows = []
    for split, count in counts.items():
        for number in range(count):
            label = list(SHADES)[number % len(SHADES)]
            pixels = np.array(SHADES[label]) + draws.normal(0, 25, (36, 30, 3))
            path = root / name / "images" / f"{split}-{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
            rows.append({"file": f"images/{path.name}", "class": label, "split": split})
    with (root / name / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file", "class", "split"])
        writer.writeheader()
        writer.writerows(rows)
    meta = {
        **{"version": 1, "kind": "classification", "dataset": name, "description": "d", "folder": name},
        "layouts": {"labels_csv": {"file": "labels.csv", "columns": {"label": "class"}}},
        "splits": {{"val": "validation"}.get(split, split): {"count": count} for split, count in counts.items()},
        "classes": {
            "benign": ["a benign tumour", "benign"],
            "malignant": ["a malignant tumour"],
            "normal": ["a normal"],
        },
        "templates": ["a photo of {}", "ultrasound of {}"],
        **{"licence": "none", "access": "open", "obtain": "draw it", "citation": "none"},
        "confidence": {"level": "none"},
    }
    card = root / "cards" / f"{name}.yaml"
    card.parent.mkdir(exist_ok=True)
    card.write_text(yaml.safe_dump({"name": name, "metadata": meta | changes}, sort_keys=False))
    return card


def card_at(path: Path) -> Card:
    return Catalog().task(str(path))


def items_of(path: Path, split: str = "test") -> list[Item]:
    return list(load_items(card_at(path), split, path.parent.parent).items)


def asked(card: Path, backbone: Path | str, method: str, **more: Any) -> Request:
    settings = SETTINGS if method == "spectral_moe" else {k: v for k, v in SETTINGS.items() if "adapter" not in k}
    fields = {"tasks": [str(card)], "budget": "rank=8", "data_root": card.parent.parent, "batch_size": 4}
    settings = settings | more.pop("settings", {})
    return Request(methods=[method], backbone=str(backbone), settings=settings, **{**fields, **more})


def do(card: Path, backbone: Path | str, out: Path, method: str = "lora", **more: Any) -> Path:
    """Does one run and returns its folder."""
    (folder,) = run_all(jobs_of(asked(card, backbone, method, **more), out), lambda text: None)
    return folder


def written(base: Path) -> Path:
    """A folder with a small backbone of each kind."""
    for kind in KINDS:
        build(kind, base / kind)
    return base


def clip_of(folders: Path, kind: str) -> Clip:
    return loaded(get_backbone(str(folders / kind / "mine.yaml" if kind == "dual" else folders / kind)))
