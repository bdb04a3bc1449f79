r"""The rule of MedEvalKit (Lingshu's evaluation), without its judge model.

Source: `utils/utils.py` and `utils/VQA_RAD/VQA_RAD.py` of alibaba-damo-academy/MedEvalKit, and `mathruler.grader` for
the box. Its quirks, all kept:

* The answer is what the last `\boxed{}` holds, else what stands between `<answer>` and `</answer>` (several are joined
  by spaces). A prediction that says "boxed" and has no whole `\boxed{}` becomes the text `None`.
* Then, for each of `PATTERNS` in this order, only what follows its last occurrence is kept, and it is **not stripped
  again**: "Answer: left" leaves " left", which is not "left".
* Newlines and periods are removed for closed questions only: "Brain." is no exact match of "brain", and shares no word
  with it.
* Yes and no are looked for as substrings: right iff exactly one of them is there, and it is the gold one.
* Precision, recall and F1 are over **sets** of the words between white space.
* Their reports rotate three keys: `precision` prints F1, `recall` prints precision, `f1` prints recall. Here the names
  are right; `as_reported` gives the row as they print it.

Where their code fails (no word on either side) the metrics are 0. Their SLAKE script does not strip the two sides
before; their VQA-RAD script does, and so does this module.
"""

import re

from medbench.scoring.profiles import Overall, Scores, scores

NAME = "medevalkit"
SOURCE = "MedEvalKit, utils/utils.py (Lingshu, 2025): extracted answers, overlap of sets; the three keys rightly named"
OVERALL: Overall = {"accuracy": ("closed", "em")}

PATTERNS = (
    "**answer**:",
    "**answer**",
    "*answer*:",
    "**answer:**",
    "answer is",
    "answer:",
    "答案:",
    "final answer",
    "final answer is",
)
_BOX = "\\boxed{"
_BRACE = re.compile(r"[{}]")


def score_closed(gold: str, prediction: str) -> Scores:
    r"""Score a closed answer: `closed` is 0 or 1, all else None.

    Example:
        >>> score_closed("yes", "\\boxed{yes}")["closed"], score_closed("yes", "yes, no doubt")["closed"]
        (1.0, 0.0)
        >>> score_closed("left", "Left.")["closed"], score_closed("left", "Answer: left")["closed"]
        (1.0, 0.0)
    """
    wanted, given = gold.lower().strip(), _answer(prediction)
    given = given.replace("\n", "").replace(".", "")
    if wanted not in ("yes", "no"):
        return scores(closed=float(given == wanted))
    return scores(closed=float(("yes" in given) != ("no" in given) and wanted in given))


def score_open(gold: str, prediction: str) -> Scores:
    """Score an open answer: `em` is equality of the lower-cased texts; `precision`, `recall`, `f1` are over sets.

    Example:
        >>> row = score_open("left lung", "left left left")
        >>> row["em"], row["precision"], row["recall"], round(row["f1"], 3)
        (0.0, 1.0, 0.5, 0.667)
    """
    wanted, given = gold.lower().strip(), _answer(prediction)
    gold_words, words = set(wanted.split()), set(given.lower().split())
    both = len(gold_words & words)
    if not both:
        return scores(em=float(given == wanted), precision=0.0, recall=0.0, f1=0.0)
    precision, recall = both / len(words), both / len(gold_words)
    f1 = 2 * precision * recall / (precision + recall)
    return scores(em=float(given == wanted), precision=precision, recall=recall, f1=f1)


def as_reported(row: Scores) -> Scores:
    """A row of scores under the names that their reports print: precision is F1, recall precision, f1 recall.

    Example:
        >>> as_reported(score_open("left lung", "left left left"))["recall"]
        1.0
    """
    return row | {"precision": row["f1"], "recall": row["precision"], "f1": row["recall"]}


def _answer(prediction: str) -> str:
    """What their code takes for the answer, lower-cased."""
    boxed = _boxed(prediction)
    if boxed != "None":
        prediction = boxed
    elif "<answer>" in prediction:
        prediction = _tagged(prediction)
    # From here on in lower case, and once more: `\Boxed{}` is found only now, and a box may hold a box.
    given = prediction.lower().strip()
    if "boxed" in given:
        given = _boxed(given)
    elif "<answer>" in given:
        given = _tagged(given)
    for pattern in PATTERNS:
        given = given.rpartition(pattern)[2]
    return given


def _boxed(text: str) -> str:
    """What the last box holds up to the brace that closes it, stripped; `None` (the text) without one."""
    start = text.rfind(_BOX) + len(_BOX)
    if start < len(_BOX):
        return "None"
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if not depth:
            return text[start : brace.start()].strip()
    return "None"


def _tagged(text: str) -> str:
    """What stands between the tags, all of it, joined by spaces and stripped; the text itself where that is nothing."""
    parts, start = [], text.find("<answer>")
    while start != -1:
        start += len("<answer>")
        end = text.find("</answer>", start)
        if end == -1:
            break
        parts.append(text[start:end])
        start = text.find("<answer>", end + len("</answer>"))
    return " ".join(parts).strip() or text
