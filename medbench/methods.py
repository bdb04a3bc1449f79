"""The method recipe: how a backbone is adapted, one YAML file a method under `baselines/`."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medbench.data.card import validated
from medbench.errors import RequestError, did_you_mean
from medbench.tuner import Tuner
from medbench.tuners import get_tuner

#: Which recipe part holds for a backbone: its catalogue entry names one of these.
Scale = Literal["nano", "vlm", "clip"]


class Training(BaseModel):
    """Training settings of a stage; every field is part of a run's identity.

    `batch_size` is what one optimiser step sees, over all processes and accumulation steps; `micro_batch_size` is what
    one forward pass sees.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lr: Annotated[float, Field(gt=0)] = 1e-4
    epochs: Annotated[float, Field(gt=0, le=1000)] = 1.0
    batch_size: Annotated[int, Field(gt=0)] = 16
    micro_batch_size: Annotated[int, Field(gt=0)] = 16
    optimizer: Literal["adamw_torch", "adafactor", "sgd"] = "adamw_torch"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "cosine"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    gradient_checkpointing: bool = False
    checkpoint_steps: Annotated[int, Field(gt=0)] = 100

    @model_validator(mode="after")
    def _divides(self) -> Training:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} is not a multiple of micro_batch_size {self.micro_batch_size}"
            )
        return self


class Recipe(BaseModel):
    """What a method says for one scale of backbone, over its defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    adapter: dict[str, Any] = {}
    training: dict[str, Any] = {}
    paper_rank: Annotated[int, Field(gt=0)] | None = None


class Method(BaseModel):
    """A method.

    Attributes:
        tuner: what builds it, a name of `medbench.tuners`: `none` (the backbone as it is), `full` (every weight),
            `lora` (peft's), `expert_lora` (ours), `upcycle` (full-FT MoE), or a package's own.
        adapter: settings of the tuner; the rank comes from the budget.
        training: fields of `Training`.
        scales: overrides of all three by scale of backbone.
        paper_rank: its total rank in the paper's experiments, for `--budget paper`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    description: str
    source: str
    tuner: str
    adapter: dict[str, Any] = {}
    training: dict[str, Any] = {}
    scales: dict[Scale, Recipe] = {}
    paper_rank: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _no_rank(self) -> Method:
        for part in (self.adapter, *(recipe.adapter for recipe in self.scales.values())):
            if "r" in part:
                raise ValueError("adapter.r comes from the budget; remove it")
            try:
                tuner = get_tuner(self.tuner)
            except RequestError as error:
                raise ValueError(str(error)) from error
            for name, value in part.items():
                tuner.value(name, value)
        return self

    @classmethod
    def parse(cls, content: dict[str, Any], path: Path) -> Method:
        """Checks a recipe's content; a `RequestError` names file, field and remedy."""
        method = cls._checked(content, path)
        if method.name != path.stem:
            raise RequestError(f"{path}: name: is {method.name!r} but the file is named {path.stem!r}")
        return method

    @classmethod
    def of_tuner(cls, name: str, tuner: Tuner) -> Method:
        """The method that a package's tuner is (entry point `name` of `medbench.methods`).

        Raises:
            RequestError: a field of the class is wrong; names it.
        """
        content = {
            "name": name,
            "description": (type(tuner).__doc__ or name).strip().splitlines()[0],
            "source": tuner.source or tuner.package or "",
            "tuner": name,
            "training": tuner.training,
            "scales": tuner.scales,
            "paper_rank": tuner.paper_rank,
        }
        return cls._checked(content, Path(f"entry point {name} of {tuner.package}"))

    @classmethod
    def _checked(cls, content: dict[str, Any], path: Path) -> Method:
        method = validated(cls, content, path)
        for training in (method.training, *(r.training for r in method.scales.values())):
            validated(Training, training, path)
        return method

    def at(self, scale: Scale) -> Recipe:
        """The whole recipe for one scale of backbone: the tuner's defaults, the method's, that scale's overrides."""
        over = self.scales.get(scale, Recipe())
        return Recipe(
            adapter=get_tuner(self.tuner).resolved({**self.adapter, **over.adapter}),
            training={**self.training, **over.training},
            paper_rank=over.paper_rank or self.paper_rank,
        )


def parse_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Parses `--set key=value` pairs; values are YAML scalars.

    Raises:
        RequestError: no `=`, or a value that is not a scalar.
    """
    settings = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key:
            raise RequestError(f"--set {pair!r}: expected key=value, for example training.lr=1e-4")
        try:
            value = _number(yaml.safe_load(text))
        except (yaml.YAMLError, ValueError) as error:
            raise RequestError(f"--set {pair!r}: the value is not a YAML scalar") from error
        finite = not isinstance(value, int | float) or abs(value) <= sys.float_info.max
        if not isinstance(value, str | int | float | None) or not finite:
            raise RequestError(f"--set {pair!r}: the value must be text or a finite number")
        settings[key.strip()] = value
    return settings


def _number(value: Any) -> Any:
    try:
        return float(value) if isinstance(value, str) else value  # YAML 1.1 reads 1e-4 as text
    except ValueError:
        return value


def check_settings(methods: Sequence[Method], settings: Mapping[str, Any]) -> None:
    """Refuses an `adapter.x` setting that none of the methods has.

    Raises:
        RequestError: names the setting, with near matches.
    """
    known = frozenset[str]().union(*(get_tuner(method.tuner).defaults for method in methods))
    for key in settings:
        part, _, name = key.partition(".")
        if part == "adapter" and name not in known:
            names = ", ".join(method.name for method in methods)
            raise RequestError(f"--set {key}: no setting of {names}; {did_you_mean(name, known)}")


def apply_settings(method: Method, scale: Scale, settings: Mapping[str, Any]) -> tuple[Recipe, dict[str, Any]]:
    """A method's recipe at a scale with `--set` pairs (`adapter.x=...`, `training.x=...`) applied.

    Adapter settings that this method does not have are left to the others of the request (`check_settings`).

    Returns:
        The recipe, and the pairs that are neither.

    Raises:
        RequestError: a training field that does not exist (with near matches), or a bad value.
    """
    recipe, tuner = method.at(scale), get_tuner(method.tuner)
    adapter, training, rest = dict(recipe.adapter), dict(recipe.training), {}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        if part == "adapter":
            if name in tuner.defaults:
                try:
                    adapter[name] = tuner.value(name, value)
                except ValueError as error:
                    raise RequestError(f"--set {error}") from error
        elif part == "training" and name:
            if name not in Training.model_fields:
                raise RequestError(f"--set {key}: unknown; {did_you_mean(name, Training.model_fields)}")
            if isinstance(value, bool) and Training.model_fields[name].annotation is not bool:
                raise RequestError(f"--set {key}={value}: should be no truth value")
            training[name] = value
        else:
            rest[key] = value
    batch = training.get("batch_size")
    if isinstance(batch, int) and batch > 0 and "training.micro_batch_size" not in settings:
        # A batch size that was set alone: the micro batch follows, and never grows.
        training["micro_batch_size"] = math.gcd(batch, int(training.get("micro_batch_size", batch)))
    validated(Training, training, Path("--set training"))
    return recipe.model_copy(update={"adapter": tuner.resolved(adapter), "training": training}), rest
