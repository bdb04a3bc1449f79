"""A store of image and text embeddings, by content: what a frozen tower has embedded once is not embedded again.

One SQLite file, so that several processes may use it at once and a killed one leaves it whole. An entry's key is the
sha256 of what was embedded (an image's bytes, a prompt); its namespace is the sha256 of everything else that decides
the embedding (weights, preprocessing, dtype). SQLite does not see that a bit of an entry has changed, and figures hang
on them: every entry ends in the first bytes of a sha256 of its key and itself.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medbench.errors import WorkError

FILE = "embeddings.sqlite"
#: Keys that one query asks for; SQLite takes 999 variables in old builds.
_ASKED = 500
#: Bytes of the sha256 behind a vector.
_CHECK = 8
_SCHEMA = """
create table if not exists embeddings (
    namespace blob not null, key blob not null, vector blob not null, primary key (namespace, key)
)
"""


def content_key(data: bytes) -> bytes:
    """The key of an image's or a prompt's bytes."""
    return hashlib.sha256(data).digest()


def _check(key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(key + content).digest()[:_CHECK]


class EmbeddingStore:
    """Embeddings of one namespace, float32, exactly as they were put in."""

    def __init__(self, folder: Path, namespace: str, limit_bytes: int):
        """Opens or makes the store.

        Args:
            folder: of the file.
            namespace: hex digest; names what decides an embedding beside its key.
            limit_bytes: once the file is larger, nothing more is put in.

        Raises:
            WorkError: the file cannot be opened or is no such store.
        """
        self.path, self.limit = folder / FILE, limit_bytes
        self.namespace = bytes.fromhex(namespace)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._connection.execute("pragma journal_mode=wal")
            self._connection.execute("pragma synchronous=normal")
            self._connection.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The embeddings [D] that are there, by key.

        Raises:
            WorkError: the file is damaged, or an entry is.
        """
        found: dict[bytes, NDArray[np.float32]] = {}
        try:
            for start in range(0, len(keys), _ASKED):
                asked = keys[start : start + _ASKED]
                marks = ",".join("?" * len(asked))
                query = f"select key, vector from embeddings where namespace = ? and key in ({marks})"  # noqa: S608
                for key, vector in self._connection.execute(query, (self.namespace, *asked)):
                    content, check = vector[:-_CHECK], vector[-_CHECK:]
                    if check != _check(key, content):
                        raise self._failed(ValueError("an entry is damaged"))
                    found[key] = np.frombuffer(content, dtype=np.float32)
        except sqlite3.Error as error:
            raise self._failed(error) from error
        return found

    def put(self, vectors: Mapping[bytes, NDArray[np.float32]]) -> None:
        """Puts embeddings in, all or none; does nothing once the file is larger than its limit.

        Raises:
            WorkError: the file cannot be written.
        """
        plain = {key: np.ascontiguousarray(vector, np.float32).tobytes() for key, vector in vectors.items()}
        rows = [(self.namespace, key, content + _check(key, content)) for key, content in plain.items()]
        try:
            if self.path.stat().st_size > self.limit:
                return
            self._connection.execute("begin immediate")
            try:
                self._connection.executemany("insert or replace into embeddings values (?, ?, ?)", rows)
                self._connection.execute("commit")
            except BaseException:
                self._connection.execute("rollback")
                raise
        except (OSError, sqlite3.Error) as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def _failed(self, error: Exception) -> WorkError:
        return WorkError(f"embedding cache {self.path}: {error}; remove the file, or set cache_gb = 0 in medbench.toml")
