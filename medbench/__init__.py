"""medbench: the fair test bench for adapters on medical vision-language models.

The public names are imported on first use, so that `import medbench` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from medbench.backbones.registry import Backbone as Backbone
    from medbench.backbones.registry import get_backbone as get_backbone
    from medbench.budget import (
        Budget as Budget,
    )
    from medbench.budget import (
        allocate as allocate,
    )
    from medbench.budget import (
        count_parameters as count_parameters,
    )
    from medbench.budget import (
        parse_budget as parse_budget,
    )
    from medbench.catalog import Catalog as Catalog
    from medbench.data.card import Card as Card
    from medbench.data.item import Item as Item
    from medbench.data.load import load_items as load_items
    from medbench.errors import MedbenchError as MedbenchError
    from medbench.errors import RequestError as RequestError
    from medbench.errors import WorkError as WorkError
    from medbench.job import Job as Job
    from medbench.methods import Method as Method
    from medbench.methods import Training as Training
    from medbench.plan import Request as Request
    from medbench.plan import resolve as resolve
    from medbench.results.record import load_records as load_records
    from medbench.results.record import read_record as read_record
    from medbench.results.tables import build_table as build_table
    from medbench.results.tables import render as render
    from medbench.run import run_all as run_all
    from medbench.scoring import score_pairs as score_pairs
    from medbench.scoring.stats import estimate_metrics as estimate_metrics
    from medbench.spec import RunSpec as RunSpec
    from medbench.spec import load_spec as load_spec
    from medbench.tuner import Tuner as Tuner

_PUBLIC = {
    "Backbone": "backbones.registry",
    "Budget": "budget",
    "Card": "data.card",
    "Catalog": "catalog",
    "Item": "data.item",
    "Job": "job",
    "MedbenchError": "errors",
    "Method": "methods",
    "Request": "plan",
    "RequestError": "errors",
    "RunSpec": "spec",
    "Training": "methods",
    "Tuner": "tuner",
    "WorkError": "errors",
    "allocate": "budget",
    "build_table": "results.tables",
    "count_parameters": "budget",
    "estimate_metrics": "scoring.stats",
    "get_backbone": "backbones.registry",
    "load_items": "data.load",
    "load_records": "results.record",
    "load_spec": "spec",
    "parse_budget": "budget",
    "read_record": "results.record",
    "render": "results.tables",
    "resolve": "plan",
    "run_all": "run",
    "score_pairs": "scoring",
}
__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"medbench.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'medbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
