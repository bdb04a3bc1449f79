"""The rule of lmms-eval's SLAKE task: exact match of the whole text, with a few synonyms.

Source: `lmms_eval/tasks/slake/utils.py` of EvolvingLMMs-Lab/lmms-eval. Its quirks, all kept:

* What stands in parentheses is dropped with them, ASCII and full-width ones; every other punctuation mark, a hyphen
  too, becomes a space.
* Synonyms hold for the **whole** text only: "x-ray" is "xray", "Yeah" is "yes", 不是 is "no"; "yes, it is" is not
  "yes". An open answer that happens to be such a word (正常, "true") is one of yes and no, too.
* There is no partial credit: no recall, no F1. An answer of punctuation only equals a gold answer of punctuation only.
"""

import string

from medbench.scoring.profiles import Overall, Scores, scores

NAME = "lmms_eval"
SOURCE = "lmms-eval, lmms_eval/tasks/slake/utils.py: exact match of the whole text, English and Chinese synonyms"
OVERALL: Overall = {"accuracy": ("closed", "em")}

PUNCTUATION = string.punctuation + "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～、《》【】"
YES = frozenset({"yes", "yeah", "yep", "true", "是", "是的", "有", "包含", "可以", "能", "会", "正常"})
NO = frozenset(
    {"no", "nope", "false", "否", "不是", "没有", "无", "不包含", "不能", "不会", "不可以", "不正常", "异常"}
)
XRAY = frozenset({"x ray", "xray"})

_TO_SPACE = str.maketrans(dict.fromkeys(PUNCTUATION, " "))


def normalize_answer(text: str) -> str:
    """Normalise one answer.

    Example:
        >>> normalize_answer("X-Ray (chest)."), normalize_answer("Yeah!"), normalize_answer("不是。")
        ('xray', 'yes', 'no')
        >>> normalize_answer("yes, it is")
        'yes it is'
    """
    text = text.strip().lower()
    for pair in ("()", "（）"):
        text = _without_parentheses(text, *pair)
    text = " ".join(text.translate(_TO_SPACE).split())
    if text in XRAY:
        return "xray"
    if text in YES:
        return "yes"
    return "no" if text in NO else text


def score_closed(gold: str, prediction: str) -> Scores:
    """Score a closed answer: `closed` is 0 or 1, all else None.

    Example:
        >>> score_closed("Yes", "true.")["closed"], score_closed("yes", "yes, it is")["closed"]
        (1.0, 0.0)
    """
    return scores(closed=_match(gold, prediction))


def score_open(gold: str, prediction: str) -> Scores:
    """Score an open answer: `em` is 0 or 1, all else None.

    Example:
        >>> score_open("x-ray", "X ray")["em"], score_open("two", "2")["em"]
        (1.0, 0.0)
    """
    return scores(em=_match(gold, prediction))


def _match(gold: str, prediction: str) -> float:
    return float(normalize_answer(gold) == normalize_answer(prediction))


def _without_parentheses(text: str, opening: str, closing: str) -> str:
    """A space for each stretch from an opening parenthesis to the next closing one; one that stays open is kept."""
    kept, start = [], 0
    while (begin := text.find(opening, start)) != -1 and (end := text.find(closing, begin)) != -1:
        kept += [text[start:begin], " "]
        start = end + 1
    return "".join(kept) + text[start:]
