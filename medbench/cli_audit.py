"""`medbench audit`: parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medbench.cli_options import Json, print_json
from medbench.errors import WorkError


def audit(
    tables: Annotated[
        Path | None, typer.Option(help="Folder of published tables [default: those of this package].")
    ] = None,
    as_json: Json = False,
) -> None:
    """Recompute every derived figure of the published tables: which hold, which do not, and why.

    A published figure that does not add up is a finding and no failure, as long as the tables say why. The exit code is
    1 where one disagrees with its rule unexplained.
    """
    from medbench.results.audit import audit_json, audit_published, audit_text

    checks = audit_published(tables)
    print_json(audit_json(checks)) if as_json else print(audit_text(checks))
    faults = [f"{check.table} {check.figure} {check.failure}" for check in checks if check.failure is not None]
    if faults:
        more = f" (and {len(faults) - 1} more, marked above)" if len(faults) > 1 else ""
        raise WorkError(f"published figure {faults[0]}{more}")
