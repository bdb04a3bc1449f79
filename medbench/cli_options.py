"""What the sub-commands share: options, the checks of their values, and JSON on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from medbench.errors import RequestError, did_you_mean

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data sets' folders [default: data_root of medbench.toml, else the hub]."),
]


def print_json(value: Any) -> None:
    """Prints one JSON document."""
    print(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def split_names(text: str) -> list[str]:
    """The names of a comma-separated list."""
    return [part.strip() for part in text.split(",") if part.strip()]


def choice(option: str, value: str, known: tuple[str, ...]) -> Any:
    """The value, where it is one of those known; else a `RequestError` that names the nearest."""
    if value not in known:
        raise RequestError(f"{option} {value!r}: {did_you_mean(value, known)}")
    return value


def seed_list(text: str) -> list[int]:
    """The seeds of `--seeds`, if they are some (`medbench.grid.check_seeds`)."""
    from medbench.grid import check_seeds

    try:
        return check_seeds([int(part) for part in split_names(text)], f"--seeds {text!r}")
    except ValueError as error:
        raise RequestError(f"--seeds {text!r}: expected whole numbers, for example 0,1,2") from error
