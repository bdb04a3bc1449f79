"""`medbench nano ...`: the small backbones that travel in the package. Parse, call one function, print."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from medbench.cli_options import Json, choice, print_json
from medbench.errors import RequestError

nano_app = typer.Typer(help="Pretrain a small backbone, look at it.", no_args_is_help=True, rich_markup_mode=None)

BACKBONES = ("nano-vl", "nano-clip")
Small = Annotated[str, typer.Option(help="nano-vl (describes, answers) or nano-clip (classifies).")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]


def _device(name: str) -> Any:
    from medbench.workplace import choose_device, quiet

    quiet()
    return choose_device(name)


@nano_app.command("pretrain")
def nano_pretrain(
    out: Annotated[Path, typer.Option(help="Folder of the state and the backbone; the same command goes on there.")],
    backbone: Small = "nano-vl",
    base: Annotated[
        Path | None, typer.Option(help="Folder with architecture and tokenizer [default: the backbone's own].")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="nano-vl: the --out of an earlier stage to start from [default: random].")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps [default: 1800, 1200].")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images a step [default: 32, 48].")] = None,
    exchanges: Annotated[
        int | None, typer.Option(min=2, help="nano-vl: a caption and questions about each image [default: 2].")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of weights, scenes and texts.")] = 0,
    lr: Annotated[float | None, typer.Option(min=0.0, help="Highest rate [default: 1.5e-3, 1e-3].")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, or bfloat16 (autocast) [default: float32, bfloat16].")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Blank images: what the text alone gives.")] = False,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop after this long; go on later.")] = None,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between two saves.")] = 50,
    scenes: Annotated[
        int | None, typer.Option(min=1, help="Held-out scenes for the card's figures [default: 400, 300].")
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Pretrain a small backbone on generated phantoms, from random weights; resumable."""
    choice("--backbone", backbone, BACKBONES)
    if dtype is not None:
        choice("--dtype", dtype, ("float32", "bfloat16"))
    if lr is not None and not math.isfinite(lr):
        raise RequestError(f"--lr {lr}: should be a number like 1e-3")
    given: dict[str, Any] = {"steps": steps, "images": images, "lr": lr, "dtype": dtype, "seed": seed, "blind": blind}
    given = {name: value for name, value in given.items() if value is not None}
    own = {"--start": start, "--exchanges": exchanges}
    if backbone == "nano-clip":
        for option, value in own.items():
            if value is not None:
                raise RequestError(f"{option}: is of nano-vl's pretraining; nano-clip has one stage, and captions only")
        from medbench.backbones.clip_pretrain import ClipRecipe
        from medbench.backbones.nano_clip import card_text as clip_text
        from medbench.backbones.nano_clip import pretrain_clip

        clip_card = pretrain_clip(out, ClipRecipe(**given), _device(device), base, minutes, save_steps, scenes)
        print_json(clip_card) if as_json else print(clip_text(clip_card))
        return
    from medbench.backbones.nano import card_text, pretrain
    from medbench.backbones.pretrain import Recipe
    from medbench.backbones.registry import get_backbone

    recipe = Recipe(**given | ({} if exchanges is None else {"exchanges": exchanges}))
    folder = base or get_backbone("nano-vl").folder()
    card = pretrain(folder, out, recipe, _device(device), start, minutes, save_steps, scenes or 400)
    print_json(card) if as_json else print(card_text(card))


@nano_app.command("skill")
def nano_skill(
    folder: Annotated[Path | None, typer.Argument(help="A backbone's folder [default: the packaged one].")] = None,
    backbone: Small = "nano-vl",
    scenes: Annotated[int | None, typer.Option(min=1, help="Held-out scenes [default: 400, 300].")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Show blank images.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Let a pretrained backbone describe (nano-vl) or classify (nano-clip) held-out phantoms."""
    choice("--backbone", backbone, BACKBONES)
    from medbench.backbones.registry import get_backbone

    chosen = folder or get_backbone(backbone).folder()
    if backbone == "nano-clip":
        from medbench.backbones.clip_skill import folder_skill as clip_skill
        from medbench.backbones.clip_skill import skill_text

        told = clip_skill(chosen, _device(device), scenes, blind)
        print_json(told) if as_json else print(skill_text(told))
        return
    from medbench.backbones.nano import folder_skill

    found = folder_skill(chosen, _device(device), scenes or 400, blind)
    if as_json:
        print_json(found)
        return
    for name, value in found["captions"].items():
        print(f"captions {name} {100 * value:.1f} (another scene's caption: {100 * found['shuffled'][name]:.1f})")
    print(f"yes/no balanced accuracy {100 * found['yes_no']['balanced_accuracy']:.1f} (n={found['yes_no']['n']})")


@nano_app.command("plot")
def nano_plot(
    folders: Annotated[list[Path], typer.Argument(help="Folders of `nano pretrain`; the first one's spectra.")],
    out: Annotated[Path, typer.Option(help="Folder for the pictures (and, of nano-clip, the table).")],
    backbone: Small = "nano-vl",
    fresh: Annotated[
        Path | None, typer.Option(help="nano-vl: a backbone of the same shape with random weights.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Draw the loss curves; of nano-vl also the spectra of some matrices beside those of random ones."""
    choice("--backbone", backbone, BACKBONES)
    if (fresh is None) == (backbone == "nano-vl"):
        raise RequestError("--fresh: is needed to draw the spectra of nano-vl, and of nano-clip none are drawn")
    if fresh is None:
        from medbench.backbones.clip_plots import plot_clip

        shares = plot_clip(folders, out)
    else:
        from medbench.backbones.nano_plots import plot_losses, plot_spectra

        # First what reads the larger files: nothing is drawn when one of them is broken.
        shares = plot_spectra(folders[0] / "backbone", fresh, out / "spectrum.png")
        plot_losses(folders, out / "loss.png")
    print_json(shares) if as_json else print("\n".join(f"{name} {value:.3f}" for name, value in shares.items()))
