"""`medbench nano pretrain` and `skill`: train the small backbone in stages, publish it with its card, let it speak."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from medbench.backbones.pretrain import Pretraining, Recipe, fresh_vlm
from medbench.backbones.registry import Backbone
from medbench.backbones.resumable import STATE, read_state
from medbench.backbones.skill import skill
from medbench.backbones.vlm import Vlm, load_vlm
from medbench.errors import RequestError, WorkError
from medbench.files import digest, file_digest, publish_folder, read_json, run_lock, write_json
from medbench.phantom.draws import Draws
from medbench.phantom.pretraining import exchanges, pretraining_scene
from medbench.progress import progress_bar
from medbench.results.environment import environment

CARD = "medbench.json"
LOSSES = "losses.json"
BACKBONE = "backbone"


def pretrain(
    base: Path,
    out: Path,
    recipe: Recipe,
    device: torch.device,
    start: Path | None = None,
    minutes: float | None = None,
    save_steps: int = 50,
    scenes: int = 400,
) -> dict[str, Any]:
    """Does a stage of pretraining, or goes on where `out` stopped; then writes the backbone.

    Args:
        base: a folder with the architecture and the processor (its weights are not used).
        out: `state.safetensors` (to go on from), `losses.json` and `backbone/`: fp16 weights, processor, card.
        recipe: what decides the weights; `first` and `start` are filled in from `start`.
        device: where to compute.
        start: the `out` of an earlier stage to start from; None: random weights.
        minutes: stop after this long; the same command goes on later. None: until all steps are done.
        save_steps: how often the state is written.
        scenes: held-out ones that the card's figures are from, described by the weights as they were saved.

    Returns:
        The card.

    Raises:
        RequestError: `base` is no backbone folder, `start` holds no finished stage.
        WorkError: `out` holds the state of another recipe, or cannot be written; the loss is not finite.
    """
    if not (base / "config.json").exists():
        raise RequestError(f"--base {base}: no config.json; expected a backbone's folder")
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out}: is a file; expected a folder, or nothing yet")
    vlm = fresh_vlm(base, recipe.seed, device)
    with run_lock(out, "pretraining"):
        return _pretrain(vlm, base, out, recipe, device, start, minutes, save_steps, scenes)


def _pretrain(
    vlm: Vlm,
    base: Path,
    out: Path,
    recipe: Recipe,
    device: torch.device,
    start: Path | None,
    minutes: float | None,
    save_steps: int,
    scenes: int,
) -> dict[str, Any]:
    history: list[dict[str, Any]] = []
    if start is not None:
        weights = start / BACKBONE / "model.safetensors"
        if not (start / STATE).exists() or not weights.exists():
            raise RequestError(f"--start {start}: no {STATE} and {BACKBONE}; expected the --out of a finished stage")
        about, _ = read_state(start / STATE)
        if about["done"] < about["recipe"]["steps"]:
            raise RequestError(f"--start {start}: {about['done']} of {about['recipe']['steps']} steps done; finish it")
        history = [*about["history"], {key: about[key] for key in ("recipe", "done", "losses", "seconds")}]
        seen = about["recipe"]["first"] + about["done"] * about["recipe"]["images"]
        recipe = replace(recipe, first=seen, start=file_digest(weights))
    pins = digest([[name, file_digest(base / name)] for name in ("config.json", "tokenizer.json")])
    work = Pretraining(vlm, recipe, out, pins, history, start and start / STATE)
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    with progress_bar("pretrain") as advance:
        finished = work.run(lambda: time.monotonic() >= until, save_steps, advance)
    stages = [*history, {"recipe": asdict(recipe), "done": work.done, "losses": work.losses, "seconds": work.seconds}]
    own = read_json(base / CARD) if (base / CARD).exists() else {}
    card = own | {
        "pretrained": True,
        "data": "generated phantoms (medbench.phantom), scenes of the share `pretrain`; captions and questions",
        "licence": "Apache-2.0",
        "steps": sum(stage["done"] for stage in stages),
        "images": sum(stage["done"] * stage["recipe"]["images"] for stage in stages),
        "seconds": round(sum(stage["seconds"] for stage in stages)),
        "finished": finished,
        "stages": [stage["recipe"] | {"done": stage["done"]} for stage in stages],
        "environment": environment(device),
    }
    write_json(out / LOSSES, [stage["losses"] for stage in stages])
    restore_unseen(vlm, fresh_vlm(base, recipe.seed, device), stages)
    _publish(vlm, out, card, device, scenes)
    published: dict[str, Any] = read_json(out / BACKBONE / CARD)
    return published


@torch.no_grad()
def restore_unseen(vlm: Vlm, fresh: Vlm, stages: Sequence[dict[str, Any]]) -> int:
    """Puts the embeddings of tokens that no stage has met back to where they began.

    The softmax pushes what never comes away from everything that does, all in one direction; an adapter on frozen
    embeddings then has to learn every word of a real data set against it. Returns how many were put back.
    """
    texts: set[str] = set()
    for stage in stages:
        recipe = Recipe(**stage["recipe"])
        for number in range(recipe.first, recipe.first + stage["done"] * recipe.images):
            scene = pretraining_scene(recipe.seed, number)
            for exchange in exchanges(scene, Draws(f"{scene.digest}:exchanges"), recipe.exchanges):
                texts |= {vlm.chat(exchange.prompt), exchange.answer}
    met = {token for text in texts for token in vlm.completion_ids(text)} | set(vlm.processor.tokenizer.all_special_ids)
    unseen = [token for token in range(len(vlm.processor.tokenizer)) if token not in met]
    vlm.base.get_input_embeddings().weight[unseen] = fresh.base.get_input_embeddings().weight[unseen]
    return len(unseen)


def _publish(vlm: Vlm, out: Path, card: dict[str, Any], device: torch.device, scenes: int) -> None:
    """Writes weights (fp16), processor and card; the folder appears whole, with the skill of what it holds."""
    temporary = out / f"{BACKBONE}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        half = vlm.model.half()
        if not all(p.isfinite().all() for p in half.parameters()):
            raise WorkError("pretraining: a weight does not fit into fp16; try a lower --lr")
        half.save_pretrained(temporary)
        vlm.processor.save_pretrained(temporary)
        found = folder_skill(temporary, device, scenes, card["stages"][-1]["blind"], card["stages"][-1]["seed"])
        write_json(temporary / CARD, card | {"skill": found})
        publish_folder(temporary, out / BACKBONE)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"cannot write {out / BACKBONE}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def folder_skill(folder: Path, device: torch.device, scenes: int, blind: bool, seed: int = 0) -> dict[str, Any]:
    """What the backbone in a folder can do (see `medbench.backbones.skill`)."""
    if not (folder / "config.json").exists():
        raise RequestError(f"{folder}: no config.json; expected a backbone's folder")
    backbone = Backbone(folder.name, "vlm", str(folder), "nano", 16, None, "a local folder", {})
    return skill(load_vlm(backbone, torch.float32, device, {}), seed, scenes, blind)


def card_text(card: dict[str, Any]) -> str:
    """The card in a few lines."""
    captions, shuffled = card["skill"]["captions"], card["skill"]["shuffled"]
    lines = [
        f"{card['steps']:,} steps, {card['images']:,} images, {card['seconds'] / 60:.0f} minutes"
        + ("" if card["finished"] else " (not finished: the same command goes on)"),
        f"captions of {card['skill']['scenes']} held-out scenes (in brackets: captions of others of the modality):",
        *(f"  {name} {100 * value:.1f} ({100 * shuffled[name]:.1f})" for name, value in captions.items()),
        f"yes/no balanced accuracy {100 * card['skill']['yes_no']['balanced_accuracy']:.1f}",
    ]
    return "\n".join(lines)
