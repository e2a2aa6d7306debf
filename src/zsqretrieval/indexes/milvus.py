"""The vectors of an album in a collection of Milvus."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.batches import batched
from zsqretrieval._util.files import array_part, open_snapshot, read_array, write_snapshot
from zsqretrieval._util.processes import Lock
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes.checks import check_integer, check_key_dtype, check_keys, unit_rows
from zsqretrieval.indexes.milvus_table import KEY, MOST, Milvus, Row, Table
from zsqretrieval.types import Neighbors

__all__ = ["Milvus", "MilvusIndex"]


@final
class MilvusIndex:
    """The vectors of an album in a collection of Milvus of their own, made when the first vectors come.

    Several processes may have the album open: each searches the keys that it has added itself or loaded. A
    saved index is the list of these keys; vectors are in the collection only. Not for more vectors than their
    keys fit in memory (8 bytes each): :meth:`Retriever.open <zsqretrieval.retriever.Retriever.open>` makes an
    album of a collection then.

    Args:
        dim: length of every vector.
        fingerprint: of their encoder.
        settings: of :class:`Milvus`; ``collection`` is the beginning of its name.
    """

    _kind = "milvus"
    safe_settings: ClassVar[Mapping[str, Any]] = {"dim": range(2**31), "fingerprint": str}  # no address

    def __init__(self, dim: int, *, fingerprint: str = "", **settings: Any) -> None:
        self._dim = check_integer("dim", dim)
        self._fingerprint = str(fingerprint)
        unknown = set(settings) - {one.name for one in fields(Milvus)}
        if unknown:
            raise InvalidInputError(f"Milvus has no settings {sorted(unknown)}")
        self._place = Milvus(**settings)
        self._table: Table | None = None
        self._keys = np.empty(0, np.int64)  # rising; replaced, never changed
        self._writing = Lock()

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the encoder of the vectors; empty when unknown."""
        return self._fingerprint

    @property
    def config(self) -> dict[str, Any]:
        """Settings that rebuild the index, without its data and the token."""
        return {"dim": self._dim, "fingerprint": self._fingerprint, **self._place.described}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """An empty index with the settings of another's :attr:`config`."""
        if "dim" not in config:
            raise InvalidInputError("the setting 'dim' is needed")
        return cls(**config)

    @property
    def collection(self) -> str | None:
        """Name of the collection; None before the first vectors."""
        return None if self._table is None else self._table.place.collection

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self._dim}, {len(self)} vectors, {self._place.uri})"

    def add(self, keys: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Store vectors [n, dim] under new keys [n]; see :meth:`zsqretrieval.protocols.Index.add`."""
        rows, new = unit_rows(vectors, self._dim), check_keys(keys)
        if len(new) != len(rows):
            raise InvalidInputError(
                f"{len(new)} keys came with {len(rows)} vectors; each vector needs one key"
            )
        with self._writing:
            if (present := np.isin(new, self._keys)).any():
                raise InvalidInputError(
                    f"key {new[present][0]} is stored already; remove it first, or choose another key"
                )
            if not len(new):
                return
            if self._table is None:
                table = self._attached(f"{self._place.collection}_{secrets.token_hex(4)}")
                table.create(self._dim)
                self._table = table
            self._table.upsert(new.tolist(), rows, partition=self._place.partition)
            new.sort()
            self._keys = np.insert(self._keys, np.searchsorted(self._keys, new), new)

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors:
        """Find the k nearest vectors of each query; see :meth:`zsqretrieval.protocols.Index.search`."""
        return self._find(unit_rows(vectors, self._dim), check_integer("k", k), self._keys, "")

    def search_among(self, vectors: NDArray[np.float32], k: int, keys: NDArray[np.int64]) -> Neighbors:
        """Like :meth:`search`, restricted to ``keys``, int64 [n]; keys that are not stored are ignored."""
        queries, k = unit_rows(vectors, self._dim), check_integer("k", k)
        stored = np.intersect1d(check_key_dtype(keys), self._keys)
        found = self._find(queries, k, stored[:0], "")
        for some in batched(stored.tolist(), MOST):
            part = self._find(queries, k, np.array(some), f"{KEY} in [{', '.join(map(str, some))}]")
            keys, scores = np.hstack([found.keys, part.keys]), np.hstack([found.scores, part.scores])
            order = np.lexsort((keys, np.where(keys < 0, np.inf, -scores)), axis=-1)[:, :k]
            found = Neighbors(np.take_along_axis(keys, order, 1), np.take_along_axis(scores, order, 1))
        return found

    def _find(
        self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64], condition: str
    ) -> Neighbors:
        """Search the rows that fit a condition; of these, the keys that are ``among``, rising, count."""
        keys, scores = (
            np.full((len(queries), k), -1, np.int64),
            np.full((len(queries), k), np.nan, np.float32),
        )
        if self._table is not None and (most := min(k, len(among))):

            def known(rows: list[Row]) -> list[Row]:  # other processes may have written more
                found = np.array([row.key for row in rows], np.int64)
                here = among[np.minimum(np.searchsorted(among, found), len(among) - 1)] == found
                return [rows[n] for n in np.flatnonzero(here)]

            for n, rows in enumerate(self._table.find(queries, most, known, condition)):
                keys[n, : len(rows)] = [row.key for row in rows]
                scores[n, : len(rows)] = [row.score for row in rows]
        return Neighbors(keys, scores)

    def remove(self, keys: NDArray[np.int64]) -> None:
        """Remove keys, int64 [n]; see :meth:`zsqretrieval.protocols.Index.remove`."""
        old = check_keys(keys)
        with self._writing:
            if (absent := ~np.isin(old, self._keys)).any():
                raise InvalidInputError(f"key {old[absent][0]} is not stored; nothing was removed")
            if self._table is not None and len(old):
                self._table.delete(old.tolist())
                self._keys = np.setdiff1d(self._keys, old, assume_unique=True)

    def save(self, path: Path) -> None:
        """Write the list of keys atomically; see :meth:`zsqretrieval.protocols.Index.save`."""
        with self._writing:
            facts = {**self.config, "metric": "cosine", "count": len(self), "table": self.collection}
            write_snapshot(path, self._kind, facts, {"keys.npy": array_part(self._keys)})

    @classmethod
    def load(cls, path: Path, *, dim: int | None = None, fingerprint: str | None = None) -> Self:
        """Verify a list of keys, and that their collection is there.

        See :meth:`zsqretrieval.protocols.Index.load`.

        Raises:
            IntegrityError: also if the collection has fewer rows.
            AlbumError: the server cannot be reached.
        """
        with open_snapshot(path, cls._kind, dim=dim, fingerprint=fingerprint, metric="cosine") as snapshot:
            facts = dict(snapshot.facts)
            table, count = facts.pop("table", None), facts.pop("count", None)
            facts.pop("metric", None)
            index = cls.from_config(facts)
            keys = read_array(snapshot.file("keys.npy"))
        if keys.dtype != np.int64 or keys.shape != (count,) or (keys[1:] <= keys[:-1]).any():
            raise IntegrityError(f"{path}: the keys are damaged; rebuild the index from its source")
        if table is not None:
            index._table = index._attached(str(table))
            rows = index._table.count() if index._table.open() else 0
            if rows < len(keys):
                raise IntegrityError(
                    f"{index._table.where} has {rows} rows, of {len(keys)} that were saved; rebuild the index"
                )
        index._keys = keys
        return index

    def _attached(self, collection: str) -> Table:
        return Table(
            Milvus(**{**self._place.described, "token": self._place.token, "collection": collection})
        )
