"""The default profile: whole tokens, no substring and no set tricks.

Both sides are normalised by `medbench.scoring.normalise.tokens`. A prediction without a token scores 0, also
against a gold answer without one.
"""

from collections import Counter

from medbench.scoring.normalise import tokens
from medbench.scoring.profiles import Overall, Scores, scores

NAME = "medbench"
SOURCE = "medbench's own rule: whole-token matching; multiset overlap as in SQuAD (Rajpurkar et al. 2016)"
OVERALL: Overall = {}

_YES_NO = frozenset({"yes", "no"})


def score_closed(gold: str, prediction: str) -> Scores:
    """Score a closed answer: `closed` is 0 or 1, all else None.

    Gold yes or no: right iff the tokens among {yes, no} in the prediction are exactly the gold one ("not" is
    not "no"). Any other gold: right iff the token lists are equal.

    Example:
        >>> score_closed("no", "No.")["closed"], score_closed("no", "Normal.")["closed"]
        (1.0, 0.0)
        >>> score_closed("yes", "yes, there is no doubt")["closed"]
        0.0
    """
    wanted, given = tokens(gold), tokens(prediction)
    if len(wanted) == 1 and wanted[0] in _YES_NO:
        right = _YES_NO.intersection(given) == set(wanted)
    else:
        right = bool(given) and given == wanted
    return scores(closed=float(right))


def score_open(gold: str, prediction: str) -> Scores:
    """Score an open answer: `em`, `precision`, `recall`, `f1` in [0, 1], all else None.

    The overlap counts each token at most as often as both sides have it (minimum of counts); over the
    prediction's length it is the precision, over the gold's length the recall. `em` is equality of the token
    lists.

    Example:
        >>> row = score_open("left lung", "left left left")
        >>> round(row["precision"], 3), row["recall"], row["f1"], row["em"]
        (0.333, 0.5, 0.4, 0.0)
    """
    wanted, given = tokens(gold), tokens(prediction)
    if not wanted or not given:
        return scores(em=0.0, precision=0.0, recall=0.0, f1=0.0)
    overlap = (Counter(wanted) & Counter(given)).total()
    return scores(
        em=float(given == wanted),
        precision=overlap / len(given),
        recall=overlap / len(wanted),
        f1=2 * overlap / (len(given) + len(wanted)),
    )
