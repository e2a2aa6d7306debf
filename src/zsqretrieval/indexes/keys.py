"""Keys of stored rows: identical vectors are stored once, with all their keys.

Placeholder images make this necessary: 40 % identical vectors in an HNSW graph lower the recall of all
*other* vectors, at any ef, because the copies fill one another's neighbour lists.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import IntegrityError
from zsqretrieval.types import Neighbors


def digest_rows(rows: NDArray[np.float32]) -> list[bytes]:
    """A 128-bit digest of every row; only equal rows have equal digests."""
    positive_zeros = rows + np.float32(0)  # -0.0 == 0.0, but their bytes differ
    return [hashlib.blake2b(row, digest_size=16).digest() for row in positive_zeros]


@dataclass(frozen=True, slots=True, eq=False)
class KeyView:
    """The keys of rows, as one search may see them."""

    first: NDArray[np.int64]  # [rows]; the smallest key of every row, -1 without a key
    shared: Mapping[int, Sequence[int]]  # all keys, ascending, of the rows with several
    row_count: int  # rows with keys
    key_count: int

    @property
    def rows(self) -> NDArray[np.int64]:
        """Numbers of the rows with keys, ascending."""
        return np.flatnonzero(self.first >= 0)

    def neighbors(self, rows: NDArray[np.int64], scores: NDArray[np.float32], k: int) -> Neighbors:
        """Keys of found rows: best first, equal scores by ascending key, padded to k.

        Args:
            rows: int64 [q, m]; -1 for no row. Rows without keys are left out.
            scores: float32 [q, m], cosine.
            k: keys per query.
        """
        keys = np.where(rows >= 0, self.first[rows], -1) if self.first.size else np.full_like(rows, -1)
        if self.shared:
            keys, scores = self._expand(keys, rows, scores, k)
        worth = np.where(keys >= 0, scores, -np.inf)
        order = np.lexsort((keys, -worth), axis=-1)[:, :k]
        q, found = order.shape
        result = Neighbors(np.full((q, k), -1, np.int64), np.full((q, k), np.nan, np.float32))
        queries = np.arange(q)[:, None]
        result.keys[:, :found] = keys[queries, order]
        result.scores[:, :found] = scores[queries, order]
        result.scores[result.keys < 0] = np.nan
        return result

    def _expand(
        self, keys: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Append the other keys of shared rows as further columns, at most k of each."""
        further: list[list[tuple[int, float]]] = [
            [
                (key, score)
                for row, score in zip(found, found_scores, strict=True)
                if row in self.shared
                for key in self.shared[row][1:k]
            ]
            for found, found_scores in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        width = max(map(len, further), default=0)
        more_keys = np.full((len(rows), width), -1, np.int64)
        more_scores = np.full((len(rows), width), np.nan, np.float32)
        for query, pairs in enumerate(further):
            if pairs:
                more_keys[query, : len(pairs)], more_scores[query, : len(pairs)] = zip(*pairs, strict=True)
        return np.hstack([keys, more_keys]), np.hstack([scores, more_scores])


class KeyTable:
    """Keys <-> rows. Rows are numbered from 0, in the order in which their vectors were first added.

    A row without keys remains, empty, and is revived when its vector is added again, so repeated addition and
    removal of one vector takes no memory. :meth:`compacted` drops empty rows.

    Attributes:
        size: number of rows, with empty ones.
        alive: number of rows with keys.
    """

    def __init__(self) -> None:
        self.size = 0
        self.alive = 0
        self._row_of_key: dict[int, int] = {}
        self._row_of_digest: dict[bytes, int] = {}
        self._first = np.empty(0, np.int64)
        self._shared: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._row_of_key)

    def __contains__(self, key: object) -> bool:
        return key in self._row_of_key

    @property
    def view(self) -> KeyView:
        """All keys."""
        return KeyView(self._first[: self.size], self._shared, self.alive, len(self))

    def among(self, keys: NDArray[np.int64]) -> KeyView:
        """Only those of ``keys`` that are stored."""
        first = np.full(self.size, -1, np.int64)
        shared: dict[int, list[int]] = {}
        stored = [(key, self._row_of_key[key]) for key in np.unique(keys).tolist() if key in self._row_of_key]
        for key, row in stored:
            if first[row] < 0:
                first[row] = key
            else:
                shared.setdefault(row, [int(first[row])]).append(key)
        return KeyView(first, shared, int((first >= 0).sum()), len(stored))

    def assign(self, keys: Sequence[int], digests: Sequence[bytes]) -> tuple[list[int], list[int]]:
        """Assign new keys to the rows of their vectors.

        Returns:
            Positions (in ``digests``) of new vectors, which became the rows ``size``, ``size + 1``, ... in
            this order; and the empty rows that have a key again.
        """
        fresh: list[int] = []
        revived: list[int] = []
        self._reserve(self.size + len(keys))
        for position, (key, digest) in enumerate(zip(keys, digests, strict=True)):
            row = self._row_of_digest.setdefault(digest, self.size)
            if row == self.size:
                fresh.append(position)
                self.size += 1
            elif self._first[row] < 0:
                revived.append(row)
            self._row_of_key[key] = row
            self._attach(key, row)
        return fresh, revived

    def release(self, keys: Sequence[int]) -> list[int]:
        """Remove stored keys; returns the rows that became empty."""
        emptied = []
        for key in keys:
            row = self._row_of_key.pop(key)
            shared = self._shared.get(row)
            if shared is None:
                self._first[row] = -1
                self.alive -= 1
                emptied.append(row)
                continue
            del shared[bisect.bisect_left(shared, key)]
            self._first[row] = shared[0]
            if len(shared) == 1:
                del self._shared[row]
        return emptied

    def forget_vectors(self, first_row: int) -> None:
        """Never revive the rows from ``first_row`` on: their vectors are not in the index."""
        self._row_of_digest = {digest: row for digest, row in self._row_of_digest.items() if row < first_row}

    def compacted(self) -> tuple[KeyTable, NDArray[np.int64]]:
        """The table without empty rows; and the old numbers of the remaining rows, in their new order."""
        kept = self.view.rows
        new_row = np.full(self.size, -1, np.int64)
        new_row[kept] = np.arange(len(kept))
        table = KeyTable()
        table.size = table.alive = len(kept)
        table._row_of_key = {key: int(new_row[row]) for key, row in self._row_of_key.items()}
        table._row_of_digest = {
            digest: int(new_row[row]) for digest, row in self._row_of_digest.items() if new_row[row] >= 0
        }
        table._first = self._first[kept]
        table._shared = {int(new_row[row]): list(keys) for row, keys in self._shared.items()}
        return table, kept

    def pairs(self) -> NDArray[np.int64]:
        """Every key and its row, int64 [n, 2], by ascending key."""
        pairs = np.array(list(self._row_of_key.items()), np.int64).reshape(-1, 2)
        return pairs[np.argsort(pairs[:, 0])]

    @classmethod
    def from_pairs(cls, pairs: NDArray[np.int64], digests: Mapping[int, bytes], size: int) -> KeyTable:
        """Rebuild a table of ``size`` rows from :meth:`pairs` and the digests of the stored vectors by row.

        Raises:
            IntegrityError: a key is negative or repeated, or its row is not stored.
        """
        if pairs.dtype != np.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise IntegrityError(
                f"the key table has shape {list(pairs.shape)} of {pairs.dtype}, not int64 [n, 2]"
            )
        keys, rows = pairs[:, 0], pairs[:, 1]
        if keys.size and (keys.min() < 0 or np.unique(keys).size < keys.size):
            raise IntegrityError("the key table holds a negative or repeated key")
        if not set(rows.tolist()) <= digests.keys():
            raise IntegrityError("the key table names a row whose vector is not stored")
        table = cls()
        table.size = size
        table._reserve(size)
        table._row_of_digest = {digest: row for row, digest in digests.items()}
        table._row_of_key = dict(zip(keys.tolist(), rows.tolist(), strict=True))
        for key, row in table._row_of_key.items():
            table._attach(key, row)
        return table

    def _attach(self, key: int, row: int) -> None:
        if self._first[row] < 0:
            self._first[row] = key
            self.alive += 1
            return
        bisect.insort(self._shared.setdefault(row, [int(self._first[row])]), key)
        self._first[row] = self._shared[row][0]

    def _reserve(self, size: int) -> None:
        if size > len(self._first):
            grown = np.full(max(size, 2 * len(self._first)), -1, np.int64)
            grown[: len(self._first)] = self._first
            self._first = grown
