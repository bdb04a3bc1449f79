"""Classification backbones: loaded as open_clip loads them, whatever their kind is, and saved exactly."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_clip_common import CPU, KINDS, PROMPTS, build, loaded, native, pictures, pixels
from torch.nn import functional as F

from medbench.backbones.clip import as_clip, clip_table, save_clip
from medbench.backbones.clip_build import build_open_clip
from medbench.backbones.layers import tower_of
from medbench.backbones.registry import Backbone, get_backbone
from medbench.data.item import Item
from medbench.errors import RequestError, WorkError


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of each kind one, none of which a test changes."""
    root = tmp_path_factory.mktemp("clips")
    for kind in KINDS:
        build(kind, root / kind)
    native(root / "simple", own_tokenizer=False)  # open_clip's tokenizer
    return root


@pytest.mark.parametrize("kind", ["native", "biomed", "simple"])
def test_everything_is_as_open_clip_has_it(kind: str, folders: Path) -> None:
    clip = loaded(get_backbone(f"local-dir:{folders / kind}"))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folders / kind}")
    tokens = clip.tokenizer(PROMPTS)
    assert torch.equal(tokens, open_clip.get_tokenizer(f"local-dir:{folders / kind}")(PROMPTS))
    for picture in pictures():
        assert torch.equal(clip.transform(picture), transform(picture))
    given = torch.stack([transform(picture) for picture in pictures()])
    with torch.no_grad():
        image, text, scale = model.eval()(given, tokens)
        found = clip.forward(given, tokens)
    assert found[0] is not None and found[1] is not None
    torch.testing.assert_close(found[2] * found[0] @ found[1].T, scale * image @ text.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clip.scale, scale)
    assert (clip.image_size, clip.architecture) == (model.visual.image_size[0], "open_clip")
    assert (clip.mean, clip.std) == ((0.48, 0.45, 0.4), (0.27, 0.26, 0.28))
    assert not any(p.requires_grad for p in clip.model.parameters())
    assert not any(module.training for module in clip.model.modules())
    assert clip.commit is None


@pytest.mark.parametrize("kind", KINDS)
def test_forward_gives_normalised_features_of_what_was_given(kind: str, folders: Path) -> None:
    clip = loaded(build_of(folders, kind))
    given, tokens = pixels(clip), clip.tokenizer(PROMPTS)
    image, text, _ = clip.forward(pixels=given)
    assert image is not None and text is None
    torch.testing.assert_close(image, F.normalize(clip.base.encode_image(given), dim=-1))
    image, text, scale = clip.forward(tokens=tokens)
    assert image is None and text is not None and scale.shape == ()
    torch.testing.assert_close(text, F.normalize(clip.base.encode_text(tokens), dim=-1))
    # Nothing depends on the other images or texts.
    alone = clip.forward(given[1:2], tokens[1:2])
    assert alone[0] is not None and alone[1] is not None
    torch.testing.assert_close(alone[1], text[1:2], rtol=1e-5, atol=1e-5)


def build_of(folders: Path, kind: str) -> Backbone:
    return get_backbone(str(folders / kind / "mine.yaml" if kind == "dual" else folders / kind))


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_keeps_the_temperature(kind: str, folders: Path) -> None:
    clip = loaded(build_of(folders, kind), torch.bfloat16)
    precise = loaded(build_of(folders, kind))
    assert clip.scale.dtype == torch.float32 and torch.equal(clip.scale, precise.scale)
    image, text, _ = clip.forward(pixels(clip), clip.tokenizer(PROMPTS))
    assert image is not None and text is not None and image.dtype == text.dtype == torch.bfloat16
    wanted, _, _ = precise.forward(pixels(clip))
    assert wanted is not None and float(F.cosine_similarity(image.float(), wanted).min()) > 0.99


@pytest.mark.parametrize("targets", ["vision", "text", "text+vision", r".*mlp\..*|.*(intermediate|output)\.dense"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_table_is_that_of_the_loaded_model(kind: str, targets: str, folders: Path) -> None:
    backbone = build_of(folders, kind)
    table = clip_table(backbone, targets)
    parameters = dict(loaded(backbone).model.named_parameters())
    assert table.total == sum(p.numel() for p in parameters.values())
    towers = {"vision", "text"} if targets not in ("vision", "text") else {targets}
    assert table.base == table.tower == sum(p.numel() for n, p in parameters.items() if tower_of(n) in towers)
    linears = {"native": 12, "biomed": 24 if "vision" in targets else 12, "dual": 12}
    if targets in ("vision", "text"):
        assert sum(layer.count for layer in table.layers) == linears[kind]


def test_groups_that_there_are_not_are_refused_before_anything_is_built(folders: Path) -> None:
    for kind in KINDS:
        with pytest.raises(RequestError, match=r"has no targets 'language'; it has vision, text .*scales\.clip"):
            clip_table(build_of(folders, kind), "language")
    with pytest.raises(RequestError, match="match no linear layer"):
        clip_table(build_of(folders, "native"), r"visual\.nothing\.\d+")


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_are_saved_and_loaded_exactly(kind: str, folders: Path, tmp_path: Path) -> None:
    backbone = build_of(folders, kind)
    clip = loaded(backbone)
    for parameter in clip.model.parameters():
        parameter += 0.01
    save_clip(clip, tmp_path)
    again = loaded(backbone, weights=tmp_path)
    wanted, found = clip.model.state_dict(), again.model.state_dict()
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[n], found[n]) for n in wanted)
    assert not any(p.requires_grad for p in again.model.parameters())
    path = tmp_path / "model.safetensors"
    stored = load_file(path)
    first = sorted(stored)[0]
    save_file({n: t for n, t in stored.items() if n != first}, path)
    with pytest.raises(WorkError, match=r"model\.safetensors does not fit the backbone or is damaged"):
        loaded(backbone, weights=tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WorkError, match="does not fit the backbone or is damaged"):
        loaded(backbone, weights=tmp_path)
    path.unlink()
    with pytest.raises(RequestError, match=r"no model\.safetensors of a fully fine-tuned model"):
        loaded(backbone, weights=tmp_path)


def test_a_bias_of_the_logits_is_left_out(tmp_path: Path) -> None:
    """SigLIP's: it is the same for all classes."""
    native(tmp_path)
    path = tmp_path / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"]["init_logit_bias"] = -10.0
    path.write_text(json.dumps(content))
    model = open_clip.create_model(f"local-dir:{tmp_path}")
    assert len(model(torch.zeros(1, 3, 32, 32), None)) == 4
    clip = loaded(get_backbone(str(tmp_path)))
    assert len(clip.model(image=torch.zeros(1, 3, 32, 32), text=None)) == 3
    assert sum(p.numel() for p in clip.model.parameters()) == clip_table(get_backbone(str(tmp_path)), "vision").total


def test_a_blind_model_reads_no_image(folders: Path) -> None:
    clip = loaded(get_backbone(str(folders / "native")))
    item = Item("1", object(), "", "a", True)  # type: ignore[arg-type]  # an image that has nothing to be asked for
    clip.blind = True
    first = clip.transform(clip.load_image(item))
    assert float(first.flatten(1).std(1).max()) < 1e-6 and clip.image_key(item) == "\0blank"


def test_a_transform_is_named_by_what_it_does(folders: Path) -> None:
    transforms = [loaded(get_backbone(str(folders / kind))).transform for kind in ("native", "native", "biomed")]
    assert str(transforms[0]) == str(transforms[1]) != str(transforms[2])
    assert torch.equal(pickle.loads(pickle.dumps(transforms[0]))(pictures()[0]), transforms[0](pictures()[0]))


def test_a_model_in_memory_becomes_one_as_loaded(folders: Path) -> None:
    model, transform = build_open_clip("mine", folders / "native", None)
    torch.manual_seed(1)
    clip = as_clip(model, transform, None, torch.float32, CPU)
    assert clip.image_size == 32 and not any(p.requires_grad for p in model.parameters())
    assert clip.base.visual.transformer.resblocks[0].attn.q_proj.in_features == 32
