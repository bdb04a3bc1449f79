"""What a card of kind classification may say of its layout: images with a label each.

`labels` says which class of the card each of the data's own labels is: a mapping from their text, or a list where they
are numbers from 0. Several labels may be one class; a label that is not named stays as it is, and the card refuses it
unless a class has that very name.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medbench.data.options import Inside, Options

SplitName = Literal["train", "validation", "test"]
Text = Annotated[str, Field(min_length=1, pattern=r"\S")]
#: Classes in the order of the numbers that the data has for them.
Numbered = Annotated[list[Text], Field(min_length=2)]
#: Class by the data's label.
Named = Annotated[dict[Text, Text], Field(min_length=1)]


class Shares(Options):
    """A split that we draw, for data without one: the share of each split, by the hash of `seed:group`."""

    shares: Annotated[dict[SplitName, Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]
    seed: int = 0

    @model_validator(mode="after")
    def _whole(self) -> Shares:
        if abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares should sum to 1, sum to {sum(self.shares.values()):g}")
        return self


class Columns(Options):
    """The columns of a CSV: of the image's file, its label, its split, and the patient or examination (if any)."""

    file: Text = "file"
    label: Text = "label"
    split: Text = "split"
    group: Text | None = None


class LabelsCsv(Options):
    """`labels_csv`: one CSV with a split column (`file`) or a CSV a split (`files`), and which of its rows are used."""

    file: Inside | None = None
    files: dict[SplitName, Inside] = Field(default_factory=dict)
    images: Inside | None = None
    columns: Columns = Columns()
    splits: dict[SplitName, Text] = Field(default_factory=dict)
    labels: dict[Text, Text] = Field(default_factory=dict)
    only: dict[Text, list[str]] = Field(default_factory=dict)
    agree: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way(self) -> LabelsCsv:
        if (self.file is None) == (not self.files):
            raise ValueError("should have either 'file' (one CSV with a split column) or 'files' (a CSV a split)")
        if self.files and self.splits:
            raise ValueError("'splits' says what the split column of 'file' holds; with 'files' there is none")
        if len(self.agree) == 1:
            raise ValueError("agree: should name at least two columns")
        return self


class ClassFolders(Options):
    """`class_folders`: a folder a class (`labels`), below a folder a split (`splits`) or with a file of the split."""

    root: Inside | None = None
    labels: dict[Inside, Text] = Field(min_length=2)
    splits: dict[SplitName, Inside] = Field(default_factory=dict)
    split_file: Inside | None = None
    ignore: list[Text] = Field(default_factory=list)

    @model_validator(mode="after")
    def _one_way(self) -> ClassFolders:
        if self.splits and self.split_file:
            raise ValueError("should have 'splits' (a folder a split) or 'split_file', not both")
        return self


class MedMnistNpz(Options):
    """`medmnist_npz`: the file, and the classes in the order of its label numbers."""

    file: Inside
    labels: Numbered


class CheXpertCsv(Options):
    """`chexpert_csv`: split -> CSV, the folder that `Path` is relative to, and column -> class."""

    files: dict[SplitName, Inside]
    images: Inside | None = None
    labels: Named


class RsnaDicom(Shares):
    """`rsna_dicom`: the CSV, the folder of the DICOM files, the classes of Target 0 and 1, and the split we draw."""

    file: Inside = "stage_2_train_labels.csv"
    images: Inside = "stage_2_train_images"
    labels: Annotated[list[Text], Field(min_length=2, max_length=2)]


class MrNet(Options):
    """`mrnet`: what is looked for, in which series, at which fractions of it, and the classes of 0 and 1."""

    condition: Literal["abnormal", "acl", "meniscus"]
    plane: Literal["axial", "coronal", "sagittal"]
    fractions: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=3)]
    labels: Annotated[list[Text], Field(min_length=2, max_length=2)]

    @model_validator(mode="after")
    def _one_or_three(self) -> MrNet:
        if len(self.fractions) == 2:
            raise ValueError("fractions: should be one (a grey picture) or three (its red, green and blue)")
        return self


class MedIMeta(Options):
    """`medimeta`: the task of `info.yaml`, its labels' classes, whose splits, and the column of the patient."""

    task: Text
    labels: dict[Text, Text] = Field(default_factory=dict)
    splits: Literal["splits", "original_splits"] = "splits"
    group: Text | None = None


class Ddti(Shares):
    """`ddti`: TI-RADS -> class, and the split we draw."""

    labels: Named


LABELLED: dict[str, type[Options]] = {
    "chexpert_csv": CheXpertCsv,
    "class_folders": ClassFolders,
    "ddti": Ddti,
    "labels_csv": LabelsCsv,
    "medimeta": MedIMeta,
    "medmnist_npz": MedMnistNpz,
    "mrnet": MrNet,
    "rsna_dicom": RsnaDicom,
}
"""Layout -> its options; only for kind classification."""


def check_labels(layout: str, options: Any, splits: Collection[str], classes: Collection[str]) -> None:
    """Checks the options of a layout of labels against the splits and the classes that a card names.

    Raises:
        ValueError: a label's class is none of the card's, a class has no label, or a split cannot be told.
    """
    if layout not in LABELLED:
        return
    labels = options.labels
    given = list(labels.values() if isinstance(labels, dict) else labels)
    for name in given:
        if name not in classes:
            raise ValueError(f"{layout}.labels: {name!r} is none of the classes {', '.join(classes)}")
    for name in classes if given else ():
        if name not in given:
            raise ValueError(f"{layout}.labels: no label is of class {name!r}")
    for split in splits:
        if isinstance(options, Shares) and split not in options.shares:
            raise ValueError(f"{layout}.shares: no share for split {split!r}")
        if isinstance(options, CheXpertCsv | LabelsCsv) and options.files and split not in options.files:
            raise ValueError(f"{layout}.files: no file for split {split!r}")
        if isinstance(options, ClassFolders) and options.splits and split not in options.splits:
            raise ValueError(f"{layout}.splits: no folder for split {split!r}")
        if isinstance(options, MrNet) and split == "validation":
            raise ValueError(f"{layout}: there is no 'validation' split; its 'valid' is published as the 'test'")
    if isinstance(options, ClassFolders) and len(splits) > 1 and not (options.splits or options.split_file):
        raise ValueError(f"{layout}: {len(splits)} splits need 'splits' (a folder a split) or 'split_file'")
