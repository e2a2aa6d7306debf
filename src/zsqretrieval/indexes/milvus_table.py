"""Collections of Milvus: of a server or cluster, or embedded in this process (milvus-lite).

:class:`Milvus` says where a collection is, how it is made and how it is searched; :class:`Table` sends the
requests.
"""

from __future__ import annotations

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import check_numbers, check_text
from zsqretrieval._util.optional import import_optional
from zsqretrieval._util.processes import Lock
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.indexes.checks import check_integer, unit_rows

MOST = 16_384
"""Rows that Milvus gives for one query, and rows of one query times queries of one request, at most."""

KEY, VECTOR = "key", "vector"
"""Fields of every collection: the primary key int64, and the vector."""

Consistency: TypeAlias = Literal["Strong", "Session", "Bounded", "Eventually"]

_EXACT = ("FLAT", "HNSW", "IVF_FLAT", "AUTOINDEX")  # compare whole vectors
_LITE = ("FLAT", "HNSW", "HNSW_SQ", "IVF_FLAT", "IVF_SQ8", "AUTOINDEX", "float32")
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
_ANSWERED = 2048  # rows of one answer that come with their vectors, of which pymilvus makes lists of numbers
_PAGE = 4096  # rows that are read at a time: milvus-lite looks at all rows for each page
_AWAY, _NOT_LOADED = 2, 101  # codes of errors: no server can be reached; the collection is not loaded
_LONG = ("create_index", "load_collection", "flush")  # wait while an index is built
_TYPES = {"float32": "FLOAT_VECTOR", "float16": "FLOAT16_VECTOR"}
_SETTINGS = "zsqretrieval.settings"  # property of a collection
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


@dataclass(frozen=True)
class Milvus:
    """A collection of Milvus, with the parameters that make and search it.

    Those that make it (``index``, ``build``, ``shards``, ``dtype``) have no effect on one that exists, which
    is searched by the type of its own index.

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
        timeout: seconds after which a request to a server fails, unless it builds an index; until then it is
            repeated, at growing intervals. milvus-lite, which orders its files in between, may take longer.

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
        lacking = [one for one in (self.index, self.dtype) if one not in _LITE]
        if self.is_embedded and lacking:  # it would take the vectors, and fail when the collection is opened
            raise InvalidInputError(f"milvus-lite has no {lacking[0]}; choose from {', '.join(_LITE)}")

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
    """Sends the requests of one collection; ``columns`` are its fields next to key and vector.

    Every request can be repeated without harm, and is while the server cannot be reached.
    All methods raise AlbumError when the server refuses, or cannot be reached within the timeout.
    """

    def __init__(self, place: Milvus, columns: Sequence[tuple[str, str, Mapping[str, Any]]] = ()) -> None:
        self.place = place
        self._columns = columns
        self._milvus, self._grpc = (
            import_optional(name, "Milvus", "pip install 'zsqretrieval[milvus]'")
            for name in ("pymilvus", "grpc")
        )
        self._client: Any = None
        self._partitions: set[str] = set()
        self._lock = Lock()

    @property
    def where(self) -> str:
        """Collection and server, in error messages."""
        return f"the collection {self.place.collection} of {self.place.uri}"

    @contextmanager
    def _errors(self, method: str) -> Iterator[None]:
        try:
            yield
        except (self._milvus.MilvusException, self._grpc.RpcError, OSError, ValueError) as error:
            said = " ".join(str(getattr(error, "message", "") or error).split())[:300]
            raise AlbumError(f"{self.where}: {method} failed: {said}") from error

    def call(self, method: str, /, **arguments: Any) -> Any:
        """Call a method of ``pymilvus.MilvusClient``; again, at growing intervals, while there is no server.

        The client itself repeats a request whose connection breaks.
        """
        place, end, wait = self.place, time.monotonic() + self.place.timeout, 0.1
        with self._errors(method):
            while True:
                try:
                    client = self._connected()
                    limit = None if method in _LONG or place.is_embedded else place.timeout
                    return getattr(client, method)(place.collection, timeout=limit, **arguments)
                except self._milvus.MilvusException as error:
                    if error.code not in (_AWAY, _NOT_LOADED) or time.monotonic() + wait > end:
                        raise
                    if error.code == _NOT_LOADED and method != "load_collection":  # the server was restarted
                        self.call("load_collection", replica_number=place.replicas)
                time.sleep(wait)
                wait = min(2 * wait, 5.0)

    def _connected(self) -> Any:
        place = self.place
        with self._lock:
            if self._client is None:
                if place.is_embedded:
                    Path(place.uri).absolute().parent.mkdir(parents=True, exist_ok=True)
                token = place.token or os.environ.get("MILVUS_TOKEN", "")
                self._client = self._milvus.MilvusClient(place.uri, token=token, timeout=place.timeout)
            return self._client

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            if self._client is not None:
                self._client.close()
            self._client = None

    def open(self) -> bool:
        """Load the collection for searches; False if there is none."""
        there = bool(self.call("has_collection"))
        if there and self.call("get_load_state")["state"].name != "Loaded":  # perhaps with other replicas
            self.call("load_collection", replica_number=self.place.replicas)
        if there:
            self.place = replace(self.place, **self._made())
        return there

    def _made(self) -> dict[str, Any]:
        """The types of index and of vectors that the collection was made with, whoever opens it."""
        made: dict[str, Any] = {}
        for one in self.call("describe_collection")["fields"]:
            for dtype, name in _TYPES.items():
                if (one["name"], one["type"]) == (VECTOR, self._milvus.DataType[name]):
                    made["dtype"] = dtype
        for name in self.call("list_indexes", field_name=VECTOR):
            made["index"] = self.call("describe_index", index_name=name)["index_type"]
        return made

    def create(self, dim: int, settings: str = "") -> None:
        """Make the collection and its index; ``settings`` are kept with it."""
        kind, place, client = self._milvus.DataType, self.place, self._milvus.MilvusClient
        schema = client.create_schema(enable_dynamic_field=False, description=settings)
        schema.add_field(KEY, kind.INT64, is_primary=True, auto_id=False)
        schema.add_field(VECTOR, kind[_TYPES[place.dtype]], dim=dim)
        for name, type_name, details in self._columns:
            schema.add_field(name, kind[type_name], **details)
        index = client.prepare_index_params()
        index.add_index(VECTOR, **place.index_request())
        self.call(
            "create_collection", schema=schema, num_shards=place.shards, consistency_level=place.consistency
        )
        if settings:
            self.change(settings)
        self.call("create_index", index_params=index)
        self.call("load_collection", replica_number=place.replicas)

    def change(self, settings: str) -> None:
        """Keep other settings with the collection."""
        self.call("alter_collection_properties", properties={_SETTINGS: settings})

    def flush(self) -> None:
        """Have the rows indexed that were written last, which are compared one by one until then."""
        self.call("flush")
        if self.place.is_embedded:  # milvus-lite builds an index when it loads a collection
            self.call("release_collection")
            self.open()

    def describe(self) -> tuple[int, str]:
        """Length of the vectors, 0 without any, and the settings."""
        found = self.call("describe_collection")
        dims = [one["params"].get("dim", 0) for one in found["fields"] if one["name"] == VECTOR]
        kept = (found.get("properties") or {}).get(_SETTINGS) or found.get("description", "")
        return int(dims[0]) if dims else 0, kept

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
            data = [{KEY: int(keys[n]), VECTOR: stored[n], **({} if rows is None else rows[n])} for n in some]
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
        iterator = self.call(
            "query_iterator", batch_size=_PAGE, output_fields=list(columns), **self._searched()
        )
        while True:
            with self._errors("query_iterator"):
                if not (some := iterator.next()):
                    break
            yield some
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
        for some in batched(range(len(queries)), max(1, (_ANSWERED if place.refines else MOST) // depth)):
            answers = self.call(
                "search", data=list(queries[list(some)].astype(place.dtype)), anns_field=VECTOR,
                filter=condition, limit=depth, output_fields=wanted, search_params=place.search_params(depth),
                **self._searched(),
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

    def find(
        self,
        queries: NDArray[np.float32],
        k: int,
        kept: Callable[[list[Row]], list[Row]],
        condition: str = "",
        columns: Sequence[str] = (),
    ) -> list[list[Row]]:
        """As :meth:`search`, of the rows that ``kept`` keeps: the search is repeated until there are k."""
        found: list[list[Row]] = [[] for _ in queries]
        waiting, depth = list(range(len(queries))), k
        while waiting:
            short: list[int] = []
            for n, rows in zip(
                waiting, self.search(queries[waiting], depth, condition, columns), strict=True
            ):
                found[n] = kept(rows)[:k]
                if len(found[n]) < k and len(rows) == depth:
                    short.append(n)
            if short and depth == MOST:
                warnings.warn(
                    f"only {min(len(found[n]) for n in short)} of {k} hits are among the {MOST} nearest "
                    "rows, which is all that Milvus gives: state the condition without not (docs/milvus.md)",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
            waiting, depth = short, min(2 * depth, MOST)
        return found

    def _searched(self) -> dict[str, Any]:
        """The settings of every search and query."""
        some = {"partition_names": [self.place.partition]} if self.place.partition else {}
        return {"consistency_level": self.place.consistency, **some}


def unpacked(stored: Sequence[Any], dim: int) -> NDArray[np.float32]:
    """Vectors as Milvus gives them, as unit rows float32 [n, dim]."""
    halves = (np.frombuffer(one, np.float16) if isinstance(one, bytes) else one for one in stored)
    return unit_rows(np.array([np.asarray(one, np.float32) for one in halves]).reshape(-1, dim), dim)
