"""Vectors in a collection of Milvus: of a server or cluster, or embedded in this process (milvus-lite).

:class:`Milvus` says where a collection is, how it is made and how it is searched, :class:`Table` sends the
requests, and :class:`MilvusIndex` keeps the vectors of an album there.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, final, get_args

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import check_numbers, check_text
from zsqretrieval._util.files import array_part, open_snapshot, read_array, write_snapshot
from zsqretrieval._util.optional import import_optional
from zsqretrieval._util.processes import Lock
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError
from zsqretrieval.indexes.checks import check_integer, check_key_dtype, check_keys, unit_rows
from zsqretrieval.types import Neighbors

MOST = 16_384
"""Rows that Milvus gives for one query, and rows of one query times queries of one request, at most."""

KEY, VECTOR = "key", "vector"
"""Fields of every collection: the primary key int64, and the vector."""

Consistency: TypeAlias = Literal["Strong", "Session", "Bounded", "Eventually"]

_EXACT = ("FLAT", "HNSW", "IVF_FLAT", "AUTOINDEX")  # compare whole vectors
_BUILD: Mapping[str, Mapping[str, Any]] = {
    "HNSW": {"M": 16, "efConstruction": 200},
    "HNSW_SQ": {"M": 16, "efConstruction": 200, "sq_type": "SQ8"},
    "HNSW_PQ": {"M": 16, "efConstruction": 200},
    "IVF_FLAT": {"nlist": 1024},
    "IVF_SQ8": {"nlist": 1024},
    "IVF_PQ": {"nlist": 1024, "nbits": 8},
    "IVF_RABITQ": {"nlist": 1024},
    "SCANN": {"nlist": 1024},
}
_BYTES = 8_000_000  # of vectors in one request; servers take 64 MB, of rows with all their texts
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True)
class Milvus:
    """A collection of Milvus, with the parameters that make and search it.

    Those that make it (``index``, ``build``, ``shards``, ``dtype``) have no effect on one that exists.

    Args:
        uri: address of a server, ``http://host:19530``, or directory of milvus-lite.
        collection: its name: letters, digits and underscores.
        token: ``user:password`` or a key; the environment variable ``MILVUS_TOKEN`` when empty. Never stored.
        index: type of index, such as ``"HNSW"``, ``"IVF_PQ"``, ``"DISKANN"`` or ``"IVF_RABITQ"``.
        build: parameters that build it, over the defaults.
        search: parameters of a search, over the defaults: ``ef``, ``search_list`` or ``nprobe`` 128.
        shards: parts in which the server takes rows in.
        replicas: copies that it searches.
        consistency: which writes a search has to see; ``"Session"`` those of this process.
        dtype: of the stored vectors; ``"float16"`` halves them.
        refine: candidates per neighbour that are compared again by their stored vectors; 0 for none. None
            is 4 for types of index that compress vectors, else 0.
        partition: partition that rows go to, made when missing, and that is searched; all when empty.
        partition_field: metadata key whose value names the partition of a row; ``partition`` without one.
        timeout: seconds after which a request fails; until then it is repeated, at growing intervals.

    Raises:
        InvalidInputError: a value is out of range.
    """

    uri: str = "http://localhost:19530"
    collection: str = "zsqretrieval"
    token: str = field(default="", repr=False)
    index: str = "HNSW"
    build: Mapping[str, Any] = field(default_factory=dict)
    search: Mapping[str, Any] = field(default_factory=dict)
    shards: int = 1
    replicas: int = 1
    consistency: Consistency = "Session"
    dtype: Literal["float32", "float16"] = "float32"
    refine: int | None = None
    partition: str = ""
    partition_field: str = ""
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("uri", "collection", "index"):
            check_text(getattr(self, name), f"the {name} of Milvus")
        if not _NAME.fullmatch(self.collection):
            raise InvalidInputError(
                f"{self.collection!r} is no name of a collection; use letters, digits and underscores"
            )
        check_integer("shards", self.shards, most=1024)
        check_integer("replicas", self.replicas, most=1024)
        if self.refine is not None:
            check_integer("refine", self.refine, least=0, most=1000)
        check_numbers(timeout=self.timeout)
        for name, given, known in (
            ("consistency", self.consistency, get_args(Consistency)),
            ("dtype", self.dtype, ("float32", "float16")),
        ):
            if given not in known:
                raise InvalidInputError(f"{name} must be one of {', '.join(known)}, not {given!r}")

    @property
    def described(self) -> dict[str, Any]:
        """The settings as JSON, without the token."""
        return {name: value for name, value in asdict(self).items() if name != "token"}

    @property
    def is_embedded(self) -> bool:
        """Whether milvus-lite runs in this process."""
        return "://" not in self.uri

    def depth(self, k: int) -> int:
        """Candidates that the index gives for k neighbours."""
        refine = (0 if self.index in _EXACT else 4) if self.refine is None else self.refine
        return min(k * max(refine, 1), MOST)

    @property
    def refines(self) -> bool:
        """Whether candidates are compared again by their stored vectors."""
        return self.depth(1) > 1 or self.refine == 1

    def index_request(self) -> dict[str, Any]:
        """Arguments of ``IndexParams.add_index``."""
        return {
            "field_name": VECTOR,
            "index_type": self.index,
            "metric_type": "COSINE",
            "params": {**_BUILD.get(self.index, {}), **self.build},
        }

    def search_params(self, limit: int) -> dict[str, Any]:
        """The ``search_params`` of a search for ``limit`` rows."""
        params: dict[str, Any] = dict(self.search)
        if self.index.startswith("HNSW"):
            params["ef"] = max(params.get("ef", 128), limit)
        elif self.index == "DISKANN":
            params["search_list"] = max(params.get("search_list", 128), limit)
        elif self.index.startswith("IVF") or self.index == "SCANN":
            params.setdefault("nprobe", 128)
        return {"metric_type": "COSINE", "params": params}


@dataclass(frozen=True, slots=True)
class Row:
    """A row that a search found."""

    key: int
    score: float  # cosine
    fields: Mapping[str, Any]


@final
class Table:
    """Sends the requests of one collection; for several threads. ``columns`` are its fields but key and vector.

    Every request can be repeated without harm, and is while the server cannot be reached.
    All methods raise AlbumError when the server refuses, or cannot be reached within the timeout.
    """

    def __init__(self, place: Milvus, columns: Sequence[tuple[str, str, Mapping[str, Any]]] = ()) -> None:
        self.place = place
        self._columns = columns
        self._milvus = import_optional("pymilvus", "Milvus", "pip install 'zsqretrieval[milvus]'")
        self._client: Any = None
        self._partitions: set[str] = set()
        self._lock = Lock()

    @property
    def where(self) -> str:
        """Collection and server, in error messages."""
        return f"the collection {self.place.collection} of {self.place.uri}"

    def call(self, method: str, /, **arguments: Any) -> Any:
        """Call a method of ``pymilvus.MilvusClient``, which repeats what fails on the way to the server."""
        place = self.place
        try:
            with self._lock:
                if self._client is None:
                    if place.is_embedded:
                        Path(place.uri).absolute().parent.mkdir(parents=True, exist_ok=True)
                    token = place.token or os.environ.get("MILVUS_TOKEN", "")
                    self._client = self._milvus.MilvusClient(place.uri, token=token, timeout=place.timeout)
                client = self._client
            if method != "prepare_index_params":
                arguments = {"collection_name": place.collection, "timeout": place.timeout, **arguments}
            return getattr(client, method)(**arguments)
        except (self._milvus.MilvusException, OSError, ValueError) as error:
            said = getattr(error, "message", "") or str(error)
            raise AlbumError(f"{self.where}: {method} failed: {' '.join(str(said).split())[:300]}") from error

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def exists(self) -> bool:
        """Whether there is such a collection."""
        return bool(self.call("has_collection"))

    def create(self, dim: int, properties: Mapping[str, str]) -> None:
        """Make the collection, and its index."""
        kind, place = self._milvus.DataType, self.place
        schema = self._milvus.MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field(KEY, kind.INT64, is_primary=True)
        schema.add_field(VECTOR, kind.FLOAT_VECTOR if place.dtype == "float32" else kind.FLOAT16_VECTOR, dim=dim)
        for name, type_name, settings in self._columns:
            schema.add_field(name, kind[type_name], **settings)
        index = self.call("prepare_index_params")
        index.add_index(**place.index_request())
        self.call("create_collection", schema=schema, num_shards=place.shards, consistency_level=place.consistency)
        if properties:
            self.call("alter_collection_properties", properties=dict(properties))
        self.call("create_index", index_params=index)
        self.call("load_collection", replica_number=place.replicas)

    def describe(self) -> tuple[int, Mapping[str, str]]:
        """Length of the vectors, and properties."""
        found = self.call("describe_collection")
        dims = [one["params"].get("dim") for one in found["fields"] if one["name"] == VECTOR]
        if not dims:
            raise AlbumError(f"{self.where} was not made by zsqretrieval: it has no field {VECTOR!r}")
        return int(dims[0]), found.get("properties") or {}

    def upsert(
        self,
        keys: Sequence[int],
        vectors: NDArray[np.float32],
        rows: Sequence[Mapping[str, Any]] | None = None,
        partition: str = "",
    ) -> None:
        """Write rows under keys, in place of those that are there; some may be written when this fails."""
        if partition and partition not in self._partitions:
            if not self.call("has_partition", partition_name=partition):
                self.call("create_partition", partition_name=partition)
            self._partitions.add(partition)
        stored = vectors.astype(self.place.dtype)
        where = {"partition_name": partition} if partition else {}
        for some in batched(range(len(keys)), max(1, _BYTES // (4 * vectors.shape[1] + 1024))):
            data = [
                {KEY: int(keys[n]), VECTOR: stored[n], **({} if rows is None else rows[n])} for n in some
            ]
            self.call("upsert", data=data, **where)

    def delete(self, keys: Sequence[int]) -> None:
        """Delete the rows of keys; unknown ones do no harm."""
        for some in batched(keys, MOST):
            self.call("delete", ids=[int(key) for key in some])

    def count(self) -> int:
        """Number of rows."""
        (found,) = self.call("query", filter="", output_fields=["count(*)"], **self._searched())
        return int(found["count(*)"])

    def query(self, condition: str, columns: Sequence[str], limit: int = MOST) -> list[Mapping[str, Any]]:
        """Some rows that fit a condition."""
        return list(
            self.call("query", filter=condition, output_fields=list(columns), limit=limit, **self._searched())
        )

    def get(self, keys: Sequence[int], columns: Sequence[str]) -> list[Mapping[str, Any]]:
        """The rows of those keys that are there, in no order."""
        found: list[Mapping[str, Any]] = []
        for some in batched(keys, 1024):
            listed = ", ".join(str(int(key)) for key in some)
            found += self.query(f"{KEY} in [{listed}]", columns)
        return found

    def rows(self, columns: Sequence[str]) -> Iterator[list[Mapping[str, Any]]]:
        """All rows, in batches by rising key."""
        last = -1
        while some := self.query_after(last, columns):
            some.sort(key=lambda row: row[KEY])
            yield some
            last = some[-1][KEY]

    def query_after(self, key: int, columns: Sequence[str]) -> list[Mapping[str, Any]]:
        """The next rows by rising key."""
        iterator = self.call(
            "query_iterator", batch_size=1000, limit=1000, filter=f"{KEY} > {key}", output_fields=list(columns),
            **self._searched(),
        )  # fmt: skip
        try:
            return list(iterator.next())
        finally:
            iterator.close()

    def search(
        self, queries: NDArray[np.float32], k: int, condition: str = "", columns: Sequence[str] = ()
    ) -> list[list[Row]]:
        """At most k rows nearest to each unit vector [q, dim], best first, equal scores by rising key."""
        if k > MOST:
            raise InvalidInputError(f"Milvus gives at most {MOST} neighbours of a vector, not {k}")
        place, depth = self.place, self.place.depth(k)
        wanted = [*columns, *([VECTOR] if place.refines else [])]
        found: list[list[Row]] = []
        for some in batched(range(len(queries)), max(1, MOST // depth)):
            answers = self.call(
                "search", data=list(queries[list(some)].astype(place.dtype)), anns_field=VECTOR,
                filter=condition, limit=depth, output_fields=wanted, search_params=place.search_params(depth),
                consistency_level=place.consistency, **self._searched(),
            )  # fmt: skip
            for n, answer in zip(some, answers, strict=True):
                rows = {hit[KEY]: hit for hit in answer}  # a key may be in two segments for a moment
                if place.refines and rows:
                    vectors = unpacked([hit["entity"][VECTOR] for hit in rows.values()], queries.shape[1])
                    scores = vectors @ queries[n]
                else:
                    scores = np.array([hit["distance"] for hit in rows.values()], np.float32)
                scores = np.clip(scores, -1, 1)
                best = sorted(zip((-scores).tolist(), rows, strict=True))[:k]
                found.append([Row(int(key), -score, rows[key]["entity"]) for score, key in best])
        return found

    def _searched(self) -> dict[str, Any]:
        return {"partition_names": [self.place.partition]} if self.place.partition else {}


def unpacked(stored: Sequence[Any], dim: int) -> NDArray[np.float32]:
    """Vectors as Milvus gives them, as unit rows float32 [n, dim]."""
    halves = (np.frombuffer(one, np.float16) if isinstance(one, bytes) else one for one in stored)
    return unit_rows(np.array([np.asarray(one, np.float32) for one in halves]).reshape(-1, dim), dim)


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
            raise InvalidInputError(f"{len(new)} keys came with {len(rows)} vectors; each vector needs one key")
        with self._writing:
            if (present := np.isin(new, self._keys)).any():
                raise InvalidInputError(
                    f"key {new[present][0]} is stored already; remove it first, or choose another key"
                )
            if not len(new):
                return
            if self._table is None:
                table = self._attached(f"{self._place.collection}_{secrets.token_hex(4)}")
                table.create(self._dim, {})
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

    def _find(self, queries: NDArray[np.float32], k: int, among: NDArray[np.int64], condition: str) -> Neighbors:
        """Search the rows that fit a condition; of these, the keys that are ``among``, rising, count."""
        found = Neighbors(np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.nan, np.float32))
        waiting, depth, most = list(range(len(queries))), min(k, len(among)), min(k, len(among))
        while waiting and most:
            assert self._table is not None
            short = []
            for n, rows in zip(waiting, self._table.search(queries[waiting], depth, condition), strict=True):
                keys = np.array([row.key for row in rows], np.int64)
                known = np.flatnonzero(among[np.minimum(np.searchsorted(among, keys), len(among) - 1)] == keys)[:k]
                found.keys[n, : len(known)] = keys[known]
                found.scores[n, : len(known)] = [rows[m].score for m in known]
                if len(known) < most and len(rows) == depth < MOST:  # of other processes
                    short.append(n)
            waiting, depth = short, min(2 * depth, MOST)
        return found

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
        """Verify a list of keys, and that their collection is there; see :meth:`zsqretrieval.protocols.Index.load`.

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
            rows = index._table.count() if index._table.exists() else 0
            if rows < len(keys):
                raise IntegrityError(
                    f"{index._table.where} has {rows} rows, of {len(keys)} that were saved; rebuild the index"
                )
        index._keys = keys
        return index

    def _attached(self, collection: str) -> Table:
        return Table(Milvus(**{**self._place.described, "token": self._place.token, "collection": collection}))
