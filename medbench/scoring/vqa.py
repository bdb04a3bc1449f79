"""Visual question answering: from stored predictions to one row of scores an item."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from medbench.errors import RequestError
from medbench.scoring.choices import named_option
from medbench.scoring.normalise import tokens
from medbench.scoring.pairs import score_one, text_problem, type_problem
from medbench.scoring.profiles import KEYS, Profile, as_profile

METRICS: dict[str, tuple[str, str]] = {
    "closed_accuracy": ("closed", "closed"),
    "open_recall": ("open", "recall"),
    "open_precision": ("open", "precision"),
    "open_f1": ("open", "f1"),
    "open_exact_match": ("open", "em"),
}
"""Name in the record -> (item type, score column): the mean of the column over the items of the type."""

PROBABILITY_METRICS: dict[str, tuple[str, str]] = {
    "choice_accuracy": ("confidence", "argmax_right"),
    "auroc": ("p_yes", "gold_is_yes"),
    "ece": ("confidence", "argmax_right"),
}
"""Name in the record -> (score column, 0/1 outcome column), over the closed items that have both.

`choice_accuracy` is the share of them whose likeliest candidate is right: the accuracy by likelihood, as
`closed_accuracy` is by generation. It needs a candidate that is the gold answer, so it may be over fewer items.
"""

ITEM_COLUMNS = ("id", "cluster", "type", "profile")
PROBABILITY_COLUMNS = ("p_yes", "gold_is_yes", "confidence", "argmax_right")
_INPUT_COLUMNS = ("id", "cluster", "type", "gold", "prediction")


def score_table(items: pd.DataFrame, profile: str | Profile = "medbench") -> pd.DataFrame:
    """Score each item under one profile.

    Args:
        items: Columns id (unique), cluster, type ("closed" or "open"), gold, prediction; optionally
            probabilities: candidate -> probability as a mapping or its JSON, or None; and options: the answers
            that a multiple-choice question offers, in order (see `medbench.scoring.choices`), empty elsewhere.
        profile: A scoring profile, or its name.

    Returns:
        One row an item, in order, index 0..n-1: id, cluster, type, profile; the scores closed, em, quasi_em,
        precision, recall, f1, rouge_l; and what AUROC and calibration need of a closed item: p_yes and
        gold_is_yes (gold is yes or no and both are candidates), confidence and argmax_right (gold is a
        candidate). NaN where not applicable.

    Raises:
        RequestError: An unknown profile, a missing column, a repeated id, or a bad value; names the item.

    Example:
        >>> items = pd.DataFrame(
        ...     {"id": ["a"], "cluster": ["i1"], "type": ["open"], "gold": ["my ear"], "prediction": ["ear"]}
        ... )
        >>> score_table(items)[["recall", "precision"]].iloc[0].tolist()
        [0.5, 1.0]
    """
    rule = as_profile(profile)
    check_items(items)
    given = items["probabilities"] if "probabilities" in items else [None] * len(items)
    offered = items["options"] if "options" in items else [()] * len(items)
    columns = (items[name] for name in _INPUT_COLUMNS)
    rows: list[dict[str, Any]] = []
    for item_id, cluster, kind, gold, prediction, probabilities, options in zip(*columns, given, offered, strict=True):
        row = {"id": item_id, "cluster": cluster, "type": kind, "profile": rule.NAME}
        row |= score_one(rule, kind, gold, named_option(prediction, options) if kind == "closed" else prediction)
        if kind == "closed":
            row |= _probability_row(rule, gold, parse_probabilities(item_id, probabilities))
        rows.append(row)
    table = pd.DataFrame(rows, columns=[*ITEM_COLUMNS, *KEYS, *PROBABILITY_COLUMNS])
    return table.astype(dict.fromkeys((*KEYS, *PROBABILITY_COLUMNS), float))


def parse_probabilities(item_id: object, given: object) -> dict[str, float] | None:
    """The probabilities of an item's candidates, checked; None where it has none.

    Args:
        item_id: Named in the error.
        given: A mapping candidate -> probability, its JSON, or None (also NaN, "" and an empty mapping).

    Raises:
        RequestError: Not such a mapping, a probability outside [0, 1], or a sum that is not 1 (within 1 %).
    """
    if given is None or given == "" or (isinstance(given, float) and math.isnan(given)):
        return None
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise RequestError(f"item {item_id!r}: probabilities are not JSON: {error}") from None
        if given is None:
            return None
    if not isinstance(given, Mapping):
        raise RequestError(f"item {item_id!r}: probabilities must map each candidate to a number")
    for candidate, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not isinstance(candidate, str) or not number or not 0 <= value <= 1:
            raise RequestError(f"item {item_id!r}: probability of {candidate!r} must be in [0, 1], got {value!r}")
    total = math.fsum(given.values())
    if given and abs(total - 1) > 0.01:
        raise RequestError(f"item {item_id!r}: probabilities must add up to 1, got {total:.4g}")
    return {str(candidate): float(value) for candidate, value in given.items()} or None


def _probability_row(rule: Profile, gold: str, probabilities: dict[str, float] | None) -> dict[str, float]:
    """What AUROC and calibration need of one closed item; empty if its gold is not among the candidates.

    Whether gold is a candidate is decided by equal tokens under every profile, so that all profiles leave out
    the same items; whether the likeliest candidate is right, by the profile's closed rule. Candidates of
    equal probability are taken in alphabetical order, so the order of the mapping never matters.
    """
    if probabilities is None:
        return {}
    read = {candidate: tokens(candidate) for candidate in probabilities}
    wanted = tokens(gold)
    if not wanted or wanted not in read.values():
        return {}
    best = min(probabilities, key=lambda candidate: (-probabilities[candidate], candidate))
    right = rule.score_closed(gold, best)["closed"]
    if right is None:
        return {}
    row = {"confidence": probabilities[best], "argmax_right": right}
    if wanted in (["yes"], ["no"]) and ["yes"] in read.values() and ["no"] in read.values():
        row["p_yes"] = math.fsum(p for candidate, p in probabilities.items() if read[candidate] == ["yes"])
        row["gold_is_yes"] = float(wanted == ["yes"])
    return row


def check_items(items: pd.DataFrame) -> None:
    """Checks a table of items before they are scored: its columns, ids, types and texts.

    Raises:
        RequestError: a missing column, a repeated id, or a bad value; names the item.
    """
    missing = [name for name in _INPUT_COLUMNS if name not in items]
    if missing:
        raise RequestError(f"items lack the column(s) {', '.join(missing)}")
    for name in ("id", "cluster"):
        if items[name].isna().any():
            raise RequestError(f"item in row {int(items[name].isna().argmax()) + 1} has no {name}")
    repeated = items["id"][items["id"].duplicated()]
    if len(repeated):
        raise RequestError(f"item id {repeated.iloc[0]!r} occurs more than once ({len(repeated)} repeats)")
    for name, problem_of in (("type", type_problem), ("gold", text_problem), ("prediction", text_problem)):
        for item_id, value in zip(items["id"], items[name], strict=True):
            problem = problem_of(value)
            if problem:
                raise RequestError(f"item {item_id!r}: {name} {problem}")
