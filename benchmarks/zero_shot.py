"""Zero-shot classification against a plain open_clip loop over the same images: `python benchmarks/zero_shot.py`.

In one process, `nano-clip` on phantoms written as PNG files (`--pixels` a side), in rounds whose order is turned: the
plain loop (open each image, open_clip's preprocessing, one batch after another, argmax), ours without a stored
embedding (cold), and ours again (warm: every embedding is stored). Figures are ratios of times, as medians over the
rounds with the lowest and highest: more than 1 is faster than the plain loop. Bars: cold >= 1.0, warm >= 20.

*Memory*: the largest resident set while N and 4 N images are classified, each in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate

from medbench.backbones.clip import Clip, load_clip
from medbench.backbones.registry import get_backbone
from medbench.catalog import Catalog
from medbench.data.item import FileImage, Item, decode
from medbench.data.load import load_items
from medbench.inference.embeddings import EmbeddingStore
from medbench.inference.zero_shot import ZeroShotPredictor, class_weights, store_namespace

TASK, BATCH = "phantom_clip", 32


def written(folder: Path, count: int, pixels: int) -> list[Item]:
    """Phantoms as PNG files, `pixels` a side; later ones repeat scenes, each in a file of its own bytes."""
    scenes = load_items(Catalog().task(TASK), "test", None).items
    items = []
    for number in range(count):
        scene = scenes[number % len(scenes)]
        image = decode(scene.image.read()).resize((pixels, pixels))
        image.putpixel((0, 0), (number % 256, number // 256 % 256, number // 65536))
        path = folder / f"{number}.png"
        image.save(path)
        items.append(Item(str(number), FileImage(path.name, path), "", scene.answer, True))
    return items


@torch.inference_mode()
def plain(clip: Clip, items: Sequence[Item], weights: torch.Tensor) -> list[int]:
    """What a reader of open_clip's README writes."""
    found: list[int] = []
    for start in range(0, len(items), BATCH):
        paths = [Path(item.image.place) for item in items[start : start + BATCH]]
        pixels = torch.stack([clip.transform(Image.open(path).convert("RGB")) for path in paths])
        features = clip.base.encode_image(pixels, normalize=True)
        found += (100.0 * features @ weights.T).softmax(-1).argmax(-1).tolist()
    return found


def seconds(work: Callable[[], object]) -> float:
    """Of one call."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def measure(count: int, pixels: int, rounds: int) -> dict[str, Any]:
    """Times of the three, and whether they say the same."""
    backbone = get_backbone("nano-clip")
    clip = load_clip(backbone, torch.float32, torch.device("cpu"))
    prompts = Catalog().task(TASK).prompts(single=False)
    taken: dict[str, list[float]] = {"plain": [], "cold": [], "warm": []}
    with tempfile.TemporaryDirectory() as name:
        items = written(Path(name), count, pixels)
        weights = class_weights(clip, prompts)
        space = store_namespace(clip, backbone.identity(), "float32", "vision")
        said: dict[str, list[Any]] = {}
        for number in range(rounds):
            store = EmbeddingStore(Path(name) / f"store-{number}", space, 2**30)
            ours = ZeroShotPredictor(clip, prompts, BATCH, store)

            def classify(predictor: ZeroShotPredictor = ours) -> list[Any]:
                return [row["prediction"] for row in predictor.predict(items, lambda count: None)]

            def run(which: str, work: Callable[[], list[Any]]) -> None:
                taken[which].append(seconds(lambda: said.__setitem__(which, work())))

            order = ["plain", "cold"] if number % 2 else ["cold", "plain"]
            for which in (*order, "warm"):
                run(which, classify if which != "plain" else lambda: plain(clip, items, weights))
            store.close()
        classes = list(prompts)
        same = said["cold"] == said["warm"] == [classes[index] for index in said["plain"]]
    ratios = {w: [p / o for p, o in zip(taken["plain"], taken[w], strict=True)] for w in ("cold", "warm")}
    return {"images": count, "pixels": pixels, "same_answers": same, "seconds": taken, "ratios": ratios}


def peak(count: int, pixels: int) -> float:
    """MiB, of a process that classifies this many images."""
    command = [sys.executable, __file__, "--peak", str(count), "--pixels", str(pixels)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def classified(count: int, pixels: int) -> float:
    """Classifies in this process; its peak in MiB."""
    clip = load_clip(get_backbone("nano-clip"), torch.float32, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        items = written(Path(name), count, pixels)
        predictor = ZeroShotPredictor(clip, Catalog().task(TASK).prompts(single=False), BATCH)
        predictor.predict(items, lambda count: None)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def shown(values: Sequence[float]) -> str:
    """Median, lowest and highest."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        print(classified(asked.peak, asked.pixels))
        return
    found = [measure(asked.images, pixels, asked.rounds) for pixels in (asked.pixels, 4 * asked.pixels)]
    memory = {count: peak(count, asked.pixels) for count in (asked.images, 4 * asked.images)}
    if asked.json:
        print(json.dumps({"speed": found, "peak_mib": memory}))
        return
    rows = [
        [f["images"], f["pixels"], shown(f["ratios"]["cold"]), shown(f["ratios"]["warm"]), f["same_answers"]]
        for f in found
    ]
    print(f"`python benchmarks/zero_shot.py`, {torch.get_num_threads()} threads, {asked.rounds} rounds.\n")
    head = ["images", "pixels a side", "cold: times as fast (bar 1.0)", "warm: times as fast (bar 20)", "same answers"]
    print(tabulate(rows, head, tablefmt="github"))
    print("\nPeak memory (MiB): " + ", ".join(f"{count:,} images {mib:.0f}" for count, mib in memory.items()))


if __name__ == "__main__":
    main()
