"""The default profile: golden vectors of the scoring definition, and what must hold for any text."""

import string
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.errors import RequestError
from medbench.scoring import KEYS, get_profile, profile_names, score_pairs
from medbench.scoring.normalise import tokens
from medbench.scoring.profiles import medbench as profile
from medbench.scoring.profiles import scores

# scoring.md, table "Golden vectors", with the values it gives for the medbench profile.
GOLDEN_CLOSED = [
    ("yes", "Yes", 1),
    ("no", "No.", 1),
    ("no", "The heart is not enlarged.", 0),
    ("no", "Normal.", 0),
    ("yes", "yes, there is no doubt", 0),
    ("left", "Left", 1),
    ("yes", r"\boxed{yes}", 1),
]
GOLDEN_OPEN = [
    ("right lung", "The right lung", (1, 1, 1, 1)),
    ("left lung", "left left left", (0, 0.333, 0.5, 0.4)),
    ("x-ray", "X ray", (1, 1, 1, 1)),
    ("two", "2", (1, 1, 1, 1)),
    ("pneumothorax", "There is a large left-sided pneumothorax.", (0, 0.167, 1, 0.286)),
    ("brain", "Brain.", (1, 1, 1, 1)),
]
OPEN_KEYS = ("em", "precision", "recall", "f1")
# Any code point at all, lone surrogates included; ordinary words often enough to meet each other.
any_text = st.text(st.characters(), max_size=30)
words = ["yes", "no", "a", "an", "the", "two", "2", "1,000", "0.5", "left", "Right", "lung", "x-ray", "+"]
word = st.sampled_from(words)
answer = st.one_of(any_text, st.lists(word, max_size=6).map(" ".join))
punctuation = st.text(
    st.one_of(st.sampled_from(string.punctuation + " \t\n"), st.characters(categories=["P", "Zs"])),
    max_size=5,
)


@pytest.mark.parametrize(("gold", "prediction", "closed"), GOLDEN_CLOSED)
def test_golden_closed(gold, prediction, closed):
    row = profile.score_closed(gold, prediction)
    assert row == dict.fromkeys(KEYS) | {"closed": closed}


@pytest.mark.parametrize(("gold", "prediction", "expected"), GOLDEN_OPEN)
def test_golden_open(gold, prediction, expected):
    row = profile.score_open(gold, prediction)
    assert [round(row[key], 3) for key in OPEN_KEYS] == list(expected)
    assert all(row[key] is None for key in KEYS if key not in OPEN_KEYS)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000", ["1000"]),
        ("1,234,567.5 ml", ["1234567.5", "ml"]),
        ("1, 2", ["1", "2"]),
        ("left,right 2,b", ["left", "right", "2", "b"]),
        ("J\u030c", ["\u01f0"]),
        ("j\u030c", ["\u01f0"]),
        ("0.5 cm.", ["0.5", "cm"]),
        ("No.5", ["no", "5"]),
        ("ten", ["10"]),
        ("zero", ["0"]),
        ("the", ["the"]),
        ("The A", ["the", "a"]),
        ("a lung", ["lung"]),
        ("two-one", ["2", "1"]),
        ("often", ["often"]),
        ("snake_case 50% <5 T1+T2", ["snake", "case", "50", "5", "t1", "t2"]),
        ("＠ＬＥＦＴ　１，０００", ["left", "1000"]),
        ("STRASSE", ["strasse"]),
        ("Straße", ["strasse"]),
        ("pneumo\u00adthorax\ufeff", ["pneumothorax"]),
        ("left\u200blung", ["left", "lung"]),
        ("हृदय", ["हृदय"]),
        ("\u0301e\u0301", ["é"]),
        ("+ -", []),
        ("\ud800", []),
        ("", []),
    ],
)
def test_tokens(text, expected):
    assert tokens(text) == expected


@given(answer, answer)
def test_scores_are_fractions_and_complete(gold, prediction):
    for row, has in (
        (profile.score_closed(gold, prediction), {"closed"}),
        (profile.score_open(gold, prediction), set(OPEN_KEYS)),
    ):
        assert tuple(row) == KEYS
        assert {key for key, value in row.items() if value is not None} == has
        assert all(0 <= row[key] <= 1 for key in has)
    open_row = profile.score_open(gold, prediction)
    assert min(open_row["precision"], open_row["recall"]) <= open_row["f1"] + 1e-12
    assert open_row["f1"] <= max(open_row["precision"], open_row["recall"]) + 1e-12
    assert open_row["em"] == float(tokens(gold) == tokens(prediction) != [])


@given(answer, punctuation)
def test_an_empty_prediction_scores_zero(gold, prediction):
    for text in ("", prediction):
        assert profile.score_closed(gold, text)["closed"] == 0
        assert [profile.score_open(gold, text)[key] for key in OPEN_KEYS] == [0, 0, 0, 0]


@given(answer)
def test_an_answer_with_a_letter_or_digit_is_right_against_itself(text):
    both = {"yes", "no"} <= set(tokens(text))
    if tokens(text):
        assert profile.score_open(text, text)["f1"] == 1
        assert both or profile.score_closed(text, text)["closed"] == 1
    else:
        assert not any(char.isalnum() for char in unicodedata.normalize("NFKC", text))


@given(answer, punctuation, punctuation)
def test_tokens_ignore_case_and_what_surrounds(text, before, after):
    ascii_upper = "".join(char.upper() if char.isascii() else char for char in text)
    ascii_lower = "".join(char.lower() if char.isascii() else char for char in text)
    assert tokens(ascii_upper) == tokens(ascii_lower) == tokens(text)
    assert tokens(before + text + after) == tokens(text)


@given(answer)
def test_every_token_is_one_word(text):
    for token in tokens(text):
        assert token[0].isalnum()
        assert not set(token) & (set(string.punctuation + string.whitespace) - {"."})
        assert not set(token) & set(string.ascii_uppercase)


@given(st.lists(st.sampled_from(["yes", "no", "not", "none", "lung", "eyes"]), max_size=6))
def test_yes_no_needs_exactly_the_gold_word(words):
    for gold, other in (("yes", "no"), ("no", "yes")):
        right = gold in words and other not in words
        assert profile.score_closed(gold, ", ".join(words))["closed"] == right


def test_profiles_are_found_and_near_misses_named():
    assert "medbench" in profile_names()
    found = get_profile("medbench")
    assert found.NAME == "medbench"
    assert found.SOURCE
    with pytest.raises(RequestError, match="did you mean medbench"):
        get_profile("medbnech")
    with pytest.raises(RequestError, match="unknown profile"):
        get_profile("__init__")
    with pytest.raises(KeyError, match="recal"):
        scores(recal=1.0)


def test_score_pairs_by_type_in_order():
    pairs = [
        {"gold": "yes", "prediction": "Yes.", "type": "closed"},
        {"gold": "left lung", "prediction": "lung", "type": "open", "note": "ignored"},
    ]
    closed, opened = score_pairs(iter(pairs))
    assert tuple(closed) == tuple(opened) == KEYS
    assert (closed["closed"], closed["em"], opened["closed"], opened["recall"]) == (1, None, None, 0.5)
    assert score_pairs([]) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"gold": None}, "'gold' must be text"),
        ({"gold": 2}, "'gold' must be text, got int"),
        ({"prediction": float("nan")}, "'prediction' must be text, got nothing"),
        ({"type": "opne"}, "'type' must be .* did you mean open"),
        ({"type": None}, "'type' must be"),
    ],
)
def test_a_bad_pair_is_named(change, named):
    good = {"gold": "yes", "prediction": "no", "type": "closed"}
    with pytest.raises(RequestError, match=f"row 2.*{named}"):
        score_pairs([good, good | change])
    (key,) = change
    with pytest.raises(RequestError, match=f"row 1.*{key}"):
        score_pairs([{name: value for name, value in good.items() if name != key}])
    with pytest.raises(RequestError, match="row 1 must be an object, got list"):
        score_pairs([["yes", "yes"]])


def test_importing_scoring_is_cheap():
    code = "import sys, medbench.scoring; print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
