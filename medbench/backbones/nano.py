"""`medbench nano`: pretrain `nano-vl`, say what it can do, draw how it learned and what its weights' spectra became."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from medbench.backbones.pretrain import Pretraining, Recipe, fresh_vlm
from medbench.backbones.registry import Backbone
from medbench.backbones.skill import skill
from medbench.backbones.vlm import load_vlm
from medbench.errors import RequestError, WorkError
from medbench.files import read_json, write_atomic, write_json
from medbench.progress import progress_bar
from medbench.results.environment import environment

CARD = "medbench.json"
LOSSES = "losses.json"
#: The three losses of a step, in order.
PARTS = ("captions", "answers", "grounding")
#: Held-out scenes that the card's figures are from.
SCENES = 400


def pretrain(
    base: Path, out: Path, recipe: Recipe, device: torch.device, minutes: float | None, save_steps: int
) -> dict[str, Any]:
    """Pretrains from random weights, or goes on where `out` stopped; then writes the backbone into `out`.

    Args:
        base: a folder with the architecture and the processor (its weights are not used).
        out: `state.safetensors` (to go on from) and the backbone: fp16 weights, processor, card, losses.
        recipe: what decides the weights.
        device: where to compute.
        minutes: stop after this long; the same command goes on later. None: until all steps are done.
        save_steps: how often the state is written.

    Returns:
        The card.

    Raises:
        RequestError: `base` is no backbone folder.
        WorkError: `out` holds the state of another recipe, or cannot be written; the loss is not finite.
    """
    if not (base / "config.json").exists():
        raise RequestError(f"--base {base}: no config.json; expected a backbone's folder")
    vlm = fresh_vlm(base, recipe.seed, device)
    work = Pretraining(vlm, recipe, out)
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    with progress_bar("pretrain") as advance:
        finished = work.run(until, save_steps, advance)
    found = skill(vlm, recipe.seed, SCENES, recipe.blind)
    model = vlm.model
    own = read_json(base / CARD) if (base / CARD).exists() else {}
    card = own | {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(vlm.processor.tokenizer),
        "pretrained": True,
        "data": "generated phantoms (medbench.phantom), scenes of the share `pretrain`; captions and questions",
        "images": work.done * recipe.images,
        "licence": "Apache-2.0",
        "recipe": asdict(recipe),
        "steps": work.done,
        "finished": finished,
        "seconds": round(work.seconds),
        "loss": dict(zip(PARTS, _means(work.losses[-50:]), strict=True)),
        "skill": found,
        "environment": environment(device),
    }
    publish(vlm, out)
    write_json(out / LOSSES, work.losses)
    write_json(out / CARD, card)
    return card


def publish(vlm: Any, out: Path) -> None:
    """Writes weights (fp16) and processor."""
    import copy

    try:
        copy.deepcopy(vlm.model).half().cpu().save_pretrained(out)
        vlm.processor.save_pretrained(out)
    except OSError as error:
        raise WorkError(f"cannot write {out}: {error.strerror or error}") from error


def folder_skill(folder: Path, device: torch.device, scenes: int, blind: bool) -> dict[str, Any]:
    """What the backbone in a folder can do (see `medbench.backbones.skill`), by default on the card's seed."""
    if not (folder / "config.json").exists():
        raise RequestError(f"{folder}: no config.json; expected a backbone's folder")
    card = read_json(folder / CARD) if (folder / CARD).exists() else {}
    backbone = Backbone(folder.name, "vlm", str(folder), "nano", 16, None, "a local folder", {})
    vlm = load_vlm(backbone, torch.float32, device, {})
    return skill(vlm, int(card.get("recipe", {}).get("seed", 0)), scenes, blind)


def plot_losses(folders: Sequence[Path], out: Path) -> None:
    """Draws the losses of pretrained folders over the steps, averaged over 20 steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for folder in folders:
        if not (folder / LOSSES).exists():
            raise RequestError(f"{folder}: no {LOSSES}; `medbench nano pretrain` writes it")
        losses = read_json(folder / LOSSES)
        means = [_means(losses[i : i + 20]) for i in range(0, len(losses), 20)]
        blind = read_json(folder / CARD)["recipe"]["blind"]
        for axis, part, values in zip(axes, PARTS, zip(*means, strict=True), strict=True):
            axis.plot([20 * i for i in range(len(means))], values, label="blank images" if blind else "images")
            axis.set(xlabel="step", title=part, yscale="log")
    axes[0].set_ylabel("cross-entropy")
    axes[0].legend()
    _save(figure, out)


def plot_spectra(trained: Path, fresh: Path, out: Path) -> dict[str, float]:
    """Draws singular values of some matrices of a pretrained backbone beside those of random ones.

    Returns:
        Matrix -> share of the squared spectrum that the first eighth of the singular values holds, trained; and the
        same of the random matrix under `NAME (random)`.
    """
    from matplotlib.figure import Figure
    from safetensors.torch import load_file

    loaded = load_file(trained / "model.safetensors"), load_file(fresh / "model.safetensors")
    names = [
        name
        for name in loaded[0]
        if name.endswith(("q_proj.weight", "v_proj.weight", "up_proj.weight", "qkv.weight", "down_proj.weight"))
        and (".layers.1." in name or ".blocks.1." in name)
    ][:6]
    figure = Figure(figsize=(9, 5), layout="constrained")
    found: dict[str, float] = {}
    for axes, name in zip(figure.subplots(2, 3).flat, names, strict=False):
        for weights, label in zip(loaded, ("pretrained", "random"), strict=True):
            values = torch.linalg.svdvals(weights[name].float())
            top = float((values[: len(values) // 8] ** 2).sum() / (values**2).sum())
            found[name if label == "pretrained" else f"{name} (random)"] = top
            axes.plot((values / values.norm() * len(values) ** 0.5).tolist(), label=label)
        axes.set_title(".".join(name.split(".")[-5:-1]), fontsize=8)
        axes.set_yscale("log")
    figure.axes[0].legend()
    figure.supxlabel("index of the singular value")
    figure.supylabel("singular value / root mean square")
    _save(figure, out)
    return found


def _means(losses: Sequence[Sequence[float]]) -> list[float]:
    return [sum(part) / len(losses) for part in zip(*losses, strict=True)]


def _save(figure: Any, out: Path) -> None:
    write_atomic(out, lambda path: figure.savefig(path, format=out.suffix[1:] or "png", dpi=110))


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
