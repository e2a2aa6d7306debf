"""Common part of the indexes: keys, locks, argument checks, snapshots, and exact top-k."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.files import Snapshot, array_part, open_snapshot, read_array, write_snapshot
from zsqretrieval._util.processes import Lock
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.checks import check_integer, check_key_dtype, check_keys, unit_rows
from zsqretrieval.indexes.keys import KeyTable, digest_rows
from zsqretrieval.indexes.lock import SharedLock
from zsqretrieval.indexes.openmp import threads
from zsqretrieval.types import Neighbors

# In queries times dim: faiss 1.15 compares up to 250 queries of 512 numbers one after another, which takes up
# to seven times as long as their product.
faiss.cvar.distance_compute_blas_threshold = min(faiss.cvar.distance_compute_blas_threshold, 2048)

_FOUND = 500_000  # neighbours of one call: at most 6 MB
_FEW = 20  # queries that one thread compares: more would mostly wait for one another


class VectorIndex(ABC):
    """An index of unit vectors that stores identical vectors once, with all their keys.

    Its methods check every argument before any state changes or native code runs. The hooks of a subclass get
    checked arguments: a writing hook runs in one thread at a time, next to searches in other threads; it
    takes ``_lock.exclusive()`` for its changes, a search takes ``_lock.shared()``.
    """

    _kind: ClassVar[str]
    _unread: ClassVar[tuple[str, ...]] = ()  # parts of a snapshot that are verified when they are read
    _settings: ClassVar[tuple[str, ...]]  # names of constructor arguments, each stored as ``_name``

    def __init__(self, dim: int, fingerprint: str) -> None:
        self._dim = check_integer("dim", dim)
        self._fingerprint = str(fingerprint)
        self._table = KeyTable()
        self._lock = SharedLock()
        self._writing = Lock()  # held over a whole add, remove or save

    # --- hooks

    @abstractmethod
    def _insert(
        self, keys: NDArray[np.int64], rows: NDArray[np.float32], digests: NDArray[np.bytes_]
    ) -> None:
        """Store unit rows [n, dim] under new keys, all or none."""

    @abstractmethod
    def _find(self, queries: NDArray[np.float32], k: int, keys: NDArray[np.int64] | None) -> Neighbors:
        """Search all keys, or only those given."""

    @abstractmethod
    def _release(self, keys: NDArray[np.int64]) -> None:
        """Remove stored keys; called with the lock held."""

    @abstractmethod
    def _compact(self) -> None:
        """Drop the rows without keys."""

    @abstractmethod
    def _parts(self) -> dict[str, Callable[[Path], object]]:
        """The files of a snapshot, next to the key table."""

    @abstractmethod
    def _restore(self, snapshot: Snapshot, pairs: NDArray[np.int64]) -> None:
        """Fill an empty index from verified files and the pairs of a key table."""

    def _facts(self) -> dict[str, Any]:
        """JSON values for the manifest, next to the settings."""
        return {}

    # --- the contract: zsqretrieval.protocols.FilteredIndex and Configurable

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder of the vectors; empty when unknown."""
        return self._fingerprint

    @property
    def config(self) -> dict[str, Any]:
        """Settings that rebuild the index, without its data."""
        return {name: getattr(self, f"_{name}") for name in self._settings}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """An empty index with the settings of another's :attr:`config`.

        Raises:
            InvalidInputError: a setting is missing, unknown or out of range.
        """
        if set(config) != set(cls._settings):
            raise InvalidInputError(
                f"settings {sorted(config)} were given, exactly {sorted(cls._settings)} are needed"
            )
        return cls(**config)

    def __len__(self) -> int:
        return len(self._table)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self._dim}, {len(self)} vectors)"

    def add(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Store vectors [n, dim] under new keys [n]; see :meth:`zsqretrieval.protocols.Index.add`.

        Raises:
            InvalidInputError: as in the protocol.
            MemoryError: not enough memory; nothing has changed.
        """
        rows = unit_rows(vectors, self._dim)
        new_keys = check_keys(keys)
        digests = digest_rows(rows)
        if len(new_keys) != len(rows):
            raise InvalidInputError(
                f"{len(new_keys)} keys came with {len(rows)} vectors; each vector needs one key"
            )
        with self._writing:
            if (present := self._table.stored(new_keys)).any():
                raise InvalidInputError(
                    f"key {new_keys[present][0]} is stored already; remove it first, or choose another key"
                )
            self._insert(new_keys, rows, digests)

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors:
        """Find the k nearest vectors of each query; see :meth:`zsqretrieval.protocols.Index.search`."""
        return self._find(unit_rows(vectors, self._dim), check_integer("k", k), None)

    def search_among(self, vectors: NDArray[np.float32], k: int, keys: NDArray[np.int64]) -> Neighbors:
        """Like :meth:`search`, restricted to ``keys``, int64 [n]; keys that are not stored are ignored."""
        return self._find(unit_rows(vectors, self._dim), check_integer("k", k), check_key_dtype(keys))

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Remove keys, int64 [n]; see :meth:`zsqretrieval.protocols.Index.remove`."""
        old_keys = check_keys(keys)
        with self._writing:
            if (absent := ~self._table.stored(old_keys)).any():
                raise InvalidInputError(f"key {old_keys[absent][0]} is not stored; nothing was removed")
            with self._lock.exclusive():
                self._release(old_keys)
            if self._table.size - self._table.alive > self._table.alive:
                with suppress(MemoryError):  # the keys are removed; there may be room at the next removal
                    self._compact()

    def compact(self) -> None:
        """Forget the vectors of removed keys now, in place of later."""
        with self._writing:
            if self._table.size > self._table.alive:
                self._compact()

    def save(self, path: Path) -> None:
        """Write a snapshot atomically; see :meth:`zsqretrieval.protocols.Index.save`."""
        with self._writing:
            parts = self._parts()
            pairs = self._table.pairs()
            facts = {**self.config, "metric": "cosine", "count": len(pairs), "rows": self._table.size}
            facts |= self._facts()
            write_snapshot(path, self._kind, facts, {"keys.npy": array_part(pairs), **parts})

    @classmethod
    def load(cls, path: Path, *, dim: int | None = None, fingerprint: str | None = None) -> Self:
        """Verify and load a snapshot; see :meth:`zsqretrieval.protocols.Index.load`.

        Raises:
            IntegrityError, MismatchError: as in the protocol.
            MissingDependencyError: a package that the index needs is not installed.
        """
        expected = {"dim": dim, "fingerprint": fingerprint, "metric": "cosine"}
        with open_snapshot(path, cls._kind, unread=cls._unread, **expected) as snapshot:
            index = cls.from_config({name: snapshot.facts.get(name) for name in cls._settings})
            index._restore(snapshot, read_array(snapshot.file("keys.npy")))
        return index


def top_rows(
    queries: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    k: int,
    keys: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of highest inner product with each query, best first.

    Args:
        queries: float32 [q, dim], unit rows.
        blocks: (row numbers int64 [b], their unit vectors float32 [b, dim]), together at least k rows.
        k: rows per query.
        keys: int64 [rows]; equal scores are ranked by ascending ``keys[row]``.

    Returns:
        Rows int64 [q, k] and scores float32 [q, k] in [-1, 1].
    """
    q = len(queries)
    best_rows = np.full((q, k), -1, np.int64)
    best = np.full((q, k), -np.inf, np.float32)
    for rows, vectors in blocks:
        scores, columns = _top_columns(queries, vectors, min(k, len(rows)), keys[rows])
        hot = np.flatnonzero(scores[:, 0] >= best[:, -1])  # may change
        merged_rows = np.hstack([best_rows[hot], rows[columns[hot]]])
        merged = np.hstack([best[hot], scores[hot]])
        order = np.lexsort((keys[merged_rows], -merged), axis=-1)[:, :k]
        best_rows[hot] = np.take_along_axis(merged_rows, order, axis=1)
        best[hot] = np.take_along_axis(merged, order, axis=1)
    return best_rows, best


def _top_columns(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int, keys: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and positions [q, k] of the best of b vectors; ties at the edge go to the smaller key.

    faiss selects while it multiplies, at nearly the speed of the product alone, but picks any of the tied. So
    it is asked for one more, and for twice as many while the edge is tied.
    """
    scores = np.empty((len(queries), k), np.float32)
    columns = np.empty((len(queries), k), np.int64)
    asked, wide = np.arange(len(queries)), min(k + 1, len(vectors))
    while asked.size:
        step = max(1, _FOUND // wide)
        tied = []
        for part in (asked[start : start + step] for start in range(0, len(asked), step)):
            with threads(1 if len(part) < _FEW else faiss.omp_get_max_threads()):
                found, which = faiss.knn(queries[part], vectors, wide, metric=faiss.METRIC_INNER_PRODUCT)
            np.clip(found, -1, 1, out=found)
            order = np.lexsort((keys[which], -found), axis=-1)[:, :k]
            scores[part] = np.take_along_axis(found, order, axis=1)
            columns[part] = np.take_along_axis(which, order, axis=1)
            tied.append(part[(found[:, -1] == scores[part, -1]) & (wide < len(vectors))])
        asked, wide = np.concatenate(tied), min(2 * wide, len(vectors))
    return scores, columns
