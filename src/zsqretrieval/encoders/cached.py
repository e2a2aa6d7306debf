"""Encodes every image and text once, and remembers."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.data.images import digest
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import Image

__all__ = ["CachedEncoder"]

T = TypeVar("T")


class CachedEncoder:
    """Wraps an :class:`~zsqretrieval.protocols.Encoder` and computes no vector twice.

    An image is known by the digest of its bytes, wherever they lie. Vectors are kept under the encoder's
    fingerprint, so one file may serve many encoders. Threads may share an instance, processes a file.

    Args:
        encoder: the encoder that computes.
        path: SQLite file that outlives the process, made when missing; None to remember in memory only.
        capacity: how many vectors are kept; beyond it the oldest are forgotten.

    Raises:
        IntegrityError: ``path`` is not a cache, or damaged.
        InvalidInputError: ``capacity`` is below 1.
    """

    def __init__(
        self, encoder: Encoder, path: str | Path | None = None, *, capacity: int = 1_000_000
    ) -> None:
        if capacity < 1:
            raise InvalidInputError(f"capacity must be at least 1, not {capacity}")
        self.encoder = encoder
        self.path = None if path is None else Path(path)
        self.capacity = capacity
        self._lock = threading.Lock()
        with self._refusal():
            self._store = sqlite3.connect(self.path or ":memory:", check_same_thread=False, timeout=60)
        weakref.finalize(self, self._store.close)
        with self._transaction() as store:
            store.execute("CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB)")

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self.encoder.dim

    @property
    def fingerprint(self) -> str:
        """That of the wrapped encoder: the vectors are the same."""
        return self.encoder.fingerprint

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images not seen before; see :meth:`zsqretrieval.protocols.Encoder.encode_image`."""
        names = [f"image {digest(image)}" for image in images]
        return self._encode(self.encoder.encode_image, images, names, batch_size)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts not seen before; see :meth:`zsqretrieval.protocols.Encoder.encode_text`."""
        if isinstance(texts, str):
            raise InvalidInputError(f"texts must be a sequence of strings, not one string; try [{texts!r}]")
        return self._encode(self.encoder.encode_text, texts, [f"text {text}" for text in texts], batch_size)

    def close(self) -> None:
        """Close the file; the encoder cannot be used afterwards."""
        self._store.close()

    def _encode(
        self,
        encode: Callable[..., NDArray[np.float32]],
        items: Sequence[T],
        names: list[str],
        batch_size: int,
    ) -> NDArray[np.float32]:
        keys = [
            hashlib.sha256(f"{self.fingerprint} {name}".encode(errors="surrogatepass")).digest()
            for name in names
        ]
        known = self._read(set(keys))
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        if new:
            known |= zip(new, encode(list(new.values()), batch_size=batch_size), strict=True)
            self._write({key: known[key] for key in new})
        return np.stack([known[key] for key in keys]) if keys else np.empty((0, self.dim), np.float32)

    def _read(self, keys: set[bytes]) -> dict[bytes, NDArray[np.float32]]:
        found = {}
        with self._transaction() as store:
            for key in keys:
                row = store.execute("SELECT vector FROM vectors WHERE digest = ?", (key,)).fetchone()
                if row is not None and len(row[0]) == 4 * self.dim:
                    vector = np.frombuffer(row[0], "<f4").astype(np.float32)
                    if abs(np.linalg.norm(vector) - 1) < 1e-3:  # else damaged on disk: computed anew
                        found[key] = vector
        return found

    def _write(self, vectors: dict[bytes, NDArray[np.float32]]) -> None:
        rows = [(key, vector.astype("<f4").tobytes()) for key, vector in vectors.items()]
        with self._transaction() as store:
            store.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            store.execute(
                "DELETE FROM vectors WHERE rowid <= (SELECT max(rowid) FROM vectors) - ?", (self.capacity,)
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._refusal(), self._store:
            yield self._store

    @contextmanager
    def _refusal(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise IntegrityError(
                f"the vector cache {self.path} cannot be used: {error}; delete it, it will refill"
            ) from error
