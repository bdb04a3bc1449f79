"""`medbench score`: files of answers that any system made, bare pairs, and the same answers under every rule."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Toy
from test_scoring_common import Call, Result, caller, items_of, said_by_gold, write_lines

from medbench.errors import RequestError
from medbench.scoring import KEYS, profile_names, score_pairs
from medbench.scoring.jsonl import read_jsonl, read_predictions

PAIRS = [
    {"gold": "no", "prediction": "Normal.", "type": "closed"},
    {"gold": "left lung", "prediction": "left left left", "type": "open"},
    {"gold": "yes", "prediction": "", "type": "closed", "note": "ignored"},
    {"gold": "صدر", "prediction": "\u202eصدر\x00", "type": "open"},
]


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    return caller(capfd)


@pytest.fixture
def answers(toy: Toy, tmp_path: Path) -> Path:
    return write_lines(tmp_path / "answers.jsonl", said_by_gold(toy))


def scored(call: Call, toy: Toy, file: Path, *more: str) -> Result:
    return call("score", file, "--task", toy.card, "--data-root", toy.root, *more)


def refused(result: Result, message: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(f"medbench: .*{message}.*\n", result.err), result.err


def test_a_jsonl_and_a_parquet_of_the_same_answers_score_the_same(call: Call, toy: Toy, answers: Path) -> None:
    found = json.loads(scored(call, toy, answers, "--json").out)
    assert {key: found[key] for key in ("task", "split", "profile", "n", "clusters")} == {
        **{"task": "toy", "split": "test", "profile": "medbench"},
        **{"n": 24, "clusters": 12},
    }
    assert found["metrics"]["closed_accuracy"]["value"] == 1
    assert {"value", "low", "high", "n", "clusters"} <= found["metrics"]["open_recall"].keys()
    table = answers.with_suffix(".parquet")
    pd.DataFrame(said_by_gold(toy)).astype({"id": str}).to_parquet(table)
    assert json.loads(scored(call, toy, table, "--json").out) == found
    renamed = table.rename(table.with_name("answers"))  # known by its first bytes
    assert json.loads(scored(call, toy, renamed, "--json").out) == found


def test_the_order_of_the_lines_is_nothing(call: Call, toy: Toy, answers: Path) -> None:
    other = write_lines(answers.with_name("other.jsonl"), said_by_gold(toy)[::-1])
    assert scored(call, toy, other, "--json").out == scored(call, toy, answers, "--json").out


def test_all_profiles_beside_one_another(call: Call, toy: Toy, tmp_path: Path) -> None:
    rows = said_by_gold(toy)
    for row in rows:
        row["prediction"] = f"{row['prediction']}, no doubt."
    file = write_lines(tmp_path / "verbose.jsonl", rows)
    found = json.loads(scored(call, toy, file, "--profile", "all", "--json").out)
    assert list(found["profiles"]) == profile_names()
    for name, figures in found["profiles"].items():
        alone = json.loads(scored(call, toy, file, "--profile", name, "--json").out)
        assert alone["metrics"] == figures["metrics"]
        assert alone["profile"] == name
    closed = {name: figures["metrics"]["closed_accuracy"]["value"] for name, figures in found["profiles"].items()}
    golds = [item.answer for item in items_of(toy) if item.closed]
    no = golds.count("No") / len(golds)
    # "Yes, no doubt.": both words for medbench and medevalkit, right by substring, no whole-text match; HELM has none.
    assert closed == {"helm": None, "llava_med": 1, "lmms_eval": 0, "medbench": no, "medevalkit": no}
    assert found["moved"]["closed_accuracy"] == {"lowest": "lmms_eval", "highest": "llava_med", "difference": 1}
    assert "reason" in found["profiles"]["helm"]["metrics"]["closed_accuracy"]
    assert found["profiles"]["helm"]["metrics"]["f1"]["n"] == 24  # HELM knows no closed and open
    text = scored(call, toy, file, "--profile", "all").out
    lines = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    assert lines["metric"] == [*profile_names(), "moved"]
    assert lines["closed_accuracy"] == ["-", "100.0", "0.0", f"{100 * no:.1f}", f"{100 * no:.1f}", "100.0"]


def test_the_accuracy_over_all_questions_is_the_mean_of_both_types(call: Call, toy: Toy, answers: Path) -> None:
    for name in ("medevalkit", "lmms_eval"):
        metrics = json.loads(scored(call, toy, answers, "--profile", name, "--json").out)["metrics"]
        both = [metrics[key] for key in ("closed_accuracy", "open_exact_match")]
        assert metrics["accuracy"]["value"] == pytest.approx(sum(m["value"] * m["n"] for m in both) / 24)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[2:], r"24 items: 2 missing \('\d+', '\d+'\), 0 unknown, 0 duplicate ids"),
        (lambda rows: [*rows, *rows[:1] * 2], r"0 missing, 0 unknown, 1 duplicate \('49'\) ids"),
        (lambda rows: [*rows, {"id": "x" * 99, "prediction": ""}], r"0 missing, 1 unknown \('x{40}\.\.\.'\), 0 dup"),
        (lambda rows: [], r"24 missing \('49', '50', '51', \.\.\.\), 0 unknown"),
        (lambda rows: [{"prediction": "yes"}, *rows[1:]], r"line 1: has no key 'id'; keys: 'prediction'"),
        (lambda rows: [*rows[:4], {"id": 7}], r"line 5: has no key 'prediction'"),
        (lambda rows: [*rows[:2], {"id": 51, "prediction": None}], r"line 3 \(id '51'\): 'prediction' .* nothing"),
        (lambda rows: [{"id": 49, "prediction": 7}], r"line 1 \(id '49'\): 'prediction' must be text, got int"),
        (lambda rows: [{"id": 1.5, "prediction": ""}], r"line 1: 'id' must be text or a whole number, got float"),
        (lambda rows: [{"id": True, "prediction": ""}], r"line 1: 'id' must be text or a whole number, got bool"),
        (lambda rows: [{"id": 1, "prediction": "", "probabilities": [1]}], "line 1 .*'probabilities' must map each"),
        (lambda rows: [rows[0] | {"probabilities": {"yes": 2, "no": -1}}, *rows[1:]], r"item '49': .* in \[0, 1\]"),
        (lambda rows: [["49", "yes"]], r"line 1: expected an object \{...\}, got list"),
    ],
)
def test_answers_that_do_not_fit_are_named(call: Call, toy: Toy, tmp_path: Path, change: Any, message: str) -> None:
    file = write_lines(tmp_path / "bad.jsonl", change(said_by_gold(toy)))
    refused(scored(call, toy, file), message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"id": 1, "prediction": "x"', r"line 3: not JSON \(.*, character \d+\)"),
        (b'{"id": 1, "prediction": "\x00"}', r"line 3: not JSON \(Invalid control character"),
        (b'{"id": 1, "prediction": "\xff"}', r"line 3: not UTF-8 \(byte 26\)"),
        (b"", r"line 3: not JSON"),
        (b"[" * 100_000, r"line 3: not readable JSON"),
        (b'{"id": ' + b"9" * 10_000 + b"}", r"line 3: not readable JSON"),
    ],
)
def test_a_broken_line_is_named_by_its_number(call: Call, toy: Toy, answers: Path, line: bytes, message: str) -> None:
    lines = answers.read_bytes().splitlines()
    answers.write_bytes(b"\n".join([*lines[:2], line, *lines[2:]]))
    refused(scored(call, toy, answers), message)


def test_odd_but_whole_files_are_read(call: Call, toy: Toy, answers: Path) -> None:
    """A byte order mark, Windows line ends, NUL and U+2028 in a text, 1 MB, half a character, empty lines."""
    rows = said_by_gold(toy)
    rows[1]["prediction"] = "HALF"
    rows[0]["prediction"] = "Yes\x00\u2028 " + "\u202eכן " * 200_000
    text = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n\r\n\n"
    answers.write_bytes("\ufeff".encode() + text.replace("HALF", "\\ud800").encode())
    assert len(read_jsonl(answers)) == 24
    read = read_predictions(answers, "toy", "test")["prediction"]
    assert (read[0], read[1]) == (rows[0]["prediction"], "\ud800")
    assert scored(call, toy, answers, "--profile", "all", "--json").code == 0


def test_probabilities_are_used_where_there_are_any(call: Call, toy: Toy, tmp_path: Path) -> None:
    rows = said_by_gold(toy)
    for row in rows:
        if row["prediction"] in ("Yes", "No"):
            said = row["prediction"].lower()
            row["probabilities"] = {said: 0.75, "no" if said == "yes" else "yes": 0.25}
    metrics = json.loads(scored(call, toy, write_lines(tmp_path / "p.jsonl", rows), "--json").out)["metrics"]
    assert (metrics["auroc"]["value"], metrics["choice_accuracy"]["value"]) == (1, 1)
    assert metrics["ece"]["value"] == pytest.approx(0.25)
    plain = json.loads(scored(call, toy, write_lines(tmp_path / "q.jsonl", said_by_gold(toy)), "--json").out)["metrics"]
    assert plain["auroc"]["value"] is None
    assert plain["auroc"]["reason"]


@pytest.mark.parametrize("profile", [*profile_names(), "all"])
def test_pairs_are_scored_as_in_python(call: Call, tmp_path: Path, profile: str) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    result = call("score", "--pairs", file, "--profile", profile, "--json")
    assert (result.code, result.err) == (0, "")
    names = profile_names() if profile == "all" else [profile]
    expected = {name: score_pairs(PAIRS, name) for name in names}
    assert json.loads(result.out) == (expected if profile == "all" else expected[profile])
    assert all(tuple(row) == KEYS for rows in expected.values() for row in rows)
    shown = call("score", "--pairs", file, "--profile", profile).out.splitlines()
    assert len(shown) == 2 + len(PAIRS) * len(names)


def test_medevalkit_as_it_prints_its_keys(call: Call, toy: Toy, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", PAIRS)
    words = ("score", "--pairs", file, "--profile", "medevalkit", "--json")
    plain, printed = (json.loads(call(*words, *more).out)[1] for more in ((), ("--as-reported",)))
    assert (printed["precision"], printed["recall"], printed["f1"]) == (
        plain["f1"],
        plain["precision"],
        plain["recall"],
    )
    rows = said_by_gold(toy)
    rows[1]["prediction"] += " and more"
    answers = write_lines(tmp_path / "answers.jsonl", rows)
    right, rotated = (
        json.loads(scored(call, toy, answers, "--profile", "medevalkit", "--json", *more).out)["metrics"]
        for more in ((), ("--as-reported",))
    )
    assert rotated["open_recall"] == right["open_precision"] != right["open_recall"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--profile", "llava"), "unknown profile 'llava': did you mean llava_med"),
        (("--profile", "helm", "--as-reported"), "profile helm prints .*; as reported: medevalkit"),
        (("--profile", "all", "--as-reported"), "--as-reported: name the profile"),
        (("--task", "vqa_rad"), "--pairs needs no predictions and no --task"),
    ],
)
def test_a_wrong_request_for_pairs_is_one_line(call: Call, tmp_path: Path, words: tuple[str], message: str) -> None:
    refused(call("score", "--pairs", write_lines(tmp_path / "pairs.jsonl", PAIRS), *words), message)


def test_a_bad_pair_is_named_by_its_line(call: Call, tmp_path: Path) -> None:
    file = write_lines(tmp_path / "pairs.jsonl", [PAIRS[0], PAIRS[1] | {"type": "opn"}])
    refused(call("score", "--pairs", file), "pair in row 2: 'type' must be .*did you mean open")
    refused(call("score", "--pairs", tmp_path / "gone.jsonl"), "gone.jsonl: no such file")
    refused(call("score", "--pairs", tmp_path), "is a folder, expected a file")
    refused(call("score", file), "score needs predictions and --task, or --pairs")
    with pytest.raises(RequestError, match="line 1"):
        read_jsonl(write_lines(tmp_path / "list.jsonl", [["yes"]]))
