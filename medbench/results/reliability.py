"""The reliability of stored answers: confidence against accuracy, of one run, as numbers, text and picture."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from medbench.errors import RequestError
from medbench.results.record import read_record, read_scores
from medbench.results.route_plots import save
from medbench.results.writing import with_notes
from medbench.scoring.bootstrap import cluster_bootstrap
from medbench.scoring.calibration import reliability
from medbench.scoring.weighted import ece_statistic

_NEEDED = ["confidence", "argmax_right"]


def run_reliability(folder: Path, task: str) -> dict[str, Any]:
    """The calibration of a run on a task: `ece` with its interval, and the bins that it sums up.

    The confidence is the probability of the likeliest candidate answer; only closed questions whose gold answer is a
    candidate have one, the others are counted in `left_out`.

    Returns:
        {"run", "method", "seed", "task", "ece", "bins"}, bins as `medbench.scoring.calibration.Bin`.

    Raises:
        RequestError: the run was not tested on the task, or no item has probabilities.
    """
    record = read_record(folder)
    if task not in record["tasks"]:
        raise RequestError(f"{folder}: was not tested on {task}, but on {', '.join(record['tasks'])}")
    table = read_scores(folder, task)
    closed = table[table["type"] == "closed"]
    used = closed.dropna(subset=_NEEDED) if set(_NEEDED) <= set(closed) else closed[:0]
    if used.empty:
        raise RequestError(f"{folder}: no closed item of {task} has probabilities, so nothing is known of calibration")
    sure, right = used["confidence"], used["argmax_right"]
    ece = cluster_bootstrap(ece_statistic(sure, right), used["cluster"]).to_json()
    if len(closed) > len(used):
        ece["left_out"] = len(closed) - len(used)
    about = {key: record[key] for key in ("run", "method", "seed")}
    return about | {"task": task, "ece": ece, "bins": [asdict(b) for b in reliability(sure, right)]}


def reliability_text(found: dict[str, Any]) -> str:
    """The bins that hold items as a table, with the calibration error below it."""
    body = [
        [
            f"{100 * b['low']:.1f}-{100 * b['high']:.1f}",
            str(b["n"]),
            *(f"{100 * b[name]:.1f}" for name in ("confidence", "accuracy")),
            f"{100 * (b['accuracy'] - b['confidence']):+.1f}",
        ]
        for b in found["bins"]
        if b["n"]
    ]
    ece = found["ece"]
    interval = "" if ece["low"] is None else f" [{100 * ece['low']:.1f}, {100 * ece['high']:.1f}]"
    notes = [
        f"{found['method']}, seed {found['seed']}, on {found['task']}: ECE {100 * ece['value']:.1f}{interval} over "
        f"{ece['n']} items with candidates of {ece['clusters']} images (percent; biased upwards where bins hold few)."
    ]
    if "left_out" in ece:
        notes.append(f"Left out, because their gold answer is no candidate: {ece['left_out']}.")
    return with_notes(["confidence", "n", "mean confidence", "accuracy", "gap"], body, notes, "md")


def plot_reliability(found: dict[str, Any], out: Path) -> list[Path]:
    """Draws reliability-HASH-TASK.png and .svg: accuracy by confidence, and how many items are in each bin."""
    from matplotlib.figure import Figure

    held = [b for b in found["bins"] if b["n"]]
    width = found["bins"][0]["high"] - found["bins"][0]["low"]
    figure = Figure(figsize=(4.2, 4.6), layout="constrained")
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    top.plot([0, 1], [0, 1], color="#7F7F7F", linewidth=1, linestyle="--", label="calibrated")
    top.plot(
        [b["confidence"] for b in held],
        [b["accuracy"] for b in held],
        "o-",
        color="#0072B2",
        clip_on=False,
        label="measured",
    )
    top.set(ylabel="accuracy", ylim=(0, 1))
    top.set_title(f"{found['method']}, {found['task']}: ECE {100 * found['ece']['value']:.1f} %", fontsize=10)
    top.legend(frameon=False, fontsize=8)
    below.bar([b["low"] for b in held], [b["n"] for b in held], width=width, align="edge", color="#56B4E9")
    below.set(xlabel="confidence", ylabel="items", xlim=(0, 1))
    return save(figure, out, f"reliability-{found['run'][:12]}-{found['task']}")
