"""From a request to RunSpecs: names resolved, the budget turned into a rank, settings applied.

For the backbones of the registry this needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medbench.backbones.layers import LayerTable
from medbench.backbones.registry import Backbone, get_backbone, shipped_table
from medbench.budget import Budget, allocate, parse_budget
from medbench.catalog import Catalog
from medbench.data.card import Card, validated
from medbench.errors import RequestError
from medbench.methods import Method, Recipe, Training, apply_settings, check_settings
from medbench.plan_adapter import adapter_folder, spec_of_adapter
from medbench.plan_data import assignments, by_name, cards_of, check_kinds, data_of, part_of
from medbench.plan_settings import dtype_of, other_settings
from medbench.protocol import task_protocols
from medbench.request import Request as Request
from medbench.spec import BackboneSpec, BudgetSpec, DataSpec, MethodSpec, RunSpec, Stage
from medbench.tuners import get_tuner


@dataclass(frozen=True)
class Plan:
    """A resolved request: the runs, what their names stand for, and the protocol asked for."""

    specs: list[RunSpec]
    cards: dict[str, Card]
    backbone: Backbone
    adapter: Path | None = None
    protocol: str | None = None


def resolve(request: Request, catalog: Catalog) -> Plan:
    """The runs of a request, one for each method and seed (`none` is the same for every seed and runs once).

    Raises:
        RequestError: an unknown name, an impossible budget, a task that cannot be trained on, a bad setting.
    """
    backbone = get_backbone(request.backbone)
    backbone.check_runnable()
    parse_budget(request.budget, backbone.default_rank)  # a bad one is refused whether a method uses it or not
    tested = cards_of(request.tasks, catalog)
    if not tested:
        raise RequestError("no task given; use --tasks, for example --tasks vqa_rad,slake")
    asked = [cards_of(stage, catalog) for stage in request.train_tasks]
    if not all(asked):
        raise RequestError("--train-tasks names no task; for example --train-tasks slake,vqa_rad")
    if request.shots is not None and request.train_limit is not None:
        raise RequestError("--shots and --train-limit both say how much is trained on; give one of them")
    cards = by_name([*tested, *(card for stage in asked for card in stage)])
    check_kinds(backbone, tested, [card for stage in asked for card in stage])
    if request.trace is not None and (request.blind is not None or request.adapter is not None):
        raise RequestError("a traced run is trained and sighted: no --blind and no --adapter with it")
    if request.adapter is not None:
        adapter = adapter_folder(request.adapter)
        tests = tuple(data_of(card, request.split, request.limit, request.data_root) for card in tested)
        spec = spec_of_adapter(request, catalog, backbone, cards, tests, adapter)
        return Plan([spec], cards, backbone, adapter, request.protocol)
    specs: dict[str, RunSpec] = {}
    methods = [catalog.method(name) for name in request.methods]
    if not methods:
        raise RequestError("no method given; use --method, for example --method spectral_moe,lora")
    check_settings(methods, request.settings)
    for those, stages in assignments(tested, asked, request.protocol):
        tests = tuple(data_of(card, request.split, request.limit, request.data_root) for card in those)
        for method in methods:
            for seed in request.seeds if method.tuner != "none" else (0,):
                spec = _resolve_one(request, catalog, backbone, method, stages, tests, seed, cards)
                specs[spec.identity] = spec
    return Plan(list(specs.values()), cards, backbone, protocol=request.protocol)


def _resolve_one(
    request: Request,
    catalog: Catalog,
    backbone: Backbone,
    method: Method,
    trained: list[list[Card]],
    tests: tuple[DataSpec, ...],
    seed: int,
    cards: Mapping[str, Card],
) -> RunSpec:
    recipe, rest = apply_settings(method, backbone.scale, request.settings)
    others = other_settings(rest, request, backbone, [card.name for stage in trained for card in stage])
    adapter, budget = _budgeted(request, catalog, backbone, method, recipe)
    stages: tuple[Stage, ...] = ()
    if method.tuner != "none":
        training = validated(Training, recipe.training, Path(f"method {method.name}"))
        stages = tuple(
            Stage(tuple(part_of(card, others.mixture.get(card.name, 1.0), request) for card in stage), training)
            for stage in trained
        )
    spec = RunSpec(
        backbone=BackboneSpec(backbone.name, backbone.identity(), _kind(backbone), others.processor),
        method=MethodSpec(method.name, method.tuner, adapter),
        budget=budget,
        stages=stages,
        tests=tests,
        protocol="zero_shot",
        seed=seed,
        dtype=dtype_of(request.dtype, backbone),
        generation=others.generation,
        on_bad_item=request.on_bad_item,
        # Without training, blind training is blind testing: one run, not two that say the same.
        blind=request.blind if stages or request.blind is None else "test",
        prompts=others.prompts,
        trace=request.trace if stages else None,
    )
    return _with_protocol(spec, backbone, request.protocol, cards)


def _with_protocol(spec: RunSpec, backbone: Backbone, asked: str | None, cards: Mapping[str, Card]) -> RunSpec:
    """Zero-shot is only what was not trained on (design decision 5): no publication of the same data set."""
    protocols = task_protocols(spec, cards, backbone.pretrained_on)
    seen = [task for task, protocol in protocols.items() if protocol == "in_domain"]
    unseen = [task for task in protocols if task not in seen]
    if asked in ("zero_shot", "transfer") and seen:
        by = "would be trained on" if spec.stages else f"is what backbone {backbone.name} was pretrained on"
        raise RequestError(f"protocol {asked}: the data set of {', '.join(seen)} {by}")
    if asked == "in_domain" and spec.stages and unseen:
        raise RequestError(f"protocol in_domain: nothing of {', '.join(unseen)} would be trained on")
    return replace(spec, protocol="in_domain" if seen else "zero_shot")


def _budgeted(
    request: Request, catalog: Catalog, backbone: Backbone, method: Method, recipe: Recipe
) -> tuple[dict[str, Any], BudgetSpec]:
    tuner = get_tuner(method.tuner)
    targets = str(recipe.adapter.get("targets", backbone.default_targets))
    table = table_for(backbone, targets)
    about = {"package": tuner.package} if tuner.package else {}
    if not tuner.ranked:
        whole = allocate(method, recipe, Budget("paper"), table, lambda name: (method, recipe, table))
        return recipe.adapter | about, BudgetSpec("", whole.trainable)
    budget = parse_budget(request.budget, backbone.default_rank)

    def reference(name: str) -> tuple[Method, Recipe, LayerTable]:
        found = catalog.method(name)
        own = found.at(backbone.scale)
        return found, own, table_for(backbone, str(own.adapter.get("targets", backbone.default_targets)))

    share = allocate(method, recipe, budget, table, reference)
    adapter = {**recipe.adapter, "targets": targets, "r": share.rank, **about}
    return adapter, BudgetSpec(budget.text(), share.trainable, share.distance, share.comparable)


def table_for(backbone: Backbone, targets: str) -> LayerTable:
    """The backbone's adapted linears; torch is imported only when no shipped table holds them."""
    table = shipped_table(backbone, targets)
    if table is None and backbone.kind == "clip":
        from medbench.backbones.clip import clip_table

        return clip_table(backbone, targets)
    if table is None:
        from medbench.backbones.vlm import layer_table

        return layer_table(backbone, targets)
    return table


def _kind(backbone: Backbone) -> Literal["vlm", "clip"]:
    return "clip" if backbone.kind == "clip" else "vlm"
