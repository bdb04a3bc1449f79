"""METEOR: NLTK's figure with a WordNet in a folder, and a reason without one (the real WordNet is not at hand)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import nltk.data
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report_common import GOLD, SAID, frame, write_wordnet

from medbench.errors import WorkError
from medbench.scoring import report_meteor
from medbench.scoring.kinds import estimate_kind
from medbench.scoring.report import check_resources, implementations, score
from medbench.scoring.report_meteor import load_meteor

estimate = partial(estimate_kind, "report")

SYNSETS = [("liquid", "fluid", "effusion"), ("opacity", "density", "shadow")]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No WordNet of this machine, and none remembered."""
    monkeypatch.setattr(nltk.data, "path", [])
    load_meteor.cache_clear()
    yield
    load_meteor.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nltk.data, "path", [str(folder)])
    return write_wordnet(folder / "corpora" / "wordnet", SYNSETS)


def test_without_wordnet_it_is_null_with_a_reason_said_beforehand() -> None:
    (line,) = check_resources()
    assert "meteor" in line and "nltk.downloader wordnet" in line
    found = estimate([score(frame([GOLD], [SAID]))], resamples=0)["meteor"]
    assert found.value is None
    assert "WordNet is not installed" in str(found.reason)
    assert "not computed" in implementations()["meteor"]


def test_with_wordnet_synonyms_match(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    assert check_resources() == []
    table = score(frame(["small fluid seen", "small fluid seen"], ["small liquid seen", "small shadow seen"]))
    # All three words match in one chunk: (1 - .5 * (1/3)^3) * 1. Two of three in two chunks: (1 - .5) * 2/3.
    assert table["meteor"].to_list() == pytest.approx([1 - 0.5 / 27, 0.5 * 2 / 3])
    assert "WordNet 0.1" in implementations()["meteor"]
    # NLTK looks for the synonyms of stems: "effusion" has become "effus" before WordNet is asked.
    assert score(frame(["fluid"], ["effusion"]))["meteor"].to_list() == [0.0]


@given(*[st.lists(st.sampled_from(["no", "fluid", "effusions", "shadow", "densities", "."]), max_size=8)] * 2)
@settings(max_examples=50, deadline=None)
def test_it_is_nltks(gold: list[str], prediction: list[str]) -> None:
    from nltk.translate.meteor_score import single_meteor_score

    class Reader:
        """Synonyms of a list, as NLTK asks for them."""

        def synsets(self, word: str) -> list[object]:
            stem = word.removesuffix("s")
            return [_Synset(names) for names in SYNSETS if stem in names or word in names]

    ours = report_meteor.Meteor(Reader(), "a list").score(gold, prediction)
    assert ours == (single_meteor_score(gold, prediction, wordnet=Reader()) if gold and prediction else 0.0)


class _Synset:
    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def lemmas(self) -> list[object]:
        return [type("Lemma", (), {"name": lambda self, n=name: n})() for name in self.names]


def test_a_damaged_wordnet_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = install(tmp_path, monkeypatch)
    (folder / "index.noun").write_text("effusion n one\n")
    with pytest.raises(WorkError, match=r"WordNet in .* cannot be read"):
        score(frame([GOLD], [SAID]))


@pytest.mark.parametrize("text", ["y" * 1_000_000, "y " * 300_000, "\u0345" * 5000])
def test_long_words_are_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    install(tmp_path, monkeypatch)
    meteor = load_meteor()
    assert meteor is not None
    value = meteor.score(["no", "effusion"], text.split())
    assert not math.isnan(value) and 0 <= value <= 1
