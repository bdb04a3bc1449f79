"""Readers: one a layout, not one a data set. Each turns a folder into items, lazily.

A reader is a module with `find(folder, options) -> str | None` (what is missing, or None when the layout is there)
and `rows(folder, options, split) -> list[Row]`. The card names the layouts it accepts with their options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from medbench.data.item import ImageRef
from medbench.errors import RequestError, did_you_mean

LAYOUTS = {
    "cares": "medbench.data.readers.cares",
    "chexpert_csv": "medbench.data.readers.chexpert",
    "class_folders": "medbench.data.readers.class_folders",
    "ddti": "medbench.data.readers.ddti",
    "fairvlmed_npz": "medbench.data.readers.fairvlmed",
    "hub_parquet": "medbench.data.readers.hub_parquet",
    "labels_csv": "medbench.data.readers.labels_csv",
    "llava_conversations": "medbench.data.readers.llava",
    "med_hallmark": "medbench.data.readers.med_hallmark",
    "medheval": "medbench.data.readers.medheval",
    "medimeta": "medbench.data.readers.medimeta",
    "medmnist_npz": "medbench.data.readers.medmnist",
    "mimic_cxr_jpg": "medbench.data.readers.mimic_cxr",
    "mmed_rag": "medbench.data.readers.mmed_rag",
    "mrnet": "medbench.data.readers.mrnet",
    "omnimedvqa": "medbench.data.readers.omnimedvqa",
    "pathvqa_lxmert": "medbench.data.readers.pathvqa",
    "phantom": "medbench.data.readers.phantom",
    "r2gen_annotation": "medbench.data.readers.r2gen",
    "rsna_dicom": "medbench.data.readers.rsna",
    "slake_folder": "medbench.data.readers.slake",
    "vqa_cp": "medbench.data.readers.vqa_cp",
    "vqa_rad_json": "medbench.data.readers.vqa_rad",
}


@dataclass(frozen=True, slots=True)
class Row:
    """What a reader found for one item, before the card's rules are applied.

    `options` are the answers that the question itself offers (multiple choice), none elsewhere. `group` is the patient
    or examination, where the data names one. `error` says why the row cannot be used; then the other fields may be
    empty.
    """

    id: str
    image: ImageRef | None = None
    question: str = ""
    answer: str = ""
    fields: Mapping[str, str] = field(default_factory=dict)
    error: str | None = None
    options: tuple[str, ...] = ()
    group: str = ""

    @property
    def cluster(self) -> str:
        """What a split may not be cut through: the group, else the image."""
        return self.group or (self.image.key if self.image else "")


class Reader(Protocol):
    """The two functions of a reader module."""

    def find(self, folder: Path, options: Mapping[str, Any]) -> str | None:
        """None when the folder has this layout, else what is missing."""
        ...

    def rows(self, folder: Path, options: Mapping[str, Any], split: str) -> list[Row]:
        """The rows of a published split."""
        ...


def get_reader(layout: str) -> Reader:
    """The reader of a layout; unknown names are a `RequestError`."""
    if layout not in LAYOUTS:
        raise RequestError(f"unknown layout {layout!r}; {did_you_mean(layout, LAYOUTS)}")
    return cast(Reader, import_module(LAYOUTS[layout]))


def image_field(record: Mapping[str, Any], name: str) -> str:
    """A field that names an image file below the images folder.

    Raises:
        KeyError: as `text_field`, or the name leaves the folder.
    """
    value = text_field(record, name)
    if Path(value).is_absolute() or ".." in Path(value).parts:
        raise KeyError(f"field {name!r} leaves the data folder: {value!r}")
    return value


def text_field(record: Mapping[str, Any], name: str) -> str:
    """A field as stripped text: answers may be integers, types may end in a space.

    Raises:
        KeyError: the field is absent or not text or a number; the message is fit for a user.
    """
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        found = "absent" if name not in record else f"{type(value).__name__} {value!r}"[:60]
        raise KeyError(f"field {name!r} should be text, is {found}")
    if isinstance(value, float) and not math.isfinite(value):
        raise KeyError(f"field {name!r} should be text, is {value}")
    return utf8(str(value).strip(), name)


def utf8(text: str, name: str) -> str:
    """A field's text, if it can be written down (JSON can hold half a character, which nothing can store).

    Raises:
        KeyError: it cannot; the message is fit for a user.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise KeyError(f"field {name!r} is not valid text: {error.reason}") from error
    return text
