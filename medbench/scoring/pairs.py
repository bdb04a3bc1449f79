"""Score bare pairs of gold answer and prediction, with no data set behind them (`medbench score --pairs`)."""

from collections.abc import Iterable, Mapping
from typing import Any

from medbench.errors import RequestError, did_you_mean
from medbench.scoring.profiles import Profile, Scores, as_profile

TYPES = ("closed", "open")


def score_pairs(pairs: Iterable[Mapping[str, Any]], profile: str | Profile = "medbench") -> list[Scores]:
    """Score pairs under one profile.

    Args:
        pairs: Rows with the keys `gold` and `prediction` (text) and `type` ("closed" or "open"); others are
            ignored.
        profile: A scoring profile, or its name.

    Returns:
        One row a pair, in order: the keys closed, em, quasi_em, precision, recall, f1, rouge_l; None where
        the profile has none.

    Raises:
        RequestError: The profile is unknown, or a row is bad; names the row (from 1) and the key.

    Example:
        >>> score_pairs([{"gold": "yes", "prediction": "Yes.", "type": "closed"}])[0]["closed"]
        1.0
    """
    rule = as_profile(profile)
    return [_score(rule, number, pair) for number, pair in enumerate(pairs, start=1)]


def score_one(rule: Profile, kind: str, gold: str, prediction: str) -> Scores:
    """Score one checked item of type `kind` ("closed" or "open")."""
    return rule.score_closed(gold, prediction) if kind == "closed" else rule.score_open(gold, prediction)


def text_problem(value: object) -> str | None:
    """What is wrong with a value that should be text, or None. A missing answer is not an empty one."""
    if isinstance(value, str):
        return None
    missing = value is None or (isinstance(value, float) and value != value)
    return f"must be text, got {'nothing (null)' if missing else type(value).__name__}"


def type_problem(value: object) -> str | None:
    """What is wrong with a value that should be "closed" or "open", or None."""
    if isinstance(value, str) and value in TYPES:
        return None
    hint = f"; {did_you_mean(value, TYPES)}" if isinstance(value, str) else ""
    return f"must be 'closed' or 'open', got {value!r}{hint}"


def _score(rule: Profile, number: int, pair: object) -> Scores:
    if not isinstance(pair, Mapping):
        raise RequestError(f"pair in row {number} must be an object, got {type(pair).__name__}")
    for key, problem_of in (("gold", text_problem), ("prediction", text_problem), ("type", type_problem)):
        if key not in pair:
            raise RequestError(f"pair in row {number} has no key {key!r}; needs gold, prediction and type")
        problem = problem_of(pair[key])
        if problem:
            raise RequestError(f"pair in row {number}: {key!r} {problem}")
    return score_one(rule, pair["type"], pair["gold"], pair["prediction"])
