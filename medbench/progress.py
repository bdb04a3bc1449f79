"""Progress bars on stderr: real ones on a terminal, nothing elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int, int], None]


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """Yields a function to call with (done, in all)."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(bar, completed=done, total=total)


def speaks() -> bool:
    """Whether this process is the one that prints: the only one, or the first of those a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def note(text: str) -> None:
    """One line on stderr, from the process that speaks."""
    if not speaks():
        return
    print(text, file=sys.stderr, flush=True)
