"""The catalog of an album: records, vectors and questions of all images, in one SQLite file.

Records and vectors of a batch are written in one transaction, on disk (WAL, ``synchronous=FULL``) before
:meth:`Catalog.add` returns, so a killed process or a power cut loses nothing that was returned. The index is
a copy of the vectors: the change log (:attr:`Catalog.log`) keeps it in step, and can rebuild it.

A catalog may have been made by somebody else, or be damaged. :meth:`Catalog.open` accepts exactly this schema
and checks the structure of a file of up to 256 MiB, as :meth:`Catalog.verify` does of any; every row is
compared with its checksum and its types when it is read.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import check_counts, is_unicode
from zsqretrieval._util.files import locked, sync_directory
from zsqretrieval.album import fields, questions
from zsqretrieval.album.changes import VectorLog, key_list
from zsqretrieval.album.fields import FieldTable
from zsqretrieval.album.kept import IMAGES, KeptImages
from zsqretrieval.album.questions import QuestionTable
from zsqretrieval.album.sqlite import CHUNK, Database, Table, opened, to_json
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError


@dataclass(frozen=True, slots=True)
class Record:
    """The catalog's entry of one image."""

    key: int  # > 0, never given to another image
    id: str  # unique in the catalog
    source: str  # where the image came from
    width: int  # pixels, once upright
    height: int
    bytes: int  # size of the encoded image
    digest: str  # SHA-256 in hexadecimal, unique in the catalog; ends in -vector without an image
    caption: str | None  # text that came with it
    metadata: Mapping[str, Any]  # JSON values


_APPLICATION_ID = 0x7A737143  # "zsqC", in the header of the file
_VERSION = 3
_PAGE_SIZE = 16384  # with 4096, a row and its vector of 512 float32 leave half of every page empty
_CHECKED_SIZE = 2**28  # bytes of a file whose structure is checked when it is opened, in half a second

_SCHEMA = (
    """CREATE TABLE images (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        source TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        digest TEXT NOT NULL UNIQUE,
        caption TEXT,
        metadata TEXT NOT NULL,
        crc32 INTEGER NOT NULL)""",
    """CREATE TABLE vectors (
        key INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE,
        vector BLOB NOT NULL,
        crc32 INTEGER NOT NULL)""",
    """CREATE TABLE removals (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL, inverse INTEGER NOT NULL)""",
    """CREATE TABLE meta (
        name TEXT PRIMARY KEY, value TEXT NOT NULL, crc32 INTEGER NOT NULL) WITHOUT ROWID""",
    """CREATE TABLE snapshots (
        name TEXT PRIMARY KEY, value TEXT NOT NULL, crc32 INTEGER NOT NULL) WITHOUT ROWID""",
    *questions.SCHEMA,
    *fields.SCHEMA,
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)

_IMAGES = Table(
    "images", "record of image", key=int, id=str, source=str, width=int, height=int, bytes=int, digest=str,
    caption=(str, None), metadata=str,
)  # fmt: skip
_VECTORS = Table("vectors", "vector of image", key=int, vector=bytes)
_META = Table("meta", "setting", name=str, value=str)
_SNAPSHOTS = Table("snapshots", "description of the saved index", name=str, value=str)


@final
class Catalog:
    """Records, vectors and questions of the images of an album; made by :meth:`create` or :meth:`open`.

    Every method is atomic and may be called from any thread; other processes may read and write the file at
    the same time. All methods raise AlbumError when the file stays locked for longer than the timeout, cannot
    be written, or the disk is full (nothing has changed then), and IntegrityError when the file is damaged.

    Attributes:
        log: vectors of the images, and their change log.
        questions: questions generated for the images.
        fields: metadata and other fields of the images, for filters.
        kept: encoded bytes of images, in a folder beside the file.
    """

    def __init__(self, database: Database, folder: Path | None) -> None:
        self._database = database
        self.kept = KeptImages(None if folder is None else folder / IMAGES)
        database.verify(_META)
        dim, self._settings = self.get_meta("dim"), self.get_meta("settings")
        if type(dim) is not int or dim < 1 or not isinstance(self._settings, dict):
            raise IntegrityError(f"{database.where}: its dim or settings are missing or damaged")
        self._dim = dim
        self.log = VectorLog(
            database, dim, vectors=_VECTORS, numbered="images", removals="removals", what="image"
        )
        self.questions = QuestionTable(database, dim, _IMAGES)
        self.fields = FieldTable(database)
        self.check_place()  # remembers the write-ahead log, which exists by now

    @classmethod
    def create(
        cls, path: str | os.PathLike[str] | None, *, dim: int, settings: Mapping[str, Any] | None = None
    ) -> Catalog:
        """Make an empty catalog; in memory if ``path`` is None.

        Args:
            path: the new file.
            dim: length of every vector, >= 1.
            settings: JSON values that never change, such as the encoder's fingerprint.

        Raises:
            AlbumError: the file exists and is not empty, or its folder does not exist.
            InvalidInputError: ``dim`` is below 1, or the settings are not JSON.
        """
        check_counts(dim=dim)
        fixed = {"dim": to_json(int(dim), "dim"), "settings": to_json(dict(settings or {}), "settings")}
        where = "the catalog in memory" if path is None else str(path)
        file = None if path is None else Path(path).absolute()
        made_once = nullcontext() if file is None else locked(file.parent, exclusive=True)
        with made_once, opened(Database(file, where, make=True)) as database:
            _refuse_if_used(database)  # before any change to the file
            database.rows(f"PRAGMA page_size = {_PAGE_SIZE}")
            database.rows("PRAGMA journal_mode = WAL")
            with database.transaction("IMMEDIATE") as run:
                _refuse_if_used(database)  # by another process in the meantime
                for statement in _SCHEMA:
                    run.execute(statement)
                run.executemany(_META.insert, map(_META.pack, fixed.items()))
            if file is not None:
                sync_directory(file.parent)
            return cls(database, None if file is None else file.parent)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, timeout: float = 30.0) -> Catalog:
        """Open a catalog; ``timeout`` is the time in seconds to wait while another process writes.

        Raises:
            AlbumError: there is no such file, or it cannot be opened.
            IntegrityError: the file is damaged, not a catalog, of another format version, or was altered by
                another program.
        """
        if not Path(path).is_file():
            raise AlbumError(f"{path}: no catalog here; make one with Catalog.create, or check the path")
        with opened(Database(Path(path).absolute(), str(path), timeout)) as database:
            version = int(database.value("PRAGMA user_version"))
            if not version:  # another process may just be making it
                with locked(Path(path).absolute().parent, exclusive=False):
                    version = int(database.value("PRAGMA user_version"))
            if database.value("PRAGMA application_id") != _APPLICATION_ID or version < 1:
                raise IntegrityError(f"{path} is not a catalog of zsqretrieval; check the path")
            if version != _VERSION:
                raise IntegrityError(
                    f"{path} has format {version}, not {_VERSION}; use the zsqretrieval that wrote it"
                )
            database.check_schema(_SCHEMA)
            if Path(path).stat().st_size <= _CHECKED_SIZE:
                database.check_structure()
            database.rows("PRAGMA journal_mode = WAL")
            catalog = cls(database, Path(path).absolute().parent)
            catalog.log.check_numbers()
            catalog.questions.log.check_numbers()
            return catalog

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. Closing twice does no harm; any other use afterwards is an AlbumError."""
        self._database.close()

    @property
    def where(self) -> str:
        """The catalog's name in error messages."""
        return self._database.where

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings given to :meth:`create`."""
        return dict(self._settings)

    def __len__(self) -> int:
        """Number of images."""
        return int(self._database.value("SELECT count(*) FROM images"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._database.where!r}, dim={self._dim})"

    def get_meta(self, name: str) -> Any:
        """The JSON value stored under a name, or None."""
        return self._value(_META, name)

    def set_meta(self, name: str, value: Any) -> None:
        """Store a JSON value under a name; not "dim" and "settings", which never change."""
        if name in ("dim", "settings"):
            raise InvalidInputError(f"{name!r} is fixed when a catalog is made and cannot be changed")
        self._set_value(_META, name, value)

    def get_snapshot(self, name: str) -> Any:
        """The JSON description of an index's snapshot, or None. Unlike all else it may be lost or damaged."""
        return self._value(_SNAPSHOTS, name)

    def set_snapshot(self, name: str, description: Any) -> None:
        """Store the JSON description of an index's snapshot."""
        self._set_value(_SNAPSHOTS, name, description)

    def _value(self, table: Table, name: str) -> Any:
        rows = self._database.read(table, "name", [name])
        return self._database.from_json(rows[0][1], f"{table.what} {name!r}") if rows else None

    def _set_value(self, table: Table, name: str, value: Any) -> None:
        row = table.pack((name, to_json(value, f"{table.what} {name!r}")))
        with self._database.transaction("IMMEDIATE") as run:
            run.execute(table.insert.replace("INSERT", "INSERT OR REPLACE"), row)

    def setting(self, name: str) -> Any:
        """A JSON value that the album was last saved with, else made with; None without."""
        return self.get_meta(name) or self._settings.get(name)

    def change_setting(self, name: str, value: Any) -> None:
        """Store the value of a setting if it differs; None is not stored."""
        if value is not None and value != self.setting(name):
            self.set_meta(name, value)

    def with_encoder(self, dim: int, settings: Mapping[str, Any]) -> Catalog:
        """Change dim and settings, and forget snapshots; in a transaction that replaces all vectors.

        Returns the catalog as it is then; this one, and those of other processes, refuse to use vectors.
        """
        self.log.check_encoder()
        self._set_value(_META, "dim", dim)
        self._set_value(_META, "settings", dict(settings))
        self._database.connection.execute("DELETE FROM meta WHERE name = 'calibration'")
        self._database.connection.execute("DELETE FROM snapshots")
        changed = Catalog(self._database, None)
        changed.kept = self.kept
        return changed

    # --- writing ----------------------------------------------------------------------------------------

    def check_place(self) -> None:
        """As :meth:`Database.check_place <zsqretrieval.album.sqlite.Database.check_place>`."""
        self._database.check_place()

    def flush(self) -> None:
        """Empty the write-ahead log, which may hold what was deleted, if no other process reads."""
        self._database.rows("PRAGMA wal_checkpoint(TRUNCATE)")

    def transaction(self) -> AbstractContextManager[object]:
        """Make the block one change: on disk when it ends, undone when it raises; others wait to write."""
        return self._database.transaction("IMMEDIATE")

    def add(self, images: Sequence[NewImage]) -> NDArray[np.int64]:
        """Add n encoded images, all or none. On disk when this returns.

        Returns:
            Their keys, int64 [n], in the order given; rising, above every key ever given.

        Raises:
            InvalidInputError: an id or digest is repeated or already present, a vector has another shape, is
                not finite or zero, or metadata is not JSON. Names the image; nothing has changed.
        """
        columns = [_columns(image) for image in images]
        packed = self.log.pack([np.asarray(image.vector) for image in images], [image.id for image in images])
        with self._database.transaction("IMMEDIATE") as run:
            first = self.log.next_key()
            keys = range(first, first + len(images))
            rows = [_IMAGES.pack((key, *row)) for key, row in zip(keys, columns, strict=True)]
            try:
                run.executemany(_IMAGES.insert, rows)
            except sqlite3.IntegrityError:
                self._refuse_present(images, first)
                raise
            run.executemany(_VECTORS.insert, map(_VECTORS.pack, zip(keys, packed, strict=True)))
            self.fields.follow(keys)
        return np.asarray(keys, dtype=np.int64)

    def _refuse_present(self, images: Sequence[NewImage], first: int) -> None:
        """Name an id or digest that occurs below the key ``first``, or twice among the images."""
        for name, values in (("id", [one.id for one in images]), ("digest", [one.digest for one in images])):
            for value, key in self._known(name, values).items():
                if key < first:
                    present = f"{self._database.where} already holds the {name} {value!r} (key {key})"
                    raise InvalidInputError(f"{present}; nothing was added")
                if values.count(value) > 1:
                    raise InvalidInputError(f"the {name} {value!r} is given twice; nothing was added")

    def rename(self, records: Sequence[Record]) -> None:
        """Give images, by their keys, the id, source, caption and metadata of records; all or none.

        Images may exchange their ids. A key that is not present, an id of another image, or metadata that is
        not JSON is an InvalidInputError; nothing has changed then.
        """
        columns = [_columns(record) for record in records]
        with self._database.transaction("IMMEDIATE") as run:
            keys = [record.key for record in records]
            rows = {row[0]: row for row in self._database.read(_IMAGES, "key", keys)}
            self.log.refuse_unknown(keys, rows)
            # First to ids that no image has, so that the order of the updates does not matter.
            run.executemany("UPDATE images SET id = char(0) || key WHERE key = ?", ((key,) for key in keys))
            for id, key in self._known("id", [record.id for record in records]).items():
                present = f"{self._database.where} already holds the id {id!r} (key {key})"
                raise InvalidInputError(f"{present}; nothing was changed")
            for key, (id, source, *_, caption, metadata) in zip(keys, columns, strict=True):
                row = _IMAGES.pack((key, id, source, *rows[key][3:7], caption, metadata))
                run.execute(
                    "UPDATE images SET id = ?, source = ?, caption = ?, metadata = ?, crc32 = ?"
                    " WHERE key = ?",
                    (id, source, *row[-3:], key),
                )
            self.fields.follow(keys)

    def remove(self, keys: ArrayLike) -> None:
        """Remove images by keys int64 [n], each present and given once; all or none, with their questions."""
        wanted = key_list(keys)
        if len(set(wanted)) < len(wanted):
            raise InvalidInputError("a key is given twice; nothing was removed")
        with self._database.transaction("IMMEDIATE") as run:
            self.log.refuse_unknown(wanted, self.known_keys(wanted))
            run.executemany("DELETE FROM images WHERE key = ?", ((key,) for key in wanted))
            run.executemany(
                "INSERT INTO removals (key, inverse) VALUES (?, ?)", ((key, ~key) for key in wanted)
            )

    def sweep_kept(self, digests: Sequence[str] | None = None) -> None:
        """As :meth:`~zsqretrieval.album.kept.KeptImages.sweep`, in a transaction of its own."""
        with self.transaction():
            self.kept.sweep(self.known_digests, digests)

    # --- reading ----------------------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[object]:
        """Read one snapshot within the block; others may write in the meantime."""
        return self._database.transaction()

    def known_keys(self, keys: ArrayLike) -> set[int]:
        """The keys that are present, out of some."""
        return {key for (key,) in self._database.select("key", "images", "key", key_list(keys))}

    def known_digests(self, digests: Iterable[str]) -> dict[str, int]:
        """The keys of the digests that are present, out of some."""
        return self._known("digest", list(digests))

    def _known(self, column: str, values: Sequence[str]) -> dict[str, int]:
        at = {"id": 1, "digest": 6}[column]  # in a row
        return {row[at]: row[0] for row in self._database.read(_IMAGES, column, values)}

    def find(self, id: str) -> Record | None:
        """The record of an id, or None."""
        return self.by_id([id]).get(id) if isinstance(id, str) else None

    def by_digest(self, digests: Iterable[str]) -> dict[str, Record]:
        """The records of the digests that are present, by digest."""
        rows = self._database.read(_IMAGES, "digest", list(digests))
        return {record.digest: record for record in map(self._record, rows)}

    def by_id(self, ids: Iterable[str]) -> dict[str, Record]:
        """The records of the ids that are present, by id."""
        return {
            record.id: record for record in map(self._record, self._database.read(_IMAGES, "id", list(ids)))
        }

    def namesakes(self, ids: Iterable[str]) -> list[Record]:
        """The records whose id is one of ``ids``, or one of them followed by ``#`` and anything; by id."""
        found: dict[str, Record] = {}
        for some in batched(dict.fromkeys(ids), CHUNK):
            given = f"WITH given(name) AS (VALUES {', '.join(['(?)'] * len(some))})"
            rows = self._database.rows(
                f"{given} SELECT {_IMAGES.columns} FROM given JOIN images ON id = name UNION ALL "
                # "$" is the character after "#"
                f"SELECT {_IMAGES.columns} FROM given JOIN images ON id >= name || '#' AND id < name || '$'",
                some,
            )
            rows = self._database.checked(_IMAGES, rows)
            found |= {record.id: record for record in map(self._record, rows)}
        return [found[id] for id in sorted(found)]

    def records(self, keys: ArrayLike) -> list[Record]:
        """The records of keys int64 [n], in the same order; repeats are allowed, unknown keys are not."""
        wanted = key_list(keys)
        rows = {row[0]: self._record(row) for row in self._database.read(_IMAGES, "key", wanted)}
        self.log.refuse_unknown(wanted, rows)
        return [rows[key] for key in wanted]

    def present(self, keys: ArrayLike) -> tuple[list[Record], NDArray[np.float32]]:
        """Records and vectors float32 [n, dim] of the keys that are present, out of some, by rising key."""
        with self.reading():
            known = sorted(self.known_keys(keys))
            return self.records(known), self.log.get(known)

    def iter_records(self) -> Iterator[Record]:
        """All records, by rising key. Images added or removed in the meantime may or may not appear."""
        query = f"SELECT {_IMAGES.columns} FROM images WHERE key > ? ORDER BY key LIMIT {CHUNK}"
        last = 0
        while rows := self._database.checked(_IMAGES, self._database.rows(query, (last,))):
            yield from map(self._record, rows)
            last = rows[-1][0]

    def _record(self, row: tuple[Any, ...]) -> Record:
        metadata = self._database.from_json(row[-1], f"metadata of image {row[0]}")
        if not isinstance(metadata, dict):
            raise IntegrityError(
                f"{self._database.where}: the metadata of image {row[0]} is damaged: it is no JSON object"
            )
        return Record(*(*row[:-1], metadata))

    def verify(self) -> None:
        """Read everything and compare it with its checksums; damage is an IntegrityError that names it."""
        with self._database.transaction():
            self._database.check_structure()
            if row := self._database.rows("PRAGMA foreign_key_check"):
                raise IntegrityError(f"{self._database.where} is damaged: {row[0]}; restore it from a backup")
            bare = "SELECT count(*) FROM images WHERE key NOT IN (SELECT key FROM vectors)"
            if count := self._database.value(bare):
                raise IntegrityError(f"{self._database.where} is damaged: {count} images have no vector")
            for _ in self.iter_records():
                pass
            self.kept.verify(self.known_digests(self.kept.digests()))
            for table in (_META, _SNAPSHOTS):
                self._database.verify(table)
            self.log.verify()
            self.questions.verify()
            self.fields.verify()

    def backup(self, path: str | os.PathLike[str]) -> None:
        """As :meth:`Database.backup <zsqretrieval.album.sqlite.Database.backup>`."""
        self._database.backup(path)

    def move_to(self, path: str | os.PathLike[str]) -> None:
        """Move a catalog from memory to a file; other threads wait. On an AlbumError it stays in memory."""
        if Path(path).exists():
            raise _exists(path)
        with self._database.held():
            kept = self.kept.copied_to(Path(path).absolute().parent / IMAGES)
            self.backup(path)
            self._database.take_over(Catalog.open(path)._database)
            self.kept = kept


def _refuse_if_used(database: Database) -> None:
    if database.value("SELECT count(*) FROM sqlite_master") or database.value("PRAGMA application_id"):
        raise _exists(database.where)


def _exists(path: str | os.PathLike[str]) -> AlbumError:
    return AlbumError(f"{path} exists already; open it with Retriever.open, or choose another path")


def _columns(image: NewImage | Record) -> tuple[Any, ...]:
    """The columns of an image after its key."""
    texts = {"id": image.id, "source": image.source, "digest": image.digest}
    if image.caption not in (None, ""):
        texts["caption"] = image.caption
    for name, text in texts.items():
        if not isinstance(text, str) or not text:
            raise InvalidInputError(f"{image.id!r}: its {name} must be a non-empty string, not {text!r}")
        if not is_unicode(text):
            raise InvalidInputError(f"{image.id!r}: its {name} is not Unicode text; make it printable first")
    metadata = to_json(dict(image.metadata), f"metadata of {image.id!r}")
    sizes = int(image.width), int(image.height), int(image.bytes)
    return image.id, image.source, *sizes, image.digest, image.caption, metadata
