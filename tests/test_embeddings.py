"""The store of embeddings: what comes out is what went in, whoever asks, and a broken file says so."""

from __future__ import annotations

import hashlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medbench.errors import WorkError
from medbench.inference.embeddings import FILE, EmbeddingStore, content_key

SPACE, OTHER = (hashlib.sha256(name).hexdigest() for name in (b"one", b"other"))
GIB = 2**30


def vectors(count: int, seed: int = 0) -> dict[bytes, np.ndarray]:
    draws = np.random.default_rng(seed).normal(size=(count, 7)).astype(np.float32)
    return {content_key(f"{seed}:{n}".encode()): draws[n] for n in range(count)}


def test_what_was_put_in_comes_out_to_the_bit(tmp_path: Path) -> None:
    stored = vectors(1201)  # more than one query's worth
    EmbeddingStore(tmp_path, SPACE, GIB).put(stored)
    found = EmbeddingStore(tmp_path, SPACE, GIB).get([*stored, content_key(b"not there")])
    assert found.keys() == stored.keys()
    assert all(np.array_equal(found[key], stored[key]) for key in stored)


def test_namespaces_do_not_see_one_another(tmp_path: Path) -> None:
    one, other = EmbeddingStore(tmp_path, SPACE, GIB), EmbeddingStore(tmp_path, OTHER, GIB)
    stored = vectors(3)
    one.put(stored)
    assert other.get(list(stored)) == {}
    other.put({key: -row for key, row in stored.items()})
    assert all(np.array_equal(one.get([key])[key], row) for key, row in stored.items())


def test_beyond_its_limit_it_keeps_what_it_has_and_takes_no_more(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, SPACE, 1)
    first, second = vectors(2), vectors(2, seed=1)
    store.put(first)  # the empty file is larger than one byte, so nothing fits
    assert store.get(list(first)) == {}
    large = EmbeddingStore(tmp_path, SPACE, GIB)
    large.put(first)
    store.put(second)
    assert large.get([*first, *second]).keys() == first.keys()


WRITER = """
import sys
from pathlib import Path
import numpy as np
from medbench.inference.embeddings import EmbeddingStore, content_key
store = EmbeddingStore(Path(sys.argv[1]), sys.argv[2], 2**30)
for n in range(200):
    store.put({content_key(f"{sys.argv[3]}:{n}".encode()): np.full(5, n, np.float32)})
"""


def test_two_processes_write_at_once(tmp_path: Path) -> None:
    commands = [[sys.executable, "-c", WRITER, str(tmp_path), SPACE, name] for name in ("a", "b")]
    running = [subprocess.Popen(command) for command in commands]
    assert [process.wait(120) for process in running] == [0, 0]
    keys = {content_key(f"{name}:{n}".encode()): n for name in ("a", "b") for n in range(200)}
    found = EmbeddingStore(tmp_path, SPACE, GIB).get(list(keys))
    assert {key: row.tolist() for key, row in found.items()} == {key: [n] * 5 for key, n in keys.items()}


def test_a_file_that_is_no_store_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database, though long enough to look at" * 50)
    with pytest.raises(WorkError, match=rf"{FILE}.*remove the file"):
        EmbeddingStore(tmp_path, SPACE, GIB)


@pytest.mark.parametrize("damage", [lambda d: d[:3], lambda d: b"", lambda d: d[:-1] + bytes([d[-1] ^ 1])])
@pytest.mark.parametrize("part", ["vector", "whole"])
def test_a_damaged_entry_is_never_given_out(part: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    store, (key, row) = EmbeddingStore(tmp_path, SPACE, GIB), next(iter(vectors(1).items()))
    store.put({key: row})
    other = sqlite3.connect(tmp_path / FILE)
    ((entry,),) = other.execute("select vector from embeddings").fetchall()
    size = row.nbytes if part == "vector" else len(entry)
    other.execute("update embeddings set vector = ?", (damage(entry[:size]) + entry[size:],))
    other.commit()
    other.close()
    with pytest.raises(WorkError, match="an entry is damaged; remove the file"):
        store.get([key])


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    store, stored = EmbeddingStore(tmp_path, SPACE, GIB), vectors(2)
    store.put(stored)
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("create trigger no before insert on embeddings begin select raise(abort, 'disk full'); end")
    other.close()
    with pytest.raises(WorkError, match="disk full"):
        store.put(vectors(2, seed=1))
    assert store.get([*stored, *vectors(2, seed=1)]).keys() == stored.keys()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WorkError, match="embedding cache"):
        EmbeddingStore(tmp_path / "file" / "below", SPACE, GIB)
