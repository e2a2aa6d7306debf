"""Key-value cache in one SQLite file, for vectors, scores and texts that take long to compute."""

from __future__ import annotations

import hashlib
import sqlite3
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

from typing_extensions import Self

from zsqretrieval._util.batches import batched
from zsqretrieval._util.processes import Lock
from zsqretrieval.errors import IntegrityError

_AT_ONCE = 500  # keys of one SELECT
_CHECKSUM = 8  # bytes before each value


def cache_key(*parts: str) -> bytes:
    """Return a 16-byte key that depends on every part and on their order."""
    return hashlib.blake2b(repr(parts).encode(errors="surrogatepass"), digest_size=16).digest()


@final
class Cache:
    """Bytes by key. Threads may share an instance, processes may share the file.

    Each value is stored with a checksum; a damaged value counts as missing, and the caller computes it again.

    Args:
        path: the file, made when missing, with its folder; None keeps the values in memory.
        capacity: maximum number of values; the oldest are dropped. None for no limit.

    Raises:
        IntegrityError: ``path`` is not a cache, or the file is damaged.
    """

    def __init__(self, path: Path | None = None, *, capacity: int | None = None) -> None:
        self.path, self._capacity, self._lock = path, capacity, Lock(gate=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._refusal():
            self._store = sqlite3.connect(path or ":memory:", check_same_thread=False, timeout=60)
        weakref.finalize(self, self._store.close)
        try:
            with self._transaction() as store:
                store.execute("CREATE TABLE IF NOT EXISTS cache (key BLOB UNIQUE, value BLOB NOT NULL)")
        except BaseException:
            self.close()
            raise

    def get_many(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the values of the keys that are stored and undamaged."""
        found: dict[bytes, bytes] = {}
        with self._transaction() as store:
            for some in batched(dict.fromkeys(keys), _AT_ONCE):
                marks = ",".join("?" * len(some))
                rows = store.execute(f"SELECT key, value FROM cache WHERE key IN ({marks})", some)
                for key, stored in rows:
                    checksum, value = stored[:_CHECKSUM], stored[_CHECKSUM:]
                    if checksum == _checksum(key, value):
                        found[key] = value
        return found

    def put_many(self, values: Mapping[bytes, bytes]) -> None:
        """Store values in one transaction; they are on disk when this returns.

        Raises:
            IntegrityError: the file cannot be written, for instance because the disk is full.
        """
        rows = [(key, _checksum(key, value) + value) for key, value in values.items()]
        with self._transaction() as store:
            store.executemany("INSERT OR REPLACE INTO cache VALUES (?, ?)", rows)
            if self._capacity is not None:
                newest = "(SELECT max(rowid) FROM cache)"
                store.execute(f"DELETE FROM cache WHERE rowid <= {newest} - ?", (self._capacity,))

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._refusal(), self._store:
            yield self._store

    @contextmanager
    def _refusal(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IntegrityError(f"the cache {self.path} cannot be used: {error}; delete the file") from error


def _checksum(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(key + value, digest_size=_CHECKSUM).digest()
