"""Counts what the routers do while a run's questions are answered (see `medbench.results.routes`).

Only what the model is given counts, each prompt once: no padding, no generated token, and not the forwards that find
the likelihoods of candidate answers. The counting is one small matrix product a layer and prompt batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medbench.adapters.layer import ExpertLoraLayer
from medbench.adapters.log import RoutingLog, collected_use, uncollected
from medbench.adapters.spectrum import segment_starts
from medbench.backbones.vlm import Vlm
from medbench.data.item import Item
from medbench.inference.predict import Prediction, Predictor
from medbench.inference.zero_shot import ZeroShotPredictor
from medbench.results.routes import LayerUse, Routes, Segments, TaskUse, merge_parts, write_routes
from medbench.spec import DataSpec, MethodSpec

if TYPE_CHECKING:
    from medbench.backbones.clip import Clip


@dataclass(frozen=True)
class Router:
    """The routers of a loaded model.

    Attributes:
        log: what its layers write to.
        experts: N.
        kind: `topk`, `softmax` or `threshold`.
        top_k: k.
        segments: where the experts started, see `Routes`.
    """

    log: RoutingLog
    experts: int
    kind: str
    top_k: int
    segments: Segments | None = None

    def write(self, folder: Path, tests: Sequence[DataSpec], answers: Sequence[Sequence[Path]]) -> None:
        """Adds the counts of all chunks up and writes `routes.json`.

        Args:
            folder: of the run.
            tests: in the run's order.
            answers: for each of them, the files of its chunks' answers, in order.
        """
        tasks = {test.task: merge_parts(paths) for test, paths in zip(tests, answers, strict=True)}
        write_routes(folder, Routes(self.experts, self.kind, self.top_k, self.segments, tasks))


def router_of(vlm: Vlm | Clip, method: MethodSpec) -> Router | None:
    """The routers of a model that a run is tested with; None where it has none."""
    log = getattr(vlm.model, "routing_log", None)  # a `PeftModel` hands this on to its tuner
    if not isinstance(log, RoutingLog):
        return None
    if method.tuner == "upcycle":
        return Router(log, method.adapter["num_experts"], "topk", method.adapter["top_k"])
    (adapter_name,) = vlm.model.active_adapters
    config = vlm.model.peft_config[adapter_name]
    if getattr(config, "router", "none") == "none":
        return None
    segments = None
    if config.init != "zero":
        found = {m.name: m for m in vlm.model.modules() if isinstance(m, ExpertLoraLayer)}
        values = {name: min(m.in_features, m.out_features) for name, m in found.items()}
        rank = config.expert_rank
        starts = {
            h: tuple(segment_starts(config.init, h, config.num_experts, rank, config.seed))
            for h in sorted(set(values.values()))
        }
        segments = Segments(config.init, rank, values, starts)
    return Router(log, config.num_experts, config.router, config.top_k, segments)


class _Counting:
    """Counts while another class answers: comes first among the bases; `use` is what the last chunk's items used."""

    use: TaskUse

    def __init__(self, log: RoutingLog, split: str, *args: Any):
        """Args: what the model's routers write to; the split that is answered; as for the class that answers."""
        super().__init__(*args)
        self.log, self.split = log, split

    def predict(self, items: Sequence[Item], step: Callable[[int], None]) -> list[Prediction]:
        """As the class that answers."""
        with collected_use(self.log) as use:
            rows: list[Prediction] = super().predict(items, step)  # type: ignore[misc]
        layers = {layer: _plain(found.tokens, found.slots, found.mass) for (layer, _), found in use.items()}
        tokens = next(reversed(layers.values())).tokens if layers else 0
        self.use = TaskUse(self.split, len(items), tokens, layers)
        return rows


class RoutedPredictor(_Counting, Predictor):
    """A predictor that also counts the tokens of its prompts."""

    def loglikelihoods(self, *args: Any) -> list[list[float]]:
        """As `Predictor.loglikelihoods`."""
        with uncollected(self.log):  # they read the prompts again
            return super().loglikelihoods(*args)


class RoutedZeroShot(_Counting, ZeroShotPredictor):
    """A classifier that also counts the patches (and class tokens) of its images; prompts are embedded before."""


def _plain(tokens: torch.Tensor, slots: torch.Tensor, mass: torch.Tensor) -> LayerUse:
    return LayerUse(int(tokens), tuple(slots.tolist()), tuple(mass.tolist()))
