"""`medbench nano ...`: the small backbone that travels in the package. Parse, call one function, print."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from medbench.cli_options import Json, choice, print_json
from medbench.errors import RequestError

nano_app = typer.Typer(help="Pretrain the small backbone, look at it.", no_args_is_help=True, rich_markup_mode=None)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def _device(name: str) -> Any:
    from medbench.workplace import choose_device, quiet

    quiet()
    return choose_device(name)


@nano_app.command("pretrain")
def nano_pretrain(
    out: Annotated[Path, typer.Option(help="Folder of the state and the backbone; the same command goes on there.")],
    base: Annotated[
        Path | None, typer.Option(help="Folder with architecture and processor [default: the packaged nano-vl].")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="The --out of an earlier stage to start from [default: random weights].")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 1800,
    images: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    exchanges: Annotated[int, typer.Option(min=2, help="A caption and questions about each image.")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights, scenes and questions.")] = 0,
    lr: Annotated[float, typer.Option(min=0.0, help="Highest learning rate.")] = 1.5e-3,
    dtype: Annotated[str, typer.Option(help="float32, or bfloat16 (autocast).")] = "float32",
    blind: Annotated[bool, typer.Option("--blind", help="Blank images: what the text alone gives.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop after this long; go on later.")] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between two saves.")] = 50,
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes that the card's figures are from.")] = 400,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Pretrain the small backbone on generated phantoms, from random weights; resumable."""
    choice("--dtype", dtype, ("float32", "bfloat16"))
    if not math.isfinite(lr):
        raise RequestError(f"--lr {lr}: should be a number like 1e-3")
    from medbench.backbones.nano import card_text, pretrain
    from medbench.backbones.pretrain import Recipe
    from medbench.backbones.registry import get_backbone

    recipe = Recipe(steps, images, exchanges, lr, seed=seed, dtype=dtype, blind=blind)
    folder = base or get_backbone("nano-vl").folder()
    card = pretrain(folder, out, recipe, _device(device), start, minutes, save_steps, scenes)
    print_json(card) if as_json else print(card_text(card))


@nano_app.command("skill")
def nano_skill(
    folder: Annotated[Path | None, typer.Argument(help="A backbone [default: the packaged nano-vl].")] = None,
    scenes: Annotated[int, typer.Option(min=1, help="Held-out scenes to describe.")] = 400,
    blind: Annotated[bool, typer.Option("--blind", help="Show blank images.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Let a pretrained backbone describe held-out phantoms and answer yes/no questions about them."""
    from medbench.backbones.nano import folder_skill
    from medbench.backbones.registry import get_backbone

    found = folder_skill(folder or get_backbone("nano-vl").folder(), _device(device), scenes, blind)
    if as_json:
        print_json(found)
        return
    for name, value in found["captions"].items():
        print(f"captions {name} {100 * value:.1f} (another scene's caption: {100 * found['shuffled'][name]:.1f})")
    print(f"yes/no balanced accuracy {100 * found['yes_no']['balanced_accuracy']:.1f} (n={found['yes_no']['n']})")


@nano_app.command("plot")
def nano_plot(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `nano pretrain`; the first one's spectra.")],
    fresh: Annotated[Path, typer.Option(help="A backbone of the same shape with random weights.")],
    out: Annotated[Path, typer.Option(help="Folder for loss.png and spectrum.png.")],
    as_json: Json = False,
) -> None:
    """Draw the loss curves, and the spectra of some matrices beside those of random ones."""
    from medbench.backbones.nano_plots import plot_losses, plot_spectra

    # First what reads the larger files: nothing is drawn when one of them is broken.
    shares = plot_spectra(folders[0] / "backbone", fresh, out / "spectrum.png")
    plot_losses(folders, out / "loss.png")
    print_json(shares) if as_json else print("\n".join(f"{name} {value:.3f}" for name, value in shares.items()))
