"""What a card may say of each layout: checked when the card is read, so that no reader meets a missing option."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medbench.errors import did_you_mean


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _inside(value: str) -> str:
    path = PurePosixPath(value)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in value:
        raise ValueError(f"should be a path below the folder, without '..', is {value!r}")
    return value


#: A path that stays below the folder it is relative to.
Inside = Annotated[str, AfterValidator(_inside)]


class HubParquet(_Options):
    """`hub_parquet`: our column names -> the file's."""

    columns: dict[Literal["image", "question", "answer"], str] = {}


class LlavaConversations(_Options):
    """`llava_conversations`: split -> file of conversations, and the images folder."""

    files: dict[str, Inside]
    images: Inside = "images"


class OmniMedVqa(_Options):
    """`omnimedvqa`: nothing to choose."""


class PathVqaLxmert(_Options):
    """`pathvqa_lxmert`: nothing to choose."""


class Phantom(_Options):
    """`phantom`: what is asked of which modalities, the scanner, the seed, and images a split."""

    ask: Literal["vqa", "report", "yesno", "cls"]
    modalities: Annotated[list[Literal["xray", "ultrasound", "ct", "mr"]], Field(min_length=1)]
    scanner: Literal["standard", "low_contrast", "low_resolution", "noisy"] = "standard"
    seed: int
    train: int = 0
    validation: int = 0
    test: int = 0


class SlakeFolder(_Options):
    """`slake_folder`: the value of `q_lang` to keep."""

    language: str


class VqaCp(_Options):
    """`vqa_cp`: split -> question file; the images folder, relative to the data root; the field that names an image."""

    files: dict[str, Inside]
    images: Inside
    image_field: Annotated[str, Field(min_length=1)]


class VqaRadJson(_Options):
    """`vqa_rad_json`: split -> question file, and split -> phrase types where one file holds several splits."""

    files: dict[str, str]
    phrase_types: dict[str, list[str]] = {}


OPTIONS: dict[str, type[_Options]] = {
    "hub_parquet": HubParquet,
    "llava_conversations": LlavaConversations,
    "omnimedvqa": OmniMedVqa,
    "pathvqa_lxmert": PathVqaLxmert,
    "phantom": Phantom,
    "slake_folder": SlakeFolder,
    "vqa_cp": VqaCp,
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
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
    for split in splits:
        if isinstance(checked, OmniMedVqa) and split != "test":
            raise ValueError(f"{layout}: there is only a 'test' split, not {split!r}")
        if isinstance(checked, VqaRadJson | VqaCp | LlavaConversations) and split not in checked.files:
            raise ValueError(f"{layout}.files: no file for split {split!r}")
        if isinstance(checked, Phantom) and getattr(checked, split) < 1:
            raise ValueError(f"{layout}.{split}: should be the number of images, at least 1")
