"""Fetches a card's data from the hub into the hub's own cache. Needs the network; used only without a data root."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from pathlib import Path

from medbench.data.card import Card
from medbench.data.readers import get_reader
from medbench.errors import RequestError, WorkError
from medbench.hub import snapshot


def fetch(card: Card) -> Path:
    """The folder of a snapshot of the card's hub data set, archives unpacked beside it.

    Raises:
        RequestError: the hub cannot be reached or refuses; the message says how to get the data by hand.
    """
    hub = card.metadata.hub
    if hub is None:
        raise RequestError(f"task {card.name} is not on the hub: {card.metadata.obtain}")
    try:
        folder = snapshot(hub.id, "dataset", revision=hub.revision)
    except RequestError as error:
        raise RequestError(f"task {card.name}: {error}; pass --data-root, or {card.metadata.obtain}") from error
    for archive in sorted(folder.glob("*.zip")):
        unpack(archive, folder)
    problem = get_reader(hub.layout).find(folder, card.metadata.layouts[hub.layout])
    if problem:
        raise WorkError(f"task {card.name}: the hub's {hub.id} is not of layout {hub.layout}: {problem}")
    return folder


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip once, into `folder`; a member that would leave it is refused.

    Raises:
        WorkError: not a zip, or a member with an absolute path, `..` or a link.
    """
    marker = folder / f".{archive.name}.unpacked"
    if marker.exists():
        return
    root = folder.resolve()
    try:
        with zipfile.ZipFile(archive) as content:
            for member in content.infolist():
                target = (root / member.filename).resolve()
                is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
                if not target.is_relative_to(root) or is_link:
                    raise WorkError(f"{archive}: member {member.filename!r} would leave the folder; not unpacked")
            for member in content.infolist():
                if member.is_dir():
                    continue
                target = root / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with content.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # damaged, cut short, encrypted
        raise WorkError(f"{archive}: not a zip archive ({error})") from error
    marker.touch()
