"""Tables folded from finished runs: what is averaged, what is not, and how it is written."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import Toy, make_toy
from test_run_common import do

from medbench.errors import RequestError
from medbench.results.record import read_record
from medbench.results.tables import Table, build_table, render


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return make_toy(tmp_path_factory.mktemp("tables"), train=8, test=6)


@pytest.fixture(scope="module")
def runs(small: Toy, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of one method with two seeds, of one with another setting, and of the plain backbone."""
    out = tmp_path_factory.mktemp("table_runs")
    return {
        "seed 0": do(small, tiny, out),
        "seed 1": do(small, tiny, out, seeds=(1,)),
        "other": do(small, tiny, out, settings={"training.lr": 0.02}),
        "none": do(small, tiny, out, "none"),
    }


@pytest.fixture(scope="module")
def table(runs: dict[str, Path]) -> Table:
    return build_table(runs.values())


def value(folder: Path, metric: str) -> float:
    return read_record(folder)["tasks"]["toy"]["metrics"][metric]["value"]


def test_only_runs_that_differ_in_the_seed_are_averaged(runs: dict[str, Path], table: Table) -> None:
    assert [row.method for row in table.rows] == ["none", "lora", "lora"]
    lora = [row for row in table.rows if row.method == "lora"]
    assert sorted(row.seeds for row in lora) == [(0,), (0, 1)]
    for metric in ("closed_accuracy", "open_recall"):
        (averaged,) = [row.cell("toy", metric) for row in lora if row.seeds == (0, 1)]
        seeds = [value(runs[name], metric) for name in ("seed 0", "seed 1")]
        assert averaged is not None
        assert averaged.estimate.value == pytest.approx(np.mean(seeds))
        assert averaged.seed_sd == pytest.approx(np.std(seeds, ddof=1))
        (single,) = [row.cell("toy", metric) for row in lora if row.seeds == (0,)]
        assert single is not None
        assert single.estimate.value == value(runs["other"], metric)
        assert single.seed_sd is None


def test_rows_that_differ_in_a_setting_say_so(table: Table) -> None:
    frame = table.frame()
    assert set(frame[frame["method"] == "lora"]["setting"]) == {"training.lr=0.01", "training.lr=0.02"}
    assert set(frame[frame["method"] == "none"]["setting"]) == {""}


def test_the_same_run_twice_counts_once(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / runs["seed 0"].name
    shutil.copytree(runs["seed 0"], copy)
    (row,) = build_table([runs["seed 0"], copy, runs["seed 1"], runs["seed 1"]]).rows
    assert row.seeds == (0, 1)
    assert row == build_table([runs["seed 0"], runs["seed 1"]]).rows[0]


def test_incomplete_runs_are_left_out_and_counted(runs: dict[str, Path], tmp_path: Path) -> None:
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(runs["seed 0"] / "spec.json", half)
    built = build_table([runs["seed 0"], half])
    assert built.incomplete == (str(half),)
    assert "1 incomplete runs are left out" in render(built, "md")
    with pytest.raises(RequestError, match="no finished run"):
        build_table([half])


def test_markdown_has_one_line_a_row(table: Table) -> None:
    header, rule, *rows = render(table, "md").split("\n\n")[0].splitlines()
    assert set(rule) <= set("|-: ")
    assert {line.count("|") for line in (header, rule, *rows)} == {header.count("|")}
    assert len(rows) == len(table.rows) == 3
    assert "toy closed_accuracy (n=6)" in header
    assert sum("±" in line for line in rows) == 1
    assert sum("training.lr=0.02" in line for line in rows) == 1


def test_csv_holds_the_figures_as_measured(runs: dict[str, Path], table: Table) -> None:
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert len(rows) == len(table.frame()) == 3 * 2
    (cell,) = [r for r in rows if r["method"] == "none" and r["metric"] == "closed_accuracy"]
    assert float(cell["value"]) == value(runs["none"], "closed_accuracy")
    assert (cell["n"], cell["seeds"], cell["seed_sd"]) == ("6", "1", "")


def test_latex_is_a_booktabs_table(table: Table) -> None:
    text = render(table, "latex")
    assert text.index(r"\toprule") < text.index(r"\midrule") < text.index(r"\bottomrule")
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    assert "_" not in body.replace(r"\_", "")
    assert all(line.startswith("%") for line in text[text.index(r"\end{tabular}") :].splitlines()[1:] if line)


def test_html_escapes_what_comes_from_records(runs: dict[str, Path], tmp_path: Path) -> None:
    hostile = "<script>alert('x')</script>"
    folder = tmp_path / "hostile"
    shutil.copytree(runs["seed 0"], folder)
    record = read_record(folder)
    record |= {"method": hostile, "backbone": hostile, "stages": [[hostile]]}
    record["spec"]["seed"] = 5
    (folder / "record.json").write_text(json.dumps(record))
    text = render(build_table([folder]), "html")
    assert "<table>" in text
    assert "<script" not in text
    assert text.count("&lt;script&gt;") == 3


def test_an_unknown_metric_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(RequestError, match="did you mean open_recall"):
        build_table([runs["none"]], ["open_recal"])


def test_all_metrics_can_be_shown(runs: dict[str, Path]) -> None:
    table = build_table([runs["seed 0"]], ["all"])
    metrics = read_record(runs["seed 0"])["tasks"]["toy"]["metrics"]
    assert {metric for _, metric in table.columns} == {name for name, m in metrics.items() if m["value"] is not None}
