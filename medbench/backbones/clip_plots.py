"""`medbench nano plot --backbone nano-clip`: how it learned, as a picture and as the table behind it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from medbench.backbones.clip_pretrain import PARTS
from medbench.backbones.nano_clip import LOSSES
from medbench.errors import RequestError, WorkError
from medbench.files import write_atomic, write_text

#: Steps that a point of the picture is the mean of.
_EACH = 20


def read_losses(folder: Path) -> list[list[float]]:
    """The losses of each step, in the order of `PARTS`.

    Raises:
        RequestError: there is no table, or no step in it. WorkError: it is not what pretraining writes.
    """
    path = folder / LOSSES
    if not path.exists():
        raise RequestError(f"{folder}: no {LOSSES}; `medbench nano pretrain --backbone nano-clip` writes it")
    try:
        head, *rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
        if tuple(head) != ("step", *PARTS):
            raise ValueError(f"columns {', '.join(head)}")
        losses = [[float(value) for value in row[1:]] for row in rows]
        if any(len(step) != len(PARTS) for step in losses):
            raise ValueError("a row is too short")
    except ValueError as error:
        raise WorkError(f"{path}: not what `medbench nano pretrain` writes ({error})") from error
    if not losses:
        raise RequestError(f"{folder}: no step was taken yet; nothing to draw")
    return losses


def plot_clip(folders: Sequence[Path], out: Path) -> dict[str, float]:
    """Draws the losses of pretrained folders over the steps (`loss.png`), and copies the first one's (`loss.csv`).

    Returns:
        Part -> the first folder's mean over its last steps.
    """
    from matplotlib.figure import Figure

    found = [read_losses(folder) for folder in folders]
    means = [[_mean(losses[i : i + _EACH]) for i in range(0, len(losses), _EACH)] for losses in found]
    figure = Figure(figsize=(12, 2.8), layout="constrained")
    for index, (axis, part) in enumerate(zip(figure.subplots(1, len(PARTS)), PARTS, strict=True)):
        for folder, points in zip(folders, means, strict=True):
            axis.plot([_EACH * i for i in range(len(points))], [values[index] for values in points], label=folder.name)
        axis.set(xlabel="step", title=part, yscale="log")
    figure.axes[0].set_ylabel("loss")
    if len(folders) > 1:
        figure.axes[0].legend()
    write_atomic(out / "loss.png", lambda path: figure.savefig(path, format="png", dpi=110))
    write_text(out / "loss.csv", (folders[0] / LOSSES).read_text(encoding="utf-8"))
    return dict(zip(PARTS, means[0][-1], strict=True))


def _mean(losses: Sequence[Sequence[float]]) -> list[float]:
    return [sum(part) / len(losses) for part in zip(*losses, strict=True)]
