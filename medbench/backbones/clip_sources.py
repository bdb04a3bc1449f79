"""Where a classification backbone comes from: open_clip's folders and tags, and a YAML naming two folders. No torch.

Weights are read as safetensors. open_clip itself falls back on pickles (`*.bin`, `*.pth`) where a folder holds nothing
else; here a folder is asked for `open_clip_model.safetensors` by name and refused without it, so that none is read.
One file is excepted, since its repository ships nothing else: BiomedCLIP's `open_clip_pytorch_model.bin`, which is
read with `torch.load(weights_only=True)` (tensors only, no code) when it comes from that repository of the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from medbench.data.card import validated
from medbench.errors import RequestError, WorkError, did_you_mean
from medbench.files import digest, file_digest, read_json
from medbench.hub import CONFIG_FILES, MODEL_FILES, is_hub_id, snapshot

OPEN_CLIP_CONFIG = "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")
PICKLED_WEIGHTS = "open_clip_pytorch_model.bin"
#: The repositories whose pickle is read, see above.
PICKLED = frozenset({"microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"})

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "tokenizer.model")


class Pooling(BaseModel):
    """How a tower's tokens become one vector."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    vision: Literal["cls", "mean"] = "cls"
    text: Literal["cls", "mean"] = "mean"


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Mean = tuple[_Finite, _Finite, _Finite]
_Std = tuple[_Positive, _Positive, _Positive]


class DualConfig(BaseModel):
    """A dual encoder of two folders in transformers' formats (a YAML file; its paths are relative to it).

    Attributes:
        vision: folder of the image tower.
        text: folder of the text tower and its tokenizer.
        projections: safetensors with `visual.proj.weight` [dim, width], `text.proj.weight` and `logit_scale`.
        dim: of the common space.
        image_size: side of the images in pixels; another than the tower was trained at is interpolated.
        pooling: of both towers.
        resize: `shortest` side and crop the centre, `longest` side and pad, or `squash`.
        context_length: tokens a text is cut or padded to.
        mean: of the pixels' normalisation; None: the vision folder's `preprocessor_config.json` says.
        std: likewise.
        pretrained_on: data sets (as cards name them) that towers or projections have seen.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["clip"]
    name: str | None = None
    vision: str
    text: str
    projections: str
    dim: Annotated[int, Field(gt=0)]
    image_size: Annotated[int, Field(gt=0)]
    pooling: Pooling = Pooling()
    resize: Literal["shortest", "longest", "squash"] = "shortest"
    context_length: Annotated[int, Field(gt=2)] = 77
    mean: _Mean | None = None
    std: _Std | None = None
    pretrained_on: tuple[str, ...] = ()


def read_dual(path: Path) -> DualConfig:
    """A dual encoder's YAML, its paths made absolute; the projections need not be there yet.

    Raises:
        RequestError: it is not readable, a field is wrong, or a folder is not there or no transformers model.
    """
    if not path.is_file():
        raise RequestError(f"backbone {path}: is no file; expected a YAML that names a vision and a text folder")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise RequestError(f"backbone {path}: not readable as YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(content, dict):
        raise RequestError(f"backbone {path}: expected a mapping with kind, vision, text, projections, dim, image_size")
    found = validated(DualConfig, content, path)
    where = {name: str((path.parent / getattr(found, name)).resolve()) for name in ("vision", "text", "projections")}
    for tower in ("vision", "text"):
        if not (Path(where[tower]) / "config.json").is_file():
            raise RequestError(
                f"backbone {path}: {tower}: {where[tower]} has no config.json; a saved transformers model"
            )
    mean: tuple[float, ...] | None = found.mean
    std: tuple[float, ...] | None = found.std
    if mean is None or std is None:
        own = Path(where["vision"]) / "preprocessor_config.json"
        if not own.is_file():
            raise RequestError(f"backbone {path}: give mean and std; {where['vision']} has no {own.name} that says")
        said = read_json(own)
        try:
            mean, std = mean or tuple(map(float, said["image_mean"])), std or tuple(map(float, said["image_std"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RequestError(f"{own}: expected image_mean and image_std; or give mean and std in {path}") from error
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise RequestError(f"{own}: expected three numbers each, image_std above 0; or give them in {path}")
    return found.model_copy(update={**where, "mean": mean, "std": std})


def dual_identity(path: Path) -> str:
    """What pins a dual encoder's weights: towers, tokenizer, projections and the YAML's own settings, not its paths.

    Raises:
        RequestError: as `read_dual`, or there are no projections yet.
    """
    config = read_dual(path)
    settings = config.model_dump(mode="json", exclude={"name", "vision", "text", "projections", "pretrained_on"})
    projections = file_digest(check_projections(config, path))
    towers = [_files(Path(config.vision)), _files(Path(config.text))]
    return f"sha256:{digest([settings, projections, *towers])}"


def check_projections(config: DualConfig, path: Path) -> Path:
    """The file of a dual encoder's projections.

    Raises:
        RequestError: there is none; says how to make it.
    """
    if not Path(config.projections).is_file():
        raise RequestError(
            f"backbone {path}: no projections at {config.projections}; `medbench align` trains them with frozen towers"
        )
    return Path(config.projections)


def folder_identity(folder: Path) -> str:
    """The sha256 of a folder's weights, configuration and tokenizer; of a text configuration elsewhere, too."""
    found = _files(folder)
    if (folder / OPEN_CLIP_CONFIG).is_file():
        name = read_config(folder)[0]["text_cfg"].get("hf_model_name")
        outside = None if name is None else local_text(folder, str(name))
        if outside is not None and outside.resolve() != folder.resolve():
            found.append(["hf_model_name", file_digest(outside / "config.json")])
    return f"sha256:{digest(found)}"


def _files(folder: Path) -> list[list[str]]:
    paths = sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})
    # medbench.json is a card, not read by the model.
    return [[path.name, file_digest(path)] for path in paths if path.name != "medbench.json"]


def read_config(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The `model_cfg` and `preprocess_cfg` of an open_clip folder.

    Raises:
        RequestError: there is no such file, or it says neither. WorkError: it is damaged.
    """
    path = folder / OPEN_CLIP_CONFIG
    if not path.is_file():
        raise RequestError(f"{folder} has no {OPEN_CLIP_CONFIG}; expected a folder in open_clip's format")
    content = read_json(path)
    model = content.get("model_cfg") if isinstance(content, dict) else None
    parts = ("vision_cfg", "text_cfg")
    if not isinstance(model, dict) or not all(isinstance(model.get(part), dict) for part in parts):
        raise RequestError(f"{path}: expected model_cfg with embed_dim, vision_cfg and text_cfg")
    preprocess = content.get("preprocess_cfg") or {}
    if not isinstance(preprocess, dict):
        raise RequestError(f"{path}: preprocess_cfg should be a mapping")
    return model, preprocess


def local_text(folder: Path, name: str) -> Path | None:
    """The folder that `hf_model_name` means: relative to the model's folder, or absolute; None: not a folder."""
    place = folder / name  # an absolute name stays what it is
    return place if (place / "config.json").is_file() else None


def text_folder(folder: Path, name: str) -> Path:
    """The folder with the configuration of a transformers text tower, from the hub if need be.

    Raises:
        RequestError: neither a folder nor a hub id, or the hub cannot be reached.
    """
    found = local_text(folder, name)
    if found is not None:
        return found
    return snapshot(_hub_id(name, "hf_model_name"), "model", CONFIG_FILES)


def tokenizer_folder(folder: Path, name: str) -> Path:
    """The folder of a transformers tokenizer: the model's own where it holds one, else the hub's `name`.

    Raises:
        RequestError: as `text_folder`.
    """
    if any((folder / file).is_file() for file in _TOKENIZER_FILES):
        return folder
    files = [pattern for pattern in MODEL_FILES if not pattern.endswith(".safetensors")]
    return snapshot(_hub_id(name, "hf_tokenizer_name"), "model", files)


def _hub_id(name: str, field: str) -> str:
    # The hub's oldest models (roberta-base) have no owner.
    if is_hub_id(name) or is_hub_id(f"owner/{name}"):
        return name
    raise RequestError(f"{OPEN_CLIP_CONFIG}: {field}: {name} is neither a folder with config.json nor a hub id")


def weights_file(folder: Path, pickled: bool = False) -> Path:
    """The weights of an open_clip folder.

    Args:
        folder: with the weights.
        pickled: whether `open_clip_pytorch_model.bin` may be taken where there are no safetensors.

    Raises:
        RequestError: there are none, or only pickled ones.
    """
    for name in OPEN_CLIP_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    if pickled and (folder / PICKLED_WEIGHTS).is_file():
        return folder / PICKLED_WEIGHTS
    others = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.npz") for path in folder.glob(pattern))
    if others:
        raise RequestError(
            f"{folder} holds no {OPEN_CLIP_WEIGHTS[0]}: only {', '.join(others)}; pickled weights are not loaded, save "
            f"their state dict (torch.load with weights_only=True) by safetensors.torch.save_file under that name"
        )
    raise RequestError(f"{folder} holds no {OPEN_CLIP_WEIGHTS[0]} (weights in other formats are not loaded)")


def open_clip_tag(name: str) -> tuple[str, str]:
    """Checks `MODEL/TAG` against open_clip's lists (imports it).

    Returns:
        The name, and the hub repository of the weights.

    Raises:
        RequestError: no such pair, with near matches; or one whose weights are not on the hub.
    """
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    known = [f"{model}/{tag}" for model, tag in open_clip.list_pretrained()]
    if name not in known:
        model, _, tag = name.partition("/")
        own = [pair for pair in known if pair.startswith(f"{model}/")]
        hint = did_you_mean(name, own or known)
        if not own and hint.startswith("known"):
            hint = "open_clip.list_pretrained() lists models and tags"
        raise RequestError(f"open_clip:{name}: open_clip has no such MODEL/TAG; {hint}")
    model, _, tag = name.partition("/")
    about = get_pretrained_cfg(model, tag)
    quick = bool(open_clip.get_model_config(model).get("quick_gelu", False))
    if bool(about.get("quick_gelu", False)) != quick:
        other = f"{model}-quickgelu/{tag}"
        right = f"use open_clip:{other}" if other in known else "open_clip has no model that fits them"
        raise RequestError(f"open_clip:{name}: these weights were trained with another activation (GELU); {right}")
    hub = str(about.get("hf_hub", ""))
    if not hub:
        raise RequestError(f"open_clip:{name}: its weights are no safetensors on the hub, and pickles are not loaded")
    return name, "/".join(hub.split("/")[:2])


def open_clip_config(folder: Path, tag: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """`model_cfg` and `preprocess_cfg`: open_clip's own for MODEL/TAG, else the folder's.

    Raises:
        RequestError, WorkError: as `read_config`.
    """
    if tag is None:
        return read_config(folder)
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    model, _, name = tag.partition("/")
    found = open_clip.get_model_config(model)
    if found is None:
        raise WorkError(f"open_clip:{tag}: open_clip has no configuration of {model}")
    return found, get_pretrained_cfg(model, name)


def fetch_text(folder: Path, tag: str | None) -> None:
    """Fetches what a text tower of transformers needs beside the folder: configuration and tokenizer.

    Raises:
        RequestError: as `text_folder`.
    """
    text = open_clip_config(folder, tag)[0]["text_cfg"]
    if text.get("hf_model_name"):
        text_folder(folder, str(text["hf_model_name"]))
    if text.get("hf_tokenizer_name"):
        tokenizer_folder(folder, str(text["hf_tokenizer_name"]))
