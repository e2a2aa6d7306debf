"""Approximate search by cosine similarity in a hierarchical navigable small-world graph.

The graph is hnswlib's (Malkov and Yashunin, arXiv 1603.09320). What surrounds it here makes it safe: hnswlib
alone crashes the process, loses data or answers wrongly in silence in the cases ``docs/indexes.md`` lists.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.files import array_part, open_snapshot, read_array, write_snapshot
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes.checks import (
    check_addition,
    check_config,
    check_integer,
    check_key_dtype,
    check_keys,
    check_removal,
    unit_rows,
)
from zsqretrieval.indexes.graph import Graph, import_hnswlib
from zsqretrieval.indexes.graphfile import read_graph_file
from zsqretrieval.indexes.keys import KeyTable, KeyView, digest_rows
from zsqretrieval.indexes.lock import SharedLock
from zsqretrieval.indexes.top import top_rows
from zsqretrieval.types import Neighbors

__all__ = ["HNSWIndex"]

_KIND = "hnsw"
_SETTINGS = ("dim", "fingerprint", "M", "ef_construction", "ef", "seed", "threads")
_MAX_ROWS = 2**32 - 1  # hnswlib numbers its elements with 32 bits
_MAX_M = 10_000  # beyond it hnswlib cuts M down and only says so on stderr
_ADD_CHUNK = 256  # rows inserted per hold of the lock: a search waits for about a quarter of a second at most
_QUERY_BLOCK = 1024
_EXACT_ROWS = 1024  # among so few rows comparing with all of them is as fast as the graph
_ROW_BLOCK = 1024


class HNSWIndex:
    """Finds nearly the nearest vectors in time that grows with the logarithm of their number.

    Vectors are kept once, inside the graph, as float32. Identical vectors share one element. Removed vectors
    stay as tombstones until they outnumber the others; then the graph is built anew. Searches run beside one
    another and between the pieces of a long ``add``, so one may see some of its vectors before all are in.

    Args:
        dim: length of the vectors.
        M: links per vector and level, at least 2. More gives better recall and costs ``8 * M`` bytes each.
        ef_construction: candidates looked at while inserting.
        ef: candidates looked at while searching; more gives better recall and slower answers. The default
            is tuned on text queries, which need about twice the ef of image queries.
        fingerprint: fingerprint of the encoder the vectors come from; empty when unknown.
        seed: of the random levels.
        threads: for adding and for batches of queries; None takes every core. With 1 the same calls make
            the same graph, bit for bit; with more they do not.

    Raises:
        InvalidInputError: a setting is out of range.
        MissingDependencyError: hnswlib cannot be imported.
    """

    def __init__(
        self,
        dim: int,
        *,
        M: int = 16,
        ef_construction: int = 200,
        ef: int = 128,
        fingerprint: str = "",
        seed: int = 100,
        threads: int | None = None,
    ) -> None:
        import_hnswlib()
        self._dim = check_integer("dim", dim)
        self._M = check_integer("M", M, least=2, most=_MAX_M)
        self._ef_construction = check_integer("ef_construction", ef_construction)
        self._ef = check_integer("ef", ef)
        self._fingerprint = str(fingerprint)
        self._seed = check_integer("seed", seed, least=0)
        self._threads = None if threads is None else check_integer("threads", threads)
        self._table = KeyTable()
        self._graph: Graph | None = None  # none until there is a vector: hnswlib cannot search an empty one
        self._lock = SharedLock()  # searches share it, changes of graph and table hold it alone
        self._writing = threading.Lock()  # one add, remove or save at a time, over all its pieces

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder whose vectors it holds; empty when unknown."""
        return self._fingerprint

    @property
    def ef(self) -> int:
        """Candidates looked at while searching; may be set at any time."""
        return self._ef

    @ef.setter
    def ef(self, ef: int) -> None:
        checked = check_integer("ef", ef)
        with self._writing, self._lock.exclusive():
            self._ef = checked
            if self._graph is not None:
                self._graph.set_ef(checked)

    @property
    def config(self) -> dict[str, Any]:
        """Settings that rebuild the index, not its data."""
        return {
            "dim": self._dim,
            "fingerprint": self._fingerprint,
            "M": self._M,
            "ef_construction": self._ef_construction,
            "ef": self._ef,
            "seed": self._seed,
            "threads": self._threads,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """An empty index with the settings of another's :attr:`config`.

        Raises:
            InvalidInputError: a setting is missing, unknown or out of range.
            MissingDependencyError: hnswlib cannot be imported.
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
            InvalidInputError: anything above does not hold, or the index would outgrow its 32-bit row
                numbers. Nothing has changed.
            MemoryError: there is not enough. Nothing has changed.
        """
        rows = unit_rows(vectors, self._dim)
        new_keys = check_keys(keys)
        digests = digest_rows(rows)
        with self._writing:
            added = check_addition(new_keys, len(rows), self._table)
            if self._table.size + len(rows) > _MAX_ROWS:
                raise InvalidInputError(
                    f"{self._table.size} vectors and {len(rows)} more exceed the {_MAX_ROWS} that an "
                    "HNSW index can number with 32 bits; split the vectors over several indexes"
                )
            first_row = self._table.size
            try:
                for start in range(0, len(rows), _ADD_CHUNK):
                    chunk = slice(start, start + _ADD_CHUNK)
                    with self._lock.exclusive():
                        self._add_chunk(
                            added[chunk], rows[chunk], digests[chunk], reserve=first_row + len(rows)
                        )
            except BaseException:
                with self._lock.exclusive():
                    self._undo(added, first_row)
                raise

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors:
        """Find about the k nearest stored vectors of each query.

        Args:
            vectors: float32 [q, dim], finite, not zero.
            k: how many to return, >= 1. More than ``len(self)`` is allowed and padded.

        Returns:
            keys int64 [q, k] and cosine scores float32 [q, k], best first, padded with -1 and nan. Never
            fewer than ``min(k, len(self))``: where the graph finds fewer, all vectors are compared.

        Raises:
            InvalidInputError: a wrong shape, a value that is not finite, a zero vector, or k < 1.
        """
        return self._search(unit_rows(vectors, self._dim), check_integer("k", k), None)

    def search_among(self, vectors: NDArray[np.float32], k: int, keys: NDArray[np.int64]) -> Neighbors:
        """Like :meth:`search`, over the stored keys named in ``keys`` only.

        Compares with all of them when they are few. Otherwise the graph is asked for so many neighbours that
        enough of them should be among ``keys``, and queries for which they are not are compared with all.

        Args:
            vectors: float32 [q, dim].
            k: how many to return, >= 1.
            keys: int64 [n]; keys that are not stored are ignored.

        Returns:
            As :meth:`search`; every neighbour is one of ``keys``.

        Raises:
            InvalidInputError: as :meth:`search`, or ``keys`` are not integers.
        """
        return self._search(unit_rows(vectors, self._dim), check_integer("k", k), check_key_dtype(keys))

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
                self._release(removed)
            if self._table.size - self._table.alive > self._table.alive:
                self._rebuild()

    def save(self, path: Path) -> None:
        """Write everything to the directory ``path``, replacing what an earlier save left there.

        Atomic: a crash or a full disk at any moment leaves either the old state or the new one.

        Raises:
            OSError: the disk refuses.
        """
        with self._writing:
            pairs = self._table.pairs()
            facts = {**self.config, "metric": "cosine", "count": len(pairs), "rows": self._table.size}
            parts = {"keys.npy": array_part(pairs)}
            if self._graph is not None:
                parts["graph.bin"] = self._graph.save
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
            MissingDependencyError: hnswlib cannot be imported.
        """
        with open_snapshot(path, _KIND, dim=dim, fingerprint=fingerprint, metric="cosine") as snapshot:
            index = cls.from_config({name: snapshot.facts.get(name) for name in _SETTINGS})
            pairs = read_array(snapshot.file("keys.npy"))
            if len(pairs):
                file = snapshot.file("graph.bin")
                stored = read_graph_file(file, dim=index._dim, M=index._M)
                index._table = KeyTable.from_pairs(pairs, stored.digests(), int(stored.labels.max()) + 1)
                dead = np.isin(stored.labels, index._table.view.rows, invert=True)
                if (dead != stored.deleted).any():
                    raise IntegrityError(
                        f"{path}: graph and key table disagree; rebuild the index from its source"
                    )
                index._graph = Graph.load(
                    file, index._dim, count=len(stored.labels), M=index._M, ef=index._ef, threads=index._cores
                )
        return index

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidInputError(
            "an HNSWIndex cannot be pickled or copied; save it to a directory and load it from there"
        )

    @property
    def _cores(self) -> int:
        if self._threads is not None:
            return self._threads
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

    def _new_graph(self, capacity: int) -> Graph:
        return Graph.create(
            self._dim,
            capacity=capacity,
            M=self._M,
            ef_construction=self._ef_construction,
            ef=self._ef,
            seed=self._seed,
            threads=self._cores,
        )

    def _add_chunk(
        self, keys: list[int], rows: NDArray[np.float32], digests: list[bytes], *, reserve: int
    ) -> None:
        if self._graph is None:
            self._graph = self._new_graph(reserve)
        self._graph.reserve(reserve)
        first_row = self._table.size
        fresh, revived = self._table.assign(keys, digests)
        self._graph.restore(revived)
        self._graph.add(rows[fresh], first_row)

    def _undo(self, keys: list[int], first_row: int) -> None:
        """Take back an addition that failed or was interrupted, wherever it got to."""
        self._release([key for key in keys if key in self._table])
        self._table.forget_vectors(first_row)
        if not self._table.alive:
            self._table, self._graph = KeyTable(), None

    def _release(self, keys: list[int]) -> None:
        emptied = self._table.release(keys)
        if self._graph is not None:
            self._graph.delete(emptied)

    def _rebuild(self) -> None:
        """Leave the tombstones behind. Searches go on in the old graph meanwhile."""
        table, kept = self._table.compacted()
        graph = None
        if self._graph is not None and len(kept):
            graph = self._new_graph(len(kept))
            for start in range(0, len(kept), _ROW_BLOCK):
                graph.add(self._graph.vectors(kept[start : start + _ROW_BLOCK]), start)
        with self._lock.exclusive():
            self._table, self._graph = table, graph

    def _search(self, queries: NDArray[np.float32], k: int, keys: NDArray[np.int64] | None) -> Neighbors:
        q = len(queries)
        result = Neighbors(np.full((q, k), -1, np.int64), np.full((q, k), np.nan, np.float32))
        for start in range(0, q, _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            with self._lock.shared():
                view = self._table.view if keys is None else self._table.among(keys)
                if self._graph is None or not view.key_count:
                    continue
                found = self._search_block(self._graph, queries[block], k, view, filtered=keys is not None)
            result.keys[block], result.scores[block] = found.keys, found.scores
        return result

    def _search_block(
        self, graph: Graph, queries: NDArray[np.float32], k: int, view: KeyView, *, filtered: bool
    ) -> Neighbors:
        rows, alive = view.row_count, self._table.alive
        # hnswlib's own ef is max(ef, k); asking for twice as many keeps ef well above k when k is large. A
        # filter that lets one row in ten pass needs ten times as many, and as much again for safety.
        wanted = 2 * k if 2 * k > self._ef else k
        if filtered:
            wanted = math.ceil(2 * k * alive / rows)
        if 2 * wanted >= alive or (filtered and rows <= _EXACT_ROWS):
            return self._search_exactly(graph, queries, k, view)
        found = graph.search(queries, wanted)
        if found is None:
            return self._search_exactly(graph, queries, k, view)
        neighbors = view.neighbors(*found, k)
        short = np.flatnonzero((neighbors.keys >= 0).sum(axis=1) < min(k, view.key_count))
        if short.size:
            exact = self._search_exactly(graph, queries[short], k, view)
            neighbors.keys[short], neighbors.scores[short] = exact.keys, exact.scores
        return neighbors

    def _search_exactly(self, graph: Graph, queries: NDArray[np.float32], k: int, view: KeyView) -> Neighbors:
        rows = view.rows
        chunks = (rows[start : start + _ROW_BLOCK] for start in range(0, len(rows), _ROW_BLOCK))
        blocks = ((chunk, graph.vectors(chunk)) for chunk in chunks)
        return view.neighbors(*top_rows(queries, blocks, min(k, len(rows)), view.first), k)
