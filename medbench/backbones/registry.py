"""Which backbones there are, and their adapted layers as a table: without torch.

A backbone is a name of this registry, a hub id or a local folder of any `AutoModelForImageTextToText` model. The
shipped tables hold (layer pattern, out, in, count), so that a budget is arithmetic (design decision 4); for any
other backbone the table is read off the model built on the meta device (`medbench.backbones.vlm`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from medbench.backbones.layers import Layers, LayerTable
from medbench.errors import RequestError, did_you_mean
from medbench.files import digest, file_digest
from medbench.hub import CONFIG_FILES, MODEL_FILES, is_hub_id, snapshot
from medbench.methods import Scale

DEFAULT_BACKBONE = "nano-vl"
_FOLDER = Path(__file__).parent
_LINEARS = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"

#: Named target groups: architecture -> group -> regex over module names, as peft matches it (full match). A
#: hybrid of both towers is written "language+vision". `default` serves architectures that are not listed.
TARGETS: dict[str, dict[str, str]] = {
    "qwen2_5_vl": {
        "language": rf"model\.language_model\.layers\.\d+\.{_LINEARS}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
    },
    "qwen2_vl": {
        "language": rf"model\.language_model\.layers\.\d+\.{_LINEARS}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))",
    },
    "default": {
        "language": rf"model\.language_model\.(model\.)?layers\.\d+\.{_LINEARS}",
        "vision": r"model\.(vision_tower|vision_model)\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    },
}


@dataclass(frozen=True)
class Backbone:
    """A model that can be adapted.

    Attributes:
        name: as asked for.
        source: hub id or folder that `from_pretrained` takes.
        scale: which part of a method's recipe holds.
        default_rank: total rank of the default budget.
        tables: shipped layer tables by target group; empty when the model itself must be asked.
        pretrained_on: data sets (as cards name them) that it is known to be pretrained on.
    """

    name: str
    kind: str
    source: str
    scale: Scale
    default_rank: int
    architecture: str | None
    description: str
    tables: dict[str, LayerTable]
    pretrained_on: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether the weights lie in a folder of this machine."""
        return Path(self.source).is_dir()

    def folder(self, weights: bool = True) -> Path:
        """The local folder of the model; from the hub if need be (then its name is the commit).

        Args:
            weights: whether the weights are wanted, or only configuration and processor.

        Raises:
            RequestError: the hub cannot be reached or refuses.
        """
        if self.is_local:
            return Path(self.source)
        return snapshot(self.source, "model", MODEL_FILES if weights else CONFIG_FILES)

    def identity(self) -> str:
        """What pins the weights: their sha256 for a folder, the hub id otherwise (the record keeps the commit)."""
        if not self.is_local:
            return f"hub:{self.source}"
        found = sorted({path for name in MODEL_FILES for path in Path(self.source).glob(name)})
        found = [path for path in found if path.name != "medbench.json"]  # a card, not read by the model
        return f"sha256:{digest([[path.name, file_digest(path)] for path in found])}"


def backbone_names() -> list[str]:
    """The names with a shipped table."""
    return sorted(path.stem for path in (_FOLDER / "shapes").glob("*.yaml"))


def get_backbone(name: str) -> Backbone:
    """A backbone by name, local folder or hub id (`owner/name`).

    Raises:
        RequestError: none of these; with near matches.
    """
    if name in backbone_names():
        return _shipped(name)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").exists():
            raise RequestError(f"backbone folder {name} has no config.json; expected a saved transformers model")
        source = str(Path(name).resolve())
        # The folder's name, not its path: the weights' digest pins what it is, wherever it lies.
        return Backbone(Path(source).name, "vlm", source, "vlm", 32, None, "a local folder", {})
    if is_hub_id(name):
        return Backbone(name, "vlm", name, "vlm", 32, None, "a hub model", {})
    raise RequestError(
        f"unknown backbone {name!r}; {did_you_mean(name, backbone_names())} "
        "(or a folder with config.json, or a hub id owner/name)"
    )


def _shipped(name: str) -> Backbone:
    content = yaml.safe_load((_FOLDER / "shapes" / f"{name}.yaml").read_text(encoding="utf-8"))
    total = content["total_parameters"]
    tables = {
        group: LayerTable(tuple(Layers(r["pattern"], r["out"], r["in"], r["count"]) for r in rows), total)
        for group, rows in content["targets"].items()
    }
    source = content["source"]
    if source.startswith("packaged:"):
        source = str(_FOLDER / source.removeprefix("packaged:"))
    return Backbone(
        name,
        content["kind"],
        source,
        content["scale"],
        content["default_rank"],
        content["architecture"],
        content["description"],
        tables,
        tuple(content.get("pretrained_on", ())),
    )


def target_pattern(architecture: str | None, targets: str) -> str:
    """The regex over module names that a `targets` setting stands for.

    Args:
        architecture: the model's `model_type`.
        targets: `language`, `vision`, `language+vision`, or a regex of the user's own.
    """
    groups = TARGETS.get(architecture or "", TARGETS["default"])
    parts = targets.split("+")
    if all(part in groups for part in parts):
        return "|".join(f"({groups[part]})" for part in parts)
    if re.fullmatch(r"[a-z_+]+", targets) and "proj" not in targets:
        raise RequestError(f"unknown target group {targets!r}; {did_you_mean(targets, groups)}, or a regex")
    try:
        re.compile(targets)
    except re.error as error:
        raise RequestError(f"targets {targets!r} is not a regular expression: {error}") from error
    return targets


def shipped_table(backbone: Backbone, targets: str) -> LayerTable | None:
    """The shipped layer table of named target groups, or None when the model itself must be asked."""
    parts = list(dict.fromkeys(targets.split("+")))
    if not backbone.tables or not all(part in backbone.tables for part in parts):
        return None
    layers = tuple(layer for part in parts for layer in backbone.tables[part].layers)
    return LayerTable(layers, backbone.tables[parts[0]].total)
