"""Which modules adapters go onto: named groups of linear layers, by architecture. Without torch."""

from __future__ import annotations

import re

from medbench.errors import RequestError, did_you_mean

_LINEARS = r"(self_attn\.(q|k|v|o)_proj|mlp\.(gate|up|down)_proj)"
_RESBLOCK = r"transformer\.resblocks\.\d+\.(attn\.(q|k|v|out)_proj|mlp\.c_(fc|proj))"
_BERT = r"(attention\.(self\.(query|key|value)|output\.dense)|(intermediate|output)\.dense)"
_VISION_BLOCK = (
    r"(vision_model\.)?(encoder\.)?layers?\.\d+\."
    r"((attention|self_attn)\.((attention\.)?(query|key|value)|[qkvo]_proj|out_proj|output\.dense)|mlp\.fc[12]"
    r"|(intermediate|output)\.dense)"
)
_TEXT_BLOCK = rf"(encoder|transformer)\.layer\.\d+\.({_BERT}|attention\.([qkv]_lin|out_lin|attn\.[qkvo])|ffn\.lin[12])"

#: Named target groups: architecture -> group -> regex over module names, as peft matches it (full match). A
#: hybrid of both towers is written "language+vision". `default` serves architectures that are not listed.
TARGETS: dict[str, dict[str, str]] = {
    "qwen2_5_vl": {
        "language": rf"model\.language_model\.layers\.\d+\.{_LINEARS}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
    },
    "qwen2_vl": {
        "language": rf"model\.language_model\.layers\.\d+\.{_LINEARS}",
        "vision": r"model\.visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))",
    },
    "llama": {
        "language": rf"model\.layers\.\d+\.{_LINEARS}",
    },
    # Both of open_clip's kinds of tower: its own, with nn.MultiheadAttention split in three; timm's and BERT.
    "open_clip": {
        "vision": rf"visual\.({_RESBLOCK}|trunk\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12]))",
        "text": rf"(text\.)?{_RESBLOCK}|text\.transformer\.encoder\.layer\.\d+\.{_BERT}",
    },
    # Two transformers models: Dinov2, ViT, CLIP, SigLIP; BERT, RoBERTa, MiniLM, DistilBERT, MPNet.
    "dual_encoder": {
        "vision": rf"visual\.trunk\.{_VISION_BLOCK}",
        "text": rf"text\.transformer\.{_TEXT_BLOCK}",
    },
    "default": {
        "language": rf"model\.language_model\.(model\.)?layers\.\d+\.{_LINEARS}",
        "vision": r"model\.(vision_tower|vision_model)\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)",
    },
}


def target_pattern(architecture: str | None, targets: str) -> str:
    """The regex over module names that a `targets` setting stands for.

    Args:
        architecture: the model's `model_type`.
        targets: `language`, `vision`, `language+vision`, or a regex of the user's own.
    """
    groups = TARGETS.get(architecture or "", TARGETS["default"])
    parts = targets.split("+")
    if all(part in groups for part in parts):
        return "|".join(f"({groups[part]})" for part in parts)
    if re.fullmatch(r"[a-z_+]+", targets) and "proj" not in targets:
        raise RequestError(f"unknown target group {targets!r}; {did_you_mean(targets, groups)}, or a regex")
    try:
        re.compile(targets)
    except re.error as error:
        raise RequestError(f"targets {targets!r} is not a regular expression: {error}") from error
    return targets
