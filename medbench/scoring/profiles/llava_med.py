r"""The rule of LLaVA-Med v1.0.0, the convention of the published medical VQA tables (closed accuracy, open recall).

Source: `llava/eval/run_eval.py`, `llava/eval/eval_metrics/evaluate_metrics.py` and `glossary.py` of microsoft/LLaVA-Med
v1.0.0; the normalisation is that of the VQA evaluation code (Antol et al. 2015), changed. Its quirks, all kept:

* Closed answers are compared as **substrings**: any prediction with "no" in it ("Normal.", "not", "know") answers no,
  and a prediction may hold both. Where neither "yes" nor "no" is in the prediction, nothing else can be right:
  "left" against "left" scores 0.
* A punctuation mark is deleted if it stands beside a space anywhere in the text, or if the text has a comma between
  two digits anywhere; otherwise it becomes a space.
* Periods that no digit follows are deleted, 32 of them at most: the flag `re.UNICODE` is passed where the count
  belongs. The pattern's lookahead `(?!<=\d)` is a lookbehind with a typo, and never says no.
* `none` becomes `0`; "A/B" loses its A, which is an article.
* The open metrics normalise what is normalised already: 32 more periods go.
* Precision, recall and F1 count a right word as often as the **prediction** has it: repeating it raises recall.
* "Exact match" is the share of the prediction's words that are distinct words of the gold answer.

One quirk is of their script, not of the rule, and is not kept: the denominator of its closed accuracy leaves out wrong
answers that say yes or no. Here every item counts.
"""

import re
from collections import Counter

from medbench.scoring.normalise import ARTICLES
from medbench.scoring.normalise import NUMBER_WORDS as _COUNTED
from medbench.scoring.profiles import Overall, Scores, scores

NAME = "llava_med"
SOURCE = "LLaVA-Med v1.0.0, llava/eval/run_eval.py (Li et al. 2023): substring yes/no, recall over prediction counts"
OVERALL: Overall = {}

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
NUMBER_WORDS = {"none": "0", **_COUNTED}

# The VQA evaluation code's table mends words with one apostrophe missing; these are all the words that it mends to
# (its keys with a capital letter, such as "Im", are never met: the text is lower-case by then).
_MENDED = (
    "'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've "
    "mustn't needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've "
    "somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll "
    "that's there'd there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're "
    "why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've"
)
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _MENDED.split() for place, char in enumerate(word) if char == "'"
} | {"somebody'd": "somebodyd"}
"""A word as it may be written -> as it is compared; the last entry is a slip of the table's."""

_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"(?!<=\d)\.(?!\d)")
_MOST_PERIODS = 32


def normalize_word(text: str) -> str:
    """Normalise one answer; not idempotent. Lower-cases only after the punctuation is gone.

    Example:
        >>> normalize_word("the right-lung."), normalize_word("none"), normalize_word("A/B")
        ('right lung', '0', 'b')
        >>> normalize_word("1,000"), normalize_word("0.5 cm")
        ('1000', '0.5 cm')
    """
    bare, number = text, _COMMA_IN_NUMBER.search(text) is not None
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if number or beside_space else " ")
    bare = _PERIOD.sub("", bare, count=_MOST_PERIODS)
    words = (NUMBER_WORDS.get(word, word) for word in bare.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def score_closed(gold: str, prediction: str) -> Scores:
    """Score a closed answer: `closed` by substring, and the open metrics, which their code has for any pair.

    Example:
        >>> score_closed("no", "Normal.")["closed"], score_closed("left", "Left")["closed"]
        (1.0, 0.0)
    """
    wanted, given = normalize_word(gold.lower()), normalize_word(prediction.lower())
    hit = ("yes" in given or "no" in given) and wanted in given
    return scores(closed=float(hit), **_overlap(wanted, given))


def score_open(gold: str, prediction: str) -> Scores:
    """Score an open answer: `em`, `precision`, `recall`, `f1`; 0 where either side has no word.

    Example:
        >>> row = score_open("left lung", "left left left")
        >>> [round(row[key], 3) for key in ("em", "precision", "recall", "f1")]
        [0.333, 1.0, 0.75, 0.857]
    """
    return scores(**_overlap(normalize_word(gold.lower()), normalize_word(prediction.lower())))


def _overlap(wanted: str, given: str) -> dict[str, float]:
    """The open metrics of two texts that are normalised once."""
    gold, said = Counter(normalize_word(wanted).split()), Counter(normalize_word(given).split())
    right = sum(count for word, count in said.items() if word in gold)
    missed = sum(count for word, count in gold.items() if word not in said)
    if not right:
        return {"em": 0.0, "precision": 0.0, "recall": 0.0, "f1": 0.0}
    precision, recall = right / said.total(), right / (right + missed)
    return {
        "em": len(gold.keys() & said.keys()) / said.total(),
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall),
    }
