"""The per-item score table of visual question answering."""

import json

import numpy as np
import pandas as pd
import pytest

from medbench.errors import RequestError
from medbench.scoring import KEYS
from medbench.scoring.vqa import (
    ITEM_COLUMNS,
    METRICS,
    PROBABILITY_COLUMNS,
    PROBABILITY_METRICS,
    score_table,
)


def items(*rows):
    names = ["type", "gold", "prediction", "probabilities"]
    table = pd.DataFrame(rows, columns=names)
    return table.assign(id=[f"q{i}" for i in range(len(rows))], cluster=[f"c{i // 2}" for i in range(len(rows))])


def test_one_row_an_item_with_nan_where_not_applicable():
    given = items(("closed", "yes", "Yes.", None), ("open", "left lung", "lung", None)).set_index(pd.Index([7, 3]))
    table = score_table(given)
    assert list(table) == [*ITEM_COLUMNS, *KEYS, *PROBABILITY_COLUMNS]
    assert list(table.index) == [0, 1]
    assert table[list(ITEM_COLUMNS)].to_numpy().tolist() == [
        ["q0", "c0", "closed", "medbench"],
        ["q1", "c0", "open", "medbench"],
    ]
    closed, opened = table.iloc[0], table.iloc[1]
    assert closed["closed"] == 1
    assert closed[["em", "precision", "recall", "f1"]].isna().all()
    assert np.isnan(opened["closed"])
    assert opened[["em", "precision", "recall"]].tolist() == [0, 1, 0.5]
    assert table[list(PROBABILITY_COLUMNS)].isna().all(axis=None)
    without = score_table(given.drop(columns="probabilities"))
    pd.testing.assert_frame_equal(without, table)


def test_an_empty_table_keeps_its_columns():
    table = score_table(items())
    assert len(table) == 0
    assert table["closed"].dtype == float


def test_metrics_name_real_columns():
    table = score_table(items(("open", "a", "a", None)))
    assert {column for _, column in METRICS.values()} <= set(table)
    assert {column for pair in PROBABILITY_METRICS.values() for column in pair} == set(PROBABILITY_COLUMNS)


@pytest.mark.parametrize(
    ("gold", "probabilities", "expected"),
    [
        ("yes", {"yes": 0.8, "no": 0.2}, [0.8, 1, 0.8, 1]),
        ("No.", json.dumps({"Yes": 0.8, "No": 0.2}), [0.8, 0, 0.8, 0]),
        ("no", {"yes": 0.1, "no": 0.2, "maybe": 0.7}, [0.1, 0, 0.7, 0]),
        ("left", {"Left": 0.6, "right": 0.4}, [None, None, 0.6, 1]),
        ("no", {"yes": 0.5, "no": 0.5}, [0.5, 0, 0.5, 1]),
        ("no", {"no": 0.5, "yes": 0.5}, [0.5, 0, 0.5, 1]),
        ("both", {"yes": 0.8, "no": 0.2}, [None] * 4),
        ("+", {"+": 0.8, "-": 0.2}, [None] * 4),
        ("no", {"no": 1}, [None, None, 1, 1]),
        ("yes", None, [None] * 4),
        ("yes", "", [None] * 4),
        ("yes", "null", [None] * 4),
        ("yes", float("nan"), [None] * 4),
        ("yes", {}, [None] * 4),
    ],
)
def test_what_probability_metrics_need(gold, probabilities, expected):
    table = score_table(items(("closed", gold, "yes", probabilities)))
    found = [None if np.isnan(value) else value for value in table[list(PROBABILITY_COLUMNS)].iloc[0]]
    assert found == expected


@pytest.mark.parametrize(
    ("probabilities", "named"),
    [
        ("{", "not JSON"),
        ("[0.5]", "must map"),
        ({"yes": 1.2, "no": -0.2}, "'yes' must be in"),
        ({"yes": float("nan"), "no": 1.0}, "'yes' must be in"),
        ({"yes": "0.5", "no": 0.5}, "'yes' must be in"),
        ({"yes": True}, "'yes' must be in"),
        ({"yes": 0.5, "no": 0.2}, "add up to 1"),
    ],
)
def test_bad_probabilities_name_the_item(probabilities, named):
    given = items(("closed", "yes", "yes", None), ("closed", "yes", "yes", probabilities))
    with pytest.raises(RequestError, match=f"item 'q1'.*{named}"):
        score_table(given)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("gold", None, "item 'q1': gold must be text"),
        ("prediction", float("nan"), "item 'q1': prediction must be text"),
        ("type", "close", "item 'q1': type must be .* did you mean closed"),
        ("id", "q0", "'q0' occurs more than once"),
        ("cluster", None, "row 2 has no cluster"),
        ("id", None, "row 2 has no id"),
    ],
)
def test_bad_values_name_the_item(column, value, named):
    given = items(("closed", "yes", "yes", None), ("open", "lung", "lung", None))
    given[column] = [given[column].iloc[0], value]
    with pytest.raises(RequestError, match=named):
        score_table(given)
    with pytest.raises(RequestError, match=f"lack the column.* {column}"):
        score_table(given.drop(columns=column))
