"""What the phantoms can show: four modalities, each with four sites and three kinds of lesion.

Sides are the patient's; the patient's right is at the left of the image, as radiographs and axial slices are read. The
ultrasound's sides are those of the sector. Coordinates are thousandths of the image's side.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """A place that can hold one lesion: name, side, centre, and how far from it a lesion's centre may lie."""

    name: str
    side: str
    x: int
    y: int
    spread: int


@dataclass(frozen=True)
class Modality:
    """A kind of image.

    Attributes:
        image: what a reader calls it.
        organ: what is imaged.
        sites: four, two a side.
        kinds: three kinds of lesion; each can lie at every site.
    """

    name: str
    image: str
    organ: str
    sites: tuple[Site, Site, Site, Site]
    kinds: tuple[str, str, str]


MODALITIES: dict[str, Modality] = {
    "xray": Modality(
        "xray",
        "chest radiograph",
        "lungs",
        (
            Site("right upper lung", "right", 305, 330, 45),
            Site("left upper lung", "left", 695, 330, 45),
            Site("right lower lung", "right", 285, 590, 45),
            Site("left lower lung", "left", 725, 560, 35),
        ),
        ("nodule", "consolidation", "cavity"),
    ),
    "ultrasound": Modality(
        "ultrasound",
        "ultrasound image",
        "liver",
        (
            Site("left near field", "left", 400, 385, 35),
            Site("right near field", "right", 600, 385, 35),
            Site("left far field", "left", 275, 650, 35),
            Site("right far field", "right", 725, 650, 35),
        ),
        ("cyst", "mass", "stone"),
    ),
    "ct": Modality(
        "ct",
        "CT slice",
        "abdomen",
        (
            Site("liver", "right", 270, 400, 45),
            Site("spleen", "left", 765, 430, 25),
            Site("right kidney", "right", 300, 685, 20),
            Site("left kidney", "left", 700, 685, 20),
        ),
        ("cyst", "mass", "calcification"),
    ),
    "mr": Modality(
        "mr",
        "MR slice",
        "brain",
        (
            Site("right frontal lobe", "right", 360, 290, 40),
            Site("left frontal lobe", "left", 640, 290, 40),
            Site("right occipital lobe", "right", 355, 710, 45),
            Site("left occipital lobe", "left", 645, 710, 45),
        ),
        ("tumour", "cyst", "haemorrhage"),
    ),
}

SIZES: dict[str, tuple[int, int]] = {"small": (34, 42), "large": (72, 86)}
"""Size -> smallest and largest radius."""


def article(noun: str) -> str:
    """The noun with `a` or `an`."""
    return f"{'an' if noun[0] in 'aeiou' or noun.startswith('MR') else 'a'} {noun}"
