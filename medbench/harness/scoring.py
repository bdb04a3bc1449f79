"""lm-eval's scoring of our tasks, by the score family of the task's kind: the figures are those of our records.

What is a mean over items is a number an item, as lm-eval likes it. Other figures (corpus BLEU, AUROC, ...) are computed
from all items at once: of each item lm-eval is handed what was asked and said, and the aggregation does the rest. Its
standard errors are not ours: it does not know that questions about one image hang together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medbench.scoring.choices import named_option
from medbench.scoring.figures import better
from medbench.scoring.kinds import estimate_kind, get_family
from medbench.scoring.measures import Measure
from medbench.scoring.profiles import get_profile
from medbench.scoring.vqa import METRICS

Row = dict[str, Any]
#: Columns of a score table that come from the probabilities of the candidate answers.
_FROM_PROBABILITIES = {"p_yes", "confidence", "argmax_right"}
#: Means of scores that an item does not have by itself: they rest on the other items, too.
_OF_THE_CORPUS = {"cider_d"}


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """The figures of one item under the default profile, by their names in our records: those that are means.

    Args:
        doc: a row of `medbench.harness.dataset` (`choices` and `kind` may be absent).
        results: the generated answer.
    """
    if doc.get("kind", "vqa") != "vqa":
        return {name: value for name, value in process_answer(doc, results).items() if isinstance(value, float)}
    profile = get_profile("medbench")
    rule = profile.score_closed if doc["type"] == "closed" else profile.score_open
    scores = rule(doc["answer"], named_option(results[0], doc.get("choices") or ()))
    return {
        name: float(value)
        for name, (kind, column) in METRICS.items()
        if kind == doc["type"] and (value := scores[column]) is not None
    }


def process_answer(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """As `process_results`, and for each other figure what its aggregation (`metric_list`) needs of the item."""
    if doc["kind"] == "vqa":
        return dict(process_results(doc, results))
    return _values(doc, {"prediction": results[0]}, _by_generation(doc["kind"]))


def process_likelihoods(doc: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """As `process_answer`, of an item asked by likelihood: the figures that need probabilities.

    Args:
        doc: a row of `medbench.harness.dataset` with candidates.
        results: (log-likelihood, whether greedy) of each candidate.
    """
    from medbench.inference.predict import candidate_probabilities

    probabilities = candidate_probabilities(doc["candidates"], [value for value, _ in results])
    return _values(doc, {"prediction": "", "probabilities": probabilities}, _by_likelihood(doc["kind"]))


def metric_list(kind: str, likelihood: bool) -> list[dict[str, Any]]:
    """lm-eval's `metric_list` of all figures of a kind of task that can be had one way of asking or the other."""
    measures = _by_likelihood(kind) if likelihood else _by_generation(kind)
    figures = _remembered(kind)
    return [
        {
            "metric": name,
            "aggregation": _aggregation(name, figures) if _needs_all(name, measure) else "mean",
            "higher_is_better": {1: True, -1: False}.get(better(name)),
        }
        for name, measure in measures.items()
    ]


def _needs_all(name: str, measure: Measure) -> bool:
    return measure.statistic is not None or name in _OF_THE_CORPUS


def _by_generation(kind: str) -> dict[str, Measure]:
    found = get_family(kind).MEASURES
    return {name: measure for name, measure in found.items() if not _FROM_PROBABILITIES.intersection(measure.columns)}


def _by_likelihood(kind: str) -> dict[str, Measure]:
    found = get_family(kind).MEASURES
    return {name: measure for name, measure in found.items() if _FROM_PROBABILITIES.intersection(measure.columns)}


def _values(doc: Mapping[str, Any], said: Row, measures: Mapping[str, Measure]) -> dict[str, Any]:
    item = {"id": doc["id"], "cluster": "", "type": doc["type"], "question_type": doc["question_type"]}
    item |= {"gold": doc["answer"], "options": tuple(doc["choices"]), **said}
    (scores,) = _score_table(doc["kind"], [item]).to_dict("records")
    values: dict[str, Any] = {}
    for name, measure in measures.items():
        if measure.type != doc["type"]:
            continue
        if _needs_all(name, measure):
            values[name] = item
        elif not math.isnan(value := float(scores[measure.columns[-1]])):
            values[name] = value
    return values


def _score_table(kind: str, items: Sequence[Row]) -> Any:
    import pandas as pd

    return get_family(kind).score(pd.DataFrame(list(items)))


def _remembered(kind: str) -> Callable[[Sequence[Row]], Mapping[str, float | None]]:
    """All figures of items, computed once for figures that are asked for one after another."""
    last: tuple[list[Row], Mapping[str, float | None]] = ([], {})

    def figures(items: Sequence[Row]) -> Mapping[str, float | None]:
        nonlocal last
        same = len(items) == len(last[0]) and all(one is two for one, two in zip(items, last[0], strict=True))
        if not same:
            table = _score_table(kind, items)
            found = estimate_kind(kind, [table], resamples=0)
            last = (list(items), {name: estimate.value for name, estimate in found.items()})
        return last[1]

    return figures


def _aggregation(
    name: str, figures: Callable[[Sequence[Row]], Mapping[str, float | None]]
) -> Callable[[Sequence[Row]], float]:
    def aggregation(items: Sequence[Row]) -> float:
        """The figure of all items at once; NaN where it is undefined."""
        value = figures(items)[name]
        return math.nan if value is None else value

    return aggregation
