"""`medbench forget` and `medbench interference`: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medbench.cli_options import DataRoot, Json, choice, print_json, seed_list, split_names
from medbench.progress import speaks

if TYPE_CHECKING:
    from medbench.catalog import Catalog
    from medbench.request import Request
    from medbench.studies import Study

Methods = Annotated[str, typer.Option(help="Methods that train, comma-separated.")]
Seeds = Annotated[str, typer.Option(help="Comma-separated; each method is trained with each.")]
BackboneName = Annotated[str, typer.Option(help="A name of `list backbones`, a local folder, or a hub id.")]
BudgetText = Annotated[str | None, typer.Option(help="As for `run`.")]
Metrics = Annotated[
    str,
    typer.Option(
        help="Comma-separated means over items [default: closed_accuracy and open_recall of VQA, rouge_l of reports, "
        "accuracy of other tasks]."
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Test items a task, the first ones.")]
TrainLimit = Annotated[int | None, typer.Option(min=1, help="Training items a task, drawn by hash of the id.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="As for `run`: training.epochs=3, adapter.rho=10.")]
OnBadItem = Annotated[str, typer.Option(help="fail, or skip (skipped items are counted).")]
BatchSize = Annotated[int, typer.Option(min=1, help="Questions answered at a time.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Out = Annotated[Path, typer.Option(help="Folder of the run folders.")]
Report = Annotated[
    Path | None, typer.Option(help="Folder of the report [default: a folder below OUT, named after it].")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the runs and stop.")]
DEFAULT_OUT = Path("results/runs")


def forget(
    sequence: Annotated[str, typer.Option(help="Tasks in the order of training: names or groups, comma-separated.")],
    method: Methods = "lora,moelora,spectral_moe",
    seeds: Seeds = "0",
    trace: Annotated[str, typer.Option(help="When all tasks are tested: at every epoch, or at every stage.")] = "epoch",
    metrics: Metrics = "",
    bounds: Annotated[
        bool, typer.Option(help="Also train all tasks at once, and each alone, and test the bare backbone.")
    ] = True,
    backbone: BackboneName = "nano-vl",
    budget: BudgetText = None,
    limit: Limit = None,
    train_limit: TrainLimit = None,
    settings: Settings = None,
    on_bad_item: OnBadItem = "fail",
    batch_size: BatchSize = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    data_root: DataRoot = None,
    out: Out = DEFAULT_OUT,
    report: Report = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train one task after another on one adapter, test all after each, and say what was forgotten.

    The adapter is carried on from stage to stage, the optimiser is not. Every method and seed is one run, tested as it
    goes on; beside them run the bounds (--no-bounds leaves them out). Finished runs are not done again, and an
    interrupted one goes on. Writes the matrix, backward and forward transfer, forgetting, and plots.
    """
    from medbench.catalog import Catalog
    from medbench.studies import forgetting_study

    catalog = Catalog()
    every = choice("--trace", trace, ("epoch", "stage"))
    fields = {"limit": limit, "train_limit": train_limit, "batch_size": batch_size, "dtype": dtype, "trace": every}
    request = _request(catalog, sequence, method, seeds, backbone, budget, settings, on_bad_item, data_root, fields)
    study = forgetting_study(request, catalog, split_names(metrics), bounds)
    if dry_run:
        _preview(study, request.data_root, as_json)
        return
    _run(study, catalog, request, out, device, as_json)
    if speaks():
        _report_forgetting(study, out, report, as_json)


def _report_forgetting(study: Study, out: Path, report: Path | None, as_json: bool) -> None:
    from medbench.results.forgetting import forgetting_json, read_forgetting
    from medbench.results.forgetting_plots import plot_forgetting
    from medbench.results.forgetting_text import forgetting_frame, notes, render_forgetting
    from medbench.results.study_text import report_folder, write_report

    found = forgetting_json(read_forgetting(study, out))
    found["notes"] = notes(found)
    folder, text = report or report_folder(out, found), render_forgetting(found)
    files = [*write_report(folder, found, text, forgetting_frame(found)), *plot_forgetting(found, folder)]
    _print(found, text, files, as_json)


def interference(
    tasks: Annotated[str, typer.Option(help="Names, groups or wildcards, comma-separated.")],
    method: Methods = "lora,moelora,spectral_moe",
    seeds: Seeds = "0",
    metrics: Metrics = "",
    backbone: BackboneName = "nano-vl",
    budget: BudgetText = None,
    limit: Limit = None,
    train_limit: TrainLimit = None,
    settings: Settings = None,
    on_bad_item: OnBadItem = "fail",
    batch_size: BatchSize = 32,
    device: Device = "auto",
    dtype: Dtype = "auto",
    data_root: DataRoot = None,
    out: Out = DEFAULT_OUT,
    report: Report = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train on each task alone and on all at once, and say what the others cost each.

    The runs are those of `medbench run --tasks A` and `medbench run --tasks A,B,...`; finished ones are not done again.
    """
    from medbench.catalog import Catalog
    from medbench.studies import interference_study

    catalog = Catalog()
    fields = {"limit": limit, "train_limit": train_limit, "batch_size": batch_size, "dtype": dtype}
    request = _request(catalog, tasks, method, seeds, backbone, budget, settings, on_bad_item, data_root, fields)
    study = interference_study(request, catalog, split_names(metrics))
    if dry_run:
        _preview(study, request.data_root, as_json)
        return
    _run(study, catalog, request, out, device, as_json)
    if speaks():
        _report_interference(study, out, report, as_json)


def _report_interference(study: Study, out: Path, report: Path | None, as_json: bool) -> None:
    from medbench.results.interference import (
        interference_frame,
        interference_json,
        notes,
        read_interference,
        render_interference,
    )
    from medbench.results.study_text import report_folder, write_report

    found = interference_json(read_interference(study, out))
    found["notes"] = notes(found)
    folder, text = report or report_folder(out, found), render_interference(found)
    _print(found, text, write_report(folder, found, text, interference_frame(found)), as_json)


def _request(
    catalog: Catalog,
    tasks: str,
    method: str,
    seeds: str,
    backbone: str,
    budget: str | None,
    settings: list[str] | None,
    on_bad_item: str,
    data_root: Path | None,
    fields: dict[str, Any],
) -> Request:
    from medbench.methods import parse_settings
    from medbench.request import Request

    return Request(
        tasks=split_names(tasks),
        methods=split_names(method),
        seeds=seed_list(seeds),
        backbone=backbone,
        budget=budget,
        settings=parse_settings(settings or []),
        on_bad_item=choice("--on-bad-item", on_bad_item, ("fail", "skip")),
        data_root=data_root or catalog.settings.data_root,
        **fields,
    )


def _run(study: Study, catalog: Catalog, request: Request, out: Path, device: str, quiet: bool) -> None:
    from medbench.job import jobs_of
    from medbench.results.environment import command_words
    from medbench.run import run_all

    command = command_words(sys.argv[1:])
    jobs = jobs_of(study.plan, catalog.settings, out, request.data_root, device, command=command)
    described = study.plan.backbone
    about = f"backbone {described.name}: {described.description.rstrip('.')}. {len(jobs)} runs."
    run_all(jobs, heading="" if quiet else about)


def _preview(study: Study, data_root: Path | None, as_json: bool) -> None:
    from medbench.preview import preview, preview_text

    rows = [
        {"part": member.role, "task": member.task, "trace": member.spec.trace}
        | preview(member.spec, study.plan, data_root)
        for member in study.members
    ]
    if as_json:
        print_json({"plan": rows})
        return
    print(preview_text(rows))
    steps = sum(stage["steps"] for row in rows for stage in row["stages"])
    traced = [member.spec.trace for member in study.members if member.spec.trace]
    tested = f"; those of the sequence are tested before training and after every {traced[0]}" if traced else ""
    print(f"\n{len(rows)} runs, {steps:,} optimiser steps{tested}.")


def _print(found: dict[str, Any], text: str, files: list[Path], as_json: bool) -> None:
    if as_json:
        print_json(found | {"files": [str(path) for path in files]})
    else:
        print(text + "\n" + "\n".join(map(str, files)))
