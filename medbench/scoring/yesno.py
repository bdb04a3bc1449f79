"""The figures of kind `hallucination`: yes/no questions, where a model that likes to say yes looks better than it is.

Each item is scored as in `medbench.scoring.vqa`, and more is kept of it:

* `closed` is the profile's verdict, and accuracy its mean. An unparseable answer is wrong under the default profile.
* `said_yes` and `unparseable` describe the answer itself, always by the default profile's tokens: it says yes if yes is
  the only one of {yes, no} among them; with neither or both it is unparseable. So `yes_share` and `unparseable_share`
  have all yes/no items below the line and do not depend on the profile.
* `called_yes` is what the profile takes for a yes: an answer that it would accept as a yes, unless it accepted it as
  the no that the gold is. F1 is of the class yes, from these: an unparseable answer to a gold yes is a miss (recall
  falls), one to a gold no is no false alarm (precision stays); balanced accuracy counts both as misses of their class.

Some sets mix multiple choice in (MedHEval). Such items count in accuracy and ECE, and in `unparseable_share` where the
answer names none of the options; the figures of yes and no leave them out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medbench.scoring.choices import named_option
from medbench.scoring.measures import Measure
from medbench.scoring.normalise import tokens
from medbench.scoring.profiles import KEYS, Profile, as_profile
from medbench.scoring.vqa import PROBABILITY_COLUMNS, score_table
from medbench.scoring.weighted import (
    Statistic,
    SumStatistic,
    auroc_statistic,
    ece_statistic,
    mean_statistic,
    ratio_statistic,
)

YES_NO = ("yes", "no")
ANSWER_COLUMNS = ("said_yes", "unparseable", "called_yes")
COLUMNS = (*KEYS, *PROBABILITY_COLUMNS, *ANSWER_COLUMNS)


def parse(text: str) -> str | None:
    """The one of yes and no that a text says, by the default profile's tokens; None for neither or both.

    Example:
        >>> parse("Yes, it does."), parse("It is not."), parse("yes, there is no doubt")
        ('yes', None, None)
    """
    said = set(YES_NO).intersection(tokens(text))
    return said.pop() if len(said) == 1 else None


def gold_label(gold: str) -> str | None:
    """`yes` or `no` where the gold answer is that and nothing else.

    Example:
        >>> gold_label("Yes."), gold_label("no effusion")
        ('yes', None)
    """
    said = tokens(gold)
    return said[0] if len(said) == 1 and said[0] in YES_NO else None


def answer_row(rule: Profile, gold: str, prediction: str, options: Sequence[str] = ()) -> dict[str, float]:
    """What one answer says: `ANSWER_COLUMNS` and `gold_is_yes`, each 0 or 1, without those that do not apply.

    Args:
        rule: the scoring profile, for `called_yes`.
        gold: the gold answer.
        prediction: as generated.
        options: of a multiple-choice question, in its order.
    """
    label, answer = gold_label(gold), named_option(prediction, options)
    if label is None:
        return {"unparseable": float(tokens(answer) not in [tokens(option) for option in options])}
    said = parse(answer)
    row = {"gold_is_yes": float(label == "yes"), "said_yes": float(said == "yes"), "unparseable": float(said is None)}
    verdicts = [rule.score_closed(wanted, answer)["closed"] for wanted in ("yes", label)]
    if None in verdicts:
        return row
    yes, right = (bool(verdict) for verdict in verdicts)
    return row | {"called_yes": float(yes if label == "yes" else yes and not right)}


def score(items: pd.DataFrame, profile: str | Profile = "medbench") -> pd.DataFrame:
    """Score each item under one profile.

    Args:
        items: as for `medbench.scoring.vqa.score_table`, all closed; optionally question_type, text.
        profile: a scoring profile, or its name.

    Returns:
        One row an item, in order: what `score_table` gives (but `gold_is_yes` whether there are probabilities or not),
        `ANSWER_COLUMNS`, and question_type, "" where there is none.

    Raises:
        RequestError: as `score_table`.
    """
    table, rule = score_table(items, profile), as_profile(profile)
    offered = items["options"] if "options" in items else [()] * len(items)
    rows = [answer_row(rule, *row) for row in zip(items["gold"], items["prediction"], offered, strict=True)]
    for name in (*ANSWER_COLUMNS, "gold_is_yes"):
        table[name] = np.array([row.get(name, math.nan) for row in rows], dtype=np.float64)
    table["question_type"] = list(items["question_type"]) if "question_type" in items else ""
    return table


def balanced_accuracy_statistic(right: ArrayLike, positive: ArrayLike) -> Statistic:
    """The mean of the accuracies in each of the two classes, as a function of item weights.

    Args:
        right: 1 where the answer is right, else 0 (seeds averaged: anything between); shape (n,).
        positive: 1 where the gold answer is yes, else 0; shape (n,).

    Returns:
        A function from weights (r, n) to values (r,); NaN where one class has no weight.

    Example:
        >>> balanced_accuracy_statistic([1, 1, 1, 0], [0, 0, 0, 1])(np.ones((1, 4))).tolist()
        [0.5]
    """
    hit, yes = np.asarray(right, dtype=np.float64), np.asarray(positive, dtype=np.float64)
    return mean_statistic([ratio_statistic(hit * own, own) for own in (yes, 1 - yes)])


def f1_statistic(called: ArrayLike, positive: ArrayLike) -> SumStatistic:
    """F1 of the class yes as a function of item weights: 2 TP / (called yes + gold yes).

    Args:
        called: 1 where the answer is taken for a yes, else 0; shape (n,).
        positive: 1 where the gold answer is yes, else 0; shape (n,).

    Returns:
        A function from weights (r, n) to values (r,); NaN where nothing is yes and nothing is called yes.

    Example:
        >>> f1_statistic([1, 1, 1, 1], [1, 0, 0, 0])(np.ones((1, 4))).tolist()
        [0.4]
    """
    took, yes = np.asarray(called, dtype=np.float64), np.asarray(positive, dtype=np.float64)
    return ratio_statistic(2 * took * yes, took + yes)


_NO_YES_NO = "no item has the gold answer yes or no"
_NO_VERDICT = f"{_NO_YES_NO}, or the profile has no score for it"
_NO_PROBABILITIES = "no item has the probabilities it needs"
MEASURES: dict[str, Measure] = {
    "accuracy": Measure("closed", ("closed",), "profile has no score for closed items", counted=False),
    "balanced_accuracy": Measure("closed", ("closed", "gold_is_yes"), _NO_VERDICT, balanced_accuracy_statistic),
    "f1": Measure(
        *("closed", ("called_yes", "gold_is_yes"), _NO_VERDICT, f1_statistic),
        undefined="no item is yes, and no answer says it",
    ),
    "auroc": Measure("closed", ("p_yes", "gold_is_yes"), _NO_PROBABILITIES, auroc_statistic),
    "yes_share": Measure("closed", ("said_yes",), _NO_YES_NO),
    "unparseable_share": Measure("closed", ("unparseable",), "no items", counted=False),
    "ece": Measure("closed", ("confidence", "argmax_right"), _NO_PROBABILITIES, ece_statistic),
}
METRICS = tuple(MEASURES)


def about(tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """What a record also says: what always saying yes gets on these very items."""
    golds = tables[0]["gold_is_yes"].map({1.0: "yes", 0.0: "no"}).fillna("neither")
    return {"always_yes": always_yes(golds)}


def always_yes(golds: Iterable[str]) -> dict[str, float] | None:
    """What an answerer gets that says yes to everything; None where the gold answers are not both yes and no.

    A multiple-choice question is one more that it gets wrong. The figures are exact under every profile that takes
    "yes" for a yes.

    Args:
        golds: the gold answer of each item.

    Returns:
        accuracy, balanced_accuracy (.5 by construction) and f1, as fractions.

    Example:
        >>> always_yes(["yes", "no", "no", "no"])
        {'accuracy': 0.25, 'balanced_accuracy': 0.5, 'f1': 0.4}
    """
    labels = [gold_label(gold) for gold in golds]
    yes, no = labels.count("yes"), labels.count("no")
    if not yes or not no:
        return None
    return {"accuracy": yes / len(labels), "balanced_accuracy": 0.5, "f1": 2 * yes / (2 * yes + no)}


def reference_lines(always: Mapping[str, Mapping[str, float] | None]) -> list[str]:
    """A sentence a task that says what always saying yes gets there; for below a table.

    Args:
        always: task -> accuracy, balanced_accuracy and f1, from a card, a record or `always_yes`; tasks without are
            passed over.

    Example:
        >>> reference_lines({"iu_xray_vqa": {"accuracy": 0.261, "balanced_accuracy": 0.5, "f1": 0.414}, "slake": None})
        ['Always saying yes gets on iu_xray_vqa: accuracy 26.1, balanced_accuracy 50.0, f1 41.4.']
    """
    return [
        f"Always saying yes gets on {task}: "
        + ", ".join(f"{name} {100 * figures[name]:.1f}" for name in ("accuracy", "balanced_accuracy", "f1"))
        + "."
        for task, figures in always.items()
        if figures
    ]
