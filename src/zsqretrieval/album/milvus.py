"""An album in a collection of Milvus: ids, metadata, captions, sources and vectors of all images.

The key of a row is made of its id, so any number of processes may add rows, each of them more than once. A
collection has no change log, no questions, no kept bytes and no cached features.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, final
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.album.catalog import Record
from zsqretrieval.album.edits import records_of
from zsqretrieval.album.embeddings import look
from zsqretrieval.album.expressions import condition, field_condition, selects
from zsqretrieval.album.filters import BUILT_IN, Filter, field_name
from zsqretrieval.album.ingest import Fate, Tally
from zsqretrieval.album.kept import KeptImages
from zsqretrieval.data.loader import NewImage, Skipped
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes.milvus_table import KEY, MOST, VECTOR, Milvus, Row, Table, unpacked

_LONGEST = 65_535  # bytes of a text, and of metadata as JSON
_TEXT = {"max_length": _LONGEST}
_COLUMNS: Sequence[tuple[str, str, Mapping[str, Any]]] = (
    ("id", "VARCHAR", _TEXT), ("source", "VARCHAR", _TEXT), ("digest", "VARCHAR", _TEXT),
    ("caption", "VARCHAR", {**_TEXT, "nullable": True}),
    ("width", "INT64", {}), ("height", "INT64", {}), ("bytes", "INT64", {}), ("metadata", "JSON", {}),
)  # fmt: skip
_NAMES = tuple(name for name, _, _ in _COLUMNS)
_NUMBERS = {"shards": int, "replicas": int, "refine": int, "timeout": float}


def milvus_at(path: object) -> Milvus | None:
    """The collection that a path names, or None.

    It is a :class:`Milvus`, ``milvus://host:19530/collection`` or ``milvus:path.db``; both take parameters,
    such as ``?shards=2&index=DISKANN``.

    Raises:
        InvalidInputError: a parameter is unknown or out of range.
    """
    if isinstance(path, Milvus) or not isinstance(path, str) or not path.startswith("milvus:"):
        return path if isinstance(path, Milvus) else None
    parts = urlsplit(path)
    given: dict[str, Any] = dict(parse_qsl(parts.query))
    secure = given.pop("secure", "") not in ("", "0", "false")
    if parts.netloc:
        uri = f"{'https' if secure else 'http'}://{parts.netloc}"
        given |= {"collection": parts.path.strip("/")} if parts.path.strip("/") else {}
    else:
        uri = parts.path
    try:
        for name in ("build", "search"):
            given |= {name: parse_json(given[name])} if name in given else {}
        return Milvus(uri, **{name: _NUMBERS.get(name, lambda one: one)(one) for name, one in given.items()})
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{path!r} does not name a collection of Milvus: {error}") from error


def key_of(id: str) -> int:
    """The key of an id: 63 bits of a digest, above 0."""
    return (
        int.from_bytes(hashlib.blake2b(id.encode(errors="surrogatepass"), digest_size=8).digest(), "big") >> 1
        or 1
    )


@final
class MilvusStore:
    """The images of a retriever in a collection; see :class:`~zsqretrieval.search.store.Store`."""

    def __init__(self, place: Milvus) -> None:
        self._table = Table(place, _COLUMNS)
        self._known: set[tuple[str, ...]] = {(name,) for name in BUILT_IN}
        self.kept = KeptImages(None)
        self.settings: Mapping[str, Any] = {}
        self.dim = 0

    @property
    def where(self) -> str:
        """Its name in error messages."""
        return self._table.where

    def setting(self, name: str) -> Any:
        """A setting; None without."""
        return self.settings.get(name)

    def open(self) -> bool:
        """Read the settings; False if there is no such collection.

        Raises:
            IntegrityError: another program made it.
        """
        if not self._table.open():
            return False
        self.dim, text = self._table.describe()
        try:
            self.settings = dict(parse_json(text))
        except (ValueError, TypeError) as error:
            raise IntegrityError(
                f"{self.where} was not made by zsqretrieval: it has no settings; choose another name"
            ) from error
        return True

    def create(self, dim: int, settings: Mapping[str, Any]) -> None:
        """Make the collection."""
        self._table.create(dim, json.dumps(settings))
        self.open()

    def save(self, settings: Mapping[str, Any]) -> None:
        """Keep other settings with the collection, and have what was added indexed."""
        self._table.change(json.dumps({**self.settings, **settings}))
        self._table.flush()
        self.open()

    def close(self) -> None:
        """Close the connection."""
        self._table.close()

    # --- reading ----------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self._table.count()

    def by_id(self, ids: Sequence[str]) -> dict[str, Record]:
        """The records of the ids that are present, by id."""
        records = map(_record, self._table.get([key_of(id) for id in dict.fromkeys(ids)], _NAMES))
        return {record.id: record for record in records}

    def find(self, id: str) -> Record | None:
        """The record of an id, or None."""
        return self.by_id([id]).get(id) if isinstance(id, str) else None

    def iter_records(self) -> Iterator[Record]:
        """All records, by rising key."""
        for rows in self._table.rows(_NAMES):
            yield from map(_record, rows)

    def stored(self, keys: Sequence[int]) -> tuple[list[int], NDArray[np.float32]]:
        """Positions of the keys that are there, out of some, and their vectors."""
        rows = {row[KEY]: row[VECTOR] for row in self._table.get(list(dict.fromkeys(keys)), [VECTOR])}
        here = [n for n, key in enumerate(keys) if key in rows]
        return here, unpacked([rows[keys[n]] for n in here], self.dim)

    def matching(self, where: Filter) -> Filter:
        """The filter; an InvalidInputError if no image has one of its fields."""
        for path in where.fields() - self._known:
            has = field_condition(path)
            if has is not None and not self._table.query(has, [KEY], 1) and len(self):
                raise InvalidInputError(f"no image of {self.where} has the field {field_name(path)}")
            self._known.add(path)
        return where

    def nearest(
        self, vectors: NDArray[np.float32], k: int, among: Filter | None = None
    ) -> list[list[tuple[Record, float]]]:
        """The nearest images, at most 16,384, with a RuntimeWarning if a filter selects too few of these."""
        found: dict[int, Record] = {}

        def kept(rows: list[Row]) -> list[Row]:
            for row in rows:
                found[row.key] = _record({**row.fields, KEY: row.key})
            return [row for row in rows if among is None or selects(among, found[row.key])]

        stated = "" if among is None else condition(among)
        rows = self._table.find(vectors, min(k, MOST), kept, stated, _NAMES)
        return [[(found[row.key], row.score) for row in some] for some in rows]

    # --- writing ----------------------------------------------------------------------------------------

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images by id."""
        self._table.delete([record.key for record in records_of(self.by_id, ids)])

    def write(self, images: Sequence[NewImage], dtype: np.dtype[Any], files: Reopener, tally: Tally) -> None:
        """Write a batch; see :data:`~zsqretrieval.album.embeddings.Write`.

        An id names one image: a row with a known id takes its place.
        """
        tally.count(self._written(images, files, tally.skipped))

    def _written(
        self, images: Sequence[NewImage], files: Reopener, skipped: list[Skipped]
    ) -> Iterator[tuple[Fate, str]]:
        """Write rows, the last of each id, and say what became of them."""
        named = {key_of(one.id): one for one in images}
        yield from (("known", one.id) for one in images if named[key_of(one.id)] is not one)
        known = {record.key: record for record in map(_record, self._table.get(list(named), _NAMES))}
        look(
            files, [one for key, one in named.items() if key not in known or one.digest != known[key].digest]
        )
        changed: dict[str, list[tuple[int, NewImage]]] = {}
        moved: list[int] = []
        for key, one in named.items():
            before = known.get(key)
            one.caption = one.caption or (before.caption if before else None)
            one.metadata = one.metadata or (before.metadata if before else {})
            if fault := _fault(one, before):
                skipped.append(Skipped(one.source, fault))
                continue
            if before is None:
                yield "added", one.id
            elif before == _record({**_fields(one), KEY: key}):
                yield "known", one.id
                continue
            else:
                yield "updated" if before.digest == one.digest else "replaced", one.id
                if self._partition(before) != self._partition(one):
                    moved.append(key)
            changed.setdefault(self._partition(one), []).append((key, one))
        self._table.delete(moved)  # else the row would be in two partitions
        for partition, some in changed.items():
            vectors = np.array([one.vector for _, one in some], np.float32)
            self._table.upsert(
                [key for key, _ in some], vectors, [_fields(one) for _, one in some], partition
            )

    def _partition(self, image: NewImage | Record) -> str:
        place = self._table.place
        name = image.metadata.get(place.partition_field) if place.partition_field else None
        return re.sub(r"^(?=\d)|[^A-Za-z0-9_]", "_", str(name))[:255] if name else place.partition


def _fields(image: NewImage) -> dict[str, Any]:
    return {name: getattr(image, name) for name in _NAMES}


def _record(row: Mapping[str, Any]) -> Record:
    metadata = row["metadata"] if isinstance(row["metadata"], dict) else {}
    return Record(**{**{name: row[name] for name in _NAMES}, "key": int(row[KEY]), "metadata": metadata})


def _fault(image: NewImage, before: Record | None) -> str | None:
    """Why an image cannot be written."""
    if before is not None and before.id != image.id:
        return f"its id {image.id!r} has the key of {before.id!r}; give it another id"
    for name in ("id", "source", "caption"):
        if len((getattr(image, name) or "").encode()) > _LONGEST:
            return f"its {name} has more than {_LONGEST} bytes"
    text = json.dumps(dict(image.metadata), ensure_ascii=False)
    if len(text.encode()) > _LONGEST:
        return f"its metadata has more than {_LONGEST} bytes"
    with contextlib.suppress(OverflowError):
        json.loads(text, parse_int=lambda digits: int(digits).to_bytes(8, "big", signed=True))
        return None
    return "its metadata has an integer of more than 64 bits; make it a text"
