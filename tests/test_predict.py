"""Prediction: nothing depends on how questions are batched, images are encoded once, figures equal plain forwards."""

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Toy, make_toy
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax
from test_run_common import CPU, examples_of, experts, fitted, loaded, lora
from test_run_common import items_of as stored_items_of
from transformers import GenerationConfig

from medbench.backbones.pixels import PixelCache
from medbench.backbones.registry import get_backbone
from medbench.backbones.vlm import Vlm, load_vlm
from medbench.catalog import Catalog
from medbench.data.item import BadItemError, FileImage, Item
from medbench.errors import WorkError
from medbench.inference.predict import CHUNK_BATCHES, Prediction, Predictor, candidate_probabilities, chunks
from medbench.scoring.vqa import parse_probabilities
from medbench.spec import Generation


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("predict"), train=12, test=9)


@pytest.fixture(scope="module", params=[lora(), experts()], ids=lambda m: m.name)
def model(request: pytest.FixtureRequest, small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Vlm:
    """A model that was trained a little, so that its logits are no ties."""
    vlm = loaded(tiny, request.param)
    fitted(vlm, examples_of(vlm, small), tmp_path_factory.mktemp("fit"), epochs=3)
    vlm.model.requires_grad_(False)
    return vlm


def predicted(
    vlm: Vlm, small: Toy, items: Sequence[Item], size: int = 32, cached: bool = True, tokens: int | None = 6
) -> list[Prediction]:
    predictor = Predictor(vlm, Catalog().task(str(small.card)), Generation(size, tokens))
    assert predictor.features.cached
    predictor.features.cached = cached
    return predictor.predict(items, lambda count: None)


def items_of(small: Toy, split: str) -> list[Item]:
    """The toy set's items, their questions made of unlike lengths, so that batches are padded and reordered."""
    return [
        Item(i.id, i.image, i.question + " green" * (n * 5 % 7), i.answer, i.closed, i.candidates)
        for n, i in enumerate(stored_items_of(small, split))
    ]


def with_candidates(items: Sequence[Item], candidates: tuple[str, ...]) -> list[Item]:
    return [Item(i.id, i.image, i.question, i.answer, i.closed, candidates if i.closed else ()) for i in items]


def assert_same(found: list[Prediction], expected: list[Prediction], tolerance: float = 1e-4) -> None:
    assert [(p["id"], p["cluster"], p["prediction"]) for p in found] == [
        (p["id"], p["cluster"], p["prediction"]) for p in expected
    ]
    for one, two in zip(found, expected, strict=True):
        assert (one["probabilities"] is None) == (two["probabilities"] is None)
        if one["probabilities"] is not None:
            assert json.loads(one["probabilities"]) == pytest.approx(json.loads(two["probabilities"]), abs=tolerance)


def test_predictions_do_not_depend_on_the_batch_size(model: Vlm, small: Toy) -> None:
    items = with_candidates(items_of(small, "test"), ("yes", "no", "a green image"))
    expected = predicted(model, small, items, 32)
    assert len({p["prediction"] for p in expected}) > 1
    for size in (1, 3):
        assert_same(predicted(model, small, items, size), expected)
    assert_same(predicted(model, small, items[::-1], 5)[::-1], expected)


def test_remembered_features_change_nothing(model: Vlm, small: Toy) -> None:
    items = items_of(small, "test")
    assert_same(predicted(model, small, items, 4, cached=False), predicted(model, small, items, 4))


def test_each_image_is_encoded_once(model: Vlm, small: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    items = with_candidates(items_of(small, "test"), ("yes", "no", "a green image"))
    real, rows = model.base.get_image_features, []
    vision, calls = model.base.model.visual.forward, []

    def counted(pixel_values: Any, image_grid_thw: Any = None, **kwargs: Any) -> Any:
        rows.append(len(image_grid_thw))
        return real(pixel_values=pixel_values, image_grid_thw=image_grid_thw, **kwargs)

    monkeypatch.setattr(model.base, "get_image_features", counted)
    monkeypatch.setattr(model.base.model.visual, "forward", lambda *a, **k: calls.append(1) or vision(*a, **k))
    predictor = Predictor(model, Catalog().task(str(small.card)), Generation(4, 6))
    predictor.predict(items, lambda count: None)
    assert sum(rows) == predictor.features.encoded == len({item.image.key for item in items}) == 9
    assert len(calls) == len(rows)  # also not inside `generate` or the candidates' forwards


def logits_alone(vlm: Vlm, small: Toy, item: Item, completion: Sequence[int]) -> torch.Tensor:
    """All log-probabilities of prompt + completion: one item, no padding, no cache, the image from its pixels."""
    prompt = vlm.chat(Catalog().task(str(small.card)).render_prompt(item))
    with Image.open(item.image.place) as image:
        batch = dict(vlm.processor(text=[prompt], images=[image.convert("RGB")], return_tensors="pt"))
    full = torch.cat([batch["input_ids"], torch.tensor([list(completion)], dtype=torch.long)], 1)
    batch |= {"input_ids": full, "attention_mask": torch.ones_like(full)}
    if "mm_token_type_ids" in batch:
        batch["mm_token_type_ids"] = (full == vlm.base.config.image_token_id).to(torch.int)
    with torch.no_grad():
        return vlm.model(**batch, use_cache=False).logits[0].log_softmax(-1)


@pytest.mark.parametrize("candidates", [("yes", "no"), ("yes", "green", "the image is red, not blue")])
def test_probabilities_equal_plain_forwards(model: Vlm, small: Toy, candidates: tuple[str, ...]) -> None:
    items = with_candidates(items_of(small, "test")[:8], candidates)
    lengths = {len(model.completion_ids(candidate)) for candidate in candidates}
    assert lengths == {1} or len(lengths) == 3
    for item, row in zip(items, predicted(model, small, items, 3), strict=True):
        if not item.closed:
            assert row["probabilities"] is None
            continue
        scores = []
        for candidate in candidates:
            ids = model.completion_ids(candidate)
            logprobs = logits_alone(model, small, item, ids)[-len(ids) - 1 :]
            scores.append(sum(float(logprobs[i, token]) for i, token in enumerate(ids)))
        expected = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
        assert list(json.loads(row["probabilities"]).values()) == pytest.approx(expected, abs=1e-5)


def test_answers_equal_a_loop_of_plain_forwards(model: Vlm, small: Toy) -> None:
    items = items_of(small, "test")[:6]
    for item, row in zip(items, predicted(model, small, items, 6), strict=True):
        ids: list[int] = []
        while len(ids) < 6 and (not ids or ids[-1] != model.end_id):
            ids.append(int(logits_alone(model, small, item, ids)[-1].argmax()))
        assert row["prediction"] == model.processor.tokenizer.decode(ids, skip_special_tokens=True)


def test_the_gold_answer_changes_nothing(model: Vlm, small: Toy) -> None:
    items = items_of(small, "test")
    other = [Item(i.id, i.image, i.question, "something else", i.closed, i.candidates) for i in items]
    assert predicted(model, small, other) == predicted(model, small, items)


@pytest.mark.parametrize(
    "own",
    [
        {"do_sample": True, "temperature": 5.0, "top_p": 0.9, "top_k": 3},
        {"repetition_penalty": 9.0},
        {"no_repeat_ngram_size": 1},
        {"min_new_tokens": 6},
        {"suppress_tokens": list(range(100, 384))},
        {"num_beams": 3},
        {"max_length": 3},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_generation_settings_are_not_used(
    model: Vlm, small: Toy, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any]
) -> None:
    items = items_of(small, "test")
    expected = predicted(model, small, items)
    config = GenerationConfig(eos_token_id=model.end_id, pad_token_id=model.processor.tokenizer.pad_token_id, **own)
    monkeypatch.setattr(model.base, "generation_config", config)
    assert predicted(model, small, items) == expected
    assert model.base.generation_config is config


def test_a_model_that_names_no_end_token_stops_all_the_same(
    model: Vlm, small: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = items_of(small, "test")
    expected = predicted(model, small, items)
    monkeypatch.setattr(model.base, "generation_config", GenerationConfig())
    assert predicted(model, small, items) == expected


def test_an_unreadable_image_is_named(small: Toy, tiny: Path, tmp_path: Path) -> None:
    vlm = loaded(tiny, None)
    items = items_of(small, "test")[:4]
    broken = tmp_path / "broken.png"
    broken.write_bytes((small.folder / "images" / "test0.png").read_bytes()[:60])
    bad = Item("q7", FileImage("broken.png", broken), "Is it?", "Yes", True, ("yes", "no"))
    with pytest.raises(BadItemError, match=r"item q7: image .*broken\.png"):
        predicted(vlm, small, [*items, bad])


def test_the_pixel_cache_changes_no_pixel(small: Toy, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    items = items_of(small, "test")[::2]
    vlm = load_vlm(get_backbone(str(tiny)), torch.float32, CPU, {})
    cache = vlm.processor.image_processor
    assert isinstance(cache, PixelCache)
    prompts = [vlm.chat(item.question) for item in items]
    first = vlm.prompt_batch(prompts, [vlm.load_image(item) for item in items])
    monkeypatch.setattr("medbench.backbones.vlm.load_image", lambda item: pytest.fail("decoded again"))
    images = [vlm.load_image(item) for item in items]
    assert {image.size for image in images} == {(1, 1)}
    again = vlm.prompt_batch(prompts, images)
    monkeypatch.setattr(vlm.processor, "image_processor", cache.inner)
    plain = vlm.prompt_batch(prompts, [Image.open(item.image.place).convert("RGB") for item in items])
    assert set(first) == set(again) == set(plain)
    for name, value in plain.items():
        assert torch.equal(first[name], value), name
        assert torch.equal(again[name], value), name


def test_the_pixel_cache_stays_within_its_bound(small: Toy, tiny: Path) -> None:
    vlm = load_vlm(get_backbone(str(tiny)), torch.float32, CPU, {})
    inner = vlm.processor.image_processor.inner
    one = sum(t.nbytes for t in inner([Image.new("RGB", (56, 56))], return_tensors="pt").values())
    cache = PixelCache(inner, capacity=3 * one)
    colours = [Image.new("RGB", (56, 56), (20 * n, 0, 0)) for n in range(8)]
    expected = inner(colours, return_tensors="pt")["pixel_values"]
    for order in (range(8), [7, 6, 0, 1, 7, 7, 2, 3], range(8)):
        for n in order:
            image = cache.load(str(n), colours[n].copy)
            got = cache([image], return_tensors="pt")["pixel_values"]
            assert torch.equal(got, expected.chunk(8)[n])
            assert cache.held == sum(t.nbytes for kept in cache._kept.values() for t in kept.values()) <= 3 * one
    # Batches in any order: new images may push out those that a placeholder of the same batch stands for.
    draw = random.Random(0)
    for _ in range(60):
        batch = [draw.randrange(8) for _ in range(draw.randint(1, 6))]
        images = [cache.load(str(n), colours[n].copy) for n in batch]
        got = cache(images, return_tensors="pt")["pixel_values"]
        assert torch.equal(got, torch.cat([expected.chunk(8)[n] for n in batch]))
        assert cache.held == sum(t.nbytes for kept in cache._kept.values() for t in kept.values()) <= 3 * one


SCORES = st.lists(st.floats(-1e6, 0) | st.just(-math.inf), min_size=1, max_size=5)


@given(SCORES.filter(lambda scores: max(scores) > -math.inf))
def test_probabilities_are_the_softmax_and_can_be_scored(scores: list[float]) -> None:
    names = [f"answer {n}" for n in range(len(scores))]
    found = parse_probabilities("x", candidate_probabilities(names, scores))
    assert found == pytest.approx(dict(zip(names, softmax(scores).tolist(), strict=True)))


@pytest.mark.parametrize("scores", [[math.nan, -1.0], [-1.0, math.nan], [-math.inf, -math.inf], [math.inf, -1.0]])
def test_likelihoods_that_are_no_numbers_are_a_fault(scores: list[float]) -> None:
    said = re.escape(f"('yes' {scores[0]}, 'no' {scores[1]})")
    with pytest.raises(WorkError, match=f"^the model's log-likelihoods are no numbers {said}"):
        candidate_probabilities(["yes", "no"], scores)


ITEMS = st.lists(st.integers(0, 12), min_size=1, max_size=120)


@given(ITEMS, st.integers(1, 4))
def test_chunks_hold_whole_images(images: list[int], size: int) -> None:
    make: Callable[[int, int], Item] = lambda n, key: Item(  # noqa: E731
        str(n), FileImage(str(key), Path(str(key))), "q", "a", False
    )
    items = [make(n, key) for n, key in enumerate(images)]
    cut = chunks(items, size)
    assert sorted(item.id for chunk in cut for item in chunk) == sorted(item.id for item in items)
    assert all(cut)
    where = {(item.image.key, number) for number, chunk in enumerate(cut) for item in chunk}
    assert len(where) == len(set(images))
    assert all(len(chunk) >= CHUNK_BATCHES * size for chunk in cut[:-1])
    assert [key for chunk in cut for key in dict.fromkeys(i.image.key for i in chunk)] == list(
        dict.fromkeys(map(str, images))
    )
