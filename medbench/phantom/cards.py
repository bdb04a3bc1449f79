"""Writes the cards of the phantom tasks.

Four kinds of question, each over all modalities, over each alone, and through each changed scanner:

    python -m medbench.phantom.cards tasks

The cards of a changed scanner ask the same questions about the same scenes, so that figures can be compared in pairs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal

from medbench.data.load import rows_digest
from medbench.data.metadata import ClosedRule
from medbench.data.readers.phantom import rows
from medbench.files import write_text
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.image import SCANNERS
from medbench.phantom.questions import classes
from medbench.scoring.yesno import always_yes

SEED = 7
Closed = Literal["yes_no", "none", "all"]
_SHORT = "Answer with a single word or a short phrase."
_PROMPTS = {
    "vqa": f"<image>{{{{question}}}}\\n{_SHORT}",
    "report": "<image>{{question}}",
    "yesno": "<image>{{question}}\\nAnswer yes or no.",
    "cls": f"<image>{{{{question}}}}\\n{_SHORT}",
}
_OPEN = ("open_recall", "open_precision", "open_f1", "open_exact_match")
_REPORT = (*(f"sentence_bleu_{n}" for n in range(1, 5)), "rouge_1", "rouge_2", "rouge_l", "meteor")
_METRICS = {
    "vqa": ("closed_accuracy", *_OPEN),
    "report": (*_REPORT, "hallucinating_share", "empty_share"),
    "yesno": ("accuracy", "unparseable_share"),
    "cls": ("closed_accuracy",),
}
_ABOUT = {
    "vqa": "closed and open questions about lesions (kind, site, side, size, number)",
    "report": "findings and impression, a report an image; the finding metrics know words of chest radiographs alone",
    "yesno": "probes for findings that are there and that are not, evenly, by the kind of finding",
    "cls": "one class an image: normal, or the lesion's kind; by generation and by the likelihood of the class names",
}
_KINDS = {"yesno": "hallucination", "report": "report"}
_VERSIONS = {"yesno": 2, "report": 2}
_TOKENS = {"vqa": 24, "report": 128, "yesno": 8, "cls": 24}
_IMAGES = {"all": (800, 160, 300), "one": (400, 80, 150)}


def domains() -> dict[str, tuple[tuple[str, ...], str]]:
    """Suffix of a task's name -> its modalities and its scanner."""
    everything = tuple(MODALITIES)
    found: dict[str, tuple[tuple[str, ...], str]] = {"": (everything, "standard")}
    found |= {f"_{name}": ((name,), "standard") for name in MODALITIES}
    return found | {f"_{name}": (everything, name) for name in SCANNERS if name != "standard"}


def card(ask: str, suffix: str) -> str:
    """The YAML of one card."""
    modalities, scanner = domains()[suffix]
    train, validation, test = _IMAGES["one" if len(modalities) == 1 else "all"]
    options = {"seed": SEED, "train": train, "validation": validation, "test": test}
    full = {"ask": ask, "modalities": list(modalities), "scanner": scanner, **options}
    closed: Closed = {"vqa": "yes_no", "report": "none", "yesno": "all", "cls": "all"}[ask]  # type: ignore[assignment]
    candidates = {"report": "[]", "cls": f"[{', '.join(classes(modalities))}]"}.get(ask, '["yes", "no"]')
    splits, about = [], ""
    for split in ("train", "validation", "test"):
        found = rows(Path(), full, split)
        splits.append(f"    {split}: {{count: {len(found)}, digest: {rows_digest(found, ClosedRule(rule=closed))}}}")
        if ask == "yesno" and split == "test":
            figures = always_yes([row.answer for row in found]) or {}
            told = ", ".join(f"{name}: {round(value, 4)}" for name, value in figures.items())
            about = f"  types: question_type\n  always_yes: {{{told}}}\n"
    shown = ", ".join(MODALITIES[name].image for name in modalities)
    taken = "" if scanner == "standard" else f", {scanner.replace('_', ' ')} images of the scenes of phantom_{ask}"
    metrics = "\n".join(
        f"  - {{metric: {m}, aggregation: mean, higher_is_better: {str(not m.endswith('_share')).lower()}}}"
        for m in _METRICS[ask]
    )
    newline = "\n"
    return f"""# Written by `python -m medbench.phantom.cards`.
task: phantom_{ask}{suffix}
custom_dataset: !function lm_eval_bridge.dataset
training_split: train
validation_split: validation
test_split: test
output_type: generate_until
doc_to_image: [image]
doc_to_text: "{_PROMPTS[ask]}"
doc_to_target: "{{{{answer{"" if ask in ("report", "cls") else " | lower"}}}}}"
process_results: !function lm_eval_bridge.process_results
generation_kwargs: {{until: [], max_gen_toks: {_TOKENS[ask]}, do_sample: false, temperature: 0.0}}
metric_list:
{metrics}
metadata:
  version: {_VERSIONS.get(ask, 1)}
  kind: {_KINDS.get(ask, "vqa")}
  dataset: generated phantoms
  description: "Generated images ({shown}){taken}; {_ABOUT[ask]}."
  folder: phantom
  layouts:
    phantom: {{ask: {ask}, modalities: [{", ".join(modalities)}], scanner: {scanner}, seed: {SEED}, {
        ", ".join(f"{split}: {options[split]}" for split in ("train", "validation", "test"))
    }}}
  splits:
{newline.join(splits)}
  closed: {{rule: {closed}}}
  candidates: {candidates}
{about}  licence: Apache-2.0
  access: generated
  obtain: "nothing to get: it is generated"
  citation: "this project"
  confidence: {{level: none, note: "not one of the 23; generated, for learning, testing and CI"}}
"""


def main(folder: Path) -> None:
    """Writes every card into `folder`."""
    for ask in _PROMPTS:
        for suffix in domains():
            write_text(folder / f"phantom_{ask}{suffix}.yaml", card(ask, suffix))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
