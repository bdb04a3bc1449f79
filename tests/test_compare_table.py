"""Tables: what is marked as the best and as not separable from it, and what is never averaged or compared."""

from __future__ import annotations

import csv
import io
import json
import math
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_compare_common import OTHER, answers, make_record, run, scores, write_run

from medbench.__main__ import main
from medbench.errors import WorkError
from medbench.results.marks import ItemValues, Standing, judged
from medbench.results.tables import Table, build_table, render
from medbench.scoring import kinds
from medbench.scoring.figures import LOWER_IS_BETTER, NEITHER_IS_BETTER, better
from medbench.scoring.paired import compare_paired
from medbench.scoring.permutation import holm

SKILLS = {"lora": 0.0, "dora": 0.02, "goat": 0.3, "kasa": 0.28}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four methods under one budget, two seeds each: two of one skill, two of a better one; and what takes no part."""
    out = tmp_path_factory.mktemp("marked")
    for place, (name, skill) in enumerate(SKILLS.items()):
        for seed in range(2):
            run(out, name, seed, answers(10 * place + seed, skill))
    run(out, "none", 0, answers(91, 0.9))
    run(out, "lora", 0, answers(93, 0.9), budget__request="2M")
    for seed, name in enumerate(("full_ft", "full_ft_moe")):
        run(out, name, 0, answers(94 + seed, 0.9))
    for seed, name in enumerate(("lora", "goat")):
        run(out, name, 0, answers(96 + seed, 0.9), blind="test")
    return out


@pytest.fixture(scope="module")
def table(runs: Path) -> Table:
    return build_table([runs], ["open_recall", "closed_accuracy", "ece"])


def standing(table: Table, metric: str) -> dict[str, Standing | None]:
    """By method, of the rows that are under the budget of all; of the others by what sets them apart."""
    names = [
        row.method + (" blind" if row.blind else "") + (" 2M" if row.parameters["budget"] == "2M" else "")
        for row in table.rows
    ]
    return {name: table.standings.get((number, "toy", metric)) for number, name in enumerate(names)}


def test_the_best_is_marked_and_so_is_what_cannot_be_told_from_it(runs: Path, table: Table) -> None:
    found = standing(table, "open_recall")
    values = {r.method: r.cell("toy", "open_recall").estimate.value for r in table.rows if len(r.seeds) == 2}
    best = max(values, key=values.__getitem__)
    assert found[best] == Standing("best", None)
    (tie,) = {"goat", "kasa"} - {best}
    assert found[tie].mark == "tie"
    assert found["lora"].mark is found["dora"].mark is None
    tables = {name: [answers(10 * n + seed, SKILLS[name]) for seed in range(2)] for n, name in enumerate(SKILLS)}
    pairs = list(combinations(sorted(SKILLS), 2))
    p = [compare_paired(tables[one], tables[two], "open_recall").flip.p for one, two in pairs]
    for (one, two), expected in zip(pairs, holm(p), strict=True):
        if best in (one, two):
            assert found[one if two == best else two].p == pytest.approx(expected)


def test_rows_outside_the_budget_blind_rows_and_lone_rows_take_no_part(table: Table) -> None:
    for metric in ("open_recall", "closed_accuracy"):
        found = standing(table, metric)
        assert {name for name, own in found.items() if own} == set(SKILLS)


def test_without_a_test_nothing_is_marked(table: Table) -> None:
    assert set(standing(table, "ece").values()) == {None}
    assert table.untested == ("ece",)
    assert "Nothing is marked under ece: no means over items, no test." in render(table, "md")


def test_the_marks_in_every_format(runs: Path, table: Table, capsys: pytest.CaptureFixture[str]) -> None:
    recall = standing(table, "open_recall")
    written = {"md": ("**", "_"), "latex": (r"\textbf{", r"\textit{"), "html": ("<strong>", "<em>")}
    for form, signs in written.items():
        lines = render(table, form).splitlines()
        for name, own in recall.items():
            if name in SKILLS:
                row = next(line for line in lines if name in line and "+0.0" in line and "2M" not in line)
                cell = row.strip("|").split({"md": "|", "latex": "&", "html": "<td>"}[form])[-3].strip()
                mark = {"best": signs[0], "tie": signs[1]}.get(own.mark or "")
                assert cell.startswith(mark) if mark else not cell.startswith(signs), (form, row)
        assert not any("\ue000" <= char <= "\ue003" for line in lines for char in line)
        assert "Holm" in lines[-3] + lines[-4] + lines[-5] + lines[-6] + lines[-7]
    body = render(table, "md").split("\n\n")[0].splitlines()
    assert len({len(line) for line in body}) == 1  # aligned with the signs in it
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    with pytest.raises(SystemExit):
        main(["table", str(runs), "--metrics", "open_recall", "--json"])
    for row in [*rows, *json.loads(capsys.readouterr().out)]:
        if row["metric"] == "open_recall" and row["method"] in SKILLS and row["seeds"] in (2, "2"):
            own = recall[row["method"]]
            assert (row["mark"] or None) == own.mark
            p = float(row["p_against_best"]) if row["p_against_best"] else None
            assert p == (None if own.p is None else pytest.approx(own.p))


def test_a_table_without_rivals_has_no_marks(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, answers(0))
    run(tmp_path, "goat", 0, answers(1), trained=("other",))
    built = build_table([tmp_path])
    assert built.standings == {}
    assert "Bold" not in render(built, "md")


def test_equal_methods_are_told_from_the_best_in_at_most_five_percent_of_columns() -> None:
    """Ten methods without a difference on 60 images, 300 columns: because the best is sought, all pairs are tests."""
    rng, columns, methods, wrong = np.random.default_rng(8), 300, 10, 0
    clusters = np.array([f"image{k}" for k in range(60)], dtype=object)
    for _ in range(columns):
        values = {n: ItemValues(rng.normal(size=60), clusters) for n in range(methods)}
        found = judged([list(range(methods))], values, 1, permutations=2000)
        assert [own.mark for own in found.values()].count("best") == 1
        wrong += any(own.mark is None for own in found.values())
    assert wrong / columns <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / columns)


def test_one_seed_says_that_training_variance_is_unknown(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, answers(0))
    assert "One seed: the variance of training is unknown." in render(build_table([tmp_path]), "md")
    run(tmp_path, "goat", 0, answers(1))
    run(tmp_path, "goat", 1, answers(2))
    text = render(build_table([tmp_path]), "md")
    assert "± is the deviation between seeds." in text
    assert "Rows of one seed: the variance of training is unknown." in text


def test_every_metric_is_declared_as_better_high_low_or_neither() -> None:
    """A metric of a new kind has to be thought about: a share that should be small is not the best when it is large."""
    rising = {
        *("closed_accuracy", "open_recall", "open_precision", "open_f1", "open_exact_match", "choice_accuracy"),
        *("accuracy", "balanced_accuracy", "macro_f1", "f1", "auroc", "meteor", "cider_d", "bleu_mean"),
        *("rouge_1", "rouge_2", "rouge_l", "finding_recall", "finding_f1"),
        *(f"{start}bleu_{n}" for start in ("", "sentence_") for n in range(1, 5)),
    }
    assert set(kinds.known_names()) <= rising | LOWER_IS_BETTER | NEITHER_IS_BETTER
    assert (better("open_recall"), better("ece"), better("yes_share")) == (1, -1, 0)


@pytest.mark.parametrize(
    "where",
    [
        *(("data", "toy/test", "digest"), ("data", "toy/test", "images_digest"), ("data", "toy/train", "digest")),
        *(("tasks", "toy", "profile"), ("weights", "commit"), ("weights", "backbone")),
        *(("parameters", "trainable"), ("method",)),
    ],
    ids=".".join,
)
def test_seeds_of_other_data_profiles_or_weights_are_never_averaged(tmp_path: Path, where: tuple[str, ...]) -> None:
    """What a spec does not pin, so that the runs have the same spec but the seed."""
    one = run(tmp_path, "lora", 0, answers(0))
    record = make_record("lora", 1)
    place: Any = record
    for key in where[:-1]:
        place = place.setdefault(key, {})
    place[where[-1]] = "9" * 64
    two = write_run(tmp_path, record, answers(1))
    with pytest.raises(WorkError) as error:
        build_table([tmp_path])
    said = str(error.value)
    assert str(one) in said
    assert str(two) in said
    assert f"differ in {'.'.join(where)} (" in said
    assert "99999999" in said
    assert len(build_table([one]).rows) == len(build_table([two]).rows) == 1


def test_a_copy_of_a_run_with_other_data_is_not_passed_over(tmp_path: Path) -> None:
    record = make_record("lora", 0)
    write_run(tmp_path, record, answers(0))
    record["data"]["toy/test"]["digest"] = "9" * 64
    write_run(tmp_path, record, answers(0), name="copy")
    with pytest.raises(WorkError, match=r"differ in data\.toy/test\.digest"):
        build_table([tmp_path])


def test_seeds_with_another_number_of_items_are_never_averaged(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, answers(0))
    run(tmp_path, "lora", 1, answers(1).iloc[:-3])
    with pytest.raises(WorkError, match=r"differ in tasks\.toy\.n \((160 and 157|157 and 160)\)"):
        build_table([tmp_path])


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"tests__0__version": 2}, {"tests.toy.version=1", "tests.toy.version=2"}),
        ({"tests__0__card": OTHER}, {"tests.toy.card=cccccccc", "tests.toy.card=eeeeeeee"}),
        ({"tests__0__limit": 20}, {"tests.toy.limit=none", "tests.toy.limit=20"}),
        ({"stages__0__mixture__0__data__version": 2}, {"mixture.toy.version=1", "mixture.toy.version=2"}),
        ({"stages__0__mixture__0__data__limit": 9}, {"mixture.toy.limit=none", "mixture.toy.limit=9"}),
        ({"stages__0__mixture__0__weight": 2.0}, {"mixture.toy=1.0", "mixture.toy=2.0"}),
        ({"backbone__weights": "sha256:ffff"}, {"backbone.weights=sha256:bbbbbbbb", "backbone.weights=sha256:ffff"}),
        ({"generation__batch_size": 1}, {"generation.batch_size=32", "generation.batch_size=1"}),
    ],
)
def test_rows_of_other_versions_data_or_backbones_stand_apart_and_name_the_field(
    tmp_path: Path, change: dict[str, Any], shown: set[str]
) -> None:
    for seed in range(2):
        run(tmp_path, "lora", seed, answers(seed))
        run(tmp_path, "lora", seed, answers(seed + 5, 0.3), **change)
    table = build_table([tmp_path])
    assert [row.seeds for row in table.rows] == [(0, 1), (0, 1)]
    assert set(table.frame()["setting"]) == shown
    assert table.standings == {}  # and are not compared
    if next(iter(change)).startswith("tests"):
        (field,) = {name.partition("=")[0] for name in shown}
        assert f"toy: the rows differ in {field}; those that do are not compared." in render(table, "md")


def test_rows_of_other_budgets_or_backbones_stand_apart_in_their_columns(tmp_path: Path) -> None:
    for seed in range(2):
        run(tmp_path, "lora", seed, answers(seed))
        run(tmp_path, "lora", seed, answers(seed), budget__request="2M")
        run(tmp_path, "lora", seed, answers(seed), backbone__name="qwen")
    table = build_table([tmp_path])
    assert [(row.backbone, row.parameters["budget"], row.seeds) for row in table.rows] == [
        ("nano-vl", "2M", (0, 1)),
        ("nano-vl", "like=spectral_moe:16", (0, 1)),
        ("qwen", "like=spectral_moe:16", (0, 1)),
    ]
    assert table.standings == {}
    header, _, *rows = render(table, "md").split("\n\n")[0].splitlines()
    place = [name.strip() for name in header.split("|")].index("backbone")
    assert [row.split("|")[place].strip() for row in rows] == ["nano-vl", "nano-vl", "qwen"]


def test_rows_of_other_images_are_shown_but_not_compared(tmp_path: Path) -> None:
    run(tmp_path, "lora", 0, answers(0))
    record = make_record("goat")
    record["data"]["toy/test"]["images_digest"] = "9" * 64
    write_run(tmp_path, record, answers(1, 0.5))
    table = build_table([tmp_path])
    assert table.standings == {}
    assert "toy: the rows differ in data.toy/test.images_digest" in render(table, "md")


def test_the_bins_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run(tmp_path / "runs", "lora", 0, answers(0))
    bare = run(tmp_path / "runs", "goat", 0, answers(0).assign(confidence=np.nan))

    def printed(*words: object, code: int = 0) -> tuple[str, str]:
        with pytest.raises(SystemExit) as end:
            main(["reliability", *map(str, words)])
        assert end.value.code == code
        return capsys.readouterr()

    out, _ = printed(folder, "--task", "toy", "--out", tmp_path / "drawn", "--json")
    (found,) = json.loads(out)["runs"]
    record = json.loads((folder / "record.json").read_text())
    stored = record["tasks"]["toy"]["metrics"]["ece"]  # its interval is of fewer resamples
    assert {k: found["ece"][k] for k in ("value", "n", "clusters")} == {
        k: stored[k] for k in ("value", "n", "clusters")
    }
    total = sum(b["n"] for b in found["bins"])
    assert total == found["ece"]["n"] == 80
    error = sum(b["n"] / total * abs(b["accuracy"] - b["confidence"]) for b in found["bins"] if b["n"])
    assert error == pytest.approx(found["ece"]["value"])
    assert sorted(path.suffix for path in (tmp_path / "drawn").iterdir()) == [".png", ".svg"]
    text, _ = printed(folder, "--task", "toy")
    assert len(text.split("\n\n")[0].splitlines()) == 2 + sum(b["n"] > 0 for b in found["bins"])
    assert "has probabilities" in printed(bare, "--task", "toy", code=2)[1]
    assert "not tested on slake, but on toy" in printed(folder, "--task", "slake", code=2)[1]


def test_scores_that_tie_are_not_separable(tmp_path: Path) -> None:
    for name in ("lora", "goat"):
        run(tmp_path, name, 0, scores(np.ones(40), np.ones(4)))
    marks = [own.mark for own in build_table([tmp_path], ["closed_accuracy"]).standings.values()]
    assert marks == ["best", "tie"]
