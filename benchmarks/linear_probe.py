"""What a frozen visual tower's features give without any adapter: a logistic regression, the mark for tuned towers.

    python benchmarks/linear_probe.py BACKBONE --task busi --data-root ../shared/data

Features are the tower's, before a dual encoder's projection where it has one of its own; standardised; the strength of
the regularisation is chosen on the validation split. Images are prepared as for any run of the backbone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from medbench.backbones.clip import load_clip
from medbench.backbones.dual import DualEncoder
from medbench.backbones.registry import get_backbone
from medbench.catalog import Catalog
from medbench.data.load import load_items
from medbench.inference.zero_shot import ImageEmbedder
from medbench.scoring.bootstrap import cluster_bootstrap_mean

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
BATCH = 32


def main() -> None:
    """Embeds, fits and prints one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data-root", type=Path, required=True)
    asked = parser.parse_args()
    clip = load_clip(get_backbone(asked.backbone), torch.float32, torch.device("cpu"))
    if isinstance(clip.base, DualEncoder):
        clip.base.visual.proj = torch.nn.Identity()
    card = Catalog().task(asked.task)
    features, labels, clusters = {}, {}, {}
    for split in ("train", "validation", "test"):
        items = load_items(card, split, asked.data_root).items
        features[split] = np.concatenate([found.numpy() for _, found in ImageEmbedder(clip).batches(items, BATCH)])
        labels[split] = np.array([item.answer for item in items])
        clusters[split] = [item.cluster for item in items]
    fitted = {
        strength: make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=5000)).fit(
            features["train"], labels["train"]
        )
        for strength in STRENGTHS
    }
    judged = {strength: model.score(features["validation"], labels["validation"]) for strength, model in fitted.items()}
    best = max(judged, key=lambda strength: judged[strength])
    right = (fitted[best].predict(features["test"]) == labels["test"]).astype(float)
    found = cluster_bootstrap_mean(right, clusters["test"])
    print(
        f"{asked.task}, {asked.backbone}, {clip.image_size} px, C = {best:g}: validation {100 * judged[best]:.1f}, "
        f"test {100 * (found.value or 0):.1f} [{100 * (found.low or 0):.1f}, {100 * (found.high or 0):.1f}] "
        f"of {len(right)} images"
    )


if __name__ == "__main__":
    main()
