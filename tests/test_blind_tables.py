"""Tables of blind runs: a row of their own, and the paired difference to the sighted twin."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_toy
from test_run_common import do

from medbench.__main__ import main
from medbench.errors import RequestError, WorkError
from medbench.files import digest
from medbench.results.blind import build_blind_table, render_blind
from medbench.results.record import read_record, task_figures
from medbench.results.tables import build_table, render
from medbench.scoring.paired import estimate_paired
from medbench.scoring.stats import cluster_bootstrap_mean, estimate_metrics
from medbench.scoring.vqa import METRICS, PROBABILITY_METRICS

IMAGES = 30
EACH = 4
Scores = dict[tuple[str | None, int], pd.DataFrame]


def scores_of(seed: int, skill: float) -> pd.DataFrame:
    """Scores of made-up answers to four questions an image; images differ much in how hard they are."""
    hard = np.repeat(np.random.default_rng(0).random(IMAGES), EACH)  # the same for every side and seed
    rng = np.random.default_rng(seed)
    right = rng.random(IMAGES * EACH) < np.clip(hard + skill, 0, 1)
    closed = np.arange(IMAGES * EACH) % 2 == 0
    recall = np.clip(hard + skill + 0.05 * rng.standard_normal(len(hard)), 0, 1)
    p_yes, gold = rng.random(len(hard)), (np.arange(len(hard)) // 2) % 2
    table = pd.DataFrame(
        {
            "task": "toy",
            "split": "test",
            "id": [f"q{n}" for n in range(len(hard))],
            "cluster": [f"i{n // EACH}" for n in range(len(hard))],
            "type": np.where(closed, "closed", "open"),
            "profile": "medbench",
            "closed": np.where(closed, right, np.nan),
            **{name: np.where(closed, np.nan, recall) for name in ("em", "precision", "recall", "f1")},
            **dict.fromkeys(("quasi_em", "rouge_l"), np.nan),
            "p_yes": np.where(closed, p_yes, np.nan),
            "gold_is_yes": np.where(closed, gold, np.nan),
            "confidence": np.where(closed, np.maximum(p_yes, 1 - p_yes), np.nan),
            "argmax_right": np.where(closed, (p_yes > 0.5) == gold, np.nan),
        }
    )
    return table.sample(frac=1, random_state=seed)  # rows in any order


def sides(sighted: int = 3, blind: int = 3) -> tuple[list[pd.DataFrame], list[pd.DataFrame]]:
    return [scores_of(s, 0.1) for s in range(sighted)], [scores_of(100 + s, -0.2) for s in range(blind)]


@pytest.mark.parametrize("metric", [*METRICS, *PROBABILITY_METRICS])
def test_each_side_is_what_a_table_says_and_the_difference_is_theirs(metric: str) -> None:
    first, second = sides(3, 2)
    found = estimate_paired(first, second, metric)
    for estimate, tables in ((found.first, first), (found.second, second)):
        expected = estimate_metrics(tables)[metric]
        assert (estimate.n, estimate.clusters) == (expected.n, expected.clusters)
        for name in ("value", "low", "high"):
            assert getattr(estimate, name) == pytest.approx(getattr(expected, name), abs=1e-12)
    assert found.difference.value == pytest.approx(found.first.value - found.second.value, abs=1e-12)
    swapped = estimate_paired(second, first, metric).difference
    assert (swapped.value, swapped.low, swapped.high) == pytest.approx(
        (-found.difference.value, -found.difference.high, -found.difference.low)
    )


def test_the_interval_is_of_the_paired_difference() -> None:
    first, second = sides()
    found = estimate_paired(first, second, "open_recall")
    opened = first[0][first[0]["type"] == "open"].set_index("id")
    one, two = (pd.concat(tables).groupby("id")["recall"].mean() for tables in (first, second))
    gap = (one - two).loc[opened.index]
    # Independently: means of images drawn with replacement, by hand.
    by_image = gap.groupby(opened["cluster"]).agg(["sum", "size"]).to_numpy()
    rng = np.random.default_rng(5)
    drawn = [by_image[rng.integers(0, IMAGES, IMAGES)].sum(0) for _ in range(4000)]
    low, high = np.quantile([total / size for total, size in drawn], [0.025, 0.975])
    assert found.difference.value == pytest.approx(gap.mean())
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=0.01)
    # What two separate samples would give is far wider: hard images are hard for both.
    width = found.difference.high - found.difference.low
    apart = np.hypot(found.first.high - found.first.low, found.second.high - found.second.low)
    assert width < 0.5 * apart
    shuffled = [t.assign(cluster=["x" + c for c in t["cluster"]]) for t in second]
    with pytest.raises(WorkError, match="differ in the cluster of 120 of 120 items"):
        estimate_paired(first, shuffled, "open_recall")
    with pytest.raises(WorkError, match="different items"):
        estimate_paired(first, [t.iloc[1:] for t in second], "open_recall")


def test_the_same_answers_differ_by_nothing() -> None:
    first, _ = sides()
    for metric in (*METRICS, *PROBABILITY_METRICS):
        same = estimate_paired(first, first, metric).difference
        assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.fixture(scope="module")
def base(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    toy = make_toy(tmp_path_factory.mktemp("base"), train=8, test=6)
    return do(toy, tiny, tmp_path_factory.mktemp("base_runs"))


def made(base: Path, out: Path, blind: str | None, seed: int, scores: pd.DataFrame, **changes: Any) -> Path:
    """A run folder as a run would leave it, with made-up scores."""
    record = read_record(base)
    record["spec"] |= {"seed": seed} | ({"blind": blind} if blind else {})
    if "lr" in changes:
        record["spec"]["stages"][0]["training"]["lr"] = changes.pop("lr")
    folder = out / digest(record["spec"])
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("adapter"))
    record |= {"run": folder.name, "seed": seed, "blind": blind, **changes}
    record["tasks"]["toy"] |= task_figures([scores])
    (folder / "spec.json").write_text(json.dumps(record["spec"]))
    (folder / "record.json").write_text(json.dumps(record))
    scores.to_parquet(folder / "scores.parquet")
    return folder


@pytest.fixture(scope="module")
def runs(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Scores]:
    """Three sighted seeds, three blind at the test, two blind in training, and a sighted row without a twin."""
    out = tmp_path_factory.mktemp("made")
    first, second = sides()
    scores: Scores = {(None, seed): table for seed, table in enumerate(first)}
    scores |= {("test", seed): table for seed, table in enumerate(second)}
    scores |= {("train", seed): scores_of(200 + seed, -0.1) for seed in range(2)}
    for (blind, seed), table in scores.items():
        made(base, out, blind, seed, table)
    made(base, out, None, 0, scores_of(300, 0.3), lr=0.5)
    return out, scores


def test_blind_runs_are_never_averaged_with_sighted_ones(runs: tuple[Path, Scores]) -> None:
    out, scores = runs
    table = build_table([out])
    assert [(row.blind, row.seeds) for row in table.rows if "0.01" in str(row.setting.values())] == [
        (None, (0, 1, 2)),
        ("test", (0, 1, 2)),
        ("train", (0, 1)),
    ]
    assert len(table.rows) == 4
    for row in table.rows[:3]:
        own = [table for (blind, _), table in scores.items() if blind == row.blind]
        cell = row.cell("toy", "open_recall")
        assert cell is not None
        assert cell.estimate == estimate_metrics(own)["open_recall"]
    lines = render(table, "md").splitlines()
    column = [word.strip() for word in lines[0].split("|")].index("blind")
    assert [line.split("|")[column].strip() for line in lines[2:6]] == ["-", "test", "train", "-"]
    assert "Blind rows were tested on a blank image" in lines[-1]
    assert set(table.frame()["blind"].fillna("-")) == {"-", "test", "train"}


def test_without_blind_runs_a_table_is_as_before(base: Path) -> None:
    assert "blind" not in render(build_table([base]), "md").casefold()


def test_the_blind_table_pairs_what_differs_in_nothing_else(runs: tuple[Path, Scores]) -> None:
    out, scores = runs
    table = build_blind_table([out])
    assert [(line.blind, line.metric, line.seeds) for line in table.lines] == [
        ("test", "closed_accuracy", (0, 1, 2)),
        ("test", "open_recall", (0, 1, 2)),
        ("train", "closed_accuracy", (0, 1)),
        ("train", "open_recall", (0, 1)),
    ]
    assert (table.alone, table.uneven) == (1, True)
    for line in table.lines:
        one, two = ([scores[blind, seed] for seed in line.seeds] for blind in (None, line.blind))
        assert line.figures == estimate_paired(one, two, line.metric)
        kind, column = METRICS[line.metric]
        a, b = (pd.concat(tables).query(f"type == '{kind}'").groupby("id")[column].mean() for tables in (one, two))
        assert line.figures.difference.value == pytest.approx((a - b).mean())
        clusters = scores[None, 0].set_index("id")["cluster"].loc[a.index]
        hand = cluster_bootstrap_mean(a - b, clusters)
        assert (line.figures.difference.low, line.figures.difference.high) == pytest.approx((hand.low, hand.high))


def test_the_blind_table_in_every_format(runs: tuple[Path, Scores], capsys: pytest.CaptureFixture[str]) -> None:
    out, _ = runs
    built = build_blind_table([out])
    first = built.lines[0].figures

    def printed(*words: str) -> str:
        with pytest.raises(SystemExit) as end:
            main(["table", str(out), "--blind", *words])
        assert end.value.code == 0
        return capsys.readouterr().out

    rows = json.loads(printed("--json"))
    assert len(rows) == 4
    assert [rows[0][name] for name in ("sighted", "blank", "adds", "n", "clusters", "seeds")] == pytest.approx(
        [first.first.value, first.second.value, first.difference.value, 60, 30, 3]
    )
    read = list(csv.DictReader(io.StringIO(printed("--format", "csv"))))
    assert [float(row["adds_low"]) for row in read] == pytest.approx([row["adds_low"] for row in rows])
    text = printed()
    header, _, *body = text.split("\n\n")[0].splitlines()
    assert [word.strip() for word in header.split("|")][-4:-1] == ["sighted", "blank", "image adds"]
    assert len(body) == 4
    assert f"{100 * first.difference.value:+.1f} [{100 * first.difference.low:+.1f}, " in body[0]
    for note in ("paired", "blind train: blank images in training", "Seeds that only one", "left out: 1."):
        assert note in text
    assert r"\toprule" in printed("--format", "latex")
    assert printed("--format", "html").count("<tr>") == 5
    assert {row["metric"] for row in json.loads(printed("--json", "--metrics", "ece,auroc"))} == {"ece", "auroc"}


def test_html_escapes_what_comes_from_records(base: Path, tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    for blind in (None, "test"):
        made(base, tmp_path, blind, 0, scores_of(0, 0.0), method=hostile, backbone=hostile, stages=[[hostile]])
    text = render_blind(build_blind_table([tmp_path]), "html")
    assert "<table>" in text
    assert "<script" not in text


def test_nothing_to_pair_is_a_clear_message(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made(base, tmp_path, None, 0, scores_of(0, 0.0))
    made(base, tmp_path, "test", 1, scores_of(0, 0.0))  # another seed
    made(base, tmp_path, "train", 0, scores_of(0, 0.0), lr=0.7)  # another setting
    with pytest.raises(SystemExit) as end:
        main(["table", str(tmp_path), "--blind"])
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert "nothing here has a blind twin (1 sighted rows, 2 blind ones, 0 runs incomplete); run the command" in err
    with pytest.raises(RequestError, match="did you mean open_recall"):
        build_blind_table([tmp_path], ["open_recal"])


def test_runs_on_other_images_are_no_twins(base: Path, tmp_path: Path) -> None:
    made(base, tmp_path, None, 0, scores_of(0, 0.0))
    data = read_record(base)["data"]
    data["toy/test"]["images_digest"] = "0" * 64
    made(base, tmp_path, "test", 0, scores_of(0, 0.0), data=data)
    with pytest.raises(WorkError, match="had different items or images of toy/test: no twins"):
        build_blind_table([tmp_path])


def test_twins_of_other_training_are_told_apart(base: Path, tmp_path: Path) -> None:
    """A blind test that trained for itself is noted; one on other training images is refused; orphans are counted."""
    weights = read_record(base)["weights"]
    made(base, tmp_path / "a", None, 0, scores_of(0, 0.0))
    made(base, tmp_path / "a", "test", 0, scores_of(0, 0.0), weights=weights | {"adapter": "other"})
    made(base, tmp_path / "a", "test", 0, scores_of(0, 0.0), lr=0.7)
    table = build_blind_table([tmp_path / "a"])
    assert (table.retrained, table.orphans, table.alone) == (True, 1, 0)
    text = render_blind(table, "md")
    assert "not bit for bit the sighted one's" in text
    assert "Blind rows without a sighted twin, left out: 1." in text
    data = read_record(base)["data"]
    made(base, tmp_path / "b", None, 0, scores_of(0, 0.0))
    data["toy/train"]["images_digest"] = "0" * 64
    made(base, tmp_path / "b", "train", 0, scores_of(0, 0.0), data=data)
    with pytest.raises(WorkError, match="had different items or images of toy/train: no twins"):
        build_blind_table([tmp_path / "b"])


def test_twins_with_other_items_are_named(base: Path, tmp_path: Path) -> None:
    one = made(base, tmp_path, None, 0, scores_of(0, 0.0))
    scores = scores_of(0, 0.0)
    other = made(base, tmp_path, "test", 0, scores)
    scores.iloc[:-3].to_parquet(other / "scores.parquet")
    with pytest.raises(WorkError, match=f"^{one} and {other}, task toy: the two sides have different items"):
        build_blind_table([tmp_path])
