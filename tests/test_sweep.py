"""Sweeps on the toy set: each run is done once, one that fails stops no other, the table says what was measured."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Toy, make_toy

import medbench.results.axis_plots as axis_plots
import medbench.steps
import medbench.sweep
from medbench.__main__ import main
from medbench.catalog import Catalog
from medbench.data.load import load_items
from medbench.errors import RequestError, WorkError
from medbench.files import run_lock
from medbench.grid import Grid
from medbench.job import Job
from medbench.results.axis_plots import MOST_SERIES, plot_grid
from medbench.results.axis_table import Figure, figures, render_cells
from medbench.results.record import is_finished, read_record
from medbench.scoring.stats import Estimate
from medbench.sweep import Sweep, plan_sweep, run_sweep, sweep_jobs


@dataclass(frozen=True)
class Place:
    """A grid of three cells, one of them impossible, and where its runs lie."""

    toy: Toy
    grid: Path
    out: Path

    def words(self, *more: object) -> list[str]:
        given = ["sweep", self.grid, "--data-root", self.toy.root, "--out", self.out, "--device", "cpu", *more]
        return [str(word) for word in given]

    def sweep(self) -> Sweep:
        catalog = Catalog()
        return plan_sweep(catalog.grid(str(self.grid)), catalog, self.toy.root)

    def jobs(self) -> dict[str, Job]:
        return sweep_jobs(self.sweep(), Catalog(), self.out, "cpu")

    def write(self, **content: Any) -> None:
        self.grid.write_text(yaml.safe_dump(yaml.safe_load(self.grid.read_text()) | content))

    def finished(self) -> int:
        return sum(is_finished(folder) for folder in self.out.glob("*"))


def make_place(base: Path, toy: Toy, tiny: Path) -> Place:
    settings = {"training.batch_size": 8, "training.lr": 0.01, "training.epochs": 1, "adapter.top_k": 1}
    content = {
        "name": "toys",
        "description": "d",
        "source": "s",
        "base": {"tasks": str(toy.card), "backbone": str(tiny), "budget": "rank=8", "set": settings},
        "axes": {"adapter.num_experts": [2, 4, 16]},
        "cells": [],
        "seeds": [0],
        "data_root": True,
    }
    base.mkdir(exist_ok=True)
    (base / "toys.yaml").write_text(yaml.safe_dump(content))
    return Place(toy, base / "toys.yaml", base / "runs")


def command(words: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(words)
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Toy:
    """Its card pins questions and answers, so that what is finished can be named without the data."""
    toy = make_toy(tmp_path_factory.mktemp("small"), train=8, test=4)
    content: dict[str, Any] = toy.card_content()
    for split, about in content["metadata"]["splits"].items():
        about["digest"] = load_items(Catalog().task(str(toy.card)), split, toy.root).digest
    toy.write_card(content)
    return toy


@pytest.fixture
def place(tmp_path: Path, small: Toy, tiny: Path) -> Place:
    return make_place(tmp_path / "place", small, tiny)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, small: Toy, tiny: Path) -> Place:
    """The grid with two seeds, its possible cells run; not to be changed."""
    place = make_place(tmp_path_factory.mktemp("done"), small, tiny)
    place.write(seeds=[0, 1])
    assert run_sweep(place.sweep(), place.jobs(), lambda text: None) == {}
    return place


@pytest.fixture
def copied(done: Place, tmp_path: Path) -> Place:
    """The finished grid in a folder that may be changed."""
    shutil.copytree(done.out, tmp_path / "runs")
    return Place(done.toy, Path(shutil.copy(done.grid, tmp_path)), tmp_path / "runs")


def measured(place: Place) -> list[Figure]:
    cells = [(cell.point, cell.specs) for cell in place.sweep().cells]
    return figures(cells, {identity: job.folder for identity, job in place.jobs().items()})


def test_an_impossible_cell_is_reported_and_the_others_are_there(
    copied: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.out.rglob("*") if path.suffix != ".lock"}
    monkeypatch.setattr(medbench.steps, "fit", None)  # whatever would be done again would fail
    assert command(copied.words("--json")) == 1
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert [cell["status"] for cell in found["cells"]] == ["finished", "finished", "failed"]
    assert [set(cell["tasks"]) for cell in found["cells"]] == [{"toy"}, {"toy"}, set()]
    assert "multiple of its 16 experts" in found["cells"][2]["problem"]
    last = output.err.strip().splitlines()[-1]
    assert last == "medbench: grid toys: 1 of 3 cells failed: adapter.num_experts=16"
    assert output.err.count("finished before") == 4
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.is_file())
    files = [Path(path) for path in found["plots"]]
    assert {path.name for path in files} == {"toys-adapter-num_experts.png", "toys-adapter-num_experts.svg"}
    contents = [path.read_bytes() for path in files]
    assert all(len(content) > 2000 for content in contents)
    assert command(copied.words()) == 1
    assert [path.read_bytes() for path in files] == contents  # equal figures are equal bytes
    assert "| toy    | 2 " in capsys.readouterr().out


def test_a_run_that_fails_stops_no_other_and_is_the_only_one_done_again(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write(axes={"adapter.num_experts": [2, 4, 8]})
    real, begun = medbench.sweep.run, []

    def broken(job: Job, wait: bool = False) -> Path:
        begun.append(job.spec.method.adapter["num_experts"])
        if begun[-1] == 2:
            raise RuntimeError("out of\nmemory")
        return real(job, wait)

    monkeypatch.setattr(medbench.sweep, "run", broken)
    assert command(place.words()) == 1
    errors = capsys.readouterr().err
    assert begun == [2, 4, 8] and place.finished() == 2
    assert "adapter.num_experts=2 seed 0" in errors and "failed: RuntimeError: out of memory" in errors
    assert errors.strip().splitlines()[-1] == "medbench: grid toys: 1 of 3 cells failed: adapter.num_experts=2 seed 0"
    monkeypatch.setattr(medbench.sweep, "run", real)
    monkeypatch.setattr(medbench.sweep, "_so_far", lambda *_: " (begun)")
    assert command(place.words()) == 0
    assert place.finished() == 3 and capsys.readouterr().err.count("(begun)") == 1


def test_a_run_that_another_process_is_at_is_waited_for_at_the_end(done: Place, tmp_path: Path) -> None:
    place = replace(done, out=tmp_path / "runs")
    jobs = place.jobs()
    first, *others = jobs.values()
    other = ExitStack()
    other.enter_context(run_lock(first.folder))
    said: list[str] = []

    def announce(line: str) -> None:
        said.append(line)
        if "waiting for the process that is at it" in line:
            assert all(is_finished(job.folder) for job in others)
            assert not is_finished(first.folder)
            other.close()

    assert run_sweep(place.sweep(), jobs, announce) == {}
    assert is_finished(first.folder)
    assert f"left for later: run {first.folder.name[:12]} is held by process {os.getpid()} on " in "\n".join(said)
    assert len([line for line in said if "waiting for" in line]) == 1


def test_under_a_launcher_a_failure_stops_the_process(done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(job: Job, wait: bool = False) -> Path:
        raise WorkError("broken")

    monkeypatch.setattr(medbench.sweep, "run", broken)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(WorkError, match="broken"):
        run_sweep(done.sweep(), done.jobs(), lambda text: None)


def test_a_figure_is_the_mean_over_the_seeds_of_the_records(done: Place) -> None:
    found = measured(done)
    assert found
    for figure in found:
        cell = next(cell for cell in done.sweep().cells if cell.point == figure.point)
        values = [
            read_record(done.out / spec.identity)["tasks"]["toy"]["metrics"][figure.metric]["value"]
            for spec in cell.specs
        ]
        assert figure.seeds == (0, 1)
        assert figure.estimate.value == pytest.approx(np.mean(values), abs=1e-12)
        assert figure.seed_sd == pytest.approx(np.std(values, ddof=1), abs=1e-12)


def test_a_half_written_run_is_never_averaged(copied: Place) -> None:
    spec = copied.sweep().cells[0].specs[1]
    (copied.out / spec.identity / "record.json").unlink()
    found = measured(copied)
    assert {(figure.point["adapter.num_experts"], figure.seeds) for figure in found} == {(2, (0,)), (4, (0, 1))}
    assert "Not all rows have the same number of seeds." in render_cells(found, ["tiny"])


def test_a_record_of_another_schema_is_refused(copied: Place) -> None:
    path = copied.out / copied.sweep().cells[0].specs[0].identity / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    with pytest.raises(WorkError, match="record schema 99"):
        measured(copied)


def test_a_dry_run_shows_every_run_and_does_nothing(copied: Place, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copied.out / copied.sweep().cells[1].specs[1].identity)
    there = sorted(copied.out.rglob("*"))
    assert command(copied.words("--dry-run", "--json")) == 0
    rows = json.loads(capsys.readouterr().out)["plan"]
    assert [row["status"] for row in rows] == ["finished", "finished", "finished", "to do", "impossible"]
    ranked = [(row["rank"], row["stages"][0]["steps"], row["test_items"]) for row in rows[:4]]
    assert ranked == [(8, 2, {"toy": 8})] * 4  # 16 questions on 8 images, 8 a step
    assert sorted(copied.out.rglob("*")) == there
    assert command(copied.words("--dry-run", "--seeds", "1")) == 0
    output = capsys.readouterr().out
    assert "2 runs: 1 finished, 1 to do, 1 impossible; 2 steps to do." in output


def test_what_is_finished_needs_no_data(copied: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied.write(axes={"adapter.num_experts": [2, 4]})
    words = copied.words("--data-root", tmp_path / "nothing")
    assert command(words) == 0 and command([*words, "--dry-run"]) == 0
    assert "4 runs: 4 finished; 0 steps to do." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"axes": {"tasks": ["TOY", "vqa_rat"]}},
            "toys.yaml: tasks=vqa_rat: unknown task 'vqa_rat'; did you mean",
        ),
        ({"axes": {"budget": ["rank=8", "rang=8"]}}, "budget 'rang=8' is not understood"),
        ({"axes": {"method": ["lora", "lorra"]}}, "unknown method 'lorra'; did you mean"),
        ({"axes": {"tasks": ["TOY", "vqa_rad"]}}, "task vqa_rad: no data"),
        ({"axes": {"tasks": ["TOY", "vqa_rad"], "train_tasks": ["cxr_vishal"]}}, "cxr_vishal has no training split"),
        ({"axes": {"adapter.num_experts": [16, 32]}}, "no cell can be run; adapter.num_experts=16: "),
        ({"axes": {"adapter.eta": []}}, "axes.adapter.eta: is empty"),
        ({"axes": {"limit": [1]}, "plot": {"metric": "acuracy"}}, "plot.metric: unknown metric 'acuracy'"),
        ({"axes": {"limit": [1]}, "plot": {"metric": "all"}}, "plot.metric: unknown metric 'all'"),
    ],
)
def test_wrong_names_and_missing_data_stop_before_anything_is_run(
    place: Place, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    place.write(**yaml.safe_load(yaml.safe_dump(change).replace("TOY", str(place.toy.card))))
    assert command(place.words()) == 2
    errors = capsys.readouterr().err
    assert message in errors and len(errors.strip().splitlines()) == 1
    assert not place.out.exists()


def test_local_data_without_a_root_is_said_at_once(place: Place) -> None:
    grid = Grid.parse(yaml.safe_load(place.grid.read_text()), place.grid)
    found = Sweep(grid, place.sweep().cells, (0,), None)
    with pytest.raises(RequestError, match="grid toys is of local data: pass --data-root"):
        run_sweep(found, place.jobs(), lambda text: None)


def figure(value: float, metric: str = "accuracy", task: str = "t", **point: Any) -> Figure:
    named = {key.replace("__", "."): value for key, value in point.items()}
    return Figure(named, task, metric, Estimate(value, value - 0.1, value + 0.1, 10, 5), None, (0,), {}, None)


Drawn = dict[str, Any]


@pytest.fixture
def canvases(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """What is drawn, by name, instead of files."""
    found: Drawn = {}

    def keep(canvas: Any, out: Path, name: str) -> list[Path]:
        found[name] = canvas
        return [out / name]

    monkeypatch.setattr(axis_plots, "save", keep)
    return found


def grid_of(**content: Any) -> Grid:
    return Grid.parse({"name": "g", "description": "d", "source": "s", **content}, Path("g.yaml"))


def test_a_numeric_axis_is_a_rising_line_a_series_with_intervals(canvases: Drawn) -> None:
    grid = grid_of(axes={"adapter.rho": [100, 1, 10], "method": ["a", "b"]}, cells=[{"method": "none"}])
    points = [(rho, method) for rho in (100, 1, 10) for method in "ab"]
    found = [figure(0.2 + rho / 200 + 0.1 * (m == "b"), adapter__rho=rho, method=m) for rho, m in points]
    files, notes = plot_grid(grid, [*found, figure(0.5, method="none")], Path("x"), "about")
    assert [path.name for path in files] == ["g-adapter-rho", "g-method"] and not notes
    (axes,) = canvases["g-adapter-rho"].axes
    lines = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == ["method a", "method b", "method none"]
    assert axes.get_xscale() == "log"
    for label, more in (("method a", 0.0), ("method b", 10.0)):
        assert list(lines[label].get_xdata()) == [1, 10, 100]
        assert list(lines[label].get_ydata()) == pytest.approx([20.5 + more, 25 + more, 70 + more])
    assert list(lines["method none"].get_ydata()) == [50, 50]  # it has no rho: across
    intervals = [list(line.get_ydata()) for line in axes.get_lines() if line.get_label().startswith("_")]
    assert [10.5, 30.5] in [pytest.approx(ends) for ends in intervals] and len(intervals) == 6


def test_categories_are_points_in_the_order_of_the_grid(canvases: Drawn) -> None:
    grid = grid_of(axes={"tasks": ["t", "u"], "adapter.init": ["zero", "minor"]})
    values = {("t", "zero"): 0.3, ("t", "minor"): 0.4, ("u", "zero"): 0.5, ("u", "minor"): 0.6}
    found = [figure(v, task=t, tasks=[t], adapter__init=i) for (t, i), v in values.items()]
    plot_grid(grid, found, Path("x"), "about")
    (canvas,) = canvases.values()
    assert [axes.get_title() for axes in canvas.axes] == ["t", "u"]
    for axes, expected in zip(canvas.axes, ([30, 40], [50, 60]), strict=True):
        assert [text.get_text() for text in axes.get_xticklabels()] == ["zero", "minor"]
        assert list(axes.get_lines()[0].get_ydata()) == pytest.approx(expected)
        assert axes.get_lines()[0].get_linewidth() == 0


def test_two_numeric_axes_are_a_heat_map_with_the_values_in_their_squares(canvases: Drawn) -> None:
    grid = grid_of(axes={"adapter.num_experts": [8, 2], "adapter.top_k": [1, 2], "adapter.init": ["zero", "minor"]})
    found = [
        figure(n / 20 + k / 100 + (i == "minor") / 4, adapter__num_experts=n, adapter__top_k=k, adapter__init=i)
        for n in (2, 8)
        for k in (1, 2)
        for i in ("zero", "minor")
        if (n, k) != (2, 2)
    ]
    plot_grid(grid, found, Path("x"), "about")
    canvas = canvases["g-adapter-num_experts-by-adapter-top_k-accuracy"]
    zero, minor = (axes for axes in canvas.axes if axes.get_images())
    assert (zero.get_title(), minor.get_title()) == ("t\ninit zero", "t\ninit minor")
    shown = np.ma.filled(zero.get_images()[0].get_array().astype(float), np.nan)
    assert np.allclose(shown, [[11, 41], [np.nan, 42]], equal_nan=True)  # k = 1 below, N = 2 at the left
    assert {text.get_text().split("\n")[0] for text in minor.texts} == {"36.0", "66.0", "67.0"}


@pytest.mark.parametrize("values", [["minor", "random", "zero"], [1, 2, 16]])
def test_every_value_is_seen(values: list[Any], canvases: Drawn) -> None:
    name = "adapter.init" if isinstance(values[0], str) else "adapter.num_experts"
    key = name.replace(".", "__")
    found = [
        figure(0.3 + 0.1 * n, "accuracy", **{key: value, "adapter__scaling": scaling})
        for n, value in enumerate(values)
        for scaling in ("consistent", "alpha")
    ]
    plot_grid(grid_of(axes={name: values, "adapter.scaling": ["consistent", "alpha"]}), found, Path("x"), "about")
    for canvas in canvases.values():
        for axes in canvas.axes:
            canvas.canvas.draw()
            points = [axes.transData.transform(pair) for line in axes.lines for pair in line.get_xydata()]
            assert len(points) >= len(values)
            assert all(axes.bbox.padded(1).contains(*point) for point in points)


def test_hints_choose_what_is_drawn_and_too_many_lines_are_said(canvases: Drawn) -> None:
    many: dict[str, list[Any]] = {"adapter.rho": [1, 2], "adapter.eta": [float(n + 1) for n in range(MOST_SERIES + 1)]}
    found = [
        figure(0.5, metric, adapter__rho=rho, adapter__eta=eta)
        for metric in ("accuracy", "f1")
        for rho in many["adapter.rho"]
        for eta in many["adapter.eta"]
    ]
    _, notes = plot_grid(grid_of(axes=many, plot={"x": "adapter.rho"}), found, Path("x"), "about")
    assert not canvases and notes == ["adapter.rho: not drawn, 17 lines in one panel cannot be told apart (at most 16)"]
    plot_grid(grid_of(axes=many, plot={"x": "adapter.eta", "metric": "f1"}), found, Path("x"), "about")
    (canvas,) = canvases.values()
    assert [axes.get_ylabel() for axes in canvas.axes] == ["f1 (%)"]


def test_the_table_has_a_row_a_cell_and_task_with_its_axes(done: Place) -> None:
    lines = render_cells(measured(done), ["tiny"]).splitlines()
    cells = [[part.strip() for part in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    assert cells[0][:4] == ["task", "adapter.num_experts", "trainable", "seeds"]
    assert [[*row[:2], row[3]] for row in cells[1:]] == [["toy", "2", "2"], ["toy", "4", "2"]]
    assert all("±" in row[4] for row in cells[1:])


def test_the_rest_takes_about_as_long_as_what_was_done() -> None:
    so_far: Callable[..., str] = medbench.sweep._so_far
    assert so_far([], 3, 0) == ""
    assert so_far([60.0, 180.0], 3, 1) == " (1 failed, about 6 min left)"
