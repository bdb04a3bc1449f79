"""Run folders with made-up scores, as runs would leave them, without running anything (no tests in here)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medbench.files import canonical_json, digest
from medbench.results.record import RECORD_SCHEMA, task_figures

TOY = "c" * 64
OTHER = "e" * 64


def scores(closed: ArrayLike, opened: ArrayLike, seed: int = 0, each: int = 2, task: str = "toy") -> pd.DataFrame:
    """A score table: closed items (0/1 or shares), then open ones, `each` of a kind an image; rows in any order."""
    right, recall = np.asarray(closed, dtype=float), np.asarray(opened, dtype=float)
    n = len(right)
    is_closed = np.arange(n + len(recall)) < n
    number = np.where(is_closed, np.arange(n + len(recall)), np.arange(n + len(recall)) - n)
    values = np.concatenate([right, recall])
    rng = np.random.default_rng(seed + 1000)
    p_yes, gold = rng.random(len(values)), number // 2 % 2
    nothing = np.full(len(values), np.nan)
    table = pd.DataFrame(
        {
            "task": task,
            "split": "test",
            "id": [f"{'c' if c else 'o'}{k}" for c, k in zip(is_closed, number, strict=True)],
            "cluster": [f"image{k // each}" for k in number],
            "type": np.where(is_closed, "closed", "open"),
            "profile": "medbench",
            "closed": np.where(is_closed, values, np.nan),
            **{name: np.where(is_closed, np.nan, values) for name in ("em", "precision", "recall", "f1")},
            **dict.fromkeys(("quasi_em", "rouge_l"), nothing),
            "p_yes": np.where(is_closed, p_yes, np.nan),
            "gold_is_yes": np.where(is_closed, gold, np.nan),
            "confidence": np.where(is_closed, np.maximum(p_yes, 1 - p_yes), np.nan),
            "argmax_right": np.where(is_closed, (p_yes > 0.5) == gold, np.nan),
        }
    )
    return table.sample(frac=1, random_state=seed)


def answers(seed: int, skill: float = 0.0, images: int = 40, each: int = 2) -> pd.DataFrame:
    """Scores of a system of some skill; what makes an image hard is the same for all systems and seeds."""
    hard = np.repeat(np.random.default_rng(0).random(images), each)
    rng = np.random.default_rng(seed)
    right = rng.random(len(hard)) < np.clip(hard + skill, 0, 1)
    return scores(right, np.clip(hard + skill + 0.05 * rng.standard_normal(len(hard)), 0, 1), seed, each)


def part(task: str = "toy", split: str = "train", **changes: Any) -> dict[str, Any]:
    """The data of a test or of a part of a mixture, as in a spec."""
    card = TOY if task == "toy" else OTHER
    return {"task": task, "split": split, "version": 1, "card": card, "digest": None, "limit": None} | changes


def make_record(
    method: str = "lora", seed: int = 0, trained: tuple[str, ...] = ("toy",), **spec: Any
) -> dict[str, Any]:
    """A record without figures; `spec` replaces fields of the spec, by dotted names with `__` for dots."""
    outside = method in ("none", "full_ft", "full_ft_moe")
    trained = () if method == "none" else trained
    training = {"batch_size": 16, "epochs": 1.0, "lr": 0.003}
    content: dict[str, Any] = {
        "backbone": {"kind": "vlm", "name": "nano-vl", "processor": {}, "weights": "sha256:" + "b" * 64},
        "budget": {
            "comparable": not outside,
            "distance": None if outside else 0.0,
            "request": "" if outside else "like=spectral_moe:16",
            "trainable": 0 if method == "none" else 1000,
        },
        "dtype": "float32",
        "generation": {"batch_size": 32, "max_new_tokens": None},
        "method": {"adapter": {} if outside else {"r": 16}, "name": method, "tuner": method, "weights": None},
        "on_bad_item": "fail",
        "protocol": "in_domain" if trained else "zero_shot",
        "seed": seed,
        "stages": [{"mixture": [{"data": part(task), "weight": 1.0} for task in trained], "training": training}]
        if trained
        else [],
        "tests": [part(split="test")],
        "version": 1,
    }
    for name, value in spec.items():
        place: Any = content
        *path, last = name.split("__")
        for key in path:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    data = {"layout": "toy", "items": 160, "images": 40, "digest": "1" * 64, "images_digest": "2" * 64, "skipped": 0}
    budget = content["budget"]
    return {
        "schema": RECORD_SCHEMA,
        "run": digest(content),
        "method": method,
        "seed": seed,
        "backbone": content["backbone"]["name"],
        "protocol": content["protocol"],
        "blind": content.get("blind"),
        "tasks": {},
        "trained_on": list(trained),
        "stages": [[p["data"]["task"] for p in stage["mixture"]] for stage in content["stages"]],
        "parameters": {
            "rank": content["method"]["adapter"].get("r"),
            "trainable": budget["trainable"],
            "total": 20_000,
            "percent": budget["trainable"] / 200,
            "budget": budget["request"] or None,
            "budget_distance": budget["distance"],
            "comparable": budget["comparable"],
        },
        "data": {"toy/test": dict(data)} | {f"{task}/train": dict(data) for task in trained},
        "weights": {"backbone": content["backbone"]["weights"], "commit": None, "adapter": f"{method}{seed}"},
        "dtype": "float32",
        "spec": content,
    }


def write_run(out: Path, record: dict[str, Any], table: pd.DataFrame, name: str | None = None) -> Path:
    """The folder of a run with this record, its figures computed from the score table."""
    record = copy.deepcopy(record)
    (test,) = record["spec"]["tests"]
    about = {"protocol": record["protocol"], "split": test["split"], "profile": "medbench", "skipped": 0}
    record["tasks"] = {"toy": task_figures([table], resamples=500) | about | record["tasks"].get("toy", {})}
    folder = out / (name or record["run"])
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(canonical_json(record["spec"]))
    (folder / "record.json").write_text(json.dumps(record))
    table.to_parquet(folder / "scores.parquet")
    table[["task", "split", "id", "cluster"]].to_parquet(folder / "predictions.parquet")
    return folder


def run(out: Path, method: str, seed: int, table: pd.DataFrame, **spec: Any) -> Path:
    """A run folder of a method and seed with these scores; `spec` as for `make_record`."""
    return write_run(out, make_record(method, seed, **spec), table)
