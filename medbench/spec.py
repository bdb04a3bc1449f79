"""RunSpec: what a run is. Frozen; the sha256 of its canonical JSON is the run's identity and its folder's name.

Everything that can change a figure is in it. Where and with what it is computed (device, threads, data root, output
folder) is not: that stands in the record. A field that is added later must be left out of the JSON at its default, so
that older runs keep their identity.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from medbench.errors import WorkError
from medbench.files import canonical_json, digest, read_json, write_text
from medbench.methods import Training

#: Raised whenever the meaning of a field, or the code behind a figure, changes: then old runs are not mistaken for new.
SPEC_VERSION = 1
_CONFIG = ConfigDict(extra="forbid")
#: Fields of `RunSpec` and of `DataSpec` that are younger than `SPEC_VERSION`, and their defaults in JSON.
_LATER = {"blind": None, "prompts": None, "trace": None}
_LATER_OF_DATA = {"shots": None}


@dataclass(frozen=True, config=_CONFIG)
class BackboneSpec:
    """The model that is adapted: its name, what pins its weights, and the processor settings laid over its own."""

    name: str
    weights: str
    kind: Literal["vlm", "clip"] = "vlm"
    processor: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_CONFIG)
class MethodSpec:
    """A resolved method: the tuner and its whole configuration, the rank included.

    `tuner` is a name of `medbench.tuners`, or `adapter` for one that was trained elsewhere (`run --adapter`), or
    `imported` for another system's answers (`medbench import`, then `name` is the model's); of these two, `weights` is
    the digest of the adapter or of the file of answers.
    """

    name: str
    tuner: str
    adapter: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None


@dataclass(frozen=True, config=_CONFIG)
class BudgetSpec:
    """The budget asked for, and what the method takes of it (`distance` relative; None: outside the budget)."""

    request: str
    trainable: int
    distance: float | None = None
    comparable: bool = False


@dataclass(frozen=True, config=_CONFIG)
class DataSpec:
    """A split of a task: which card (version and digest), which split, how many items at most.

    `digest` pins questions and answers where the card does not. `shots`: of each class this many items, drawn by the
    run's seed (classification, training only).
    """

    task: str
    split: Literal["train", "fit", "validation", "test"]
    version: int
    card: str
    digest: str | None = None
    limit: int | None = None
    shots: int | None = None


@dataclass(frozen=True, config=_CONFIG)
class Part:
    """A part of a stage's mixture: every item is seen `weight` times an epoch (a fraction: that share of the items)."""

    data: DataSpec
    weight: float = 1.0


@dataclass(frozen=True, config=_CONFIG)
class Stage:
    """One training stage: a mixture of tasks and its settings. Stages follow one another on one adapter."""

    mixture: tuple[Part, ...]
    training: Training


@dataclass(frozen=True, config=_CONFIG)
class Generation:
    """How answers are generated: greedily; `max_new_tokens` None is each card's own; `batch_size` questions at once.

    In float32 predictions do not depend on the batch size; in bf16 they can, so it is part of the identity.
    """

    batch_size: int = 32
    max_new_tokens: int | None = None


@dataclass(frozen=True, config=_CONFIG)
class RunSpec:
    """What a run is (see the module's docstring)."""

    backbone: BackboneSpec
    method: MethodSpec
    budget: BudgetSpec
    stages: tuple[Stage, ...]
    tests: tuple[DataSpec, ...]
    protocol: Literal["zero_shot", "in_domain", "unknown"]
    seed: int
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    generation: Generation = dataclasses.field(default_factory=Generation)
    on_bad_item: Literal["fail", "skip"] = "fail"
    version: int = SPEC_VERSION
    #: `train`: trained and tested on blank images; `test`: trained as usual, tested on blank images.
    blind: Literal["train", "test"] | None = None
    #: `single`: classes are named by one prompt each; None: by the card's ensemble (kind `clip` alone has prompts).
    prompts: Literal["single"] | None = None
    #: All `tests` are also answered before training and after every stage (`stage`), or at the end of every epoch too
    #: (`epoch`): see `medbench.trace`. The weights are those of the untraced run.
    trace: Literal["epoch", "stage"] | None = None

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values; fields younger than `SPEC_VERSION` are left out at their default."""
        content: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        data = [*content["tests"], *(part["data"] for stage in content["stages"] for part in stage["mixture"])]
        for part, later in [(content, _LATER), *((each, _LATER_OF_DATA) for each in data)]:
            for name, default in later.items():
                if part[name] == default:
                    del part[name]
        return content

    @property
    def identity(self) -> str:
        """sha256 of the canonical JSON: the run's identity and its folder's name."""
        return digest(self.to_json())

    @property
    def tasks(self) -> list[str]:
        """The tested tasks, in order."""
        return [test.task for test in self.tests]

    @property
    def trained_tasks(self) -> list[str]:
        """The tasks that any stage trains on, in order, once each."""
        return list(dict.fromkeys(part.data.task for stage in self.stages for part in stage.mixture))

    def save(self, folder: Path) -> None:
        """Writes `spec.json`: exactly the bytes whose sha256 is the identity."""
        write_text(folder / "spec.json", canonical_json(self.to_json()))


_ADAPTER = TypeAdapter(RunSpec)


def parse_spec(content: Any, where: str) -> RunSpec:
    """A spec from plain values; a `WorkError` names `where` and the first wrong field."""
    version = content.get("version") if isinstance(content, dict) else None
    if version != SPEC_VERSION:
        raise WorkError(f"{where}: spec version {version!r}, this medbench reads version {SPEC_VERSION}")
    try:
        return _ADAPTER.validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise WorkError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def load_spec(folder: Path) -> RunSpec:
    """Reads `spec.json` of a run folder."""
    path = folder / "spec.json"
    return parse_spec(read_json(path), str(path))
