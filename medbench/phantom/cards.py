"""Writes the cards of the phantom tasks.

Four kinds of question and the classification by prompts, each over all modalities, over each alone, and through each
changed scanner:

    python -m medbench.phantom.cards tasks

The cards of a changed scanner ask the same questions about the same scenes, so that figures can be compared in pairs.
`phantom_clip` are the images and classes of `phantom_cls`, for backbones that compare images with prompts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from medbench.data.load import rows_digest
from medbench.data.metadata import ClosedRule
from medbench.data.readers.phantom import rows
from medbench.files import write_text
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.image import SCANNERS
from medbench.phantom.prompts import TEMPLATES, phrases
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
_SOURCE = """  licence: Apache-2.0
  access: generated
  obtain: "nothing to get: it is generated"
  citation: "this project"
  confidence: {level: none, note: "not one of the 23; generated, for learning, testing and CI"}
"""
_IMAGES = {"all": (800, 160, 300), "one": (400, 80, 150)}


def domains() -> dict[str, tuple[tuple[str, ...], str]]:
    """Suffix of a task's name -> its modalities and its scanner."""
    everything = tuple(MODALITIES)
    found: dict[str, tuple[tuple[str, ...], str]] = {"": (everything, "standard")}
    found |= {f"_{name}": ((name,), "standard") for name in MODALITIES}
    return found | {f"_{name}": (everything, name) for name in SCANNERS if name != "standard"}


def _options(ask: str, suffix: str) -> dict[str, Any]:
    """The options of the layout, as the reader takes them."""
    modalities, scanner = domains()[suffix]
    train, validation, test = _IMAGES["one" if len(modalities) == 1 else "all"]
    of = {"train": train, "validation": validation, "test": test}
    return {"ask": ask, "modalities": list(modalities), "scanner": scanner, "seed": SEED, **of}


def _layout(options: dict[str, Any]) -> str:
    """The options in YAML's flow style."""
    told = [f"{key}: [{', '.join(v)}]" if isinstance(v, list) else f"{key}: {v}" for key, v in options.items()]
    return f"{{{', '.join(told)}}}"


def _about(ask: str, suffix: str) -> str:
    """What the images show and how they were taken."""
    modalities, scanner = domains()[suffix]
    shown = ", ".join(MODALITIES[name].image for name in modalities)
    return (
        shown
        + ")"
        + ("" if scanner == "standard" else f", {scanner.replace('_', ' ')} images of the scenes of phantom_{ask}")
    )


def card(ask: str, suffix: str) -> str:
    """The YAML of one card."""
    modalities, _ = domains()[suffix]
    full = _options(ask, suffix)
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
  description: "Generated images ({_about(ask, suffix)}; {_ABOUT[ask]}."
  folder: phantom
  layouts:
    phantom: {_layout(full)}
  splits:
{newline.join(splits)}
  closed: {{rule: {closed}}}
  candidates: {candidates}
{about}{_SOURCE}"""


def clip_card(suffix: str) -> str:
    """The YAML of one card of kind classification: the rows of `phantom_cls`, whose answers are its classes."""
    options = _options("cls", suffix)
    found = {split: rows(Path(), options, split) for split in ("train", "validation", "test")}
    digests = {split: rows_digest(of, ClosedRule(rule="all")) for split, of in found.items()}
    splits = [f"    {split}: {{count: {len(of)}, digest: {digests[split]}}}" for split, of in found.items()]
    named = [f"    {name}: [{', '.join(map(_quoted, of))}]" for name, of in phrases(domains()[suffix][0]).items()]
    newline = "\n"
    return f"""# Written by `python -m medbench.phantom.cards`.
name: phantom_clip{suffix}
metadata:
  version: 1
  kind: classification
  dataset: generated phantoms
  description: "Generated images ({_about("clip", suffix)}; one class an image: normal, or the lesion's kind."
  folder: phantom
  layouts:
    phantom: {_layout(options)}
  splits:
{newline.join(splits)}
  classes:
{newline.join(named)}
  templates: [{", ".join(map(_quoted, TEMPLATES))}]
  augment: {{crop: 0.8, rotate: 10, brightness: 0.2}}
{_SOURCE}"""


def _quoted(text: str) -> str:
    return f'"{text}"'


def main(folder: Path) -> None:
    """Writes every card into `folder`."""
    for ask in _PROMPTS:
        for suffix in domains():
            write_text(folder / f"phantom_{ask}{suffix}.yaml", card(ask, suffix))
    for suffix in domains():
        write_text(folder / f"phantom_clip{suffix}.yaml", clip_card(suffix))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
