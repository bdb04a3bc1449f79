"""Which experts, and with them which segments of the spectrum, each task of a run uses; and how tasks differ."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medbench.listing import text_table
from medbench.results.record import read_record
from medbench.results.routes import LayerUse, Routes, Segments, read_routes

Array = NDArray[np.float64]
#: So many pairs of tasks are printed.
_PAIRS = 12


class LayerName(NamedTuple):
    """What a person calls a layer: of the vision tower or not, its number, and which matrix."""

    vision: bool
    number: int | None
    kind: str

    @property
    def block(self) -> str:
        """`layer 3`, `vision 3`; empty where the layers are not numbered."""
        return "" if self.number is None else f"{'vision' if self.vision else 'layer'} {self.number}"

    @property
    def matrix(self) -> str:
        """`q_proj`, `vision qkv`: the same for every layer of a kind."""
        return f"vision {self.kind}" if self.vision else self.kind

    def __str__(self) -> str:
        return f"{self.block} / {self.kind}" if self.block else self.kind


def layer_name(module: str) -> LayerName:
    """A module's name as a person reads it.

    Example:
        >>> str(layer_name("model.language_model.layers.3.self_attn.q_proj"))
        'layer 3 / q_proj'
    """
    parts = module.split(".")
    numbers = [int(part) for part in parts if part.isdigit()]
    vision = any(part.startswith(("visual", "vision")) for part in parts)
    return LayerName(vision, numbers[-1] if numbers else None, parts[-1])


class Consistency(NamedTuple):
    """How far two tasks' use of the experts lies apart: by layer, and the mean over the layers."""

    mean: float
    layers: dict[str, float]


def consistency(a: Mapping[str, ArrayLike], b: Mapping[str, ArrayLike]) -> Consistency:
    """Jensen-Shannon distance between the expert use of two tasks: 0 the same, 1 no expert in common.

    With p and q the shares of the experts in a layer and m = (p + q) / 2,
    d = sqrt((KL(p || m) + KL(q || m)) / 2), logarithms to base 2: the divergence of Lin (1991, IEEE Trans. Inf.
    Theory 37) lies in [0, 1], and its root is a metric (Endres and Schindelin 2003, IEEE Trans. Inf. Theory 49).

    Args:
        a: layer -> [N], what each expert got of a task; normalised here.
        b: the same of another task.

    Raises:
        ValueError: not the same layers.

    Example:
        >>> consistency({"q": [1, 1]}, {"q": [4, 4]}).mean, consistency({"q": [1, 0]}, {"q": [0, 1]}).mean
        (0.0, 1.0)
    """
    if set(a) != set(b):
        raise ValueError("the two tasks ran through different layers")
    found = {name: _distance(_normalised(a[name]), _normalised(b[name])) for name in a}
    return Consistency(float(np.mean(list(found.values()))), found)


def _distance(p: Array, q: Array) -> float:
    middle = (p + q) / 2
    divergence = (_relative_entropy(p, middle) + _relative_entropy(q, middle)) / 2
    return float(np.sqrt(min(max(divergence, 0.0), 1.0)))  # rounding may leave the range


def _relative_entropy(p: Array, q: Array) -> float:
    some = p > 0
    return float((p[some] * np.log2(p[some] / q[some])).sum())


def _normalised(use: ArrayLike) -> Array:
    counts = np.asarray(use, dtype=np.float64)
    return counts / counts.sum() if counts.sum() else np.full(len(counts), 1 / len(counts))


def entropy(share: Array) -> float:
    """Entropy of expert use over log N: 0 when one expert gets everything, 1 when balanced.

    Example:
        >>> entropy(np.array([0.5, 0.5, 0.0, 0.0]))
        0.5
    """
    some = share[share > 0]
    return float(-(some * np.log(some)).sum() / np.log(len(share))) + 0.0 if len(share) > 1 else 1.0


def measure(routes: Routes) -> str:
    """What an expert's share is a share of: routed slots, or gate mass where every token goes to every expert."""
    return "gate mass" if routes.router == "softmax" else "slots"


def layer_share(routes: Routes, use: LayerUse) -> Array:
    """[N], the experts' shares of one layer (`measure`); they sum to 1, 1 / N each when balanced."""
    return _normalised(use.mass if measure(routes) == "gate mass" else use.slots)


def task_shares(routes: Routes, task: str) -> dict[str, Array]:
    """Layer -> [N], see `layer_share`."""
    return {name: layer_share(routes, use) for name, use in routes.tasks[task].layers.items()}


def start_words(segments: Segments, experts: int) -> list[str]:
    """Where each expert starts, in few words.

    As a fraction j/N of the spectrum (spectral), as triplets where they are the same in all layers (principal), else
    as the mean relative start, 0 being the largest singular value.
    """
    if segments.init == "spectral":
        return [f"{j}/{experts}" for j in range(experts)]
    if len(set(segments.starts.values())) == 1:
        return [f"{start}-{start + segments.rank - 1}" for start in next(iter(segments.starts.values()))]
    relative = np.mean([np.array(segments.of(name)) / h for name, h in segments.values.items()], axis=0)
    return [f"{value:.2f}" for value in relative]


def summary(folder: Path) -> dict[str, Any]:
    """What the routers of a run did, as plain data.

    Returns:
        run, folder, method, seed, backbone, trained_on, experts, router, top_k, measure, balanced (1 / N), segments,
        tasks, and `consistency`: the Jensen-Shannon distances of every two tasks.

        `segments` is None, or init, rank, `values` by layer, `starts` by number of values, `words`, and the
        `mean_start` of balanced use. A task has split, questions, tokens; as means over the layers experts_per_token,
        share [N], entropy, mean_start (where in the spectrum the experts start that it uses, 0 first to 1 last; None
        without segments); groups (matrix -> share, most_used) and layers (name -> tokens, slots, mass, share,
        entropy).

    Raises:
        MedbenchError: see `read_routes`.
    """
    routes, record = read_routes(folder), read_record(folder)
    about = {key: record[key] for key in ("run", "method", "seed", "backbone")} | {"folder": str(folder)}
    about["trained_on"] = " then ".join("+".join(stage) for stage in record["stages"])
    known = routes.segments
    segments = known and {
        **{"init": known.init, "rank": known.rank, "values": known.values, "starts": known.starts},
        "words": start_words(known, routes.experts),
        "mean_start": float(np.mean([np.mean(known.of(name)) / h for name, h in known.values.items()])),
    }
    distances = []
    for a, b in combinations(routes.tasks, 2):
        found = consistency(task_shares(routes, a), task_shares(routes, b))
        distances.append({"tasks": [a, b], "mean": found.mean, "layers": found.layers})
    return about | {
        "experts": routes.experts,
        "router": routes.router,
        "top_k": routes.top_k if routes.router == "topk" else None,
        "measure": measure(routes),
        "balanced": 1 / routes.experts,
        "segments": segments,
        "tasks": {task: _task_summary(routes, task) for task in routes.tasks},
        "consistency": distances,
    }


def _task_summary(routes: Routes, task: str) -> dict[str, Any]:
    use, shares, segments = routes.tasks[task], task_shares(routes, task), routes.segments
    layers = {
        name: {
            **{"tokens": layer.tokens, "slots": list(layer.slots), "mass": list(layer.mass)},
            **{"share": shares[name].tolist(), "entropy": entropy(shares[name])},
        }
        for name, layer in use.layers.items()
    }
    groups: dict[str, list[Array]] = {}
    for name, share in shares.items():
        groups.setdefault(layer_name(name).matrix, []).append(share)
    means = {matrix: np.mean(group, axis=0) for matrix, group in groups.items()}
    starts = segments and [share @ segments.of(name) / segments.values[name] for name, share in shares.items()]
    return {
        **{"split": use.split, "questions": use.questions, "tokens": use.tokens},
        "experts_per_token": float(np.mean([sum(u.slots) / max(u.tokens, 1) for u in use.layers.values()])),
        "share": np.mean(list(shares.values()), axis=0).tolist(),
        "entropy": float(np.mean([layer["entropy"] for layer in layers.values()])),
        "mean_start": float(np.mean(starts)) if starts else None,
        "groups": {m: {"share": mean.tolist(), "most_used": int(np.argmax(mean))} for m, mean in means.items()},
        "layers": layers,
    }


def summary_text(found: dict[str, Any]) -> str:
    """A `summary` as tables for a person."""
    router = f"{found['router']} {found['top_k']}" if found["top_k"] else found["router"]
    layers = len(next(iter(found["tasks"].values()))["layers"])
    init = found["segments"] and found["segments"]["init"]
    text = (
        f"{found['method']} seed {found['seed']} on {found['backbone']}, run {found['run'][:12]}: "
        f"{found['experts']} experts, router {router}, {layers} layers\n"
        f"share of {found['measure']} in %, mean over the layers; the experts start from "
        + (f"these parts of the spectrum ({init})" if init else "no part of the spectrum")
    )
    groups = [
        {"task": task} | {matrix: _most_used(group) for matrix, group in about["groups"].items()}
        for task, about in found["tasks"].items()
    ]
    text += f"\n\n{text_table(_use_rows(found))}\n\nmost used expert, and its share in %\n{text_table(groups)}"
    if found["consistency"]:
        text += f"\n\ndistance of expert use (Jensen-Shannon; 0 the same, 1 no expert in common){_distances(found)}"
    return text


def _use_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    n, segments = found["experts"], found["segments"]
    heads = [f"E{j}\n{words}".strip() for j, words in enumerate(segments["words"] if segments else [""] * n)]
    balanced: dict[str, Any] = {"tokens": None, "share": [found["balanced"]] * n, "entropy": 1.0}
    balanced |= {"mean_start": segments and segments["mean_start"], "experts_per_token": None}
    varies = found["router"] == "threshold"
    rows = []
    for task, about in (found["tasks"] | {"(balanced)": balanced}).items():
        row = {"task": task, "tokens": about["tokens"]}
        row |= {head: f"{100 * share:.1f}" for head, share in zip(heads, about["share"], strict=True)}
        row["entropy"] = f"{about['entropy']:.3f}"
        row |= {"mean\nstart": f"{about['mean_start']:.3f}"} if segments else {}
        rows.append(row | ({"experts\na token": about["experts_per_token"]} if varies else {}))
    return rows


def _distances(found: dict[str, Any]) -> str:
    pairs = sorted(found["consistency"], key=lambda pair: -pair["mean"])
    rows = []
    for pair in pairs[:_PAIRS]:
        layer = max(pair["layers"], key=pair["layers"].__getitem__)
        about = {"mean": pair["mean"], "largest": pair["layers"][layer], "in": str(layer_name(layer))}
        rows.append(dict(zip(("task", "and"), pair["tasks"], strict=True)) | about)
    more = f"\n{len(pairs) - _PAIRS} nearer pairs: --json" if len(pairs) > _PAIRS else ""
    return f"\n{text_table(rows)}{more}"


def _most_used(group: Mapping[str, Any]) -> str:
    return f"E{group['most_used']} {100 * group['share'][group['most_used']]:.0f}"
