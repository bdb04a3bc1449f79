"""The profiles of other projects: golden vectors that come from running each project's own code."""

from __future__ import annotations

import pytest

from medbench.scoring import KEYS, get_profile, score_pairs
from medbench.scoring.profiles import Scores
from medbench.scoring.profiles.helm import normalize_text
from medbench.scoring.profiles.llava_med import CONTRACTIONS, normalize_word
from medbench.scoring.profiles.lmms_eval import normalize_answer

# scoring.md, table "Golden vectors", every cell. Columns: type, gold, prediction; LM closed, EM, P, R, F1; MEK closed,
# em, P, R, F1; lmms; HELM qEM, F1. None is an empty cell.
Cell = float | None
TABLE: list[tuple[str, str, str, tuple[Cell, ...], tuple[Cell, ...], Cell, tuple[Cell, Cell]]] = [
    ("closed", "yes", "Yes", (1, 1, 1, 1, 1), (1, None, None, None, None), 1, (1, 1)),
    ("closed", "no", "No.", (1, 1, 1, 1, 1), (1, None, None, None, None), 1, (1, 1)),
    ("closed", "no", "The heart is not enlarged.", (1, 0, 0, 0, 0), (1, None, None, None, None), 0, (0, 0)),
    ("closed", "no", "Normal.", (1, 0, 0, 0, 0), (1, None, None, None, None), 0, (0, 0)),
    ("closed", "yes", "yes, there is no doubt", (1, 0.2, 0.2, 1, 0.333), (0, None, None, None, None), 0, (0, 0.333)),
    ("closed", "left", "Left", (0, 1, 1, 1, 1), (1, None, None, None, None), 1, (1, 1)),
    ("closed", "yes", r"\boxed{yes}", (1, 0.5, 0.5, 1, 0.667), (1, None, None, None, None), 0, (0, 0)),
    ("open", "right lung", "The right lung", (None, 1, 1, 1, 1), (None, 0, 0.667, 1, 0.8), 0, (1, 1)),
    ("open", "left lung", "left left left", (None, 0.333, 1, 0.75, 0.857), (None, 0, 1, 0.5, 0.667), 0, (0, 0.667)),
    ("open", "x-ray", "X ray", (None, 1, 1, 1, 1), (None, 0, 0, 0, 0), 1, (0, 0)),
    ("open", "two", "2", (None, 1, 1, 1, 1), (None, 0, 0, 0, 0), 0, (0, 0)),
    (
        *("open", "pneumothorax", "There is a large left-sided pneumothorax."),
        *((None, 0.167, 0.167, 1, 0.286), (None, 0, 0, 0, 0), 0, (0, 0.333)),
    ),
    ("open", "brain", "Brain.", (None, 1, 1, 1, 1), (None, 0, 0, 0, 0), 1, (1, 1)),
]
IDS = [f"{kind}-{prediction[:12]}" for kind, _, prediction, *_ in TABLE]


def scored(profile: str, kind: str, gold: str, prediction: str) -> Scores:
    (row,) = score_pairs([{"gold": gold, "prediction": prediction, "type": kind}], profile)
    assert tuple(row) == KEYS
    return {key: None if value is None else round(value, 3) for key, value in row.items()}


@pytest.mark.parametrize(("kind", "gold", "prediction", "llava", "mek", "lmms", "helm"), TABLE, ids=IDS)
def test_the_table_of_the_scoring_definition(
    kind: str, gold: str, prediction: str, llava: tuple[Cell, ...], mek: tuple[Cell, ...], lmms: Cell, helm: tuple[Cell]
) -> None:
    five = ("closed", "em", "precision", "recall", "f1")
    nothing: Scores = dict.fromkeys(KEYS)
    assert scored("llava_med", kind, gold, prediction) == nothing | dict(zip(five, llava, strict=True))
    assert scored("medevalkit", kind, gold, prediction) == nothing | dict(zip(five, mek, strict=True))
    assert scored("lmms_eval", kind, gold, prediction) == nothing | {"closed" if kind == "closed" else "em": lmms}
    found = scored("helm", kind, gold, prediction)
    assert (found["quasi_em"], found["f1"]) == helm
    assert {key for key, value in found.items() if value is not None} == {"em", "quasi_em", "f1", "rouge_l"}


# scoring.md, below the table; then more that its rules decide, checked against a transcription of glossary.py.
@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("the right-lung.", "right lung"),
        ("none", "0"),
        ("A/B", "b"),
        ("1,000", "1000"),
        ("0.5 cm", "0.5 cm"),
        ("left / right", "left right"),
        ("left/right - side", "left right side"),
        ("left-right - side", "leftright side"),  # a mark beside a space anywhere is deleted everywhere
        ("1,2 left-right", "12 leftright"),  # and so are all marks where a comma stands between digits
        ("T1-weighted (axial)", "t1 weighted axial"),
        ("3.5.", "3.5"),
        ("no.5", "no.5"),
        ("." * 40 + "x", "." * 8 + "x"),  # 32 periods and no more
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),  # a slip of the table's
        ("An ANEURYSM of the aorta", "aneurysm of aorta"),
        ("ten", "10"),
        ("", ""),
    ],
)
def test_normalize_word(text: str, normalised: str) -> None:
    assert normalize_word(text) == normalised


def test_contractions_are_the_words_less_one_apostrophe() -> None:
    """glossary.py has 116 entries in lower case, two of which ("let's", "she's") change nothing."""
    assert len(CONTRACTIONS) == 116 - 2
    assert CONTRACTIONS["couldnt've"] == CONTRACTIONS["couldn'tve"] == "couldn't've"
    assert CONTRACTIONS["'ow'sat"] == "'ow's'at"
    assert all(len(key) + 1 == len(word) for key, word in CONTRACTIONS.items() if key != "somebody'd")


def test_llava_med_normalises_twice_for_the_open_metrics() -> None:
    """One more round takes the periods that the first had no count left for."""
    assert scored("llava_med", "open", "x", "." * 40 + "x")["em"] == 1
    assert scored("llava_med", "closed", "yes", "." * 80 + "yes")["closed"] == 1  # a substring needs no more
    assert scored("llava_med", "open", "x", "." * 80 + "x")["em"] == 0


# Decided by the rules of scoring.md; checked against a transcription of MedEvalKit's utils.py.
@pytest.mark.parametrize(
    ("kind", "gold", "prediction", "hit"),
    [
        ("closed", "left", "Answer: left", 0),  # not stripped again
        ("closed", "left", "Answer:left", 1),
        ("closed", "left", "The answer is left.", 0),
        ("closed", "yes", "The answer is yes.", 1),  # a substring does not mind the space
        ("closed", "left", "Answer:right\nAnswer:left.", 1),  # the last occurrence; newline and period go
        ("closed", "left", "**Answer**:left", 1),
        ("closed", "left", "**Answer:**left", 1),
        ("closed", "left", "答案:left", 1),
        ("closed", "left", "final answer is:left", 0),
        ("closed", "left", "<answer>left</answer>", 1),
        ("closed", "left lung", "<answer>left</answer> or <answer>lung</answer>", 1),
        ("closed", "right", r"\boxed{left}, no: \boxed{right}", 1),
        ("closed", "a {b} c", r"\Boxed{a {b} c}", 1),
        ("closed", "left", "boxed left", 0),  # "boxed" and no box: the text None
        ("closed", "left", "  Left \n", 1),
        ("closed", "no", "yes and no", 0),
        ("closed", "no", "nothing", 1),
        ("open", "brain", " Brain ", 1),
        ("open", "brain", "brain.", 0),
        ("open", "in the brain.", "In the brain.", 1),
        ("open", "brain", "answer:brain", 1),
    ],
)
def test_medevalkit_takes_the_answer_out_in_its_own_order(kind: str, gold: str, prediction: str, hit: float) -> None:
    assert scored("medevalkit", kind, gold, prediction)["closed" if kind == "closed" else "em"] == hit


def test_medevalkit_as_reported_rotates_three_keys() -> None:
    pair = {"gold": "left lung", "prediction": "left left left", "type": "open"}
    (right,) = score_pairs([pair], "medevalkit")
    (printed,) = score_pairs([pair], get_profile("medevalkit", as_reported=True))
    assert (right["precision"], right["recall"]) == (1, 0.5)
    assert printed["precision"] == right["f1"]
    assert printed["recall"] == right["precision"]
    assert printed["f1"] == right["recall"]
    assert {key: printed[key] for key in ("closed", "em")} == {key: right[key] for key in ("closed", "em")}


# Decided by the rules of scoring.md; checked against a transcription of lmms-eval's slake/utils.py.
@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("X-Ray (chest).", "xray"),
        ("（胸部）是的。", "yes"),
        ("Yes (probably)", "yes"),
        ("yes, probably", "yes probably"),
        ("TRUE!", "yes"),
        ("nope", "no"),
        ("不正常", "no"),
        ("正常", "yes"),
        ("a (b (c) d) e", "a d e"),  # to the first closing one
        ("(left", "left"),
        ("left) (lung", "left lung"),
        ("the x ray", "the x ray"),  # the whole text only
        ("?!", ""),
    ],
)
def test_lmms_eval_normalises_the_whole_text(text: str, normalised: str) -> None:
    assert normalize_answer(text) == normalised


# Decided by the rules of scoring.md; checked against a transcription of HELM's evaluate_reference_metrics.py.
def test_helm_is_exact_or_quasi_exact() -> None:
    assert normalize_text("The left-sided, an   a Effusion?") == "leftsided effusion"
    found = scored("helm", "open", "effusion", "An effusion.")
    assert (found["em"], found["quasi_em"], found["f1"], found["rouge_l"]) == (0, 1, 1, 0.667)
    assert scored("helm", "open", "effusion", " effusion\n")["em"] == 1
    assert scored("helm", "open", "the", ".")["quasi_em"] == 1  # nothing is left of either
    assert scored("helm", "open", "the", "")["quasi_em"] == 0
    assert scored("helm", "open", "opacities", "opacity")["rouge_l"] == 1  # the stemmer
    assert scored("helm", "open", "opacities", "opacity")["f1"] == 0
