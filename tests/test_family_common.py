"""Small artefacts in the layouts of the VQA family, with the packaged cards cut to their size (no tests in here)."""

import gzip
import json
from pathlib import Path
from typing import Any

import yaml
from conftest import COLOURS
from PIL import Image

from medbench.catalog import Catalog, Settings, packaged, read_yaml
from medbench.data.card import Card

CATALOG = Catalog(Settings())
OPTIONS = ("option_A", "option_B", "option_C", "option_D")


def cut_card(folder: Path, name: str, **splits: int | None) -> Path:
    """A packaged card with other counts and no digest, in `folder`."""
    content = read_yaml(packaged("tasks") / f"{name}.yaml")
    content["metadata"]["splits"] = {split: {"count": count} for split, count in splits.items()}
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def card_at(path: Path) -> Card:
    return CATALOG.task(str(path))


def paint(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (56, 60), list(COLOURS.values())[number % 3]).save(path)


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def omni_records(source: str, number: int) -> list[dict[str, Any]]:
    """Questions with two to four options, an image each, as OmniMedVQA writes them."""
    names = [*COLOURS, "black"]
    records = []
    for n in range(number):
        offered = names[: 2 + n % 3]
        records.append(
            {
                **{"dataset": source, "question_id": f"{source}_{n:04}", "question_type": "Modality Recognition"},
                **{"question": "What is the colour?", "gt_answer": offered[n % len(offered)]},
                **{"image_path": f"Images/{source}/{n}.png", "modality_type": "CT"},
                **dict(zip(OPTIONS, offered, strict=False)),
            }
        )
    return records


def make_omni(root: Path, top: str = "", sources: tuple[str, ...] = ("ACRIMA", "BUSI"), number: int = 6) -> Path:
    """`omnimedvqa` below a data root; returns the folder of the question files."""
    base = root / "omnimedvqa" / top
    for source in sources:
        records = omni_records(source, number)
        write_json(base / "QA_information" / "Open-access" / f"{source}.json", records)
        for n, record in enumerate(records):
            paint(base / record["image_path"], n)
    return base / "QA_information" / "Open-access"


def conversation(number: int, turns: int) -> dict[str, Any]:
    colour = list(COLOURS)[number % 3]
    said: list[dict[str, str]] = []
    for k in range(turns):
        asked = f"Question {k} of {number}?"
        # LLaVA puts the placeholder before or after the first question.
        value = asked if k else (f"<image>\n{asked}", f"{asked}\n<image>")[number % 2]
        said += [{"from": "human", "value": value}, {"from": "gpt", "value": f"answer {k} {colour}"}]
    return {"id": f"PMC{number}", "image": f"PMC{number}.png", "conversations": said}


def make_llava(root: Path, number: int = 6) -> Path:
    """`llava_med` below a data root, conversations of one to three turns; returns the file."""
    for n in range(number):
        paint(root / "llava_med" / "images" / f"PMC{n}.png", n)
    records = [conversation(n, 1 + n % 3) for n in range(number)]
    return write_json(root / "llava_med" / "llava_med_instruct_60k.json", records)


def lxmert(part: str, asked: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    """PathVQA's records: an image each, with its questions."""
    return [
        {
            "img_id": f"{part}_{n:04}",
            "labelf": {"pvqa": [{answer: 1} for _, answer in pairs]},
            "sentf": {"pvqa": [question for question, _ in pairs]},
        }
        for n, pairs in enumerate(asked)
    ]


def make_pathvqa(root: Path) -> Path:
    """`pathvqa` in its authors' layout, three images a split, one of them without a question; returns the folder."""
    for part in ("train", "val", "test"):
        asked = [[("What is it?", "a cell"), ("Is it red?", "Yes")], [], [("Is it blue?", "no")]]
        write_json(root / "pathvqa" / f"pvqa_{part}.json", lxmert(part, asked))
        for n in range(3):
            paint(root / "pathvqa" / "images" / part / f"{part}_{n:04}.jpg", n)
    return root / "pathvqa"


def make_cp(root: Path) -> Path:
    """`vqa_cp` with VQA-RAD-CP, over images of `vqa_rad`; returns the folder."""
    for n in range(3):
        paint(root / "vqa_rad" / "images" / f"synpic{n}.jpg", n)
    for split, first in (("train", 0), ("test", 10)):
        records = [
            {
                **{"question_id": first + n, "image_name": f"synpic{n}.jpg", "question": f"Is it {n}?"},
                **{"answer": (1, "Yes", "no ")[n], "answer_type": ("OPEN", "CLOSED", "CLOSED ")[n]},
            }
            for n in range(3)
        ]
        write_json(root / "vqa_cp" / f"vqa-rad-cp_{split}.json.gz", records)
    return root / "vqa_cp"
