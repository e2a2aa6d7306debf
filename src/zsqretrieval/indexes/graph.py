"""The one place that calls hnswlib.

hnswlib checks little: a query of the wrong length or a search before initialisation kills the process. A
:class:`Graph` is always initialised, takes only arrays that :mod:`zsqretrieval.indexes.checks` made, and
turns what hnswlib reports, or fails to report, into Python errors. It has no lock: its owner keeps ``add``,
``delete``, ``restore`` and ``ef`` apart from everything else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval.errors import IntegrityError, MissingDependencyError
from zsqretrieval.indexes.graphfile import read_graph_file

__all__ = ["Graph", "import_hnswlib"]


def import_hnswlib() -> ModuleType:
    """The hnswlib module.

    Raises:
        MissingDependencyError: it cannot be imported.
    """
    try:
        import hnswlib
    except ImportError as error:
        raise MissingDependencyError(
            "hnswlib",
            "HNSWIndex (unlike ExactIndex, which answers the same calls without it)",
            "pip install hnswlib (it needs a C++ compiler; where it was compiled for another CPU: "
            "HNSWLIB_NO_NATIVE=1 pip install --force-reinstall --no-cache-dir hnswlib)",
        ) from error
    return hnswlib  # type: ignore[no-any-return]


class Graph:
    """An HNSW graph over unit vectors, by inner product; rows are its labels.

    Args:
        native: an initialised ``hnswlib.Index``.
        dim: length of the vectors.
        M: links per element.
    """

    def __init__(self, native: Any, dim: int, M: int) -> None:
        self._native = native
        self._dim = dim
        self._M = M

    @classmethod
    def create(
        cls, dim: int, *, capacity: int, M: int, ef_construction: int, ef: int, seed: int, threads: int
    ) -> Self:
        """An empty graph.

        Raises:
            MemoryError: there is not enough.
        """
        native = import_hnswlib().Index(space="ip", dim=dim)
        with _native_errors(f"room for {capacity} vectors of {dim} numbers"):
            native.init_index(capacity, M=M, ef_construction=ef_construction, random_seed=seed)
        native.set_ef(ef)
        native.set_num_threads(threads)
        return cls(native, dim, M)

    @classmethod
    def load(cls, file: Path, dim: int, *, count: int, M: int, ef: int, threads: int) -> Self:
        """Load a file that :func:`read_graph_file` found sound.

        Raises:
            IntegrityError: hnswlib refuses it.
        """
        native = import_hnswlib().Index(space="ip", dim=dim)
        try:
            native.load_index(str(file), max_elements=count)
        except RuntimeError as error:
            raise IntegrityError(
                f"{file} is refused by hnswlib ({error}); rebuild the index from its source"
            ) from error
        native.set_ef(ef)  # the file does not hold it
        native.set_num_threads(threads)
        return cls(native, dim, M)

    def set_ef(self, ef: int) -> None:
        """How many candidates a search keeps."""
        self._native.set_ef(ef)

    def reserve(self, size: int) -> None:
        """Make room for ``size`` elements.

        Raises:
            MemoryError: there is not enough; the graph is as it was.
        """
        capacity = self._native.get_max_elements()
        if size > capacity:
            with _native_errors(f"room for {size} vectors of {self._dim} numbers"):
                self._native.resize_index(max(size, capacity + capacity // 2))

    def add(self, vectors: NDArray[np.float32], first_row: int) -> None:
        """Insert unit vectors [n, dim] as the rows ``first_row``, ``first_row + 1``, ...

        Raises:
            MemoryError: there is not enough; some of the rows may be in.
        """
        if len(vectors):
            self.reserve(first_row + len(vectors))
            with _native_errors(f"{len(vectors)} more vectors"):
                self._native.add_items(
                    vectors, np.arange(first_row, first_row + len(vectors), dtype=np.uint64)
                )

    def search(
        self, queries: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
        """About the k best rows of each query, best first: int64 [q, k] and cosines float32 [q, k].

        Returns None when the graph does not reach k rows from its entry point, which hnswlib reports for
        the batch as a whole; k must not exceed the rows that are not deleted.
        """
        try:
            rows, distances = self._native.knn_query(queries, k=k)
        except RuntimeError:
            return None
        return rows.astype(np.int64), np.clip(1 - distances, -1, 1)

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Stored vectors [n, dim] of rows that are not deleted."""
        return np.asarray(self._native.get_items(rows), np.float32).reshape(len(rows), self._dim)

    def delete(self, rows: Iterable[int]) -> None:
        """Keep rows out of answers. Rows that are not in, or deleted already, are passed over."""
        for row in rows:
            with contextlib.suppress(RuntimeError):
                self._native.mark_deleted(row)

    def restore(self, rows: Iterable[int]) -> None:
        """Undo :meth:`delete`."""
        for row in rows:
            self._native.unmark_deleted(row)

    def save(self, file: Path) -> None:
        """Write the graph and read it back; hnswlib itself reports neither a full disk nor a bad path.

        Raises:
            OSError: fewer bytes arrived than were written.
            IntegrityError: what arrived is not the graph.
        """
        self._native.save_index(str(file))
        expected, found = self._native.index_file_size(), file.stat().st_size
        if found != expected:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {found} of {expected} bytes arrived", str(file)
            )
        read_graph_file(file, dim=self._dim, M=self._M)


@contextlib.contextmanager
def _native_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # hnswlib's and C++'s word for a failed allocation
        raise MemoryError(
            f"hnswlib cannot allocate {what} ({error}); add less at once, or split the index"
        ) from error
