"""Approximate search by cosine similarity in a hierarchical navigable small-world graph.

The graph is hnswlib's (Malkov and Yashunin, arXiv 1603.09320). By itself hnswlib crashes the process, loses
data or answers wrongly in silence in the cases that ``docs/indexes.md`` lists; this module prevents them.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.files import Snapshot
from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes.base import VectorIndex, top_rows
from zsqretrieval.indexes.checks import check_integer, cores
from zsqretrieval.indexes.graphfile import read_graph_file
from zsqretrieval.indexes.keys import KeyTable, KeyView
from zsqretrieval.types import Neighbors

_MAX_ROWS = 2**32 - 1  # hnswlib numbers its elements with 32 bits
_MAX_M = 10_000  # above it hnswlib lowers M and only says so on stderr
_ADD_CHUNK = 256  # rows inserted per hold of the lock: a search waits for about a quarter of a second at most
_QUERY_BLOCK = 1024
_EXACT_ROWS = 1024  # among so few rows exact search is as fast as the graph
_ROW_BLOCK = 1024


@final
class HNSWIndex(VectorIndex):
    """Finds nearly the nearest vectors, in time that grows with the logarithm of their number.

    A search returns at least ``min(k, len(self))`` keys: where the graph finds fewer, all vectors are
    compared. The graph stores each vector once, as float32; identical vectors share one element. Removed
    vectors remain as tombstones until they outnumber the others; then the graph is rebuilt. Searches run next
    to one another and between the pieces of a long ``add``, so a search may see the first pieces before the
    last is stored.

    Args:
        dim: length of the vectors.
        M: links per vector and level, at least 2. More gives better recall and costs ``8 * M`` bytes each.
        ef_construction: candidates per insertion.
        ef: candidates per search; more gives better recall and slower answers. The default is tuned on text
            queries, which need about twice the ef of image queries.
        fingerprint: fingerprint of their encoder; empty when unknown.
        seed: seed of the random levels.
        threads: threads for adding and for batches of queries; None for every core. With 1 the same calls
            make the same graph, bit for bit; with more they do not.

    Raises:
        InvalidInputError: a setting is out of range.
        MissingDependencyError: hnswlib cannot be imported.
    """

    _kind = "hnsw"
    _settings = ("dim", "fingerprint", "M", "ef_construction", "ef", "seed", "threads")
    safe_settings: ClassVar[Mapping[str, Any]] = {
        "dim": range(2**31),
        "fingerprint": str,
        "M": range(257),
        "ef_construction": range(4097),
        "ef": range(65537),
        "seed": range(2**31),
        "threads": (None, range(1, 257)),
    }

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
        _import_hnswlib()
        super().__init__(dim, fingerprint)
        self._M = check_integer("M", M, least=2, most=_MAX_M)
        self._ef_construction = check_integer("ef_construction", ef_construction)
        self._ef = check_integer("ef", ef)
        self._seed = check_integer("seed", seed, least=0)
        self._threads = None if threads is None else check_integer("threads", threads)
        self._graph: Graph | None = None  # None while empty: hnswlib cannot search an empty graph

    @property
    def ef(self) -> int:
        """Candidates per search; may be set at any time."""
        return self._ef

    @ef.setter
    def ef(self, ef: int) -> None:
        checked = check_integer("ef", ef)
        with self._writing, self._lock.exclusive():
            self._ef = checked
            if self._graph is not None:
                self._graph._native.set_ef(checked)

    def __reduce__(self) -> tuple[Any, ...]:
        raise InvalidInputError(
            "an HNSWIndex cannot be pickled or copied; save it to a directory and load it from there"
        )

    # --- adding and removing

    def _insert(
        self, keys: NDArray[np.int64], rows: NDArray[np.float32], digests: NDArray[np.bytes_]
    ) -> None:
        first_row = self._table.size
        needed = first_row + len(rows)
        if needed > _MAX_ROWS:
            raise InvalidInputError(
                f"{first_row} vectors and {len(rows)} more exceed the {_MAX_ROWS} that an HNSW index can "
                "number with 32 bits; split the vectors over several indexes"
            )
        try:
            for start in range(0, len(rows), _ADD_CHUNK):
                chunk = slice(start, start + _ADD_CHUNK)
                with self._lock.exclusive():
                    if self._graph is None:
                        self._graph = self._new_graph(needed)
                    self._graph.reserve(needed)
                    size = self._table.size
                    plan = self._table.plan(keys[chunk], digests[chunk])
                    self._table.commit(plan)
                    self._graph.restore(plan.revived)
                    self._graph.add(rows[chunk][plan.fresh], size)
        except BaseException:
            with self._lock.exclusive():
                self._undo(keys, first_row)
            raise

    def _undo(self, keys: NDArray[np.int64], first_row: int) -> None:
        """Revert an addition that failed or was interrupted."""
        self._release(keys[self._table.stored(keys)])
        self._table.forget_vectors(first_row)
        if not self._table.alive:
            self._table, self._graph = KeyTable(), None

    def _release(self, keys: NDArray[np.int64]) -> None:
        emptied = self._table.release(keys)
        if self._graph is not None:
            self._graph.delete(emptied)

    def _compact(self) -> None:
        """Rebuild the graph without tombstones. Searches use the old graph meanwhile."""
        table, kept = self._table.compacted()
        graph = None
        if self._graph is not None and len(kept):
            graph = self._new_graph(len(kept))
            for start in range(0, len(kept), _ROW_BLOCK):
                graph.add(self._graph.vectors(kept[start : start + _ROW_BLOCK]), start)
        with self._lock.exclusive():
            self._table, self._graph = table, graph

    # --- searching

    def _find(self, queries: NDArray[np.float32], k: int, keys: NDArray[np.int64] | None) -> Neighbors:
        q = len(queries)
        result = Neighbors(np.full((q, k), -1, np.int64), np.full((q, k), np.nan, np.float32))
        for start in range(0, q, _QUERY_BLOCK):
            block = slice(start, start + _QUERY_BLOCK)
            with self._lock.shared():
                view = self._table.view if keys is None else self._table.among(keys)
                if self._graph is None or not view.key_count:
                    continue
                found = self._find_block(self._graph, queries[block], k, view, filtered=keys is not None)
            result.keys[block], result.scores[block] = found.keys, found.scores
        return result

    def _find_block(
        self, graph: Graph, queries: NDArray[np.float32], k: int, view: KeyView, *, filtered: bool
    ) -> Neighbors:
        rows, alive = view.row_count, self._table.alive
        # hnswlib's own ef is max(ef, k); a request for twice as many keeps ef well above a large k. A filter
        # that selects one row in ten needs ten times as many, and again twice as many for text queries.
        wanted = 2 * k if 2 * k > self._ef else k
        if filtered:
            wanted = math.ceil(4 * k * alive / rows)
        few = 2 * wanted >= alive or (filtered and rows <= _EXACT_ROWS)
        found = None if few else graph.search(queries, wanted)
        if found is None:
            return self._find_exactly(graph, queries, k, view)
        neighbors = view.neighbors(*found, k)
        short = np.flatnonzero((neighbors.keys >= 0).sum(axis=1) < min(k, view.key_count))
        if short.size:
            exact = self._find_exactly(graph, queries[short], k, view)
            neighbors.keys[short], neighbors.scores[short] = exact.keys, exact.scores
        return neighbors

    def _find_exactly(self, graph: Graph, queries: NDArray[np.float32], k: int, view: KeyView) -> Neighbors:
        rows = view.rows
        chunks = (rows[start : start + _ROW_BLOCK] for start in range(0, len(rows), _ROW_BLOCK))
        blocks = ((chunk, graph.vectors(chunk)) for chunk in chunks)
        return view.neighbors(*top_rows(queries, blocks, min(k, len(rows)), view.first), k)

    # --- on disk

    def _parts(self) -> dict[str, Callable[[Path], object]]:
        return {} if self._graph is None else {"graph.bin": self._graph.save}

    def _restore(self, snapshot: Snapshot, pairs: NDArray[np.int64]) -> None:
        if not len(pairs):
            return
        file = snapshot.file("graph.bin")
        stored = read_graph_file(file, dim=self._dim, M=self._M)
        size = int(stored.labels.max()) + 1
        self._table = KeyTable.from_pairs(pairs, stored.digests(), stored.labels, size)
        dead = np.isin(stored.labels, self._table.view.rows, invert=True)
        if (dead != stored.deleted).any():
            raise IntegrityError(
                f"{snapshot.path}: graph and key table disagree; rebuild the index from its source"
            )
        self._graph = Graph.load(
            file, self._dim, count=len(stored.labels), M=self._M, ef=self._ef, threads=self._cores
        )

    @property
    def _cores(self) -> int:
        return self._threads or cores()

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


# --- hnswlib ----------------------------------------------------------------------------------------------


class Graph:
    """An hnswlib graph of unit vectors, by inner product; its labels are row numbers.

    hnswlib checks little: a query of the wrong length or a search before initialisation kills the process. A
    Graph is always initialised, takes only checked arrays, and turns hnswlib's failures, reported or not,
    into Python errors. It has no lock: no other call may run during ``add``, ``delete`` or ``restore``.
    """

    def __init__(self, native: Any, dim: int, *, M: int, ef: int, threads: int) -> None:
        native.set_ef(ef)  # not stored in a file
        native.set_num_threads(threads)
        self._native = native
        self._dim = dim
        self._M = M

    @classmethod
    def create(
        cls, dim: int, *, capacity: int, M: int, ef_construction: int, ef: int, seed: int, threads: int
    ) -> Self:
        """An empty graph; MemoryError when there is no room."""
        native = _import_hnswlib().Index(space="ip", dim=dim)
        with _native_errors(f"room for {capacity} vectors of {dim} numbers"):
            native.init_index(capacity, M=M, ef_construction=ef_construction, random_seed=seed)
        return cls(native, dim, M=M, ef=ef, threads=threads)

    @classmethod
    def load(cls, file: Path, dim: int, *, count: int, M: int, ef: int, threads: int) -> Self:
        """Load a file that :func:`read_graph_file` has verified; IntegrityError when hnswlib refuses it."""
        native = _import_hnswlib().Index(space="ip", dim=dim)
        try:
            native.load_index(os.fsencode(file), max_elements=count)
        except RuntimeError as error:
            raise IntegrityError(
                f"hnswlib refuses {file} ({error}); rebuild the index from its source"
            ) from error
        return cls(native, dim, M=M, ef=ef, threads=threads)

    def reserve(self, size: int) -> None:
        """Make room for ``size`` elements; a MemoryError leaves the graph unchanged."""
        capacity = self._native.get_max_elements()
        if size > capacity:
            with _native_errors(f"room for {size} vectors of {self._dim} numbers"):
                self._native.resize_index(max(size, capacity + capacity // 2))

    def add(self, vectors: NDArray[np.float32], first_row: int) -> None:
        """Insert unit vectors [n, dim] as the rows ``first_row``, ``first_row + 1``, ...

        After a MemoryError some of the rows may be stored.
        """
        if len(vectors):
            rows = np.arange(first_row, first_row + len(vectors), dtype=np.uint64)
            self.reserve(first_row + len(vectors))
            with _native_errors(f"{len(vectors)} more vectors"):
                self._native.add_items(vectors, rows)

    def search(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """About the k best rows of each query, best first: int64 [q, k] and cosines float32 [q, k].

        None when some query reaches fewer than k rows from the entry point, which hnswlib reports for the
        whole batch; k must not exceed the number of rows that are not deleted.
        """
        try:
            rows, distances = self._native.knn_query(queries, k=k)
        except RuntimeError:
            return None
        return rows.astype(np.int64), np.clip(1 - distances, -1, 1)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors [n, dim] of rows that are not deleted."""
        return np.asarray(self._native.get_items(rows), np.float32).reshape(len(rows), self._dim)

    def delete(self, rows: NDArray[np.int64]) -> None:
        """Exclude rows from answers. Skips rows that are absent or deleted already."""
        for row in rows:
            with contextlib.suppress(RuntimeError):
                self._native.mark_deleted(row)

    def restore(self, rows: NDArray[np.int64]) -> None:
        """Undo :meth:`delete`."""
        for row in rows:
            self._native.unmark_deleted(row)

    def save(self, file: Path) -> None:
        """Write the graph and read it back: hnswlib itself reports neither a full disk nor a bad path."""
        self._native.save_index(os.fsencode(file))  # as a str, it has to be UTF-8
        expected, found = self._native.index_file_size(), file.stat().st_size
        if found != expected:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {found} of {expected} bytes arrived", str(file)
            )
        read_graph_file(file, dim=self._dim, M=self._M)


def _import_hnswlib() -> Any:
    return import_optional(
        "hnswlib",
        "HNSWIndex (unlike ExactIndex, which answers the same calls without it)",
        "pip install hnswlib (it needs a C++ compiler; where it was compiled for another CPU: "
        "HNSWLIB_NO_NATIVE=1 pip install --force-reinstall --no-cache-dir hnswlib)",
    )


@contextlib.contextmanager
def _native_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # both report a failed allocation
        raise MemoryError(
            f"hnswlib cannot allocate {what} ({error}); add less at once, or split the index"
        ) from error
