"""What a card may say of each layout: checked when the card is read, so that no reader meets a missing option."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from medbench.data.labelled_layouts import LABELLED, check_labels
from medbench.data.options import Inside, Options
from medbench.errors import did_you_mean


class Cares(Options):
    """`cares`: split -> question file; the images folder, relative to the data root."""

    files: dict[str, Inside]
    images: Inside


Question = Annotated[str, Field(min_length=1, pattern=r"\S")]
Sections = Annotated[list[Literal["findings", "impression"]], Field(min_length=1)]


class FairVlmedNpz(Options):
    """`fairvlmed_npz`: which text is the report, and what the model is asked."""

    text: Literal["note", "gpt4_summary"]
    question: Question


class HubParquet(Options):
    """`hub_parquet`: our column names -> the file's."""

    columns: dict[Literal["image", "question", "answer"], str] = Field(default_factory=dict)


class LlavaConversations(Options):
    """`llava_conversations`: split -> file of conversations, and the images folder."""

    files: dict[str, Inside]
    images: Inside = "images"


class MedHallmark(Options):
    """`med_hallmark`: split -> file of conversations; the images folder, relative to the data root."""

    files: dict[str, Inside]
    images: Inside


class MedHEval(Options):
    """`medheval`: split -> question file; how an image's name begins -> its folder, relative to the data root."""

    files: dict[str, Inside]
    images: Annotated[dict[str, Inside], Field(min_length=1)]


class MimicCxrJpg(Options):
    """`mimic_cxr_jpg`: the reports' folder, the images shown, the sections of the report, what the model is asked."""

    reports: Inside
    views: Literal["first", "both"]
    sections: Sections
    question: Question


class MmedRag(Options):
    """`mmed_rag`: split -> question file; the images folder, relative to the data root; whether it holds `.npz`."""

    files: dict[str, Inside]
    images: Inside
    npz: bool = False


class OmniMedVqa(Options):
    """`omnimedvqa`: nothing to choose."""


class PathVqaLxmert(Options):
    """`pathvqa_lxmert`: nothing to choose."""


class Phantom(Options):
    """`phantom`: what is asked of which modalities, the scanner, the seed, and images a split."""

    ask: Literal["vqa", "report", "yesno", "cls"]
    modalities: Annotated[list[Literal["xray", "ultrasound", "ct", "mr"]], Field(min_length=1)]
    scanner: Literal["standard", "low_contrast", "low_resolution", "noisy"] = "standard"
    seed: int
    train: int = 0
    validation: int = 0
    test: int = 0


class R2GenAnnotation(Options):
    """`r2gen_annotation`: as `mimic_cxr_jpg`, with the annotation's file, and a CSV of texts for more than findings."""

    file: Inside
    images: Inside
    views: Literal["first", "both"]
    sections: Sections
    question: Question
    texts: Inside | None = None

    @model_validator(mode="after")
    def _has_texts(self) -> R2GenAnnotation:
        if self.texts is None and self.sections != ["findings"]:
            raise ValueError("sections other than findings need 'texts': the annotation has no others")
        return self


class SlakeFolder(Options):
    """`slake_folder`: the value of `q_lang` to keep."""

    language: str


class VqaCp(Options):
    """`vqa_cp`: split -> question file; the images folder, relative to the data root; the field that names an image."""

    files: dict[str, Inside]
    images: Inside
    image_field: Annotated[str, Field(min_length=1)]


class VqaRadJson(Options):
    """`vqa_rad_json`: split -> question file, and split -> phrase types where one file holds several splits."""

    files: dict[str, str]
    phrase_types: dict[str, list[str]] = Field(default_factory=dict)


OPTIONS: dict[str, type[Options]] = {
    "cares": Cares,
    "fairvlmed_npz": FairVlmedNpz,
    "hub_parquet": HubParquet,
    "llava_conversations": LlavaConversations,
    "med_hallmark": MedHallmark,
    "medheval": MedHEval,
    "mimic_cxr_jpg": MimicCxrJpg,
    "mmed_rag": MmedRag,
    "omnimedvqa": OmniMedVqa,
    "pathvqa_lxmert": PathVqaLxmert,
    "phantom": Phantom,
    "r2gen_annotation": R2GenAnnotation,
    "slake_folder": SlakeFolder,
    "vqa_cp": VqaCp,
    "vqa_rad_json": VqaRadJson,
    **LABELLED,
}
#: Layouts of questions about another set's images: `images` is relative to the data root.
IMAGES_ELSEWHERE = ("cares", "med_hallmark", "medheval", "mmed_rag", "r2gen_annotation", "vqa_cp")
_FILE_A_SPLIT = Cares | LlavaConversations | MedHallmark | MedHEval | MmedRag | VqaCp | VqaRadJson


def check_layout(
    layout: str, options: Mapping[str, Any], splits: Collection[str], classes: Collection[str] = ()
) -> None:
    """Checks a layout's name and options against the splits and the classes that a card names.

    Args:
        layout: its name.
        options: what the card says of it.
        splits: those of the card.
        classes: those of a card of kind classification; none for other kinds, which have no layout of labels.

    Raises:
        ValueError: names the layout, the option and what would be right.
    """
    if layout not in OPTIONS:
        raise ValueError(f"unknown layout {layout!r}; {did_you_mean(layout, OPTIONS)}")
    if layout in LABELLED and not classes:
        raise ValueError(f"{layout}: only for kind classification")
    try:
        checked = OPTIONS[layout].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in (layout, *first["loc"]))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
    for split in splits:
        if isinstance(checked, OmniMedVqa) and split != "test":
            raise ValueError(f"{layout}: there is only a 'test' split, not {split!r}")
        if isinstance(checked, _FILE_A_SPLIT) and split not in checked.files:
            raise ValueError(f"{layout}.files: no file for split {split!r}")
        if isinstance(checked, Phantom) and getattr(checked, split) < 1:
            raise ValueError(f"{layout}.{split}: should be the number of images, at least 1")
    check_labels(layout, checked, splits, classes)
