"""`medbench sweep`: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medbench.cli_options import DataRoot, Json, choice, print_json, seed_list
from medbench.errors import WorkError
from medbench.progress import note, speaks

if TYPE_CHECKING:
    from medbench.job import Job
    from medbench.sweep import Sweep


def sweep(
    grid: Annotated[str, typer.Argument(help="A name of `list grids`, or a YAML file.")],
    seeds: Annotated[str | None, typer.Option(help="Comma-separated [default: those of the grid].")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    data_root: DataRoot = None,
    out: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("results/runs"),
    plots: Annotated[Path | None, typer.Option(help="Folder of the plots [default: OUT/plots].")] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv, latex or html.")] = "md",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Run a grid cell by cell, print its table and draw its axes, and the courses of traced runs.

    Finished runs are not done again, so the same command goes on after an interruption. A cell that fails is reported
    and does not stop the others; then the exit code is 1.
    """
    from medbench.catalog import Catalog
    from medbench.results.environment import command_words
    from medbench.sweep import failures, plan_sweep, run_sweep, sweep_jobs
    from medbench.sweep_report import preview_rows, preview_text

    shape: Any = choice("--format", form, ("md", "csv", "latex", "html"))
    catalog = Catalog()
    asked = None if seeds is None else seed_list(seeds)
    found = plan_sweep(catalog.grid(grid), catalog, data_root or catalog.settings.data_root, asked)
    jobs = sweep_jobs(found, catalog, out, device, command_words(sys.argv[1:]))
    if dry_run:
        rows = preview_rows(found, jobs)
        print_json({"grid": found.grid.name, "plan": rows}) if as_json else print(preview_text(rows))
        return
    failed = run_sweep(found, jobs)
    if speaks():
        _report(found, jobs, failed, plots or out / "plots", shape, as_json)
    lost = failures(found, failed)
    if lost:
        raise WorkError(f"grid {found.grid.name}: {len(lost)} of {len(found.cells)} cells failed: {'; '.join(lost)}")


def _report(found: Sweep, jobs: dict[str, Job], failed: dict[str, str], plots: Path, shape: Any, as_json: bool) -> None:
    from medbench.results.axis_plots import plot_grid
    from medbench.results.axis_table import figures, render_cells, tested_metrics
    from medbench.results.course_plots import courses, plot_courses
    from medbench.sweep_report import report_json

    cells = [(cell.point, cell.specs) for cell in found.cells]
    folders = {identity: job.folder for identity, job in jobs.items()}
    metrics = tested_metrics(found.grid.plot.metric)
    measured = figures(cells, folders, metrics)
    backbones = list(dict.fromkeys(job.backbone.name for job in jobs.values()))
    seeds = ", ".join(map(str, found.seeds))
    mean = f"mean over seeds {seeds}" if len(found.seeds) > 1 else f"seed {seeds}"
    about = f"{', '.join(backbones)}; {mean}; image-clustered 95 % intervals"
    files, notes = plot_grid(found.grid, measured, plots, about) if measured else ([], [])
    for line in notes:
        note(line)
    if traced := courses(cells, folders, metrics):
        files += plot_courses(traced, plots, f"{found.grid.name}-courses", about)
    if as_json:
        print_json(report_json(found, failed, measured, files))
    elif measured:
        print(render_cells(measured, backbones, shape), end="")
        if shape == "md":
            print("\n" + "\n".join(map(str, files)))
