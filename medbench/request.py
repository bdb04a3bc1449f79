"""What `medbench run` was asked for: the request that `medbench.plan` turns into RunSpecs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medbench.data.load import OnBadItem


@dataclass(frozen=True)
class Request:
    """What `medbench run` was asked for, names not yet looked up (see `medbench run --help` for each field)."""

    tasks: Sequence[str]
    methods: Sequence[str] = ("spectral_moe",)
    train_tasks: Sequence[Sequence[str]] = ()
    backbone: str = "nano-vl"
    budget: str | None = None
    seeds: Sequence[int] = (0,)
    split: Literal["test", "validation"] = "test"
    protocol: Literal["zero_shot", "in_domain", "transfer"] | None = None
    shots: int | None = None
    limit: int | None = None
    train_limit: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    dtype: str = "auto"
    on_bad_item: OnBadItem = "fail"
    adapter: str | None = None
    data_root: Path | None = None
    blind: Literal["train", "test"] | None = None
    trace: Literal["epoch", "stage"] | None = None
