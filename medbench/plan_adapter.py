"""The run of an adapter that was trained elsewhere (`medbench run --adapter`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from medbench.backbones.registry import Backbone
from medbench.catalog import Catalog
from medbench.data.card import Card
from medbench.data.seen import SEEN, read_seen
from medbench.errors import RequestError
from medbench.files import folder_digest
from medbench.hub import ADAPTER_FILES, is_hub_id, snapshot
from medbench.plan_settings import dtype_of, other_settings
from medbench.request import Request
from medbench.spec import BackboneSpec, BudgetSpec, DataSpec, MethodSpec, RunSpec

Protocol = Literal["zero_shot", "in_domain", "unknown"]


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

    Its protocol is `unknown` where it is not known on which data sets, or on which images, it was trained.

    Raises:
        RequestError: it is no adapter, or one of another backbone, a setting would train it, or another protocol is
            asked for than it can have.
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
    protocol = _protocol(trained, [cards[test.task] for test in tests], folder)
    _refuse_protocol(request.protocol, protocol, folder)
    return RunSpec(
        backbone=BackboneSpec(
            backbone.name, backbone.identity(), "clip" if backbone.kind == "clip" else "vlm", others.processor
        ),
        method=MethodSpec(f"adapter:{own.method or folder.resolve().name}", "adapter", about, weights),
        budget=BudgetSpec("", stored_parameters(folder)),
        stages=(),
        tests=tests,
        protocol=protocol,
        seed=0,
        dtype=dtype_of(request.dtype, backbone),
        generation=others.generation,
        on_bad_item=request.on_bad_item,
        blind=request.blind,
        prompts=others.prompts,
    )


def _protocol(trained: set[str] | None, tested: Sequence[Card], folder: Path) -> Protocol:
    """By the names of data sets; the images are compared when they are read (`medbench.steps_data.check_data`)."""
    if trained is not None and any(card.metadata.datasets & trained for card in tested):
        return "in_domain"
    # What a foreign adapter was trained on is not known, so nothing may be called zero-shot.
    return "unknown" if trained is None or read_seen(folder) is None else "zero_shot"


def _refuse_protocol(asked: str | None, found: Protocol, folder: Path) -> None:
    if asked in (None, found):
        return
    why = {
        "in_domain": "the adapter was trained on a tested data set",
        "zero_shot": "the adapter was not trained on the tested data sets",
        "unknown": f"what the adapter was trained on is not known: {folder} has no medbench.json, or no {SEEN}",
    }
    reason = "it trains on the other tasks, and --adapter trains nothing" if asked == "transfer" else why[found]
    raise RequestError(f"protocol {asked}: {reason}; leave --protocol out")


def _datasets(task: str, catalog: Catalog) -> frozenset[str]:
    """The data sets of a task that an adapter names; the name itself when the catalogue does not have it."""
    return catalog.task(task).metadata.datasets if task in catalog.paths("tasks") else frozenset({task})
