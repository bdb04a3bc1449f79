"""The first step of a run: read its data, decode every image, and look for tested images that were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medbench.data.card import Card
from medbench.data.check import Checked, check_images
from medbench.data.item import Item
from medbench.data.leaks import leaks_between
from medbench.data.load import load_items
from medbench.data.seen import read_seen, seen_again
from medbench.errors import RequestError, WorkError
from medbench.job import Data, Job
from medbench.plan_data import chosen
from medbench.progress import note, progress_bar
from medbench.protocol import refuse_leaks
from medbench.scoring.kinds import get_family
from medbench.spec import DataSpec
from medbench.workplace import Workplace


def check_data(job: Job, work: Workplace) -> Data:
    """Reads every split of the run and decodes every image once, before anything is computed.

    Raises:
        RequestError: zero-shot was asked for and a tested image was trained on, or a limit leaves one class.
        BadItemError: a bad row or image, with `on_bad_item` fail.
        WorkError: the data is not what the card says, or not what it was when the run began.
    """
    wanted = {(d.task, d.split): d for d in job.spec.tests}
    trained = {(p.data.task, p.data.split): p.data for stage in job.spec.stages for p in stage.mixture}
    wanted |= trained
    seen = {by: known for by, folder in _weights(job).items() if (known := read_seen(folder)) is not None}
    # What leaks is for the record, which one process writes; without training nothing can.
    look = bool(trained or seen) and work.is_first
    tests = [(test.task, test.split) for test in job.spec.tests]
    splits: dict[tuple[str, str], Checked] = {}
    about: dict[str, Any] = {}
    if work.is_first:
        for family in {get_family(job.cards[test.task].metadata.kind) for test in job.spec.tests}:
            for line in getattr(family, "check_resources", list)():
                note(line)
    with progress_bar("checking images") as step:
        for key, spec in wanted.items():
            card = job.cards[spec.task]
            loaded = load_items(card, spec.split, job.data_root, job.spec.on_bad_item)
            if spec.digest is not None and loaded.digest != spec.digest:
                raise WorkError(f"task {spec.task}: the data changed between planning and reading")
            items = chosen(card, spec, loaded.items, job.spec.seed)
            if key in tests:
                _refuse_one_class(card, spec, items)
            checked = check_images(spec.task, items, job.spec.on_bad_item, step, fingerprints=look)
            splits[key] = checked
            skipped = [*loaded.skipped, *checked.skipped]
            about[f"{spec.task}/{spec.split}"] = {
                "layout": loaded.layout,
                "items": len(checked.items),
                "images": len(checked.sizes),
                "digest": loaded.digest,
                "images_digest": checked.images,
                "skipped": len(skipped),
                "skipped_items": skipped[:100],
                # Not in the records of sets that are used whole.
                **({"left_out": loaded.left_out} if loaded.left_out else {}),
            }
    before = job.step("data")
    if before is not None and before != about:
        raise WorkError(
            f"run {job.folder.name[:12]}: the data changed since this run began; "
            f"put it back, or remove {job.folder} to start again"
        )
    if before is None and work.is_first:
        job.finish("data", about)
    leaks = leaks_between(splits, tests, trained) if look else []
    leaks += [leak for test in tests for leak in seen_again(splits[test], "/".join(test), seen)] if look else []
    refuse_leaks(leaks, job.protocol)
    for leak in leaks if job.spec.protocol == "zero_shot" else ():
        if near := leak["images"].get("near"):
            note(
                f"zero-shot? {near} of {leak['images']['total']} images of {leak['tested']} nearly match images of "
                f"{leak['trained']}; `data leaks` shows them"
            )
    return Data(splits, about, leaks)


def _refuse_one_class(card: Card, spec: DataSpec, items: Sequence[Item]) -> None:
    found = {item.answer for item in items} if card.metadata.kind == "classification" else set()
    if len(found) == 1:
        raise RequestError(
            f"task {spec.task}: --limit {spec.limit} leaves only items of class {found.pop()!r}, from which nothing "
            "can be told; take more"
        )


def _weights(job: Job) -> dict[str, Path]:
    """What was trained before this run, and the folder of its weights."""
    source = Path(job.backbone.source)
    given = {"adapter": job.adapter, "backbone": source.parent if source.is_file() else source}
    return {by: folder for by, folder in given.items() if folder is not None}
