"""A scene: what an image shows, in integers, drawn from a seed.

The sha256 of a scene decides which split it may be part of (`SHARES`). So no scene of a test, in whichever task or
domain, can be one of a training set, nor one that `nano-vl` was pretrained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache

from medbench.files import digest
from medbench.phantom.anatomy import MODALITIES, SIZES, Modality, Site
from medbench.phantom.draws import Draws

#: Split -> the sixteenths of all scenes (by the first hexadecimal digit of their digest) that it draws from.
SHARES = {
    "pretrain": "01234567",
    "pretrain_test": "89",
    "train": "ab",
    "validation": "cd",
    "test": "ef",
}
ANATOMY = 8
_NORMAL_IN = 6


@dataclass(frozen=True)
class Lesion:
    """A lesion: its kind, the index of its site, its size, and centre and radius in thousandths of the image."""

    kind: str
    site: int
    size: str
    x: int
    y: int
    radius: int
    shape: int


@dataclass(frozen=True)
class Scene:
    """What an image shows: no lesion, or up to three at different sites; `anatomy` varies the body (-100 to 100)."""

    modality: str
    anatomy: tuple[int, ...]
    lesions: tuple[Lesion, ...]

    @cached_property
    def digest(self) -> str:
        """sha256 of the scene's content."""
        return digest(asdict(self))

    @property
    def about(self) -> Modality:
        """Its modality."""
        return MODALITIES[self.modality]

    def site(self, lesion: Lesion) -> Site:
        """Where a lesion of this scene lies."""
        return self.about.sites[lesion.site]

    @property
    def split(self) -> str:
        """The only split this scene may be part of."""
        return next(split for split, digits in SHARES.items() if self.digest[0] in digits)


def draw_scene(draws: Draws, modalities: Sequence[str], single: bool = False) -> Scene:
    """Draws a scene.

    One in six is normal; otherwise one, two or three lesions are equally likely, at different sites, each of any kind
    and size. Site, kind and size are independent, so none can be told from another.

    Args:
        draws: used up in order.
        modalities: one is chosen.
        single: at most one lesion, and normal as often as each kind (for classification).
    """
    name = draws.pick(modalities)
    about = MODALITIES[name]
    if single:
        count = int(draws.below(1 + len(about.kinds)) > 0)
    else:
        count = 0 if draws.below(_NORMAL_IN) == 0 else draws.between(1, 3)
    sites = sorted(draws.some(range(len(about.sites)), count))
    anatomy = tuple(draws.between(-100, 100) for _ in range(ANATOMY))
    return Scene(name, anatomy, tuple(_draw_lesion(draws, about, site) for site in sites))


def _draw_lesion(draws: Draws, about: Modality, index: int) -> Lesion:
    site = about.sites[index]
    size = draws.pick(tuple(SIZES))
    return Lesion(
        kind=draws.pick(about.kinds),
        site=index,
        size=size,
        x=site.x + draws.between(-site.spread, site.spread),
        y=site.y + draws.between(-site.spread, site.spread),
        radius=draws.between(*SIZES[size]),
        shape=draws.below(1000),
    )


@lru_cache(maxsize=65536)
def find_scene(seed: str, split: str, modalities: tuple[str, ...], single: bool = False) -> Scene:
    """The scene of a seed in a split: the first of the seed's draws that lies in the split's share."""
    attempt = 0
    while True:
        scene = draw_scene(Draws(f"{seed}:{attempt}"), modalities, single)
        if scene.split == split:
            return scene
        attempt += 1
