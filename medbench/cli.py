"""The command line: parse, call one function, print. `--json` prints one JSON document and nothing else on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from medbench import __version__
from medbench.catalog import Catalog
from medbench.cli_align import align
from medbench.cli_audit import audit
from medbench.cli_compare import compare, reliability, where_field
from medbench.cli_data import data_app
from medbench.cli_forget import forget, interference
from medbench.cli_lm_eval import lm_eval
from medbench.cli_nano import nano_app
from medbench.cli_options import DataRoot, Json, choice, print_json, seed_list, split_names
from medbench.cli_reproduce import claims, reproduce
from medbench.cli_routes import routes
from medbench.cli_score import import_, score
from medbench.cli_sweep import sweep
from medbench.errors import RequestError
from medbench.progress import speaks

app = typer.Typer(
    name="medbench",
    help="The fair test bench for adapters on medical vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")
app.add_typer(nano_app, name="nano")

Out = Annotated[Path, typer.Option(help="Folder of the run folders.")]
BackboneName = Annotated[
    str,
    typer.Option(help="A name of `list backbones`, a local folder, or a hub id of an image-text-to-text model."),
]
DEFAULT_OUT = Path("results/runs")


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
    tasks: Annotated[str, typer.Option(help="What to test: names, groups or wildcards, comma-separated.")],
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
    protocol: Annotated[
        str | None,
        typer.Option(
            help="zero_shot, in_domain: refuse anything else. transfer: each tested task after training on the others."
        ),
    ] = None,
    shots: Annotated[
        int | None, typer.Option(min=1, help="Train on this many images of each class, drawn by the seed.")
    ] = None,
    split: Annotated[
        str, typer.Option(help="test, or validation (then training leaves the validation images out).")
    ] = "test",
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Test items a task: the first ones (of classification: drawn by hash of the id)."),
    ] = None,
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
    blind: Annotated[
        str | None,
        typer.Option(
            help="Blank images instead of the real ones: test (after the usual training), or train (in training, too; "
            "method none, which is not trained: as test). Then `table --blind`."
        ),
    ] = None,
    trace: Annotated[
        str | None,
        typer.Option(help="Also test before training and at every epoch, or stage: trace.parquet, and in the record."),
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
    from medbench.job import jobs_of
    from medbench.methods import parse_settings
    from medbench.plan import Request, resolve
    from medbench.results.environment import command_words
    from medbench.run import run_all

    catalog = Catalog()
    root = data_root or catalog.settings.data_root
    request = Request(
        tasks=split_names(tasks),
        methods=split_names(method),
        train_tasks=[split_names(stage) for stage in train_tasks or []],
        backbone=backbone,
        budget=budget,
        seeds=seed_list(seeds),
        split=choice("--split", split, ("test", "validation")),
        protocol=choice("--protocol", protocol, ("zero_shot", "in_domain", "transfer")) if protocol else None,
        shots=shots,
        limit=limit,
        train_limit=train_limit,
        settings=parse_settings(settings or []),
        batch_size=batch_size,
        dtype=dtype,
        on_bad_item=choice("--on-bad-item", on_bad_item, ("fail", "skip")),
        adapter=adapter,
        data_root=root,
        blind=None if blind is None else choice("--blind", blind, ("train", "test")),
        trace=None if trace is None else choice("--trace", trace, ("epoch", "stage")),
    )
    plan = resolve(request, catalog)
    if dry_run:
        from medbench.preview import preview, preview_text

        rows = [preview(spec, plan, root) for spec in plan.specs]
        print_json({"plan": rows}) if as_json else print(preview_text(rows))
        return
    paper = "biomedclip" if plan.backbone.kind == "clip" else "qwen2.5-vl-7b"
    about = f"backbone {plan.backbone.name}: {plan.backbone.description} The paper's is --backbone {paper}."
    words = command_words(sys.argv[1:])
    jobs = jobs_of(plan, catalog.settings, out, root, device, split_names(report_to), words)
    folders = run_all(jobs, heading=about if plan.backbone.name.startswith("nano-") and not as_json else "")
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
                "blind": record.get("blind"),
                "tasks": {name: {key: task[key] for key in ("n", "metrics")} for name, task in record["tasks"].items()},
            }
            for record in records
        ]
        print_json({"runs": runs})
    else:
        print(render(build_table(folders), "md"), end="")


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="tasks, groups, methods, backbones, profiles or grids.")],
    as_json: Json = False,
) -> None:
    """List what there is by name."""
    from medbench.listing import LISTS, text_table

    rows = LISTS[choice("list", what, tuple(LISTS))](Catalog())
    print_json(rows) if as_json else print(text_table(rows))


@app.command()
def budget(
    backbone: BackboneName = "nano-vl",
    method: Annotated[str, typer.Option(help="Methods, comma-separated, or all.")] = "all",
    budget: Annotated[
        str | None,
        typer.Option(help="As for `run`; rows at the paper's ranks (paper) or at one rank (rank=R) do not compare."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what each method gets of a budget: rank, trainable parameters, their share, operations, memory.

    A method that the budget does not fit is refused; with --method all its row says why.
    """
    from medbench.budget_table import budget_rows, budget_text

    catalog = Catalog()
    names = catalog.method_names() if method == "all" else split_names(method)
    rows = budget_rows(catalog, backbone, names, budget, strict=method != "all")
    print_json(rows) if as_json else print(budget_text(rows, backbone, budget))


@app.command()
def table(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Run folders, or folders of them [default: results/runs].")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv, latex or html.")] = "md",
    metrics: Annotated[
        str | None, typer.Option(help="Comma-separated, or all [default: the main ones of each kind of task].")
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="What the image adds: sighted rows beside their blind twins, paired.")
    ] = False,
    paper: Annotated[
        str | None,
        typer.Option(help="In the shape of this table of the paper (T2), over its sets, with the published figures."),
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="With --paper: another group of tasks, for example real_cls.")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="With --paper: [METHOD:]FIELD=VALUE, which runs must have, as for compare."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fold runs into a table: methods as rows, tasks as columns, mean over seeds with interval.

    The best of each column is marked, and what is not separable from it, among rows of one budget and training.

    Blind runs are rows of their own; --blind sets each against the sighted row that it differs from in nothing else.
    --paper takes the sets of a row from many runs: one trained on each set, or on the others of the group.
    """
    from medbench.results.blind import build_blind_table, render_blind
    from medbench.results.paper_table import build_paper_table
    from medbench.results.paper_text import paper_frame, render_paper
    from medbench.results.tables import DEFAULT_METRICS, build_table, render

    chosen: Any = choice("--format", form, ("md", "csv", "latex", "html"))
    paths, names = runs or [DEFAULT_OUT], split_names(metrics) if metrics else DEFAULT_METRICS
    if paper is None and (group or where):
        raise RequestError("--group and --where are for --paper; name it, for example --paper T2")
    if paper is not None and (blind or metrics):
        raise RequestError("--paper has metrics of its own and sighted rows alone; leave --metrics and --blind out")
    if paper is not None:
        shaped = build_paper_table(paths, paper, Catalog(), group, [where_field(text) for text in where or []])
        frame, text = paper_frame(shaped), render_paper(shaped, chosen)
    elif blind:
        twins = build_blind_table(paths, names)
        frame, text = twins.frame(), render_blind(twins, chosen)
    else:
        built = build_table(paths, names)
        frame, text = built.frame(), render(built, chosen)
    print_json(json.loads(frame.to_json(orient="records"))) if as_json else print(text, end="")


app.command()(audit)
app.command()(align)
app.command()(claims)
app.command()(compare)
app.command()(forget)
app.command()(interference)
app.command()(reliability)
app.command()(reproduce)
app.command()(score)
app.command()(sweep)
app.command("import")(import_)
app.command()(routes)
app.command("lm-eval")(lm_eval)
