"""Tables of the paper's shape, folded from run folders that the tests write: no model, no data."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import Cli
from test_compare_common import make_record, part

from medbench.catalog import Catalog, Settings, packaged, read_yaml
from medbench.errors import RequestError, WorkError
from medbench.files import canonical_json, digest
from medbench.plan_data import assignments
from medbench.results.compare import compare_methods
from medbench.results.paper_fold import group_cards, protocol_of, set_mean, transfer_sets
from medbench.results.paper_table import AVERAGE, PaperTable, build_paper_table
from medbench.results.paper_text import paper_frame, render_paper
from medbench.results.record import read_scores, task_figures
from medbench.results.reliability import run_reliability
from medbench.results.tables import build_table, render
from medbench.scoring.classification import score

SETS = {"ba": 30, "bb": 50, "bc": 40}
TWIN = "bd"  # of the data set of `bc`, so neither is trained on for the other
ALL = (*SETS, TWIN)
CLASSES = ("benign", "malignant", "normal")


def write_cards(base: Path) -> Path:
    """Cards of four sets, two of them of one data set, as the groups `three` and `four`; the folder of cards."""
    folder = base / "cards"
    (folder / "groups").mkdir(parents=True)
    for name in ALL:
        content = read_yaml(packaged("tasks") / "busi.yaml")
        content["name"] = name
        content["metadata"]["dataset"] = "bc" if name == TWIN else name
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    for name, tasks in (("three", [*SETS]), ("four", [*ALL]), ("mixed", ["ba", "slake"])):
        group = {"name": name, "task": tasks, "metadata": {"version": 1, "description": "for tests"}}
        (folder / "groups" / f"{name}.yaml").write_text(yaml.safe_dump(group))
    return folder


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    return Catalog(settings=Settings(tasks=(write_cards(tmp_path_factory.mktemp("cards")),)))


def answers(task: str, seed: int, skill: float) -> pd.DataFrame:
    """A score table: two images a patient; what makes a patient hard is the same for all methods and seeds."""
    n = SETS.get(task, 20)
    gold = np.random.default_rng(len(task) + n).integers(0, 3, n)
    hard = np.random.default_rng(n).random(n).repeat(2)[:n]
    logits = np.random.default_rng([seed, n]).normal(size=(n, 3))
    logits[np.arange(n), gold] += 4 * (np.clip(skill - hard, -0.5, 1))
    powers = np.exp(logits)
    items = pd.DataFrame(
        {
            "id": [f"{task}{k}" for k in range(n)],
            "cluster": [f"p{k // 2}" for k in range(n)],
            "type": "closed",
            "gold": [CLASSES[g] for g in gold],
            "prediction": [CLASSES[k] for k in logits.argmax(axis=1)],
            "probabilities": [
                json.dumps(dict(zip(CLASSES, row, strict=True)))
                for row in (powers / powers.sum(axis=1, keepdims=True)).tolist()
            ],
        }
    )
    table = score(items, classes=CLASSES).assign(task=task, split="test", kind="classification")
    return table.sample(frac=1, random_state=seed)


def write(
    out: Path,
    method: str,
    trained: tuple[str, ...],
    tested: tuple[str, ...],
    seed: int = 0,
    skill: float = 0.6,
    data: dict[str, Any] | None = None,
    **spec: Any,
) -> Path:
    """The folder of a run, trained on one mixture and tested on some sets; `spec` as for `make_record`."""
    tests = spec.pop("tests", None) or [part(task, split="test") for task in tested]
    backbone = {"kind": "clip", "name": "nano-clip", "processor": {}, "weights": "sha256:" + "b" * 64}
    record = make_record(method, seed, trained, **({"backbone": backbone, "tests": tests} | spec))
    about = dict(record["data"].pop("toy/test"))
    record["data"] |= {f"{task}/{test['split']}": about | (data or {}) for task in tested for test in tests[:1]}
    tables = [answers(task, seed, skill).assign(split=tests[0]["split"]) for task in tested]
    for task, table in zip(tested, tables, strict=True):
        figures = task_figures([table], resamples=20)
        protocol = "in_domain" if task in trained else "zero_shot"
        told = {"protocol": protocol, "split": tests[0]["split"], "profile": "medbench", "skipped": 0}
        record["tasks"][task] = figures | told
    folder = out / record["run"]
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(canonical_json(record["spec"]))
    (folder / "record.json").write_text(json.dumps(record))
    pd.concat(tables, ignore_index=True).to_parquet(folder / "scores.parquet")
    tables[0][["task", "split", "id", "cluster"]].to_parquet(folder / "predictions.parquet")
    assert digest(record["spec"]) == record["run"]
    return folder


def others(task: str) -> tuple[str, ...]:
    return tuple(name for name in SETS if name != task)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods under both protocols (two seeds), the plain model, and runs that belong in no row."""
    out = tmp_path_factory.mktemp("runs")
    write(out, "none", (), tuple(SETS), skill=0.1)
    for seed in (0, 1):
        for task in SETS:
            for method, skill in (("lora", 0.5), ("spectral_moe", 0.55)):
                write(out, method, (task,), (task,), seed, skill + 0.3)
                write(out, method, others(task), (task,), seed, skill)
    write(out, "lora", ("ba", "bb", "bc"), ("ba",))  # all sets at once: neither protocol
    write(out, "lora", ("ba",), ("bb",))  # not all the others
    write(out, "lora", ("ba",), ("ba",), tests=[part("ba", split="validation")])
    write(out, "lora", ("ba",), ("ba",), blind="test")
    return out


@pytest.fixture(scope="module")
def table(runs: Path, catalog: Catalog) -> PaperTable:
    return build_paper_table([runs], "T2", catalog, "three", resamples=500)


def accuracy(task: str, seed: int, skill: float) -> float:
    return float(answers(task, seed, skill)["correct"].mean())


def test_rows_are_methods_under_protocols(table: PaperTable) -> None:
    keys = [(row.key.protocol, row.key.method) for row in table.rows]
    assert keys == [
        ("zero_shot", "none"),
        ("transfer", "lora"),
        ("transfer", "spectral_moe"),
        ("in_domain", "lora"),
        ("in_domain", "spectral_moe"),
    ]
    assert table.left_out == {
        "trained neither on the set alone nor on all the others": 2,
        "not of the test split": 1,
        "blind": 1,
    }


def test_cells_are_means_over_seeds_and_the_average_is_their_plain_mean(table: PaperTable) -> None:
    (row,) = [row for row in table.rows if (row.key.protocol, row.key.method) == ("transfer", "spectral_moe")]
    each = {task: [accuracy(task, seed, 0.55) for seed in (0, 1)] for task in SETS}
    for task, figures in each.items():
        cell = row.cells[task].cell
        assert cell.estimate.value == pytest.approx(np.mean(figures))
        assert cell.seed_sd == pytest.approx(np.std(figures, ddof=1))
        assert (cell.estimate.n, cell.estimate.clusters) == (SETS[task], SETS[task] // 2)
    assert row.average is not None
    # Of sets of 30, 50 and 40 images, the mean over images would be another.
    assert row.average.value == pytest.approx(np.mean([np.mean(figures) for figures in each.values()]))
    assert row.average_sd == pytest.approx(np.std(np.mean(list(each.values()), axis=0), ddof=1))
    assert row.average.n == sum(SETS.values())


def test_the_interval_of_the_mean_is_that_of_independent_sets() -> None:
    rng = np.random.default_rng(4)
    sets = [(rng.random(n), np.arange(n) // 2) for n in (60, 200, 500)]
    found = set_mean(sets, resamples=4000)
    variance = 0.0
    for values, clusters in sets:
        sums = np.bincount(clusters, weights=values - values.mean())
        variance += float((sums**2).sum()) / len(values) ** 2 / len(sets) ** 2
    assert found.low is not None and found.high is not None
    assert (found.high - found.low) / (2 * 1.96 * np.sqrt(variance)) == pytest.approx(1, abs=0.06)


def test_a_set_of_one_cluster_gives_a_mean_without_an_interval() -> None:
    found = set_mean([([1.0, 0.0], ["a", "b"]), ([1.0, 1.0], ["a", "a"])])
    assert (found.value, found.low) == (0.75, None)
    assert found.reason == "a set has fewer than two clusters: no interval"


def test_with_a_set_missing_there_is_no_mean_but_its_name(tmp_path: Path, catalog: Catalog) -> None:
    for task in ("ba", "bc"):
        write(tmp_path, "lora", (task,), (task,))
    found = build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)
    (row,) = found.rows
    assert (row.average, row.missing) == (None, ("bb",))
    assert "missing: bb" in render_paper(found, "md").splitlines()[2]
    frame = paper_frame(found).query("source == 'measured' and task == 'average'")
    assert frame["reason"].tolist() == ["missing: bb"]
    assert frame["value"].isna().all()


def test_transfer_leaves_out_what_is_of_the_same_data_set(tmp_path: Path, catalog: Catalog) -> None:
    cards = group_cards(catalog, "four", "classification")
    sets = transfer_sets(cards)
    planned = {
        tested.name: {card.name for card in stage} for ((tested,), (stage,)) in assignments(cards, [], "transfer")
    }
    assert sets == planned
    assert sets["bc"] == {"ba", "bb"} == sets["bd"]
    write(tmp_path, "lora", ("ba", "bb"), ("bc",))
    found = build_paper_table([tmp_path], "T2", catalog, "four", resamples=20)
    assert [row.key.protocol for row in found.rows] == ["transfer"]


def test_shots_and_single_prompts_are_rows_of_their_own(tmp_path: Path, catalog: Catalog) -> None:
    write(tmp_path, "lora", ("ba",), ("ba",))
    write(tmp_path, "lora", ("ba",), ("ba",), prompts="single")
    training = {"batch_size": 16, "epochs": 1.0, "lr": 0.003}
    for shots in (1, 4):
        mixture = [{"data": part("ba", shots=shots), "weight": 1.0}]
        write(tmp_path, "lora", ("ba",), ("ba",), stages=[{"mixture": mixture, "training": training}])
    found = build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)
    assert [row.key.variant for row in found.rows] == ["", "1-shot", "4-shot", "single prompt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget__request": "like=spectral_moe:8"}, ("budget", "like=spectral_moe:16", "like=spectral_moe:8")),
        ({"stages__0__training__lr": 0.01}, ("stages.0.training.lr", "0.003", "0.01")),
        ({"backbone__weights": "sha256:" + "d" * 64}, ("backbone.weights", "sha256:bbbbbbbb", "sha256:dddddddd")),
        ({"tests": [part("ba", split="test", digest="5" * 64)]}, ("tests.ba.digest", "none", "55555555")),
        ({"tests": [part("ba", split="test", limit=5)]}, ("tests.ba.limit", "none", "5")),
    ],
)
def test_runs_of_two_kinds_never_fill_one_cell(
    tmp_path: Path, catalog: Catalog, change: dict[str, Any], said: tuple[str, str, str]
) -> None:
    write(tmp_path, "lora", ("ba",), ("ba",))
    write(tmp_path, "lora", ("ba",), ("ba",), seed=1, **change)
    field, one, two = said
    with pytest.raises(
        RequestError, match=r"^lora, in_domain, ba: runs that differ in .* would fill one cell"
    ) as refused:
        build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)
    # Which of the two comes first is their hashes' affair.
    assert f"{field} ({one} and {two})" in str(refused.value) or f"{field} ({two} and {one})" in str(refused.value)


def test_runs_of_one_spec_on_other_data_are_refused(tmp_path: Path, catalog: Catalog) -> None:
    write(tmp_path, "lora", ("ba",), ("ba",))
    write(tmp_path, "lora", ("ba",), ("ba",), seed=1, data={"digest": "9" * 64})
    with pytest.raises(WorkError, match=r"differ in data.ba/test.digest"):
        build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)


@pytest.mark.parametrize(
    ("change", "field"),
    [({"budget__request": "2M"}, r"budget \(like=spectral_moe:16 and 2M\)"), ({"dtype": "bfloat16"}, "dtype")],
)
def test_a_row_is_of_one_budget_and_backbone(
    tmp_path: Path, catalog: Catalog, change: dict[str, Any], field: str
) -> None:
    write(tmp_path, "lora", ("ba",), ("ba",))
    write(tmp_path, "lora", ("bb",), ("bb",), **change)
    with pytest.raises(RequestError, match=rf"^lora, in_domain: ba and bb stand in one row, but .* differ in {field}"):
        build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)


def test_where_chooses_among_runs(tmp_path: Path, catalog: Catalog) -> None:
    write(tmp_path, "none", (), ("ba",))
    write(tmp_path, "lora", ("ba",), ("ba",), skill=0.9)
    write(tmp_path, "lora", ("ba",), ("ba",), stages__0__training__lr=0.01, skill=0.2)
    where = [(None, "training.lr", 0.01)]
    found = build_paper_table([tmp_path], "T2", catalog, "three", where, resamples=20)
    assert [row.key.method for row in found.rows] == ["none", "lora"]  # what was not trained has no learning rate
    assert found.rows[1].cells["ba"].cell.estimate.value == pytest.approx(accuracy("ba", 0, 0.2))
    with pytest.raises(RequestError, match=r"^--where training.lr=0.5: no run has it; there are 0.003, 0.01$"):
        build_paper_table([tmp_path], "T2", catalog, "three", [(None, "training.lr", 0.5)], resamples=20)


def test_the_same_cell_tested_alone_and_with_others_counts_once(tmp_path: Path, catalog: Catalog) -> None:
    write(tmp_path, "none", (), ("ba",))
    write(tmp_path, "none", (), ("ba", "bb"))
    (row,) = build_paper_table([tmp_path], "T2", catalog, "three", resamples=20).rows
    assert row.seeds == (1,)
    assert set(row.cells) == {"ba", "bb"}


def test_backbones_are_named(tmp_path: Path, catalog: Catalog) -> None:
    other = {"kind": "clip", "name": "biomedclip", "processor": {}, "weights": "sha256:" + "e" * 64}
    write(tmp_path, "none", (), tuple(SETS))
    write(tmp_path, "none", (), tuple(SETS), backbone=other)
    found = build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)
    lines = [line for line in render_paper(found, "md").splitlines() if line.startswith("|")]
    column = [line.split("|")[3].strip() for line in lines]
    assert column[0] == "backbone"
    assert column[2:4] == ["biomedclip", "nano-clip"]
    assert column[4:] == ["the paper's"] * len(found.published.rows)


def test_what_a_backbone_has_seen_is_not_called_zero_shot() -> None:
    tasks = {"ba": {"protocol": "in_domain"}}
    assert protocol_of({"stages": [], "tasks": tasks}, "ba", frozenset({"bb"})) == "seen"
    assert protocol_of({"stages": [["bb"]], "tasks": tasks}, "ba", frozenset({"bb"})) is None
    assert protocol_of({"stages": [["bb"], ["bb"]], "tasks": tasks}, "ba", frozenset({"bb"})) is None


def test_the_best_is_marked_in_columns_and_in_the_mean(tmp_path: Path, catalog: Catalog) -> None:
    for task in SETS:
        for method, skill in (("lora", -1.0), ("pissa", 1.6), ("spectral_moe", 1.65)):
            write(tmp_path, method, (task,), (task,), skill=skill)
    found = build_paper_table([tmp_path], "T2", catalog, "three", resamples=20)
    order = [row.key.method for row in found.rows]
    marks = {(order[number], column): standing.mark for (number, column), standing in found.standings.items()}
    assert {column for _, column in marks} == {*SETS, AVERAGE}
    assert marks["lora", AVERAGE] is None  # far behind
    assert {marks["pissa", AVERAGE], marks["spectral_moe", AVERAGE]} == {"best", "tie"}
    best = max(found.rows, key=lambda row: row.average.value if row.average and row.average.value else 0.0)
    assert marks[best.key.method, AVERAGE] == "best"


def test_published_figures_stand_beside_ours_but_not_as_means_of_the_same_sets(table: PaperTable) -> None:
    text = render_paper(table, "md")
    (line,) = [line for line in text.splitlines() if line.startswith("| spectral_moe, published (MedQwen)")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[1:4] == ["not stated", "the paper's", "2.24 [R]"]
    assert cells[-4:] == ["-", "-", "-", "58.83 [R] over 9 other sets"]
    assert "The published averages are over other sets than these: never compare them." in text
    for caveat in table.published.caveats:
        assert caveat in text
    (moe,) = paper_frame(table).query("source == 'published' and task == 'average' and method == 'spectral_moe'").index
    assert paper_frame(table).loc[moe, "value"] == pytest.approx(0.5883)


def test_over_the_papers_own_sets_published_cells_stand_in_their_columns(tmp_path: Path) -> None:
    nine = Catalog(settings=Settings()).group("radiology9").task
    write(tmp_path, "none", (), ("us_breast",))
    found = build_paper_table([tmp_path], "T2", Catalog(settings=Settings()), resamples=20)
    assert found.tasks == nine
    assert found.same_sets
    text = render_paper(found, "md")
    header = [cell.strip() for cell in text.splitlines()[0].split("|")[1:-1]]
    (line,) = [line for line in text.splitlines() if line.startswith("| spectral_moe, published (MedQwen)")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert dict(zip(header, cells, strict=True))["us_breast (n=20)"] == "77.23 [A, medium]"
    assert cells[-1] == "58.83 [R]"
    assert "other sets" not in text


def test_formats(table: PaperTable) -> None:
    rows = list(csv.DictReader(io.StringIO(render_paper(table, "csv"))))
    measured = [row for row in rows if row["source"] == "measured"]
    assert len(measured) == len(table.rows) * (len(SETS) + 1)
    (row,) = [row for row in table.rows if row.key.protocol == "zero_shot"]
    assert float(measured[0]["value"]) == row.cells["ba"].cell.estimate.value
    latex = render_paper(table, "latex")
    assert r"\toprule" in latex and r"in\_domain" in latex
    html = render_paper(table, "html")
    assert html.startswith("<!doctype html>") and html.count("<tr>") == 1 + len(table.rows) + len(table.published.rows)


@pytest.mark.parametrize(
    ("name", "group", "message"),
    [
        ("T1", None, r"^--paper T1: only T2 can be folded so far"),
        ("T2", "mixed", r"^--group mixed: task slake is of kind vqa; this table is of kind classification$"),
        ("T2", "nothing", r"unknown task 'nothing'"),
    ],
)
def test_what_cannot_be_folded(runs: Path, catalog: Catalog, name: str, group: str | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build_paper_table([runs], name, catalog, group)


def test_no_run_that_belongs_in_the_table(tmp_path: Path, catalog: Catalog) -> None:
    write(tmp_path, "lora", ("ba", "bb", "bc"), ("ba",))
    with pytest.raises(
        RequestError, match=r"^no finished run here belongs in T2 over three \(1 of runs trained neither"
    ):
        build_paper_table([tmp_path], "T2", catalog, "three")


def test_other_commands_read_the_same_scores(runs: Path) -> None:
    """`compare`, `reliability` and `table` need nothing but the run folders."""
    lines = compare_methods([runs], "spectral_moe", ["lora"], "bb", where=[(None, "trained_on", "bb")]).lines
    assert {line.metric for line in lines} == {"accuracy", "balanced_accuracy", "macro_f1", "auroc", "ece"}
    for line in lines:
        assert line.tested.figures.difference.low is not None
        assert (line.tested.flip is not None) == (line.metric == "accuracy")
    folder = next(
        path for path in sorted(runs.iterdir()) if "bc" in json.loads((path / "record.json").read_text())["tasks"]
    )
    found = run_reliability(folder, "bc")
    stored = json.loads((folder / "record.json").read_text())["tasks"]["bc"]["metrics"]["ece"]["value"]
    assert found["ece"]["value"] == pytest.approx(stored)
    plain = build_table([runs])
    assert {metric for _, metric in plain.columns} == {"accuracy", "balanced_accuracy"}
    assert "bb accuracy (n=50)" in render(plain, "md")


def test_scores_without_a_text_column_are_broken(tmp_path: Path) -> None:
    folder = write(tmp_path, "none", (), ("ba",))
    stored = pd.read_parquet(folder / "scores.parquet").drop(columns="probabilities")
    stored.to_parquet(folder / "scores.parquet")
    with pytest.raises(WorkError, match=r"broken scores \(columns probabilities\)"):
        read_scores(folder, "ba")


def test_the_command(tmp_path: Path, runs: Path, cli: Cli) -> None:
    folder = write_cards(tmp_path)
    (tmp_path / "medbench.toml").write_text(f'tasks = ["{folder}"]')
    done = cli("table", runs, "--paper", "T2", "--group", "three", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["source"] for row in rows} == {"measured", "published"}
    refused = cli("table", runs, "--group", "three")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--group and --where are for --paper" in refused.stderr
