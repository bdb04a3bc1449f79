"""The metrics of reports: golden values, equality with the libraries and with plain references, and any text at all."""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_report_common import GOLD, SAID, frame

from medbench.errors import RequestError, WorkError
from medbench.scoring import report, report_rouge
from medbench.scoring.bootstrap import cluster_bootstrap
from medbench.scoring.kinds import estimate_kind
from medbench.scoring.report import COLUMNS, METRICS, implementations, score
from medbench.scoring.report_bleu import COUNTS, BleuStatistic, bleu_counts, sentence_bleu
from medbench.scoring.report_cider import cider_d
from medbench.scoring.report_rouge import common_length, rouge
from medbench.scoring.report_text import words

estimate = partial(estimate_kind, "report")

BINDING = (
    *("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_1", "rouge_2", "rouge_l", "meteor", "cider_d"),
    "finding_hallucination",
)
WORDS = st.lists(st.sampled_from(["no", "heart", "clear", "lungs", "effusion", "."]), max_size=12)
CORPUS = st.lists(st.tuples(WORDS.filter(bool), WORDS), min_size=1, max_size=6)


def test_golden_values() -> None:
    values = {name: found.value for name, found in estimate([score(frame([GOLD], [SAID]))], resamples=0).items()}
    assert values["bleu_4"] == pytest.approx(0.2282, abs=5e-5)
    assert values["rouge_l"] == pytest.approx(0.6897, abs=5e-5)
    assert set(BINDING) <= set(METRICS)
    assert set(implementations()) >= set(BINDING)


@given(CORPUS)
@settings(max_examples=60, deadline=None)
def test_corpus_bleu_is_nltks(pairs: list[tuple[list[str], list[str]]]) -> None:
    from nltk.translate.bleu_score import corpus_bleu

    counts = [bleu_counts(*pair) for pair in pairs]
    for order in (1, 2, 3, 4):
        ours = BleuStatistic(order)(*([c[name] for c in counts] for name in COUNTS))(np.ones((1, len(pairs))))[0]
        theirs = corpus_bleu([[g] for g, _ in pairs], [p for _, p in pairs], weights=(1 / order,) * order)
        assert ours == pytest.approx(float(theirs), abs=1e-12)


@given(CORPUS, st.lists(st.integers(0, 3), min_size=6, max_size=6))
@settings(max_examples=60, deadline=None)
def test_a_weighted_corpus_is_one_with_repeats(pairs: list[tuple[list[str], list[str]]], drawn: list[int]) -> None:
    weights = drawn[: len(pairs)]
    counts = [bleu_counts(*pair) for pair in pairs]
    repeated = [c for c, times in zip(counts, weights, strict=True) for _ in range(times)]
    if not repeated:
        return
    for order in (1, 4, None):
        statistic = BleuStatistic(order)
        weighted = statistic(*([c[n] for c in counts] for n in COUNTS))(np.array([weights], dtype=float))
        plain = statistic(*([c[n] for c in repeated] for n in COUNTS))(np.ones((1, len(repeated))))
        assert weighted == pytest.approx(plain, abs=1e-12)


@given(WORDS.filter(bool), WORDS.filter(bool))
@settings(max_examples=60, deadline=None)
def test_sentence_bleu_is_nltks(gold: list[str], prediction: list[str]) -> None:
    from nltk.translate.bleu_score import SmoothingFunction
    from nltk.translate.bleu_score import sentence_bleu as theirs

    smoothed = SmoothingFunction().method1
    for order, value in zip((1, 2, 3, 4), sentence_bleu(bleu_counts(gold, prediction)), strict=True):
        weights = (1 / order,) * order
        # NLTK smooths all four orders only when it looks at four; one at a time gives the same.
        assert value == pytest.approx(float(theirs([gold], prediction, weights, smoothed)), abs=1e-12)


@given(WORDS, WORDS)
@settings(max_examples=60, deadline=None)
def test_long_reports_have_the_packages_rouge(gold: list[str], prediction: list[str]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    texts = " ".join(gold), " ".join(prediction)
    found = RougeScorer(["rouge1", "rouge2", "rougeL"]).score(*texts)
    expected = [found[name].fmeasure for name in ("rouge1", "rouge2", "rougeL")]
    for table in (10**9, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(report_rouge, "_TABLE", table)
            assert list(rouge(*texts).values()) == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.integers(0, 3), max_size=30), st.lists(st.integers(0, 3), max_size=30))
@settings(deadline=None)
def test_common_length_is_the_tables(first: list[int], second: list[int]) -> None:
    table = np.zeros((len(first) + 1, len(second) + 1), dtype=int)
    for i, a in enumerate(first, start=1):
        for j, b in enumerate(second, start=1):
            table[i, j] = table[i - 1, j - 1] + 1 if a == b else max(table[i - 1, j], table[i, j - 1])
    assert common_length([str(x) for x in first], [str(x) for x in second]) == table[-1, -1]


def plain_cider(golds: list[list[str]], predictions: list[list[str]]) -> list[float]:
    """CIDEr-D from the paper, as dense vectors over all n-grams of an order; every length penalty by itself."""
    scores = np.zeros(len(golds))
    for n in (1, 2, 3, 4):

        def grams(tokens: list[str], n: int = n) -> list[tuple[str, ...]]:
            return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]

        names = sorted({g for text in (*golds, *predictions) for g in grams(text)})
        df = {g: sum(g in grams(text) for text in golds) for g in names}
        idf = np.array([math.log(len(golds) / max(1, df[g])) for g in names])
        for k, (gold, said) in enumerate(zip(golds, predictions, strict=True)):
            wanted, given_ = (np.array([Counter(grams(t))[g] for g in names]) * idf for t in (gold, said))
            norms = np.linalg.norm(wanted) * np.linalg.norm(given_)
            penalty = math.exp(-((len(said) - len(gold)) ** 2) / 72)
            scores[k] += 10 / 4 * penalty * float(np.minimum(wanted, given_) @ wanted) / norms if norms else 0
    return list(scores)


@given(CORPUS.filter(lambda pairs: len(pairs) > 1))
@settings(max_examples=60, deadline=None)
def test_cider_is_the_papers(pairs: list[tuple[list[str], list[str]]]) -> None:
    texts = [[" ".join(side) for side in pair] for pair in pairs]
    golds, predictions = [g for g, _ in texts], [p for _, p in texts]
    expected = plain_cider([words(g) for g in golds], [words(p) for p in predictions])
    assert list(cider_d(golds, predictions)) == pytest.approx(expected, abs=1e-9)


def test_cider_by_hand() -> None:
    # Two references share nothing, so each n-gram weighs log 2. The second prediction has 3 of 4 words and 1 of 3
    # bigrams: (3/4 + 1/3 + 0 + 0) / 4 * 10. The first has no 4-gram, so three orders of four are 1.
    golds = ["no effusion .", "heart is large now"]
    found = cider_d(golds, ["no effusion .", "heart is big now"])
    assert list(found) == pytest.approx([7.5, 10 / 4 * (3 / 4 + 1 / 3)])
    # Six words more: exp(-36/72); the reference's words are 4 of 10, each once: cosine 4 / (2 * sqrt(10)).
    (_, longer) = cider_d(["x", "a b c d"], ["x", "a b c d e f g h i j"])
    cosines = [k / math.sqrt(k * (k + 6)) for k in (4, 3, 2, 1)]
    assert longer == pytest.approx(10 / 4 * math.exp(-0.5) * sum(cosines))
    # Repeating a right word does not help: counts are clipped at the reference's.
    assert cider_d(["x", "a b c d"], ["x", "a a a a"])[1] < cider_d(["x", "a b c d"], ["x", "a b c d"])[1] / 4


def test_cider_of_one_report_is_undefined() -> None:
    found = estimate([score(frame([GOLD], [SAID]))], resamples=0)["cider_d"]
    assert found.value is None
    assert "one reference" in str(found.reason)


@pytest.mark.parametrize("nothing", ["", ".", " ... ", "\n\t", "!?", "\x00", "。"])
def test_a_report_without_a_word_scores_0_and_counts(nothing: str) -> None:
    table = score(frame([GOLD, SAID], [GOLD, nothing]))
    row = table.iloc[1]
    scored = [name for name in COLUMNS if name.startswith(("sentence_bleu", "rouge")) or name == "cider_d"]
    assert (row[scored] == 0).all()
    assert row["empty"] == 1
    found, alone = estimate([table], resamples=0), estimate([score(frame([GOLD], [GOLD]))], resamples=0)
    assert found["rouge_l"].n == 2
    assert found["rouge_l"].value == 0.5
    assert found["empty_share"].value == 0.5
    assert found["bleu_1"].value < alone["bleu_1"].value == 1  # type: ignore[operator]


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=12))
@example([("", "")])
@example([(".", "."), ("No effusion", "\x00")])
@example([("لا يوجد انصباب", "لا يوجد انصباب"), ("\u202e heart", "İstanbul ß ﬁ")])
@settings(max_examples=25, deadline=None)
def test_any_text_is_scored(pairs: list[tuple[str, str]]) -> None:
    table = score(frame([g for g, _ in pairs], [p for _, p in pairs]))
    assert len(table) == len(pairs)
    numbers = table[[name for name in COLUMNS if name not in ("meteor", "cider_d")]].to_numpy()
    assert (numbers >= 0).all() and np.isfinite(numbers).all()
    for name, found in estimate([table], resamples=20).items():
        assert found.value is None or 0 <= found.value <= (10 if name == "cider_d" else 1) + 1e-9, name
        assert found.value is not None or found.reason


@pytest.mark.parametrize("piece", ["effusion ", "a", "No heart enlarged, ", "é", "y", "1.5 "])
def test_a_megabyte_is_scored(piece: str) -> None:
    long = piece * (1_000_000 // len(piece))
    table = score(frame([GOLD, SAID], [SAID, long]))
    assert table["words"].iloc[1] == len(words(long))
    assert table[[f"rouge_{n}" for n in (1, 2)]].iloc[0].to_list() == pytest.approx([0.7586, 0.3704], abs=5e-5)


@given(st.permutations(range(5)))
@settings(max_examples=10, deadline=None)
def test_the_order_of_the_reports_does_not_matter(order: list[int]) -> None:
    golds = [f"{GOLD} {'Small effusion. ' * n}" for n in range(5)]
    said = [f"{SAID} {'Opacity. ' * (n % 2)}" for n in range(5)]
    items = frame(golds, said)
    first, second = (estimate([score(table)], resamples=50) for table in (items, items.iloc[order]))
    for name in METRICS:
        one, two = first[name], second[name]
        assert (one.value, one.low, one.high) == pytest.approx((two.value, two.low, two.high), nan_ok=True), name


def test_intervals_are_those_of_the_clustered_bootstrap() -> None:
    generator = random.Random(0)
    golds = [" ".join(generator.choices(["no", "heart", "clear", "effusion", "."], k=9)) for _ in range(40)]
    said = generator.sample(golds, 40)
    table = score(frame(golds, said, clusters=[f"study {n // 2}" for n in range(40)]))
    found = estimate([table], resamples=300, seed=3)["bleu_2"]
    assert (found.n, found.clusters) == (40, 20)
    statistic = BleuStatistic(2)(*(table[name] for name in COUNTS))
    by_items = cluster_bootstrap(lambda w: statistic(w), table["cluster"], resamples=300, seed=3)
    assert (found.value, found.low, found.high) == pytest.approx((by_items.value, by_items.low, by_items.high))


def test_seeds_are_averaged() -> None:
    tables = [score(frame([GOLD, SAID], said)) for said in ([GOLD, SAID], [SAID, GOLD])]
    each = [estimate([table], resamples=0) for table in tables]
    for name, found in estimate(tables, resamples=0).items():
        if found.value is not None:
            assert found.value == pytest.approx(np.mean([one[name].value for one in each])), name


def test_wrong_input_is_named() -> None:
    items = frame([GOLD, SAID], [SAID, GOLD])
    with pytest.raises(RequestError, match="profile helm has no rule for reports"):
        score(items, "helm")
    with pytest.raises(RequestError, match=r"lack the column\(s\) gold"):
        score(items.drop(columns="gold"))
    with pytest.raises(RequestError, match="item id 'x' occurs more than once"):
        score(items.assign(id="x"))
    with pytest.raises(RequestError, match=r"item 'r1': prediction must be text, got nothing \(null\)"):
        score(items.assign(prediction=[SAID, None]))
    with pytest.raises(WorkError, match="no score table"):
        estimate([])


def test_the_committed_sanity_table_is_right(shared: Path) -> None:
    """The real test reports go through; maxima and the level of chance are those of the committed table."""
    from medbench.catalog import Catalog, Settings
    from medbench.data.load import load_items

    items = load_items(Catalog(Settings()).task("iu_xray_report"), "test", shared).items
    golds = [item.answer for item in items]
    clusters = [item.image.key for item in items]
    shuffled = random.Random(0).sample(golds, len(golds))
    found = [estimate([score(frame(golds, p, clusters))], resamples=0) for p in (golds, shuffled)]
    committed = Path(__file__).parent.parent / "results" / "sanity" / "iu_xray_reports.md"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in committed.read_text().splitlines()]
    shown = {row[0]: [cell.split()[0] for cell in row[1:3]] for row in rows if len(row) == 5 and row[0] in METRICS}
    maxima = {"cider_d": 10.0, "finding_hallucination": 0.0, "hallucinating_share": 0.0, "empty_share": 0.0}
    for name in METRICS:
        if name != "meteor":  # depends on a WordNet that may or may not be there
            assert found[0][name].value == pytest.approx(maxima.get(name, 1.0)), name
            assert [f"{one[name].value:.3f}" for one in found] == shown[name], name
            assert found[0][name].n == 590
    assert report.PROFILES == ("medbench",)
