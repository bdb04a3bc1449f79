"""The settings of a request that are no adapter's: generation, processor, prompts, mixture weights, dtype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from medbench.backbones.registry import Backbone
from medbench.errors import RequestError, did_you_mean
from medbench.methods import Training
from medbench.request import Request
from medbench.spec import Generation

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Others:
    """What `--set` may name beside the adapter and the training."""

    generation: Generation
    processor: dict[str, int]
    mixture: dict[str, float]
    prompts: Literal["single"] | None = None


def other_settings(rest: Mapping[str, Any], request: Request, backbone: Backbone, tasks: Sequence[str]) -> Others:
    """The settings of generation, processor, prompts and mixture weights.

    Args:
        rest: `--set` pairs that are neither the adapter's nor the training's.
        request: for the batch size.
        backbone: its kind decides which settings there are.
        tasks: that are trained on.

    Raises:
        RequestError: no such setting, or a value it cannot have; with near matches.
    """
    max_new_tokens: int | None = None
    processor: dict[str, int] = {}
    mixture: dict[str, float] = {}
    prompts: Literal["single"] | None = None
    clip = backbone.kind == "clip"
    for key, value in rest.items():
        part, _, name = key.partition(".")
        if clip and key == "prompts" and value in ("single", "ensemble"):
            prompts = "single" if value == "single" else None
        elif not clip and key == "generation.max_new_tokens" and isinstance(value, int) and value > 0:
            max_new_tokens = value
        elif not clip and part == "processor" and name in ("min_pixels", "max_pixels") and _pixels(value):
            processor[name] = int(value)
        elif part == "mixture" and name in tasks and _is_number(value) and 0.01 <= value <= 1000:
            mixture[name] = float(value)
        elif clip and key == "prompts":
            raise RequestError(f"--set prompts={value}: should be single or ensemble")
        else:
            known = ["adapter.FIELD", *(f"training.{f}" for f in Training.model_fields)]
            own = ["generation.max_new_tokens", "processor.max_pixels", "processor.min_pixels"]
            known += ["prompts"] if clip else own
            known += [f"mixture.{name}" for name in tasks]
            raise RequestError(f"--set {key}={value}: not a setting with such a value; {did_you_mean(key, known)}")
    if request.batch_size < 1:
        raise RequestError(f"--batch-size {request.batch_size}: must be at least 1")
    return Others(Generation(request.batch_size, max_new_tokens), processor, mixture, prompts)


def _pixels(value: Any) -> bool:
    return _is_number(value) and 28 * 28 <= value <= 2**26


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def dtype_of(asked: str, backbone: Backbone) -> Dtype:
    """`auto` is float32 for the nano backbones (their grids move between machines), else bfloat16 where CUDA has it."""
    if asked in ("float32", "bfloat16", "float16"):
        return asked  # type: ignore[return-value]
    if asked != "auto":
        raise RequestError(f"--dtype {asked!r}; known: auto, float32, bfloat16, float16")
    if backbone.name in ("nano-vl", "nano-clip"):
        return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
