"""Which backbones there are, and their adapted layers as a table: without torch.

A backbone is a name of this registry, a hub id or a local folder of any `AutoModelForImageTextToText` model. The
shipped tables (`shapes/*.yaml`) hold (layer pattern, out, in, count), so that a budget is arithmetic (design decision
4); for any other backbone the table is read off the model built on the meta device (`medbench.backbones.vlm`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from medbench.backbones.layers import Layers, LayerTable, Published
from medbench.errors import RequestError, did_you_mean
from medbench.files import digest, file_digest
from medbench.hub import CONFIG_FILES, MODEL_FILES, is_hub_id, snapshot
from medbench.methods import Scale

DEFAULT_BACKBONE = "nano-vl"
_FOLDER = Path(__file__).parent
_LINEARS = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_RESBLOCK = r"transformer\.resblocks\.\d+\.(attn\.(q|k|v|out)_proj|mlp\.c_(fc|proj))"
_BERT = r"(attention\.(self\.(query|key|value)|output\.dense)|(intermediate|output)\.dense)"

#: Kinds of backbone that have a table but cannot be run, and why.
_NOT_RUN = {
    "clip": "classification backbones are not run yet",
    "lm": "a language model sees no images",
}

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
    "llama": {
        "language": rf"model\.layers\.\d+\.{_LINEARS}",
    },
    # Both of open_clip's kinds of tower: its own, with nn.MultiheadAttention split in three; timm's and BERT.
    "open_clip": {
        "vision": rf"visual\.({_RESBLOCK}|trunk\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12]))",
        "text": rf"(text\.)?{_RESBLOCK}|text\.transformer\.encoder\.layer\.\d+\.{_BERT}",
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
        kind: `vlm`; of `clip` and `lm` there are tables only.
        source: hub id or folder that `from_pretrained` takes.
        scale: which part of a method's recipe holds.
        default_rank: total rank of the default budget.
        tables: shipped layer tables by target group; empty when the model itself must be asked.
        pretrained_on: data sets (as cards name them) that it is known to be pretrained on.
        published: how papers count on it, if they do.
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
    published: Published | None = None

    @property
    def default_targets(self) -> str:
        """The target group that is meant where a method names none: the first of the shipped tables."""
        return next(iter(self.tables), "language")

    def check_runnable(self) -> None:
        """Refuses what has a table only.

        Raises:
            RequestError: says why, and what there is.
        """
        if self.kind in _NOT_RUN:
            raise RequestError(
                f"backbone {self.name}: {_NOT_RUN[self.kind]}; it is here for `medbench budget --backbone {self.name}`"
            )

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
    tables = {}
    for group, rows in content["targets"].items():
        layers = tuple(Layers(row["pattern"], row["out"], row["in"], row["count"]) for row in rows)
        tables[group] = LayerTable(layers, content["total_parameters"], content["towers"][group])
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
        _published(content.get("published")),
    )


def _published(content: dict[str, Any] | None) -> Published | None:
    """The block `published` of a shape file; its ratios are whole numbers or fractions like 20/3."""
    if content is None:
        return None
    weights = content.get("weights")
    ratios = {"inputs": Fraction(content["inputs"]), "outputs": Fraction(content["outputs"])}
    return Published(**content | ratios | {"weights": None if weights is None else Fraction(weights)})


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
    """The shipped layer table of named target groups, or None when the model itself must be asked.

    Raises:
        RequestError: the backbone has tables only, and none of these targets.
    """
    parts = list(dict.fromkeys(targets.split("+")))
    tables = backbone.tables
    if not tables or not all(part in tables for part in parts):
        if backbone.kind in _NOT_RUN:
            raise RequestError(
                f"backbone {backbone.name} has no targets {targets!r}; it has {', '.join(tables)} "
                f"(a recipe names its own for such backbones: scales.{backbone.scale}.adapter.targets)"
            )
        return None
    layers = tuple(layer for part in parts for layer in tables[part].layers)
    tower = sum(tables[part].tower or 0 for part in parts) or None
    return LayerTable(layers, tables[parts[0]].total, tower)
