"""Runs of the toy set in this process, for the tests of runs, training and prediction (no tests in here)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from conftest import Toy

from medbench.backbones.adapt import attach
from medbench.backbones.registry import get_backbone
from medbench.backbones.vlm import Vlm, load_vlm
from medbench.catalog import Catalog
from medbench.data.check import check_images
from medbench.data.item import Item
from medbench.data.load import load_items
from medbench.methods import Training
from medbench.plan import Request, resolve
from medbench.run import Job, run_all
from medbench.spec import MethodSpec
from medbench.training.collate import Example, examples
from medbench.training.fit import FitResult, Runtime, fit_stage

torch.set_num_threads(1)
CPU = torch.device("cpu")
SETTINGS = {"batch_size": 8, "micro_batch_size": 8, "lr": 0.01, "epochs": 1, "gradient_checkpointing": False}
LORA = MethodSpec("lora", "lora", {"targets": "language", "alpha_over_r": 2.0, "dropout": 0.0, "r": 4})


def lora(**settings: Any) -> MethodSpec:
    return MethodSpec("lora", "lora", {**LORA.adapter, **settings})


def experts(**settings: Any) -> MethodSpec:
    defaults: dict[str, Any] = {"targets": "language", "r": 8, "num_experts": 4, "top_k": 2, "eta": 1.0}
    return MethodSpec("spectral_moe", "expert_lora", {**defaults, **settings})


def request(toy: Toy, backbone: Path | str, method: str = "lora", **more: Any) -> Request:
    settings = {} if more.get("adapter") else {f"training.{key}": value for key, value in SETTINGS.items()}
    settings |= more.pop("settings", {})
    if method == "spectral_moe" and settings:
        settings["adapter.num_experts"] = 4
    fields: dict[str, Any] = {"tasks": [str(toy.card)], "budget": "rank=8", "data_root": toy.root}
    return Request(methods=[method], backbone=str(backbone), settings=settings, **{**fields, **more})


def words(toy: Toy, backbone: Path | str, method: str, out: Path, settings: dict[str, Any], *more: Any) -> list[str]:
    """The command line of the same request."""
    asked = request(toy, backbone, method, settings=settings)
    pairs = [word for key, value in asked.settings.items() for word in ("--set", f"{key}={value}")]
    given = ["run", "--tasks", toy.card, "--backbone", backbone, "--method", method, "--budget", "rank=8", *pairs]
    return [*map(str, given), "--data-root", str(toy.root), "--out", str(out), "--json", *map(str, more)]


def jobs_of(asked: Request, out: Path) -> list[Job]:
    plan = resolve(asked, Catalog())
    return [
        Job(spec, plan.cards, plan.backbone, out / spec.identity, asked.data_root, "cpu", adapter=plan.adapter)
        for spec in plan.specs
    ]


def do(toy: Toy, backbone: Path | str, out: Path, method: str = "lora", **more: Any) -> Path:
    """Does one run and returns its folder."""
    (folder,) = run_all(jobs_of(request(toy, backbone, method, **more), out), lambda text: None)
    return folder


def items_of(toy: Toy, split: str) -> list[Item]:
    return list(load_items(Catalog().task(str(toy.card)), split, toy.root).items)


def loaded(tiny: Path, method: MethodSpec | None = LORA, seed: int = 0) -> Vlm:
    """The tiny backbone with a fresh adapter."""
    vlm = load_vlm(get_backbone(str(tiny)), torch.float32, CPU, {})
    torch.manual_seed(seed)
    if method is not None:
        attach(vlm, method, seed)
    return vlm


def examples_of(vlm: Vlm, toy: Toy, split: str = "train") -> list[Example]:
    checked = check_images("toy", items_of(toy, split), "fail")
    keys = list(checked.sizes)
    tokens = dict(zip(keys, vlm.image_tokens([checked.sizes[k] for k in keys]), strict=True))
    return examples(vlm, Catalog().task(str(toy.card)), checked.items, tokens)


def fitted(
    vlm: Vlm, data: Sequence[Example], folder: Path, progress: Any = None, balance: float = 0.0, **settings: Any
) -> FitResult:
    """Trains one stage in this process."""
    training = Training(**{"lr": 0.01, "batch_size": 8, "micro_batch_size": 8, "warmup": 0.0, **settings})
    nothing = lambda done, total: None  # noqa: E731
    loss = getattr(vlm.model.base_model, "balance_loss", None)
    penalty = (lambda: balance * loss()) if balance and loss else None
    return fit_stage(vlm, [data], [1.0], training, 0, torch.float32, penalty, folder, Runtime(CPU), progress or nothing)


def trained_tensors(vlm: Vlm) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in vlm.model.named_parameters() if p.requires_grad}
