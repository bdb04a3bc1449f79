"""What every profile must do with any text at all, and what is particular to each."""

from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.scoring import KEYS, get_profile, profile_names
from medbench.scoring.profiles import Scores
from medbench.scoring.profiles.helm import normalize_text
from medbench.scoring.profiles.llava_med import PUNCTUATION, normalize_word
from medbench.scoring.profiles.lmms_eval import normalize_answer

PROFILES = ["helm", "llava_med", "lmms_eval", "medbench", "medevalkit"]
OPEN = {"em", "precision", "recall", "f1"}
HELM = {"em", "quasi_em", "f1", "rouge_l"}
FILLED = {
    "medbench": ({"closed"}, OPEN),
    "llava_med": ({"closed"} | OPEN, OPEN),
    "medevalkit": ({"closed"}, OPEN),
    "lmms_eval": ({"closed"}, {"em"}),
    "helm": (HELM, HELM),
}
"""scoring.md, "Names in records": what each profile fills of a closed and of an open item."""

# Any code point at all (lone surrogates, NUL, right-to-left marks), and words that mean something to some profile.
any_text = st.text(st.characters(), max_size=30)
pieces = [
    *("yes", "No", "not", "none", "a", "The", "two", "2", "1,000", "0.5", "left", "Right lung", "x-ray", "X ray"),
    *("\\boxed{", "}", "<answer>", "</answer>", "Answer:", "answer is", "(", ")", "（", "）", "是", "不是。", "dont"),
    *("\x00", "\u200f", "\u202e", "שלום", "مرحبا", ".", "...", "\n", "\u2028", "ß", "İ", "\ud800", "\ufeff"),
]
answer = st.one_of(any_text, st.lists(st.one_of(st.sampled_from(pieces), st.just(" ")), max_size=10).map("".join))
blank = st.text(st.sampled_from(" \t\n\r\x0b\u00a0\u2003\u3000"), max_size=6)


no_deadline = settings(deadline=None)  # the first call imports what the rule needs


def both(profile: str, gold: str, prediction: str) -> tuple[Scores, Scores]:
    rule = get_profile(profile)
    return rule.score_closed(gold, prediction), rule.score_open(gold, prediction)


def test_these_are_all_profiles() -> None:
    assert profile_names() == PROFILES


@pytest.mark.parametrize("profile", PROFILES)
@no_deadline
@given(answer, st.one_of(answer, blank))
def test_every_text_gets_every_score_and_each_is_a_fraction(profile: str, gold: str, prediction: str) -> None:
    for row, filled in zip(both(profile, gold, prediction), FILLED[profile], strict=True):
        assert tuple(row) == KEYS
        assert {key for key, value in row.items() if value is not None} == filled
        assert all(isinstance(row[key], float) and 0 <= row[key] <= 1 for key in filled)
    assert both(profile, gold, prediction) == both(profile, gold, prediction)


@pytest.mark.parametrize("profile", PROFILES)
@no_deadline
@given(blank)
def test_an_empty_prediction_scores_0_against_an_answer(profile: str, prediction: str) -> None:
    for gold in ("yes", "no", "left lung", "2"):
        for row in both(profile, gold, prediction):
            assert {value for value in row.values() if value is not None} == {0.0}


LONG = {
    "open parentheses": "(" * 1_000_000,  # where a pattern with a star looks for the closing one again and again
    "one word": "y" * 1_000_000,  # where stemmers recurse
    "words": "left lung " * 100_000,
    "boxes": "\\boxed{<answer>" * 60_000 + "{" * 100_000,
    "right to left, NUL": "\u202eשלום\x00 " * 140_000,
}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("text", LONG)
def test_a_prediction_of_1_mb_is_scored(profile: str, text: str) -> None:
    """In linear time: anything quadratic would not end before the tests' time limit."""
    row = get_profile(profile).score_open("left lung", LONG[text])
    assert all(0 <= value <= 1 for value in row.values() if value is not None)
    assert text == "words" or row["em"] == 0


surrounding = st.text(
    st.one_of(st.sampled_from(string.punctuation + " \t\n"), st.characters(categories=["P", "Zs"])), max_size=5
)


@no_deadline
@given(answer, answer, surrounding, surrounding)
def test_the_default_profile_ignores_case_and_what_surrounds(
    gold: str, prediction: str, before: str, after: str
) -> None:
    upper = "".join(char.upper() if char.isascii() else char for char in prediction)
    expected = both("medbench", gold, prediction)
    assert both("medbench", gold, before + upper + after) == expected
    assert both("medbench", before + gold + after, prediction) == expected


@no_deadline
@given(answer)
def test_llava_med_leaves_no_punctuation_of_its_list(text: str) -> None:
    assert not set(normalize_word(text)) & set(PUNCTUATION)
    assert not set(normalize_word(text).split()) & {"a", "an", "the", "none", "two"}


@no_deadline
@given(st.lists(st.sampled_from(["left", "lung", "upper"]), min_size=1, max_size=4), st.integers(2, 5))
def test_llava_med_rewards_saying_a_right_word_again(words: list[str], times: int) -> None:
    gold = "left lung nodule"
    once, again = (get_profile("llava_med").score_open(gold, " ".join(words * n)) for n in (1, times))
    if {"left", "lung"} & set(words):
        assert again["recall"] > once["recall"]  # type: ignore[operator]
    else:
        assert again["recall"] == once["recall"] == 0


@no_deadline
@given(st.text(st.sampled_from("abcknow yes.\n"), max_size=12))
def test_medevalkit_looks_for_yes_and_no_in_any_letters(text: str) -> None:
    said = text.replace("\n", "").replace(".", "").strip()
    rule = get_profile("medevalkit")
    assert rule.score_closed("no", text)["closed"] == float("no" in said and "yes" not in said)
    assert rule.score_closed("yes", text)["closed"] == float("yes" in said and "no" not in said)


@no_deadline
@given(answer, answer)
def test_medevalkit_as_reported_holds_the_same_numbers(gold: str, prediction: str) -> None:
    plain, printed = (get_profile("medevalkit", said).score_open(gold, prediction) for said in (False, True))
    assert sorted(printed[key] for key in OPEN) == sorted(plain[key] for key in OPEN)  # type: ignore[type-var]


@no_deadline
@given(answer, answer)
def test_lmms_eval_is_an_equality(gold: str, prediction: str) -> None:
    rule = get_profile("lmms_eval")
    assert rule.score_open(gold, prediction)["em"] == rule.score_closed(prediction, gold)["closed"]
    assert rule.score_open(gold, gold)["em"] == 1
    assert normalize_answer(f" {gold}\n") == normalize_answer(gold)


@no_deadline
@given(answer, answer)
def test_helms_f1_is_that_of_nltk_over_sets(gold: str, prediction: str) -> None:
    """HELM calls `nltk.metrics.scores.f_measure`; an independent reference."""
    from nltk.metrics.scores import f_measure

    expected = f_measure(set(normalize_text(gold).split()), set(normalize_text(prediction.strip()).split()))
    assert get_profile("helm").score_open(gold, prediction)["f1"] == pytest.approx(expected or 0)
