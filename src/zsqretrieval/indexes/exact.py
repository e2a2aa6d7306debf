"""Exact search by cosine similarity: the truth the approximate indexes are measured against."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.files import array_part, open_snapshot, read_array, write_snapshot
from zsqretrieval.errors import IntegrityError
from zsqretrieval.indexes.checks import (
    check_addition,
    check_config,
    check_integer,
    check_key_dtype,
    check_keys,
    check_removal,
    unit_rows,
)
from zsqretrieval.indexes.keys import KeyTable, KeyView, digest_rows
from zsqretrieval.indexes.lock import SharedLock
from zsqretrieval.indexes.top import top_rows
from zsqretrieval.types import Neighbors

__all__ = ["ExactIndex"]

_KIND = "exact"
_SETTINGS = ("dim", "fingerprint")
_QUERY_BLOCK = 256
_ROW_BLOCK = 8192


class ExactIndex:
    """Compares every query with every stored vector, by blocked matrix products in float32.

    One query costs n * dim multiplications: about 2 ms of one core for 20,000 x 512. Memory beyond the
    vectors themselves stays under 20 MB whatever the number of queries and rows. Identical vectors are
    stored once. Equal scores are ranked by ascending key. Searching while another thread adds or removes is
    safe: a search sees each change whole or not at all.

    Args:
        dim: length of the vectors.
        fingerprint: fingerprint of the encoder they come from; empty when unknown.

    Raises:
        InvalidInputError: ``dim`` is not an integer >= 1.
    """

    def __init__(self, dim: int, *, fingerprint: str = "") -> None:
        self._dim = check_integer("dim", dim)
        self._fingerprint = str(fingerprint)
        self._table = KeyTable()
        self._vectors = np.empty(
            (0, self._dim), np.float32
        )  # [capacity, dim], the first table.size are in use
        self._lock = SharedLock()
        self._writing = threading.Lock()

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder whose vectors it holds; empty when unknown."""
        return self._fingerprint

    @property
    def config(self) -> dict[str, Any]:
        """Settings that rebuild the index, not its data."""
        return {"dim": self._dim, "fingerprint": self._fingerprint}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """An empty index with the settings of another's :attr:`config`.

        Raises:
            InvalidInputError: a setting is missing, unknown or out of range.
        """
        return cls(**check_config(config, _SETTINGS))

    def __len__(self) -> int:
        return len(self._table)

    def add(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Store vectors under new keys; all of them or, when anything is wrong, none.

        Args:
            keys: int64 [n], each >= 0, no repeats, none already present.
            vectors: float32 [n, dim], finite, not zero; scaled to unit length on the way in.

        Raises:
            InvalidInputError: anything above does not hold. Nothing has changed.
        """
        rows = unit_rows(vectors, self._dim)
        new_keys = check_keys(keys)
        digests = digest_rows(rows)
        with self._writing:
            added = check_addition(new_keys, len(rows), self._table)
            self._reserve(self._table.size + len(rows))
            with self._lock.exclusive():
                start = self._table.size
                fresh, _ = self._table.assign(added, digests)
                self._vectors[start : start + len(fresh)] = rows[fresh]

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors:
        """Find the k nearest stored vectors of each query.

        Args:
            vectors: float32 [q, dim], finite, not zero.
            k: how many to return, >= 1. More than ``len(self)`` is allowed and padded.

        Returns:
            keys int64 [q, k] and cosine scores float32 [q, k], best first, padded with -1 and nan.

        Raises:
            InvalidInputError: a wrong shape, a value that is not finite, a zero vector, or k < 1.
        """
        queries, k = unit_rows(vectors, self._dim), check_integer("k", k)
        with self._lock.shared():
            return self._search(queries, k, self._table.view)

    def search_among(self, vectors: NDArray[np.float32], k: int, keys: NDArray[np.int64]) -> Neighbors:
        """Like :meth:`search`, over the stored keys named in ``keys`` only.

        Args:
            vectors: float32 [q, dim].
            k: how many to return, >= 1.
            keys: int64 [n]; keys that are not stored are ignored.

        Returns:
            As :meth:`search`; every neighbour is one of ``keys``.

        Raises:
            InvalidInputError: as :meth:`search`, or ``keys`` are not integers.
        """
        queries, k, allowed = unit_rows(vectors, self._dim), check_integer("k", k), check_key_dtype(keys)
        with self._lock.shared():
            return self._search(queries, k, self._table.among(allowed))

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Forget keys; all of them or none.

        Args:
            keys: int64 [n], each present, no repeats.

        Raises:
            InvalidInputError: a key is not present or repeated. Nothing has changed.
        """
        old_keys = check_keys(keys)
        with self._writing:
            removed = check_removal(old_keys, self._table)
            with self._lock.exclusive():
                self._table.release(removed)
            if self._table.size - self._table.alive > self._table.alive:
                self._compact()

    def save(self, path: Path) -> None:
        """Write everything to the directory ``path``, replacing what an earlier save left there.

        Atomic: a crash or a full disk at any moment leaves either the old state or the new one.

        Raises:
            OSError: the disk refuses.
        """
        with self._writing:
            if self._table.size > self._table.alive:
                self._compact()
            pairs, vectors = self._table.pairs(), self._vectors[: self._table.size]
            facts = {**self.config, "metric": "cosine", "count": len(pairs), "rows": len(vectors)}
            parts = {"keys.npy": array_part(pairs), "vectors.npy": array_part(vectors)}
            write_snapshot(path, _KIND, facts, parts)

    @classmethod
    def load(cls, path: Path, *, dim: int | None = None, fingerprint: str | None = None) -> Self:
        """Read what :meth:`save` wrote, after verifying it.

        Args:
            path: the directory.
            dim: refuse anything else, when given.
            fingerprint: refuse vectors of any other encoder, when given.

        Raises:
            IntegrityError: missing, truncated or altered data.
            MismatchError: another dim, encoder or kind of index; names both sides.
        """
        with open_snapshot(path, _KIND, dim=dim, fingerprint=fingerprint, metric="cosine") as snapshot:
            config = {name: snapshot.facts.get(name) for name in _SETTINGS}
            vectors = read_array(snapshot.file("vectors.npy"))
            pairs = read_array(snapshot.file("keys.npy"))
        if vectors.dtype != np.float32 or vectors.shape[1:] != (config["dim"],):
            raise IntegrityError(
                f"{path}: the vectors are {vectors.dtype} {list(vectors.shape)}, the manifest says dim "
                f"{config['dim']}; rebuild the index from its source"
            )
        return cls._from_parts(config, pairs, vectors)

    def __reduce__(self) -> tuple[Any, ...]:
        with self._writing:
            parts = (self.config, self._table.pairs(), self._vectors[: self._table.size].copy())
        return type(self)._from_parts, parts

    @classmethod
    def _from_parts(
        cls, config: Mapping[str, Any], pairs: NDArray[np.int64], vectors: NDArray[np.float32]
    ) -> Self:
        index = cls.from_config(config)
        index._vectors = vectors
        index._table = KeyTable.from_pairs(pairs, dict(enumerate(digest_rows(vectors))), len(vectors))
        return index

    def _search(self, queries: NDArray[np.float32], k: int, view: KeyView) -> Neighbors:
        rows = view.rows
        m = min(k, len(rows))
        found = [
            top_rows(queries[start : start + _QUERY_BLOCK], self._blocks(rows), m, view.first)
            for start in range(0, len(queries), _QUERY_BLOCK)
            if m
        ]
        if not found:
            found = [(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))]
        best_rows, scores = (np.vstack(columns) for columns in zip(*found, strict=True))
        return view.neighbors(best_rows, scores, k)

    def _blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        for start in range(0, len(rows), _ROW_BLOCK):
            block = rows[start : start + _ROW_BLOCK]
            dense = block[-1] - block[0] + 1 == len(block)  # then a slice will do, without a copy
            yield block, self._vectors[block[0] : block[-1] + 1] if dense else self._vectors[block]

    def _reserve(self, size: int) -> None:
        if size > len(self._vectors):
            grown = np.empty((max(size, 2 * len(self._vectors)), self._dim), np.float32)
            grown[: self._table.size] = self._vectors[: self._table.size]
            self._vectors = grown  # searches that hold the old array find the same rows in it

    def _compact(self) -> None:
        """Drop the vectors no key stands for."""
        table, kept = self._table.compacted()
        vectors = self._vectors[kept]
        with self._lock.exclusive():
            self._table, self._vectors = table, vectors
