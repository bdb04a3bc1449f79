"""Singular values of single weights of a run's backbone, read from its files on this machine; nothing is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.backbones.clip_sources import read_dual
from medbench.backbones.registry import Backbone, get_backbone
from medbench.errors import RequestError, WorkError
from medbench.results.record import read_record
from medbench.results.route_summary import layer_name
from medbench.spec import load_spec

Array = NDArray[np.float64]
#: The matrices that stand for the others, where a run routes them.
_KINDS = ("q_proj", "query", "qkv", "down_proj", "c_proj", "fc2")
#: Where a fused matrix of `nn.MultiheadAttention` holds the layers that it is split into.
_THIRDS = {"q_proj": 0, "k_proj": 1, "v_proj": 2}


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


def backbone_folders(run: Path, folder: str | None = None) -> dict[str, Path]:
    """The folders with the weights that a run adapted, by how the names of the layers in them begin.

    Args:
        run: its folder.
        folder: where they lie; needed for a backbone that was a local folder then, too.

    Raises:
        RequestError: they are not on this machine, or they are other weights.
    """
    spec = load_spec(run).backbone
    backbone = get_backbone(folder or spec.name)
    if not backbone.is_local:
        return {"": _cached(backbone, read_record(run)["weights"].get("commit"))}
    if spec.weights.startswith("sha256:") and backbone.identity() != spec.weights:
        raise RequestError(f"backbone {folder or spec.name} holds other weights than the run's ({spec.weights[:19]})")
    if backbone.architecture == "dual_encoder":
        towers = read_dual(Path(backbone.source))
        return {"visual.trunk.": Path(towers.vision), "text.transformer.": Path(towers.text)}
    return {"": backbone.folder()}


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


def read_spectra(folders: Mapping[str, Path], layers: Sequence[str], values: Mapping[str, int]) -> dict[str, Array]:
    """Singular values of the weights of some layers, descending; one tensor is in memory at a time.

    Args:
        folders: of `backbone_folders`.
        layers: the modules' names.
        values: how many singular values each has.

    Raises:
        RequestError: a layer's weight is not found. WorkError: a file is damaged.
    """
    from safetensors import SafetensorError

    spectra: dict[str, Array] = {}
    for start, folder in folders.items():
        try:
            spectra |= _of_folder(folder, start, [layer for layer in layers if layer.startswith(start)], values)
        except (SafetensorError, OSError) as error:
            raise WorkError(f"{folder}: not readable as safetensors ({error})") from error
    for layer in layers:
        if layer not in spectra:
            raise RequestError(f"{', '.join(map(str, folders.values()))}: no weight of layer {layer}")
    return {layer: spectra[layer] for layer in layers}


def _of_folder(folder: Path, start: str, layers: Sequence[str], values: Mapping[str, int]) -> dict[str, Array]:
    import torch
    from safetensors import safe_open

    where: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")) if layers else ():
        with safe_open(path, "pt") as file:
            where |= dict.fromkeys(file.keys(), path)
    spectra: dict[str, Array] = {}
    for layer in layers:
        name = layer.removeprefix(start)
        key, third = tensor_of(name, list(where)), None
        if key is None:
            key, third = fused_tensor_of(name, list(where)), _THIRDS.get(name.rpartition(".")[2])
        if key is None:
            raise RequestError(f"{folder}: no weight of layer {layer}")
        with safe_open(where[key], "pt") as file:
            weight = file.get_tensor(key)
        weight = weight if third is None else weight.chunk(3)[third]
        if weight.ndim != 2 or min(weight.shape) != values[layer]:
            raise RequestError(f"{folder}: the weight of layer {layer} is {tuple(weight.shape)}, not the run's")
        spectra[layer] = torch.linalg.svdvals(weight.to(torch.float64)).numpy()
    return spectra


def tensor_of(layer: str, keys: Sequence[str]) -> str | None:
    """The stored tensor of a module's weight: checkpoints and modules often differ in the first parts of the names.

    Example:
        >>> tensor_of("model.language_model.layers.0.mlp.up_proj", ["model.layers.0.mlp.up_proj.weight"])
        'model.layers.0.mlp.up_proj.weight'
    """
    return _ending_like(f"{layer}.weight", keys)


def fused_tensor_of(layer: str, keys: Sequence[str]) -> str | None:
    """The stored tensor that holds a layer of a split attention (`medbench.adapters.attention`) as one of its thirds.

    Example:
        >>> fused_tensor_of("visual.blocks.0.attn.q_proj", ["visual.blocks.0.attn.in_proj_weight"])
        'visual.blocks.0.attn.in_proj_weight'
    """
    attention, _, name = layer.rpartition(".")
    return _ending_like(f"{attention}.in_proj_weight", keys) if name in _THIRDS else None


def _ending_like(name: str, keys: Sequence[str]) -> str | None:
    """The key that is the name or, of those that end like it, shares the longest end; None: there is none, or several.

    Two parts alone (`q_proj.weight`) are no end to go by.
    """
    parts = name.split(".")
    for start in range(len(parts) - 2):
        tail = ".".join(parts[start:])
        found = [key for key in keys if key == tail] or [key for key in keys if key.endswith(f".{tail}")]
        if found:
            return found[0] if len(found) == 1 else None
    return None
