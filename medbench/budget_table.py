"""What each method gets of a budget on a backbone, in every way it is counted: the rows of `medbench budget`.

Without torch for the backbones of the registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from medbench.backbones.layers import LayerTable
from medbench.backbones.registry import Backbone, get_backbone
from medbench.budget import TOLERANCE, Allocation, allocate, parse_budget, wanted_parameters
from medbench.catalog import Catalog
from medbench.errors import RequestError
from medbench.listing import Rows, text_table
from medbench.methods import Method, Recipe
from medbench.plan import table_for
from medbench.tuner import Tuner
from medbench.tuners import get_tuner

#: AdamW keeps two float32 moments of every trained parameter.
_ADAMW_BYTES = 8
_COLUMNS = (
    *("method", "backbone", "rank", "experts", "trainable_parameters", "router_parameters", "percent_published"),
    *("percent_of_tower", "percent_of_model", "budget_distance", "comparable", "extra_flops_per_token"),
    *("optimiser_bytes", "note"),
)


def budget_rows(catalog: Catalog, backbone_name: str, methods: Sequence[str], budget: str | None, strict: bool) -> Rows:
    """What each method gets of a budget on a backbone; every row has the same keys, null where there is nothing.

    `percent_published` counts by the formulas and over the denominator of the papers (`Published`), at this row's
    rank; `percent_of_tower` is the trained share of the tower (or towers) that the method adapts, `percent_of_model` is
    trained parameters over all of the unadapted model. `extra_flops_per_token` is of the forward pass.

    Args:
        catalog: where methods are looked up.
        backbone_name: the backbone.
        methods: their names.
        budget: as for `run`.
        strict: whether a method that the budget does not fit is an error; else its row says why.

    Raises:
        RequestError: an unknown name, a budget that is none, or (strict) one that a method cannot meet.
    """
    backbone = get_backbone(backbone_name)
    parsed = parse_budget(budget, backbone.default_rank)

    @cache
    def at_scale(name: str) -> tuple[Method, Recipe, LayerTable]:
        method = catalog.method(name)
        recipe = method.at(backbone.scale)
        return method, recipe, table_for(backbone, targets_of(recipe, backbone))

    if parsed.kind == "like":
        wanted_parameters(parsed, at_scale(parsed.method)[2], at_scale)  # if wrong, the request's fault, not a row's
    rows: Rows = []
    for name in methods:
        row: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"method": name, "backbone": backbone.name}
        try:
            method, recipe, table = at_scale(name)
            share = allocate(method, recipe, parsed, table, at_scale)
        except RequestError as error:
            if strict:
                raise
            rows.append(row | {"note": str(error)})
            continue
        rows.append(row | _figures(method, recipe, backbone, table, share))
    return rows


def targets_of(recipe: Recipe, backbone: Backbone) -> str:
    """What a recipe adapts on a backbone."""
    return str(recipe.adapter.get("targets", backbone.default_targets))


def _figures(
    method: Method, recipe: Recipe, backbone: Backbone, table: LayerTable, share: Allocation
) -> dict[str, Any]:
    tuner, settings = get_tuner(method.tuner), recipe.adapter
    published = None
    about = backbone.published
    if about is not None and targets_of(recipe, backbone) == about.targets:
        counted = tuner.count_published(settings, share.rank or 0, about)
        published = None if counted is None else float(100 * counted / about.denominator)
    in_tower = share.trainable - (table.trained_base - (table.tower or 0) if tuner.trains_base else 0)
    experts = settings.get("num_experts")
    routers = sum(la.count * tuner.router_layer(settings, la.out, la.inp) for la in table.layers)
    below = share.distance is not None and share.distance < -TOLERANCE
    return {
        "rank": share.rank,
        "experts": experts if isinstance(experts, int) and experts > 1 else None,
        "trainable_parameters": share.trainable,
        "router_parameters": routers or None,
        "percent_published": published,
        "percent_of_tower": 100 * in_tower / table.tower if table.tower else None,
        "percent_of_model": 100 * share.trainable / table.total,
        "budget_distance": share.distance,
        "comparable": share.comparable,
        "extra_flops_per_token": _flops(tuner, settings, share.rank or 0, table),
        "optimiser_bytes": _ADAMW_BYTES * share.trainable,
        "note": f"more than {100 * TOLERANCE:g} % below the budget" if below else None,
    }


def _flops(tuner: Tuner, settings: dict[str, Any], rank: int, table: LayerTable) -> int | None:
    """Additional operations a token; None for a package's tuner that counts parameters in all only."""
    try:
        return sum(la.count * tuner.flops_layer(settings, rank, la.out, la.inp) for la in table.layers)
    except NotImplementedError:
        return None


def budget_text(rows: Rows, backbone_name: str, budget: str | None) -> str:
    """The rows as a table for people, with a heading and what its columns mean."""
    backbone = get_backbone(backbone_name)
    parsed = parse_budget(budget, backbone.default_rank)
    shown = [
        {
            "method": row["method"],
            "rank": row["rank"],
            "experts": row["experts"],
            "trainable": row["trainable_parameters"],
            "published %": row["percent_published"],
            "tower %": row["percent_of_tower"],
            "model %": row["percent_of_model"],
            "of budget": _standing(row),
            "extra FLOPs/token": _scaled(row["extra_flops_per_token"], 1e6, "M"),
            "optimiser": _scaled(row["optimiser_bytes"], 2**20, "MiB"),
            "note": row["note"],
        }
        for row in rows
    ]
    empty = [key for key in ("published %", "note") if all(row[key] is None for row in shown)]
    table = text_table([{key: value for key, value in row.items() if key not in empty} for row in shown])
    lines = [f"backbone {backbone.name}, budget {parsed.text()}", "", table]
    about = backbone.published
    if about is not None and "published %" not in empty:
        lines += ["", f"published %: at this rank, of {about.denominator:,}; {about.source}"]
    return "\n".join(lines)


def _standing(row: dict[str, Any]) -> str | None:
    """Where a row stands under the budget, in words."""
    if row["budget_distance"] is not None:
        return f"{100 * row['budget_distance']:+.1f} %"
    if row["trainable_parameters"] is None:
        return None
    return "reference" if row["rank"] is None else "not comparable"


def _scaled(value: int | None, unit: float, name: str) -> str | None:
    return None if value is None else f"{value / unit:,.2f} {name}"
