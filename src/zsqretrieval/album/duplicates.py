"""Near-duplicates of an album, found with its index."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import tell
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.changes import Position
from zsqretrieval.protocols import Index
from zsqretrieval.types import Progress

_FIRST_K, _MOST_K = 16, 1024  # neighbours of an image that are looked at


def near_duplicates(
    catalog: Catalog, index: Index, cosine: float, progress: Progress | None = None
) -> NDArray[np.int64]:
    """Keys int64 [m] of the images that are near-duplicates of an earlier one which is none, rising.

    The first of some near-duplicates stays, and nothing goes unless an image that stays is within the cosine.
    The neighbours are those that the index finds: an approximate index misses some. An image with 16
    neighbours within the cosine is asked again for more, up to 1,024.

    Args:
        catalog: with the vectors.
        index: in step with the catalog.
        cosine: similarity from which two images count as one.
        progress: called after each batch.
    """
    gone: set[int] = set()
    near: dict[int, set[int]] = {}  # earlier neighbours of images that are still to come
    done, total = 0, len(catalog)
    for keys, vectors in _vectors(catalog):
        for key, others in _neighbours(index, keys, vectors, cosine):
            for other in others:
                if other > key:
                    near.setdefault(other, set()).add(key)
            earlier = near.pop(key, set()).union(other for other in others if other < key)
            if not earlier <= gone:
                gone.add(key)
        done += len(keys)
        tell(progress, "looking for near-duplicates", done, total)
    return np.array(sorted(gone), np.int64)


def _vectors(catalog: Catalog) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """Keys, rising, and vectors of all images."""
    for change in catalog.log.changes(Position()):
        if len(change.added_keys):
            yield change.added_keys, change.added_vectors


def _neighbours(
    index: Index, keys: NDArray[np.int64], vectors: NDArray[np.float32], cosine: float
) -> Iterator[tuple[int, list[int]]]:
    """Each key, and the other keys within the cosine."""
    found: dict[int, list[int]] = {}
    waiting = np.arange(len(keys))
    k = _FIRST_K
    while len(waiting):
        nearest = index.search(vectors[waiting], k)
        hits = (nearest.scores >= cosine) & (nearest.keys >= 0) & (nearest.keys != keys[waiting, None])
        for n, hit, some in zip(waiting.tolist(), hits, nearest.keys, strict=True):
            found[n] = some[hit].tolist()
        more = nearest.scores[:, -1] >= cosine  # false for NaN, which stands for no key
        waiting = waiting[more] if k < _MOST_K else waiting[:0]
        k *= 4
    return ((int(keys[n]), found[n]) for n in range(len(keys)))
