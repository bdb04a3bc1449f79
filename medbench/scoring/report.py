"""The figures of kind `report`: word overlap of the generated report with the reference, and findings made up.

Per report, then over the split (names as in a record; `implementations` names program and version of each):

* bleu_1..bleu_4: corpus BLEU; bleu_mean: the mean of the four; sentence_bleu_1..sentence_bleu_4: the mean over reports
  of sentence BLEU (`report_bleu`).
* rouge_1, rouge_2, rouge_l (`report_rouge`), meteor (`report_meteor`), cider_d (`report_cider`; not in [0, 1]).
* finding_hallucination: of the findings that the predictions assert, the share that their references do not contain
  (CHAIR: Rohrbach et al., EMNLP 2018, its CHAIR_i), by the rules of `findings` over 13 findings of chest radiographs. A
  prediction asserts what it states as present; a reference contains what it states as present or as possible. A
  prediction without a finding adds nothing above or below the line: saying nothing makes nothing up, so finding_recall
  (of the findings that the references assert, the share that the predictions assert too) and finding_f1 stand beside
  it. hallucinating_share: the share of reports with at least one finding made up (CHAIR_s).
* empty_share: the share of predictions without a word. Such a report scores 0 and stays in every denominator.

Reports have one rule, the profile `medbench`; other harnesses' rules are for questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from typing import Any

import pandas as pd

from medbench.errors import RequestError
from medbench.progress import progress_bar
from medbench.scoring.findings import chexbert14
from medbench.scoring.measures import Measure
from medbench.scoring.profiles import Profile, as_profile
from medbench.scoring.report_bleu import COUNTS, EPSILON, BleuStatistic, bleu_counts, sentence_bleu
from medbench.scoring.report_cider import ONE_REFERENCE, SIGMA, cider_d
from medbench.scoring.report_meteor import MISSING, load_meteor
from medbench.scoring.report_plugins import Requested, f1_of_counts
from medbench.scoring.report_plugins import plugin_measures as plugin_measures  # of the family, see kinds
from medbench.scoring.report_rouge import NAMES as ROUGE
from medbench.scoring.report_rouge import rouge
from medbench.scoring.report_text import ORDERS, TOKENS, words
from medbench.scoring.vqa import check_items
from medbench.scoring.weighted import ratio_statistic

PROFILES = ("medbench",)
SENTENCE = tuple(f"sentence_bleu_{n}" for n in ORDERS)
FINDINGS = ("asserted", "made_up", "gold_asserted", "right")
COLUMNS = (*COUNTS, *SENTENCE, *ROUGE, "meteor", "cider_d", *FINDINGS, "makes_up", "empty")
_BAR_FROM = 200  # reports; fewer are scored before a bar could be seen


def _mean(column: str, empty: str = "not scored") -> Measure:
    return Measure("open", (column,), empty)


MEASURES: dict[str, Measure] = (
    {f"bleu_{n}": Measure("open", COUNTS, "not scored", BleuStatistic(n)) for n in ORDERS}
    | {"bleu_mean": Measure("open", COUNTS, "not scored", BleuStatistic(None))}
    | {name: _mean(name) for name in (*SENTENCE, *ROUGE)}
    | {
        "meteor": _mean("meteor", f"{MISSING}; install it and score again"),
        "cider_d": _mean("cider_d", ONE_REFERENCE),
        "finding_hallucination": Measure(
            *("open", ("made_up", "asserted"), "not scored", ratio_statistic),
            undefined="no prediction asserts a finding",
        ),
        "finding_recall": Measure(
            *("open", ("right", "gold_asserted"), "not scored", ratio_statistic),
            undefined="no reference asserts a finding",
        ),
        "finding_f1": Measure(
            *("open", ("right", "asserted", "gold_asserted"), "not scored", f1_of_counts),
            undefined="neither predictions nor references assert a finding",
        ),
        "hallucinating_share": _mean("makes_up"),
        "empty_share": _mean("empty"),
    }
)
METRICS = tuple(MEASURES)


def score(items: pd.DataFrame, profile: str | Profile = "medbench", plugins: Sequence[Requested] = ()) -> pd.DataFrame:
    """Score each report.

    Args:
        items: columns id (unique), cluster, type, gold, prediction. All of a split: document frequencies are theirs.
        profile: `medbench`.
        plugins: of `medbench.scoring.report_plugins.request_plugins`.

    Returns:
        One row an item, in order: id, cluster, type, profile, `COLUMNS`, and those of the plug-ins. `meteor` is NaN
        without WordNet, `cider_d` for a single report.

    Raises:
        RequestError: another profile, a missing column, a repeated id, or a text that is none.

    Example:
        >>> items = pd.DataFrame({"id": ["a"], "cluster": ["s"], "type": ["open"], "gold": ["The lungs are clear."]})
        >>> float(score(items.assign(prediction="Lungs clear."))["rouge_1"].iloc[0].round(3))
        0.667
    """
    rule = as_profile(profile)
    if rule.NAME not in PROFILES:
        raise RequestError(f"profile {rule.NAME} has no rule for reports; use {', '.join(PROFILES)}")
    check_items(items)
    golds, predictions = list(items["gold"]), list(items["prediction"])
    meteor, rows = load_meteor(), []
    with _bar("score reports", len(golds)) as step:
        for number, (gold, prediction) in enumerate(zip(golds, predictions, strict=True), start=1):
            rows.append(_row(gold, prediction, meteor.score if meteor else None))
            step(number, len(golds))
    table = items[["id", "cluster", "type"]].reset_index(drop=True).assign(profile=rule.NAME)
    with _bar("CIDEr-D", len(golds)) as step:
        scored = pd.DataFrame(rows, columns=list(COLUMNS), dtype=float).assign(
            cider_d=cider_d(golds, predictions, step)
        )
    for asked in plugins:
        with _bar(asked.plugin.name, len(golds)) as step:
            scored = scored.assign(**asked.score(golds, predictions, step))
    return pd.concat([table, scored.astype(float)], axis=1)


def about(tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """What a record says beside the figures: `implementations`."""
    return {"implementations": implementations()}


def check_resources() -> list[str]:
    """What scoring will lack, a line each, to be said before anything is generated; nothing if it lacks nothing.

    Plug-ins that could not run were refused when they were asked for (`request_plugins`).

    Raises:
        WorkError: there is a WordNet, and it is damaged.
    """
    return [] if load_meteor() else [f"reports: meteor will be missing: {MISSING}"]


def implementations() -> dict[str, str]:
    """Metric -> the program, version and settings that it is computed with, for the record.

    Those of plug-ins are in `medbench.scoring.report_plugins.plugin_implementations`.
    """
    nltk, rouge_score = version("nltk"), version("rouge-score")
    meteor = load_meteor()
    found = {f"bleu_{n}": f"corpus BLEU, NLTK {nltk} (corpus_bleu), no smoothing; {TOKENS}" for n in ORDERS}
    found["bleu_mean"] = "mean of bleu_1 to bleu_4"
    smoothed = f"mean of sentence BLEU, NLTK {nltk} (sentence_bleu), smoothing method1 ({EPSILON}); {TOKENS}"
    found |= dict.fromkeys(SENTENCE, smoothed)
    found |= dict.fromkeys(ROUGE, f"rouge-score {rouge_score}, F-measure, no stemmer; its own tokens")
    how = f"NLTK {nltk}, alpha .9, beta 3, gamma .5; {TOKENS}"
    found["meteor"] = f"{how}; {meteor.name}" if meteor else f"{how}; not computed: {MISSING}"
    found["cider_d"] = f"medbench, CIDEr-D with sigma {SIGMA:g}, frequencies of the scored references; {TOKENS}"
    found |= dict.fromkeys(
        ("finding_hallucination", "finding_recall", "finding_f1", "hallucinating_share"),
        f"medbench's rules ({chexbert14().name}), not CheXbert; 13 findings",
    )
    return found


def _row(gold: str, prediction: str, meteor: Callable[[list[str], list[str]], float] | None) -> dict[str, float]:
    wanted, given = words(gold), words(prediction)
    counts = bleu_counts(wanted, given)
    row = counts | dict(zip(SENTENCE, sentence_bleu(counts), strict=True))
    row |= rouge(gold, prediction)
    row |= {} if meteor is None else {"meteor": meteor(wanted, given)}
    stated, (asserted, contained) = chexbert14().asserted(prediction)[0], chexbert14().asserted(gold)
    made_up = len(stated - contained)
    row |= dict(zip(FINDINGS, map(float, (len(stated), made_up, len(asserted), len(stated & asserted))), strict=True))
    return row | {"makes_up": float(made_up > 0), "empty": float(not given)}


def _bar(title: str, number: int) -> AbstractContextManager[Callable[[int, int], Any]]:
    return progress_bar(title) if number >= _BAR_FROM else nullcontext(lambda done, total: None)
