"""`medbench compare`: which runs it takes, what it says of them, and why it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_compare_common import OTHER, answers, make_record, run, scores, write_run
from test_report_common import frame

from medbench.__main__ import main
from medbench.errors import RequestError, WorkError
from medbench.results.compare import Comparisons, compare_methods
from medbench.results.compare_text import render_comparisons
from medbench.results.matching import Where
from medbench.scoring.analytic import clustered_se, minimal_detectable_effect
from medbench.scoring.paired import estimate_paired
from medbench.scoring.permutation import holm, sign_flip_test
from medbench.scoring.report import score as score_reports
from medbench.scoring.stats import metric_values


def compared(
    out: Path, first: str = "lora", others: str = "goat", where: tuple[Where, ...] = (), metrics: str = "all"
) -> Comparisons:
    return compare_methods([out], first, others.split(","), "toy", metrics=metrics.split(","), where=where)


def by_metric(found: Comparisons) -> dict[str, Any]:
    return {line.metric: line for line in found.lines}


@pytest.fixture(scope="module")
def tables() -> dict[tuple[str, int], pd.DataFrame]:
    skills = {"lora": 0.15, "goat": 0.0, "dora": -0.1}
    names = [(name, seed) for name in skills for seed in range(3)]
    return {(name, seed): answers(10 * k + 7, skills[name]) for k, (name, seed) in enumerate(names)}


@pytest.fixture(scope="module")
def runs(tables: dict[tuple[str, int], pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three methods; `lora` with three seeds, `goat` with seeds 0 to 2 but 1, `dora` with three."""
    out = tmp_path_factory.mktemp("runs")
    for (name, seed), table in tables.items():
        if (name, seed) != ("goat", 1):
            run(out, name, seed, table)
    return out


def test_every_figure_is_what_its_definition_says(runs: Path, tables: dict[tuple[str, int], pd.DataFrame]) -> None:
    found = by_metric(compared(runs))
    assert set(found) == {
        *("closed_accuracy", "open_recall", "open_precision", "open_f1", "open_exact_match"),
        *("choice_accuracy", "auroc", "ece"),
    }
    one, two = ([tables[name, seed] for seed in (0, 2)] for name in ("lora", "goat"))
    for metric, line in found.items():
        assert line.first.seeds == line.second.seeds == (0, 2)
        assert line.tested.figures == estimate_paired(one, two, metric)
        values = [metric_values(a)[metric] - metric_values(b)[metric] for a, b in zip(one, two, strict=True)]
        assert line.tested.figures.difference.value == pytest.approx(np.mean(values), abs=1e-12)
        assert line.seed_sd == pytest.approx(np.std(values, ddof=1))
        assert line.detectable == minimal_detectable_effect(line.tested.se)
    both = [pd.concat(side).query("type == 'open'").groupby("id")["recall"].mean() for side in (one, two)]
    clusters = one[0].set_index("id")["cluster"].loc[both[0].index]
    recall, apart = found["open_recall"], both[0] - both[1]
    assert recall.tested.se == pytest.approx(clustered_se(apart, clusters))
    assert recall.tested.flip == sign_flip_test(apart, clusters)
    assert (recall.p, recall.verdict) == (recall.tested.flip.p, "better")
    assert compared(runs).unused == ("lora 1",)


def test_swapping_the_methods_turns_the_verdict_and_nothing_else(runs: Path) -> None:
    forth, back = by_metric(compared(runs)), by_metric(compared(runs, "goat", "lora"))
    turned = {"better": "worse", "worse": "better", "not separable": "not separable"}
    for metric, line in forth.items():
        other = back[metric]
        assert (other.p, other.verdict) == (line.p, turned[line.verdict])
        assert other.detectable == pytest.approx(line.detectable)
        assert other.tested.figures.difference.value == pytest.approx(-line.tested.figures.difference.value)


def test_what_is_no_mean_over_items_has_no_p_but_a_reason(runs: Path) -> None:
    for metric, line in by_metric(compared(runs)).items():
        if metric in ("auroc", "ece"):
            assert (line.p, line.tested.flip) == (None, None)
            assert line.tested.reason == f"{metric} is no mean over items: no sign-flip test"
            assert line.tested.figures.difference.low is not None
            assert line.tested.se > 0
        else:
            assert (line.tested.reason, line.p is None) == (None, False)


def test_holm_is_over_all_comparisons_of_a_metric(runs: Path) -> None:
    found = compared(runs, "lora", "goat,dora").lines
    for metric in {line.metric for line in found} - {"auroc", "ece"}:
        lines = [line for line in found if line.metric == metric]
        assert [line.second.row.method for line in lines] == ["goat", "dora"]
        assert [line.p for line in lines] == holm([line.tested.flip.p for line in lines])


def test_a_lower_calibration_error_is_the_better_one(tmp_path: Path) -> None:
    good = answers(1)
    closed = good["type"] == "closed"
    sure = good.assign(confidence=good["confidence"].where(~closed, 0.99), argmax_right=np.where(closed, 1.0, np.nan))
    run(tmp_path, "lora", 0, sure)
    run(tmp_path, "goat", 0, sure.assign(argmax_right=np.where(closed, 0.0, np.nan)))
    line = by_metric(compared(tmp_path, metrics="ece"))["ece"]
    assert line.tested.figures.difference.value < 0
    assert line.verdict == "better"


def test_few_images_that_differ_are_counted_exactly(tmp_path: Path) -> None:
    right = np.arange(80) % 3 > 0
    other = right.copy()
    other[[0, 6, 12, 18, 24]] = True  # each of another image, all were wrong
    assert not right[[0, 6, 12, 18, 24]].any()
    run(tmp_path, "lora", 0, scores(other, np.ones(4)))
    run(tmp_path, "goat", 0, scores(right, np.ones(4)))
    found = by_metric(compared(tmp_path))
    line = found["closed_accuracy"]
    assert (line.tested.flip.exact, line.tested.flip.patterns, line.p) == (True, 2**5, 2 / 2**5)
    assert line.verdict == "not separable"
    assert "0.0625 (exact)" in render_comparisons(compared(tmp_path))
    same = found["open_recall"]
    assert (same.p, same.verdict, same.detectable) == (1, "not separable", None)


def test_one_seed_says_that_training_variance_is_unknown(tmp_path: Path, runs: Path) -> None:
    for name in ("lora", "goat"):
        run(tmp_path, name, 0, answers(len(name)))
    found = compared(tmp_path)
    assert {line.seed_sd for line in found.lines} == {None}
    assert "training variance unknown" in render_comparisons(found)
    text = render_comparisons(compared(runs))
    assert "training variance unknown" not in text
    assert "Seeds that only one side has are left out: lora 1." in text


def test_a_difference_that_the_seeds_could_have_made_is_named(tmp_path: Path) -> None:
    for seed, skill in enumerate((0.0, 0.0, 0.9)):
        run(tmp_path, "lora", seed, answers(seed, skill))  # one seed of three is far better than the others
        run(tmp_path, "goat", seed, answers(seed + 5, 0.0))
        run(tmp_path, "dora", seed, answers(seed + 9, -0.3))
    lines = compared(tmp_path, "lora", "goat,dora", metrics="open_recall").lines
    assert [line.verdict for line in lines] == ["better", "better"]
    text = render_comparisons(compared(tmp_path, metrics="open_recall"))
    (note,) = [line for line in text.splitlines() if "other seeds may say otherwise" in line]
    assert "open_recall against goat" in note
    assert "other seeds may say" not in render_comparisons(compared(tmp_path, "goat", "dora", metrics="open_recall"))


def test_what_is_no_fraction_is_not_shown_in_percent(tmp_path: Path) -> None:
    golds = [f"no effusion of kind {n} seen" for n in range(6)]
    for name, said in (("lora", golds), ("goat", [gold.replace("seen", "here") for gold in golds[:4]] + golds[4:])):
        run(tmp_path, name, 0, score_reports(frame(golds, said)).assign(task="toy", split="test", kind="report"))
    found = compared(tmp_path, metrics="cider_d,rouge_1")
    text, lines = render_comparisons(found), by_metric(found)
    rows = {cells[4]: cells for row in text.splitlines() if len(cells := [c.strip() for c in row.split("|")[1:]]) > 9}
    for metric, form, scale in (("cider_d", ".3f", 1), ("rouge_1", ".1f", 100)):
        figures = lines[metric].tested.figures
        shown = [cell.split()[0] for cell in rows[metric][7:10]]
        assert shown[:2] == [f"{scale * side.value:{form}}" for side in (figures.first, figures.second)]
        assert shown[2] == f"{scale * figures.difference.value:+{form}}"
        assert rows[metric][12] == f"{scale * lines[metric].detectable:{form}}"
    assert lines["cider_d"].tested.figures.first.value > 1
    assert "cider_d: no percentage, and no points." in text


def test_every_way_in_which_runs_agree_is_compared(tmp_path: Path) -> None:
    for trained in (("toy",), ("toy", "other")):
        for name in ("lora", "goat"):
            run(tmp_path, name, 0, answers(len(name) + len(trained)), trained=trained)
    run(tmp_path, "lora", 0, answers(9), blind="test")  # has no counterpart
    lines = compared(tmp_path, metrics="closed_accuracy").lines
    assert [line.first.row.trained_on for line in lines] == ["toy", "toy+other"]
    assert [line.p for line in lines] == holm([line.tested.flip.p for line in lines])
    (only,) = compared(tmp_path, where=((None, "trained_on", "toy+other"),), metrics="closed_accuracy").lines
    assert only.first.row.trained_on == "toy+other"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tests__0__version": 2}, "tests.toy.version (1 and 2)"),
        ({"tests__0__card": OTHER}, "tests.toy.card (cccccccc and eeeeeeee)"),
        ({"tests__0__limit": 20}, "tests.toy.limit (none and 20)"),
        ({"backbone__weights": "sha256:ffff"}, "backbone.weights (sha256:bbbbbbbb and sha256:ffff)"),
        ({"backbone__name": "qwen"}, "backbone.name (nano-vl and qwen)"),
        ({"budget__request": "2M"}, "budget (like=spectral_moe:16 and 2M)"),
        ({"trained": ("other",)}, "trained_on (toy and other)"),
        ({"stages__0__mixture__0__data__limit": 5}, "mixture.toy.limit (none and 5)"),
        ({"dtype": "bfloat16"}, "dtype (float32 and bfloat16)"),
        ({"generation__batch_size": 1}, "generation.batch_size (32 and 1)"),
        ({"blind": "test"}, "blind (none and test)"),
    ],
)
def test_runs_that_differ_in_more_than_the_method_are_not_compared(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    run(tmp_path, "lora", 0, answers(0))
    run(tmp_path, "goat", 0, answers(1), **change)
    with pytest.raises(RequestError) as error:
        compared(tmp_path)
    assert named in str(error.value)
    assert "Candidates: lora (trained on toy; seeds 0; " in str(error.value)


@pytest.mark.parametrize(
    ("where", "field"),
    [
        (("data", "toy/test", "digest"), "data.toy/test.digest (11111111 and 99999999)"),
        (("data", "toy/test", "images_digest"), "data.toy/test.images_digest (22222222 and 99999999)"),
        (("data", "toy/train", "digest"), "trained.toy/train.digest (11111111 and 99999999)"),
        (("tasks", "toy", "profile"), "tasks.toy.profile (medbench and 99999999)"),
        (("weights", "commit"), "weights.commit (none and 99999999)"),
    ],
)
def test_other_data_profile_or_weights_are_not_compared(tmp_path: Path, where: tuple[str, ...], field: str) -> None:
    run(tmp_path, "lora", 0, answers(0))
    record = make_record("goat")
    place = record
    for key in where[:-1]:
        place = place.setdefault(key, {})
    place[where[-1]] = "9" * 64
    write_run(tmp_path, record, answers(1))
    with pytest.raises(RequestError) as error:
        compared(tmp_path)
    assert field in str(error.value)


def test_several_settings_of_a_method_have_to_be_chosen_from(tmp_path: Path) -> None:
    for rate in (0.003, 0.01):
        run(tmp_path, "lora", 0, answers(0), stages__0__training__lr=rate)
    run(tmp_path, "goat", 0, answers(1))
    with pytest.raises(RequestError) as error:
        compared(tmp_path)
    assert "differ in stages.0.training.lr (0.003 and 0.01): choose with --where lora:" in str(error.value)
    found = compared(tmp_path, where=(("lora", "training.lr", 0.01),))
    assert found.lines[0].training == {"stages.0.training.lr": (0.01, 0.003)}
    assert "The training differs: training.lr 0.01 (lora) and 0.003 (goat)." in render_comparisons(found)
    assert compared(tmp_path, where=((None, "lr", 0.003),)).lines[0].training == {}
    with pytest.raises(RequestError, match=r"--where training.lr=0.5: no run of lora has it; there are 0.003, 0.01"):
        compared(tmp_path, where=((None, "training.lr", 0.5),))
    with pytest.raises(RequestError, match=r"--where training\.rate: the runs of lora have no such field"):
        compared(tmp_path, where=((None, "training.rate", 0.5),))


def test_rows_outside_the_budget_compare_and_say_so(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path, "lora", seed, answers(seed))
        run(tmp_path, "full_ft", seed, answers(seed + 5))
    run(tmp_path, "none", 0, answers(9))
    found = compared(tmp_path, "lora", "full_ft,none")
    of_none = next(line for line in found.lines if line.second.row.method == "none")
    assert (of_none.first.seeds, of_none.second.seeds) == ((0, 1), (0,))  # one answer for every seed
    assert of_none.seed_sd is not None
    assert "Outside the budget: full_ft, none." in render_comparisons(found)


def test_requests_that_cannot_be_met_say_what_there_is(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no finished run of lorra here; did you mean lora"):
        compared(runs, "lorra")
    with pytest.raises(RequestError, match="no finished run of lora was tested on slake \\(test\\), but on toy"):
        compare_methods([runs], "lora", ["goat"], "slake")
    with pytest.raises(RequestError, match="expected a method and others than itself"):
        compared(runs, "lora", "lora")
    with pytest.raises(RequestError, match="did you mean open_recall"):
        compare_methods([runs], "lora", ["goat"], "toy", metrics=["open_recal"])
    with pytest.raises(RequestError, match="no such folder"):
        compared(tmp_path / "nowhere")
    run(tmp_path, "lora", 0, answers(0))
    run(tmp_path, "goat", 1, answers(1))
    with pytest.raises(RequestError, match="have no seed in common"):
        compared(tmp_path)


def test_runs_of_the_same_digests_with_other_items_are_a_fault(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, answers(0))
    run(tmp_path, "goat", 0, answers(1).iloc[:-3])
    with pytest.raises(WorkError, match=r"task toy: the two sides have different items: 160 and 157 rows"):
        compared(tmp_path)


def test_the_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as end:
            main(["compare", *words])
        assert end.value.code == code
        return capsys.readouterr()

    out, _ = printed("lora", "goat,dora", str(runs), "--task", "toy", "--metric", "open_recall,ece", "--json")
    found = json.loads(out)
    assert [(line["second"]["method"], line["metric"]) for line in found["comparisons"]] == [
        *(("goat", "open_recall"), ("goat", "ece"), ("dora", "open_recall"), ("dora", "ece"))
    ]
    line = found["comparisons"][0]
    difference = line["first"]["value"] - line["second"]["value"]
    assert line["difference"]["value"] == pytest.approx(difference)
    assert line["difference"]["low"] < difference < line["difference"]["high"]
    assert (line["p"] <= line["p_holm"], line["exact"], line["patterns"]) == (True, False, 10_000)
    assert line["detectable"] == pytest.approx(2.8 * line["se"], rel=1e-3)
    assert (found["comparisons"][1]["p"], found["comparisons"][1]["p_holm"]) == (None, None)
    assert "no sign-flip test" in found["comparisons"][1]["reason"]
    out, _ = printed("lora", "goat", str(runs), "--task", "toy", "--where", "goat:adapter.r=16")
    header, _, *body = out.split("\n\n")[0].splitlines()
    assert len(body) == 8
    assert {row.count("|") for row in body} == {header.count("|")}
    for words in (
        ("lora", "goat", str(runs), "--task", "toy", "--where", "lr"),
        ("lora", "goat", str(runs), "--task", "toy", "--where", ":lr=1"),
        ("lora", "goat", str(runs), "--task", "toy", "--split", "train"),
        ("lora", "goat", str(runs)),
    ):
        out, err = printed(*words, code=2)
        assert (out, err.count("\n")) == ("", 1), err
