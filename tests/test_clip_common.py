"""Small classification backbones on disk, of each kind that there is (no tests in here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, BertTokenizerFast, Dinov2Config, Dinov2Model

from medbench.backbones.clip import Clip, load_clip, new_dual
from medbench.backbones.dual import save_projections
from medbench.backbones.registry import Backbone, get_backbone

CPU = torch.device("cpu")
PROMPTS = ["a photo of a benign tumour", "ultrasound of a malignant tumour", "a normal breast"]
PREPROCESS = {"mean": [0.48, 0.45, 0.4], "std": [0.27, 0.26, 0.28], "interpolation": "bilinear"}
KINDS = ["native", "biomed", "dual"]
#: Tokens of one image in the visual tower: patches and the class token.
TOKENS = {"native": 17, "biomed": 101, "dual": 5}

_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 16, "layers": 2}
_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2}
_OWN_TOKENIZER = {"hf_tokenizer_name": "mine", "vocab_size": 64, "pool_type": "eos", "eos_id": 3}


def build(kind: str, folder: Path) -> Backbone:
    """Writes a backbone with random weights and gives it."""
    torch.manual_seed(0)
    {"native": native, "biomed": biomed, "dual": dual}[kind](folder)
    return get_backbone(str(folder / "mine.yaml" if kind == "dual" else folder))


def native(folder: Path, own_tokenizer: bool = True) -> None:
    """open_clip's own towers, with a tokenizer in the folder or open_clip's."""
    if own_tokenizer:
        tokenizer(folder)
    text_cfg = _TEXT | (_OWN_TOKENIZER if own_tokenizer else {})
    config = {"embed_dim": 24, "vision_cfg": _VISION, "text_cfg": text_cfg}
    _write(folder, config, open_clip.CLIP(**config), PREPROCESS | {"resize_mode": "squash"})


def biomed(folder: Path) -> None:
    """BiomedCLIP's very format: timm's ViT, and BERT with an MLP projection, its configuration elsewhere."""
    text = write_bert(folder.parent / f"{folder.name}-text")
    tokenizer(folder)
    vision_cfg = {"timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "", "image_size": 160}
    text_cfg = {
        **{"hf_model_name": str(text), "hf_model_pretrained": False, "hf_tokenizer_name": "owner/text"},
        **{"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 20},
    }
    config = {"embed_dim": 24, "vision_cfg": vision_cfg | {"timm_proj": "linear"}, "text_cfg": text_cfg}
    _write(folder, config, open_clip.CustomTextCLIP(**config), PREPROCESS | {"resize_mode": "shortest"})


def dual(folder: Path, **changed: Any) -> None:
    """Dinov2 of 56 px used at 28, and BERT."""
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(**size, image_size=56, patch_size=14)).save_pretrained(folder / "vision")
    BertModel(BertConfig(**_BERT, vocab_size=len(_words()))).save_pretrained(folder / "text")
    tokenizer(folder / "text")
    about = {
        **{"kind": "clip", "vision": "vision", "text": "text", "projections": "projections.safetensors", "dim": 24},
        **{"image_size": 28, "context_length": 20, "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "pretrained_on": ["vqa_rad"],
    }
    (folder / "mine.yaml").write_text(yaml.safe_dump(about | changed))
    clip = new_dual(get_backbone(str(folder / "mine.yaml")), 0, CPU)
    save_projections(clip.model, folder / "projections.safetensors")


def write_bert(folder: Path) -> Path:
    """A folder that says what the text tower is, without weights."""
    BertConfig(**_BERT, vocab_size=len(_words())).save_pretrained(folder)
    return folder


def _words() -> list[str]:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    return special + sorted({word for prompt in PROMPTS for word in prompt.split()})


def tokenizer(folder: Path) -> None:
    """A BERT tokenizer of the prompts' words."""
    folder.mkdir(parents=True, exist_ok=True)
    BertTokenizerFast(vocab={word: n for n, word in enumerate(_words())}).save_pretrained(folder)


def _write(folder: Path, model_cfg: dict[str, Any], model: Any, preprocess: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
    save_file({n: t.contiguous() for n, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")


def loaded(backbone: Backbone, dtype: torch.dtype = torch.float32, weights: Path | None = None) -> Clip:
    return load_clip(backbone, dtype, CPU, weights)


def pixels(clip: Clip, count: int = 3) -> torch.Tensor:
    draws = torch.Generator().manual_seed(5)
    return torch.randn(count, 3, clip.image_size, clip.image_size, generator=draws)


def pictures() -> list[Image.Image]:
    """Noise, lying and standing, smaller and larger than what the models take."""
    draws = torch.Generator().manual_seed(6)
    sizes = [(40, 20), (90, 300), (160, 160), (7, 9)]
    shapes = [torch.randint(0, 256, (h, w, 3), generator=draws, dtype=torch.uint8) for w, h in sizes]
    return [Image.fromarray(shape.numpy()) for shape in shapes]
