"""The run of an adapter that was trained elsewhere (`medbench run --adapter`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from medbench.backbones.registry import Backbone
from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.errors import RequestError
from medbench.files import folder_digest
from medbench.hub import ADAPTER_FILES, is_hub_id, snapshot
from medbench.plan_settings import dtype_of, other_settings
from medbench.request import Request
from medbench.spec import BackboneSpec, BudgetSpec, DataSpec, MethodSpec, RunSpec


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


def spec_of_adapter(
    request: Request,
    catalog: Catalog,
    backbone: Backbone,
    cards: Mapping[str, Card],
    tests: tuple[DataSpec, ...],
    folder: Path,
) -> RunSpec:
    """The run of an adapter that was trained elsewhere.

    Raises:
        RequestError: it is no adapter, or one of another backbone, or a setting would train it.
    """
    from medbench.backbones.adapt import read_adapter_config, read_origin, stored_parameters

    config = read_adapter_config(folder)
    if request.blind == "train":
        raise RequestError("--blind train: --adapter tests an adapter as it is; nothing is trained; use --blind test")
    for key in request.settings:
        if key.partition(".")[0] in ("training", "adapter", "mixture"):
            raise RequestError(f"--set {key}: --adapter tests an adapter as it is; nothing is trained")
    others = other_settings(request.settings, request, backbone, [])
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
        backbone=BackboneSpec(
            backbone.name, backbone.identity(), "clip" if backbone.kind == "clip" else "vlm", others.processor
        ),
        method=MethodSpec(f"adapter:{own.method or folder.resolve().name}", "adapter", about, weights),
        budget=BudgetSpec("", stored_parameters(folder)),
        stages=(),
        tests=tests,
        # What a foreign adapter was trained on is not known, so nothing may be called zero-shot.
        protocol="unknown" if trained is None else "in_domain" if tested & trained else "zero_shot",
        seed=0,
        dtype=dtype_of(request.dtype, backbone),
        generation=others.generation,
        on_bad_item=request.on_bad_item,
        blind=request.blind,
        prompts=others.prompts,
    )


def _datasets(task: str, catalog: Catalog) -> frozenset[str]:
    """The data sets of a task that an adapter names; the name itself when the catalogue does not have it."""
    return catalog.task(task).metadata.datasets if task in catalog.paths("tasks") else frozenset({task})
