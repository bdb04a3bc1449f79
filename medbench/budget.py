"""Budgets: how many parameters a method may train, routers included. Arithmetic only, without torch.

What a tuner trains beside a layer, and which ranks it can have, is its own to say (`medbench.tuners`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medbench.backbones.layers import LayerTable
from medbench.errors import RequestError
from medbench.methods import Method, Recipe
from medbench.tuners import get_tuner

#: With `like=`, a method takes the rank nearest to the budget and at most this much above it.
TOLERANCE = 0.05
DEFAULT_METHOD = "spectral_moe"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


@dataclass(frozen=True)
class Budget:
    """A parsed `--budget`.

    Attributes:
        kind: `like` (another method's exact count at a rank), `count` (parameters), `percent` (of all parameters of
            the unadapted model), `rank` (this rank for every method) or `paper` (each method's rank in the paper).
        value: the rank, the count or the percentage; 0 where the kind has none.
        method: the reference of `like`.
    """

    kind: Literal["like", "count", "percent", "rank", "paper"]
    value: float = 0
    method: str = ""

    def text(self) -> str:
        """The budget as it is written on the command line, in one spelling."""
        number = f"{self.value:g}" if self.kind == "percent" else f"{int(self.value)}"
        return {
            "like": f"like={self.method}:{number}",
            "count": number,
            "percent": f"{number}%",
            "rank": f"rank={number}",
            "paper": "paper",
        }[self.kind]


@dataclass(frozen=True)
class Allocation:
    """What a method gets of a budget.

    Attributes:
        rank: total rank; None for methods without one.
        trainable: trainable parameters, routers included.
        distance: (trainable - budget) / budget; None outside the budget.
        comparable: whether the row stands under the budget (`none`, `full_ft`, the paper's ranks do not).
    """

    rank: int | None
    trainable: int
    distance: float | None
    comparable: bool


def parse_budget(text: str | None, default_rank: int) -> Budget:
    """Parses `like=METHOD[:RANK]`, `2M`, `1%`, `rank=32` or `paper`; None is the default, `like=spectral_moe`.

    Raises:
        RequestError: not one of these forms, or not positive.
    """
    text = (text or f"like={DEFAULT_METHOD}").strip()
    if text == "paper":
        return Budget("paper")
    number = r"(\d+(?:\.\d+)?)"
    if match := re.fullmatch(r"like=([\w.-]+?)(?::(\d{1,9}))?", text):
        rank = int(match[2]) if match[2] else default_rank
        return Budget("like", _positive(rank, text), match[1])
    if match := re.fullmatch(r"rank=(\d{1,9})", text):
        return Budget("rank", _positive(int(match[1]), text))
    if match := re.fullmatch(number + r"\s*%", text):
        return Budget("percent", _positive(float(match[1]), text))
    if match := re.fullmatch(number + r"([KMB]?)", text, re.IGNORECASE):
        return Budget("count", _positive(float(match[1]), text) * _UNITS[match[2].upper()])
    raise RequestError(
        f"budget {text!r} is not understood; use like=spectral_moe:32, 2M (parameters), 1% (of the model), "
        "rank=32 or paper"
    )


def _positive(value: float, text: str) -> float:
    if value <= 0:
        raise RequestError(f"budget {text!r} must be greater than 0")
    return value


def count_parameters(tuner: str, adapter: Mapping[str, Any], rank: int, table: LayerTable) -> int:
    """Trainable parameters of a tuner at a total rank, exactly (tested against the modules)."""
    return get_tuner(tuner).count(adapter, rank, table)


def allocate(
    method: Method,
    recipe: Recipe,
    budget: Budget,
    table: LayerTable,
    reference: Callable[[str], tuple[Method, Recipe, LayerTable]],
) -> Allocation:
    """Turns a budget into a method's rank (design decision 4).

    Args:
        method: the method.
        recipe: its recipe at the backbone's scale, `--set` applied.
        budget: the budget.
        table: the backbone's adapted linears.
        reference: looks up the method that `like=` names, with its recipe at this scale and its own adapted linears.

    Raises:
        RequestError: no rank of the method fits; names the smallest or largest there is.
    """
    tuner = get_tuner(method.tuner)
    if not tuner.ranked:
        return Allocation(None, tuner.count(recipe.adapter, 0, table), None, False)
    step, largest = tuner.step(recipe.adapter), table.smallest_side
    largest -= largest % step
    if largest < step:
        raise RequestError(f"method {method.name}: {step} experts need a layer side of {step}, the smallest has less")

    def count(rank: int) -> int:
        return tuner.count(recipe.adapter, rank, table)

    if budget.kind in ("rank", "paper"):
        rank = int(budget.value) if budget.kind == "rank" else recipe.paper_rank
        if rank is None:
            raise RequestError(f"method {method.name} has no rank in the paper; give --budget rank=R")
        if rank % step or not step <= rank <= largest:
            multiple = f"a multiple of its {step} experts, " if step > 1 else ""
            raise RequestError(
                f"method {method.name} cannot have rank {rank}: it must be {multiple}from {step} to {largest}"
            )
        # One rank is one count only for methods of one shape, so such rows carry no common budget.
        return Allocation(rank, count(rank), None, False)
    wanted = wanted_parameters(budget, table, reference)
    limit = wanted * (1 + TOLERANCE) if budget.kind == "like" else wanted
    counts = {rank: count(rank) for rank in range(step, largest + 1, step)}
    fitting = [rank for rank, trained in counts.items() if trained <= limit]
    if not fitting:
        raise RequestError(
            f"budget {budget.text()} is {round(wanted):,} parameters, below the smallest that method {method.name} "
            f"can have: {counts[step]:,} at rank {step} (--budget {counts[step]})"
        )
    rank = min(fitting, key=lambda r: abs(counts[r] - wanted)) if budget.kind == "like" else fitting[-1]
    return Allocation(rank, counts[rank], counts[rank] / wanted - 1, True)


def wanted_parameters(
    budget: Budget, table: LayerTable, reference: Callable[[str], tuple[Method, Recipe, LayerTable]]
) -> float:
    """How many parameters a budget of kind `like`, `count` or `percent` is; the arguments are those of `allocate`.

    Raises:
        RequestError: the method that `like=` names is unknown, has no rank at all, or not this one.
    """
    if budget.kind == "count":
        return budget.value
    if budget.kind == "percent":
        return budget.value / 100 * table.total
    method, recipe, own_table = reference(budget.method)
    if not get_tuner(method.tuner).ranked:
        raise RequestError(f"budget {budget.text()}: method {method.name} has no rank to be like")
    own = allocate(method, recipe, Budget("rank", budget.value), own_table, reference)
    return own.trainable
