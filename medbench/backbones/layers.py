"""The adapted linears of a backbone as a table: what a budget is computed from, without torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

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
    """The adapted linears of a backbone, and the parameters of the whole unadapted model."""

    layers: tuple[Layers, ...]
    total: int

    @property
    def smallest_side(self) -> int:
        """The smallest min(out, in): no adapter's rank can exceed it."""
        return min(min(layer.out, layer.inp) for layer in self.layers)


def table_of(linears: Iterable[tuple[str, int, int]], pattern: str, total: int) -> LayerTable:
    """Builds a layer table from (module name, out, in) of a model's linears.

    Raises:
        RequestError: the pattern matches none of them; names the nearest.
    """
    known = list(linears)
    counts: dict[tuple[str, int, int], int] = {}
    for name, out, inp in known:
        if re.fullmatch(pattern, name):
            key = (re.sub(r"\d+", "*", name), out, inp)
            counts[key] = counts.get(key, 0) + 1
    if not counts:
        shapes = {re.sub(r"\d+", "*", name) for name, _, _ in known}
        raise RequestError(f"targets {pattern!r} match no linear layer; {did_you_mean(pattern, shapes)}")
    return LayerTable(tuple(Layers(*key, count) for key, count in counts.items()), total)
