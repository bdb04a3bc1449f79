"""`medbench align`: makes a classification backbone of a vision and a text folder that have no common space yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medbench.catalog import Catalog
from medbench.cli_options import DataRoot, Json, print_json, split_names
from medbench.errors import RequestError


def align(
    backbone: Annotated[Path, typer.Argument(help="A YAML naming a vision and a text folder (kind: clip).")],
    tasks: Annotated[str, typer.Option(help="Classification tasks whose training splits are trained on.")],
    out: Annotated[Path, typer.Option(help="Folder of the new backbone: backbone.yaml, projections.safetensors.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps; each sees 64 images of each task.")] = 500,
    lr: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 1e-3,
    train_limit: Annotated[int | None, typer.Option(min=1, help="Training images a task, drawn by hash.")] = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Train the projections of two frozen towers, so that images and prompts meet in one space.

    The new backbone knows which data sets its projections have seen: figures on them are never called zero-shot.
    Use it with `--backbone OUT/backbone.yaml`.
    """
    from medbench.listing import text_table
    from medbench.results.aligned import align_backbone

    catalog = Catalog()
    cards = [catalog.task(name) for pattern in split_names(tasks) for name in catalog.task_names(pattern)]
    if not cards:
        raise RequestError("--tasks names no task; for example --tasks btmri,medical_mnist")
    root = data_root or catalog.settings.data_root
    found = align_backbone(backbone, cards, out, steps, lr, train_limit, seed, device, root)
    if as_json:
        print_json(found)
        return
    print(text_table([{"task": name} | about for name, about in found["tasks"].items()]))
    print(f"\nBackbone {out / 'backbone.yaml'}")
