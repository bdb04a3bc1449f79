"""Files that are whole or not there: canonical JSON, hashes, atomic writes, the lock of a run folder."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from medbench.errors import HeldError, WorkError


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal bytes. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """The sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path, pattern: str = "**/*") -> str:
    """The sha256 over the names and contents of a folder's files that match `pattern`."""
    found = sorted(p for p in folder.glob(pattern) if p.is_file())
    return digest([[p.relative_to(folder).as_posix(), file_digest(p)] for p in found])


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Lets `write` fill a temporary file beside `path`, then puts it in place: fsync, rename, fsync.

    Whoever reads `path` sees the old file or the new one, never a part. A failure (also a full disk) leaves
    nothing behind and is raised as a `WorkError` where the system refused the write.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        temporary = Path(name)
        os.close(handle)
        write(temporary)
        temporary.chmod(0o644)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise WorkError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically (UTF-8, as given)."""
    write_atomic(path, lambda temporary: temporary.write_bytes(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def write_parquet(path: Path, table: Any) -> None:
    """Writes a pandas table atomically."""
    write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))


def read_parquet(path: Path) -> Any:
    """Reads a parquet file as a pandas table; a missing or damaged one is a `WorkError` that names it."""
    import pandas as pd

    if not path.exists():
        raise WorkError(f"{path}: is missing")
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WorkError(f"{path}: not readable as parquet ({reason})") from error


def read_json(path: Path) -> Any:
    """Reads a JSON file; a broken one is a `WorkError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise WorkError(f"{path}: not readable as JSON ({error})") from error
    except RecursionError as error:
        raise WorkError(f"{path}: not readable as JSON (nested too deeply)") from error


def publish_folder(source: Path, target: Path) -> None:
    """Renames a finished folder into place; its files are synced first. An older `target` is replaced."""
    for file in source.rglob("*"):
        if file.is_file():
            _sync(file)
    if target.exists():
        shutil.rmtree(target)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def run_lock(folder: Path, what: str = "run", wait: bool = False) -> Iterator[None]:
    """Holds a folder for one process; the kernel lets go when that process dies, however it dies.

    Raises:
        HeldError: another process holds it (the message says which), and it is not waited for.
        WorkError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"cannot make the {what} folder {folder}: {error.strerror or error}") from error
    lock, holder = FileLock(folder / ".lock"), folder / ".lock.holder"
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout as error:
        try:
            who = holder.read_text(encoding="utf-8").strip()
        except OSError:  # not yet written, or already gone
            who = "another process"
        raise HeldError(f"{what} {folder.name[:12]} is held by {who}; wait for it or stop it") from error
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()} since {since}", encoding="utf-8")
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
