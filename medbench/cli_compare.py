"""`medbench compare` and `medbench reliability`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from medbench.cli_options import Json, choice, print_json, split_names
from medbench.errors import RequestError

DEFAULT_RUNS = Path("results/runs")


def compare(
    first: Annotated[str, typer.Argument(metavar="METHOD_A", help="A method.")],
    second: Annotated[str, typer.Argument(metavar="METHOD_B", help="What it is compared with; several, by commas.")],
    task: Annotated[str, typer.Option(help="The task that both were tested on.")],
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them [default: results/runs].")
    ] = None,
    metric: Annotated[str, typer.Option(help="Comma-separated, or all that the task has.")] = "all",
    split: Annotated[str, typer.Option(help="The split that was answered.")] = "test",
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="[METHOD:]FIELD=VALUE, which runs must have where several would do: training.lr=1e-3, "
            "trained_on=slake, blind=null, budget=2M, lora:adapter.r=16, or another field of spec.json by its end."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare methods on the same items: difference with interval, p by sign flips of images, what could be seen.

    Runs are compared if they agree in everything but the method, its training settings and the seed. With several
    METHOD_B, p is corrected over all comparisons of a metric (Holm).
    """
    from medbench.results.compare import compare_methods
    from medbench.results.compare_text import numbers, render_comparisons

    found = compare_methods(
        runs or [DEFAULT_RUNS],
        first,
        split_names(second),
        task,
        choice("--split", split, ("test", "validation")),
        split_names(metric),
        [where_field(text) for text in where or []],
    )
    print_json(numbers(found)) if as_json else print(render_comparisons(found), end="")


def reliability(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run folders, or the first letters of their hashes (in results/runs, or FOLDER/LETTERS).",
        ),
    ],
    task: Annotated[str, typer.Option(help="The task that was answered.")],
    out: Annotated[
        Path | None, typer.Option(help="Also draw reliability-HASH-TASK.png and .svg into this folder.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how often the closed answers of a run are right at each confidence, and the calibration error."""
    from medbench.results.reliability import plot_reliability, reliability_text, run_reliability
    from medbench.results.routes import find_run

    shown = [run_reliability(folder, task) for folder in dict.fromkeys(find_run(name) for name in runs)]
    files = [[str(path) for path in plot_reliability(found, out)] if out else [] for found in shown]
    if as_json:
        print_json({"runs": [found | {"files": drawn} for found, drawn in zip(shown, files, strict=True)]})
    else:
        print("\n".join("\n".join([reliability_text(f), *drawn]) for f, drawn in zip(shown, files, strict=True)))


def where_field(text: str) -> tuple[str | None, str, Any]:
    """A `--where` as method (None: all), field and value.

    Raises:
        RequestError: not of that form.
    """
    from medbench.methods import parse_settings

    name, sign, value = text.partition("=")
    method, colon, field = name.rpartition(":")
    if not sign or not field or (colon and not method):
        raise RequestError(f"--where {text!r}: expected [METHOD:]FIELD=VALUE, for example training.lr=1e-3")
    try:
        ((field, parsed),) = parse_settings([f"{field}={value}"]).items()
    except RequestError as error:
        raise RequestError(str(error).replace("--set", "--where")) from error
    return (method or None, field, parsed)
