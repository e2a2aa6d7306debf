"""Exact top-k over blocks of vectors: bounded memory for any number of queries and rows."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["top_rows"]


def top_rows(
    queries: NDArray[np.float32],
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
    k: int,
    keys: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k rows of highest inner product with each query.

    Args:
        queries: float32 [q, dim], unit rows.
        blocks: (row numbers int64 [b], their unit vectors float32 [b, dim]), together at least k rows.
        k: how many rows per query.
        keys: int64 [rows]; equal scores are ranked by ascending ``keys[row]``.

    Returns:
        Rows int64 [q, k] and scores float32 [q, k] in [-1, 1], best first.
    """
    q = len(queries)
    best_rows = np.full((q, k), -1, np.int64)
    best = np.full((q, k), -np.inf, np.float32)
    for rows, vectors in blocks:
        scores = np.clip(queries @ vectors.T, -1, 1)  # [q, b]
        hot = np.flatnonzero(
            scores.max(axis=1, initial=-np.inf) >= best[:, -1]
        )  # where this block can matter
        if not hot.size:
            continue
        chosen = _top_columns(scores[hot], k, keys[rows])  # [hot, min(k, b)]
        merged_rows = np.hstack([best_rows[hot], rows[chosen]])
        merged = np.hstack([best[hot], np.take_along_axis(scores[hot], chosen, axis=1)])
        order = np.lexsort((keys[merged_rows], -merged), axis=-1)[:, :k]
        best_rows[hot] = np.take_along_axis(merged_rows, order, axis=1)
        best[hot] = np.take_along_axis(merged, order, axis=1)
    return best_rows, best


def _top_columns(scores: NDArray[np.float32], k: int, keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Columns of the k highest scores of each row, in any order; at the edge the smaller key wins."""
    b = scores.shape[1]
    if b <= k:
        return np.broadcast_to(np.arange(b), scores.shape)
    edge = np.partition(scores, b - k, axis=1)[:, b - k, None]
    chosen = scores >= edge
    for row in np.flatnonzero(chosen.sum(axis=1) > k):  # several scores equal the k-th
        tied = np.flatnonzero(scores[row] == edge[row])
        surplus = int(chosen[row].sum()) - k
        chosen[row, tied[np.argsort(keys[tied])[len(tied) - surplus :]]] = False
    return np.nonzero(chosen)[1].reshape(-1, k)
