"""What the routers of a run did: `routes.json`, beside the predictions; read and written without torch.

Predict counts, for every routed layer and task, how many tokens went to each expert (`medbench.routes`). Each chunk
of questions leaves its counts beside its answers, and they are added up in the order of the chunks, so that a run
that was killed, or done by several processes, ends with the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from medbench.errors import RequestError, WorkError
from medbench.files import read_json, write_json, write_text
from medbench.results.record import is_finished, read_record
from medbench.spec import load_spec

ROUTES = "routes.json"
ROUTES_VERSION = 1
_CONFIG = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_CONFIG)
class LayerUse:
    """How the tokens of one layer used its N experts.

    Attributes:
        tokens: how many tokens were counted.
        slots: [N], to how many of them each expert was routed.
        mass: [N], the sum of its gates over them.
    """

    tokens: int
    slots: tuple[int, ...]
    mass: tuple[float, ...]

    def __add__(self, other: LayerUse) -> LayerUse:
        """Both together."""
        slots = tuple(a + b for a, b in zip(self.slots, other.slots, strict=True))
        mass = tuple(a + b for a, b in zip(self.mass, other.mass, strict=True))
        return LayerUse(self.tokens + other.tokens, slots, mass)


@dataclass(frozen=True, config=_CONFIG)
class TaskUse:
    """How the questions of a task, or of a chunk of it, used the experts.

    Attributes:
        split: of the task.
        questions: how many were asked.
        tokens: of their prompts, image tokens included: what the last layer saw.
        layers: by the layers' names, in the order in which they run. A layer of a vision tower counts the patches of
            each image once (or once a question, where the model takes no precomputed features).
    """

    split: str
    questions: int
    tokens: int
    layers: dict[str, LayerUse]

    def __add__(self, other: TaskUse) -> TaskUse:
        """Both together."""
        if self.split != other.split or list(self.layers) != list(other.layers):
            raise ValueError("not of one task and model")
        layers = {name: use + other.layers[name] for name, use in self.layers.items()}
        return TaskUse(self.split, self.questions + other.questions, self.tokens + other.tokens, layers)


@dataclass(frozen=True, config=_CONFIG)
class Segments:
    """Which singular triplets the experts started from.

    Attributes:
        init: the choice of segments.
        rank: triplets of one expert.
        values: how many singular values the weight of each layer has.
        starts: for each such number, the first triplet of every expert.
    """

    init: str
    rank: int
    values: dict[str, int]
    starts: dict[int, tuple[int, ...]]

    def of(self, layer: str) -> tuple[int, ...]:
        """The first triplets of a layer's experts."""
        return self.starts[self.values[layer]]


@dataclass(frozen=True, config=_CONFIG)
class Routes:
    """What the routers of a run did.

    Attributes:
        experts: N.
        router: `topk`, `softmax` or `threshold`.
        top_k: k; only `topk` uses it.
        segments: where the experts started; None where they started from no part of the spectrum.
        tasks: by name, in the run's order.
    """

    experts: int
    router: str
    top_k: int
    segments: Segments | None
    tasks: dict[str, TaskUse]
    version: int = ROUTES_VERSION

    @model_validator(mode="after")
    def _fits(self) -> Routes:
        layers = [(name, use) for task in self.tasks.values() for name, use in task.layers.items()]
        if not layers or any(len(use.slots) != self.experts or len(use.mass) != self.experts for _, use in layers):
            raise ValueError(f"expected layers of {self.experts} experts")
        known = self.segments
        if known and any(len(known.starts.get(known.values.get(name, 0), ())) != self.experts for name, _ in layers):
            raise ValueError(f"expected the starts of {self.experts} experts for every layer")
        return self


_ROUTES = TypeAdapter(Routes)
_TASK_USE = TypeAdapter(TaskUse)


def part_path(answers: Path) -> Path:
    """Where a chunk's counts lie: beside its answers."""
    return answers.with_suffix(".routes.json")


def write_part(answers: Path, use: TaskUse) -> None:
    """Stores the counts of a chunk; to be called before its answers are stored."""
    write_json(part_path(answers), _TASK_USE.dump_python(use, mode="json"))


def merge_parts(answers: Iterable[Path]) -> TaskUse:
    """The counts of the chunks of a task together, added in the order given."""
    total: TaskUse | None = None
    for path in map(part_path, answers):
        try:
            use = _TASK_USE.validate_python(read_json(path))
            total = use if total is None else total + use
        except ValueError as error:  # ValidationError is one
            raise WorkError(f"{path}: broken; remove it and run again ({_first(error)})") from error
    if total is None:
        raise WorkError("no chunks to add up")
    return total


def write_routes(folder: Path, routes: Routes) -> None:
    """Writes `routes.json` of a run folder, a layer on a line."""
    content: dict[str, Any] = _ROUTES.dump_python(routes, mode="json")
    for task in content["tasks"].values():
        for use in task["layers"].values():
            use["mass"] = [round(mass, 3) for mass in use["mass"]]
    write_text(folder / ROUTES, _text(content) + "\n")


def _text(value: Any, indent: str = "") -> str:
    """JSON in which a mapping is spread over lines only where it holds others."""
    if not (isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values())):
        return json.dumps(value, allow_nan=False)
    inside = [f"{indent} {json.dumps(key)}: {_text(inner, indent + ' ')}" for key, inner in value.items()]
    return "{\n" + ",\n".join(inside) + f"\n{indent}}}"


def read_routes(folder: Path) -> Routes:
    """The `routes.json` of a finished run.

    Raises:
        RequestError: the run is incomplete, its method has no router, or it is older than the counting.
        WorkError: the file is broken, or of another version.
    """
    path = folder / ROUTES
    if not is_finished(folder):
        raise RequestError(f"{folder}: the run is incomplete, or this is no run folder; run it again to finish it")
    if not path.exists():
        raise RequestError(f"{folder}: no {ROUTES}: {_why_none(folder)}")
    content = read_json(path)
    version = content.get("version") if isinstance(content, dict) else None
    if version != ROUTES_VERSION:
        raise WorkError(f"{path}: version {version!r}, this medbench reads {ROUTES_VERSION}")
    try:
        return _ROUTES.validate_python(content)
    except ValidationError as error:
        raise WorkError(f"{path}: broken; put it back, or run again ({_first(error)})") from error


def _why_none(folder: Path) -> str:
    method = load_spec(folder).method
    again = f"move the folder away and run it again: {read_record(folder).get('command') or 'medbench run ...'}"
    before = "it was run before expert use was stored"
    if method.tuner == "adapter":
        return f"this adapter has no router, or {before}; then {again}"
    if method.tuner == "upcycle" or method.adapter.get("router", "none") != "none":
        return f"{before}; {again}"
    return f"method {method.name} has no router"


def _first(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return str(error)


def find_run(name: str, default: Path = Path("results/runs")) -> Path:
    """The folder of a run: its path, or the first letters of its hash, by default inside `default`.

    Example: `results/measured/0a1b` is the one run in `results/measured` whose hash begins with 0a1b.

    Raises:
        RequestError: none, or more than one.
    """
    path = Path(name)
    if (path / "spec.json").exists():
        return path
    inside, prefix = (default, name) if path == Path(path.name) and not path.is_dir() else (path.parent, path.name)
    if path.is_dir():
        inside, prefix = path, ""
    found = sorted(spec.parent for spec in inside.glob("*/spec.json") if spec.parent.name.startswith(prefix))
    if len(found) == 1:
        return found[0]
    if not found:
        raise RequestError(f"{name}: no run folder, and no run in {inside} whose hash begins so")
    some = ", ".join(folder.name[:12] for folder in found[:4]) + (", ..." if len(found) > 4 else "")
    raise RequestError(f"{name}: {len(found)} runs in {inside} ({some}); name one by the first letters of its hash")
