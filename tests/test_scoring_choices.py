"""Multiple choice and candidates: what an answer names, and the accuracy by likelihood beside that by generation."""

from __future__ import annotations

import json
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.data.item import FileImage, Item, lettered
from medbench.scoring.choices import named_option
from medbench.scoring.normalise import tokens
from medbench.scoring.predictions import score_task
from medbench.scoring.stats import estimate_metrics, metric_values
from medbench.scoring.vqa import score_table

ORGANS = ("Lung", "Liver", "Left kidney", "A spleen")


@pytest.mark.parametrize(
    ("prediction", "read"),
    [
        *((text, "Liver") for text in ("B", "b", "B.", "(B)", "[b]", " B)\n", "B. Liver", "b: liver.", "**B**")),
        *((text, text) for text in ("Liver", "liver.", "The answer is B", "", "  ", "?", "E", "E. Heart", "3")),
        ("A spleen", "A spleen"),  # the text of option D, not "A" and a word
        ("A", "Lung"),
        ("B. Lung", "B. Lung"),  # a letter and another option's text say nothing certain
        ("Below the lung", "Below the lung"),
        ("d. spleen", "A spleen"),
    ],
)
def test_an_answer_that_names_an_option_by_its_letter(prediction: str, read: str) -> None:
    assert named_option(prediction, ORGANS) == read


def test_without_options_nothing_is_read() -> None:
    assert named_option("B", ()) == "B"
    assert named_option("B", ("A", "B", "O")) == "B"  # blood groups: the text of an option goes before its letter


@given(st.lists(st.text(min_size=1).filter(tokens), min_size=2, max_size=6, unique_by=lambda t: tuple(tokens(t))))
def test_each_line_of_the_prompt_names_its_own_option(options: list[str]) -> None:
    shown = lettered(options)
    for letter, option in zip("ABCDEF", options, strict=False):
        assert f"{letter}. {option}" in shown
        assert named_option(option, options) == option
        texts = [tokens(o) for o in options]
        if tokens(letter) not in texts:
            assert named_option(letter, options) == option
        if tokens(f"{letter}. {option}") not in texts:
            assert tokens(named_option(f"{letter}. {option}", options)) == tokens(option)


def frame(*rows: tuple[str, str, dict[str, float] | None, tuple[str, ...]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["gold", "prediction", "probabilities", "options"])
    return table.assign(
        id=[f"q{i}" for i in range(len(rows))], cluster=[f"c{i}" for i in range(len(rows))], type="closed"
    )


def spread(best: str, *others: str) -> dict[str, float]:
    return {best: 0.7, **{other: 0.3 / len(others) for other in others}}


def test_both_accuracies_of_multiple_choice() -> None:
    table = score_table(
        frame(
            ("Liver", "B", spread("Liver", "Lung"), ("Lung", "Liver")),
            ("Liver", "Lung", spread("Liver", "Lung"), ("Lung", "Liver")),
            ("Lung", "no idea", spread("Liver", "Lung"), ("Lung", "Liver")),
            ("Lung", "A. Lung", spread("Heart", "Lung", "Liver"), ("Lung", "Liver", "Heart")),
        )
    )
    assert table["closed"].tolist() == [1, 0, 0, 1]
    assert table["argmax_right"].tolist() == [1, 1, 0, 0]
    found = estimate_metrics([table])
    assert (found["closed_accuracy"].value, found["choice_accuracy"].value) == (0.5, 0.5)
    assert (found["choice_accuracy"].n, found["choice_accuracy"].left_out) == (4, 0)
    assert found["choice_accuracy"].low < 0.5 < found["choice_accuracy"].high
    assert found["auroc"].value is None  # only of yes and no
    assert metric_values(table)["choice_accuracy"] == 0.5


def test_classes_of_a_card_are_compared_too() -> None:
    """One list for all items, no options in the prompt: a letter is then an answer like any other."""
    classes = ("benign", "malignant", "normal")
    items = [Item(str(n), FileImage(str(n), None), "?", gold, True, classes) for n, gold in enumerate(classes)]  # type: ignore[arg-type]
    said = pd.DataFrame(
        {
            "id": ["0", "1", "2"],
            "prediction": ["Benign.", "B", "normal"],
            "probabilities": [json.dumps(spread(c, *(set(classes) - {c}))) for c in ("benign", "malignant", "benign")],
        }
    )
    found = estimate_metrics([score_task("x", "test", items, said)])
    assert found["closed_accuracy"].value == pytest.approx(2 / 3)
    assert found["choice_accuracy"].value == pytest.approx(2 / 3)
    assert found["auroc"].value is None


def test_a_gold_that_is_no_candidate_is_left_out_and_counted() -> None:
    yes = {"yes": 0.9, "no": 0.1}
    rows: list[Any] = [
        ("yes", "yes", yes, ()),
        ("no", "no", yes, ()),
        ("left", "left", yes, ()),
        ("no", "no", None, ()),
    ]
    found = estimate_metrics([score_table(frame(*rows))])
    assert (found["choice_accuracy"].value, found["choice_accuracy"].n, found["choice_accuracy"].left_out) == (
        0.5,
        2,
        2,
    )
    assert found["auroc"].n == 2
    none = estimate_metrics([score_table(frame(("left", "left", None, ())))])["choice_accuracy"]
    assert (none.value, none.reason) == (None, "no closed item has the probabilities it needs")
