"""Unit vectors in 16 bits a number: appended in memory, mapped from a file, verified block by block.

A number of a unit vector lies in [-1, 1] and is stored as a multiple of 1/32767. Unlike in float16 the error
does not grow with the number: at most 1.6e-5, so a cosine is wrong by about 1e-5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval.errors import DamagedIndexError, IntegrityError

_SCALE = np.float32(32767)
_TYPE = np.dtype("<i2")
_BLOCK_BYTES = 32_768  # verified together: what a candidate reads from the disk the first time
_WHOLE_BYTES = 2**26  # a smaller file is verified as a whole when it is mapped
_PIECE = 8192  # rows
# Queries whose candidates are converted together: few, so that these stay in the processor's cache, but
# enough that threads seldom wait for one another between two conversions.
_QUERIES = 16


class RowStore:
    """Rows [size, dim], numbered from 0."""

    def __init__(self, dim: int) -> None:
        self.size = 0
        self._dim = dim
        self._mapped = np.empty((0, dim), _TYPE)  # the first rows, on the disk
        self._added = np.empty((0, dim), _TYPE)  # [capacity, dim], those after them
        self._digests = np.empty(0, np.uint64)  # of the blocks of the mapped rows
        self._verified = np.empty(0, np.bool_)
        self._file = Path()

    def reserve(self, count: int) -> None:
        """Make room for that many more rows; after a MemoryError nothing has changed."""
        used = self.size - len(self._mapped)
        if used + count > len(self._added):
            grown = np.empty((max(used + count, 2 * len(self._added)), self._dim), _TYPE)
            grown[:used] = self._added[:used]
            self._added = grown

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Add unit rows [n, dim]."""
        self.reserve(len(vectors))
        used = self.size - len(self._mapped)
        self._added[used : used + len(vectors)] = np.rint(vectors * _SCALE)
        self.size += len(vectors)

    def keep(self, rows: NDArray[np.int64]) -> RowStore:
        """A store in memory of some of the rows, in the given order."""
        kept = RowStore(self._dim)
        kept._added = np.empty((len(rows), self._dim), _TYPE)
        for start in range(0, len(rows), _PIECE):
            piece = rows[start : start + _PIECE]
            kept._added[start : start + len(piece)] = self._numbers(piece)
        kept.size = len(rows)
        return kept

    def vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows, float32 [n, dim]; a DamagedIndexError if they are damaged on the disk."""
        vectors = self._numbers(rows).astype(np.float32)
        vectors /= _SCALE
        return vectors

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Some rows and their vectors, in pieces."""
        for start in range(0, len(rows), _PIECE):
            piece = rows[start : start + _PIECE]
            yield piece, self.vectors(piece)

    def scores(self, queries: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Cosines float32 [q, m] of unit queries [q, dim] and the rows [q, m] given for each.

        Those of row -1, no row, are of no use.
        """
        q, m = rows.shape
        rows = np.maximum(np.where(rows < 0, rows[:, :1], rows), 0)
        scores = np.empty((q, m), np.float32)
        for start in range(0, q, _QUERIES):
            block = slice(start, start + _QUERIES)
            numbers = self._numbers(rows[block].ravel()).astype(np.float32)
            vectors = numbers.reshape(-1, m, self._dim)  # [q, m, dim]
            # matmul would let BLAS start threads for each query.
            np.vecdot(vectors, queries[block, None, :], out=scores[block])
        scores /= _SCALE
        np.minimum(scores, 1, out=scores)
        np.maximum(scores, -1, out=scores)
        return scores

    # --- on disk

    @property
    def _per_block(self) -> int:
        return max(1, _BLOCK_BYTES // (_TYPE.itemsize * self._dim))

    def write(self, file: Path) -> None:
        """Write all rows."""
        with file.open("wb") as out:
            for start in range(0, self.size, _PIECE):
                out.write(self._numbers(np.arange(start, min(start + _PIECE, self.size))).data)

    def digests(self) -> NDArray[np.uint64]:
        """A digest of each block of rows, for :meth:`map`."""
        starts = range(0, self.size, self._per_block)
        rows = (np.arange(start, min(start + self._per_block, self.size)) for start in starts)
        return np.array([_digest(self._numbers(block)) for block in rows], np.uint64)

    @classmethod
    def map(cls, file: Path, dim: int, digests: NDArray[np.uint64]) -> Self:
        """Rows of a file that :meth:`write` wrote.

        A small file is verified here; a block of a large one when it is first read.

        Raises:
            IntegrityError: the file does not fit, or a part of a small file is damaged.
        """
        store = cls(dim)
        size, rest = divmod(file.stat().st_size, _TYPE.itemsize * dim)
        blocks = -(-size // store._per_block)
        if rest or digests.dtype != np.uint64 or digests.shape != (blocks,):
            raise IntegrityError(
                f"{file} has {size} vectors of dim {dim}, {rest} more bytes and {digests.shape} digests: "
                "they do not fit; rebuild the index from its source"
            )
        if size:  # a plain array: every use of a memmap costs microseconds
            store._mapped = np.asarray(np.memmap(file, _TYPE, "r", shape=(size, dim)))
        store._digests, store._verified, store._file = digests, np.zeros(blocks, np.bool_), file
        store.size = size
        if file.stat().st_size <= _WHOLE_BYTES:
            store._verify(np.arange(blocks))
        return store

    def _numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Stored numbers of rows, verified."""
        mapped = len(self._mapped)
        if not mapped:
            return np.take(self._added, rows, axis=0)
        if not len(self._added):
            return self._saved(rows)
        numbers = np.empty((len(rows), self._dim), _TYPE)
        old = rows < mapped
        numbers[old] = self._saved(rows[old])
        numbers[~old] = self._added[rows[~old] - mapped]
        return numbers

    def _saved(self, rows: NDArray[np.int64]) -> NDArray[np.int16]:
        """Numbers of rows on the disk, whose blocks are verified the first time."""
        blocks = rows // self._per_block
        if not self._verified[blocks].all():
            self._verify(np.unique(blocks))
        return np.take(self._mapped, rows, axis=0)

    def _verify(self, blocks: NDArray[np.int64]) -> None:
        for block in blocks[~self._verified[blocks]].tolist():
            start = block * self._per_block
            if _digest(self._mapped[start : start + self._per_block]) != self._digests[block]:
                raise DamagedIndexError(
                    f"{self._file} is damaged: rows {start} and following differ from what was saved; "
                    "rebuild the index from its source"
                )
            self._verified[block] = True


def _digest(numbers: NDArray[np.int16]) -> int:
    return int.from_bytes(hashlib.sha256(np.ascontiguousarray(numbers).data).digest()[:8], "little")
