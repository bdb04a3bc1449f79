"""What the report layouts share: a study's images as the one image a model is given, and the sections of a report.

A model here gets one image an item. `views: first` takes a study's first image; `views: both` puts its first two side
by side, scaled to the height of the first, so that nothing of either is lost but resolution. A study with one image is
that image either way. The image's key is the study, so a study is one cluster of the statistics, and both ways give
clusters of the same names.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.data.item import decode

VIEWS = ("first", "both")
SECTIONS = ("findings", "impression")


@dataclass(frozen=True, slots=True)
class StudyImage:
    """The image of a study: of one file, or of several side by side.

    The files are read when the image is: reports can be scored where the images are not.
    """

    key: str
    paths: tuple[Path, ...]

    @property
    def place(self) -> str:
        """The paths."""
        return " + ".join(map(str, self.paths))

    def read(self) -> bytes:
        """The file's bytes; of several, a PNG of them side by side."""
        first, *others = (path.read_bytes() for path in self.paths)
        return side_by_side([first, *others]) if others else first


def side_by_side(images: Sequence[bytes]) -> bytes:
    """Encoded images as one PNG, from left to right, all of the first one's height.

    Raises:
        OSError, ValueError: one of them is damaged.
    """
    from PIL import Image

    decoded = [decode(data) for data in images]
    height = decoded[0].height
    scaled = [
        image if image.height == height else image.resize((max(1, round(image.width * height / image.height)), height))
        for image in decoded
    ]
    whole = Image.new("RGB", (sum(image.width for image in scaled), height))
    left = 0
    for image in scaled:
        whole.paste(image, (left, 0))
        left += image.width
    return png(whole)


def png(image: object) -> bytes:
    """A Pillow image as PNG."""
    data = io.BytesIO()
    image.save(data, format="PNG")  # type: ignore[attr-defined]
    return data.getvalue()


def chosen(paths: Sequence[Path], views: str) -> tuple[Path, ...]:
    """The images of a study that the model sees."""
    return tuple(paths[: VIEWS.index(views) + 1])


def joined(sections: Mapping[str, str], wanted: Sequence[str]) -> str:
    """A report of the wanted sections: one alone as it is, several with their names before them.

    Empty where one of them is: such a study has no reference, and the card leaves it out.

    Example:
        >>> joined({"findings": "Clear lungs.", "impression": "Normal."}, ["findings", "impression"])
        'Findings: Clear lungs. Impression: Normal.'
    """
    texts = [" ".join(sections.get(name, "").split()) for name in wanted]
    if not all(texts):
        return ""
    return (
        texts[0] if len(texts) == 1 else " ".join(f"{n.capitalize()}: {t}" for n, t in zip(wanted, texts, strict=True))
    )


def sections_of(report: str) -> dict[str, str]:
    r"""The sections of a report of MIMIC-CXR, by their headings in lower case; repeated ones are joined.

    A heading is capitals before a colon at the start of a line. Some radiologists write none, or another one: such a
    report lacks the section.

    Example:
        >>> sections_of("FINAL REPORT\n FINDINGS:  Clear.\n\n IMPRESSION:\n Normal.")
        {'findings': 'Clear.', 'impression': 'Normal.'}
    """
    found: dict[str, str] = {}
    marks = list(_HEADING.finditer(report))
    ends = [*(mark.start() for mark in marks[1:]), len(report)]
    for mark, end in zip(marks, ends, strict=False):
        name = " ".join(mark.group(1).lower().split())
        found[name] = " ".join([*found.get(name, "").split(), *report[mark.end() : end].split()])
    return found


def view_rank(position: str) -> int:
    """Frontal views before lateral ones before the others: PA, AP, lateral, unknown."""
    order: Callable[[str], int] = {"PA": 0, "AP": 1, "LATERAL": 2, "LL": 2}.__getitem__
    name = position.strip().upper()
    return order(name) if name in ("PA", "AP", "LATERAL", "LL") else 3


_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /,&()-]*[A-Z)]):", re.MULTILINE)
