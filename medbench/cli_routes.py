"""`medbench routes`: what a run's routers did. Parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medbench.cli_options import Json, print_json
from medbench.errors import MedbenchError
from medbench.progress import note


def routes(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or the first letters of their hashes (in results/runs, or FOLDER/LETTERS).",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for the pictures [default: the run's].")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Folder of the backbone's weights, where its name does not say.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show which experts, and with them which segments of the spectrum, each task of a run uses.

    Draws routes-HASH.png and .svg (expert use by layer and task), and spectrum-HASH.png and .svg (singular values of
    some weights, with the triplets that the experts started from) where the backbone's weights are on this machine.
    """
    from medbench.results.route_plots import plot_routes, plot_spectra
    from medbench.results.route_summary import summary, summary_text
    from medbench.results.routes import find_run
    from medbench.results.spectra import backbone_folders, chosen_layers, read_spectra

    folders = list(dict.fromkeys(find_run(name) for name in runs))
    shown = []
    for folder, found in [(folder, summary(folder)) for folder in folders]:  # all are read before any is drawn
        name, place = found["run"][:12], out or folder
        files = plot_routes(found, place, f"routes-{name}")
        if found["segments"] is not None:
            values = found["segments"]["values"]
            try:
                spectra = read_spectra(backbone_folders(folder, backbone), chosen_layers(list(values)), values)
            except MedbenchError as error:
                if backbone is not None:
                    raise
                note(f"no spectrum drawn: {error}; --backbone FOLDER")
            else:
                files += plot_spectra(found, spectra, place, f"spectrum-{name}")
        shown.append(found | {"files": [str(path) for path in files]})
        if not as_json:
            print(summary_text(found) + "\n\n" + "\n".join(map(str, files)) + "\n" * (folder != folders[-1]))
    if as_json:
        print_json({"runs": shown})
