"""The adapted linears of a backbone as a table: what a budget is computed from, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from medbench.errors import RequestError, did_you_mean


@dataclass(frozen=True)
class Layers:
    """`count` linear layers of one shape.

    Attributes:
        pattern: module name with `*` for the layer number.
        out: out_features (m).
        inp: in_features (n).
    """

    pattern: str
    out: int
    inp: int
    count: int


@dataclass(frozen=True)
class LayerTable:
    """The adapted linears of a backbone.

    Attributes:
        layers: the linears by name and shape.
        total: parameters of the whole unadapted model.
        tower: parameters of the tower (or towers) that these linears are in; None where it is not known.
        base: parameters that a method trains which trains the base itself: on a backbone of kind `clip` those of the
            adapted tower, as papers count it; None: all of the model's.
    """

    layers: tuple[Layers, ...]
    total: int
    tower: int | None = None
    base: int | None = None

    @property
    def trained_base(self) -> int:
        """How many parameters full fine-tuning trains."""
        return self.total if self.base is None else self.base

    @property
    def smallest_side(self) -> int:
        """The smallest min(out, in): no adapter's rank can exceed it."""
        return min(min(layer.out, layer.inp) for layer in self.layers)


@dataclass(frozen=True)
class Published:
    """How papers count adapters on a backbone: by formulas in H, L, r and N, over a denominator of their own.

    Attributes:
        targets: the target group that is meant.
        hidden: H.
        depth: L.
        inputs: in_features of the adapted linears of one block, summed, in units of H.
        outputs: their out_features, likewise.
        linears: how many they are.
        weights: their weights in units of H^2, for upcycling; None where no such formula is published.
        denominator: the parameters that percentages are of.
        source: where the convention is from.
    """

    targets: str
    hidden: int
    depth: int
    inputs: Fraction
    outputs: Fraction
    linears: int
    weights: Fraction | None
    denominator: int
    source: str


def table_of(linears: Iterable[tuple[str, int, int]], pattern: str, total: int) -> LayerTable:
    """Builds a layer table from (module name, out, in) of a model's linears.

    Raises:
        RequestError: the pattern matches none of them; names the nearest.
    """
    known = list(linears)
    counts: dict[tuple[str, int, int], int] = {}
    for name, out, inp in known:
        if re.fullmatch(pattern, name):
            key = (_numberless(name), out, inp)
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        shapes = {_numberless(name) for name, _, _ in known}
        raise RequestError(f"targets {pattern!r} match no linear layer; {did_you_mean(pattern, shapes)}")
    return LayerTable(tuple(Layers(*key, count) for key, count in counts.items()), total)


def tower_of(name: str) -> str | None:
    """The tower of a classification backbone that a module or parameter belongs to.

    Returns:
        `vision`, `text`, or None for what is in neither (the temperature, a bias of the logits).

    Example:
        >>> tower_of("visual.trunk.blocks.0.attn.qkv.weight"), tower_of("positional_embedding"), tower_of("logit_scale")
        ('vision', 'text', None)
    """
    if name.startswith("visual."):
        return "vision"
    return None if name in ("logit_scale", "logit_bias") else "text"


def _numberless(name: str) -> str:
    """The name with `*` for the numbers of layers; `fc1` stays."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)
