"""Every method on every kind of classification backbone: what it trains, its start, its losses, its files."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_clip_common import KINDS, PROMPTS, TOKENS, build, loaded, pixels

from medbench.adapters.layer import ExpertLoraLayer
from medbench.adapters.log import collected_use
from medbench.adapters.upcycle import load_upcycled
from medbench.backbones.adapt import attach, load_adapter, penalty_of, save_adapted, trainable_parameters
from medbench.backbones.clip import Clip, clip_table
from medbench.backbones.layers import LayerTable, tower_of
from medbench.backbones.registry import Backbone
from medbench.catalog import Catalog, Settings
from medbench.spec import MethodSpec
from medbench.tuners import get_tuner

CATALOG = Catalog(Settings())
METHODS = [name for name in CATALOG.method_names() if name != "none"]
ROUTED = ["adamole", "full_ft_moe", "spectral_moe"]
#: Routed spectral experts start around the backbone, not at it; KaSA drops the smallest singular values.
STARTS_AWAY = {"goat", "kasa", "spectral_moe"}
RANK = 16  # 8 experts of rank 2; every adapted linear has at least 32 singular values

#: Adapted linears of the visual tower.
LAYERS = {"native": 12, "biomed": 24, "dual": 12}

Bench = dict[str, tuple[Backbone, Clip]]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    root = tmp_path_factory.mktemp("clips")
    backbones = {kind: build(kind, root / kind) for kind in KINDS}
    return {kind: (backbone, loaded(backbone)) for kind, backbone in backbones.items()}


@pytest.fixture(scope="module")
def tables(bench: Bench) -> dict[str, LayerTable]:
    return {kind: clip_table(backbone, "vision") for kind, (backbone, _) in bench.items()}


@pytest.fixture
def fresh(bench: Bench) -> Callable[[str], Clip]:
    return lambda kind: replace(bench[kind][1], model=deepcopy(bench[kind][1].model))


def method_of(name: str, targets: str = "vision") -> MethodSpec:
    method = CATALOG.method(name)
    settings = method.at("clip").adapter
    rank = {"r": RANK} if get_tuner(method.tuner).ranked else {}
    return MethodSpec(name, method.tuner, {**settings, **({"targets": targets} if settings else {}), **rank})


def moved(clip: Clip) -> Clip:
    """Away from the start."""
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in clip.model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
    return clip


def features(clip: Clip) -> tuple[torch.Tensor, torch.Tensor]:
    clip.model.eval()
    with torch.no_grad():
        image, text, _ = clip.forward(pixels(clip), clip.tokenizer(PROMPTS))
    assert image is not None and text is not None
    return image, text


def reloaded(name: str, backbone: Backbone, plain: Clip, folder: Path) -> Clip:
    tuner = CATALOG.method(name).tuner
    if tuner == "full":
        return loaded(backbone, weights=folder)
    torch.manual_seed(99)  # nothing that is loaded may depend on a draw
    if tuner == "upcycle":
        load_upcycled(plain.model, folder)
    else:
        load_adapter(plain, folder)
    return plain


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_counts_start_and_files(
    name: str,
    kind: str,
    bench: Bench,
    tables: dict[str, LayerTable],
    fresh: Callable[[str], Clip],
    tmp_path: Path,
) -> None:
    backbone, plain = bench[kind]
    method, clip = method_of(name), fresh(kind)
    torch.manual_seed(0)
    attach(clip, method, seed=0)
    counted = get_tuner(method.tuner).count(method.adapter, RANK, tables[kind])
    assert trainable_parameters(clip) == counted > 0
    trained = [n for n, p in clip.model.named_parameters() if p.requires_grad]
    assert all(tower_of(n.removeprefix("base_model.model.")) == "vision" for n in trained)
    assert clip.architecture == plain.architecture and clip.image_size == plain.image_size
    wanted = features(plain)
    if name not in STARTS_AWAY:
        torch.testing.assert_close(features(clip), wanted, rtol=1e-3, atol=1e-4)
    image, text = features(moved(clip))
    assert not torch.allclose(image, wanted[0], atol=1e-4)
    assert torch.equal(text, wanted[1])
    spec: Any = SimpleNamespace(
        method=method, backbone=SimpleNamespace(name=backbone.name), blind=None, trained_tasks=["a"]
    )
    save_adapted(clip, spec, tmp_path)
    again = reloaded(name, backbone, fresh(kind), tmp_path)
    assert torch.equal(features(again)[0], image) and torch.equal(features(again)[1], text)
    assert str(backbone.source) not in "".join(path.read_text() for path in tmp_path.glob("*.json"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full_ft_moe", "spectral_moe"])
def test_the_text_tower_and_both(name: str, kind: str, bench: Bench, fresh: Callable[[str], Clip]) -> None:
    backbone, plain = bench[kind]
    for targets in ("text", "vision+text"):
        method, clip = method_of(name, targets), fresh(kind)
        # 8 experts of rank 2 are more than the native text tower's width of 16 has room for.
        rank = {"r": 4} if "r" in method.adapter else {}
        method = replace(method, adapter={**method.adapter, "num_experts": 2, **rank})
        attach(clip, method, seed=0)
        counted = get_tuner(method.tuner).count(method.adapter, 4, clip_table(backbone, targets))
        assert trainable_parameters(clip) == counted
        wanted, (image, text) = features(plain), features(moved(clip))
        assert not torch.allclose(text, wanted[1], atol=1e-5)
        assert torch.equal(image, wanted[0]) == (targets == "text")


@pytest.mark.parametrize("kind", KINDS)
def test_full_fine_tuning_is_of_one_tower(kind: str, fresh: Callable[[str], Clip]) -> None:
    clip = fresh(kind)
    attach(clip, method_of("full_ft"), seed=0)
    for name, parameter in clip.model.named_parameters():
        assert parameter.requires_grad == name.startswith("visual.")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROUTED)
def test_the_balance_loss_is_of_the_patches(name: str, kind: str, fresh: Callable[[str], Clip]) -> None:
    clip, method = fresh(kind), method_of(name)
    attach(clip, method, seed=0)
    penalty = penalty_of(clip, method)
    assert penalty is not None
    clip.model.train()
    _, text, scale = clip.model(image=pixels(clip), text=None)
    assert text is None and scale.ndim == 0
    total = penalty()
    assert float(total.detach()) > 0
    assert float(torch.as_tensor(penalty())) == 0  # read once
    total.backward()
    routers = [p for n, p in clip.model.named_parameters() if "router" in n]
    assert len(routers) == LAYERS[kind]
    assert all(p.grad is not None and bool(p.grad.any()) for p in routers)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROUTED)
def test_expert_use_counts_every_patch(name: str, kind: str, fresh: Callable[[str], Clip]) -> None:
    clip, method = fresh(kind), method_of(name)
    attach(clip, method, seed=0)
    clip.model.eval()
    with collected_use(clip.model.routing_log) as use, torch.no_grad():
        clip.forward(pixels(clip, 3), clip.tokenizer(PROMPTS))
        clip.forward(pixels(clip, 2))
        clip.forward(tokens=clip.tokenizer(PROMPTS))  # of the other tower
    assert len(use) == LAYERS[kind]
    for found in use.values():
        assert int(found.tokens) == 5 * TOKENS[kind]
        assert float(found.mass.sum()) == pytest.approx(5 * TOKENS[kind], rel=1e-4) or name == "adamole"


def test_every_head_of_open_clips_attention_is_adapted(fresh: Callable[[str], Clip]) -> None:
    clip = fresh("native")
    attach(clip, method_of("spectral_moe"), seed=0)
    names = {m.name.rpartition(".")[2] for m in clip.model.modules() if isinstance(m, ExpertLoraLayer)}
    assert names == {"q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["full_ft", "spectral_moe"])
def test_a_step_of_training_lowers_the_loss(name: str, kind: str, fresh: Callable[[str], Clip]) -> None:
    clip = fresh(kind)
    attach(clip, method_of(name), seed=0)
    given, labels = pixels(clip), torch.tensor([0, 1, 2])
    _, text, _ = clip.forward(tokens=clip.tokenizer(PROMPTS))
    trained = [p for p in clip.model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(4):
        image, _, scale = clip.forward(pixels=given)
        assert image is not None and text is not None
        loss = torch.nn.functional.cross_entropy(scale * image @ text.T, labels)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_give_the_same_gradients(kind: str, fresh: Callable[[str], Clip]) -> None:
    grads = []
    for recomputed in (False, True):
        clip = fresh(kind)
        attach(clip, method_of("full_ft"), seed=0)
        if recomputed:
            clip.base.set_grad_checkpointing(True)
        clip.model.train()
        image, _, _ = clip.model(image=pixels(clip), text=None)
        image.sum().backward()
        grads.append({n: p.grad for n, p in clip.model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    for name in grads[0]:
        torch.testing.assert_close(grads[1][name], grads[0][name])
