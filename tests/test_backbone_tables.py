"""The shipped tables are those of the real modules, built without weights and without a network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageTextToText, BertConfig, LlamaConfig, LlamaForCausalLM, Qwen2_5_VLConfig

from medbench.adapters.attention import split_attention
from medbench.backbones.layers import Layers, table_of
from medbench.backbones.nano_clip import ARCHITECTURE
from medbench.backbones.registry import TARGETS, backbone_names, get_backbone, shipped_table, target_pattern
from medbench.backbones.vlm import meta_model
from medbench.errors import RequestError

#: The sizes in the config.json of the hub's models.
QWEN_VISION = {
    **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
}
QWEN_3B = {
    **{"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16},
    **{"num_key_value_heads": 2, "vocab_size": 151936},
}
QWEN_7B = {
    **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
    **{"num_key_value_heads": 4, "vocab_size": 152064},
}
LLAMA = {
    **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 32, "vocab_size": 32000, "tie_word_embeddings": False},
}
#: What the hub's open_clip_config.json of BiomedCLIP says.
BIOMEDCLIP = {
    "embed_dim": 512,
    "vision_cfg": {
        **{"timm_model_name": "vit_base_patch16_224", "timm_model_pretrained": False, "timm_pool": ""},
        **{"timm_proj": "linear", "image_size": 224},
    },
    "text_cfg": {
        **{"hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract", "hf_model_pretrained": False},
        **{"hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler", "context_length": 256},
    },
}


def qwen(text: dict[str, int], tied: bool) -> nn.Module:
    vision = QWEN_VISION | {"out_hidden_size": text["hidden_size"]}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)
    return AutoModelForImageTextToText.from_config(config)


def clip(name: str) -> nn.Module:
    packaged = Path(open_clip.__file__).parent / "model_configs" / f"{name}.json"
    return open_clip.model.CLIP(**json.loads(packaged.read_text()))


def biomedclip() -> nn.Module:
    with pytest.MonkeyPatch.context() as patch:  # BERT base's sizes, and the words of PubMedBERT
        patch.setattr(open_clip.hf_model.AutoConfig, "from_pretrained", lambda name: BertConfig(vocab_size=30522))
        return open_clip.model.CustomTextCLIP(**BIOMEDCLIP)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "biomedclip": biomedclip,
    "clip-vit-b-16": lambda: clip("ViT-B-16"),
    "clip-vit-b-32": lambda: clip("ViT-B-32"),
    "llama-2-7b": lambda: LlamaForCausalLM(LlamaConfig(**LLAMA)),
    "nano-clip": lambda: open_clip.model.CLIP(**ARCHITECTURE["model_cfg"]),
    "nano-vl": lambda: meta_model(get_backbone("nano-vl")),
    "qwen2.5-vl-3b": lambda: qwen(QWEN_3B, tied=True),
    "qwen2.5-vl-7b": lambda: qwen(QWEN_7B, tied=False),
}


def parameters(*modules: nn.Module) -> int:
    return sum(p.numel() for p in {id(p): p for module in modules for p in module.parameters()}.values())


def split_by_hand(model: nn.Module) -> list[tuple[str, int, int]]:
    """(name, out, in) of a model's linears, an attention's packed weight [3 E, E] as three of [E, E]."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            found.append((name, *module.weight.shape))
        elif isinstance(module, nn.MultiheadAttention):
            rows, inputs = module.in_proj_weight.shape
            found += [(f"{name}.{part}_proj", rows // 3, inputs) for part in "qkv"]
    return found


@pytest.mark.parametrize("name", backbone_names())
def test_the_shipped_table_is_that_of_the_modules(name: str) -> None:
    backbone = get_backbone(name)
    with torch.device("meta"):
        model = MODELS[name]()
    total = parameters(model)
    visual = getattr(model, "visual", None) or getattr(getattr(model, "model", None), "visual", None)
    towers = {} if visual is None else {"vision": parameters(visual)}
    if backbone.kind == "clip":
        assert total - sum(towers.values()) - model.logit_scale.numel() == backbone.tables["text"].tower
        towers["text"] = backbone.tables["text"].tower or 0
        assert {group: table.base for group, table in backbone.tables.items()} == towers
    else:
        towers["language"] = total - sum(towers.values())
        assert {table.base for table in backbone.tables.values()} == {None}
    assert {group: table.tower for group, table in backbone.tables.items()} == towers
    by_hand = split_by_hand(model)
    assert bool(split_attention(model)) == (name.startswith("clip-") or name == "nano-clip")
    modules = [(n, m.out_features, m.in_features) for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert sorted(modules) == sorted(by_hand)
    assert parameters(model) == total
    for group, table in backbone.tables.items():
        read = table_of(modules, target_pattern(backbone.architecture, group), total)
        assert set(table.layers) == set(read.layers)
        assert table.total == read.total
    assert set(backbone.tables) == set(TARGETS[str(backbone.architecture)])


def test_the_sizes_that_are_known() -> None:
    totals = {name: next(iter(get_backbone(name).tables.values())).total for name in MODELS}
    assert totals["qwen2.5-vl-7b"] == 8_292_166_656
    assert totals["llama-2-7b"] == 6_738_415_616
    assert totals["clip-vit-b-32"] == 151_277_313
    assert round(totals["biomedclip"] / 1e6, 1) == 195.9
    vision = get_backbone("biomedclip").tables["vision"].tower or 0
    assert (vision, round(vision / 1e6, 1)) == (86_191_872, 86.2)


@pytest.mark.parametrize("name", backbone_names())
def test_groups_add_up_and_one_named_twice_counts_once(name: str) -> None:
    backbone = get_backbone(name)
    groups = list(backbone.tables)
    assert backbone.default_targets == groups[0]
    assert shipped_table(backbone, f"{groups[0]}+{groups[0]}") == shipped_table(backbone, groups[0])
    everything = shipped_table(backbone, "+".join(groups))
    assert everything is not None
    assert len(everything.layers) == sum(len(table.layers) for table in backbone.tables.values())
    assert everything.tower == sum(table.tower or 0 for table in backbone.tables.values())
    assert 0 <= everything.total - (everything.tower or 0) <= 1  # CLIP's temperature is in no tower


@pytest.mark.parametrize(
    ("name", "targets", "known"),
    [
        ("biomedclip", "language", "vision, text"),
        ("clip-vit-b-32", "vision+language", "vision, text"),
        ("llama-2-7b", "vision", "language"),
    ],
)
def test_targets_that_a_backbone_cannot_have_are_refused_without_building_it(
    name: str, targets: str, known: str
) -> None:
    with pytest.raises(RequestError, match=f"backbone {name} has no targets .*; it has {known} "):
        shipped_table(get_backbone(name), targets)


def test_of_a_backbone_that_can_be_built_other_targets_are_read_off_the_model() -> None:
    assert shipped_table(get_backbone("nano-vl"), r".*\.q_proj") is None
    assert shipped_table(get_backbone("clip-vit-b-16"), r"visual\..*\.mlp\.c_fc") is None


def test_only_the_numbers_of_layers_are_left_out_of_a_pattern() -> None:
    linears = [(f"blocks.{n}.mlp.fc{i}", 8, 4) for n in range(3) for i in (1, 2)] + [("proj.0", 2, 8)]
    table = table_of(linears, ".*", 100)
    assert table.layers == (
        Layers("blocks.*.mlp.fc1", 8, 4, 3),
        Layers("blocks.*.mlp.fc2", 8, 4, 3),
        Layers("proj.*", 2, 8, 1),
    )
