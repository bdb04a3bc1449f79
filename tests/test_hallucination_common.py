"""Small sets of yes/no questions in the layouts of the hallucination tasks, with their cards (no tests in here)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from test_family_common import paint, write_json

from medbench.catalog import Catalog, Settings, packaged, read_yaml
from medbench.data.card import Card

CATALOG = Catalog(Settings())
#: Answers as RULE's files have them, and the label by the first word.
ANSWERS = [("Yes.", "yes"), ("No, it is not.", "no"), ("- No", None), ("The report does not say.", None), ("No", "no")]


def rag_records(number: int = 10) -> list[dict[str, Any]]:
    """Lines as RULE, MMed-RAG and CARES write them, two an image."""
    return [
        {
            **{"question_id": n + 1, "question": f"Is there a {n}? \n<image>", "answer": ANSWERS[n % 5][0]},
            **{"image": f"CXR{n // 2}/0.png", "report": "Nothing is seen."},
        }
        for n in range(number)
    ]


def make_rag(root: Path, records: list[Any] | None = None, name: str = "rag.jsonl") -> Path:
    """`rag_qa` and the images it asks about, in `rag/images`; a record that is text is a line as it is."""
    records = rag_records() if records is None else records
    path = root / "rag_qa" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n")
    for n in range(5):
        paint(root / "rag" / "images" / f"CXR{n}" / "0.png", n)
    return path


def card_from(folder: Path, packaged_name: str, name: str, /, **metadata: Any) -> Path:
    """A packaged card under another name, with other metadata and nothing pinned but the given."""
    content = read_yaml(packaged("tasks") / f"{packaged_name}.yaml")
    content["task"] = name
    content["metadata"].pop("always_yes", None)
    content["metadata"] |= metadata
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def rag_card(folder: Path, count: int | None = 10, /, **metadata: Any) -> Path:
    layouts = {"mmed_rag": {"files": {"test": "rag.jsonl"}, "images": "rag/images"}}
    own = {"dataset": "rag", "folder": "rag_qa", "layouts": layouts, "splits": {"test": {"count": count}}}
    return card_from(folder, "iu_xray_vqa", "rag", **{**own, **metadata})


def read_card(path: Path) -> Card:
    return CATALOG.task(str(path))


def medheval_records() -> list[dict[str, Any]]:
    """MedHEval's forms: a binary question, and choices with a letter, an option's text or both as the answer."""
    asked = [
        ("binary", "", "Yes", "type_1"),
        ("binary", "", "No", "type_3"),
        ("multi-choice", "A: MRI, B: CT scan, C: X-ray", "B", "type_4"),
        ("multi-choice", "A. Left side, B. Right side, C. Both left, and right", "C. Both left, and right", "type_2"),
        ("multi-choice", "A) Healthy, B) Abnormal", "abnormal", "type_3"),
    ]
    return [
        {
            **{"img_name": ("xmlab1/source.jpg", "synpic2.jpg")[n % 2], "question": f"Q {n}?", "answer": answer},
            **{"hallucination_type": kind, "question_type": form, "choices": choices, "img_id": n, "qid": n},
        }
        for n, (form, choices, answer, kind) in enumerate(asked)
    ]


def make_medheval(root: Path, records: list[Any] | None = None) -> Path:
    for n, name in enumerate(("slake/imgs/xmlab1/source.jpg", "vqa_rad/images/synpic2.jpg")):
        paint(root / name, n)
    return write_json(root / "medheval" / "MM-VisHal.json", medheval_records() if records is None else records)


def answered(*rows: Any) -> pd.DataFrame:
    """Rows (gold, prediction[, probability of yes[, options[, type]]]) as `gold_table` gives them, two a cluster."""
    full = [(*row, *(None, (), "")[len(row) - 2 :]) for row in rows]
    return pd.DataFrame(
        {
            "id": [str(n) for n in range(len(full))],
            "cluster": [f"i{n // 2}" for n in range(len(full))],
            "type": "closed",
            "gold": [row[0] for row in full],
            "prediction": [row[1] for row in full],
            "probabilities": [None if row[2] is None else {"yes": row[2], "no": 1 - row[2]} for row in full],
            "options": [tuple(row[3]) for row in full],
            "question_type": [row[4] for row in full],
        }
    )
