"""The paper's tables from made-up runs: which runs they name, their shapes, their cost, and committed expectations."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Cli
from test_reproduce_common import CATALOG, PRICED, planned, write_runs

from medbench import reproduce as reproducing
from medbench.errors import RequestError, WorkError
from medbench.job import Job
from medbench.reproduce_check import expected_path, outside, read_expected, write_expected
from medbench.reproduce_cost import TOKENS, assumptions, cost_json, costs
from medbench.reproduce_fold import fold_table
from medbench.reproduce_plan import SCALES, Reproduction, load_plan, plan_reproduction, table_names
from medbench.reproduce_table import Column, Entry, Folded, entry_rows, render_folded
from medbench.results.arms import Paired, Scores, arms_of
from medbench.results.published import load_published
from medbench.results.record import is_finished
from medbench.spec import RunSpec
from medbench.sweep import plan_sweep

FEW = 100
M = ("closed_accuracy", "open_recall")


def at(found: Reproduction, place: Path) -> Reproduction:
    """The same table with its runs in another folder."""
    return replace(found, jobs={key: replace(job, folder=place / key) for key, job in found.jobs.items()})


def specs_of(found: Reproduction) -> list[RunSpec]:
    return [job.spec for job in found.jobs.values()]


def folded(found: Reproduction) -> Folded:
    return fold_table(found, CATALOG, FEW)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("table", table_names())
def test_every_table_and_scale_is_priced_without_data(table: str, scale: str) -> None:
    needs_data = (table, scale) == ("T2", "nano")  # a set has no digest in its card
    found = plan_reproduction(table, scale, PRICED, Path("nowhere")) if needs_data else planned(table, scale)
    about = cost_json(found, None)
    assert about["total"]["runs"] == len(found.jobs) == len(about["runs"]) > 0
    assert all(run["steps"] is None or run["steps"] > 0 or run["method"] == "none" for run in about["runs"])
    assert all(run["flops"] > 0 or run["steps"] is None for run in about["runs"])  # None: how many items is unknown
    backbones = {run["backbone"] for run in about["runs"]}
    generative, dual = ("qwen2.5-vl-7b", "biomedclip") if scale == "full" else ("nano-vl", "nano-clip")
    both = {generative, dual} if (table, scale) == ("T5", "nano") else {generative}
    assert backbones == ({dual} if table == "T2" else both)
    assert json.loads(json.dumps(about)) == about


def test_the_ci_tables_are_of_generated_data_alone() -> None:
    for table in table_names():
        found = planned(table, "ci")
        assert {card.metadata.access for job in found.jobs.values() for card in job.cards.values()} == {"generated"}
        assert not any(part.sweep.grid.data_root for part in found.parts)


def test_the_published_initialisations_at_nano_scale_are_the_runs_of_the_grid() -> None:
    names = {identity[:12] for identity in planned("T3", "nano").jobs}
    assert len(names) == 44
    # Read from `spec.json` of runs done with `medbench run --set adapter.init=... --train-limit 2000`.
    assert {"568bddd6da95", "c832d2c9bc69", "bd33b6c35d51"} <= names


def test_the_operations_of_a_run_by_hand() -> None:
    cost = next(run for run in costs(planned("T6", "full")) if run.method == "lora")
    whole = 8_292_166_656  # Qwen2.5-VL-7B, as `medbench list backbones` has it
    assert cost.items == 19654  # PathVQA's training split, one epoch
    assert cost.flops == pytest.approx(TOKENS["vlm"] * whole * (4 * 19654 + 2 * 6719), rel=1e-6)
    assert cost.steps == -(-19654 // 16)


def test_a_set_of_unknown_size_makes_the_cost_a_lower_bound() -> None:
    found = planned("T4", "full")
    runs = costs(found)
    assert {name for run in runs for name in run.unknown} >= {"mimic_cxr_report/train"}
    assert any("lower bound" in line and "mimic_cxr_report" in line for line in assumptions(found, runs))
    assert next(run for run in runs if run.method == "spectral_moe").steps is None


def skill(spec: RunSpec, task: str) -> float:
    return {"lora": 0.1, "spectral_moe": 0.2, "none": -0.3}.get(spec.method.name, 0.0)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Reproduction:
    """T1 at nano scale; MoELoRA's runs of one seed on one set are not there."""
    place = tmp_path_factory.mktemp("t1")
    found = at(planned("T1", "nano"), place)
    left = [s for s in specs_of(found) if (s.method.name, s.seed, s.tasks) == ("moelora", 1, ["slake"])]
    full = [s for s in specs_of(found) if s.method.name == "full_ft" and s.tasks == ["slake"]]
    write_runs(place, [s for s in specs_of(found) if s not in (*left, *full)], skill)
    return found


def test_t1_has_a_row_a_method_and_never_mixes_published_figures_in(done: Reproduction) -> None:
    table = folded(done)
    assert table.rows == ("lora", "moelora", "spectral_moe", "full_ft", "none")
    keys = [column.key for column in table.columns]
    assert keys[:2] == ["vqa_rad.closed_accuracy", "vqa_rad.open_recall"]
    assert {"phantom_vqa.open_recall", "pathvqa.closed_accuracy", "average"} <= set(keys)
    ours = [table.entries["spectral_moe", f"{task}.{m}"] for task in ("vqa_rad", "slake", "phantom_vqa") for m in M]
    assert table.entries["spectral_moe", "average"].value == pytest.approx(sum(e.value or 0 for e in ours) / 6)
    assert table.entries["spectral_moe", "pathvqa.closed_accuracy"].reason == "not tested at this scale"
    published = load_published("T1")
    assert list(table.published) == [row.title for row in published.rows.values()]
    assert table.published["MedQwen 7B"]["average"] == "68.2 [R]"
    assert not set(table.published) & set(table.rows)


def test_an_average_is_the_plain_mean_of_its_columns_not_of_its_sets(done: Reproduction) -> None:
    scores = Scores(done.finished)
    arm = next(arm for arm in arms_of([part.sweep for part in done.parts]) if arm.label == "lora")

    def mean(metrics: dict[str, tuple[str, ...]]) -> float:
        return Paired(scores, metrics, (0, 1)).contrast([(1.0, [arm])]).value

    cells = [("vqa_rad", M[0]), ("vqa_rad", M[1]), ("phantom_vqa", M[0])]
    each = [mean({task: (metric,)}) for task, metric in cells]
    assert mean({"vqa_rad": tuple(M), "phantom_vqa": (M[0],)}) == pytest.approx(sum(each) / 3)


def test_two_trainings_of_one_row_are_not_one_row(tmp_path: Path) -> None:
    text = "name: two\ndescription: d\nsource: s\nbase: {method: lora, train_limit: 8, limit: 8}\n"
    path = tmp_path / "two.yaml"
    path.write_text(text + 'axes: {tasks: [phantom_vqa, "phantom_vqa,phantom_vqa_ct"]}\n')
    with pytest.raises(RequestError, match=r"grid two: .* is tested on phantom_vqa after two trainings"):
        arms_of([plan_sweep(CATALOG.grid(str(path)), CATALOG)])


def test_an_average_waits_for_every_set_and_uses_the_seeds_that_all_have(done: Reproduction) -> None:
    table = folded(done)
    full = table.entries["full_ft", "average"]
    assert (full.value, full.reason) == (None, "not run, or not finished")
    moe = table.entries["moelora", "average"]
    assert (moe.seeds, moe.planned) == ((0,), 2)
    assert "(1 of 2 seeds)" in render_folded(table)
    assert "Missing, not run, or not finished: full_ft / slake closed_accuracy" in render_folded(table)


def test_a_half_written_run_is_counted_and_left_out(done: Reproduction, tmp_path: Path) -> None:
    found = at(planned("T1", "ci"), tmp_path)
    write_runs(tmp_path, specs_of(found), skill)
    lora = next(key for key, job in found.jobs.items() if job.spec.method.name == "lora")
    (tmp_path / lora / "scores.parquet").unlink()
    table = folded(found)
    assert table.entries["lora", "average"].value is None
    assert any(line.startswith("1 runs were begun and are not finished") for line in table.notes)
    assert "3 finished, 1 left, 1 of them begun and not finished" in reproducing.progress(found)


def test_a_record_of_another_schema_version_is_one_line(tmp_path: Path) -> None:
    found = at(planned("T1", "ci"), tmp_path)
    write_runs(tmp_path, specs_of(found), skill)
    path = next(tmp_path.glob("*/record.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 2}))
    with pytest.raises(WorkError, match="record schema 2, this medbench reads 1"):
        folded(found)


def test_a_record_in_the_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    found = at(planned("T1", "ci"), tmp_path)
    write_runs(tmp_path, specs_of(found), skill)
    one, two = sorted(tmp_path.glob("*/record.json"))[:2]
    two.write_text(one.read_text())
    with pytest.raises(WorkError, match=f"is of run {one.parent.name[:12]}, not of this folder"):
        folded(found)


@pytest.mark.parametrize(
    "damage", [{"training": {}}, {"memory": {}}, {"training": {"stages": []}}, {"memory": {"fit": [1]}}]
)
def test_a_record_without_what_training_cost_is_one_line(tmp_path: Path, damage: dict[str, object]) -> None:
    found = at(planned("T6", "ci"), tmp_path)
    write_runs(tmp_path, specs_of(found), skill)
    for path in tmp_path.glob("*/record.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    with pytest.raises(WorkError, match="broken record, without what its training cost"):
        folded(found)


def test_seconds_of_a_resumed_run_are_of_the_steps_that_were_left(tmp_path: Path) -> None:
    found = at(planned("T6", "ci"), tmp_path)
    write_runs(tmp_path, specs_of(found), skill, lambda spec: [1.0] * 5)
    whole = folded(found).entries["lora", "step"].value
    for path in tmp_path.glob("*/record.json"):
        record = json.loads(path.read_text())
        record["training"]["stages"][-1] |= {"resumed_from": 8, "seconds": 4.0}  # two of ten steps
        path.write_text(json.dumps(record))
    assert (whole, folded(found).entries["lora", "step"].value) == (2.0, 2.0)


def test_t3_has_the_published_rows_by_scaling(tmp_path: Path) -> None:
    found = at(planned("T3", "nano"), tmp_path)

    def by_init(spec: RunSpec, task: str) -> float:
        adapter = spec.method.adapter
        return 0.3 * (adapter["init"] == "spectral" and adapter["router"] == "topk" and adapter["scaling"] == "alpha")

    write_runs(tmp_path, specs_of(found), by_init)
    table = folded(found)
    values = {key: entry.value for key, entry in table.entries.items()}
    best = ("MoE + O (spectral)", "average_without_scaling")
    assert max((v, k) for k, v in values.items() if v is not None)[1] == best
    assert values["O without MoE", "average_without_scaling"] is None  # the paper has none, nor has the grid
    assert sum(value is not None for value in values.values()) == 11
    assert len({round(v, 6) for k, v in values.items() if v is not None and k != best}) == 1
    assert table.published["zero init"] == {"average": "67.3 [R]", "average_without_scaling": "66.8 [R]"}


def test_t4_t6_t7_and_t5_have_their_columns_even_without_runs(tmp_path: Path) -> None:
    shapes = {
        "T4": {"phantom_report.rouge_l", "phantom_yesno.f1", "iu_xray_vqa.accuracy", "mimic_cxr_report.rouge_l"},
        "T5": {"drop:slake then vqa_rad", "relative:vqa_rad then slake", "mixed:slake with vqa_rad", "drop"},
        "T6": {"memory", "step", "step_ratio", "parameters", "epoch"},
        "T7": {"vqa_rad.closed_accuracy", "average"},
    }
    for name, columns in shapes.items():
        table = folded(at(planned(name, "nano"), tmp_path))
        assert columns <= {column.key for column in table.columns}
        assert table.rows
        assert all(entry.value is None and entry.reason for entry in table.entries.values())
        text = render_folded(table)
        assert "Missing, " in text
        assert text.count("| published |") == len(load_published(name).rows)
    with pytest.raises(RequestError, match="T2 at scale ci: no run is finished; medbench reproduce T2 --scale ci"):
        folded(at(planned("T2", "ci"), tmp_path))


def test_t6_is_of_the_records_and_relative_to_lora(tmp_path: Path) -> None:
    found = at(planned("T6", "nano"), tmp_path)
    write_runs(tmp_path, specs_of(found), skill)
    for job in found.jobs.values():
        path = job.folder / "record.json"
        record = json.loads(path.read_text())
        stage = record["training"]["stages"][0]
        stage |= {"steps": 10, "seconds": 30.0 if job.spec.method.name == "spectral_moe" else 20.0 + job.spec.seed}
        path.write_text(json.dumps(record))
    table = folded(found)
    assert table.entries["spectral_moe", "step"].value == pytest.approx(3.0)
    ratios = [30 / 20, 30 / 21, 30 / 22]
    assert table.entries["spectral_moe", "step_ratio"].value == pytest.approx(sum(ratios) / 3)
    assert table.entries["lora", "step_ratio"].value == 1.0
    assert table.entries["lora", "memory"].value == 1.0
    assert table.entries["hydralora", "parameters"].value == 286_720  # `medbench budget --method hydralora`
    assert "compare only within one run" in render_folded(table)


def test_t7_has_a_row_a_rank_and_a_row_a_pair_of_experts(tmp_path: Path) -> None:
    rows = folded(at(planned("T7", "nano"), tmp_path)).rows
    assert "budget=rank=128" in rows
    assert "adapter.num_experts=8 adapter.top_k=2" in rows
    assert len(rows) == 18


def test_csv_has_a_row_a_figure_with_its_source(done: Reproduction) -> None:
    table = folded(done)
    rows = list(csv.DictReader(io.StringIO(render_folded(table, "csv"))))
    assert len(rows) == len(entry_rows(table))
    assert {row["source"] for row in rows} == {"measured", "published"}
    one = next(r for r in rows if (r["row"], r["column"]) == ("lora", "vqa_rad.closed_accuracy"))
    entry = table.entries["lora", "vqa_rad.closed_accuracy"]
    assert entry.value is not None
    assert float(one["value"]) == pytest.approx(100 * entry.value)


def small(value: float | None = 0.5, row: str = "lora") -> Folded:
    columns = (Column("a", "a"), Column("s", "s", "seconds"))
    entries = {(row, "a"): Entry(value), (row, "s"): Entry(value)}
    return Folded("T1", "ci", ("nano-vl",), columns, (row,), entries, {}, ())


def test_expectations_name_each_figure_outside_their_tolerance(tmp_path: Path) -> None:
    path = tmp_path / "T1-ci.yaml"
    assert write_expected(path, small(0.5)) == 1  # times are not compared
    expected = read_expected(path)
    off = expected.tolerances["percent"] / 100
    assert outside(small(0.5 + 0.99 * off), expected) == []
    assert outside(small(0.5 - 1.01 * off), expected) == [
        f"lora / a: {50 - 101 * off:g}, expected 50 within 15 percent"
    ]
    assert outside(small(None), expected) == ["lora / a: missing, expected 50"]
    renamed = ["lora / a: missing, expected 50", "other / a: not among the expectations"]
    assert outside(small(0.5, "other"), expected) == renamed
    with pytest.raises(RequestError, match="expectations of T1 at ci with 1 figures, wanted some of T1 at nano"):
        outside(replace(small(), scale="nano"), expected)
    with pytest.raises(WorkError, match="no run of T1 at scale ci is finished"):
        write_expected(path, small(None))
    with pytest.raises(RequestError, match="--write-expected writes it"):
        read_expected(tmp_path / "T2-ci.yaml")


@pytest.mark.parametrize("table", table_names())
def test_the_committed_expectations_are_of_what_the_plan_makes(table: str, tmp_path: Path) -> None:
    path = expected_path(table, "ci")
    if not path.exists():
        pytest.skip(f"{path.name} is not written yet: medbench reproduce {table} --scale ci --write-expected")
    expected = read_expected(path)
    assert (expected.table, expected.scale) == (table, "ci")
    if table != "T2":  # its rows follow from what is there
        empty = folded(at(planned(table, "ci"), tmp_path))
        keys = {
            (row, column.key) for row in empty.rows for column in empty.columns if column.unit in expected.tolerances
        }
        assert {(figure.row, figure.column) for figure in expected.figures} == keys


def test_finished_runs_are_found_in_folders_below_and_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = specs_of(planned("T1", "ci"))
    write_runs(tmp_path / "measured" / "kind", specs[:3], skill)
    found = plan_reproduction("T1", "ci", CATALOG, tmp_path / "measured")
    assert len(found.finished) == 3
    asked: list[str] = []

    def run(job: Job, wait: bool) -> None:
        if not is_finished(job.folder):
            asked.append(job.spec.identity)
            raise WorkError("out of memory")

    monkeypatch.setattr("medbench.sweep.run", run)
    said: list[str] = []
    lacking, failed = reproducing.reproduce(found, said.append)
    assert (lacking, failed) == ({}, {specs[3].identity: "out of memory"})
    assert asked == [specs[3].identity]
    assert said[0] == "T1 at scale ci (ci_T1): 4 runs, 3 finished, 1 left"


def test_what_has_no_data_here_is_left_out_and_the_rest_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = at(planned("T5", "nano"), tmp_path)
    asked: set[tuple[str, ...]] = set()
    monkeypatch.setattr("medbench.sweep.run", lambda job, wait: asked.add(tuple(job.spec.tasks)))
    lacking, failed = reproducing.reproduce(found, lambda line: None)
    assert failed == {}
    assert len(lacking) == 36  # three sequences of six runs and eighteen of interference, all on real sets
    assert all("pass --data-root" in why for why in lacking.values())
    assert {task.split("_")[0] for tasks in asked for task in tasks} == {"phantom"}
    real = replace(found, jobs={key: job for key, job in found.jobs.items() if key in lacking})
    real = replace(real, parts=tuple(part for part in found.parts if part.sweep.grid.data_root))
    with pytest.raises(RequestError, match="pass --data-root"):
        reproducing.reproduce(real, lambda line: None)


def test_unknown_tables_scales_and_missing_data_are_one_line(cli: Cli) -> None:
    for words, said in {
        ("T9",): "reproduce T9: no such table; known: T1, T2, T3, T4, T5, T6, T7",
        ("T3", "--runs", "nowhere"): "--runs nowhere: no such folder",
        ("T3", "--scale", "nan"): "--scale 'nan': did you mean nano?",
        ("T3", "--scale", "full"): "T3 at scale full needs local data: pass --data-root; --dry-run shows what it costs",
        (
            "T3",
            "--check",
            "--write-expected",
        ): "--check compares with what --write-expected writes; give one of the two",
        ("T3", "--seeds", "a"): "--seeds 'a': expected whole numbers, for example 0,1,2",
    }.items():
        found = cli("reproduce", *words)
        assert (found.returncode, found.stderr, found.stdout) == (2, f"medbench: {said}\n", "")


def test_the_command_folds_and_checks_what_is_there(tmp_path: Path, cli: Cli) -> None:
    write_runs(tmp_path / "runs", specs_of(planned("T1", "ci")), skill)
    words = ("reproduce", "T1", "--no-run", "--out", tmp_path / "runs", "--expected", tmp_path / "expected.yaml")
    assert cli(*words, "--write-expected").returncode == 0
    found = cli(*words, "--check", "--json")
    assert found.returncode == 0
    about = json.loads(found.stdout)
    assert (about["finished"], about["runs"], about["outside"]) == (4, 4, [])
    text = (tmp_path / "expected.yaml").read_text()
    value = next(
        f["value"] for f in about["figures"] if f["row"] == "lora" and f["column"] == "phantom_vqa.open_recall"
    )
    (tmp_path / "expected.yaml").write_text(text.replace(f"value: {round(value, 3)}", f"value: {round(value - 40, 3)}"))
    found = cli(*words, "--check")
    assert found.returncode == 1
    assert "lora / phantom_vqa.open_recall: " in found.stderr.splitlines()[-1]
    assert "| measured" in found.stdout


def test_every_plan_says_what_it_runs() -> None:
    for table in table_names():
        for scale in SCALES:
            plan = load_plan(table, scale)
            assert plan.grids or plan.studies
