"""What the decompositions of a model's weights cost at its first start and at later ones: `python benchmarks/svd.py`.

Measured, on weights of bfloat16 and the segments of 8 experts of total rank 32 (`--json` for figures alone):

- *Layers*: one linear of each shape of the language tower of Qwen2.5-VL-7B. First start: digest, decomposition,
  segments, writing the cache. Later start: digest, reading, segments, with the file dropped from the system's memory
  where it lets us (the weight itself is in memory, as a loaded model is). Single use: the segments without a cache.
  The bar: a later start takes less than 2 % of the first. Medians, with the lowest and highest in brackets.
- *Model*: the sum over 28 layers of 7 linears, **extrapolated** from one linear a shape, not measured.
- *Routes*: error and time of ways to the same segments on 512 x 768 weights: the largest relative error of a segment's
  product beside a float64 SVD, for the segments of each kind. The bar is 1e-5. It is why float32 and randomised methods
  are not used: the first loses the small end, the second converges only where the spectrum falls fast, has nothing to
  offer for segments that are not principal, and is no faster here than what is exact.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.linalg import eigh
from tabulate import tabulate

from medbench.adapters.decomposition import find_decomposition, find_triplets
from medbench.adapters.decomposition_cache import decomposition_cache
from medbench.adapters.spectrum import segment_factors, segment_starts

EXPERTS, RANK, BAR = 8, 32, 0.02
D = RANK // EXPERTS
# Linears of a layer, by the shape of their weight (https://huggingface.co/Qwen/Qwen2.5-VL-7B-Instruct, config.json).
LAYERS = 28
LINEARS = {
    (3584, 3584): ["q_proj", "o_proj"],
    (512, 3584): ["k_proj", "v_proj"],
    (18944, 3584): ["gate_proj", "up_proj"],
    (3584, 18944): ["down_proj"],
}
KINDS = ("principal", "spectral", "minor")
Shape = tuple[int, int]
Route = Callable[[torch.Tensor, list[tuple[int, int]]], torch.Tensor]


def timed(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def forget(folder: Path) -> None:
    """Drops the files of a folder from the system's memory, where it has a call for that."""
    for path in folder.glob("*.safetensors") if hasattr(os, "posix_fadvise") else ():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def measure_layer(shape: Shape, rounds: int) -> dict[str, Any]:
    """Seconds (medians) of first starts, later ones and single uses, for one linear."""
    weight = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) / math.sqrt(shape[1])).bfloat16()
    starts = segment_starts("spectral", min(shape), EXPERTS, D)

    def start() -> None:
        segment_factors(weight, starts, D)

    taken: dict[str, list[float]] = {"first": [], "later": [], "single_use": []}
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with decomposition_cache(folder):
                taken["first"].append(timed(start))
                forget(folder)
                taken["later"].append(timed(start))
            stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        taken["single_use"].append(timed(start))
    seconds = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "shape": list(shape),
        "linears": LINEARS.get(shape, []),
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "ratio": seconds["later"] / seconds["first"],
        "spread": {name: [min(values), max(values)] for name, values in taken.items()},
        "stored_bytes": stored,
    }


def whole_model(layers: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums over all linears of the model, extrapolated from one of each shape."""
    sums = {
        key: sum(LAYERS * len(layer["linears"]) * layer[key] for layer in layers)
        for key in ("first_seconds", "later_seconds", "single_use_seconds", "stored_bytes")
    }
    return {"extrapolated": True, "layers": LAYERS, **sums, "ratio": sums["later_seconds"] / sums["first_seconds"]}


def products(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """[N, m, n] from columns [m, N d] (scaled) and rows [N d, n]."""
    return torch.stack([a @ b for a, b in zip(left.chunk(count, 1), right.chunk(count), strict=True)])


def by_svd(weight: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Segments of an SVD in the weight's own precision."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    index = torch.cat([torch.arange(*span) for span in spans])
    return products(u[:, index] * s[index], vh[index], len(spans))


def by_gram(weight: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Segments of one Gram matrix in the weight's own precision, without a second look at its small end."""
    vectors = torch.linalg.eigh(weight @ weight.T).eigenvectors.flip(1)
    left = torch.cat([vectors[:, start:stop] for start, stop in spans], 1)
    return products(left, left.T @ weight, len(spans))


def by_subset(weight: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
    """Segments from `scipy.linalg.eigh`, asked for one after another."""
    gram, h = (weight @ weight.T).numpy(), len(weight)
    parts = [eigh(gram, subset_by_index=[h - stop, h - start - 1])[1] for start, stop in spans]
    left = torch.cat([torch.from_numpy(part) for part in parts], 1)
    return products(left, left.T @ weight, len(spans))


def randomised(rounds: int) -> Route:
    """Halko, Martinsson and Tropp (2011), twice as many columns as are wanted; it finds principal segments only."""

    def route(weight: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
        u, s, v = torch.svd_lowrank(weight, q=2 * RANK, niter=rounds)
        return products((u * s)[:, :RANK], v.T[:RANK], len(spans))

    return route


def ours(find: Callable[..., Any]) -> Route:
    """Segments from the library."""

    def route(weight: torch.Tensor, spans: list[tuple[int, int]]) -> torch.Tensor:
        found = find(weight, spans)
        triplets = found if find is find_triplets else found[1]
        return products((triplets.short * triplets.values.unsqueeze(1)).T, triplets.long, len(spans))

    return route


ROUTES: dict[str, tuple[Route, torch.dtype]] = {
    "float64 SVD": (by_svd, torch.float64),
    "used: whole decomposition": (ours(find_decomposition), torch.float64),
    "used: single use": (ours(find_triplets), torch.float64),
    "float64 Gram, once": (by_gram, torch.float64),
    "float64 Gram, subset_by_index": (by_subset, torch.float64),
    "float32 SVD": (by_svd, torch.float32),
    "float32 Gram": (by_gram, torch.float32),
    "randomised, 2 rounds": (randomised(2), torch.float64),
    "randomised, 8 rounds": (randomised(8), torch.float64),
}


def spectrum(name: str, shape: Shape) -> torch.Tensor:
    """A float64 weight: `gaussian`, or of a condition with singular values at even ratios."""
    generator = torch.Generator().manual_seed(0)
    if name == "gaussian":
        return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[1])
    sides = [torch.randn(size, min(shape), generator=generator, dtype=torch.float64) for size in shape]
    left, right = (torch.linalg.qr(side)[0] for side in sides)
    return (left * float(name.split()[-1]) ** -torch.linspace(0, 1, min(shape), dtype=torch.float64)) @ right.T


def measure_routes(shape: Shape, rounds: int) -> list[dict[str, Any]]:
    """Largest relative error by kind of segments, and seconds (median), of every route and spectrum."""
    rows = []
    for name in ("condition 1e2", "condition 1e4", "gaussian"):
        weight = spectrum(name, shape)
        spans = {}
        for kind in KINDS:
            starts = segment_starts(kind, min(shape), EXPERTS, D)
            spans[kind] = [(start, start + D) for start in starts]
        expected = {kind: by_svd(weight, spans[kind]) for kind in KINDS}
        for title, (route, dtype) in ROUTES.items():
            cast = weight.to(dtype)
            errors: dict[str, float | None] = dict.fromkeys(KINDS)
            for kind in KINDS[:1] if title.startswith("randomised") else KINDS:
                error = (route(cast, spans[kind]) - expected[kind]).norm(dim=(1, 2))
                errors[kind] = (error / expected[kind].norm(dim=(1, 2))).max().item()
            kind = "principal" if title.startswith("randomised") else "spectral"
            taken = [timed(lambda r=route, w=cast, s=spans[kind]: r(w, s)) for _ in range(rounds)]  # type: ignore[misc]
            rows.append({"weight": name, "route": title, **errors, "seconds": statistics.median(taken)})
    return rows


def text(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    heads = ["weight", "linears", "first start (s)", "later start (s)", "ratio", "single use (s)", "stored (MiB)"]

    def cells(row: dict[str, Any]) -> list[str]:
        spread = {name: " [{:.3g}, {:.3g}]".format(*ends) for name, ends in row.get("spread", {}).items()}
        first, later, single = (
            f"{row[f'{name}_seconds']:,.3g}{spread.get(name, '')}" for name in ("first", "later", "single_use")
        )
        return [first, later, f"{row['ratio']:.2%}", single, f"{row['stored_bytes'] / 2**20:,.0f}"]

    layers = [["{} x {}".format(*row["shape"]), ", ".join(row["linears"]), *cells(row)] for row in figures["layers"]]
    lines = [
        "# Decompositions of weights",
        f"`{figures['command']}` on {figures['cores']} CPU cores, {figures['threads']} threads; weights of bfloat16, "
        f"segments of {EXPERTS} experts, total rank {RANK}. Bar: a later start under {BAR:.0%} of the first.",
        "## One linear",
        tabulate(layers, heads, "github", disable_numparse=True),
    ]
    if figures["model"]:
        total = ["all", f"{LAYERS} layers of 7 linears", *cells(figures["model"])]
        lines += [
            "## The language tower of Qwen2.5-VL-7B: extrapolated, not measured",
            tabulate([total], heads, "github", disable_numparse=True),
        ]
    routes = []
    for row in figures["routes"]:
        errors = ["" if row[kind] is None else f"{row[kind]:.0e}" for kind in KINDS]
        routes.append([row["weight"], row["route"], *errors, f"{1000 * row['seconds']:,.0f}"])
    lines += [
        "## Routes, on 512 x 768: largest relative error of a segment's product beside a float64 SVD (bar: 1e-5)",
        tabulate(routes, ["weight", "route", *KINDS, "ms"], "github", disable_numparse=True),
    ]
    return "\n\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="What the decompositions of a model's weights cost.")
    parser.add_argument("--json", action="store_true", help="print figures alone")
    parser.add_argument("--shape", action="append", metavar="MxN", help="measure this weight instead of the model's")
    parser.add_argument("--rounds", type=int, default=3, help="of everything; the median counts")
    asked = parser.parse_args()
    shapes: list[Shape] = [tuple(map(int, s.split("x"))) for s in asked.shape or ()] or list(LINEARS)  # type: ignore[misc]
    measure_layer((64, 64), 1)  # what only the first call of a process pays
    layers = []
    for shape in shapes:
        print("measuring {} x {}".format(*shape), file=sys.stderr)
        layers.append(measure_layer(shape, asked.rounds))
    figures = {
        "command": " ".join(["python benchmarks/svd.py", *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "layers": layers,
        "model": None if asked.shape else whole_model(layers),
        "routes": measure_routes((512, 768), asked.rounds),
    }
    print(json.dumps(figures, indent=1) if asked.json else text(figures))


if __name__ == "__main__":
    main()
