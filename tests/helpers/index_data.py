"""Vectors for the index tests: small, clustered enough that a graph has something to do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["ranked", "unit", "vectors"]


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
