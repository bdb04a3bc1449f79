"""`nano-clip`: open_clip's architecture at 4 M parameters, with the tokenizer of `nano-vl`; pretrained, published."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from medbench.backbones.clip_pretrain import PARTS, ClipPretraining, ClipRecipe, step_scenes, step_texts, step_words
from medbench.backbones.clip_skill import folder_skill, skill_text
from medbench.backbones.nano import BACKBONE, CARD
from medbench.backbones.registry import get_backbone
from medbench.errors import RequestError, WorkError
from medbench.files import (
    digest,
    file_digest,
    publish_folder,
    read_json,
    run_lock,
    write_atomic,
    write_json,
    write_text,
)
from medbench.progress import progress_bar
from medbench.results.environment import environment

CONFIG = "open_clip_config.json"
WEIGHTS = "open_clip_model.safetensors"
LOSSES = "losses.csv"

#: Every adapted linear has min(out, in) >= 128, so that 8 spectral segments are at least 16 wide (as in nano-vl).
ARCHITECTURE: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 112,
            "patch_size": 14,
            "width": 192,
            "layers": 6,
            "head_width": 48,
            "pool_type": "avg",
        },
        "text_cfg": {
            "context_length": 48,
            "vocab_size": 4096,
            "width": 128,
            "heads": 4,
            "layers": 3,
            "hf_tokenizer_name": "nano-clip",
            "tokenizer_kwargs": {"clean": "whitespace"},
            "pool_type": "eos",
            "eos_id": 2,
        },
    },
    "preprocess_cfg": {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        # Nothing is cut off: a lesion may lie at the border of an image that is not square.
        "resize_mode": "squash",
    },
}


def write_architecture(folder: Path, architecture: dict[str, Any] = ARCHITECTURE) -> None:
    """Writes what a backbone is without its weights: open_clip's configuration, and the tokenizer of `nano-vl`.

    Texts get an end token (`nano-vl`'s chat template puts its own), whose state open_clip reads; padding follows it.
    """
    donor = get_backbone("nano-vl").folder()
    tokenizer = json.loads((donor / "tokenizer.json").read_text(encoding="utf-8"))
    end = architecture["model_cfg"]["text_cfg"]["eos_id"]
    (token,) = [entry["content"] for entry in tokenizer["added_tokens"] if entry["id"] == end]
    only, pair = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    closing = {"SpecialToken": {"id": token, "type_id": 0}}
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [only, closing],
        "pair": [only, closing, pair, closing],
        "special_tokens": {token: {"id": token, "ids": [end], "tokens": [token]}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, indent=2, ensure_ascii=False), encoding="utf-8")
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": token, "pad_token": "<|endoftext|>"}
    context = architecture["model_cfg"]["text_cfg"]["context_length"]
    write_json(folder / "tokenizer_config.json", told | {"padding_side": "right", "model_max_length": context})
    write_json(folder / CONFIG, architecture)


def fresh_clip(folder: Path, seed: int) -> tuple[Any, Any]:
    """A model of the architecture in a folder with weights drawn from the seed, and its tokenizer.

    Token embeddings are drawn at 1 / sqrt(width): words that pretraining never meets then weigh as much as those it
    does, and class names made of them stay apart.

    Raises:
        RequestError: the folder holds no such architecture.
    """
    import open_clip
    from open_clip.transform import PreprocessCfg

    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config["model_cfg"])
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        model.visual.preprocess_cfg = vars(PreprocessCfg(**config["preprocess_cfg"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RequestError(f"--base {folder}: no {CONFIG} of a CLIP with a tokenizer ({error})") from error
    torch.nn.init.normal_(model.token_embedding.weight, std=model.token_embedding.embedding_dim**-0.5)
    return model, tokenizer


def pretrain_clip(
    out: Path,
    recipe: ClipRecipe,
    device: torch.device,
    base: Path | None = None,
    minutes: float | None = None,
    save_steps: int = 50,
    scenes: int | None = None,
) -> dict[str, Any]:
    """Pretrains, or goes on where `out` stopped; then writes the backbone.

    Args:
        out: `state.safetensors` (to go on from), `losses.csv` and `backbone/`: fp16 weights in open_clip's names,
            configuration, tokenizer, card.
        recipe: what decides the weights.
        device: where to compute.
        base: a folder with another architecture and its tokenizer; None: `ARCHITECTURE`.
        minutes: stop after this long; the same command goes on later. None: until all steps are done.
        save_steps: how often the state is written.
        scenes: test images of `phantom_clip` that the card's figures are from; None: all.

    Returns:
        The card.

    Raises:
        RequestError: `base` holds no architecture.
        WorkError: `out` holds the state of another recipe, or cannot be written; the loss is not finite.
    """
    if out.exists() and not out.is_dir():
        raise RequestError(f"--out {out}: is a file; expected a folder, or nothing yet")
    if base is not None and not (base / CONFIG).exists():
        raise RequestError(f"--base {base}: no {CONFIG}; expected a folder with open_clip's configuration")
    with run_lock(out, "pretraining"):
        temporary = out / f"{BACKBONE}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            if base is None:
                write_architecture(temporary)
            else:
                shutil.copytree(base, temporary, ignore=shutil.ignore_patterns(WEIGHTS, CARD))
            card = _pretrain(temporary, out, recipe, device, minutes, save_steps)
            write_json(temporary / CARD, card | {"skill": folder_skill(temporary, device, scenes, recipe.blind)})
            publish_folder(temporary, out / BACKBONE)
        except (OSError, SafetensorError) as error:
            raise WorkError(f"cannot write {out / BACKBONE}: {getattr(error, 'strerror', None) or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    published: dict[str, Any] = read_json(out / BACKBONE / CARD)
    return published


def _pretrain(
    folder: Path, out: Path, recipe: ClipRecipe, device: torch.device, minutes: float | None, save_steps: int
) -> dict[str, Any]:
    """Takes the steps, writes losses, and the weights into `folder`; returns the card."""
    model, tokenizer = fresh_clip(folder, recipe.seed)
    pins = digest([[name, file_digest(folder / name)] for name in (CONFIG, "tokenizer.json")])
    work = ClipPretraining(model, tokenizer, recipe, out, device, pins)
    until = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    with progress_bar("pretrain") as advance:
        finished = work.run(lambda: time.monotonic() >= until, save_steps, advance)
    write_losses(out / LOSSES, work.losses)
    unseen = restore_unseen(work, fresh_clip(folder, recipe.seed)[0])
    half = {name: value.detach().cpu().half().contiguous() for name, value in model.state_dict().items()}
    if not all(value.isfinite().all() for value in half.values()):
        raise WorkError("pretraining: a weight does not fit into fp16; try a lower --lr")
    write_atomic(folder / WEIGHTS, lambda path: save_file(half, str(path), metadata={"format": "pt"}))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "data": "generated phantoms (medbench.phantom), scenes of the share `pretrain`; captions (phantom.captions)",
        "licence": "Apache-2.0",
        "steps": work.done,
        "images": work.done * recipe.images,
        "seconds": round(work.seconds),
        "finished": finished,
        "recipe": asdict(recipe),
        "tokens_never_met": unseen,
        "temperature": round(math.exp(-model.logit_scale.item()), 4),
        "environment": environment(device),
    }


def write_losses(path: Path, losses: list[list[float]]) -> None:
    """Writes the losses of each step as a table, for plots and people."""
    sink = io.StringIO()
    table = csv.writer(sink, lineterminator="\n")
    table.writerow(("step", *PARTS))
    table.writerows((step, *values) for step, values in enumerate(losses, 1))
    write_text(path, sink.getvalue())


@torch.no_grad()
def restore_unseen(work: ClipPretraining, fresh: Any) -> int:
    """Puts the embeddings of tokens that no step has met back to where they began: decay alone has moved them.

    Returns how many were put back.
    """
    met = set(work.tokenizer.tokenizer.all_special_ids)
    for step in range(work.done):
        texts = [
            word for found in step_texts(step_scenes(work.recipe, step), work.recipe, step) for word in found.words
        ]
        texts += [text for pair in step_words(work.words, work.recipe, step) for text in pair]
        met |= set(work.tokenizer(texts).unique().tolist())
    table = work.model.token_embedding.weight
    unseen = [token for token in range(len(table)) if token not in met]
    table[unseen] = fresh.token_embedding.weight[unseen].to(table.device)
    return len(unseen)


def card_text(card: dict[str, Any]) -> str:
    """The card in a few lines."""
    done = f"{card['steps']:,} steps, {card['images']:,} images, {card['seconds'] / 60:.0f} minutes"
    more = "" if card["finished"] else " (not finished: the same command goes on)"
    return f"{done}{more}\n{skill_text(card['skill'])}"
