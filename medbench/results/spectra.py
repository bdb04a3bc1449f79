"""Singular values of single weights of a run's backbone, read from its files on this machine; nothing is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.backbones.registry import Backbone, get_backbone
from medbench.errors import RequestError, WorkError
from medbench.results.record import read_record
from medbench.results.route_summary import layer_name
from medbench.spec import load_spec

Array = NDArray[np.float64]
#: The matrices that stand for the others, where a run routes them.
_KINDS = ("q_proj", "qkv", "down_proj")


def chosen_layers(layers: Sequence[str]) -> list[str]:
    """Of two kinds of matrices (query and down projection, else the first and the last), first, middle and last layer.

    Layers of a vision tower are only taken where there are no others.
    """
    named = {layer: layer_name(layer) for layer in layers}
    language = [layer for layer, name in named.items() if not name.vision]
    kinds = list(dict.fromkeys(named[layer].kind for layer in language or layers))
    wanted = [kind for kind in _KINDS if kind in kinds] or kinds[:: max(1, len(kinds) - 1)]
    chosen = []
    for kind in wanted[:2]:
        same = [layer for layer in language or layers if named[layer].kind == kind]
        chosen += [same[i] for i in sorted({0, len(same) // 2, len(same) - 1})]
    return chosen


def backbone_folder(run: Path, folder: str | None = None) -> Path:
    """The folder with the weights that a run adapted.

    Args:
        run: its folder.
        folder: where they lie; needed for a backbone that was a local folder then, too.

    Raises:
        RequestError: they are not on this machine, or they are other weights.
    """
    spec = load_spec(run).backbone
    backbone = get_backbone(folder or spec.name)
    if not backbone.is_local:
        return _cached(backbone, read_record(run)["weights"].get("commit"))
    if spec.weights.startswith("sha256:") and backbone.identity() != spec.weights:
        raise RequestError(f"backbone {folder or spec.name} holds other weights than the run's ({spec.weights[:19]})")
    return backbone.folder()


def _cached(backbone: Backbone, commit: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    absent = f"the weights of backbone {backbone.name} are not on this machine"
    try:
        folder = Path(snapshot_download(backbone.source, revision=commit, local_files_only=True))
    except (LocalEntryNotFoundError, OSError) as error:
        raise RequestError(absent) from error
    if not list(folder.glob("*.safetensors")):  # only the configuration was fetched
        raise RequestError(absent)
    return folder


def read_spectra(folder: Path, layers: Sequence[str], values: dict[str, int]) -> dict[str, Array]:
    """Singular values of the weights of some layers, descending; one tensor is in memory at a time.

    Args:
        folder: of the backbone.
        layers: the modules' names.
        values: how many singular values each has.

    Raises:
        RequestError: a layer's weight is not found. WorkError: a file is damaged.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    spectra: dict[str, Array] = {}
    try:
        where: dict[str, Path] = {}
        for path in files:
            with safe_open(path, "pt") as file:
                where |= dict.fromkeys(file.keys(), path)
        for layer in layers:
            key = tensor_of(layer, list(where))
            if key is None:
                raise RequestError(f"{folder}: no weight of layer {layer}")
            with safe_open(where[key], "pt") as file:
                weight = file.get_tensor(key)
            if weight.ndim != 2 or min(weight.shape) != values[layer]:
                raise RequestError(f"{folder}: the weight of layer {layer} is {tuple(weight.shape)}, not the run's")
            spectra[layer] = torch.linalg.svdvals(weight.to(torch.float64)).numpy()
    except (SafetensorError, OSError) as error:
        raise WorkError(f"{folder}: not readable as safetensors ({error})") from error
    return spectra


def tensor_of(layer: str, keys: Sequence[str]) -> str | None:
    """The stored tensor of a module's weight: checkpoints and modules often differ in the first parts of the names.

    Example:
        >>> tensor_of("model.language_model.layers.0.mlp.up_proj", ["model.layers.0.mlp.up_proj.weight"])
        'model.layers.0.mlp.up_proj.weight'
    """
    parts = f"{layer}.weight".split(".")
    for start in range(len(parts) - 2):  # never by the last part alone
        tail = ".".join(parts[start:])
        found = [key for key in keys if key == tail or key.endswith(f".{tail}")]
        if found:
            return found[0] if len(found) == 1 else None
    return None
