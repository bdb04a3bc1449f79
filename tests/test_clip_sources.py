"""Where open_clip's models come from: safetensors only, the hub through one door, an identity of the content."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from test_clip_common import CPU, PROMPTS, biomed, build, loaded, pixels, write_bert

from medbench.backbones import clip_sources, registry
from medbench.backbones.clip import load_clip
from medbench.backbones.registry import Backbone, get_backbone
from medbench.errors import RequestError, WorkError

BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two, which no test changes."""
    root = tmp_path_factory.mktemp("clips")
    for kind in ("native", "biomed"):
        build(kind, root / kind)
    return root


@pytest.fixture
def copy(folders: Path, tmp_path: Path) -> Path:
    """A copy of the native one, to be changed."""
    return Path(shutil.copytree(folders / "native", tmp_path / "native"))


class Evil:
    """Unpickled, it leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "pytorch_model.bin", "model.pth"])
def test_no_pickle_is_read_whatever_lies_there(name: str, copy: Path, tmp_path: Path) -> None:
    (copy / name).write_bytes(pickle.dumps(Evil(tmp_path / "trace"), protocol=2))
    backbone = get_backbone(str(copy))
    identity = backbone.identity()
    loaded(backbone)  # the safetensors beside it
    (copy / "open_clip_model.safetensors").unlink()
    with pytest.raises(RequestError, match=rf"only {name}; pickled weights are not loaded, save .* that name") as error:
        loaded(backbone)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "trace").exists()
    assert get_backbone(str(copy)).identity() != identity


def on_the_hub(monkeypatch: pytest.MonkeyPatch, places: dict[str, Path]) -> list[tuple[str, tuple[str, ...]]]:
    """Repositories of the hub as folders; returns what is asked for, as it is."""
    asked: list[tuple[str, tuple[str, ...]]] = []

    def snapshot(name: str, kind: str, files: Any = None, revision: str | None = None) -> Path:
        asked.append((name, tuple(files)))
        return places[name]

    for module in (registry, clip_sources):
        monkeypatch.setattr(module, "snapshot", snapshot)
    return asked


def test_biomedclips_own_file_is_the_one_exception(
    folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its repository holds a pickle only, and its text tower's configuration lies in another."""
    commit = Path(shutil.copytree(folders / "biomed", tmp_path / "0123abc"))
    weights = commit / "open_clip_model.safetensors"
    torch.save(load_file(weights), commit / "open_clip_pytorch_model.bin")
    weights.unlink()
    config = json.loads((commit / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "microsoft/text"
    (commit / "open_clip_config.json").write_text(json.dumps(config))
    asked = on_the_hub(
        monkeypatch,
        {BIOMEDCLIP: commit, "microsoft/text": write_bert(tmp_path / "text"), "someone/else": commit},
    )
    clip = loaded(get_backbone("biomedclip"))
    assert (clip.commit, get_backbone("biomedclip").identity()) == ("0123abc", f"hub:{BIOMEDCLIP}")
    wanted = loaded(get_backbone(str(folders / "biomed")))
    given = pixels(clip), clip.tokenizer(PROMPTS)
    assert all(torch.equal(x, y) for x, y in zip(clip.forward(*given), wanted.forward(*given), strict=True))
    assert {name for name, _ in asked} == {BIOMEDCLIP, "microsoft/text"}
    assert all("*.bin" not in files and "open_clip_pytorch_model.bin" not in files for n, files in asked if "text" in n)
    with pytest.raises(RequestError, match="pickled weights are not loaded"):
        loaded(get_backbone("hf-hub:someone/else"))
    assert "open_clip_pytorch_model.bin" not in asked[-2][1]
    (commit / "open_clip_pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "trace"), protocol=2))
    with pytest.raises(WorkError, match="holds other things than tensors"):
        loaded(get_backbone("biomedclip"))
    assert not (tmp_path / "trace").exists()


def test_a_model_of_open_clips_own_list(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = get_backbone("open_clip:ViT-B-32/laion2b_s34b_b79k")
    repository = "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert backbone.identity() == f"hub:{repository}#ViT-B-32/laion2b_s34b_b79k"
    config = json.loads((folders / "native" / "open_clip_config.json").read_text())["model_cfg"]
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: config if name == "ViT-B-32" else None)
    commit = Path(shutil.copytree(folders / "native", tmp_path / "4567def"))
    (commit / "open_clip_config.json").unlink()  # open_clip's package says what the model is
    asked = on_the_hub(monkeypatch, {repository: commit})
    clip = loaded(backbone)
    assert clip.commit == "4567def" and {name for name, _ in asked} == {repository}
    assert all("bin" not in pattern for _, files in asked for pattern in files)
    assert clip.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))  # of the tag: OpenAI's


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-32/opnai", "no such MODEL/TAG; did you mean ViT-B-32/openai"),
        ("open_clip:Vit-B-32/laion2b_e16", "did you mean ViT-B-32/laion2b_e16"),
        ("open_clip:what/ever", r"open_clip.list_pretrained\(\) lists"),
        ("open_clip:ViT-B-32/openai", "another activation .* use open_clip:ViT-B-32-quickgelu/openai"),
        ("hf-hub:biomedclip", "expected hf-hub:owner/name"),
        ("biomedclp", "did you mean biomedclip"),
    ],
)
def test_names_are_checked_with_near_matches(name: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_backbone(name)


def test_folders_that_are_none_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no folder with open_clip_config\.json"):
        get_backbone(f"local-dir:{tmp_path}")
    config = json.loads((copy / "open_clip_config.json").read_text())

    def changed(**model_cfg: Any) -> Backbone:
        (copy / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"] | model_cfg}))
        return get_backbone(str(copy))

    vision = config["model_cfg"]["vision_cfg"]
    for wrong, message in [
        ({"vision_cfg": vision | {"widht": 3}}, "open_clip cannot build it: .*widht"),
        ({"vision_cfg": vision | {"image_size": [32, 64]}}, "only square ones"),
        ({"vision_cfg": vision | {"qk_norm": True}}, "custom block, which cannot be adapted"),
        ({"multimodal_cfg": {}}, "a captioner"),
        ({"vision_cfg": 3}, "expected model_cfg with embed_dim"),
        ({"text_cfg": {"hf_model_name": "../no/where"}}, "neither a folder with config.json nor a hub id"),
    ]:
        with pytest.raises(RequestError, match=message) as error:
            loaded(changed(**wrong))
        assert "\n" not in str(error.value)
    with pytest.raises(WorkError, match="does not fit or cannot be read"):
        loaded(changed(vision_cfg=vision | {"layers": 3}))
    changed()
    (copy / "open_clip_model.safetensors").write_bytes(b"short")
    with pytest.raises(WorkError, match="does not fit or cannot be read"):
        loaded(get_backbone(str(copy)))
    (copy / "open_clip_config.json").write_text("{")
    with pytest.raises(WorkError, match=r"open_clip_config\.json"):
        loaded(get_backbone(str(copy)))
    with pytest.raises(RequestError, match="nano-vl is of kind vlm, not clip"):
        load_clip(get_backbone("nano-vl"), torch.float32, CPU)


@pytest.mark.parametrize("what", ["open_clip_config.json", "tokenizer.json", "open_clip_model.safetensors", "text"])
def test_the_identity_is_of_the_content_wherever_it_lies(what: str, tmp_path: Path) -> None:
    for place in ("one", "other"):
        torch.manual_seed(0)
        biomed(tmp_path / place / "mine")
    # The path of the text configuration is in the file that says what the model is.
    one, other = tmp_path / "one" / "mine", tmp_path / "other" / "mine"
    for file in one.iterdir():
        shutil.copy(file, other / file.name)
    assert get_backbone(str(one)).identity() == get_backbone(str(other)).identity()
    if what == "text":
        path = one.parent / "mine-text" / "config.json"
        before = get_backbone(str(one)).identity()
        path.write_text(path.read_text().replace('"gelu"', '"relu"'))
        assert get_backbone(str(one)).identity() != before
        return
    (other / what).write_bytes((other / what).read_bytes() + b" ")
    assert get_backbone(str(one)).identity() != get_backbone(str(other)).identity()


def test_a_text_configuration_may_lie_in_the_folder(tmp_path: Path) -> None:
    biomed(tmp_path / "mine")
    shutil.move(tmp_path / "mine-text", tmp_path / "mine" / "text")
    path = tmp_path / "mine" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["model_cfg"]["text_cfg"]["hf_model_name"] = "text"
    path.write_text(json.dumps(config))
    backbone = get_backbone(str(tmp_path / "mine"))
    assert loaded(backbone).forward(tokens=loaded(backbone).tokenizer(PROMPTS))[1] is not None
    before = backbone.identity()
    inside = tmp_path / "mine" / "text" / "config.json"
    inside.write_text(inside.read_text().replace('"gelu"', '"relu"'))
    assert backbone.identity() != before
