"""What a table would cost (`reproduce --dry-run`): steps, parameters, operations, GPU hours, from the cards alone.

Nothing is read but cards and recipes, so the paper's own protocol is priced without its data or weights. All of it is
an estimate under assumptions that are printed beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medbench.backbones.registry import Backbone
from medbench.data.card import Card
from medbench.data.metadata import Split
from medbench.grid_fields import shown_point
from medbench.listing import text_table
from medbench.plan import table_for
from medbench.reproduce_plan import Reproduction, plans_of
from medbench.spec import DataSpec, RunSpec
from medbench.training.order import items_of_epoch, steps_of
from medbench.tuners import get_tuner

#: Tokens that an item is taken to have, image and answer included: nano, 7B, the patches of a ViT-B/16.
TOKENS = {"nano": 64, "vlm": 768, "clip": 197}
#: One A100 in bfloat16: peak operations a second (NVIDIA's data sheet), and the share that is taken to be reached.
PEAK, REACHED = 312e12, 0.4


@dataclass(frozen=True)
class Cost:
    """What a run costs.

    Attributes:
        point: its cell, in words.
        steps: optimiser steps of its stages; None where a set's size is not known.
        flops: of training and testing; a lower bound where `unknown` names sets.
        unknown: sets whose size neither card nor plan knows.
    """

    part: str
    point: str
    method: str
    seed: int
    backbone: str
    trainable: int
    steps: int | None
    items: int
    flops: float
    unknown: tuple[str, ...]


def costs(found: Reproduction) -> list[Cost]:
    """The cost of every run of a table, each once, as a whole: also of what is finished."""
    priced: dict[str, Cost] = {}
    points = {s.identity: cell.point for part in found.parts for cell in part.sweep.cells for s in cell.specs}
    for part, plan in plans_of(found):
        for spec in plan.specs:
            if spec.identity not in priced:
                about = (part.name, shown_point(points[spec.identity]), spec, plan.cards, plan.backbone)
                priced[spec.identity] = _cost(*about, found.plan.assumed_items)
    return list(priced.values())


def _cost(
    part: str, point: str, spec: RunSpec, cards: Mapping[str, Card], backbone: Backbone, assumed: Mapping[str, int]
) -> Cost:
    unknown: dict[str, None] = {}

    def count(data: DataSpec) -> int | None:
        known = _items(cards[data.task], data, assumed)
        if known is None:
            unknown[f"{data.task}/{data.split}"] = None
        return known

    steps: int | None = 0
    trained = 0.0
    for stage in spec.stages:
        sizes = [count(p.data) for p in stage.mixture]
        epoch = items_of_epoch([size or 0 for size in sizes], [p.weight for p in stage.mixture])
        own = None if None in sizes else steps_of(epoch, stage.training.epochs, stage.training.batch_size)
        steps = None if steps is None or own is None else steps + own
        trained += epoch * stage.training.epochs
    # A traced run answers all tests before training, and after each epoch or stage.
    points = 1 + sum(1 if spec.trace == "stage" else s.training.epochs for s in spec.stages) if spec.trace else 1
    tested = points * sum(count(test) or 0 for test in spec.tests)
    flops = _flops(spec, backbone, trained, tested)
    about = (spec.method.name, spec.seed, spec.backbone.name, spec.budget.trainable)
    return Cost(part, point, *about, steps, round(trained), flops, tuple(unknown))


def _items(card: Card, data: DataSpec, assumed: Mapping[str, int]) -> int | None:
    """The items of a split by its card, or as the plan assumes; what is limited has at most the limit."""
    splits: dict[str, Split] = {str(name): split for name, split in card.metadata.splits.items()}
    split = splits.get(data.split) or splits.get("train")
    whole: int | None = split.count if split is not None else None
    whole = assumed.get(data.task) if whole is None else whole
    if data.shots is not None:
        return data.shots * len(card.metadata.classes)
    if data.limit is not None:
        return data.limit if whole is None else min(data.limit, whole)
    return whole


def _flops(spec: RunSpec, backbone: Backbone, trained: float, tested: float) -> float:
    """Of a forward pass 2 operations a token and parameter, of a backward pass 4, or 2 where weights are frozen."""
    whole = table_for(backbone, str(spec.method.adapter.get("targets", backbone.default_targets))).total
    trains_base = spec.method.tuner != "adapter" and get_tuner(spec.method.tuner).trains_base
    return TOKENS[backbone.scale] * whole * (trained * (6 if trains_base else 4) + 2 * tested)


def hours(flops: float) -> float:
    """GPU hours on one A100 under the stated assumption.

    Example:
        >>> round(hours(312e12 * 0.4 * 3600), 6)
        1.0
    """
    return flops / (PEAK * REACHED * 3600)


def cost_json(found: Reproduction, finished: int | None) -> dict[str, Any]:
    """The dry run as one document; `finished` is None where identities are not known."""
    runs = costs(found)
    return {
        "table": found.table,
        "scale": found.scale,
        "finished": finished,
        "runs": [
            {
                **{key: getattr(run, key) for key in ("part", "point", "method", "seed", "backbone", "trainable")},
                **{"steps": run.steps, "train_items": run.items, "flops": run.flops, "gpu_hours": hours(run.flops)},
                "unknown_sets": list(run.unknown),
            }
            for run in runs
        ],
        "total": {
            "runs": len(runs),
            "flops": sum(r.flops for r in runs),
            "gpu_hours": sum(hours(r.flops) for r in runs),
        },
        "assumptions": assumptions(found, runs),
    }


def assumptions(found: Reproduction, runs: Sequence[Cost]) -> list[str]:
    """What the estimate rests on, in sentences."""
    scales = {plan.backbone.scale for _, plan in plans_of(found)}
    tokens = ", ".join(f"{TOKENS[scale]} tokens an item ({scale})" for scale in sorted(scales))
    lines = [
        f"An estimate: {tokens}, the image included; a forward pass 2 operations a token and parameter, a backward "
        f"pass 4, or 2 where the backbone is frozen; a GPU hour is an A100 in bfloat16 at {REACHED:.0%} of "
        f"{PEAK / 1e12:.0f} TFLOP/s."
    ]
    if found.plan.assumed_items:
        taken = ", ".join(f"{name} {count:,}" for name, count in found.plan.assumed_items.items())
        lines.append(f"Taken as the number of training items, since the cards do not pin it: {taken}.")
    unknown = dict.fromkeys(name for run in runs for name in run.unknown)
    if unknown:
        lines.append(f"Not counted, the number of items is not known: {', '.join(unknown)}; the cost is a lower bound.")
    return [*lines, *([found.plan.note] if found.plan.note else [])]


def cost_text(found: Reproduction, finished: int | None) -> str:
    """The dry run as a table, a row a cell (its seeds together), and the sum."""
    runs = costs(found)
    rows: dict[tuple[str, str], list[Cost]] = {}
    for run in runs:
        rows.setdefault((run.part, run.point), []).append(run)
    lines = [
        {
            "part": part,
            "cell": point,
            "backbone": own[0].backbone,
            "runs": len(own),
            "trainable": f"{own[0].trainable:,}",
            "steps a run": None if own[0].steps is None else f"{own[0].steps:,}",
            "PFLOP": f"{sum(run.flops for run in own) / 1e15:,.2f}",
            **({"GPU hours": f"{sum(hours(run.flops) for run in own):,.2f}"} if found.scale == "full" else {}),
        }
        for (part, point), own in rows.items()
    ]
    problems = [
        f"impossible: {shown_point(c.point)}: {c.problem}" for p in found.parts for c in p.sweep.cells if c.problem
    ]
    done = f", {finished} finished" if finished is not None else ""
    gpu = f", about {sum(hours(r.flops) for r in runs):,.1f} GPU hours" if found.scale == "full" else ""
    whole = f"{sum(r.flops for r in runs) / 1e15:,.1f} PFLOP"
    total = f"{found.table} at scale {found.scale}: {len(runs)} runs{done}; in all {whole}{gpu}."
    return "\n".join([text_table(lines), "", total, *problems, *assumptions(found, runs)])
