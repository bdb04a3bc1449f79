"""What the tests of reports share (no tests in here)."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

GOLD = "Findings: The heart is normal in size. The lungs are clear. Impression: No acute disease."
SAID = "The heart size is normal. Lungs are clear. There is no acute cardiopulmonary disease."


def frame(golds: Sequence[str], predictions: Sequence[str], clusters: Sequence[str] | None = None) -> pd.DataFrame:
    """Items as `medbench.scoring.predictions.gold_table` hands them on."""
    ids = [f"r{number}" for number in range(len(golds))]
    return pd.DataFrame(
        {
            "id": ids,
            "cluster": list(clusters) if clusters is not None else ids,
            "type": "open",
            "gold": list(golds),
            "prediction": list(predictions),
        }
    )


def write_wordnet(folder: Path, synsets: Sequence[Sequence[str]]) -> Path:
    """A folder in WordNet's format whose nouns are these sets of synonyms."""
    folder.mkdir(parents=True)
    notice = "  1 This WordNet 0.1 Copyright is for a test\n"
    data, places = notice, {}
    for words in synsets:
        offset = len(data.encode())
        named = " ".join(f"{word} 0" for word in words)
        data += f"{offset:08} 03 n {len(words):02x} {named} 000 | a test\n"
        for word in words:
            places.setdefault(word, []).append(f"{offset:08}")
    index = "".join(f"{w} n {len(at)} 0 {len(at)} 0 {' '.join(at)}\n" for w, at in sorted(places.items()))
    for part in ("adj", "adv", "verb", "noun"):
        (folder / f"data.{part}").write_text(data if part == "noun" else notice)
        (folder / f"index.{part}").write_text(index if part == "noun" else "")
        (folder / f"{part}.exc").write_text("")
    (folder / "lexnames").write_text("".join(f"{n:02}\tnoun.test\t1\n" for n in range(4)))
    return folder
