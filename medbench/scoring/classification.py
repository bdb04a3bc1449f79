"""The figures of kind `classification`: an item is an image, its answer one of the classes that the card names.

* accuracy: the share of right predictions. balanced_accuracy: the mean of the recalls of the classes that there are
  items of. macro_f1: the mean of the F1 of the classes that are gold or predicted anywhere.
* f1 and auroc: of the card's positive class, where there are two classes. With more of them there is no f1, and auroc
  is the mean over the classes of each against the rest; it has no value while one of the card's classes has no items.
* ece: of the most probable class, as `medbench.scoring.weighted.ece_statistic`.

A prediction is the class that it names: exactly, or else by the default profile's tokens if these are of one class
alone. What names no class is wrong, and a record counts it (`no_class`).

A score table says all of this by itself, so every figure can be computed again without the data: the gold class, the
predicted one, the probabilities, the card's classes. Classes have one rule, the profile `medbench`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from medbench.errors import RequestError
from medbench.scoring.bootstrap import RESAMPLES, Estimate, cluster_bootstrap_mean
from medbench.scoring.measures import Measure
from medbench.scoring.multiclass import macro_f1_statistic, mean_recall_statistic, one_vs_rest_auroc_statistic
from medbench.scoring.normalise import tokens
from medbench.scoring.pairs import text_problem
from medbench.scoring.profiles import Profile, as_profile
from medbench.scoring.vqa import parse_probabilities
from medbench.scoring.weighted import Statistic, auroc_statistic, ece_statistic
from medbench.scoring.yesno import f1_statistic

PROFILES = ("medbench",)
#: Columns that are no numbers. `prediction` is empty where it names no class; `probabilities` (class -> probability)
#: and `classes` (a list, in the card's order) are JSON; `positive` is empty where there are not two classes.
TEXTS = ("gold", "prediction", "probabilities", "classes", "positive")
NUMBERS = ("correct", "called_positive", "gold_is_positive", "confidence", "argmax_right")
COLUMNS = (*TEXTS, *NUMBERS)


def auroc(probabilities: ArrayLike, gold: ArrayLike, positive: ArrayLike) -> Statistic:
    """AUROC of the positive class of two, or of more classes the mean of each against the rest.

    Args:
        probabilities: JSON, class -> probability, all with the same classes in one order; shape (n,).
        gold: the class of each item; shape (n,).
        positive: the positive class, the same for each item, or an empty text; shape (n,).
    """
    read = [json.loads(text) for text in np.asarray(probabilities)]
    golds, of = np.asarray(gold), [*np.asarray(positive), ""][0]
    if of or not read:
        return auroc_statistic([row[of] for row in read], golds == of)
    number = {name: place for place, name in enumerate(read[0])}
    scores = np.array([list(row.values()) for row in read], dtype=np.float64)
    return one_vs_rest_auroc_statistic(scores, [number[name] for name in golds])


_NO_PROBABILITIES = "no item has probabilities"
MEASURES: dict[str, Measure] = {
    "accuracy": Measure("closed", ("correct",), "no items", counted=False),
    "balanced_accuracy": Measure("closed", ("correct", "gold"), "no items", mean_recall_statistic),
    "macro_f1": Measure("closed", ("gold", "prediction"), "no items", macro_f1_statistic),
    "f1": Measure(
        *("closed", ("called_positive", "gold_is_positive"), "not two classes, so none is the positive one"),
        f1_statistic,
        undefined="no item is of the positive class, and none is taken for it",
        counted=False,
    ),
    "auroc": Measure(
        *("closed", ("probabilities", "gold", "positive"), _NO_PROBABILITIES, auroc), undefined="a class has no items"
    ),
    "ece": Measure("closed", ("confidence", "argmax_right"), _NO_PROBABILITIES, ece_statistic),
}
METRICS = tuple(MEASURES)


def score(
    items: pd.DataFrame,
    profile: str | Profile = "medbench",
    classes: Sequence[str] = (),
    positive: str | None = None,
) -> pd.DataFrame:
    """Score each item.

    Args:
        items: columns id (unique), cluster, type, gold, prediction; optionally probabilities: class -> probability as
            a mapping or its JSON, or None.
        profile: `medbench`.
        classes: the card's, in its order.
        positive: one of them, where there are two.

    Returns:
        One row an item, in order: id, cluster, type, profile and `COLUMNS`. `called_positive` and `gold_is_positive`
        are NaN where there are not two classes; probabilities are None, confidence and argmax_right (of the most
        probable class: of equal ones the predicted, else the first) NaN where there are none.

    Raises:
        RequestError: another profile, fewer than two classes, two without a positive one, a missing column, a repeated
            id, a label that is no class, or probabilities that are not of these classes; names the item.

    Example:
        >>> items = pd.DataFrame({"id": ["a"], "cluster": ["p"], "type": ["closed"], "gold": ["benign"]})
        >>> scored = score(items.assign(prediction="Benign."), classes=("benign", "malignant"), positive="malignant")
        >>> scored["prediction"].tolist(), scored["correct"].tolist(), scored["called_positive"].tolist()
        (['benign'], [1.0], [0.0])
    """
    rule = as_profile(profile)
    if rule.NAME not in PROFILES:
        raise RequestError(f"profile {rule.NAME} has no rule for classification; use {', '.join(PROFILES)}")
    names = list(classes)
    _check(items, names, positive)
    given = items["probabilities"] if "probabilities" in items else [None] * len(items)
    columns = (items["id"], items["gold"], items["prediction"], given)
    rows = [_row(names, positive, *values) for values in zip(*columns, strict=True)]
    table = items[["id", "cluster", "type"]].reset_index(drop=True).assign(profile=rule.NAME)
    scored = pd.DataFrame(rows, columns=list(COLUMNS)).astype(dict.fromkeys(NUMBERS, float))
    return pd.concat([table, scored], axis=1)


def about(tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """What a record says beside the figures; of several seeds, counts are added up.

    Returns:
        classes, positive (None where there are not two), `confusion`: {rows (gold), columns (predicted; the last for
        what names no class), counts}, `recall`: class -> the estimate of its recall, and `no_class`: how many
        predictions name no class.
    """
    classes: list[str] = json.loads(tables[0]["classes"].iloc[0])
    other = next(name for name in ("other", "no class", "named no class") if name not in classes)
    place = {name: number for number, name in enumerate([*classes, ""])}
    counts = np.zeros((len(classes), len(classes) + 1), dtype=int)
    for table in tables:
        np.add.at(counts, (table["gold"].map(place).to_numpy(), table["prediction"].map(place).to_numpy()), 1)
    return {
        "classes": classes,
        "positive": tables[0]["positive"].iloc[0] or None,
        "confusion": {"rows": classes, "columns": [*classes, other], "counts": counts.tolist()},
        "recall": {name: entry.to_json() for name, entry in class_recalls(tables).items()},
        "no_class": int(counts[:, -1].sum()),
    }


def class_recalls(tables: Sequence[pd.DataFrame], resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """The share of each class's items that is right, averaged over the seeds, with its interval."""
    right = np.mean([table.set_index("id").loc[tables[0]["id"], "correct"] for table in tables], axis=0)
    found = {}
    for name in json.loads(tables[0]["classes"].iloc[0]):
        own = (tables[0]["gold"] == name).to_numpy()
        clusters = tables[0].loc[own, "cluster"]
        found[name] = cluster_bootstrap_mean(right[own], clusters, resamples, empty="no items of this class")
    return found


def named_class(text: str, classes: Sequence[str]) -> str:
    """The class that a prediction names; empty where it is none.

    Example:
        >>> named_class("Malignant.", ["benign", "malignant"]), named_class("either", ["benign", "malignant"])
        ('malignant', '')
    """
    if text in classes:
        return text
    said = tokens(text)
    found = [name for name in classes if said and tokens(name) == said]
    return found[0] if len(found) == 1 else ""


def _row(
    classes: Sequence[str], positive: str | None, identity: object, gold: str, prediction: str, given: object
) -> dict[str, Any]:
    named = named_class(prediction, classes)
    row: dict[str, Any] = {"gold": gold, "prediction": named, "correct": float(named == gold)}
    row |= {"classes": json.dumps(list(classes)), "positive": positive or ""}
    if positive is not None:
        row |= {"called_positive": float(named == positive), "gold_is_positive": float(gold == positive)}
    said = _probabilities(identity, given, classes)
    if said is None:
        return row | {"probabilities": None, "confidence": math.nan, "argmax_right": math.nan}
    top = max(classes, key=lambda name: (said[name], name == named))
    return row | {"probabilities": json.dumps(said), "confidence": said[top], "argmax_right": float(top == gold)}


def _probabilities(identity: object, given: object, classes: Sequence[str]) -> Mapping[str, float] | None:
    """The probabilities in the classes' order.

    Raises:
        RequestError: they are not of these classes; names the item.
    """
    read = parse_probabilities(identity, given)
    if read is None:
        return None
    if set(read) != set(classes):
        lacking = [name for name in classes if name not in read] or [name for name in read if name not in classes]
        what = "lack" if len(set(read) & set(classes)) < len(classes) else "have what is no class,"
        raise RequestError(
            f"item {identity!r}: its probabilities {what} {lacking[0]!r}; the classes are {_list(classes)}"
        )
    return {name: read[name] for name in classes}


def _check(items: pd.DataFrame, classes: Sequence[str], positive: str | None) -> None:
    if len(set(classes)) < 2 or len(set(classes)) < len(classes) or "" in classes:
        raise RequestError(f"classification needs two or more different classes, as the card names them; got {classes}")
    if (positive is None) == (len(classes) == 2) or (positive is not None and positive not in classes):
        raise RequestError(
            f"positive: of two classes one is the positive one, of more none is; got {positive!r} for {_list(classes)}"
        )
    missing = [name for name in ("id", "cluster", "type", "gold", "prediction") if name not in items]
    if missing:
        raise RequestError(f"items lack the column(s) {', '.join(missing)}")
    repeated = items["id"][items["id"].duplicated()]
    if len(repeated):
        raise RequestError(f"item id {repeated.iloc[0]!r} occurs more than once ({len(repeated)} repeats)")
    for identity, gold, prediction in zip(items["id"], items["gold"], items["prediction"], strict=True):
        problem = text_problem(prediction)
        if problem:
            raise RequestError(f"item {identity!r}: prediction {problem}")
        if gold not in classes:
            raise RequestError(f"item {identity!r}: label {gold!r} is none of the classes {_list(classes)}")


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
