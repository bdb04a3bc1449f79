"""Writes the backbone that `medbench align` makes: its YAML, its projections, and what they were trained on."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from medbench.backbones.registry import get_backbone
from medbench.data.card import Card
from medbench.data.check import Checked, check_images
from medbench.data.load import load_items
from medbench.data.sampling import limited
from medbench.data.seen import write_seen
from medbench.errors import RequestError, WorkError
from medbench.files import write_json, write_text
from medbench.progress import progress_bar


def align_backbone(
    path: Path,
    cards: Sequence[Card],
    out: Path,
    steps: int,
    lr: float,
    train_limit: int | None,
    seed: int,
    device: str,
    data_root: Path | None,
) -> dict[str, Any]:
    """Aligns a dual encoder and writes `backbone.yaml`, `projections.safetensors` and `align.json` into a folder.

    The hashes of the images that it has seen lie beside them (`medbench.data.seen`).

    Args:
        path: YAML of the two towers; its projections need not be there.
        cards: classification tasks with a training split.
        out: the folder; the YAML is written last.
        steps: see `medbench.training.align.align`.
        lr: likewise.
        train_limit: images a task; None for all.
        seed: of the projections' start and of the batches.
        device: as torch names it, or auto.
        data_root: where the data lies.

    Returns:
        What `align.json` says.

    Raises:
        RequestError: no dual encoder, a task that is no classification or has no training split, or `out` is the
            folder of the given YAML.
        WorkError: a file cannot be read or written, or the loss is not finite.
    """
    from medbench.backbones.clip import new_dual
    from medbench.backbones.clip_sources import read_dual
    from medbench.backbones.dual import save_projections
    from medbench.training.align import AlignTask, align
    from medbench.workplace import choose_device, quiet

    quiet()
    for card in cards:
        if card.metadata.kind != "classification":
            raise RequestError(f"task {card.name} is of kind {card.metadata.kind}; align trains on classification")
        if "train" not in card.metadata.splits:
            raise RequestError(f"task {card.name} has no training split")
    if (out / "backbone.yaml").resolve() == path.resolve():
        raise RequestError(f"--out {out} would overwrite {path}; name another folder")
    config, clip = read_dual(path), new_dual(get_backbone(str(path)), seed, choose_device(device))
    checked: list[Checked] = []
    for card in cards:
        items = limited(load_items(card, "train", data_root).items, train_limit, "train")
        with progress_bar(f"images of {card.name}") as look:
            checked.append(check_images(card.name, items, "fail", look, fingerprints=True))
    tasks = [
        AlignTask(card.name, found.items, prompts)
        for card, found in zip(cards, checked, strict=True)
        if (prompts := card.prompts(single=False))
    ]
    with progress_bar("align") as step:
        said = align(clip, tasks, steps, lr, seed, lambda _, done, total: step(done, total))
    seen = sorted(set(config.pretrained_on).union(*(card.metadata.datasets for card in cards)))
    about: dict[str, Any] = {
        "tasks": said,
        "cards": {card.name: card.digest for card in cards},
        "settings": {"steps": steps, "lr": lr, "seed": seed, "train_limit": train_limit},
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"{out}: {error.strerror or error}") from error
    save_projections(clip.base, out / "projections.safetensors")
    write_json(out / "align.json", about)
    write_seen(out, checked)
    fields = config.model_dump(mode="json", exclude_defaults=True) | {
        "projections": "projections.safetensors",
        "pretrained_on": seen,
    }
    for tower in ("vision", "text"):
        # Relative, so that folders that are moved together stay together.
        fields[tower] = os.path.relpath(fields[tower], out.resolve())
    fields["name"] = config.name or path.stem
    write_text(out / "backbone.yaml", yaml.safe_dump(fields, sort_keys=False))
    return about
