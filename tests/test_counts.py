"""What a method is said to train is what is trained: every method's count is that of its modules."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch

from medbench.backbones.adapt import attach, trainable_parameters
from medbench.backbones.registry import get_backbone, shipped_table
from medbench.backbones.vlm import Vlm, load_vlm
from medbench.catalog import Catalog, Settings
from medbench.spec import MethodSpec
from medbench.tuners import get_tuner

CATALOG = Catalog(Settings())
BACKBONE = get_backbone("nano-vl")
RANK = 16
#: Where factors start, and what is frozen beside them, trains nothing: zero spares the decompositions.
PLAIN = {"init": "zero", "drop_minor": False}


@pytest.fixture(scope="module")
def loaded() -> Vlm:
    return load_vlm(BACKBONE, torch.float32, torch.device("cpu"), {})


@pytest.fixture
def fresh(loaded: Vlm) -> Callable[[], Vlm]:
    return lambda: replace(loaded, model=deepcopy(loaded.model))


def check(vlm: Vlm, tuner: str, settings: dict[str, Any]) -> int:
    """Attaches, compares, and returns the count."""
    table = shipped_table(BACKBONE, settings.get("targets", "language"))
    assert table is not None
    assert sum(p.numel() for p in vlm.model.parameters()) == table.total
    counted = get_tuner(tuner).count(settings, RANK, table)
    ranked = get_tuner(tuner).ranked
    attach(vlm, MethodSpec("m", tuner, {**settings, "r": RANK} if ranked else settings), seed=0)
    assert trainable_parameters(vlm) == counted
    return counted


@pytest.mark.parametrize("targets", ["language", "vision"])
@pytest.mark.parametrize("name", [name for name in CATALOG.method_names() if name != "none"])
def test_every_packaged_method(name: str, targets: str, fresh: Callable[[], Vlm]) -> None:
    method = CATALOG.method(name)
    settings = method.at("nano").adapter
    if method.tuner == "expert_lora":
        settings = settings | PLAIN
    if settings:
        settings = settings | {"targets": targets}
    assert check(fresh(), method.tuner, settings) > 0


@pytest.mark.parametrize(
    ("tuner", "settings"),
    [
        ("lora", {}),
        ("expert_lora", {"num_experts": 4, "router": "softmax"}),
        ("expert_lora", {"num_experts": 2, "router": "none"}),
        ("expert_lora", {"num_experts": 4, "router": "threshold", "shared_a": True}),
        ("expert_lora", {"num_experts": 4, "diagonal": True}),
        ("expert_lora", {}),  # the tuner's own defaults
        ("upcycle", {"num_experts": 3, "top_k": 1}),
    ],
    ids=str,
)
def test_other_settings(tuner: str, settings: dict[str, Any], fresh: Callable[[], Vlm]) -> None:
    init = {"init": "zero"} if tuner == "expert_lora" else {}
    assert check(fresh(), tuner, settings | init | {"targets": "vision"}) > 0


def test_frozen_factors_are_not_counted(fresh: Callable[[], Vlm]) -> None:
    for name in ("spectral_moe", "kasa"):
        method = CATALOG.method(name)
        vlm = fresh()
        check(vlm, method.tuner, method.at("nano").adapter | {"targets": "vision"})
        frozen = [n for n, p in vlm.model.named_parameters() if "expert_A0" in n and not p.requires_grad]
        assert len(frozen) == 20


def test_none_trains_nothing(fresh: Callable[[], Vlm]) -> None:
    assert check(fresh(), "none", {}) == 0
