"""Expert use: every prompt token counts once, however the questions are answered; a broken run ends as an unbroken."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Toy, make_toy
from test_run_common import CPU, do, experts, items_of, jobs_of, loaded, lora, request

import medbench.steps
import medbench.steps_data
from medbench.adapters.log import RoutingLog, collected_use, uncollected
from medbench.backbones.vlm import Vlm
from medbench.catalog import Catalog
from medbench.data.item import Item
from medbench.inference.predict import Predictor, chunks
from medbench.results.routes import TaskUse, merge_parts, part_path, read_routes, write_part
from medbench.routes import RoutedPredictor, router_of
from medbench.run import _begin
from medbench.spec import Generation, MethodSpec
from medbench.workplace import Workplace

ROUTED = ["topk", "threshold", "softmax"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("routes"), train=8, test=6)


def questions(small: Toy) -> list[Item]:
    """Of unlike lengths, and with a candidate of several tokens, which needs a forward of its own."""
    return [
        Item(i.id, i.image, i.question + " green" * (n * 5 % 7), i.answer, i.closed,
             ("yes", "no", "the image is red") if i.closed else ())
        for n, i in enumerate(items_of(small, "test"))
    ]  # fmt: skip


def double(tiny: Path, method: MethodSpec) -> Vlm:
    """In float64, where no rounding by another batch can turn a router's choice."""
    vlm = loaded(tiny, method)
    vlm.model.double().eval().requires_grad_(False)
    return vlm


def counted(vlm: Vlm, method: MethodSpec, small: Toy, items: Sequence[Item], size: int, cached: bool = True) -> TaskUse:
    router = router_of(vlm, method)
    assert router is not None
    predictor = RoutedPredictor(router.log, "test", vlm, Catalog().task(str(small.card)), Generation(size, 4))
    predictor.features.cached = cached
    rows = predictor.predict(items, lambda count: None)
    plain = Predictor(vlm, Catalog().task(str(small.card)), Generation(size, 4))
    plain.features.cached = cached
    assert rows == plain.predict(items, lambda count: None)
    assert router.log.use is None
    return predictor.use


def prompt_tokens(vlm: Vlm, small: Toy, items: Sequence[Item]) -> int:
    card = Catalog().task(str(small.card))
    batches = [vlm.prompt_batch([vlm.chat(card.render_prompt(i))], [vlm.load_image(i)]) for i in items]
    return sum(batch["input_ids"].shape[1] for batch in batches)


@pytest.mark.parametrize("router", ROUTED)
def test_every_prompt_token_counts_once_whatever_the_batches(tiny: Path, small: Toy, router: str) -> None:
    method, items = experts(router=router), questions(small)
    vlm = double(tiny, method)
    whole = counted(vlm, method, small, items, 32)
    assert len(whole.layers) == 14  # two layers of seven matrices
    assert whole.questions == len(items)
    assert whole.tokens == prompt_tokens(vlm, small, items)
    for use in whole.layers.values():
        assert use.tokens == whole.tokens
        assert sum(use.mass) == pytest.approx(whole.tokens, rel=1e-5)
        each = {"topk": (2, 2), "softmax": (4, 4), "threshold": (1, 4)}[router]
        assert each[0] * whole.tokens <= sum(use.slots) <= each[1] * whole.tokens
    for size, order in ((1, 1), (3, 1), (5, -1)):
        other = counted(vlm, method, small, items[::order], size)
        for name, use in whole.layers.items():
            assert other.layers[name].slots == use.slots, name
            assert other.layers[name].mass == pytest.approx(use.mass, rel=1e-5)


def test_the_counts_are_those_of_plain_forwards(tiny: Path, small: Toy) -> None:
    method, items = experts(), questions(small)
    vlm = double(tiny, method)
    found = counted(vlm, method, small, items, 4)
    card, expected = Catalog().task(str(small.card)), {name: torch.zeros(4, dtype=torch.long) for name in found.layers}

    def count(name: str) -> Callable[..., None]:
        def hook(layer: Any, args: tuple[torch.Tensor, ...]) -> None:
            logits = args[0].reshape(-1, layer.in_features) @ layer.expert_router["default"].T
            expected[name] += logits.topk(2).indices.flatten().bincount(minlength=4)

        return hook

    for name in expected:
        vlm.base.get_submodule(name).register_forward_pre_hook(count(name))
    with torch.no_grad():
        for item in items:
            batch = vlm.prompt_batch([vlm.chat(card.render_prompt(item))], [vlm.load_image(item)])
            vlm.model(**batch, use_cache=False)
    assert {name: tuple(total.tolist()) for name, total in expected.items()} == {
        name: use.slots for name, use in found.layers.items()
    }


@pytest.mark.parametrize("cached", [True, False])
def test_a_vision_tower_counts_the_patches_that_it_reads(tiny: Path, small: Toy, cached: bool) -> None:
    method, items = experts(targets="language+vision"), questions(small)
    vlm = double(tiny, method)
    found = counted(vlm, method, small, items, 5, cached)
    assert found.tokens == prompt_tokens(vlm, small, items)
    read = list({i.image.key: i for i in items}.values()) if cached else items
    batch = vlm.prompt_batch([vlm.chat("")] * len(read), [vlm.load_image(i) for i in read])
    towers = {use.tokens for name, use in found.layers.items() if "visual" in name}
    assert towers == {int(batch["image_grid_thw"].prod(1).sum())}


def test_the_log_counts_what_the_model_is_given() -> None:
    log, logits = RoutingLog(), torch.randn(2, 5, 4)
    chosen = torch.ones_like(logits, dtype=torch.bool)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])

    def layer(length: int, name: str = "a") -> None:
        log.record((name, "x"), logits[:, :length], logits[:, :length].softmax(-1), chosen[:, :length], training=False)

    log.before_forward(torch.nn.Identity(), (), {"input_ids": mask, "attention_mask": mask[:, :2]})
    with collected_use(log) as use:
        layer(2, "tower")  # runs alone, not under the mask of the forward before
        log.before_forward(torch.nn.Identity(), (), {"input_ids": mask, "attention_mask": mask})
        layer(5)
        layer(3, "tower")  # as many images as questions, fewer patches than tokens
        with uncollected(log):
            layer(5)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        log.before_forward(torch.nn.Identity(), (), {"input_ids": longer[:, -1:], "attention_mask": longer})
        layer(1)
        log.before_forward(torch.nn.Identity(), (mask[:, :1],), {"attention_mask": longer})
        layer(1)
        cache = SimpleNamespace(get_seq_length=lambda: 5)
        log.before_forward(torch.nn.Identity(), (), {"input_ids": mask[:, :1], "past_key_values": cache})
        layer(1)
    layer(5)
    assert {name: (int(u.tokens), u.slots.tolist()) for (name, _), u in use.items()} == {
        "a": (8, [8] * 4),
        "tower": (4 + 6, [10] * 4),
    }


@pytest.mark.parametrize("init", ["spectral", "segment_end", "principal", "minor", "random"])
def test_the_segments_are_where_the_experts_start(tiny: Path, init: str) -> None:
    method = experts(init=init)
    vlm = loaded(tiny, method, seed=3)
    router = router_of(vlm, method)
    assert router is not None
    assert router.segments is not None
    assert (router.segments.init, router.segments.rank) == (init, 2)
    name = next(iter(router.segments.values))
    layer = vlm.base.get_submodule(name)
    u, s, vh = torch.linalg.svd(layer.base_layer.weight.double())
    assert router.segments.values[name] == len(s)
    for j, start in enumerate(router.segments.of(name)):
        product = layer.expert_B["default"][:, j].double() @ layer.expert_A["default"][j].double()
        taken = slice(start, start + 2)
        expected = u[:, taken] * s[taken] @ vh[taken]
        assert torch.allclose(layer.expert_spec["default"].scale * product * 10, expected, atol=1e-4), j


def test_models_without_a_router_have_none(tiny: Path) -> None:
    for method in (None, lora(), experts(router="none", num_experts=1, init="zero")):
        assert router_of(loaded(tiny, method), method or MethodSpec("none", "none")) is None


@pytest.fixture(scope="module")
def unbroken(small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return do(small, tiny, tmp_path_factory.mktemp("unbroken"), "spectral_moe", batch_size=1, settings={})


def test_a_run_keeps_what_its_routers_did(unbroken: Path, small: Toy, tiny: Path) -> None:
    routes = read_routes(unbroken)
    assert (routes.experts, routes.router, routes.top_k, list(routes.tasks)) == (4, "topk", 2, ["toy"])
    use = routes.tasks["toy"]
    vlm = loaded(tiny, None)
    assert (use.questions, use.tokens) == (12, prompt_tokens(vlm, small, items_of(small, "test")))
    assert all(sum(layer.slots) == 2 * use.tokens for layer in use.layers.values())
    assert not (unbroken / "parts").exists()
    assert len((unbroken / "routes.json").read_text().splitlines()) < 3 * len(use.layers)


@pytest.mark.parametrize("at", ["first counts", "second answers", "counts lost"])
def test_an_interrupted_run_ends_with_the_same_routes(
    unbroken: Path, small: Toy, tiny: Path, tmp_path: Path, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[Path] = []

    def stop_after(path: Path, content: Any, write: Callable[..., None], count: int) -> None:
        write(path, content)
        stored.append(path)
        if len(stored) == count:
            raise KeyboardInterrupt

    real_part, real_parquet = medbench.steps.write_part, medbench.steps.write_parquet
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if at == "first counts":
            patched.setattr(medbench.steps, "write_part", lambda p, c: stop_after(p, c, real_part, 1))
        else:
            patched.setattr(medbench.steps, "write_parquet", lambda p, c: stop_after(p, c, real_parquet, 2))
        do(small, tiny, tmp_path, "spectral_moe", batch_size=1, settings={})
    (folder,) = tmp_path.iterdir()
    assert not (folder / "routes.json").exists()
    if at == "counts lost":  # answers of a medbench that did not count yet
        part_path(stored[0]).unlink()
    before = stored[-1].stat().st_mtime_ns if at != "first counts" else None
    kept: list[int] = []
    real_read = medbench.steps.read_parquet
    monkeypatch.setattr(medbench.steps, "read_parquet", lambda p: (kept.append(p.stat().st_mtime_ns), real_read(p))[1])
    assert do(small, tiny, tmp_path, "spectral_moe", batch_size=1, settings={}) == folder
    assert (before is None) or before in kept  # what was done is not done again
    assert (folder / "routes.json").read_bytes() == (unbroken / "routes.json").read_bytes()


def test_each_process_counts_its_own_chunks(unbroken: Path, small: Toy, tiny: Path, tmp_path: Path) -> None:
    (job,) = jobs_of(request(small, tiny, "spectral_moe", batch_size=1, settings={}), tmp_path)
    shutil.copytree(unbroken / "adapter", job.folder / "adapter")
    _begin(job)

    def place(index: int) -> Workplace:
        state = SimpleNamespace(
            num_processes=2, process_index=index, is_main_process=index == 0, wait_for_everyone=lambda: None
        )
        return Workplace(CPU, torch.float32, state)

    data = medbench.steps_data.check_data(job, place(0))
    for index in (1, 0):
        medbench.steps.predict(job, place(index), data)
        parts = len(list((job.folder / "parts").glob("*.routes.json")))
        assert parts == len(chunks(data.items(job.spec.tests[0]).items, 1)) // (1 + index)
    assert (job.folder / "routes.json").read_bytes() == (unbroken / "routes.json").read_bytes()


def test_an_upcycled_model_is_counted_too(small: Toy, tiny: Path, tmp_path: Path) -> None:
    settings = {"adapter.num_experts": 4, "training.lr": 1e-3}
    routes = read_routes(do(small, tiny, tmp_path, "full_ft_moe", settings=settings))
    assert (routes.experts, routes.top_k, routes.segments) == (4, 2, None)
    assert all(sum(layer.slots) == 2 * layer.tokens > 0 for layer in routes.tasks["toy"].layers.values())


def test_a_broken_part_is_named(unbroken: Path, tmp_path: Path) -> None:
    use = read_routes(unbroken).tasks["toy"]
    paths = [tmp_path / f"toy-{n}-of-2.parquet" for n in range(2)]
    for path in paths:
        write_part(path, use)
    assert merge_parts(paths).tokens == 2 * use.tokens
    content = json.loads(part_path(paths[1]).read_text())
    content["layers"].popitem()
    part_path(paths[1]).write_text(json.dumps(content))
    with pytest.raises(medbench.errors.WorkError, match=r"toy-1-of-2\.routes\.json: broken"):
        merge_parts(paths)
