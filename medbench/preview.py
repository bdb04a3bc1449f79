"""What a run would do, before it does it: rank, parameters, steps, items, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medbench.backbones.registry import Backbone
from medbench.data.load import load_items
from medbench.listing import text_table
from medbench.plan import Plan, table_for
from medbench.plan_data import chosen
from medbench.run import check_adapter
from medbench.spec import DataSpec, RunSpec
from medbench.training.order import steps_of
from medbench.tuners import get_tuner

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
#: Tokens an item is taken to have, image included, for the estimate of memory: a nano question, a 7B question, the
#: patches of a ViT-B/16.
_TOKENS = {"nano": 64, "vlm": 768, "clip": 197}
#: Bytes kept for the backward pass, as a multiple of the adapted layers' inputs and outputs (norms, attention, MLP).
_ACTIVATIONS = 2.0


def preview(spec: RunSpec, plan: Plan, data_root: Path | None) -> dict[str, Any]:
    """The plan of a run; reads the questions (for exact counts), but no image and no weights.

    Raises:
        RequestError: the data is not there, or the tuner refuses its settings.
    """
    check_adapter(spec, plan.backbone)

    def count(data: DataSpec) -> int:
        card = plan.cards[data.task]
        return len(chosen(card, data, load_items(card, data.split, data_root, spec.on_bad_item).items, spec.seed))

    stages = []
    for stage in spec.stages:
        sizes = {part.data.task: count(part.data) for part in stage.mixture}
        epoch = sum(round(sizes[part.data.task] * part.weight) for part in stage.mixture)
        training = stage.training
        steps = steps_of(epoch, training.epochs, training.batch_size)
        stages.append({"train_items": sizes, "steps": steps, "lr": training.lr, "batch_size": training.batch_size})
    return {
        "run": spec.identity,
        "method": spec.method.name,
        "seed": spec.seed,
        "backbone": spec.backbone.name,
        "protocol": spec.protocol,
        "blind": spec.blind,
        "rank": spec.method.adapter.get("r"),
        "trainable_parameters": spec.budget.trainable,
        "budget": spec.budget.request or None,
        "budget_distance": spec.budget.distance,
        "stages": stages,
        "test_items": {test.task: count(test) for test in spec.tests},
        "memory_estimate_bytes": memory_estimate(spec, plan.backbone),
    }


def memory_estimate(spec: RunSpec, backbone: Backbone) -> int:
    """Bytes of weights, gradients, AdamW's two moments and activations of one forward and backward. An estimate."""
    table = table_for(backbone, str(spec.method.adapter.get("targets", backbone.default_targets)))
    unit = _BYTES[spec.dtype]
    trainable = spec.budget.trainable
    tuner = get_tuner(spec.method.tuner) if spec.method.tuner != "adapter" else None
    whole = tuner is not None and tuner.trains_base
    frozen = table.total - table.trained_base if whole else table.total
    weights = unit * frozen + 4 * trainable
    if not spec.stages:
        return weights
    training = spec.stages[0].training
    wide = sum(layer.count * (layer.inp + layer.out) for layer in table.layers)
    if training.gradient_checkpointing:
        wide = wide // max(layer.count for layer in table.layers)
    tokens = training.micro_batch_size * _TOKENS[backbone.scale]
    return int(weights + 12 * trainable + _ACTIVATIONS * unit * tokens * wide)


def preview_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The plans as a table."""
    blind = any(row["blind"] for row in rows)
    return text_table(
        [
            {
                "method": row["method"],
                "seed": row["seed"],
                **({"blind": row["blind"]} if blind else {}),
                "rank": row["rank"],
                "trainable": row["trainable_parameters"],
                "of budget": None if row["budget_distance"] is None else f"{100 * row['budget_distance']:+.1f} %",
                "steps": [stage["steps"] for stage in row["stages"]],
                "train items": [f"{k} {v:,}" for s in row["stages"] for k, v in s["train_items"].items()],
                "test items": [f"{k} {v:,}" for k, v in row["test_items"].items()],
                "memory (estimate)": f"{row['memory_estimate_bytes'] / 2**30:.2f} GiB",
                "run": row["run"][:12],
            }
            for row in rows
        ]
    )
