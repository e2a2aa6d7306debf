"""Nearest images among some of an album."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.indexes.base import top_rows
from zsqretrieval.indexes.checks import nearest, unit_rows
from zsqretrieval.protocols import FilteredIndex, Index
from zsqretrieval.types import Neighbors

_FEW = 1024  # keys whose vectors are compared in about 10 ms; hnswlib takes five times as long to give them
_BLOCK = 4096  # vectors read at once


def nearest_among(
    index: Index,
    vectors: NDArray[np.float32],
    k: int,
    keys: NDArray[np.int64],
    stored_vectors: Callable[[NDArray[np.int64]], NDArray[np.float32]],
) -> Neighbors:
    """Find the nearest of some images for each query, never fewer than k while there are k.

    An index that can search among keys does so (:class:`~zsqretrieval.protocols.FilteredIndex`). All vectors
    are compared if the keys are few, if the index cannot do it, and for queries to which it gives too few
    keys, for instance because it does not hold all of them yet.

    Args:
        index: the index of the images.
        vectors: queries, float32 [q, dim].
        k: how many to return, >= 1.
        keys: int64 [m], rising, all present.
        stored_vectors: gives float32 [n, dim] of keys int64 [n], as
            :meth:`~zsqretrieval.album.changes.VectorLog.get` does.

    Returns:
        min(k, m) columns, but at least one; padded only without keys.

    Raises:
        PartError: the answer of the index breaks its contract, such as a key that is not in ``keys``.
        InvalidInputError: ``stored_vectors`` does not know a key, since it was just removed.
    """
    k = min(k, max(len(keys), 1))
    best = np.full((len(vectors), k), -1, np.int64)
    scores = np.full((len(vectors), k), np.nan, np.float32)
    if len(keys) > _FEW and isinstance(index, FilteredIndex):
        found = nearest(index, vectors, k, keys)
        best[:], scores[:] = found.keys, found.scores
    short = np.flatnonzero((best < 0).any(axis=1))
    if len(keys) and short.size:
        parts = (slice(start, start + _BLOCK) for start in range(0, len(keys), _BLOCK))
        rows = np.arange(len(keys))
        blocks = ((rows[part], unit_rows(stored_vectors(keys[part]), index.dim)) for part in parts)
        found_rows, scores[short] = top_rows(unit_rows(vectors[short], index.dim), blocks, k, keys)
        best[short] = keys[found_rows]
    return Neighbors(best, scores)
