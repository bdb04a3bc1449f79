"""Looks at every image a run will use before anything is trained: decodes it, and takes the data's digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from medbench.data.fingerprint import Fingerprint, fingerprint
from medbench.data.item import BadItemError, ImageRef, Item, decode, reason
from medbench.data.load import OnBadItem
from medbench.files import digest


@dataclass(frozen=True)
class Checked:
    """The usable items of a split after their images were looked at.

    Attributes:
        items: those whose image decodes.
        skipped: what was wrong with each that was left out.
        images: sha256 over the images' keys and contents.
        sizes: (height, width) of each image, by key.
        fingerprints: of each image, by key, where they were asked for.
    """

    items: list[Item]
    skipped: tuple[str, ...]
    images: str
    sizes: dict[str, tuple[int, int]]
    fingerprints: dict[str, Fingerprint] = field(default_factory=dict)


def check_images(
    task: str,
    items: Sequence[Item],
    on_bad_item: OnBadItem,
    step: Callable[[int, int], None] = lambda done, total: None,
    workers: int = 2,
    fingerprints: bool = False,
) -> Checked:
    """Reads and decodes each distinct image once; of each, only hashes and the size are kept.

    Args:
        task: named in errors.
        items: of one split.
        on_bad_item: `fail` raises at the first bad image, `skip` leaves its items out.
        step: called with (images seen, images in all).
        workers: decoding threads.
        fingerprints: take them too (1.5 ms an image), so that leaks can be looked for.

    Raises:
        BadItemError: a missing, truncated or broken image; names item and file.
    """
    images: dict[str, Item] = {}
    for item in items:
        images.setdefault(item.image.key, item)
    problems: dict[str, str] = {}
    found: list[tuple[str, str]] = []
    sizes: dict[str, tuple[int, int]] = {}
    prints: dict[str, Fingerprint] = {}
    with ThreadPoolExecutor(workers) as pool:
        looked = pool.map(lambda item: _look(item.image, fingerprints), images.values())
        for done, (key, result) in enumerate(zip(images, looked, strict=True), start=1):
            step(done, len(images))
            if isinstance(result, str):
                first = images[key]
                problems[key] = f"item {first.id}: image {first.image.place}: {result}"
                if on_bad_item == "fail":
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise BadItemError(f"task {task}: {problems[key]}; --on-bad-item skip leaves such items out")
            else:
                found.append((key, result[0]))
                sizes[key] = result[1]
                if result[2] is not None:
                    prints[key] = result[2]
    usable = [item for item in items if item.image.key not in problems]
    if not usable:
        raise BadItemError(f"task {task}: no item has a usable image; the first: {next(iter(problems.values()))}")
    skipped = tuple(
        f"item {item.id}: {problems[item.image.key].partition(': ')[2]}" for item in items if item.image.key in problems
    )
    return Checked(usable, skipped, digest(sorted(found)), sizes, prints)


def _look(image: ImageRef, with_print: bool) -> tuple[str, tuple[int, int], Fingerprint | None] | str:
    try:
        data = image.read()
        decoded = decode(data)
    except (OSError, ValueError, SyntaxError) as error:
        return reason(error)
    taken = fingerprint(decoded) if with_print else None
    return hashlib.sha256(data).hexdigest(), (decoded.height, decoded.width), taken
