"""`medbench reproduce` and `medbench claims`: parse, call, print."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medbench.cli_options import DataRoot, Json, choice, print_json, seed_list
from medbench.errors import RequestError, WorkError
from medbench.progress import note, speaks

if TYPE_CHECKING:
    from medbench.catalog import Catalog
    from medbench.reproduce_plan import Reproduction

DEFAULT_OUT = Path("results/runs")
ScaleName = Annotated[str, typer.Option(help="ci (generated data, minutes), nano, or full (the paper's backbones).")]


def reproduce(
    table: Annotated[str, typer.Argument(help="T1 to T7.")],
    scale: ScaleName = "ci",
    seeds: Annotated[str | None, typer.Option(help="Comma-separated [default: those of the grids].")] = None,
    run: Annotated[bool, typer.Option("--run/--no-run", help="Do what is left, or only fold what is there.")] = True,
    check: Annotated[
        bool, typer.Option("--check", help="Compare with the committed expectations of this table.")
    ] = False,
    write_expected: Annotated[
        bool, typer.Option("--write-expected", help="Write what was measured as the expectations.")
    ] = False,
    expected: Annotated[
        Path | None, typer.Option(help="The expectations [default: results/expected/TABLE-SCALE.yaml].")
    ] = None,
    runs: Annotated[
        list[Path] | None, typer.Option(help="A further folder in which finished runs are looked for; repeatable.")
    ] = None,
    form: Annotated[str, typer.Option("--format", help="md, csv, latex or html.")] = "md",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    data_root: DataRoot = None,
    out: Annotated[Path, typer.Option(help="Folder of the run folders.")] = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what it would cost, and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Do the runs of one of the paper's tables and print it in the paper's shape, beside what is published.

    Finished runs (in OUT, the folders one below it, and --runs) are not done again. Cells without data stay missing and
    say why. `full` is the paper's protocol on its backbones: --dry-run prints its cost, without data or weights.
    """
    from medbench.reproduce_plan import ReadOnce, load_plan

    load_plan(table, scale)  # before anything is resolved
    if check and write_expected:
        raise RequestError("--check compares with what --write-expected writes; give one of the two")
    shape: Any = choice("--format", form, ("md", "csv", "latex", "html"))
    catalog = ReadOnce()
    root = data_root or catalog.settings.data_root
    asked = None if seeds is None else seed_list(seeds)
    given = (table, scale, out, root, asked, device, runs or [])
    if dry_run:
        _dry_run(given, as_json)
        return
    found = _planned(given, catalog)
    _report(found, catalog, run, shape, as_json, (check, write_expected, expected))


def _planned(given: tuple[Any, ...], catalog: Catalog) -> Reproduction:
    from medbench.reproduce_plan import plan_reproduction
    from medbench.results.environment import command_words

    table, scale, out, root, seeds, device, places = given
    return plan_reproduction(
        table, scale, catalog, out, root, seeds, device, command_words(sys.argv[1:]), places=places
    )


def _dry_run(given: tuple[Any, ...], as_json: bool) -> None:
    from medbench.reproduce_cost import cost_json, cost_text
    from medbench.reproduce_plan import CostCatalog, ReadOnce

    finished: int | None
    if given[1] == "full":
        found, finished = _planned(given, CostCatalog()), None
    else:
        try:
            found = _planned(given, ReadOnce())
            finished = len(found.finished)
        except RequestError as error:  # a set whose card does not pin it, and that is not here
            found, finished = _planned(given, CostCatalog()), None
            note(f"which runs are finished is not known: {error}")
    print_json(cost_json(found, finished)) if as_json else print(cost_text(found, finished))


def _report(
    found: Reproduction, catalog: Catalog, run: bool, shape: Any, as_json: bool, against: tuple[bool, bool, Path | None]
) -> None:
    from medbench.reproduce import outcome_json, progress
    from medbench.reproduce import reproduce as do
    from medbench.reproduce_check import expected_path, outside, read_expected, write_expected
    from medbench.reproduce_fold import fold_table
    from medbench.reproduce_table import entry_rows, missing, render_folded

    check, write, path = against
    path = path or expected_path(found.table, found.scale)
    expected = read_expected(path) if check else None
    lacking, failed = do(found) if run else ({}, {})
    if not speaks():
        return
    if not run:
        note(progress(found))
    table = fold_table(found, catalog)
    about = outcome_json(found) | {"left_out": lacking, "failed": failed}
    wrong = outside(table, expected) if expected else None
    if as_json:
        about |= {"figures": entry_rows(table), "notes": list(table.notes), "missing": missing(table)}
        print_json(about | {"outside": wrong})
    else:
        print(render_folded(table, shape), end="")
    if write:
        note(f"{path}: {write_expected(path, table)} figures")
    if wrong is not None and not wrong:
        note(f"all figures are as {path} has them")
    if failed:
        raise WorkError(f"{found.table}: {len(failed)} runs failed: {'; '.join(dict.fromkeys(failed.values()))}")
    if wrong:
        raise WorkError(f"{found.table} at scale {found.scale}: {len(wrong)} figures are outside: {'; '.join(wrong)}")


def claims(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of run folders [default: results/runs].")] = None,
    table: Annotated[str | None, typer.Option(help="Those of one table alone: T3, T5, T6 or T7.")] = None,
    file: Annotated[
        Path | None, typer.Option("--claims", help="Claims of your own: a YAML as those in baselines/claims.")
    ] = None,
    scale: ScaleName = "nano",
    seeds: Annotated[str | None, typer.Option(help="Comma-separated [default: those of the grids].")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Say of each of the paper's claims whether finished runs support it, contradict it, or cannot tell.

    With the effect, its interval, p of other images and of other seeds (Holm's correction over the claims of a table),
    what would have been detected, and how many items the published difference would need. Claims whose runs are not
    there name the command that does them.
    """
    from medbench.reproduce_plan import ReadOnce
    from medbench.results.claim_text import claims_json, render_claims
    from medbench.results.claims import judge_claims

    if file and table:
        raise RequestError("--claims is a file of its own: leave --table out")
    catalog = ReadOnce()
    root = data_root or catalog.settings.data_root
    asked = None if seeds is None else seed_list(seeds)
    found = judge_claims(runs or [DEFAULT_OUT], scale, catalog, table, root, seeds=asked, file=file)
    print_json(claims_json(found)) if as_json else print(render_claims(found), end="")
