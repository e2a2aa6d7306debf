"""Keys of stored rows: identical vectors are stored once, with all their keys.

Placeholder images make this necessary: 40 % identical vectors in an HNSW graph lower the recall of all
*other* vectors, at any ef, because the copies fill one another's neighbour lists.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import IntegrityError
from zsqretrieval.types import Neighbors

DIGEST = np.dtype("S16")


def digest_rows(rows: NDArray[np.float32]) -> NDArray[np.bytes_]:
    """A 128-bit digest of every row, bytes [n]; only equal rows have equal digests."""
    positive_zeros = rows + np.float32(0)  # -0.0 == 0.0, but their bytes differ
    digests = [hashlib.blake2b(row, digest_size=DIGEST.itemsize).digest() for row in positive_zeros]
    return np.array(digests, DIGEST)


@dataclass(frozen=True, slots=True, eq=False)
class KeyView:
    """The keys of rows, as one search may see them."""

    first: NDArray[np.int64]  # [rows]; the smallest key of every row, -1 without a key
    shared: Mapping[int, NDArray[np.int64]]  # all keys, ascending, of the rows with several
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
        scores = np.where(keys >= 0, scores, np.float32(np.nan))
        order = np.lexsort((keys, -scores), axis=-1)[:, :k]  # nan is last
        queries = np.arange(len(rows))[:, None]
        keys, scores = keys[queries, order], scores[queries, order]
        if missing := k - keys.shape[1]:
            beyond = (0, 0), (0, missing)
            keys = np.pad(keys, beyond, constant_values=-1)
            scores = np.pad(scores, beyond, constant_values=np.nan)
        return Neighbors(keys, scores)

    def _expand(
        self, keys: NDArray[np.int64], rows: NDArray[np.int64], scores: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Append the other keys of shared rows as further columns, at most k of each."""
        further: list[list[tuple[int, float]]] = [
            [
                (key, score)
                for row, score in zip(found, found_scores, strict=True)
                if row in self.shared
                for key in self.shared[row][1:k].tolist()
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


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """New keys for a table, all prepared: see :meth:`KeyTable.plan`.

    Attributes:
        fresh: positions of new vectors among those given, int64 [m]; they become the rows ``size``, ``size +
            1``, ... of the table in this order.
        revived: the empty rows that have a key again.
    """

    fresh: NDArray[np.int64]
    revived: NDArray[np.int64]
    size: int
    alive: int
    keys: tuple[NDArray[np.int64], NDArray[np.int64]]
    digests: tuple[NDArray[np.bytes_], NDArray[np.int64]]
    first: NDArray[np.int64]
    changed: tuple[NDArray[np.int64], NDArray[np.int64]]  # rows, and their smallest keys from now on
    shared: dict[int, NDArray[np.int64]]


class KeyTable:
    """Keys <-> rows. Rows are numbered from 0, in the order in which their vectors were first added.

    A row without keys remains, empty, and is revived when its vector is added again, so repeated addition and
    removal of one vector takes no memory. :meth:`compacted` drops empty rows. All is kept in sorted arrays: a
    million keys take about 50 MB.

    Attributes:
        size: number of rows, with empty ones.
        alive: number of rows with keys.
    """

    def __init__(self) -> None:
        self.size = 0
        self.alive = 0
        self._keys, self._rows = np.empty(0, np.int64), np.empty(0, np.int64)  # by ascending key
        # Digests of the vectors that may be added again, ascending, and their rows.
        self._digests, self._digest_rows = np.empty(0, DIGEST), np.empty(0, np.int64)
        self._first = np.empty(0, np.int64)  # [capacity]; the smallest key of every row, -1 without one
        self._shared: dict[int, NDArray[np.int64]] = {}  # all keys, ascending, of the rows with several

    def __len__(self) -> int:
        return len(self._keys)

    def stored(self, keys: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether each of ``keys`` is stored, bool [n]."""
        return _find(self._keys, keys) >= 0

    @property
    def view(self) -> KeyView:
        """All keys."""
        return KeyView(self._first[: self.size], self._shared, self.alive, len(self))

    def among(self, keys: NDArray[np.int64]) -> KeyView:
        """Only those of ``keys`` that are stored."""
        at = _find(self._keys, np.unique(keys))
        at = at[at >= 0]
        rows, smallest, shared = _by_row(self._rows[at], self._keys[at])
        first = np.full(self.size, -1, np.int64)
        first[rows] = smallest
        return KeyView(first, shared, len(rows), len(at))

    def plan(self, keys: NDArray[np.int64], digests: NDArray[np.bytes_]) -> Assignment:
        """How new keys [n] are to be assigned to the rows of their vectors; changes nothing."""
        vectors, first_at, which = np.unique(digests, return_index=True, return_inverse=True)
        at = _find(self._digests, vectors)
        known = at >= 0
        row_of = np.empty(len(vectors), np.int64)  # by vector
        row_of[known] = self._digest_rows[at[known]]
        fresh = np.sort(first_at[~known])
        row_of[~known] = self.size + np.searchsorted(fresh, first_at[~known])
        size = self.size + len(fresh)
        first = self._first
        if size > len(first):
            first = np.full(max(size, 2 * len(first)), -1, np.int64)
            first[: self.size] = self._first[: self.size]
        rows, smallest, several = _by_row(row_of[which], keys)
        empty = first[rows] < 0
        joined = dict(zip(rows[~empty].tolist(), smallest[~empty, None], strict=True)) | several
        shared = {
            row: np.union1d(self._shared.get(row, first[row : row + 1]), more)
            if row < self.size and first[row] >= 0
            else more
            for row, more in joined.items()
        }
        order = np.argsort(keys)
        return Assignment(
            fresh=fresh,
            revived=row_of[known][first[row_of[known]] < 0],
            size=size,
            alive=self.alive + int(empty.sum()),
            keys=_merged(self._keys, self._rows, keys[order], row_of[which][order]),
            digests=_merged(self._digests, self._digest_rows, vectors[~known], row_of[~known]),
            first=first,
            changed=(rows, np.where(empty, smallest, np.minimum(first[rows], smallest))),
            shared=shared,
        )

    def commit(self, plan: Assignment) -> None:
        """Carry out a plan that was made for this state of the table."""
        (self._keys, self._rows), (self._digests, self._digest_rows) = plan.keys, plan.digests
        rows, smallest = plan.changed
        plan.first[rows] = smallest
        self._first, self.size, self.alive = plan.first, plan.size, plan.alive
        self._shared.update(plan.shared)

    def release(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Remove stored keys; returns the rows that became empty."""
        if not len(keys):
            return keys
        at = _find(self._keys, keys)
        order = np.lexsort((keys, self._rows[at]))
        rows, starts = np.unique(self._rows[at][order], return_index=True)
        groups = np.split(keys[order], starts[1:]) if self._shared else ()
        left = {
            row: np.setdiff1d(self._shared[row], group, assume_unique=True)
            for row, group in zip(rows.tolist() if self._shared else (), groups, strict=True)
            if row in self._shared
        }
        smallest = np.full(len(rows), -1, np.int64)
        for row, kept in left.items():
            smallest[np.searchsorted(rows, row)] = kept[0] if len(kept) else -1
        emptied = rows[smallest < 0]
        kept_keys = np.delete(self._keys, at), np.delete(self._rows, at)
        shared = {row: kept for row, kept in left.items() if len(kept) > 1}
        # Nothing has changed up to here, and what follows needs no memory.
        self._keys, self._rows = kept_keys
        self._first[rows] = smallest
        self.alive -= len(emptied)
        for row in left:
            del self._shared[row]
        self._shared.update(shared)
        return emptied

    def forget_vectors(self, first_row: int) -> None:
        """Never revive the rows from ``first_row`` on: their vectors are not in the index."""
        kept = self._digest_rows < first_row
        self._digests, self._digest_rows = self._digests[kept], self._digest_rows[kept]

    def compacted(self) -> tuple[KeyTable, NDArray[np.int64]]:
        """The table without empty rows; and the old numbers of the remaining rows, in their new order."""
        kept = self.view.rows
        new_row = np.full(self.size, -1, np.int64)
        new_row[kept] = np.arange(len(kept))
        table = KeyTable()
        table.size = table.alive = len(kept)
        table._keys, table._rows = self._keys, new_row[self._rows]
        left = new_row[self._digest_rows] >= 0
        table._digests, table._digest_rows = self._digests[left], new_row[self._digest_rows[left]]
        table._first = self._first[kept]
        table._shared = {int(new_row[row]): keys for row, keys in self._shared.items()}
        return table, kept

    def pairs(self) -> NDArray[np.int64]:
        """Every key and its row, int64 [n, 2], by ascending key."""
        return np.stack([self._keys, self._rows], axis=1)

    def digests(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Digests of the vectors that may be added again, ascending, and their rows int64 [m]."""
        return self._digests, self._digest_rows

    @classmethod
    def from_pairs(
        cls,
        pairs: NDArray[np.int64],
        digests: NDArray[np.bytes_],
        rows: NDArray[np.int64],
        size: int,
    ) -> KeyTable:
        """Rebuild a table of ``size`` rows from :meth:`pairs` and the digests of the vectors of ``rows``.

        Raises:
            IntegrityError: a key is negative or repeated, or its row is not stored.
        """
        if pairs.dtype != np.int64 or pairs.ndim != 2 or pairs.shape[1] != 2:
            raise IntegrityError(
                f"the key table has shape {list(pairs.shape)} of {pairs.dtype}, not int64 [n, 2]"
            )
        pairs = pairs[np.argsort(pairs[:, 0])]
        if len(pairs) and (pairs[0, 0] < 0 or (np.diff(pairs[:, 0]) == 0).any()):
            raise IntegrityError("the key table holds a negative or repeated key")
        if not np.isin(pairs[:, 1], rows).all():
            raise IntegrityError("the key table names a row whose vector is not stored")
        table = cls()
        order = np.argsort(digests, kind="stable")
        table._digests, table._digest_rows = digests[order], rows[order]
        table._keys, table._rows = np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1])
        table._first = np.full(size, -1, np.int64)
        filled, smallest, table._shared = _by_row(table._rows, table._keys)
        table._first[filled] = smallest
        table.size, table.alive = size, len(filled)
        return table


def _find(values: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.int64]:
    """Positions of ``wanted`` in ascending, unique ``values``; -1 for what is not there."""
    at = np.searchsorted(values, wanted)
    there = at < len(values)
    there[there] = values[at[there]] == wanted[there]
    return np.where(there, at, -1)


def _merged(
    values: NDArray[Any], rows: NDArray[np.int64], more: NDArray[Any], more_rows: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Two ascending arrays as one, and their rows."""
    at = np.searchsorted(values, more)
    return np.insert(values, at, more), np.insert(rows, at, more_rows)


def _by_row(
    rows: NDArray[np.int64], keys: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], dict[int, NDArray[np.int64]]]:
    """Rows without repeats, ascending, the smallest key of each, and all keys of those with several."""
    order = np.lexsort((keys, rows))
    rows, keys = rows[order], keys[order]
    starts = np.flatnonzero(np.append(True, rows[1:] != rows[:-1])[: len(rows)])
    counts = np.diff(np.append(starts, len(rows)))
    shared = {
        int(rows[start]): keys[start : start + count]
        for start, count in zip(starts[counts > 1], counts[counts > 1], strict=True)
    }
    return rows[starts], keys[starts], shared
