"""Decompositions of weights on disk, shared by all methods, seeds and processes that start from the same weight.

One safetensors file a weight, named by the sha256 of what was decomposed; only the rows that are asked for are read.
Nothing depends on the cache: whatever is missing, damaged or cannot be written is computed, and what is read has to
fit the weight. The order of things:

1. Look; no lock is needed, since files appear whole (renamed into place) and an open one outlives its removal.
2. Take the lock of the weight, and look again: of several processes one computes and the others wait and read.
3. Compute, write, and remove what was not used for the longest time until the folder is within its size.
"""

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medbench.adapters.decomposition import Decomposition, Span, Triplets, find_decomposition, find_triplets
from medbench.errors import WorkError
from medbench.files import write_atomic
from medbench.progress import note

FORMAT = "medbench decomposition 1"  # part of every digest: files of another format are never found
GIB = 2**30
_OURS = re.compile(r"\.?[0-9a-f]{64}\.safetensors(\..*\.tmp)?")  # entries, and what a killed process left of one
_PIECE = 2**23  # bytes
_PATIENCE = 3600  # seconds that a lock or an unfinished file of another process is respected

_active: ContextVar["DecompositionCache | None"] = ContextVar("decomposition_cache", default=None)


@contextmanager
def decomposition_cache(folder: Path | str | None, max_bytes: int = 20 * GIB) -> Iterator[None]:
    """Inside, the decompositions of weights are read from a folder, and kept there.

    Several processes may share the folder. One that cannot be written is said once on stderr and then only read.

    Args:
        folder: Made when it is first written to; None switches caching off.
        max_bytes: What the folder may hold (a weight with h = 3584 takes 98 MiB); 0 switches caching off.

    Example:
        >>> with decomposition_cache("/tmp/decompositions", max_bytes=2 * GIB):  # doctest: +SKIP
        ...     model = get_peft_model(model, config)
    """
    cache = DecompositionCache(Path(folder), max_bytes) if folder is not None and max_bytes > 0 else None
    token = _active.set(cache)
    try:
        yield
    finally:
        _active.reset(token)


def singular_triplets(weight: torch.Tensor, spans: Sequence[Span]) -> Triplets:
    """Singular triplets [start, stop) of a weight for every span, through the cache that is active, if one is.

    Args:
        weight: [m, n], floating, with values.
        spans: Pieces of the descending spectrum, each within [0, min(m, n)).

    Raises:
        RequestError: The weight has values that are not finite.
    """
    cache = _active.get()
    return find_triplets(weight, spans) if cache is None else cache.triplets(weight, spans)


def weight_digest(weight: torch.Tensor) -> str:
    """The sha256 (hex) of shape, dtype and bytes of a weight; a contiguous one on the CPU is not copied.

    Of the bytes, the sha256 of every `_PIECE` goes in: pieces are read by as many threads as torch uses.
    """
    stored = weight.detach().contiguous().cpu()
    content = stored.view(torch.uint8).flatten().numpy().data
    pieces = [content[start : start + _PIECE] for start in range(0, len(content), _PIECE)]
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        digests = threads.map(lambda piece: hashlib.sha256(piece).digest(), pieces)
        about = f"{FORMAT} {tuple(stored.shape)} {stored.dtype}\n".encode()
        return hashlib.sha256(about + b"".join(digests)).hexdigest()


@dataclass
class DecompositionCache:
    """A folder of decompositions.

    Attributes:
        folder: Where they lie.
        max_bytes: What they may take together.
        writable: False once writing has failed.
    """

    folder: Path
    max_bytes: int
    writable: bool = True

    def triplets(self, weight: torch.Tensor, spans: Sequence[Span]) -> Triplets:
        """See `singular_triplets`."""
        digest = weight_digest(weight)
        found = self._read(digest, weight, spans)
        if found is not None:
            return found
        if not self.writable:
            return find_triplets(weight, spans)
        lock = self._lock(digest)
        try:
            found = self._read(digest, weight, spans) if lock else None
            if found is None:
                decomposition, found = find_decomposition(weight, spans)
                self._write(digest, decomposition)
            return found
        finally:
            if lock:
                lock.release()

    def _path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def _lock(self, digest: str) -> FileLock | None:
        # One lock for every first two digits: lock files cannot be removed safely, so there are at most 256 of them.
        path = self.folder / "locks" / digest[:2]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, timeout=_PATIENCE)
            lock.acquire()
        except (OSError, NotImplementedError) as error:  # also a lock that another process does not let go
            self._only_read(str(error))
            return None
        return lock

    def _read(self, digest: str, weight: torch.Tensor, spans: Sequence[Span]) -> Triplets | None:
        """What an entry has of the weight; None where there is none, or it is damaged, foreign or not enough."""
        path = self._path(digest)
        short, long = sorted(weight.shape)
        shapes = {"values": [short], "short": [short, short], "long": [short, long]}
        try:
            with safe_open(path, "pt") as file:
                names = set(file.keys())
                parts = {name: file.get_slice(name) for name in names & set(shapes)}
                if any(p.get_dtype() != "F64" or p.get_shape() != shapes[name] for name, p in parts.items()):
                    return None
                if not {"values", "short"} <= names:
                    return None
                found = Decomposition(parts["values"][:], parts["short"], parts.get("long")).triplets(weight, spans)
        except (OSError, SafetensorError):
            return None
        if found is not None:
            with suppress(OSError):
                path.touch()  # used now: the last to be removed
        return found

    def _write(self, digest: str, decomposition: Decomposition) -> None:
        tensors = {name: rows for name, rows in decomposition._asdict().items() if rows is not None}
        tensors = {name: rows.cpu().contiguous() for name, rows in tensors.items()}
        if not self.writable or sum(rows.nbytes for rows in tensors.values()) > self.max_bytes:
            return
        path = self._path(digest)
        try:
            write_atomic(path, lambda temporary: save_file(tensors, temporary, {"format": FORMAT}))
        except WorkError as error:
            self._only_read(str(error))
        else:
            self._make_room(path)

    def _make_room(self, used: Path) -> None:
        """Removes the entries that were not used for the longest time, but not `used`, and what broke off long ago."""
        entries = []
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _OURS.fullmatch(path.name):
                    with suppress(OSError):  # another process has just removed it
                        about = path.stat()
                        entries.append((about.st_mtime, about.st_size, path))
        total = sum(size for _, size, _ in entries)
        for changed, size, path in sorted(entries):
            unfinished = path.name.startswith(".")
            stale = unfinished and time.time() - changed > _PATIENCE
            if stale or (total > self.max_bytes and path != used and not unfinished):
                with suppress(OSError):  # gone already, or (on Windows) read by another process
                    path.unlink()
                total -= size

    def _only_read(self, reason: str) -> None:
        if self.writable:
            self.writable = False
            note(f"decompositions are not kept in {self.folder} ({reason}); they are computed again at every start")
