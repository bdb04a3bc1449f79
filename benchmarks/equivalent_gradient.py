"""Which scale makes an adapter's gradient that of full fine-tuning: `python benchmarks/equivalent_gradient.py`.

At B = 0 the equivalent gradient of an expert is s^2 g A'A (GOAT, arXiv 2502.16894). Averaged over Kaiming draws of A it
is eta g at s* = sqrt(3 n eta / r'). For the one A that a run draws, no s makes it eta g: A'A has rank r'. The error is
then smallest near sqrt(3 eta), and the norms agree at sqrt(3 eta sqrt(n / r')). Draws both, deterministically, into
`results/benchmarks/equivalent_gradient.png` and `.svg`, and prints the three scales beside the formulas.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from torch import nn

from medbench.files import write_atomic

OUT = Path(__file__).parent.parent / "results" / "benchmarks" / "equivalent_gradient"
SINGLE = 400  # draws looked at one by one
#: Okabe and Ito's colours: also told apart without red and green, and the lines differ in style.
MEAN, ONE, NORM = "#0072B2", "#D55E00", "#009E73"


def curves(n: int, rank: int, eta: float, draws: int, scales: torch.Tensor) -> dict[str, torch.Tensor]:
    """Relative errors |s^2 g M - eta g| / |eta g| and norms |s^2 g M| / |eta g| over the scales.

    Args:
        n: in_features.
        rank: r', the rank that A has.
        eta: learning rate of full fine-tuning over that of the adapter.
        draws: how many A.
        scales: [S].

    Returns:
        `mean`, [S]: the error with M the mean of A'A over all draws; `single` and `norm`, [`SINGLE`, S]: error and norm
        with M of one draw.
    """
    generator = torch.Generator().manual_seed(0)
    a = nn.init.kaiming_uniform_(torch.empty(draws * rank, n), a=math.sqrt(5), generator=generator)
    a = a.double().view(draws, rank, n)
    g = torch.randn(n, n, generator=generator, dtype=torch.float64)
    square = (scales**2 / eta)[:, None, None]
    mean = g @ torch.einsum("krn,krl->nl", a, a) / draws
    products = [g @ one.T @ one for one in a[:SINGLE]]

    def norms(of: torch.Tensor) -> torch.Tensor:
        return of.flatten(1).norm(dim=1) / g.norm()

    return {
        "mean": norms(square * mean - g),
        "single": torch.stack([norms(square * product - g) for product in products]),
        "norm": torch.stack([scales**2 / eta * product.norm() / g.norm() for product in products]),
    }


def draw(n: int, rank: int, eta: float, scales: torch.Tensor, found: dict[str, torch.Tensor]) -> Figure:
    """The errors on the left, the norms on the right, with the three scales of the formulas."""
    star, alone = math.sqrt(3 * n * eta / rank), math.sqrt(3 * eta)
    matched = math.sqrt(3 * eta * math.sqrt(n / rank))
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    x = scales.tolist()
    left.plot(x, found["mean"].tolist(), color=MEAN, label="A'A averaged over 20,000 draws")
    _band(left, x, found["single"], ONE, "A'A of one draw (median; 5 to 95 %)")
    left.set(ylim=(0, 2.4), ylabel="|s² g A'A − η g| / |η g|", title="error of the equivalent gradient")
    _band(right, x, found["norm"], NORM, "A'A of one draw (median; 5 to 95 %)")
    right.axhline(1, color="grey", linewidth=0.8)
    right.set(yscale="log", ylabel="|s² g A'A| / |η g|", title="its norm")
    marks = (
        (left, star, MEAN, "s* = √(3nη/r′)", 0.5),
        (left, alone, ONE, "√(3η)", 0.02),
        (right, matched, NORM, "√(3η√(n/r′))", 0.02),
    )
    for axes, at, colour, text, height in marks:
        axes.axvline(at, color=colour, linestyle=":", linewidth=1.2)
        axes.annotate(
            f"{text} = {at:.2f}", (at, height), xycoords=("data", "axes fraction"), rotation=90, ha="right",
            va="bottom", xytext=(-3, 0), textcoords="offset points", color=colour, fontsize=9,
        )  # fmt: skip
    for axes in (left, right):
        axes.set(xscale="log", xlabel=f"scale s (n = {n}, r′ = {rank}, η = {eta:g})", xlim=(x[0], x[-1]))
        axes.set_xticks(ticks := [0.5, 1, 2, 5, 10, 20], [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.legend(loc="upper left", fontsize=8)
    return figure


def _band(axes: Any, x: list[float], values: torch.Tensor, colour: str, label: str) -> None:
    low, middle, high = values.quantile(torch.tensor([0.05, 0.5, 0.95], dtype=values.dtype), dim=0).tolist()
    axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(x, middle, color=colour, linestyle="--", label=label)


def main() -> None:
    """Computes, prints and draws."""
    parser = argparse.ArgumentParser(description="Draw the error of the equivalent gradient over the scale.")
    parser.add_argument("--out", type=Path, default=OUT, help="path of the pictures, without .png and .svg")
    out = parser.parse_args().out
    n, rank, eta, draws = 48, 4, 1.0, 20_000
    scales = torch.logspace(math.log10(0.5), math.log10(20), 600, dtype=torch.float64)
    found = curves(n, rank, eta, draws, scales)
    crossing = (found["norm"] - 1).abs().argmin(dim=1)
    for name, formula, measured in (
        ("mean of 20,000 draws, smallest error", 3 * n * eta / rank, scales[found["mean"].argmin()]),
        ("single draws, smallest error (median)", 3 * eta, scales[found["single"].argmin(dim=1)].median()),
        ("single draws, equal norm (median)", 3 * eta * math.sqrt(n / rank), scales[crossing].median()),
    ):
        print(f"{name}: s = {measured.item():.2f}, formula {math.sqrt(formula):.2f}")
    # Without dates and random ids: the same numbers are the same bytes.
    with rc_context({"svg.hashsalt": "medbench"}):
        figure = draw(n, rank, eta, scales, found)
        for suffix, about in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = out.with_suffix(f".{suffix}")
            write_atomic(
                path,
                lambda temporary, kind=suffix, about=about: figure.savefig(
                    temporary, format=kind, dpi=120, metadata=about
                ),
            )
            print(path)


if __name__ == "__main__":
    main()
