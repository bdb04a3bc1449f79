"""Builds the small Qwen2.5-VL backbones: `nano-vl` (shipped) and `tiny` (for tests).

Both are real `Qwen2_5_VLForConditionalGeneration` models saved with a real `Qwen2_5_VLProcessor`, so everything
that runs on them runs on `Qwen/Qwen2.5-VL-7B-Instruct` by changing one name.

The shipped weights were made by

    python -m medbench.backbones.build medbench/backbones/nano-vl --data-root DIR

from the *training* questions and answers of VQA-RAD and SLAKE and from texts about phantoms (vocabulary only) and seed
0; then `medbench nano pretrain` trains them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)

# Words, numbers digit by digit, punctuation, line breaks apart: so that the prompt's last line break is never
# merged with the first word of an answer.
_SPLIT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Size:
    """The dimensions of a small Qwen2.5-VL model."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vision_hidden: int
    vision_intermediate: int
    vision_layers: int
    vision_heads: int
    image_side: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the language model."""
        return self.hidden // self.heads


#: Every adapted linear has min(out, in) >= 128, so that 8 spectral segments are at least 16 wide.
NANO = Size(4096, 256, 512, 4, 4, 2, 160, 384, 4, 4, 112)
#: A test fixture: about 0.1 M parameters, loads in under a second.
TINY = Size(384, 32, 64, 2, 2, 1, 32, 64, 2, 2, 56)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's chat tokens, trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",  # noqa: S106
        pad_token="<|endoftext|>",  # noqa: S106
        padding_side="left",
        model_max_length=2048,
        extra_special_tokens={"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"},
    )


def build_config(size: Size, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """The model configuration of a given size; special token ids come from the tokenizer."""
    ids: dict[str, Any] = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    half = size.head_dim // 2
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.hidden,
            "intermediate_size": size.intermediate,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.kv_heads,
            "max_position_embeddings": 2048,
            # 1 / sqrt(width): a small frozen model keeps its signal, and tied embeddings give logits of order one.
            "initializer_range": size.hidden**-0.5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8],
            },
            "bos_token_id": None,
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_intermediate,
            "num_heads": size.vision_heads,
            "out_hidden_size": size.hidden,
            "initializer_range": size.vision_hidden**-0.5,
            "window_size": 56,
            "fullatt_block_indexes": [i for i in range(size.vision_layers) if i % 2],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def build_backbone(folder: Path, size: Size, texts: Iterable[str], seed: int = 0) -> dict[str, object]:
    """Writes a randomly initialised backbone with its processor to `folder`.

    Weights are stored as fp16 safetensors (they are loaded as fp32).

    Returns:
        What was built: dimensions, parameters, vocabulary, seed.
    """
    tokenizer = train_tokenizer(texts, size.vocabulary)
    side = size.image_side
    pixels = {"shortest_edge": 56 * 56 // 4, "longest_edge": side * side}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=pixels),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=pixels),
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(build_config(size, tokenizer))
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    card = {
        "size": asdict(size),
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "seed": seed,
        "pretrained": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "medbench.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def main() -> None:
    """Command line of this module (see the top of the file)."""
    from medbench.catalog import Catalog
    from medbench.data.load import load_items
    from medbench.phantom.draws import Draws
    from medbench.phantom.pretraining import exchanges, pretraining_scene
    from medbench.phantom.report import report

    parser = argparse.ArgumentParser(description="Build the nano-vl backbone (randomly initialised).")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    texts: list[str] = []
    for name in ("vqa_rad", "slake"):
        card = Catalog().task(name)
        for item in load_items(card, "train", args.data_root).items:
            texts += [card.render_prompt(item), item.answer]
    for number in range(2000):
        scene = pretraining_scene(args.seed, number)
        texts.append(report(scene))
        for exchange in exchanges(scene, Draws(scene.digest), 6):
            texts += exchange
    print(json.dumps(build_backbone(args.folder, NANO, texts, args.seed), indent=1))


if __name__ == "__main__":
    main()
