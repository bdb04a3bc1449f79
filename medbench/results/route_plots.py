"""Draws what the routers of a run did: expert use by layer and task, and the spectra with the experts' segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medbench.files import write_atomic
from medbench.results.route_summary import layer_name

#: Okabe and Ito's colours, black as grey: told apart with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#7F7F7F")
#: So many panels stand side by side.
_ACROSS = 4
#: With more layers only their blocks are named.
_NAMED_ROWS = 84
Array = NDArray[np.float64]


def expert_colours(count: int) -> list[Any]:
    """A colour for each expert; more than eight are shades in the order of the experts."""
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0, 1, count)))


def plot_routes(found: dict[str, Any], out: Path, name: str) -> list[Path]:
    """Draws `name`.png and .svg: for each task the experts' mean shares over a map of layers and experts.

    Two tasks get a third panel with their difference.

    Args:
        found: a `medbench.results.route_summary.summary`.
        out: the folder.
        name: of the files.
    """
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    tasks, layers, n = found["tasks"], list(next(iter(found["tasks"].values()))["layers"]), found["experts"]
    maps = {
        task: 100 * np.array([about["layers"][layer]["share"] for layer in layers]) for task, about in tasks.items()
    }
    panels: list[tuple[str, Array]] = list(maps.items())
    shares = Normalize(0, max(values.max() for values in maps.values()))
    if len(panels) == 2:
        (one, first), (two, second) = panels
        panels.append((f"{two}\nminus {one}", second - first))
    columns, bands = min(_ACROSS, len(panels)), -(-len(panels) // _ACROSS)
    height = 0.165 * len(layers) if len(layers) <= _NAMED_ROWS else max(8.0, 0.05 * len(layers))
    width = max(1.9, 0.3 * n)
    size = (1.9 + (width + 0.35) * columns + 1.0 * (1 + (len(maps) == 2)), bands * (height + 1.9) + 0.7)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(2 * bands, columns, height_ratios=[0.9, height] * bands)
    top = max(max(about["share"]) for about in tasks.values())
    drawn: list[Any] = []
    for index, (title, values) in enumerate(panels):
        row, column = divmod(index, columns)
        bars = figure.add_subplot(grid[2 * row, column])
        body = figure.add_subplot(grid[2 * row + 1, column])
        difference = title not in maps
        _draw_bars(bars, values.mean(axis=0), None if difference else (100 * found["balanced"], 108 * top))
        bars.set_title(title, fontsize=9)
        if column == 0:
            bars.set_ylabel("mean (%)", fontsize=8)
        limit = float(np.abs(values).max()) or 1.0
        image = body.pcolormesh(
            values,
            cmap="PuOr" if difference else "viridis",
            norm=Normalize(-limit, limit) if difference else shares,
            rasterized=values.size > 1000,
        )
        _label(body, layers, column == 0, found, n)
        drawn.append((image, body))
    _colour_bars(figure, drawn, found, len(maps) == 2)
    figure.suptitle(fill(_title(found), int(11 * size[0])), fontsize=10)
    return save(figure, out, name)


def _title(found: dict[str, Any]) -> str:
    trained = f", trained on {found['trained_on']}" if found["trained_on"] else ""
    return f"{found['method']} on {found['backbone']}, seed {found['seed']}{trained}"


def _draw_bars(axes: Any, means: Array, marks: tuple[float, float] | None) -> None:
    """Args: axes, a bar for each, balanced use and the top of the axis (None: bars up and down)."""
    n = len(means)
    axes.bar(np.arange(n) + 0.5, means, width=0.86, color=expert_colours(n))
    axes.set_xlim(0, n)
    axes.set_xticks([])
    if marks is None:
        axes.axhline(0, color="black", linewidth=0.8)
    else:
        axes.axhline(marks[0], color="black", linewidth=0.8, linestyle="--")
        axes.set_ylim(0, marks[1])
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)


def _label(axes: Any, layers: Sequence[str], named: bool, found: dict[str, Any], n: int) -> None:
    """Experts below; at the left, where `named`, the layers: every matrix, and beside them the block they are of."""
    axes.invert_yaxis()
    axes.tick_params(length=0, labelsize=7)
    words = found["segments"]["words"] if found["segments"] else [""] * n
    few = n <= 16
    axes.set_xticks(np.arange(n) + 0.5, [f"E{j}\n{w}".strip() if few else str(j) for j, w in enumerate(words)])
    if n > 10:
        axes.tick_params(axis="x", labelsize=5.5)
    names = [layer_name(layer) for layer in layers]
    axes.set_yticks([])
    beside = 5.0  # points
    if named and len(names) <= _NAMED_ROWS:
        axes.set_yticks(np.arange(len(names)) + 0.5, [name.kind for name in names])
        beside += 4.2 * max(len(name.kind) for name in names)
    start = 0
    for block, members in groupby(names, key=lambda name: name.block):
        end = start + len(list(members))
        if start:
            axes.axhline(start, color="white", linewidth=1.2)
        if named and block:
            middle = (start + end) / 2
            axes.annotate(
                block,
                (0, middle),
                (-beside, 0),
                xycoords=axes.get_yaxis_transform(),
                textcoords="offset points",
                fontsize=8,
                ha="right",
                va="center",
            )
        start = end


def _colour_bars(figure: Any, drawn: Sequence[tuple[Any, Any]], found: dict[str, Any], difference: bool) -> None:
    shared = drawn[:-1] if difference else drawn
    balanced = 100 * found["balanced"]
    slim = {"aspect": figure.get_figheight() / 0.2, "pad": 0.02}
    bar = figure.colorbar(shared[-1][0], ax=[axes for _, axes in shared], **slim)
    bar.set_label(f"share of {found['measure']} (%)", fontsize=8)
    bar.ax.axhline(balanced, color="white", linewidth=1.8)
    bar.ax.tick_params(labelsize=7)
    bar.ax.text(-0.25, balanced, "balanced", rotation=90, ha="right", va="center", fontsize=7)
    if difference:
        other = figure.colorbar(drawn[-1][0], ax=drawn[-1][1], **slim)
        other.set_label("difference (percentage points)", fontsize=8)
        other.ax.tick_params(labelsize=7)


def plot_spectra(found: dict[str, Any], spectra: Mapping[str, Array], out: Path, name: str) -> list[Path]:
    """Draws `name`.png and .svg: singular values of some weights, and the triplets each expert started from.

    Args:
        found: a summary with `segments`.
        spectra: layer -> its singular values, descending.
        out: the folder.
        name: of the files.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    segments, n = found["segments"], found["experts"]
    kinds = list(dict.fromkeys(layer_name(layer).matrix for layer in spectra))
    columns = max(sum(layer_name(layer).matrix == kind for layer in spectra) for kind in kinds)
    figure = Figure(figsize=(1.2 + 3.0 * columns, 1.3 + 2.3 * len(kinds)), layout="constrained")
    places = figure.subplots(len(kinds), columns, squeeze=False)
    colours = expert_colours(n)
    for kind, row in zip(kinds, places, strict=True):
        chosen = [layer for layer in spectra if layer_name(layer).matrix == kind]
        for axes, layer in zip(row, chosen, strict=False):
            _draw_spectrum(axes, spectra[layer], segments, layer, colours)
            axes.set_title(str(layer_name(layer)), fontsize=9)
        for axes in row[len(chosen) :]:
            axes.set_axis_off()
        row[0].set_ylabel("singular value / largest", fontsize=8)
    for axes in places[-1]:
        axes.set_xlabel("index of the singular value", fontsize=8)
    patches = [Patch(color=colour, label=f"E{j}") for j, colour in enumerate(colours)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(n, 16), fontsize=8, frameon=False)
    figure.suptitle(
        f"{found['backbone']}: where the experts of {found['method']} start "
        f"({segments['init']}, {segments['rank']} singular triplet{'s' * (segments['rank'] > 1)} each)",
        fontsize=10,
    )
    return save(figure, out, name)


def _draw_spectrum(axes: Any, values: Array, segments: dict[str, Any], layer: str, colours: Sequence[Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    relative = values / values[0]
    h, n = len(relative), len(colours)
    whole = segments["init"] in ("spectral", "segment_end")
    axes.plot(np.arange(h), relative, color="black", linewidth=1.0, zorder=2)
    for j, (start, colour) in enumerate(zip(segments["starts"][h], colours, strict=True)):
        if whole:  # the segment of which the expert takes the first (last) triplets
            axes.axvspan(j * (h // n), (j + 1) * (h // n), color=colour, alpha=0.25, linewidth=0, zorder=0)
        taken = np.arange(start, start + segments["rank"])
        axes.vlines(taken, 0, relative[taken], color=colour, linewidth=1.0, zorder=1)
        axes.plot(taken, relative[taken], "o", color=colour, markersize=4.5, markeredgecolor="black",
                  markeredgewidth=0.5, zorder=3, clip_on=False)  # fmt: skip
    axes.set_yscale("log")
    axes.set_xlim(-0.01 * h, h)
    first, last = min(segments["starts"][h]), max(segments["starts"][h]) + segments["rank"]
    if last - first < 0.2 * h:  # all beside one another: only that part of the spectrum, with some around it
        around = 1.5 * (last - first)
        axes.set_xlim(max(first - around, -0.3), min(last + around, h))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    positive = relative[relative > 0]
    axes.set_ylim(max(float(positive.min()), 1e-8) / 1.5, 1.6)
    axes.tick_params(labelsize=7)


def save(figure: Any, out: Path, name: str) -> list[Path]:
    """Writes a figure as PNG and SVG, atomically; equal figures are equal bytes."""
    from matplotlib import rc_context

    paths = [out / f"{name}.{form}" for form in ("png", "svg")]
    with rc_context({"svg.hashsalt": "medbench"}):
        for path in paths:
            form = path.suffix[1:]
            about = {"Date": None} if form == "svg" else {}
            write_atomic(path, lambda to: figure.savefig(to, format=form, dpi=130, metadata=about))  # noqa: B023
    return paths
