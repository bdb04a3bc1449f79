"""What a point of a grid may set, and the plain form of its values: fields of a request, and `--set` pairs."""

from __future__ import annotations

import difflib
import reprlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from medbench.errors import RequestError, did_you_mean
from medbench.files import canonical_json
from medbench.methods import Training
from medbench.tuners import get_tuner

#: Field of a request, or key of `set` -> value, in its plain form.
Point = dict[str, Any]
_OTHER_SETTINGS = ("generation.max_new_tokens", "processor.max_pixels", "processor.min_pixels", "prompts")


def _names(value: Any) -> Any:
    """`a,b` as [a, b], as the command line has it."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _stages(value: Any) -> Any:
    """`a,b` is one stage; a list has a stage an entry, in order: [a, [b, c]]."""
    return [_names(stage) for stage in value] if isinstance(value, list) else [_names(value)]


def number(value: Any) -> Any:
    """A number that YAML 1.1 reads as text (`1e-4`) as a number; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


_Names = Annotated[list[str], BeforeValidator(_names)]
_Stages = Annotated[list[_Names], BeforeValidator(_stages)]
_Count = Annotated[int, Field(gt=0, strict=True)]


class Fields(BaseModel):
    """The fields of a request that a grid may set: those of `medbench run`, and `set` for its `--set` pairs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = "spectral_moe"
    tasks: _Names = []
    train_tasks: _Stages = []
    backbone: str = "nano-vl"
    budget: str | None = None
    split: Literal["test", "validation"] = "test"
    protocol: Literal["zero_shot", "in_domain", "transfer"] | None = None
    shots: _Count | None = None
    limit: _Count | None = None
    train_limit: _Count | None = None
    batch_size: _Count = 32
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    on_bad_item: Literal["fail", "skip"] = "fail"
    blind: Literal["train", "test"] | None = None
    trace: Literal["epoch", "stage"] | None = None
    set: dict[str, Any] = {}


FIELDS = tuple(name for name in Fields.model_fields if name != "set")


def shown(value: Any) -> str:
    """A value of a point in words; a sequence of stages as `a,b then c`.

    Example:
        >>> shown([["slake"], ["vqa_rad", "slake"]]), shown(["slake", "vqa_rad"]), shown(True), shown(1e-3)
        ('slake then vqa_rad,slake', 'slake,vqa_rad', 'true', '0.001')
    """
    if isinstance(value, list):
        nested = any(isinstance(part, list) for part in value)
        return (" then " if nested else ",").join(map(shown, value))
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def shown_point(point: Mapping[str, Any]) -> str:
    """A point in words: `tasks=slake adapter.init=minor`."""
    return " ".join(f"{name}={shown(value)}" for name, value in point.items()) or "the base"


def hint(key: str, known: Iterable[str]) -> str:
    """Near matches of the whole name, or of what is behind its dot: `init` is `adapter.init`."""
    tails = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key.rpartition(".")[2], tails, n=1, cutoff=0.6)
    return f"did you mean {tails[near[0]]}?" if near else did_you_mean(key, tails.values())


def check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuses a key that is none of those known; `where` names file and part."""
    for key in content:
        if key not in known:
            raise RequestError(f"{where}{key}: unknown; {hint(str(key), known)}")


def axis_values(name: str, values: list[Any], where: str) -> list[Any]:
    """The values of an axis in their plain form; none, or one twice, is a `RequestError` that names the axis."""
    if not values:
        raise RequestError(f"{where}{name}: is empty; give it values, or remove it")
    plain = [plain_value(name, value, where) for value in values]
    keys = [canonical_json(same(value)) for value in plain]
    for key, value in zip(keys, plain, strict=True):
        if keys.count(key) > 1:
            raise RequestError(f"{where}{name}: the value {shown(value)} is there twice; remove one")
    return plain


def plain_point(content: Mapping[str, Any], where: str) -> Point:
    """A point with its values in their plain form (`plain_value`)."""
    return {name: plain_value(name, value, where) for name, value in content.items()}


def plain_settings(content: Mapping[str, Any], where: str) -> Point:
    """`set` with its values in their plain form; refuses a field of the request."""
    for key in content:
        if key in FIELDS:
            raise RequestError(f"{where}{key}: is a field of the request; give it beside `set`")
    return plain_point(content, where)


def plain_value(name: str, value: Any, where: str) -> Any:
    """A field's value in its plain form; refuses what is no field of a request and no setting, with near matches."""
    if name in FIELDS:
        try:
            return getattr(Fields.model_validate({name: value}), name)
        except ValidationError as error:
            raise RequestError(f"{where}{name}: {reprlib.repr(value)}: {error.errors()[0]['msg']}") from error
    if not _is_setting(name):
        adapters = [f"adapter.{field}" for field in get_tuner("expert_lora").defaults]
        known = [*FIELDS, *adapters, *(f"training.{field}" for field in Training.model_fields), *_OTHER_SETTINGS]
        raise RequestError(f"{where}{name}: no field of a request and no setting; {hint(name, known)}")
    plain = number(value)
    if not isinstance(plain, str | int | float | None) or not is_finite(plain):
        raise RequestError(f"{where}{name}: {reprlib.repr(value)}: should be text, a finite number or a truth value")
    return plain


def _is_setting(name: str) -> bool:
    """Whether `--set` may take it; which adapter settings and which mixtures there are, the methods and tasks say."""
    part, _, rest = name.partition(".")
    if part == "training":
        return rest in Training.model_fields
    return name in _OTHER_SETTINGS or (part in ("adapter", "mixture") and rest != "")


def is_finite(value: Any) -> bool:
    """Whether it is no number, or one that a float can hold."""
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def same(value: Any) -> Any:
    """A value such that 1 and 1.0 are one, and true is neither."""
    if isinstance(value, dict):
        return {key: same(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [same(inner) for inner in value]
    whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if whole and is_finite(value) else value
