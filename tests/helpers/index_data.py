"""Vectors and indexes for the index tests: small, clustered, so that the graph is not trivial."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.protocols import FilteredIndex

__all__ = ["expect_among", "filled", "ranked", "self_recall", "unit", "vectors"]


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def vectors(n: int, dim: int = 32, seed: int = 0, rank: int = 12) -> NDArray[np.float32]:
    """n unit vectors that lie near a subspace of ``rank`` dimensions."""
    generator = np.random.default_rng(seed)
    basis = np.random.default_rng(99).standard_normal((rank, dim))
    return unit(generator.standard_normal((n, rank)) @ basis + 0.1 * generator.standard_normal((n, dim)))


def ranked(
    gallery: NDArray[np.float32], keys: NDArray[np.int64], queries: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The definition: all cosines in float64, sorted by score and then by key."""
    scores = unit(queries).astype(np.float64) @ unit(gallery).astype(np.float64).T
    order = np.lexsort((np.broadcast_to(keys, scores.shape), -scores), axis=-1)[:, :k]
    return keys[order], np.take_along_axis(scores, order, axis=1)


def expect_among(
    index: FilteredIndex, gallery: NDArray[np.float32], queries: NDArray[np.float32], k: int, allowed: list
) -> None:
    """A search among keys of a gallery, some of them not in it, finds what the definition does, then -1."""
    stored = np.unique([key for key in allowed if 0 <= key < len(gallery)])
    found = index.search_among(queries, k, np.array(allowed)).keys
    np.testing.assert_array_equal(found[:, : len(stored)], ranked(gallery[stored], stored, queries, k)[0])
    assert (found[:, len(stored) :] == -1).all()
    assert (index.search_among(queries, 3, np.array([], np.int64)).keys == -1).all()


def filled(n: int = 400, dim: int = 32, **settings: int | str) -> HNSWIndex:
    index = HNSWIndex(dim, **{"threads": 1, **settings})  # type: ignore[arg-type]
    index.add(np.arange(n), vectors(n, dim))
    return index


def self_recall(index: HNSWIndex, keys: np.ndarray, rows: np.ndarray) -> float:
    return float((index.search(rows, 1).keys[:, 0] == keys).mean())
