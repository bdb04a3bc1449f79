"""What a tuner is: how a method's settings become trainable parameters, counted without torch and built with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, ClassVar

from medbench.backbones.layers import LayerTable, Published
from medbench.errors import did_you_mean

Settings = Mapping[str, Any]


class Tuner:
    """A way to adapt a backbone.

    A subclass that is a method of its own (an entry point) also says `source`, and may say `training`, `scales` and
    `paper_rank`, as a YAML recipe does; its docstring's first line is the description.

    Attributes:
        defaults: the settings and their defaults, which also give each setting its type. `targets` is `language`,
            `vision`, `language+vision` or a regular expression over module names.
        later: settings that are younger than the runs people have; left out of a spec at their default, so that
            those runs keep their identity.
        ranked: whether it has a rank, which the budget decides; a tuner without one is a reference row outside.
        trains_base: whether the backbone's own weights are trained and stored.
        source: the paper.
        training: fields of `medbench.Training` that differ from the defaults.
        scales: overrides of both by scale of backbone, `{"nano": {"adapter": {...}, "training": {...}}}`.
        paper_rank: its total rank in its paper, for `--budget paper`.
        package: name and version of the package it comes from; part of a run's identity.
    """

    defaults: ClassVar[dict[str, Any]] = {}
    later: ClassVar[frozenset[str]] = frozenset()
    ranked: ClassVar[bool] = True
    trains_base: ClassVar[bool] = False
    source: ClassVar[str] = ""
    training: ClassVar[dict[str, Any]] = {}
    scales: ClassVar[dict[str, Any]] = {}
    paper_rank: ClassVar[int | None] = None
    package: str | None = None

    def step(self, settings: Settings) -> int:
        """The ranks there are: the multiples of this."""
        return 1

    def count_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """Trainable parameters beside one linear layer.

        Args:
            settings: the adapter's settings; those that are absent have their defaults.
            rank: total rank.
            out: out_features, m.
            inp: in_features, n.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how many parameters it trains")

    def count(self, settings: Settings, rank: int, table: LayerTable) -> int:
        """Trainable parameters in all, exactly (a run whose modules have another number is refused)."""
        return sum(layer.count * self.count_layer(settings, rank, layer.out, layer.inp) for layer in table.layers)

    def router_layer(self, settings: Settings, out: int, inp: int) -> int:
        """How many of `count_layer`'s parameters choose among experts (router, threshold)."""
        return 0

    def count_published(self, settings: Settings, rank: int, about: Published) -> Fraction | None:
        """Trainable parameters as papers count them on a backbone; None where no such formula is published."""
        return None

    def flops_layer(self, settings: Settings, rank: int, out: int, inp: int) -> int:
        """Floating point operations a token that one layer's forward pass costs more; 2 a multiplication and addition.

        By default every trainable parameter is used once.
        """
        return 2 * self.count_layer(settings, rank, out, inp)

    def peft_config(self, settings: dict[str, Any], pattern: str, seed: int) -> Any:
        """The configuration that `peft.get_peft_model` takes; torch and peft may be imported here.

        Args:
            settings: the adapter's settings with the rank as `r`, without `targets`.
            pattern: regular expression over the names of the modules to adapt (full match).
            seed: the run's seed.

        Raises:
            TypeError, ValueError: a setting cannot be built; the message says what would be right.
        """
        raise NotImplementedError(f"{type(self).__name__} builds no adapter")

    def value(self, name: str, value: Any) -> Any:
        """A setting, of the type of its default; 10 for 10.0 is the same run, so it becomes the same JSON.

        Raises:
            ValueError: no such setting, or a value of another type.
        """
        if name not in self.defaults:
            raise ValueError(f"adapter.{name} is no setting of this tuner; {did_you_mean(name, self.defaults)}")
        default = self.defaults[name]
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if isinstance(default, bool):
            right, wanted = isinstance(value, bool), "true or false"
        elif isinstance(default, int):
            right, wanted = isinstance(value, int) and number, "a whole number"
        elif isinstance(default, str):
            right, wanted = isinstance(value, str), "text"
        else:
            right, wanted = number or (value is None and default is None), "a finite number"
        if not right:
            raise ValueError(f"adapter.{name} should be {wanted}, found {value!r}")
        return float(value) if isinstance(default, float | None) and value is not None else value

    def resolved(self, given: Settings) -> dict[str, Any]:
        """The settings over their defaults, checked; of those in `later` only what differs."""
        merged = self.defaults | {name: self.value(name, value) for name, value in given.items()}
        return {name: value for name, value in merged.items() if name not in self.later or value != self.defaults[name]}
