"""Zero-shot classification: equal to open_clip's own, whatever the batches, and to itself from the store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import open_clip
import pytest
import torch
from test_clip_common import CPU, KINDS
from test_zero_shot_common import card_at, clip_of, draw_set, items_of, written

from medbench.backbones.clip import Clip, load_clip
from medbench.backbones.registry import get_backbone
from medbench.data.item import BadItemError
from medbench.errors import WorkError
from medbench.inference.embeddings import EmbeddingStore
from medbench.inference.zero_shot import ImageEmbedder, ZeroShotPredictor, class_weights, store_namespace

GIB = 2**30


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_set(tmp_path_factory.mktemp("data"), "shades")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("backbones"))


def predicted(clip: Clip, card: Path, batch: int = 4, store: EmbeddingStore | None = None, single: bool = False):
    predictor = ZeroShotPredictor(clip, card_at(card).prompts(single=single), batch, store)
    steps: list[int] = []
    rows = predictor.predict(items_of(card), steps.append)
    assert sum(steps) == len(rows)
    return predictor, rows


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_those_of_open_clips_own_classifier(kind: str, folders: Path, card: Path) -> None:
    clip = clip_of(folders, kind)
    templates = [lambda phrase, t=t: t.replace("{}", phrase) for t in card_at(card).metadata.templates]
    names = ["a benign tumour", "a malignant tumour", "a normal"]
    theirs = open_clip.build_zero_shot_classifier(clip.model, clip.tokenizer, names, templates, device="cpu")
    ours = class_weights(clip, {name: [template(name) for template in templates] for name in names})
    torch.testing.assert_close(ours, theirs.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_are_those_of_a_plain_loop(kind: str, folders: Path, card: Path) -> None:
    clip = clip_of(folders, kind)
    _, rows = predicted(clip, card, single=True)
    prompts = card_at(card).prompts(single=True)
    assert [len(of_class) for of_class in prompts.values()] == [1, 1, 1]
    with torch.inference_mode():
        text = clip.base.encode_text(clip.tokenizer([texts[0] for texts in prompts.values()]), normalize=True)
        for item, row in zip(items_of(card), rows, strict=True):
            pixels = clip.transform(clip.load_image(item)).unsqueeze(0)
            logits = clip.base.logit_scale.exp() * clip.base.encode_image(pixels, normalize=True) @ text.T
            said = json.loads(row["probabilities"])
            assert list(said) == list(prompts)
            torch.testing.assert_close(torch.tensor(list(said.values())), logits.softmax(-1)[0], atol=1e-5, rtol=0)
            assert row["prediction"] == list(prompts)[int(logits.argmax())]
            assert (row["id"], row["cluster"]) == (item.id, item.cluster)


def test_an_ensemble_is_not_the_single_prompt(folders: Path, card: Path) -> None:
    clip = clip_of(folders, "native")
    (_, one), (_, several) = (predicted(clip, card, single=single) for single in (True, False))
    assert [row["probabilities"] for row in one] != [row["probabilities"] for row in several]


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_batches_change_nothing(batch: int, folders: Path, card: Path) -> None:
    clip = clip_of(folders, "biomed")
    (_, some), (_, others) = predicted(clip, card, 4), predicted(clip, card, batch)
    for one, other in zip(some, others, strict=True):
        one, other = (list(json.loads(row["probabilities"]).values()) for row in (one, other))
        assert one == pytest.approx(other, abs=1e-6)


def test_what_is_stored_is_not_embedded_again_and_says_the_same(folders: Path, card: Path, tmp_path: Path) -> None:
    clip = clip_of(folders, "native")
    store = EmbeddingStore(tmp_path, store_namespace(clip, "w", "float32", "vision"), GIB)
    first, cold = predicted(clip, card, store=store)
    second, warm = predicted(clip, card, store=store)
    assert (first.features.encoded, second.features.encoded) == (len(cold), 0)
    assert warm == cold
    clip.model.visual.forward = None  # nothing goes through the tower any more
    assert predicted(clip, card, store=store)[1] == cold


def test_a_changed_image_is_embedded_anew(folders: Path, tmp_path: Path) -> None:
    card = draw_set(tmp_path / "data", "moving")
    clip = clip_of(folders, "native")
    store = EmbeddingStore(tmp_path / "store", store_namespace(clip, "w", "float32", "vision"), GIB)
    predicted(clip, card, store=store)
    first, second = (tmp_path / "data" / "moving" / "images" / f"test-{n}.png" for n in (0, 1))
    first.write_bytes(second.read_bytes())
    predictor, rows = predicted(clip, card, store=store)
    assert predictor.features.encoded == 0  # the same bytes are known, under whatever name
    assert rows[0]["probabilities"] == rows[1]["probabilities"]
    draw_set(tmp_path / "data", "moving", seed=9)
    assert predicted(clip, card, store=store)[0].features.encoded == len(rows)


def test_what_decides_an_embedding_has_a_store_of_its_own(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native, biomed = (clip_of(folders, kind) for kind in ("native", "biomed"))
    names = {
        store_namespace(native, "w", "float32", "vision"),
        store_namespace(native, "other", "float32", "vision"),
        store_namespace(native, "w", "bfloat16", "vision"),
        store_namespace(native, "w", "float32", "text"),
        store_namespace(biomed, "w", "float32", "vision"),
        store_namespace(replace(native, commit="c"), "w", "float32", "vision"),
        store_namespace(replace(native, device=torch.device("meta")), "w", "float32", "vision"),
    }
    assert len(names) == 7
    monkeypatch.setattr("medbench.inference.zero_shot.SPEC_VERSION", -1)
    assert store_namespace(native, "w", "float32", "vision") not in names


def test_a_blind_model_uses_no_store(folders: Path, card: Path, tmp_path: Path) -> None:
    clip = clip_of(folders, "native")
    store = EmbeddingStore(tmp_path, store_namespace(clip, "w", "float32", "vision"), GIB)
    predicted(clip, card, store=store)
    clip.blind = True
    predictor, rows = predicted(clip, card, store=store)
    assert predictor.features.store is None
    first, *others = (list(json.loads(row["probabilities"]).values()) for row in rows)
    assert all(other == pytest.approx(first, abs=1e-6) for other in others)


@pytest.mark.parametrize("stored", [False, True])
def test_a_broken_image_is_named(stored: bool, folders: Path, tmp_path: Path) -> None:
    card = draw_set(tmp_path / "data", "broken")
    (tmp_path / "data" / "broken" / "images" / "test-6.png").write_bytes(b"")
    clip = clip_of(folders, "native")
    store = EmbeddingStore(tmp_path / "store", store_namespace(clip, "w", "float32", "vision"), GIB)
    with pytest.raises(BadItemError, match=r"test-6\.png"):
        predicted(clip, card, store=store if stored else None)


def test_a_model_without_finite_logits_is_an_error(folders: Path, card: Path) -> None:
    clip = clip_of(folders, "native")
    clip.model.visual.proj.data.fill_(float("nan"))
    with pytest.raises(WorkError, match="no numbers"):
        predicted(clip, card)


def test_no_more_than_two_batches_are_held(folders: Path, card: Path) -> None:
    clip = clip_of(folders, "native")
    alive, most = [0], [0]
    real = clip.transform

    class Counted(torch.Tensor):
        def __del__(self) -> None:
            alive[0] -= 1

    def transform(image):
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        return real(image).as_subclass(Counted)

    clip.transform = transform
    seen = sum(len(batch) for batch, _ in ImageEmbedder(clip).batches(items_of(card), 3))
    assert seen == 15
    assert most[0] <= 9  # two batches, and one that is being given up


def test_the_text_tower_is_asked_once(folders: Path, card: Path, tmp_path: Path) -> None:
    clip = load_clip(get_backbone(str(folders / "native")), torch.float32, CPU)
    store = EmbeddingStore(tmp_path, store_namespace(clip, "w", "float32", "text"), GIB)
    prompts = card_at(card).prompts(single=False)
    first = class_weights(clip, prompts, store)
    clip.model.encode_text = None
    assert torch.equal(class_weights(clip, prompts, store), first)
