"""The command line: parse, call one function, print. `--json` prints one JSON document and nothing else on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medbench import __version__
from medbench.catalog import Catalog
from medbench.errors import RequestError, did_you_mean
from medbench.progress import speaks

app = typer.Typer(
    name="medbench",
    help="The fair test bench for adapters on medical vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look after the data sets.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder that holds the data sets' folders [default: data_root of medbench.toml, else the hub]."),
]
Out = Annotated[Path, typer.Option(help="Folder of the run folders.")]
BackboneName = Annotated[
    str,
    typer.Option(help="A name of `list backbones`, a local folder, or a hub id of an image-text-to-text model."),
]
DEFAULT_OUT = Path("results/runs")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False))


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    tasks: Annotated[str, typer.Option(help="What to test: names or wildcards, comma-separated.")],
    method: Annotated[str, typer.Option(help="Methods, comma-separated; each is a run of its own.")] = "spectral_moe",
    train_tasks: Annotated[
        list[str] | None,
        typer.Option(help="Train on these instead of the tested ones; given again: the next stage of a sequence."),
    ] = None,
    backbone: BackboneName = "nano-vl",
    budget: Annotated[
        str | None,
        typer.Option(
            help="like=METHOD[:RANK], 2M, 1%, rank=R or paper [default: like=spectral_moe at the backbone's rank]."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="Comma-separated; each is a run of its own.")] = "0",
    protocol: Annotated[str | None, typer.Option(help="Refuse anything but zero_shot or in_domain.")] = None,
    split: Annotated[
        str, typer.Option(help="test, or validation (then training leaves the validation images out).")
    ] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Test items a task, the first ones.")] = None,
    train_limit: Annotated[
        int | None, typer.Option(min=1, help="Training items a task, drawn by hash of the id.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="training.lr=1e-4, adapter.rho=10, mixture.TASK=2, processor.max_pixels=200704, ..."
        ),
    ] = None,
    on_bad_item: Annotated[str, typer.Option(help="fail, or skip (skipped items are counted).")] = "fail",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    adapter: Annotated[
        str | None, typer.Option(help="Test this peft adapter (folder or hub id) instead of training one.")
    ] = None,
    report_to: Annotated[str, typer.Option(help="Experiment trackers, as transformers names them.")] = "",
    data_root: DataRoot = None,
    out: Out = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Train adapters under one budget, answer the test questions, score them and print a table.

    The same request twice does no work the second time; an interrupted one goes on from its last finished step.
    """
    from medbench.job import Job
    from medbench.methods import parse_settings
    from medbench.plan import Request, resolve
    from medbench.results.environment import command_words
    from medbench.run import run_all

    catalog = Catalog()
    root = data_root or catalog.settings.data_root
    request = Request(
        tasks=_split(tasks),
        methods=_split(method),
        train_tasks=[_split(stage) for stage in train_tasks or []],
        backbone=backbone,
        budget=budget,
        seeds=_seeds(seeds),
        split=_choice("--split", split, ("test", "validation")),
        protocol=_choice("--protocol", protocol, ("zero_shot", "in_domain")) if protocol else None,
        limit=limit,
        train_limit=train_limit,
        settings=parse_settings(settings or []),
        batch_size=batch_size,
        dtype=dtype,
        on_bad_item=_choice("--on-bad-item", on_bad_item, ("fail", "skip")),
        adapter=adapter,
        data_root=root,
    )
    plan = resolve(request, catalog)
    if dry_run:
        from medbench.preview import preview, preview_text

        rows = [preview(spec, plan, root) for spec in plan.specs]
        _print_json({"plan": rows}) if as_json else print(preview_text(rows))
        return
    about = f"backbone {plan.backbone.name}: {plan.backbone.description} The paper's is --backbone qwen2.5-vl-7b."
    jobs = [
        Job(
            spec,
            plan.cards,
            plan.backbone,
            out / spec.identity,
            root,
            device,
            tuple(_split(report_to)),
            plan.adapter,
            command_words(sys.argv[1:]),
        )
        for spec in plan.specs
    ]
    folders = run_all(jobs, heading=about if plan.backbone.scale == "nano" and not as_json else "")
    if speaks():
        _report(folders, as_json)


def _report(folders: list[Path], as_json: bool) -> None:
    from medbench.results.record import read_record
    from medbench.results.tables import build_table, render

    if as_json:
        records = [read_record(folder) for folder in folders]
        runs = [
            {
                **{key: record[key] for key in ("run", "method", "seed")},
                "tasks": {name: {key: task[key] for key in ("n", "metrics")} for name, task in record["tasks"].items()},
            }
            for record in records
        ]
        _print_json({"runs": runs})
    else:
        print(render(build_table(folders), "md"), end="")


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in _split(text)]
    except ValueError as error:
        raise RequestError(f"--seeds {text!r}: expected whole numbers, for example 0,1,2") from error
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**32:  # what numpy takes
        raise RequestError(f"--seeds {text!r}: expected numbers from 0 to 2**32 - 1, for example 0,1,2")
    return seeds


def _choice(option: str, value: str, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise RequestError(f"{option} {value!r}: {did_you_mean(value, known)}")
    return value


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="tasks, methods, backbones or profiles.")],
    as_json: Json = False,
) -> None:
    """List what there is by name."""
    from medbench.listing import LISTS, text_table

    rows = LISTS[_choice("list", what, tuple(LISTS))](Catalog())
    _print_json(rows) if as_json else print(text_table(rows))


@app.command()
def budget(
    backbone: BackboneName = "nano-vl",
    method: Annotated[str, typer.Option(help="Methods, comma-separated, or all.")] = "all",
    budget: Annotated[str | None, typer.Option(help="As for `run`.")] = None,
    as_json: Json = False,
) -> None:
    """Show the rank and the trainable parameters that each method gets of a budget."""
    from medbench.listing import budget_rows, text_table

    catalog = Catalog()
    names = sorted(catalog.paths("methods")) if method == "all" else _split(method)
    rows = budget_rows(catalog, backbone, names, budget, strict=method != "all")
    _print_json(rows) if as_json else print(text_table(rows))


@data_app.command("status")
def data_status(
    task: Annotated[list[str] | None, typer.Argument(help="Tasks [default: all].")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show which tasks' data is there, and how to get the rest."""
    from medbench.listing import status_rows, text_table

    catalog = Catalog()
    rows = status_rows(catalog, task or sorted(catalog.paths("tasks")), data_root or catalog.settings.data_root)
    _print_json(rows) if as_json else print(text_table(rows))


@data_app.command("verify")
def data_verify(
    task: Annotated[list[str], typer.Argument(help="Tasks.")],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Check counts, digests and every image of tasks; exit 1 when something is wrong."""
    from medbench.data.verify import verify_task
    from medbench.listing import text_table

    catalog = Catalog()
    root = data_root or catalog.settings.data_root
    rows = [row for name in task for row in verify_task(catalog.task(name), root)]
    _print_json(rows) if as_json else print(text_table(rows))
    if any(row["problems"] for row in rows):
        raise typer.Exit(1)


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="A run folder or a predictions.parquet.")],
    task: Annotated[str, typer.Option(help="The task that was answered.")],
    profile: Annotated[str, typer.Option(help="A scoring profile (`list profiles`).")] = "medbench",
    split: Annotated[str, typer.Option(help="The split that was answered.")] = "test",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Score stored predictions again, without a model."""
    from medbench.listing import text_table
    from medbench.results.rescore import rescore

    catalog = Catalog()
    figures = rescore(predictions, catalog.task(task), split, profile, data_root or catalog.settings.data_root)
    if as_json:
        _print_json(figures)
    else:
        print(text_table([{"metric": name} | entry for name, entry in figures["metrics"].items()]))


@app.command()
def table(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them [default: results/runs].")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv, latex or html.")] = "md",
    metrics: Annotated[str, typer.Option(help="Comma-separated, or all.")] = "closed_accuracy,open_recall",
    as_json: Json = False,
) -> None:
    """Fold runs into a table: methods as rows, tasks as columns, mean over seeds with interval."""
    from medbench.results.tables import build_table, render

    chosen: Any = _choice("--format", form, ("md", "csv", "latex", "html"))
    built = build_table(runs or [DEFAULT_OUT], _split(metrics))
    if as_json:
        frame = built.frame()
        _print_json(json.loads(frame.to_json(orient="records")))
    else:
        print(render(built, chosen), end="")
