"""The scoring rules, one module each: adding a profile is adding one file to this folder.

A profile module `<name>.py` offers `NAME` (its file name), `SOURCE` (where the rule comes from), `OVERALL` (the figures
that the project prints over all questions: name -> the scores they are the mean of, the first that a question has), and
`score_closed(gold, prediction)` and `score_open(gold, prediction)`, each returning `scores(...)`. Where a project
prints scores under other names than they have, its module also offers `as_reported(row)`. Names are read from the
folder; a module is imported when it is first asked for.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from medbench.errors import RequestError, did_you_mean

KEYS = ("closed", "em", "quasi_em", "precision", "recall", "f1", "rouge_l")
"""What every profile returns, in the order of `score --pairs`."""

Scores = dict[str, float | None]
Overall = Mapping[str, tuple[str, ...]]


class Profile(Protocol):
    """What a profile module offers."""

    NAME: str
    SOURCE: str
    OVERALL: Overall

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


def get_profile(name: str, as_reported: bool = False) -> Profile:
    """The profile of this name, imported on first use.

    Args:
        name: One of `profile_names()`.
        as_reported: Give each score the name under which the project itself prints it, wrong as it is.

    Raises:
        RequestError: There is no such profile; names those that are near. Or it prints its scores as they are.

    Example:
        >>> pair = ("left lung", "left left left")
        >>> [get_profile("medevalkit", said).score_open(*pair)["precision"] for said in (False, True)]
        [1.0, 0.6666666666666666]
    """
    if name not in profile_names():
        raise RequestError(f"unknown profile {name!r}: {did_you_mean(name, profile_names())}")
    rule = cast(Profile, importlib.import_module(f"{__name__}.{name}"))
    if not as_reported:
        return rule
    if not hasattr(rule, "as_reported"):
        others = [other for other in profile_names() if hasattr(get_profile(other), "as_reported")]
        raise RequestError(f"profile {name} prints its scores under their own names; as reported: {', '.join(others)}")
    return _Reported(rule.NAME, rule.SOURCE, rule.OVERALL, cast(_Renames, rule))


def as_profile(profile: str | Profile) -> Profile:
    """The profile, looked up where it is a name; raises as `get_profile`."""
    return get_profile(profile) if isinstance(profile, str) else profile


class _Renames(Profile, Protocol):
    """A profile whose project prints scores under other names."""

    def as_reported(self, row: Scores) -> Scores:
        """The row under those names."""
        ...


@dataclass
class _Reported:
    """A profile whose scores stand under the names that the project prints."""

    NAME: str
    SOURCE: str
    OVERALL: Overall
    rule: _Renames

    def score_closed(self, gold: str, prediction: str) -> Scores:
        return self.rule.as_reported(self.rule.score_closed(gold, prediction))

    def score_open(self, gold: str, prediction: str) -> Scores:
        return self.rule.as_reported(self.rule.score_open(gold, prediction))
