"""Small artefacts in the layouts of classification, written in their very formats (no tests in here)."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from conftest import COLOURS
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from test_family_common import CATALOG, paint

from medbench.data.card import Card

CLASSES = {"red": ["something red"], "green": ["something green"], "blue": ["something blue"]}
PROMPTS = {"templates": ["a photo of {}."]}
TWO = {"no": ["no tear"], "yes": ["a tear"]}


def content(
    layout: str, options: Mapping[str, Any], classes: Mapping[str, Sequence[str]] = CLASSES, **splits: int | None
) -> dict[str, Any]:
    """A card's content over `set`, a folder of the data root."""
    meta = {
        **{"version": 1, "kind": "classification", "dataset": "mine", "description": "d", "folder": "set"},
        **{"layouts": {layout: dict(options)}, "splits": {name: {"count": n} for name, n in splits.items()}},
        **{"classes": dict(classes), **PROMPTS, "licence": "none", "access": "open", "obtain": "draw it"},
        **{"citation": "none", "confidence": {"level": "none"}},
    }
    if len(classes) == 2:
        meta["positive"] = list(classes)[1]
    return {"name": "mine", "metadata": meta}


def write_card(folder: Path, card: Mapping[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(dict(card), sort_keys=False))
    return path


def card_of(
    base: Path,
    layout: str,
    options: Mapping[str, Any],
    classes: Mapping[str, Sequence[str]] = CLASSES,
    **splits: int | None,
) -> Card:
    return CATALOG.task(str(write_card(base / "cards", content(layout, options, classes, **splits))))


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def labelled(split: str, number: int) -> list[dict[str, str]]:
    """Rows of a CSV of labels: the colours in turn, two images a patient."""
    return [
        {"file": f"img/{split}{n}.png", "label": list(COLOURS)[n % 3], "split": split, "patient": f"{split}-p{n // 2}"}
        for n in range(number)
    ]


def make_labels(root: Path, rows: Sequence[Mapping[str, str]] | None = None) -> Path:
    """`set/labels.csv` with 6 / 3 / 6 images; returns the CSV."""
    rows = rows or [*labelled("train", 6), *labelled("val", 3), *labelled("test", 6)]
    for row in rows:
        paint(root / "set" / row["file"], list(COLOURS).index(row["label"]) if row["label"] in COLOURS else 0)
    return write_csv(root / "set" / "labels.csv", rows)


def make_folders(root: Path, splits: Sequence[str] = ("train", "test"), each: int = 2) -> Path:
    """`set/<split>/<colour>/<n>.png`: the same names in every folder."""
    for split in splits:
        for number, colour in enumerate(COLOURS):
            for n in range(each):
                paint(root / "set" / split / colour / f"{n}.png", number)
    return root / "set"


def make_medmnist(root: Path, channels: int = 1, packed: bool = True, **changed: Any) -> Path:
    """`set/some.npz` with 6 / 3 / 6 images of 28 x 28; pixel (0, 0) is the place in its split."""
    arrays: dict[str, Any] = {}
    for part, number in (("train", 6), ("val", 3), ("test", 6)):
        images = np.zeros((number, 28, 28, channels), dtype=np.uint8)
        images[:, 0, 0, :] = np.arange(number)[:, None]
        images[:, 1, 1, :] = np.arange(channels) * 100
        arrays[f"{part}_images"] = images[..., 0] if channels == 1 else images
        arrays[f"{part}_labels"] = (np.arange(number) % 3)[:, None].astype(np.uint8)
    arrays |= changed
    path = root / "set" / "some.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    (np.savez_compressed if packed else np.savez)(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def dicom(values: np.ndarray | None, **tags: Any) -> Dataset:
    """A DICOM of grey values, unsigned or signed as they are; further tags by keyword."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    data.PatientID, data.Modality = "p", "DX"
    if values is not None:
        bits = values.dtype.itemsize * 8
        data.Rows, data.Columns = values.shape[:2]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit = bits, bits, bits - 1
        data.PixelRepresentation = int(values.dtype.kind == "i")
        data.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    return data


def save_dicom(path: Path, data: Dataset) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def make_rsna(root: Path, patients: int = 40) -> Path:
    """`set` with a CSV of boxes and a DICOM a patient; every third has pneumonia, and two boxes."""
    rows = []
    for n in range(patients):
        box = {"x": 1, "y": 2, "width": 3, "height": 4} if n % 3 == 0 else dict.fromkeys(("x", "y", "width", "height"))
        rows += [{"patientId": f"id{n:03}", **box, "Target": int(n % 3 == 0)}] * (2 if n % 3 == 0 else 1)
        values = np.full((8, 8), n, dtype=np.uint8)
        values[0, 0] = 255
        save_dicom(root / "set" / "stage_2_train_images" / f"id{n:03}.dcm", dicom(values, PatientID=f"id{n:03}"))
    return write_csv(root / "set" / "stage_2_train_labels.csv", rows)


def make_mrnet(root: Path, count: int = 10) -> Path:
    """`set` with series of ten slices; every pixel of slice s of examination e is 10 * s + e."""
    for part, first in (("train", 0), ("valid", 4)):
        names = [f"{n:04}" for n in range(first, first + 4)]
        lines = "".join(f"{name},{n % 2}\n" for n, name in enumerate(names))
        for plane in ("axial", "coronal", "sagittal"):
            folder = root / "set" / part / plane
            folder.mkdir(parents=True, exist_ok=True)
            for e, name in enumerate(names):
                slices = np.arange(count, dtype=np.uint8)[:, None, None] * 10 + e
                np.save(folder / f"{name}.npy", np.broadcast_to(slices, (count, 16, 16)))
        (root / "set" / f"{part}-acl.csv").write_text(lines)
    return root / "set"


def make_medimeta(root: Path) -> Path:
    """`set` as MedIMeta writes it: two volumes, an image of each colour of each, labels by number."""
    folder = root / "set"
    labels = dict(enumerate(COLOURS))
    rows = []
    for n in range(6):
        path = f"images/{n:06}.tiff"
        paint(folder / path, n % 3)
        rows.append({"filepath": path, "tasks/organ label": n % 3, "original_filepath": f"volume-{n // 3}.nii"})
    write_csv(folder / "annotations.csv", rows)
    (folder / "info.yaml").write_text(
        yaml.safe_dump({"id": "set", "tasks": [{"task_name": "organ label", "labels": labels}]})
    )
    (folder / "splits").mkdir()
    for part, lines in (("train", rows[:3]), ("val", []), ("test", rows[:2:-1])):
        (folder / "splits" / f"{part}.txt").write_text("\n".join(str(row["filepath"]) for row in lines))
    return folder


def make_ddti(root: Path, cases: int = 30) -> Path:
    """`set` with an XML a case and one or two images of it; every tenth case has no grade."""
    grades = ("2", "3", "4a", "4b", "4c", "5")
    for n in range(1, cases + 1):
        grade = "<tirads/>" if n % 10 == 0 else f"<tirads>{grades[n % 6]}</tirads>"
        mark = "<mark><image>1</image><svg>[{}]</svg></mark>"
        path = root / "set" / f"{n}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<case>\n<number>{n}</number><age/>\n<sex>F</sex>{grade}\n{mark}</case>")
        for k in range(1, 2 + n % 2):
            paint(path.with_name(f"{n}_{k}.jpg"), n)
    return root / "set"


def make_chexpert(root: Path, rows: Sequence[Mapping[str, object]] | None = None) -> Path:
    """`set` with a CSV of one finding a row, two images a patient."""
    names = ("Atelectasis", "Cardiomegaly", "Edema")
    rows = rows or [
        {
            "Path": f"CheXpert-v1.0/train/patient{n // 2:05}/study1/view{n % 2 + 1}_frontal.jpg",
            **{name: ("1.0", "0.0", "")[(k - n) % 3] for k, name in enumerate(names)},
        }
        for n in range(6)
    ]
    for row in rows:
        paint(root / "set" / str(row["Path"]), 0)
    return write_csv(root / "set" / "five.csv", rows)


def grey_png(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def dump(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path
