"""From a request to RunSpecs: names resolved, the budget turned into a rank, settings applied.

For the backbones of the registry this needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from medbench.backbones.layers import LayerTable
from medbench.backbones.registry import Backbone, get_backbone, shipped_table
from medbench.budget import Budget, allocate, parse_budget
from medbench.catalog import Catalog
from medbench.data.card import Card, validated
from medbench.data.load import OnBadItem, load_items, published_splits
from medbench.errors import RequestError, did_you_mean
from medbench.files import folder_digest
from medbench.hub import ADAPTER_FILES, is_hub_id, snapshot
from medbench.methods import Method, Recipe, Training, apply_settings, check_settings
from medbench.protocol import task_protocols
from medbench.scoring.kinds import get_family
from medbench.spec import (
    BackboneSpec,
    BudgetSpec,
    DataSpec,
    Generation,
    MethodSpec,
    Part,
    RunSpec,
    Stage,
)
from medbench.tuners import get_tuner

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Request:
    """What `medbench run` was asked for, names not yet looked up (see `medbench run --help` for each field)."""

    tasks: Sequence[str]
    methods: Sequence[str] = ("spectral_moe",)
    train_tasks: Sequence[Sequence[str]] = ()
    backbone: str = "nano-vl"
    budget: str | None = None
    seeds: Sequence[int] = (0,)
    split: Literal["test", "validation"] = "test"
    protocol: Literal["zero_shot", "in_domain"] | None = None
    limit: int | None = None
    train_limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    dtype: str = "auto"
    on_bad_item: OnBadItem = "fail"
    adapter: str | None = None
    data_root: Path | None = None
    blind: Literal["train", "test"] | None = None


@dataclass(frozen=True)
class Plan:
    """A resolved request: the runs, and what their names stand for."""

    specs: list[RunSpec]
    cards: dict[str, Card]
    backbone: Backbone
    adapter: Path | None = None


def resolve(request: Request, catalog: Catalog) -> Plan:
    """The runs of a request, one for each method and seed (`none` is the same for every seed and runs once).

    Raises:
        RequestError: an unknown name, an impossible budget, a task that cannot be trained on, a bad setting.
    """
    backbone = get_backbone(request.backbone)
    backbone.check_runnable()
    parse_budget(request.budget, backbone.default_rank)  # a bad one is refused whether a method uses it or not
    tested = _cards(request.tasks, catalog)
    if not tested:
        raise RequestError("no task given; use --tasks, for example --tasks vqa_rad,slake")
    for card in tested:
        get_family(card.metadata.kind)  # before anything is trained
    stages = [_cards(stage, catalog) for stage in request.train_tasks] or [tested]
    if not all(stages):
        raise RequestError("--train-tasks names no task; for example --train-tasks slake,vqa_rad")
    cards = _by_name([*tested, *(card for stage in stages for card in stage)])
    tests = tuple(_data(card, request.split, request.limit, request) for card in tested)
    if request.adapter is not None:
        adapter = adapter_folder(request.adapter)
        return Plan([_of_adapter(request, catalog, backbone, cards, tests, adapter)], cards, backbone, adapter)
    specs: dict[str, RunSpec] = {}
    methods = [catalog.method(name) for name in request.methods]
    if not methods:
        raise RequestError("no method given; use --method, for example --method spectral_moe,lora")
    check_settings(methods, request.settings)
    for method in methods:
        for seed in request.seeds if method.tuner != "none" else (0,):
            spec = _resolve_one(request, catalog, backbone, method, stages, tests, seed, cards)
            specs[spec.identity] = spec
    return Plan(list(specs.values()), cards, backbone)


def _cards(patterns: Sequence[str], catalog: Catalog) -> list[Card]:
    """The cards of names, wildcards and paths, each once, in order."""
    return list(_by_name([catalog.task(n) for pattern in patterns for n in catalog.task_names(pattern)]).values())


def _by_name(cards: Sequence[Card]) -> dict[str, Card]:
    found: dict[str, Card] = {}
    for card in cards:
        if found.setdefault(card.name, card).digest != card.digest:
            raise RequestError(f"two different cards are named {card.name}; rename one (file and field `task`)")
    return found


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
    generation, processor, mixture = _other_settings(rest, request, [card.name for stage in trained for card in stage])
    adapter, budget = _budgeted(request, catalog, backbone, method, recipe)
    stages: tuple[Stage, ...] = ()
    if method.tuner != "none":
        training = validated(Training, recipe.training, Path(f"method {method.name}"))
        stages = tuple(
            Stage(tuple(_part(card, mixture.get(card.name, 1.0), request) for card in stage), training)
            for stage in trained
        )
    spec = RunSpec(
        backbone=BackboneSpec(backbone.name, backbone.identity(), processor=processor),
        method=MethodSpec(method.name, method.tuner, adapter),
        budget=budget,
        stages=stages,
        tests=tests,
        protocol="zero_shot",
        seed=seed,
        dtype=_dtype(request.dtype, backbone),
        generation=generation,
        on_bad_item=request.on_bad_item,
        # Without training, blind training is blind testing: one run, not two that say the same.
        blind=request.blind if stages or request.blind is None else "test",
    )
    return _with_protocol(spec, backbone, request.protocol, cards)


def _with_protocol(spec: RunSpec, backbone: Backbone, asked: str | None, cards: Mapping[str, Card]) -> RunSpec:
    """Zero-shot is only what was not trained on (design decision 5): no publication of the same data set."""
    protocols = task_protocols(spec, cards, backbone.pretrained_on)
    seen = [task for task, protocol in protocols.items() if protocol == "in_domain"]
    unseen = [task for task in protocols if task not in seen]
    if asked == "zero_shot" and seen:
        by = "would be trained on" if spec.stages else f"is what backbone {backbone.name} was pretrained on"
        raise RequestError(f"protocol zero_shot: the data set of {', '.join(seen)} {by}")
    if asked == "in_domain" and spec.stages and unseen:
        raise RequestError(f"protocol in_domain: nothing of {', '.join(unseen)} would be trained on")
    return replace(spec, protocol="in_domain" if seen else "zero_shot")


def _budgeted(
    request: Request, catalog: Catalog, backbone: Backbone, method: Method, recipe: Recipe
) -> tuple[dict[str, Any], BudgetSpec]:
    tuner = get_tuner(method.tuner)
    targets = str(recipe.adapter.get("targets", "language"))
    table = table_for(backbone, targets)
    about = {"package": tuner.package} if tuner.package else {}
    if not tuner.ranked:
        whole = allocate(method, recipe, Budget("paper"), table, lambda name: (method, recipe, table))
        return recipe.adapter | about, BudgetSpec("", whole.trainable)
    budget = parse_budget(request.budget, backbone.default_rank)

    def reference(name: str) -> tuple[Method, Recipe, LayerTable]:
        found = catalog.method(name)
        own = found.at(backbone.scale)
        return found, own, table_for(backbone, str(own.adapter.get("targets", "language")))

    share = allocate(method, recipe, budget, table, reference)
    adapter = {**recipe.adapter, "targets": targets, "r": share.rank, **about}
    return adapter, BudgetSpec(budget.text(), share.trainable, share.distance, share.comparable)


def table_for(backbone: Backbone, targets: str) -> LayerTable:
    """The backbone's adapted linears; torch is imported only when no shipped table holds them."""
    table = shipped_table(backbone, targets)
    if table is None:
        from medbench.backbones.vlm import layer_table

        table = layer_table(backbone, targets)
    return table


def adapter_folder(name: str) -> Path:
    """The folder of an adapter: a peft folder, the run folder that holds one, or a hub id's snapshot."""
    folder = Path(name)
    if (folder / "adapter" / "adapter_config.json").exists():
        return folder / "adapter"
    if folder.is_dir():
        return folder
    if not is_hub_id(name):
        raise RequestError(f"--adapter {name}: neither a folder nor a hub id owner/name")
    return snapshot(name, "model", ADAPTER_FILES)


def _of_adapter(
    request: Request,
    catalog: Catalog,
    backbone: Backbone,
    cards: Mapping[str, Card],
    tests: tuple[DataSpec, ...],
    folder: Path,
) -> RunSpec:
    """The run of an adapter that was trained elsewhere."""
    from medbench.backbones.adapt import read_adapter_config, read_origin, stored_parameters

    config = read_adapter_config(folder)
    if request.blind == "train":
        raise RequestError("--blind train: --adapter tests an adapter as it is; nothing is trained; use --blind test")
    for key in request.settings:
        if key.partition(".")[0] in ("training", "adapter", "mixture"):
            raise RequestError(f"--set {key}: --adapter tests an adapter as it is; nothing is trained")
    generation, processor, _ = _other_settings(dict(request.settings), request, [])
    weights = folder_digest(folder, "adapter_*")
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "init_lora_weights")
    about = {key: config[key] for key in kept if key in config}
    own = read_origin(folder)
    if own.backbone not in (None, backbone.name):
        raise RequestError(f"--adapter {folder}: was trained on backbone {own.backbone}, not on {backbone.name}")
    trained = None
    if own.trained_on is not None:
        trained = set(backbone.pretrained_on).union(*(_datasets(name, catalog) for name in own.trained_on))
    tested: set[str] = set().union(*(cards[test.task].metadata.datasets for test in tests))
    return RunSpec(
        backbone=BackboneSpec(backbone.name, backbone.identity(), processor=processor),
        method=MethodSpec(f"adapter:{own.method or folder.resolve().name}", "adapter", about, weights),
        budget=BudgetSpec("", stored_parameters(folder)),
        stages=(),
        tests=tests,
        # What a foreign adapter was trained on is not known, so nothing may be called zero-shot.
        protocol="unknown" if trained is None else "in_domain" if tested & trained else "zero_shot",
        seed=0,
        dtype=_dtype(request.dtype, backbone),
        generation=generation,
        on_bad_item=request.on_bad_item,
        blind=request.blind,
    )


def _datasets(task: str, catalog: Catalog) -> frozenset[str]:
    """The data sets of a task that an adapter names; the name itself when the catalogue does not have it."""
    return catalog.task(task).metadata.datasets if task in catalog.paths("tasks") else frozenset({task})


def _data(card: Card, split: Any, limit: int | None, request: Request) -> DataSpec:
    if split not in published_splits(card):
        if split in ("train", "fit"):
            raise RequestError(f"task {card.name} has no training split; name other tasks with --train-tasks")
        if card.task is None:
            raise RequestError(f"task {card.name} can only be trained on; name it with --train-tasks")
        raise RequestError(f"task {card.name} has no split {split!r}; it has {', '.join(published_splits(card))}")
    source = split if split in card.metadata.splits else "train"
    pinned = card.metadata.splits[source].digest  # type: ignore[index]
    found = None
    if pinned is None:
        found = load_items(card, split, request.data_root, "skip").digest
    return DataSpec(card.name, split, card.metadata.version, card.digest, found, limit)


def _part(card: Card, weight: float, request: Request) -> Part:
    # A learning rate that is judged on validation must not have seen it.
    split = "train" if request.split == "test" or "train" not in card.metadata.splits else "fit"
    return Part(_data(card, split, request.train_limit, request), weight)


def _other_settings(
    rest: dict[str, Any], request: Request, tasks: Sequence[str]
) -> tuple[Generation, dict[str, int], dict[str, float]]:
    """What `--set` may name beside the adapter and the training: generation, processor, mixture weights."""
    max_new_tokens: int | None = None
    processor: dict[str, int] = {}
    mixture: dict[str, float] = {}
    for key, value in rest.items():
        part, _, name = key.partition(".")
        if key == "generation.max_new_tokens" and isinstance(value, int) and value > 0:
            max_new_tokens = value
        elif part == "processor" and name in ("min_pixels", "max_pixels") and _pixels(value):
            processor[name] = int(value)
        elif part == "mixture" and name in tasks and _is_number(value) and 0.01 <= value <= 1000:
            mixture[name] = float(value)
        else:
            known = ["adapter.FIELD", *(f"training.{f}" for f in Training.model_fields)]
            known += ["generation.max_new_tokens", "processor.max_pixels", "processor.min_pixels"]
            known += [f"mixture.{name}" for name in tasks]
            raise RequestError(f"--set {key}={value}: not a setting with such a value; {did_you_mean(key, known)}")
    if request.batch_size < 1:
        raise RequestError(f"--batch-size {request.batch_size}: must be at least 1")
    return Generation(request.batch_size, max_new_tokens), processor, mixture


def _pixels(value: Any) -> bool:
    return _is_number(value) and 28 * 28 <= value <= 2**26


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dtype(asked: str, backbone: Backbone) -> Dtype:
    """`auto` is float32 for the nano backbones (their grids move between machines), else bfloat16 where CUDA has it."""
    if asked in ("float32", "bfloat16", "float16"):
        return asked  # type: ignore[return-value]
    if asked != "auto":
        raise RequestError(f"--dtype {asked!r}; known: auto, float32, bfloat16, float16")
    if backbone.scale == "nano":
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
