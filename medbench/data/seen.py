"""Which images something was trained on: the hashes of their pixels, kept beside its weights.

An adapter is tested long after its training, and its training data need not be at hand then. With these hashes it can
still be said whether a tested image was trained on, whatever its data set is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medbench.data.check import Checked
from medbench.errors import WorkError
from medbench.files import write_text

SEEN = "trained_images.txt"
_HASH = re.compile(r"[0-9a-f]{64}")


def write_seen(folder: Path, trained: Iterable[Checked]) -> None:
    """Writes the hashes (`medbench.data.fingerprint`) of what was trained on, one a line, sorted.

    Args:
        folder: of the weights.
        trained: the splits, checked with fingerprints.
    """
    found = {taken.pixels for split in trained for taken in split.fingerprints.values()}
    write_text(folder / SEEN, "".join(f"{pixels}\n" for pixels in sorted(found)))


def read_seen(folder: Path) -> frozenset[str] | None:
    """The hashes of what was trained on; None where the folder does not say.

    Raises:
        WorkError: the file cannot be read, is empty, or holds anything else.
    """
    path = folder / SEEN
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkError(f"{path}: cannot be read ({error})") from error
    if not lines:
        raise WorkError(f"{path}: is empty; expected the sha256 of an image's pixels on each line")
    wrong = next((number for number, line in enumerate(lines, start=1) if not _HASH.fullmatch(line)), None)
    if wrong is not None:
        raise WorkError(f"{path} line {wrong}: expected the sha256 of an image's pixels")
    return frozenset(lines)


def seen_again(tested: Checked, name: str, seen: Mapping[str, frozenset[str]]) -> list[dict[str, Any]]:
    """How many images of a test were trained on before, in the shape of `medbench.data.leaks.leaks_between`.

    Args:
        tested: checked with fingerprints.
        name: of the test, `task/split`.
        seen: by what was trained (`adapter`, `backbone`), the hashes of its images.
    """
    pixels = [taken.pixels for taken in tested.fingerprints.values()]
    counts = {by: {"total": len(pixels), "exact": sum(p in known for p in pixels)} for by, known in seen.items()}
    return [{"tested": name, "trained": by, "images": count} for by, count in counts.items()]
