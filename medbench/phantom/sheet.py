"""A contact sheet of phantoms: a row a modality, then two scenes through every scanner.

python -m medbench.phantom.sheet results/phantom/contact_sheet.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from medbench.files import write_atomic
from medbench.phantom.anatomy import MODALITIES
from medbench.phantom.image import SCANNERS, pixels
from medbench.phantom.scene import Scene, find_scene

_COLUMNS = 8


def describe(scene: Scene) -> str:
    """What a scene shows, a line a lesion."""
    return "\n".join(f"{x.size} {x.kind}, {scene.site(x).name}" for x in scene.lesions) or "normal"


def contact_sheet(out: Path) -> None:
    """Draws the sheet."""
    from matplotlib.figure import Figure

    rows = [
        [(find_scene(f"sheet:{n}", "pretrain", (name,)), "standard") for n in range(_COLUMNS)] for name in MODALITIES
    ]
    scanned = [find_scene("sheet:1", "pretrain", (name,)) for name in ("xray", "mr")]
    rows.append([(scene, scanner) for scene in scanned for scanner in SCANNERS])
    figure = Figure(figsize=(1.7 * _COLUMNS, 2.15 * len(rows)), layout="constrained")
    for axes, (scene, scanner) in zip(
        figure.subplots(len(rows), _COLUMNS).flat, [cell for row in rows for cell in row], strict=True
    ):
        axes.imshow(pixels(scene, scanner), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        title = describe(scene) if scanner == "standard" else scanner.replace("_", " ")
        axes.set_title(title, fontsize=6.5, loc="left")
        axes.axis("off")
    write_atomic(out, lambda path: figure.savefig(path, format="png", dpi=90))


if __name__ == "__main__":
    contact_sheet(Path(sys.argv[1]))
