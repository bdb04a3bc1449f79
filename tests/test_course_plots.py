"""The courses of traced runs, drawn from made-up runs of a packaged grid: no model, no data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import Cli
from test_reproduce_common import grid_specs, sweep_of, write_runs

from medbench.results.course_plots import courses, plot_courses
from medbench.spec import RunSpec

METRICS = ("closed_accuracy", "open_recall", "rouge_l")


def traced(spec: RunSpec, stage: int, task: str) -> float:
    return 0.3 * stage


def test_a_course_has_the_losses_of_all_stages_and_the_figures_of_every_point(tmp_path: Path) -> None:
    specs = grid_specs("nano_convergence")
    falling = [4.0 - 0.01 * n for n in range(100)]
    write_runs(tmp_path, specs, lambda spec, task: 0.3, lambda spec: [x + spec.seed for x in falling], traced)
    cells = [(cell.point, cell.specs) for cell in sweep_of("nano_convergence").cells]
    found = courses(cells, {spec.identity: tmp_path / spec.identity for spec in specs}, METRICS)
    assert [course.name for course in found] == [
        f"method={m}" for m in ("lora", "pissa", "moelora", "spectral_moe", "full_ft")
    ]
    steps, losses = found[0].losses
    assert len(steps) == 40 and (np.diff(steps) > 0).all()
    assert losses.mean() == pytest.approx(
        np.mean([part.mean() for part in np.array_split(np.array(falling) + 0.5, 40)])
    )
    assert list(found[0].figures) == ["closed_accuracy", "open_recall"]
    first, last = found[0].figures["closed_accuracy"]
    assert (first[0], last[0]) == (0, 10) and (first[1].value or 0) < (last[1].value or 0)
    files = plot_courses(found, tmp_path / "plots", "courses", "here")
    assert [path.suffix for path in files] == [".png", ".svg"]
    text = files[1].read_text()
    assert "method=spectral_moe" in text and "loss (nats)" in text and "optimiser steps" in text


def test_what_is_not_traced_or_not_finished_has_no_course(tmp_path: Path) -> None:
    plain = grid_specs("nano_T6")
    write_runs(tmp_path, plain, lambda spec, task: 0.0)
    cells = [(cell.point, cell.specs) for cell in sweep_of("nano_T6").cells]
    assert courses(cells, {spec.identity: tmp_path / spec.identity for spec in plain}, METRICS) == []
    later = grid_specs("nano_convergence")
    cells = [(cell.point, cell.specs) for cell in sweep_of("nano_convergence").cells]
    assert courses(cells, {spec.identity: tmp_path / spec.identity for spec in later}, METRICS) == []


def test_a_traced_request_is_another_run(cli: Cli) -> None:
    asked = ("run", "--method", "lora", "--tasks", "phantom_vqa", "--dry-run", "--json")
    plain, traced_one = (cli(*asked, *more).stdout for more in ((), ("--trace", "epoch")))
    assert plain != traced_one
    wrong = cli(*asked, "--trace", "step")
    assert wrong.returncode == 2 and wrong.stderr == "medbench: --trace 'step': did you mean stage?\n"
