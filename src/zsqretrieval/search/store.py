"""Where the images of a retriever are: what a search needs of it, and the album with a catalog in SQLite.

:class:`Store` is the whole of what :mod:`~zsqretrieval.search.dense` and :mod:`~zsqretrieval.search.pipeline`
know about an album. :class:`~zsqretrieval.album.milvus.MilvusStore` is a collection of Milvus in its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched, tell
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.edits import remove
from zsqretrieval.album.filters import Filter
from zsqretrieval.album.kept import KeptImages
from zsqretrieval.album.removal import listed
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes.checks import nearest
from zsqretrieval.laion.hashes import HashList
from zsqretrieval.protocols import Index
from zsqretrieval.search.among import nearest_among
from zsqretrieval.types import Neighbors, Progress

Found: TypeAlias = tuple[Record, float]
"""An image, and its cosine similarity to a query."""

_AT_ONCE = 4096  # records of a removal
_NEAREST = 10  # in the searches before and after it


class Store(Protocol):
    """Records and vectors of images, and the nearest ones to a query; others may change it at any time."""

    @property
    def kept(self) -> KeptImages:
        """The encoded bytes of images that it keeps."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def find(self, id: str) -> Record | None:
        """The record of an id; None when there is none."""
        ...

    def by_id(self, ids: Sequence[str]) -> Mapping[str, Record]:
        """The records of the ids that are there, out of some, by id."""
        ...

    def iter_records(self) -> Iterator[Record]:
        """The records of all images, by rising key."""
        ...

    def stored(self, keys: Sequence[int]) -> tuple[list[int], NDArray[np.float32]]:
        """The positions of the keys that are there, out of some, and their vectors float32 [n, dim]."""
        ...

    def matching(self, where: Filter) -> Any:
        """The images that a filter selects, as :meth:`nearest` takes them.

        Raises:
            InvalidInputError: no image has one of its fields.
        """
        ...

    def nearest(self, vectors: NDArray[np.float32], k: int, among: Any = None) -> list[list[Found]]:
        """The k images nearest to each unit vector [q, dim], best first, equal ones by rising key.

        ``among`` restricts them; None for all.
        """
        ...

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images by id, all or none; an InvalidInputError names one that is not there."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


def find_listed(store: Store, removed: HashList, progress: Progress | None) -> list[Record]:
    """The images of a store that are on a removal list."""
    found: list[Record] = []
    done, total = 0, len(store)
    for batch in batched(store.iter_records(), _AT_ONCE):
        found += [one for one, hit in zip(batch, listed(removed, batch), strict=True) if hit]
        done += len(batch)
        tell(progress, "looking for listed images", done, total)
    return found


def count_found(store: Store, keys: Sequence[int], vectors: NDArray[np.float32]) -> int:
    """How many keys a search for their vectors [n, dim] finds among the first ten."""
    count = 0
    for begin in range(0, len(keys) if len(store) else 0, _AT_ONCE):
        part = slice(begin, begin + _AT_ONCE)
        hits = zip(keys[part], store.nearest(vectors[part], _NEAREST), strict=True)
        count += sum(key in {record.key for record, _ in found} for key, found in hits)
    return count


@final
class AlbumStore:
    """An album with its catalog in SQLite; ``follower`` is its index of images."""

    def __init__(self, catalog: Catalog, follower: IndexSync) -> None:
        self._catalog, self._follower = catalog, follower
        self.find, self.by_id, self.iter_records = catalog.find, catalog.by_id, catalog.iter_records
        self.close = catalog.close

    @property
    def kept(self) -> KeptImages:
        """The kept bytes of images."""
        return self._catalog.kept

    def __len__(self) -> int:
        return len(self._catalog)

    def matching(self, where: Filter) -> NDArray[np.int64]:
        """The keys of the images that a filter selects; see :meth:`Store.matching`."""
        return self._catalog.fields.matching(where)

    def stored(self, keys: Sequence[int]) -> tuple[list[int], NDArray[np.float32]]:
        """See :meth:`Store.stored`."""
        with self._catalog.reading():
            known = self._catalog.known_keys(np.array(keys, np.int64))
            here = [n for n, key in enumerate(keys) if key in known]
            return here, self._catalog.log.get([keys[n] for n in here])

    def remove(self, ids: str | Iterable[str]) -> None:
        """See :meth:`Store.remove`; also removes questions and kept bytes."""
        remove(self._catalog, ids)
        self._follower.follow()

    def keys(self, vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Keys int64 [q, at most k] of the images nearest to vectors [q, dim], best first; -1 for none."""
        return self._neighbors(vectors, k, None).keys

    def _neighbors(self, vectors: NDArray[np.float32], k: int, among: NDArray[np.int64] | None) -> Neighbors:
        def search(index: Index) -> Neighbors:
            if among is None:
                return nearest(index, vectors, k)
            return nearest_among(index, vectors, k, among, self._catalog.log.get)

        while True:
            try:
                return self._follower.ask(search)
            except InvalidInputError:  # one of them was just removed: search among the others
                if among is None:
                    raise
                left = np.array(sorted(self._catalog.known_keys(among)), np.int64)
                if len(left) == len(among):
                    raise
                among = left

    def nearest(
        self, vectors: NDArray[np.float32], k: int, among: NDArray[np.int64] | None = None
    ) -> list[list[Found]]:
        """See :meth:`Store.nearest`; ``among`` are rising keys, all present."""
        while True:
            position = self._catalog.log.position
            try:
                neighbors = self._neighbors(vectors, k, among)
                there = neighbors.keys >= 0  # [q, k]
                wanted = np.unique(neighbors.keys[there])
                records = dict(zip(wanted.tolist(), self._catalog.records(wanted), strict=True))
            except InvalidInputError as error:  # a hit was removed between the two steps: search again
                if position == self._catalog.log.position:
                    raise IntegrityError(
                        f"the index {type(self._follower.index).__name__} and the catalog of this album "
                        f"disagree: {error}"
                    ) from error
                continue
            return [
                [
                    (records[key], score)
                    for key, score in zip(keys[row].tolist(), scores[row].tolist(), strict=True)
                ]
                for keys, scores, row in zip(neighbors.keys, neighbors.scores, there, strict=True)
            ]
