"""`medbench nano plot`: how the small backbone learned, and what became of its weights' spectra."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from medbench.backbones.nano import BACKBONE, CARD, LOSSES
from medbench.errors import RequestError, WorkError
from medbench.files import read_json, write_atomic

#: The three losses of a step, in order.
PARTS = ("captions", "answers", "grounding")


def plot_losses(folders: Sequence[Path], out: Path) -> None:
    """Draws the losses of pretrained folders over the steps, averaged over 20 steps; stages are set apart."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for folder in folders:
        if not (folder / LOSSES).exists():
            raise RequestError(f"{folder}: no {LOSSES}; `medbench nano pretrain` writes it")
        try:
            losses = [[float(part) for part in step] for stage in read_json(folder / LOSSES) for step in stage]
            stages = [
                {key: stage[key] for key in ("done", "blind")}
                for stage in read_json(folder / BACKBONE / CARD)["stages"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise WorkError(f"{folder}: {LOSSES} or the card is not what `medbench nano pretrain` writes") from error
        if not losses or any(len(step) != len(PARTS) for step in losses):
            raise RequestError(f"{folder}: no step was taken yet; nothing to draw")
        means = [_means(losses[i : i + 20]) for i in range(0, len(losses), 20)]
        label = "blank images" if stages[-1]["blind"] else "images"
        for axis, part, values in zip(axes, PARTS, zip(*means, strict=True), strict=True):
            axis.plot([20 * i for i in range(len(means))], values, label=label)
            axis.set(xlabel="step", title=part, yscale="log")
            for end in list(accumulate(stage["done"] for stage in stages))[:-1]:
                axis.axvline(end, color="grey", linewidth=0.5)
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

    loaded = _weights(trained), _weights(fresh)
    if {name: w.shape for name, w in loaded[0].items()} != {name: w.shape for name, w in loaded[1].items()}:
        raise RequestError(f"--fresh {fresh}: has not the shapes of {trained}")
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


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    if not path.exists():
        raise RequestError(f"{path} is missing; expected a backbone's folder")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"{path}: not readable as safetensors ({error})") from error


def _means(losses: Sequence[Sequence[float]]) -> list[float]:
    return [sum(part) / len(losses) for part in zip(*losses, strict=True)]


def _save(figure: Any, out: Path) -> None:
    write_atomic(out, lambda path: figure.savefig(path, format=out.suffix[1:] or "png", dpi=110))
