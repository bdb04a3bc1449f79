"""The two ways a command can fail, and how near misses are suggested.

Every error that reaches a user is one of these: one line that says what was wrong, where, and what would be
right. The command line turns them into exit codes (`medbench.cli`).
"""

import difflib
from collections.abc import Iterable


class MedbenchError(Exception):
    """Base of all errors meant for a person to read."""

    exit_code = 1


class RequestError(MedbenchError):
    """The request was wrong: unknown name, impossible budget, missing data (exit code 2)."""

    exit_code = 2


class WorkError(MedbenchError):
    """The work failed: a truncated image, a diverging loss, a locked run (exit code 1)."""

    exit_code = 1


class HeldError(WorkError):
    """Another process is at this run; it will be finished, or free, when that one is done."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint naming the nearest known names, or all of them when none is near.

    Example:
        >>> did_you_mean("vqa_rat", ["vqa_rad", "slake"])
        'did you mean vqa_rad?'
    """
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known) or 'none'}"
