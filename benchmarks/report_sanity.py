"""What the report metrics say where the answer is known: the table `results/sanity/iu_xray_reports.md`.

    python benchmarks/report_sanity.py --data-root ../shared/data --out results/sanity/iu_xray_reports.md

The references of the 590 test studies of IU-Xray against themselves (the maxima), against themselves in another order
(the level of chance) and against the commonest training report; and how far the rules that find findings agree with the
problem words that people gave the same studies. No images are needed.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medbench.catalog import Catalog, Settings
from medbench.data.item import Item
from medbench.data.load import load_items
from medbench.files import write_text
from medbench.scoring.bootstrap import Estimate
from medbench.scoring.findings import NO_FINDING, chexbert14, contingency, problem_labels
from medbench.scoring.kinds import estimate_kind
from medbench.scoring.report import implementations, score

TASK = "iu_xray_report"
COMMAND = "python benchmarks/report_sanity.py --data-root ../shared/data --out results/sanity/iu_xray_reports.md"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table; the first is the head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figures(items: Sequence[Item], predictions: Sequence[str]) -> dict[str, Estimate]:
    """The report metrics of predictions for the items, in their order."""
    frame = pd.DataFrame(
        {
            "id": [item.id for item in items],
            "cluster": [item.image.key for item in items],
            "type": "open",
            "gold": [item.answer for item in items],
            "prediction": list(predictions),
        }
    )
    return estimate_kind("report", [score(frame)])


def shown(found: Estimate) -> str:
    """A figure with its interval, or why there is none."""
    if found.value is None:
        return "-"
    spread = "" if found.low is None else f" ({found.low:.3f}-{found.high:.3f})"
    return f"{found.value:.3f}{spread}"


def metric_table(train: Sequence[Item], test: Sequence[Item]) -> tuple[str, str]:
    """The metrics of the three answerers, and the commonest training report."""
    golds = [item.answer for item in test]
    shuffled = random.Random(0).sample(golds, len(golds))  # noqa: S311 (an order, not a secret)
    commonest, times = Counter(item.answer for item in train).most_common(1)[0]
    answerers = {"itself": golds, "another study's": shuffled, "the commonest": [commonest] * len(golds)}
    found = {name: figures(test, predictions) for name, predictions in answerers.items()}
    rows = [["metric", *answerers, "n"]]
    for name, one in found["itself"].items():
        rows.append([name, *(shown(each[name]) for each in found.values()), str(one.n) if one.n else f"{one.reason}"])
    return table(rows), f"{times} of {len(train):,} training reports are: {commonest!r}"


def texts(path: Path) -> dict[str, dict[str, str]]:
    """The Indiana collection's rows by uid."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return {row["uid"]: row for row in csv.DictReader(io.StringIO(content.decode()))}


def agreement_table(rows: Sequence[dict[str, str]]) -> str:
    """The labeller against the problem words, finding by finding, on the studies that have both."""
    labeller = chexbert14()
    used = [
        r for r in rows if (r["findings"] or r["impression"]).strip() and "no indexing" not in r["Problems"].lower()
    ]
    gold = [problem_labels(row["Problems"], labeller.vocabulary) for row in used]
    labels = [labeller.label(f"{row['findings']}\n{row['impression']}") for row in used]
    present = [frozenset(k for k, v in found.items() if v == "present") for found in labels]
    possible = [frozenset(k for k, v in found.items() if v != "absent") for found in labels]
    head = ["finding", "problem words", "present", "both", "precision", "recall", "kappa", "kappa, possible too"]
    out = [head]
    for name in (*labeller.findings, NO_FINDING):
        one, two = contingency(present, gold, name), contingency(possible, gold, name)
        counts = (one["tp"] + one["fn"], one["tp"] + one["fp"], one["tp"])
        shares = (one["precision"], one["recall"], one["kappa"], two["kappa"])
        out.append([name, *(f"{count:.0f}" for count in counts), *(f"{v:.2f}" if v == v else "-" for v in shares)])
    return f"n = {len(used):,} studies.\n\n{table(out)}"


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/sanity/iu_xray_reports.md"))
    arguments = parser.parse_args()
    card = Catalog(Settings()).task(TASK)
    train, test = (load_items(card, split, arguments.data_root).items for split in ("train", "test"))
    metrics, commonest = metric_table(train, test)
    folder = arguments.data_root / card.metadata.folder
    found = texts(next(path for path in sorted(folder.glob("indiana_reports.csv*"))))
    tested = {item.id.partition("_")[0].removeprefix("CXR") for item in test}
    programs = table([["metric", "program"], *([name, how] for name, how in implementations().items())])
    write_text(
        arguments.out,
        f"""# Sanity of the report metrics, on the real IU-Xray test reports

Made by `{COMMAND}`; without images.

The {len(test)} reference reports (findings, R2Gen's test split), answered by themselves, which gives the maxima; by one
another in a shuffled order (seed 0), which is the level of chance; and by one report for all, the commonest of the
training split. In brackets the 95 % interval (clustered bootstrap, 10,000 resamples).

{metrics}

{commonest}

`finding_hallucination` and `hallucinating_share` are better when lower; `cider_d` reaches 10. The commonest report
asserts no finding, so it makes none up: the share is undefined, and finding_recall says why that is no merit.

## The findings labeller against people's labels

IU-Xray's problem words were given by people who read the whole report. The rules of
`medbench/scoring/chexbert14.yaml` (no trained model, not CheXbert) read findings and impression. A problem word is
taken for a finding as that file says; some fit loosely (opacity, thickening, mediastinum), and "normal" is stricter
than "No Finding", which allows whatever is none of the 13 (scoliosis, a granuloma, a tortuous aorta). Precision, recall
and Cohen's kappa are of "present".

The rules were developed on the other studies; the test split was looked at once they stood.

### Test split (R2Gen's test studies)

{agreement_table([row for uid, row in found.items() if uid in tested])}

### The other studies, on which the rules were developed

{agreement_table([row for uid, row in found.items() if uid not in tested])}

## Programs

{programs}
""",
    )


if __name__ == "__main__":
    main()
