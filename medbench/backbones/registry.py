"""Which backbones there are, and their adapted layers as a table: without torch.

A backbone is a name of this registry; a hub id or a local folder of any `AutoModelForImageTextToText` model (kind
`vlm`); or, of kind `clip`, `hf-hub:owner/name`, `local-dir:FOLDER` or a folder with `open_clip_config.json`,
`open_clip:MODEL/TAG`, or a YAML naming a vision and a text folder (`medbench.backbones.clip_sources`).

The shipped tables (`shapes/*.yaml`) hold (layer pattern, out, in, count), so that a budget is arithmetic (design
decision 4); for any other backbone the table is read off the model built on the meta device (`vlm`, `clip`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import yaml

from medbench.backbones.clip_sources import (
    OPEN_CLIP_CONFIG,
    PICKLED,
    PICKLED_WEIGHTS,
    dual_identity,
    fetch_text,
    folder_identity,
    open_clip_tag,
    read_dual,
)
from medbench.backbones.layers import Layers, LayerTable, Published
from medbench.backbones.targets import TARGETS as TARGETS
from medbench.backbones.targets import target_pattern as target_pattern
from medbench.errors import RequestError, did_you_mean
from medbench.hub import CLIP_FILES, CONFIG_FILES, MODEL_FILES, is_hub_id, snapshot
from medbench.methods import Scale

DEFAULT_BACKBONE = "nano-vl"
_FOLDER = Path(__file__).parent
#: Kinds of backbone that have a table but cannot be run, and why.
_NOT_RUN = {"lm": "a language model sees no images"}


@dataclass(frozen=True)
class Backbone:
    """A model that can be adapted.

    Attributes:
        name: as asked for.
        kind: `vlm` or `clip`; of `lm` there are tables only.
        source: hub id, folder, or the YAML file of a dual encoder.
        scale: which part of a method's recipe holds.
        default_rank: total rank of the default budget.
        tables: shipped layer tables by target group; empty when the model itself must be asked.
        pretrained_on: data sets (as cards name them) that it is known to be pretrained on.
        published: how papers count on it, if they do.
        tag: open_clip's MODEL/TAG, where that says what the model is; else None.
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
    tag: str | None = None

    @property
    def default_targets(self) -> str:
        """The target group that is meant where a method names none: the first of the shipped tables."""
        return next(iter(self.tables), "vision" if self.kind == "clip" else "language")

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
        """Whether the weights lie on this machine."""
        return Path(self.source).exists()

    def folder(self, weights: bool = True) -> Path:
        """The local folder of the model; from the hub if need be (then its name is the commit).

        Of a dual encoder it is the folder of its YAML.

        Args:
            weights: whether the weights are wanted, or only configuration and processor.

        Raises:
            RequestError: the hub cannot be reached or refuses.
        """
        if self.is_local:
            return Path(self.source) if Path(self.source).is_dir() else Path(self.source).parent
        if self.kind != "clip":
            return snapshot(self.source, "model", MODEL_FILES if weights else CONFIG_FILES)
        pickled = [PICKLED_WEIGHTS] if self.source in PICKLED else []
        found = snapshot(self.source, "model", [*CLIP_FILES, *pickled] if weights else CONFIG_FILES)
        if weights:
            fetch_text(found, self.tag)
        return found

    def identity(self) -> str:
        """What pins the weights: their sha256 where they are local, the hub id otherwise (the record keeps the commit).

        Raises:
            RequestError: a dual encoder has no projections.
        """
        if not self.is_local:
            return f"hub:{self.source}" + (f"#{self.tag}" if self.tag else "")
        path = Path(self.source)
        return folder_identity(path) if path.is_dir() else dual_identity(path)


def backbone_names() -> list[str]:
    """The names with a shipped table."""
    return sorted(path.stem for path in (_FOLDER / "shapes").glob("*.yaml"))


def get_backbone(name: str) -> Backbone:
    """A backbone by name, local folder, YAML file or hub id (see the top of this file).

    Raises:
        RequestError: none of these; with near matches.
    """
    if name in backbone_names():
        return _shipped(name)
    prefix, _, rest = name.partition(":")
    if prefix == "open_clip":
        tag, hub = open_clip_tag(rest)
        return _clip(name, hub, "an open_clip model", tag=tag)
    if prefix == "hf-hub":
        if not is_hub_id(rest):
            raise RequestError(f"backbone {name}: expected hf-hub:owner/name")
        return _clip(name, rest, "a hub model in open_clip's format")
    path = Path(rest if prefix == "local-dir" else name)
    if path.is_dir() or prefix == "local-dir":
        return _of_folder(path, prefix == "local-dir")
    if path.suffix in (".yaml", ".yml") and path.is_file():
        config = read_dual(path)
        title, source = config.name or path.stem, str(path.resolve())
        return _clip(title, source, "a dual encoder of two folders", "dual_encoder", config.pretrained_on)
    if is_hub_id(name):
        return Backbone(name, "vlm", name, "vlm", 32, None, "a hub model", {})
    raise RequestError(
        f"unknown backbone {name!r}; {did_you_mean(name, backbone_names())} "
        "(or a folder with config.json or open_clip_config.json, a YAML file of two folders, or a hub id owner/name, "
        "hf-hub:owner/name, open_clip:MODEL/TAG)"
    )


def _of_folder(path: Path, is_clip: bool) -> Backbone:
    # The folder's name, not its path: the weights' digest pins what it is, wherever it lies.
    source = str(path.resolve())
    if (path / OPEN_CLIP_CONFIG).exists():
        return _clip(Path(source).name, source, "a local folder")
    if is_clip:
        raise RequestError(f"backbone local-dir:{path}: no folder with {OPEN_CLIP_CONFIG}")
    if not (path / "config.json").exists():
        raise RequestError(
            f"backbone folder {path} has no config.json (a saved transformers model) and no {OPEN_CLIP_CONFIG}"
        )
    return Backbone(Path(source).name, "vlm", source, "vlm", 32, None, "a local folder", {})


def _clip(
    name: str,
    source: str,
    description: str,
    architecture: str = "open_clip",
    pretrained_on: tuple[str, ...] = (),
    tag: str | None = None,
) -> Backbone:
    return Backbone(name, "clip", source, "clip", 8, architecture, description, {}, pretrained_on, tag=tag)


def _shipped(name: str) -> Backbone:
    content = yaml.safe_load((_FOLDER / "shapes" / f"{name}.yaml").read_text(encoding="utf-8"))
    tables = {}
    for group, rows in content["targets"].items():
        layers = tuple(Layers(row["pattern"], row["out"], row["in"], row["count"]) for row in rows)
        tower = content["towers"][group]
        base = tower if content["kind"] == "clip" else None
        tables[group] = LayerTable(layers, content["total_parameters"], tower, base)
    source = content["source"].removeprefix("hf-hub:")
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


def shipped_table(backbone: Backbone, targets: str) -> LayerTable | None:
    """The shipped layer table of named target groups, or None when the model itself must be asked.

    Raises:
        RequestError: as `check_targets`.
    """
    parts = list(dict.fromkeys(targets.split("+")))
    tables = backbone.tables
    if not tables or not all(part in tables for part in parts):
        check_targets(backbone, targets)
        return None
    layers = tuple(layer for part in parts for layer in tables[part].layers)
    tower = sum(tables[part].tower or 0 for part in parts) or None
    return LayerTable(layers, tables[parts[0]].total, tower, tower if backbone.kind == "clip" else None)


def check_targets(backbone: Backbone, targets: str) -> None:
    """Refuses targets that a backbone without a language model cannot have, before it is built.

    Raises:
        RequestError: groups it does not have, or other than its tables' where it has tables only.
    """
    groups = backbone.tables or TARGETS.get(backbone.architecture or "", {})
    named = re.fullmatch(r"[a-z_+]+", targets) and not all(part in groups for part in targets.split("+"))
    if backbone.kind in _NOT_RUN or (backbone.kind == "clip" and named):
        raise RequestError(
            f"backbone {backbone.name} has no targets {targets!r}; it has {', '.join(groups)} "
            f"(a recipe names its own for such backbones: scales.{backbone.scale}.adapter.targets)"
        )
