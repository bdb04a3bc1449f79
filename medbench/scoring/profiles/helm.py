"""The rule of HELM's VQA-RAD scenario (VHELM): exact, quasi-exact, set F1 and ROUGE-L, for every question alike.

Source: `src/helm/benchmark/metrics/evaluate_reference_metrics.py` of stanford-crfm/helm; ROUGE-L by the same package,
`rouge-score`, with its Porter stemmer. Its quirks, all kept:

* Nothing is closed or open: a yes/no question has no accuracy of its own, and "yes, there is no doubt" is no answer.
* Punctuation is deleted, not made a space: "left-sided" is one word, "x-ray" is "xray" and not "X ray". Only ASCII
  punctuation counts as such. Articles go wherever they stand as words.
* An empty prediction scores 0; one of punctuation or articles only is a quasi-exact match of a gold answer of those.
* ROUGE-L sees ASCII letters and digits only, so an answer in another script scores 0.

Their CIDEr is left out: it is computed an item at a time, where each word's weight (its inverse document frequency
over one document) is 0, so it is 0 by construction. Their BLEU needs the tokeniser data of NLTK, which is fetched.
"""

import re
import string
from functools import lru_cache
from typing import Any

from medbench.scoring.profiles import Overall, Scores, scores

NAME = "helm"
SOURCE = "HELM, evaluate_reference_metrics.py (VHELM's VQA-RAD): exact, quasi-exact, set F1, ROUGE-L (rouge-score)"
OVERALL: Overall = {"exact_match": ("em",), "quasi_exact_match": ("quasi_em",), "f1": ("f1",), "rouge_l": ("rouge_l",)}

_ARTICLE = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_text(text: str) -> str:
    """Lower-case, ASCII punctuation deleted, articles deleted, single spaces (QuAC's rule).

    Example:
        >>> normalize_text("The left-sided   Effusion."), normalize_text("x-ray")
        ('leftsided effusion', 'xray')
    """
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def score_closed(gold: str, prediction: str) -> Scores:
    """The same as `score_open`: the scenario knows no closed questions, so `closed` is None.

    Example:
        >>> row = score_closed("yes", "Yes")
        >>> row["closed"], row["em"], row["quasi_em"]
        (None, 0.0, 1.0)
    """
    return score_open(gold, prediction)


def score_open(gold: str, prediction: str) -> Scores:
    """Score an answer: `em`, `quasi_em`, `f1`, `rouge_l`, all else None.

    Example:
        >>> row = score_open("left lung", "left left left")
        >>> row["quasi_em"], round(row["f1"], 3), row["rouge_l"]
        (0.0, 0.667, 0.4)
    """
    prediction = prediction.strip()
    wanted, given = normalize_text(gold), normalize_text(prediction)
    return scores(
        em=float(bool(prediction) and gold.strip() == prediction),
        quasi_em=float(bool(prediction) and wanted == given),
        f1=_set_f1(set(wanted.split()), set(given.split())),
        rouge_l=float(_scorer().score(gold, prediction)["rougeL"].fmeasure),
    )


def _set_f1(wanted: set[str], given: set[str]) -> float:
    """The F-measure of two sets; 0 where either is empty."""
    return 2 * len(wanted & given) / ((len(wanted) + len(given)) or 1)


@lru_cache(maxsize=1)
def _scorer() -> Any:
    # Imported on first use: it brings NLTK, which takes seconds.
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)
