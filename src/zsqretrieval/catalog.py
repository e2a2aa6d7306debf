"""The durable truth of an album: every image's facts and its vector, in one SQLite file.

An image and its vector are written in one transaction, on disk (WAL, ``synchronous=FULL``) before
:meth:`Catalog.add` returns, so neither a killed process nor a power cut can lose or halve what it returned.
An index is only a faster view of the vectors: it follows along by :meth:`Catalog.changes`, and can always be
rebuilt from ``changes(Position())``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import uuid
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.storage import sync_directory

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


@dataclass(frozen=True, slots=True)
class Position:
    """A moment in the history of a catalog; the default is before the first image.

    Attributes:
        last_key: the highest key given until then.
        last_removal: the number of removals until then.
    """

    last_key: int = 0
    last_removal: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """One step from an earlier position to a later one: remove, then add, then remember ``position``.

    Attributes:
        added_keys: int64 [n], rising; all above every key known before.
        added_vectors: float32 [n, dim].
        removed_keys: int64 [m]; all known before.
        position: where a follower stands once it has taken this step.
    """

    added_keys: NDArray[np.int64]
    added_vectors: NDArray[np.float32]
    removed_keys: NDArray[np.int64]
    position: Position


_APPLICATION_ID = 0x7A737143  # "zsqC", in the header of the file
_VERSION = 1
_PAGE_SIZE = 16384  # with 4096, one vector of 512 float32 and its row leave half of every page empty
_CHUNK = 900  # older SQLite takes 999 variables in a statement

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
        metadata TEXT NOT NULL)""",
    """CREATE TABLE vectors (
        key INTEGER PRIMARY KEY REFERENCES images ON DELETE CASCADE,
        vector BLOB NOT NULL,
        crc32 INTEGER NOT NULL)""",
    "CREATE TABLE removals (seq INTEGER PRIMARY KEY AUTOINCREMENT, key INTEGER NOT NULL)",
    "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)

_RECORD = "key, id, source, width, height, bytes, digest, caption, metadata"

# What SQLite says, and what a person can do about it. None of these means that the file is damaged.
_ADVICE = {
    "locked": "another process is writing to it; try again, or give a longer timeout",
    "disk is full": "nothing was changed; free some space and try again",
    "readonly": "it cannot be written; check its permissions and those of its folder",
    "unable to open": "check that its folder exists and can be written",
    "disk I/O error": "the disk failed to read or write; check the disk and its free space",
    "closed database": "it was closed; open it again",
}


@final
class Catalog:
    """The images of an album and their vectors; made by :meth:`create` or :meth:`open`.

    Every method is atomic and may be called from any thread; other processes may read and write the same
    file meanwhile. All methods raise :class:`~zsqretrieval.errors.AlbumError` when the file is locked for
    longer than the timeout, cannot be written, or the disk is full (nothing has changed then), and
    :class:`~zsqretrieval.errors.IntegrityError` when the file is damaged.
    """

    def __init__(self, connection: sqlite3.Connection, where: str) -> None:
        self._connection = connection
        self._where = where
        self._lock = threading.RLock()
        self._inside = False  # a transaction; read and set while holding the lock
        self._dim = 0
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
        with _closing_on_error(cls._connect(uri, where, timeout)) as catalog:
            with _translated(where):
                catalog._refuse_if_used()  # before the file is touched at all
                catalog._connection.execute(f"PRAGMA page_size = {_PAGE_SIZE}")
                catalog._connection.execute("PRAGMA journal_mode = WAL")
            with catalog._transaction("IMMEDIATE") as run:
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
        """Open the catalog that :meth:`create` made.

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
        with _closing_on_error(cls._connect(uri, str(path), timeout)) as catalog:
            with _translated(catalog._where):
                catalog._check_header()
                catalog._connection.execute("PRAGMA journal_mode = WAL")
            catalog._read_fixed()
            catalog._check_fixed(dim, settings or {})
        return catalog

    @classmethod
    def _connect(cls, uri: str, where: str, timeout: float) -> Catalog:
        with _translated(where):
            connection = sqlite3.connect(
                uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        with _closing_on_error(cls(connection, where)) as catalog, _translated(where):
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
        return catalog

    def _refuse_if_used(self) -> None:
        if self._value("SELECT count(*) FROM sqlite_master") or self._value("PRAGMA application_id"):
            raise AlbumError(f"{self._where} exists already; open it, or choose another path")

    def _check_header(self) -> None:
        version = self._value("PRAGMA user_version")
        if self._value("PRAGMA application_id") != _APPLICATION_ID or version < 1:
            raise IntegrityError(f"{self._where} is not a catalog of zsqretrieval; check the path")
        if version > _VERSION:
            raise IntegrityError(
                f"{self._where} has format {version}, this version of zsqretrieval reads up to {_VERSION};"
                " upgrade zsqretrieval"
            )

    def _read_fixed(self) -> None:
        self._dim, self._settings = self.get_meta("dim"), self.get_meta("settings")
        if not isinstance(self._dim, int) or self._dim < 1 or not isinstance(self._settings, dict):
            raise IntegrityError(f"{self._where}: its dim or settings are missing or damaged")

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
        with self._lock, _translated(self._where):
            self._connection.close()

    # --- facts ------------------------------------------------------------------------------------------

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
        with self._transaction():
            return int(self._value("SELECT count(*) FROM images"))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._where!r}, dim={self._dim})"

    def get_meta(self, name: str, default: Any = None) -> Any:
        """The JSON value kept under a name, or ``default``."""
        with self._transaction() as run:
            row = run.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return default if row is None else self._from_json(row[0], f"meta {name!r}")

    def set_meta(self, name: str, value: Any) -> None:
        """Keep a JSON value under a name.

        Raises:
            InvalidInputError: the value is not JSON, or the name is "dim" or "settings", fixed at creation.
        """
        if name in ("dim", "settings"):
            raise InvalidInputError(f"{name!r} is fixed when a catalog is made and cannot be changed")
        text = _to_json(value, f"meta {name!r}")
        with self._transaction("IMMEDIATE") as run:
            run.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, text))

    # --- writing ----------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside becomes one change: on disk once the block ends, nothing of it when it raises.

        No other thread or process writes meanwhile, so what was read inside still holds when it is acted on.
        """
        with self._transaction("IMMEDIATE"):
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
        blobs = [self._blob(row) for row in rows]
        for name, values in (("id", [row.id for row in rows]), ("digest", [row.digest for row in rows])):
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise InvalidInputError(f"the {name} {twice!r} is given twice; nothing was added")
        with self._transaction("IMMEDIATE") as run:
            for name, known in (
                ("id", self._known("id", [row.id for row in rows])),
                ("digest", self._known("digest", [row.digest for row in rows])),
            ):
                for value, key in known.items():
                    raise InvalidInputError(
                        f"{self._where} already holds the {name} {value!r} (key {key}); nothing was added"
                    )
            first = self._position().last_key + 1
            keys = range(first, first + len(rows))
            run.executemany(
                f"INSERT INTO images ({_RECORD}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((key, *image) for key, image in zip(keys, images, strict=True)),
            )
            run.executemany(
                "INSERT INTO vectors VALUES (?, ?, ?)",
                ((key, blob, zlib.crc32(blob)) for key, blob in zip(keys, blobs, strict=True)),
            )
        return np.asarray(keys, dtype=np.int64)

    def _blob(self, row: NewImage) -> bytes:
        vector = np.asarray(row.vector)
        if vector.shape != (self._dim,) or vector.dtype.kind != "f":
            got = f"{vector.dtype} {list(vector.shape)}"
            raise InvalidInputError(f"{row.id!r}: the vector must be float32 [{self._dim}], not {got}")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is refused as such
            vector = vector.astype("<f4")
        if not np.isfinite(vector).all() or not vector.any():
            raise InvalidInputError(f"{row.id!r}: the vector is zero or not finite; nothing was added")
        return vector.tobytes()

    def remove(self, keys: ArrayLike) -> None:
        """Forget images and their vectors; all of them or none. Their keys are never used again.

        Args:
            keys: int64 [n], each present, no repeats.

        Raises:
            InvalidInputError: a key is not present or repeated. Nothing has changed.
        """
        wanted = _key_list(keys)
        if len(set(wanted)) < len(wanted):
            raise InvalidInputError("a key is given twice; nothing was removed")
        with self._transaction("IMMEDIATE") as run:
            self._refuse_unknown(wanted, {key for (key,) in self._select("key", "images", "key", wanted)})
            run.executemany("DELETE FROM images WHERE key = ?", ((key,) for key in wanted))
            run.executemany("INSERT INTO removals (key) VALUES (?)", ((key,) for key in wanted))

    # --- reading ----------------------------------------------------------------------------------------

    def known_digests(self, digests: Iterable[str]) -> dict[str, int]:
        """The keys of those digests that are present."""
        with self._transaction():
            return self._known("digest", list(digests))

    def known_ids(self, ids: Iterable[str]) -> dict[str, int]:
        """The keys of those ids that are present."""
        with self._transaction():
            return self._known("id", list(ids))

    def find(self, id: str) -> Record | None:
        """The record of an id, or None when there is none."""
        with self._transaction():
            for row in self._select(_RECORD, "images", "id", [id]):
                return self._record(row)
        return None

    def namesakes(self, id: str) -> list[Record]:
        """The records whose id is ``id``, or ``id`` followed by ``#`` and anything; sorted by id."""
        with self._transaction() as run:
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
        wanted = _key_list(keys)
        with self._transaction():
            rows = {row[0]: self._record(row) for row in self._select(_RECORD, "images", "key", wanted)}
        self._refuse_unknown(wanted, rows)
        return [rows[key] for key in wanted]

    def iter_records(self) -> Iterator[Record]:
        """Every record, by rising key. Images added or removed meanwhile may or may not appear."""
        last = 0
        while True:
            with self._transaction() as run:
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
        wanted = _key_list(keys)
        with self._transaction():
            found = list(self._select("key, vector, crc32", "vectors", "key", wanted))
        row_of = {row[0]: position for position, row in enumerate(found)}
        self._refuse_unknown(wanted, row_of)
        return self._matrix(found)[[row_of[key] for key in wanted]]

    # --- following --------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """Where the catalog stands; changes with every image added or removed, by any process."""
        with self._transaction():
            return self._position()

    def changes(self, since: Position, *, batch_size: int = 4096) -> Iterator[Change]:
        """The way from an earlier position to the present, in steps.

        A follower that held the images of ``since`` and takes every step holds exactly the present ones;
        images that came and went in between never appear. After each step the follower may stop, and go on
        later from that step's position, even if the catalog has changed meanwhile.

        Args:
            since: an earlier :attr:`position`, or that of an earlier step.
            batch_size: the most keys added, and the most removed, in one step.

        Yields:
            Steps; none when nothing has changed.

        Raises:
            MismatchError: ``since`` lies in the future, so it is of another catalog, or of this one before it
                was restored from an older backup.
            InvalidInputError: ``batch_size`` is below 1.
            IntegrityError: a vector is damaged.
        """
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
        while True:
            with self._transaction() as run:
                present = self._position()
                if since.last_key > present.last_key or since.last_removal > present.last_removal:
                    raise MismatchError(
                        f"{self._where} stands at {present}, before {since}: that position is of another"
                        " catalog, or this one was restored; follow it anew from Position()"
                    )
                if since == present:
                    return
                removals = run.execute(
                    "SELECT seq, key FROM removals WHERE seq > ? ORDER BY seq LIMIT ?",
                    (since.last_removal, batch_size),
                ).fetchall()
                last_removal = removals[-1][0] if removals else since.last_removal
                # Keys are added only once all removals are read in the same snapshot. Else a key added and
                # removed before it would turn up later as the removal of something never added.
                rows = []
                if last_removal == present.last_removal:
                    rows = run.execute(
                        "SELECT key, vector, crc32 FROM vectors WHERE key > ? ORDER BY key LIMIT ?",
                        (since.last_key, batch_size),
                    ).fetchall()
                    last_key = rows[-1][0] if len(rows) == batch_size else present.last_key
                else:
                    last_key = since.last_key
            position = Position(last_key, last_removal)
            removed = [key for _, key in removals if key <= since.last_key]
            yield Change(
                added_keys=np.array([row[0] for row in rows], dtype=np.int64),
                added_vectors=self._matrix(rows),
                removed_keys=np.array(removed, dtype=np.int64),
                position=position,
            )
            since = position

    # --- keeping safe -----------------------------------------------------------------------------------

    def verify(self) -> None:
        """Read everything and compare it with its checksums. Takes time proportional to the file.

        Raises:
            IntegrityError: something is damaged; says what.
        """
        with self._transaction() as run:
            for pragma in ("integrity_check", "foreign_key_check"):
                for row in run.execute(f"PRAGMA {pragma}"):
                    if row != ("ok",):
                        raise IntegrityError(f"{self._where} is damaged: {row}; restore it from a backup")
            bare = self._value("SELECT count(*) FROM images WHERE key NOT IN (SELECT key FROM vectors)")
            if bare:
                raise IntegrityError(f"{self._where} is damaged: {bare} images have no vector")
            for row in run.execute("SELECT key, vector, crc32 FROM vectors"):
                self._matrix([row])
            for row in run.execute(f"SELECT {_RECORD} FROM images"):
                self._record(row)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy the catalog, as it stands at one moment, to a file; others may go on writing.

        Atomic: a crash or a full disk leaves either what ``path`` held before or the whole copy.

        Args:
            path: the file to write; replaced when it exists.

        Raises:
            AlbumError: ``path`` is this catalog or another in use, or cannot be written.
        """
        target = Path(path).absolute()
        wal = target.with_name(target.name + "-wal")
        if wal.exists():  # beside another file, SQLite would apply this journal to the copy
            raise AlbumError(f"{target} is a catalog in use ({wal.name} exists); back up to another path")
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._lock:
            len(self)  # a closed or damaged catalog is this catalog's error, not the target's
            try:
                with _translated(str(target)), contextlib.closing(sqlite3.connect(temporary)) as copy:
                    self._connection.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, without a journal beside it
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                temporary.replace(target)
                sync_directory(target.parent)
            except OSError as error:
                raise AlbumError(f"{target} cannot be written: {error.strerror or error}") from error
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def move_to(self, path: str | os.PathLike[str]) -> None:
        """Give a catalog in memory a file, and go on there; other threads wait for it.

        Raises:
            AlbumError: ``path`` exists already, or cannot be written. The catalog is as it was.
        """
        if Path(path).exists():
            raise AlbumError(f"{path} exists already; open it, or choose another path")
        with self._lock:
            self.backup(path)
            moved = Catalog.open(path)
            with _translated(self._where):
                self._connection.close()
            self._connection, self._where = moved._connection, moved._where

    # --- SQL --------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
        """All or nothing, within another one as well; one snapshot for all that is read inside."""
        with self._lock, _translated(self._where):
            run, nested = self._connection, self._inside
            try:
                self._inside = True
                if run.in_transaction and not nested:  # an interrupt struck while it was being closed
                    run.execute("ROLLBACK")
                run.execute("SAVEPOINT step" if nested else f"BEGIN {kind}")
                yield run
                run.execute("RELEASE step" if nested else "COMMIT")
            except BaseException:
                if run.in_transaction:  # not after a full disk, where SQLite has rolled back by itself
                    run.execute("ROLLBACK TO step" if nested else "ROLLBACK")
                raise
            finally:
                self._inside = nested

    def _value(self, query: str) -> Any:
        return self._connection.execute(query).fetchone()[0]

    def _select(
        self, columns: str, table: str, by: str, values: Sequence[int] | Sequence[str]
    ) -> Iterator[Any]:
        """Rows whose column ``by`` is among the values, in no order; within a transaction."""
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            marks = ", ".join("?" * len(chunk))
            query = f"SELECT {columns} FROM {table} WHERE {by} IN ({marks})"
            # All at once: a cursor left half-read would be in the way of closing the catalog.
            yield from self._connection.execute(query, chunk).fetchall()

    def _known(self, column: str, values: Sequence[str]) -> dict[str, int]:
        return dict(self._select(f"{column}, key", "images", column, values))

    def _position(self) -> Position:
        last = dict(self._connection.execute("SELECT name, seq FROM sqlite_sequence").fetchall())
        return Position(last.get("images", 0), last.get("removals", 0))

    def _refuse_unknown(self, wanted: Sequence[int], present: Container[int]) -> None:
        unknown = [key for key in wanted if key not in present]
        if unknown:
            names = ", ".join(map(str, unknown[:3])) + (", ..." if len(unknown) > 3 else "")
            raise InvalidInputError(f"{self._where} has no image with key {names}; nothing was changed")

    def _record(self, row: tuple[Any, ...]) -> Record:
        values = (*row[:-1], self._from_json(row[-1], f"metadata of image {row[0]}"))
        return Record(*values)

    def _from_json(self, text: str, what: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise IntegrityError(f"{self._where}: the {what} is damaged: {error}") from error

    def _matrix(self, rows: Sequence[tuple[int, bytes, int]]) -> NDArray[np.float32]:
        """Vectors [n, dim] of rows of key, vector, crc32, each verified."""
        for key, blob, crc32 in rows:
            if len(blob) != 4 * self._dim or zlib.crc32(blob) != crc32:
                raise IntegrityError(
                    f"{self._where}: the vector of image {key} is damaged; restore the catalog from a backup,"
                    " or remove the image and add it again"
                )
        stacked = np.frombuffer(b"".join(blob for _, blob, _ in rows), dtype="<f4")
        return stacked.astype(np.float32).reshape(len(rows), self._dim)


@contextmanager
def _translated(where: str) -> Iterator[None]:
    """Raise SQLite's errors as ours."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes damaged text in its message
        raise IntegrityError(f"{where} is damaged: it holds unreadable text; restore a backup") from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{error.object!r} is not Unicode text; no id or digest is like that"
        ) from error
    except sqlite3.DatabaseError as error:
        for sign, advice in _ADVICE.items():
            if sign in str(error):
                raise AlbumError(f"{where}: {error}: {advice}") from error
        raise IntegrityError(f"{where} is damaged or no catalog: {error}; restore a backup") from error


@contextmanager
def _closing_on_error(catalog: Catalog) -> Iterator[Catalog]:
    try:
        yield catalog
    except BaseException:
        catalog.close()
        raise


def _image_row(row: NewImage) -> tuple[Any, ...]:
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


def _key_list(keys: ArrayLike) -> list[int]:
    array = np.asarray(keys)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInputError(f"keys must be int64 [n], not {array.dtype} {list(array.shape)}")
    return [int(key) for key in array]


def _to_json(value: Any, what: str) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"the {what} cannot be kept as JSON: {error}") from error
