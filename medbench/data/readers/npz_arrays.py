"""Arrays of an `.npz`, mapped into memory: reading one picture of a hundred thousand touches that picture alone.

A member that is stored as it is, is mapped in place. A compressed one is unpacked once a process, a block at a time,
into a temporary file that has no name and goes away with the process.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
import threading
import zipfile
import zlib
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

_LOCK = threading.Lock()
_LOCAL_HEADER = struct.Struct("<26xHH")
_CHUNK = 1 << 20


def open_array(path: Path, name: str) -> Any:
    """The array `name` of an npz, read-only; nothing in it is executed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no npz, lacks the array, or is damaged.
    """
    about = path.stat()
    with _LOCK:  # two threads would unpack it twice
        return _opened(path, name, about.st_mtime_ns, about.st_size)


@lru_cache(maxsize=32)
def _opened(path: Path, name: str, changed: int, size: int) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            try:
                member = archive.getinfo(f"{name}.npy")
            except KeyError as error:
                there = ", ".join(item.removesuffix(".npy") for item in archive.namelist()[:8])
                raise ValueError(f"there is no array {name!r} in it; there are {there or 'none'}") from error
            if member.compress_type == zipfile.ZIP_STORED:
                with path.open("rb") as file:
                    return _mapped(file, _start(file, member))
            with tempfile.TemporaryFile() as unpacked:
                with archive.open(member) as source:
                    shutil.copyfileobj(source, unpacked, _CHUNK)
                unpacked.flush()
                return _mapped(unpacked, 0)
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"not readable as npz ({error})") from error


def _start(file: IO[bytes], member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin: after the header that stands before them."""
    file.seek(member.header_offset)
    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return member.header_offset + _LOCAL_HEADER.size + int(name) + int(extra)


def _mapped(file: IO[bytes], start: int) -> Any:
    import numpy as np
    from numpy.lib import format as npy

    file.seek(start)
    version = npy.read_magic(file)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read_header is None:
        raise ValueError(f"an array in version {version} of numpy's format")
    shape, is_fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ValueError(f"an array of Python objects ({dtype})")
    order: Any = "F" if is_fortran else "C"
    return np.memmap(file, dtype, "r", file.tell(), shape, order)
