"""The scoring rules, one module each: adding a profile is adding one file to this folder.

A profile module `<name>.py` offers `NAME` (its file name), `SOURCE` (where the rule comes from), and
`score_closed(gold, prediction)` and `score_open(gold, prediction)`, each returning `scores(...)`. Names are
read from the folder; a module is imported when it is first asked for.
"""

import importlib
import pkgutil
from typing import Protocol, cast

from medbench.errors import RequestError, did_you_mean

KEYS = ("closed", "em", "quasi_em", "precision", "recall", "f1", "rouge_l")
"""What every profile returns, in the order of `score --pairs`."""

Scores = dict[str, float | None]


class Profile(Protocol):
    """What a profile module offers."""

    NAME: str
    SOURCE: str

    def score_closed(self, gold: str, prediction: str) -> Scores:
        """Score an answer out of a known few."""
        ...

    def score_open(self, gold: str, prediction: str) -> Scores:
        """Score a free answer."""
        ...


def scores(**given: float) -> Scores:
    """A full row of scores: the given ones, None for those a profile does not have.

    Example:
        >>> scores(closed=1.0)["closed"], scores(closed=1.0)["recall"]
        (1.0, None)
    """
    unknown = given.keys() - set(KEYS)
    if unknown:
        raise KeyError(f"not a score: {', '.join(sorted(unknown))}")
    return {key: given.get(key) for key in KEYS}


def profile_names() -> list[str]:
    """All profile names, sorted; imports none of them."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def get_profile(name: str) -> Profile:
    """The profile of this name, imported on first use.

    Raises:
        RequestError: There is no such profile; names those that are near.
    """
    if name not in profile_names():
        raise RequestError(f"unknown profile {name!r}: {did_you_mean(name, profile_names())}")
    return cast(Profile, importlib.import_module(f"{__name__}.{name}"))
