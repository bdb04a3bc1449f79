"""`medbench score` and `medbench import`: answers that are already there, ours or any other system's. No model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from medbench.catalog import Catalog
from medbench.cli_options import DataRoot, Json, choice, print_json
from medbench.errors import RequestError
from medbench.scoring import Profile, get_profile, profile_names, score_pairs

Split = Annotated[str, typer.Option(help="The split that was answered.")]


def score(
    predictions: Annotated[
        Path | None,
        typer.Argument(help='A run folder, a predictions.parquet, or a JSONL of {"id", "prediction"}.'),
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task that was answered.")] = None,
    profile: Annotated[str, typer.Option(help="A scoring profile (`list profiles`), or all.")] = "medbench",
    split: Split = "test",
    pairs: Annotated[
        Path | None,
        typer.Option(help='Score bare pairs instead: a JSONL of {"gold", "prediction", "type"}, closed or open.'),
    ] = None,
    as_reported: Annotated[
        bool, typer.Option("--as-reported", help="With medevalkit: precision, recall, F1 rotated, as it prints them.")
    ] = False,
    plug_in: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="Score reports by a trained model, too, from the folder of its weights: chexbert, radgraph, "
            "ratescore or green; repeatable.",
        ),
    ] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Score stored predictions again, without a model; `--profile all` shows how far the rule alone moves a figure.

    A prediction's id is that of `data items`; missing, unknown and duplicate ids are an error that counts them.
    """
    everything = profile == "all"
    if everything and as_reported:
        raise RequestError("--as-reported: name the profile, for example --profile medevalkit")
    rule = None if everything else get_profile(profile, as_reported)
    if pairs is not None:
        if predictions is not None or task is not None:
            raise RequestError("--pairs needs no predictions and no --task: its lines hold the gold answers")
        if plug_in:
            raise RequestError("--plug-in scores the reports of a task, not --pairs")
        _score_pairs(pairs, rule, as_json)
        return
    if predictions is None or task is None:
        raise RequestError("score needs predictions and --task, or --pairs; for example: score RUN --task vqa_rad")

    from medbench.listing import text_table
    from medbench.results.rescore import moved_table, rescore, rescore_all
    from medbench.scoring.report_plugins import request_plugins

    catalog, plugins = Catalog(), request_plugins(plug_in or [])
    card, root = catalog.task(task), data_root or catalog.settings.data_root
    if rule is None:
        found = rescore_all(predictions, card, split, root, plugins)
        if not as_json:
            print(text_table(moved_table(found)))
            print(f"\nPercent, over the same {found['n']:,} predictions; moved: by the rule alone, in points.")
    else:
        found = rescore(predictions, card, split, rule, root, plugins)
        if not as_json:
            print(text_table([{"metric": name} | entry for name, entry in found["metrics"].items()]))
    if as_json:
        print_json(found)


def _score_pairs(path: Path, rule: Profile | None, as_json: bool) -> None:
    from medbench.listing import text_table
    from medbench.scoring.jsonl import read_jsonl

    rows = read_jsonl(path)
    rules = [rule] if rule is not None else [get_profile(name) for name in profile_names()]
    scored = {each.NAME: score_pairs(rows, each) for each in rules}
    if as_json:
        print_json(scored if rule is None else scored[rule.NAME])
        return
    lines = enumerate(zip(*scored.values(), strict=True), start=1)
    print(text_table([{"line": n, "profile": p} | row for n, of in lines for p, row in zip(scored, of, strict=True)]))


def import_(
    predictions: Annotated[
        Path, typer.Argument(help='A JSONL of {"id", "prediction"}, optionally "probabilities", or such a parquet.')
    ],
    task: Annotated[str, typer.Option(help="The task that was answered.")],
    model: Annotated[str, typer.Option(help="Whose answers they are: the name of the row.")],
    split: Split = "test",
    backbone_free: Annotated[
        bool,
        typer.Option("--backbone-free", help="The model is no adapter on a backbone (an API): none, not unknown."),
    ] = False,
    data_root: DataRoot = None,
    out: Annotated[Path, typer.Option(help="Folder of the run folders.")] = Path("results/runs"),
    as_json: Json = False,
) -> None:
    """Make a run of another system's answers, so that it gets a row of its own; importing a file again does no work.

    The ids are those of `data items`; every item needs one answer. How the model was made is recorded as unknown.
    """
    from medbench.results.environment import command_words
    from medbench.results.imported import import_predictions
    from medbench.results.record import read_record
    from medbench.results.tables import build_table, render

    catalog = Catalog()
    card = catalog.task(task)
    folder = import_predictions(
        predictions,
        model,
        card,
        choice("--split", split, ("test", "validation")),
        data_root or catalog.settings.data_root,
        out,
        "none" if backbone_free else "unknown",
        command_words(sys.argv[1:]),
    )
    record = read_record(folder)
    if not as_json:
        figures = record["tasks"][card.name]["metrics"]
        shown = [entry.metric for entry in card.metric_list if entry.metric in figures] or list(figures)
        print(render(build_table([folder], shown), "md"), end="")
        print(f"\nRun {folder}")
        return
    tasks = {name: {key: found[key] for key in ("n", "metrics")} for name, found in record["tasks"].items()}
    about = {key: record[key] for key in ("run", "method", "seed")} | {"folder": str(folder)}
    print_json({"runs": [about | {"tasks": tasks}]})
