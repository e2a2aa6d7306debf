"""Near-duplicates shown once, and diverse results."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.search.fusion import best_first


def collapsed(vectors: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Assign near-duplicates to the first of them.

    Args:
        vectors: float32 [n, dim], unit rows, best first.
        threshold: cosine similarity from which two images count as one.

    Returns:
        int64 [n]: the position of the first image that row n is a near-duplicate of; its own if there is
        none. Images that represent others are not near-duplicates of one another.
    """
    owner = np.arange(len(vectors))
    kept: list[int] = []
    for n, vector in enumerate(vectors):
        similar = vectors[kept] @ vector >= threshold
        if similar.any():
            owner[n] = kept[int(similar.argmax())]
        else:
            kept.append(n)
    return owner


def diversified(
    scores: NDArray[np.float64], vectors: NDArray[np.float32], diversity: float
) -> NDArray[np.int64]:
    """Order n images by maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998).

    The next image is the one with the largest ``(1 - diversity) * relevance - diversity * similarity``: its
    score, scaled to [0, 1] over the images, and its largest cosine similarity to an image before it.

    Args:
        scores: float64 [n], higher is better.
        vectors: float32 [n, dim], unit rows.
        diversity: in [0, 1]; 0 orders by score.

    Returns:
        int64 [n], positions, best first; ties keep their order.
    """
    spread = np.ptp(scores) if len(scores) else 0.0
    relevance = (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))
    nearest = np.zeros(len(scores))  # similarity to the images chosen so far
    order: list[int] = []
    left = np.ones(len(scores), np.bool_)
    while left.any():
        gain = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = int(best_first(gain)[0])
        order.append(best)
        left[best] = False
        cosines = (vectors @ vectors[best]).astype(np.float64)
        nearest = cosines if len(order) == 1 else np.maximum(nearest, cosines)
    return np.array(order, np.int64)
