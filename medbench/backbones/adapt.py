"""Puts a method's adapter on a loaded backbone, saves it and loads it again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medbench.backbones.clip import Clip, save_clip
from medbench.backbones.registry import target_pattern
from medbench.backbones.vlm import Vlm
from medbench.errors import RequestError, WorkError
from medbench.files import read_json, write_json
from medbench.spec import MethodSpec, RunSpec
from medbench.tuners import get_tuner

if TYPE_CHECKING:
    import torch


def attach(loaded: Vlm | Clip, method: MethodSpec, seed: int) -> None:
    """Puts a new adapter on the backbone, or makes it trainable; draws come from torch's global generator.

    Of a classification backbone full fine-tuning trains the tower that is adapted, the visual one by default; the
    other tower and the temperature stay as they are.

    Raises:
        RequestError: a setting the tuner does not know, or that it refuses.
    """
    if method.tuner == "none":
        return
    if get_tuner(method.tuner).trains_base:
        targets = str(method.adapter.get("targets", "vision"))
        if method.tuner == "upcycle":
            from medbench.adapters.upcycle import upcycle

            settings = method.adapter
            pattern = target_pattern(loaded.architecture, targets)
            upcycle(loaded.model, pattern, settings["num_experts"], settings["top_k"])
        if isinstance(loaded, Clip):
            loaded.unfreeze(target_pattern(loaded.architecture, targets))
        else:
            loaded.model.requires_grad_(True)
        return
    from peft import get_peft_model

    config = adapter_config(method, loaded.architecture, seed)
    loaded.model = get_peft_model(loaded.model, config)


def penalty_of(loaded: Vlm | Clip, method: MethodSpec) -> Callable[[], torch.Tensor] | None:
    """What training adds to a method's loss after each forward pass (balance loss, regularisers), or None."""
    if method.tuner == "upcycle":
        log, coefficient = loaded.model.routing_log, method.adapter["balance_coefficient"]
        return lambda: coefficient * log.take_balance()
    return getattr(getattr(loaded.model, "base_model", None), "penalty", None)


def adapter_config(method: MethodSpec, architecture: str, seed: int) -> Any:
    """The peft configuration of a method's adapter settings."""
    settings = {name: value for name, value in method.adapter.items() if name != "package"}
    pattern = target_pattern(architecture, settings.pop("targets"))
    try:
        return get_tuner(method.tuner).peft_config(settings, pattern, seed)
    except (TypeError, ValueError) as error:
        raise RequestError(f"method {method.name}: {error}") from error


def save_adapted(loaded: Vlm | Clip, spec: RunSpec, folder: Path) -> None:
    """Saves what was trained: peft's safetensors for an adapter, the whole model where its weights are trained."""
    if spec.method.tuner == "upcycle":
        from medbench.adapters.upcycle import save_upcycled

        save_upcycled(loaded.model, folder)
    elif spec.method.tuner == "full" and isinstance(loaded, Clip):
        save_clip(loaded, folder)
    elif spec.method.tuner == "full":
        loaded.model.save_pretrained(folder)
    else:
        # The folder names the backbone, not a path of this machine.
        loaded.model.peft_config["default"].base_model_name_or_path = spec.backbone.name
        loaded.model.save_pretrained(folder, save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)
    # Tested with `--adapter`, an adapter that never saw an image says so in its name.
    method = spec.method.name + (" trained blind" if spec.blind == "train" else "")
    about = {"backbone": spec.backbone.name, "method": method, "trained_on": spec.trained_tasks}
    write_json(folder / "medbench.json", about)


def load_adapter(loaded: Vlm | Clip, folder: Path) -> None:
    """Puts a saved peft adapter on the backbone, strictly: a missing or unexpected key is an error.

    Raises:
        WorkError: no safetensors adapter, keys or shapes that do not fit.
    """
    import medbench.adapters

    loaded.model = medbench.adapters.load_adapter_strict(loaded.model, folder)
    loaded.model.requires_grad_(False).eval().to(loaded.device)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The `adapter_config.json` of a peft adapter folder.

    Raises:
        RequestError: there is none.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        raise RequestError(f"{folder}: not a peft adapter (no adapter_config.json)")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise WorkError(f"{path}: not readable as JSON ({error})") from error
    return content


@dataclass(frozen=True)
class Origin:
    """What `medbench.json` in an adapter folder says: None where nothing is known."""

    backbone: str | None = None
    method: str | None = None
    trained_on: tuple[str, ...] | None = None


def read_origin(folder: Path) -> Origin:
    """Where an adapter folder comes from; nothing is known of one that medbench did not write.

    Raises:
        WorkError: `medbench.json` is there and is not ours.
    """
    path = folder / "medbench.json"
    if not path.exists():
        return Origin()
    content = read_json(path)
    try:
        return Origin(str(content["backbone"]), str(content["method"]), tuple(map(str, content["trained_on"])))
    except (TypeError, KeyError) as error:
        raise WorkError(f"{path}: expected backbone, method and trained_on (a list of tasks)") from error


def stored_parameters(folder: Path) -> int:
    """The trained parameters in an adapter's safetensors, frozen factors not counted.

    Raises:
        RequestError: there is no such file. WorkError: it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise RequestError(f"{folder}: no adapter_model.safetensors; weights in other formats are not loaded")
    try:
        with safe_open(path, "numpy") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{path}: not readable as safetensors ({error})") from error
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(("expert_A0", "expert_B0")))


def trainable_parameters(loaded: Vlm | Clip) -> int:
    """How many parameters would be trained now."""
    return sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
