"""The durable truth of an album: every image's facts, its vector and its questions, in one SQLite file.

An image and its vector are written in one transaction, on disk (WAL, ``synchronous=FULL``) before
:meth:`Catalog.add` returns, so neither a killed process nor a power cut can lose or halve what it returned.
An index is only a faster view of the vectors: it follows along by :meth:`Catalog.changes`, and can always be
rebuilt from ``changes(Position())``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.files import sync_directory
from zsqretrieval.album import questions as question_table
from zsqretrieval.album.changes import Change, Position, VectorLog, key_list
from zsqretrieval.album.questions import QuestionTable
from zsqretrieval.album.sqlite import Database, translated
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError

__all__ = ["Catalog", "Change", "NewImage", "Position", "Record"]


@dataclass(frozen=True, slots=True)
class Record:
    """What the catalog knows of one image.

    Attributes:
        key: its int64 key, > 0, never given to another image.
        id: its name, unique in the catalog.
        source: where it came from.
        width: pixels, once upright.
        height: pixels, once upright.
        bytes: size of the encoded image.
        digest: SHA-256 of the image in hexadecimal, unique in the catalog.
        caption: text that came with it, or None.
        metadata: free JSON facts.
    """

    key: int
    id: str
    source: str
    width: int
    height: int
    bytes: int
    digest: str
    caption: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class NewImage:
    """An image to be added: a :class:`Record` that has no key yet, with its vector.

    Attributes:
        id: its name, unique in the catalog.
        source: where it came from.
        width: pixels, once upright.
        height: pixels, once upright.
        bytes: size of the encoded image.
        digest: SHA-256 of the image in hexadecimal, unique in the catalog.
        vector: float32 [dim], finite, not zero.
        caption: text that came with it, or None.
        metadata: JSON-serialisable facts; NaN and infinity are not.
    """

    id: str
    source: str
    width: int
    height: int
    bytes: int
    digest: str
    vector: NDArray[np.float32]
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


_APPLICATION_ID = 0x7A737143  # "zsqC", in the header of the file
_VERSION = 2
_PAGE_SIZE = 16384  # with 4096, one vector of 512 float32 and its row leave half of every page empty
_CHUNK = 900  # records read at once

_VERSION_1 = (
    """CREATE TABLE images (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        source TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        digest TEXT NOT NULL UNIQUE,
        caption TEXT,
        metadata TEXT NOT NULL)""",
    """CREATE TABLE vectors (
        key INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE,
        vector BLOB NOT NULL,
        crc32 INTEGER NOT NULL)""",
    "CREATE TABLE removals (seq INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL)",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {_APPLICATION_ID}",
)
_SCHEMA = (*_VERSION_1, *question_table.SCHEMA, f"PRAGMA user_version = {_VERSION}")
_UPGRADES = {1: (*question_table.SCHEMA, "PRAGMA user_version = 2")}  # by the version they start from

_RECORD = "key, id, source, width, height, bytes, digest, caption, metadata"


@final
class Catalog:
    """The images of an album, their vectors and questions; made by :meth:`create` or :meth:`open`.

    Every method is atomic and may be called from any thread; other processes may read and write the same
    file meanwhile. All methods raise :class:`~zsqretrieval.errors.AlbumError` when the file is locked for
    longer than the timeout, cannot be written, or the disk is full (nothing has changed then), and
    :class:`~zsqretrieval.errors.IntegrityError` when the file is damaged.

    Attributes:
        log: the vectors of the images.
        questions: what was asked of the images.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._settings: dict[str, Any] = {}

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str] | None,
        *,
        dim: int,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 30.0,
    ) -> Catalog:
        """Make an empty catalog.

        Args:
            path: the file to make; None keeps the catalog in memory.
            dim: length of every vector, >= 1.
            settings: JSON-serialisable facts fixed for good, such as the encoder's fingerprint; :meth:`open`
                compares them.
            timeout: seconds to wait for another process that is writing.

        Raises:
            AlbumError: the file exists already and is not empty, or its folder does not exist.
            InvalidInputError: ``dim`` is below 1, or the settings are not JSON.
        """
        if dim < 1:
            raise InvalidInputError(f"dim must be at least 1, not {dim}")
        fixed = {"dim": _to_json(int(dim), "dim"), "settings": _to_json(dict(settings or {}), "settings")}
        where = "the catalog in memory" if path is None else str(path)
        uri = ":memory:" if path is None else f"{Path(path).absolute().as_uri()}?mode=rwc"
        with _closing_on_error(cls(Database(uri, where, timeout))) as catalog:
            with translated(where):
                catalog._refuse_if_used()  # before the file is touched at all
                catalog._database.connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
                catalog._database.connection.execute("PRAGMA journal_mode = WAL")
            with catalog._database.transaction("IMMEDIATE") as run:
                catalog._refuse_if_used()  # by another process, in between
                for statement in _SCHEMA:
                    run.execute(statement)
                run.executemany("INSERT INTO meta VALUES (?, ?)", fixed.items())
            if path is not None:
                sync_directory(Path(path).absolute().parent)
            catalog._read_fixed()
        return catalog

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        dim: int | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 30.0,
    ) -> Catalog:
        """Open the catalog that :meth:`create` made; one of an older format is brought to the present one.

        Args:
            path: its file.
            dim: refuse any other, when given.
            settings: refuse the catalog when one of these differs from what it was made with.
            timeout: seconds to wait for another process that is writing.

        Raises:
            AlbumError: there is no such file, or it cannot be opened.
            IntegrityError: the file is damaged, not a catalog, or written by a newer version.
            MismatchError: dim or settings differ; names both sides.
        """
        if not Path(path).is_file():
            raise AlbumError(f"{path}: no catalog here; make one with Catalog.create, or check the path")
        uri = f"{Path(path).absolute().as_uri()}?mode=rw"
        with _closing_on_error(cls(Database(uri, str(path), timeout))) as catalog:
            with translated(str(path)):
                version = catalog._check_header()
                catalog._database.connection.execute("PRAGMA journal_mode = WAL")
            if version < _VERSION:
                catalog._upgrade()
            catalog._read_fixed()
            catalog._check_fixed(dim, settings or {})
        return catalog

    def _refuse_if_used(self) -> None:
        value = self._database.value
        if value("SELECT count(*) FROM sqlite_master") or value("PRAGMA application_id"):
            raise AlbumError(
                f"{self._where} exists already; open it with Retriever.load, or choose another path"
            )

    def _check_header(self) -> int:
        """The version of the format, which is one that can be read."""
        version = int(self._database.value("PRAGMA user_version"))
        if self._database.value("PRAGMA application_id") != _APPLICATION_ID or version < 1:
            raise IntegrityError(f"{self._where} is not a catalog of zsqretrieval; check the path")
        if version > _VERSION:
            raise IntegrityError(
                f"{self._where} has format {version}, this version of zsqretrieval reads up to {_VERSION};"
                " upgrade zsqretrieval"
            )
        return version

    def _upgrade(self) -> None:
        """Bring an older format to the present one; what is there stays as it is."""
        with self._database.transaction("IMMEDIATE") as run:
            # Read anew: another process may have been faster.
            while (version := self._check_header()) < _VERSION:
                for statement in _UPGRADES[version]:
                    run.execute(statement)

    def _read_fixed(self) -> None:
        dim, self._settings = self.get_meta("dim"), self.get_meta("settings")
        if not isinstance(dim, int) or dim < 1 or not isinstance(self._settings, dict):
            raise IntegrityError(f"{self._where}: its dim or settings are missing or damaged")
        self._dim = dim
        self.log = VectorLog(
            self._database, dim, vectors="vectors", numbered="images", removals="removals", what="image"
        )
        self.questions = QuestionTable(self._database, dim)

    def _check_fixed(self, dim: int | None, settings: Mapping[str, Any]) -> None:
        wanted = json.loads(_to_json(dict(settings), "settings"))
        stored = self._settings
        if dim is not None:
            wanted, stored = {"dim": dim, **wanted}, {"dim": self._dim, **stored}
        for name, value in wanted.items():
            if stored.get(name) != value:
                raise MismatchError(
                    f"{self._where} was made with {name} {stored.get(name)!r}, but {value!r} is wanted"
                )

    def __enter__(self) -> Catalog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file. Closing twice does no harm; any other use afterwards is an AlbumError."""
        self._database.close()

    # --- facts ------------------------------------------------------------------------------------------

    @property
    def _where(self) -> str:
        return self._database.where

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self._dim

    @property
    def settings(self) -> Mapping[str, Any]:
        """What :meth:`create` was given."""
        return dict(self._settings)

    def __len__(self) -> int:
        """Number of images."""
        with self._database.transaction():
            return int(self._database.value("SELECT count(*) FROM images"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where!r}, dim={self._dim})"

    def get_meta(self, name: str, default: Any = None) -> Any:
        """The JSON value kept under a name, or ``default``."""
        with self._database.transaction() as run:
            row = run.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else self._database.from_json(row[0], f"meta {name!r}")

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name.

        Raises:
            InvalidInputError: the value is not JSON, or the name is "dim" or "settings", fixed at creation.
        """
        if name in ("dim", "settings"):
            raise InvalidInputError(f"{name!r} is fixed when a catalog is made and cannot be changed")
        text = _to_json(value, f"meta {name!r}")
        with self._database.transaction("IMMEDIATE") as run:
            run.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))

    # --- writing ----------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside becomes one change: on disk once the block ends, nothing of it when it raises.

        No other thread or process writes meanwhile, so what was read inside still holds when it is acted on.
        """
        with self._database.transaction("IMMEDIATE"):
            yield

    def add(self, rows: Sequence[NewImage]) -> NDArray[np.int64]:
        """Add images; all of them or, when anything is wrong, none. On disk once this returns.

        Args:
            rows: n images, no id and no digest twice, none already present (see :meth:`known_ids` and
                :meth:`known_digests`).

        Returns:
            Their keys, int64 [n], in the order given: rising, above every key ever given.

        Raises:
            InvalidInputError: an id or digest is repeated or already present, a vector has another shape, is
                not finite or zero, or metadata is not JSON. Names the image; nothing has changed.
        """
        images = [_image_row(row) for row in rows]
        packed = [self.log.pack(row.vector, row.id) for row in rows]
        for name, values in (("id", [row.id for row in rows]), ("digest", [row.digest for row in rows])):
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise InvalidInputError(f"the {name} {twice!r} is given twice; nothing was added")
        with self._database.transaction("IMMEDIATE") as run:
            for name, known in (
                ("id", self._known("id", [row.id for row in rows])),
                ("digest", self._known("digest", [row.digest for row in rows])),
            ):
                for value, key in known.items():
                    raise InvalidInputError(
                        f"{self._where} already holds the {name} {value!r} (key {key}); nothing was added"
                    )
            first = self.position.last_key + 1
            keys = range(first, first + len(rows))
            run.executemany(
                f"INSERT INTO images ({_RECORD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((key, *image) for key, image in zip(keys, images, strict=True)),
            )
            run.executemany(
                "INSERT INTO vectors VALUES (?, ?, ?)",
                ((key, *vector) for key, vector in zip(keys, packed, strict=True)),
            )
        return np.asarray(keys, dtype=np.int64)

    def rename(self, record: Record) -> None:
        """Give an image, by its key, the id, source, caption and metadata of a record.

        Raises:
            InvalidInputError: the key is not present, the id belongs to another image, or metadata is not
                JSON. Nothing has changed.
        """
        id, source, *_, caption, metadata = _image_row(record)
        with self._database.transaction("IMMEDIATE") as run:
            present = {key for (key,) in self._database.select("key", "images", "key", [record.key])}
            self.log.refuse_unknown([record.key], present)
            if (holder := self._known("id", [id]).get(id, record.key)) != record.key:
                raise InvalidInputError(
                    f"{self._where} already holds the id {id!r} (key {holder}); nothing was changed"
                )
            run.execute(
                "UPDATE images SET id = ?, source = ?, caption = ?, metadata = ? WHERE key = ?",
                (id, source, caption, metadata, record.key),
            )

    def remove(self, keys: ArrayLike) -> None:
        """Forget images and their vectors; all of them or none. Their keys are never used again.

        Args:
            keys: int64 [n], each present, no repeats.

        Raises:
            InvalidInputError: a key is not present or repeated. Nothing has changed.
        """
        wanted = key_list(keys)
        if len(set(wanted)) < len(wanted):
            raise InvalidInputError("a key is given twice; nothing was removed")
        with self._database.transaction("IMMEDIATE") as run:
            present = {key for (key,) in self._database.select("key", "images", "key", wanted)}
            self.log.refuse_unknown(wanted, present)
            run.executemany("DELETE FROM images WHERE key = ?", ((key,) for key in wanted))
            run.executemany("INSERT INTO removals (key) VALUES (?)", ((key,) for key in wanted))

    # --- reading ----------------------------------------------------------------------------------------

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Everything read inside is of one moment; others may write meanwhile."""
        with self._database.transaction():
            yield

    def known_keys(self, keys: ArrayLike) -> set[int]:
        """Those of some keys that are present."""
        with self._database.transaction():
            return {key for (key,) in self._database.select("key", "images", "key", key_list(keys))}

    def known_digests(self, digests: Iterable[str]) -> dict[str, int]:
        """The keys of those digests that are present."""
        with self._database.transaction():
            return self._known("digest", list(digests))

    def known_ids(self, ids: Iterable[str]) -> dict[str, int]:
        """The keys of those ids that are present."""
        with self._database.transaction():
            return self._known("id", list(ids))

    def find(self, id: str) -> Record | None:
        """The record of an id, or None when there is none."""
        with self._database.transaction():
            for row in self._database.select(_RECORD, "images", "id", [id]):
                return self._record(row)
        return None

    def by_digest(self, digests: Iterable[str]) -> dict[str, Record]:
        """The records of those digests that are present, by digest."""
        with self._database.transaction():
            rows = self._database.select(_RECORD, "images", "digest", list(digests))
            return {record.digest: record for record in map(self._record, rows)}

    def namesakes(self, id: str) -> list[Record]:
        """The records whose id is ``id``, or ``id`` followed by ``#`` and anything; sorted by id."""
        with self._database.transaction() as run:
            rows = run.execute(
                f"SELECT {_RECORD} FROM images WHERE id = ? OR (id >= ? AND id < ?) ORDER BY id",
                (id, f"{id}#", f"{id}$"),  # "$" is the character after "#"
            ).fetchall()
        return list(map(self._record, rows))

    def records(self, keys: ArrayLike) -> list[Record]:
        """The records of keys.

        Args:
            keys: int64 [n], each present; repeats are allowed.

        Returns:
            n records in the order given.

        Raises:
            InvalidInputError: a key is not present.
        """
        wanted = key_list(keys)
        with self._database.transaction():
            found = self._database.select(_RECORD, "images", "key", wanted)
            rows = {row[0]: self._record(row) for row in found}
        self.log.refuse_unknown(wanted, rows)
        return [rows[key] for key in wanted]

    def iter_records(self) -> Iterator[Record]:
        """Every record, by rising key. Images added or removed meanwhile may or may not appear."""
        last = 0
        while True:
            with self._database.transaction() as run:
                rows = run.execute(
                    f"SELECT {_RECORD} FROM images WHERE key > ? ORDER BY key LIMIT {_CHUNK}", (last,)
                ).fetchall()
            if not rows:
                return
            yield from map(self._record, rows)
            last = rows[-1][0]

    def vectors(self, keys: ArrayLike) -> NDArray[np.float32]:
        """The vectors of keys, verified by their checksums.

        Args:
            keys: int64 [n], each present; repeats are allowed.

        Returns:
            float32 [n, dim], in the order given.

        Raises:
            InvalidInputError: a key is not present.
            IntegrityError: a vector is damaged.
        """
        return self.log.get(keys)

    # --- following --------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the catalog stands; changes with every image added or removed, by any process."""
        return self.log.position

    def changes(self, since: Position, *, batch_size: int = 4096) -> Iterator[Change]:
        """The way from an earlier position to the present, in steps, as an index follows it.

        See :meth:`VectorLog.changes <zsqretrieval.album.changes.VectorLog.changes>` of :attr:`log`.
        """
        return self.log.changes(since, batch_size=batch_size)

    # --- keeping safe -----------------------------------------------------------------------------------

    def verify(self) -> None:
        """Read everything and compare it with its checksums. Takes time proportional to the file.

        Raises:
            IntegrityError: something is damaged; says what.
        """
        with self._database.transaction() as run:
            for pragma in ("integrity_check", "foreign_key_check"):
                for row in run.execute(f"PRAGMA {pragma}"):
                    if row != ("ok",):
                        raise IntegrityError(f"{self._where} is damaged: {row}; restore it from a backup")
            (bare,) = run.execute(
                "SELECT count(*) FROM images WHERE key NOT IN (SELECT key FROM vectors)"
            ).fetchone()
            if bare:
                raise IntegrityError(f"{self._where} is damaged: {bare} images have no vector")
            for row in run.execute(f"SELECT {_RECORD} FROM images"):
                self._record(row)
            self.log.verify()
            self.questions.verify()

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the catalog, as it stands at one moment, to a file; others may go on writing.

        Atomic: a crash or a full disk leaves either what ``path`` held before or the whole copy.

        Args:
            path: the file to write; replaced when it exists.

        Raises:
            AlbumError: ``path`` is this catalog or another in use, or cannot be written.
        """
        self._database.backup(path)

    def move_to(self, path: str | os.PathLike[str]) -> None:
        """Give a catalog in memory a file, and go on there; other threads wait for it.

        Raises:
            AlbumError: ``path`` exists already, or cannot be written. The catalog is as it was.
        """
        if Path(path).exists():
            raise AlbumError(f"{path} exists already; open it with Retriever.load, or choose another path")
        with self._database.held():
            self.backup(path)
            self._database.take_over(Catalog.open(path)._database)

    def _known(self, column: str, values: Sequence[str]) -> dict[str, int]:
        return dict(self._database.select(f"{column}, key", "images", column, values))

    def _record(self, row: tuple[Any, ...]) -> Record:
        values = (*row[:-1], self._database.from_json(row[-1], f"metadata of image {row[0]}"))
        return Record(*values)


@contextmanager
def _closing_on_error(catalog: Catalog) -> Iterator[Catalog]:
    try:
        yield catalog
    except BaseException:
        catalog.close()
        raise


def _image_row(row: NewImage | Record) -> tuple[Any, ...]:
    """The columns of an image after its key."""
    texts = {"id": row.id, "source": row.source, "digest": row.digest, "caption": row.caption}
    for name, text in texts.items():
        if text is None and name == "caption":
            continue
        if not isinstance(text, str) or not (text or name == "caption"):
            raise InvalidInputError(f"{row.id!r}: its {name} must be a text that is not empty, not {text!r}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise InvalidInputError(f"{row.id!r}: its {name} is not Unicode text; make it printable first")
    metadata = _to_json(dict(row.metadata), f"metadata of {row.id!r}")
    sizes = int(row.width), int(row.height), int(row.bytes)
    return row.id, row.source, *sizes, row.digest, row.caption, metadata


def _to_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the {what} cannot be kept as JSON: {error}") from error
