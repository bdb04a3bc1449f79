"""`medbench data ...`: look after the data sets. Parse, call one function, print."""

from __future__ import annotations

from typing import Annotated

import typer

from medbench.catalog import Catalog
from medbench.cli_options import DataRoot, Json, choice, print_json, split_names
from medbench.errors import RequestError, WorkError

data_app = typer.Typer(help="Look after the data sets.", no_args_is_help=True, rich_markup_mode=None)


@data_app.command("status")
def data_status(
    task: Annotated[list[str] | None, typer.Argument(help="Tasks [default: all].")] = None,
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show which tasks' data is there, and how to get the rest."""
    from medbench.listing import status_rows, text_table

    catalog = Catalog()
    names = [name for word in task or sorted(catalog.paths("tasks")) for name in catalog.task_names(word)]
    rows = status_rows(catalog, names, data_root or catalog.settings.data_root)
    print_json(rows) if as_json else print(text_table(rows))


@data_app.command("items")
def data_items(
    task: Annotated[str, typer.Argument(help="The task.")],
    split: Annotated[str, typer.Option(help="The split to list.")] = "test",
    on_bad_item: Annotated[str, typer.Option(help="fail, or skip (left out).")] = "fail",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """List what a split asks, for a model outside medbench to answer: ids, images, questions, types, never the gold."""
    from medbench.data.load import load_items
    from medbench.listing import item_rows, text_table

    catalog = Catalog()
    mode = choice("--on-bad-item", on_bad_item, ("fail", "skip"))
    rows = item_rows(load_items(catalog.task(task), split, data_root or catalog.settings.data_root, mode).items)
    print_json(rows) if as_json else print(text_table(rows))


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
    names = [name for word in task for name in catalog.task_names(word)]
    rows = [row for name in names for row in verify_task(catalog.task(name), root)]
    print_json(rows) if as_json else print(text_table(rows))
    wrong = [f"{row['task']} {row['split']}" for row in rows if row["problems"]]
    if wrong:
        raise WorkError(f"problems in {', '.join(wrong)}; the table says which")


@data_app.command("leaks")
def data_leaks(
    task: Annotated[str, typer.Argument(help="The task whose test might leak.")],
    against: Annotated[
        list[str] | None,
        typer.Option(help="Also look for its test in these tasks: names or wildcards, comma-separated."),
    ] = None,
    on_bad_item: Annotated[str, typer.Option(help="fail, or skip (skipped items are counted).")] = "fail",
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Show which test images and questions occur in training too, and what a split holds twice.

    exact: the same pixels. near: the same picture encoded, sized or lit otherwise, or the next slice of the same
    examination (perceptual hash). With --json also the nearest pairs, by the images' names.
    """
    from medbench.data.leaks import find_leaks, leak_tables
    from medbench.listing import text_table

    catalog = Catalog()
    names = [name for words in against or [] for word in split_names(words) for name in catalog.task_names(word)]
    if against and not names:
        raise RequestError("--against names no task; for example --against slake,pathvqa")
    card = catalog.task(task)
    others = {other.name: other for name in names if (other := catalog.task(name)).name != card.name}
    mode = choice("--on-bad-item", on_bad_item, ("fail", "skip"))
    found = find_leaks(card, list(others.values()), data_root or catalog.settings.data_root, mode)
    if as_json:
        print_json(found)
        return
    across, inside = leak_tables(found)
    print("\n\n".join(text_table(rows) for rows in (across, inside) if rows))
    print("\n" + "; ".join(f"{name}: {about}" for name, about in found["hashes"].items()))
