"""What a card may say of each layout: checked when the card is read, so that no reader meets a missing option."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from medbench.errors import did_you_mean


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class HubParquet(_Options):
    """`hub_parquet`: our column names -> the file's."""

    columns: dict[Literal["image", "question", "answer"], str] = {}


class Phantom(_Options):
    """`phantom`: the seed, and images a split."""

    seed: int
    train: int = 0
    validation: int = 0
    test: int = 0


class SlakeFolder(_Options):
    """`slake_folder`: the value of `q_lang` to keep."""

    language: str


class VqaRadJson(_Options):
    """`vqa_rad_json`: split -> question file, and split -> phrase types where one file holds several splits."""

    files: dict[str, str]
    phrase_types: dict[str, list[str]] = {}


OPTIONS: dict[str, type[_Options]] = {
    "hub_parquet": HubParquet,
    "phantom": Phantom,
    "slake_folder": SlakeFolder,
    "vqa_rad_json": VqaRadJson,
}


def check_layout(layout: str, options: Mapping[str, Any], splits: Collection[str]) -> None:
    """Checks a layout's name and options against the splits that a card names.

    Raises:
        ValueError: names the layout, the option and what would be right.
    """
    if layout not in OPTIONS:
        raise ValueError(f"unknown layout {layout!r}; {did_you_mean(layout, OPTIONS)}")
    try:
        checked = OPTIONS[layout].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (layout, *first["loc"]))
        raise ValueError(f"{where}: {first['msg']}") from error
    for split in splits:
        if isinstance(checked, VqaRadJson) and split not in checked.files:
            raise ValueError(f"{layout}.files: no file for split {split!r}")
        if isinstance(checked, Phantom) and getattr(checked, split) < 1:
            raise ValueError(f"{layout}.{split}: should be the number of images, at least 1")
