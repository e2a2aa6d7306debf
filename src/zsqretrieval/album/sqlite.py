"""SQLite for the catalog: one connection for all threads, nested transactions, and this library's errors.

SQLite notices damage of its own structure, but not of the content. So every row carries a checksum of its
columns (:class:`Table`), which is verified whenever the row is read.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, final

from zsqretrieval._util.batches import batched
from zsqretrieval._util.files import atomic_write
from zsqretrieval._util.processes import Lock, renew_in_forks
from zsqretrieval._util.untrusted import check_depth, parse_json
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError

CHUNK = 900
"""Values in one statement: older versions of SQLite take at most 999."""

_LONGEST = 64 * 2**20  # bytes of a text, a blob or a row
_LIMIT_LENGTH = 0  # SQLite's number of that limit

# SQLite's messages that do not mean damage, and the user's remedy.
_ADVICE = {
    "too big": f"a text is longer than {_LONGEST} bytes; shorten it",
    "locked": "another process is writing to it; try again",
    "disk is full": "nothing was changed; free some space and try again",
    "readonly": "it cannot be written; check its permissions and those of its folder",
    "unable to open": "check that its folder exists and can be written",
    "disk I/O error": "the disk failed to read or write; check the disk and its free space",
    "closed database": "it was closed; open it again",
}


def to_json(value: Any, what: str) -> str:
    """A value as JSON for a column; an InvalidInputError if it cannot be."""
    try:
        text = json.dumps(value, allow_nan=False)
        check_depth(value)
        return text
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(f"the {what} cannot be kept as JSON: {error}") from error


@final
class Table:
    """A table of the catalog whose last column, ``crc32``, is a checksum of the others of its row.

    Args:
        name: of the table.
        what: noun for error messages; the first column follows it.
        columns: the other columns in order, with their types; None for a column that may be null.
    """

    def __init__(self, name: str, what: str, /, **columns: Any) -> None:
        self.name, self.what = name, what
        self.columns = ", ".join([*columns, "crc32"])
        self.insert = f"INSERT INTO {name} ({self.columns}) VALUES ({', '.join('?' * (len(columns) + 1))})"
        kinds = [kind if isinstance(kind, tuple) else (kind,) for kind in columns.values()]
        every = itertools.product(*((type(None) if one is None else one for one in some) for some in kinds))
        self._types = frozenset((*types, int) for types in every)
        self._kinds = [some[0] for some in kinds]

    def pack(self, row: Iterable[Any]) -> tuple[Any, ...]:
        """A row with its checksum, for :attr:`insert`."""
        exact = (one if one is None else kind(one) for kind, one in zip(self._kinds, row, strict=True))
        packed = tuple(exact)  # as SQLite returns it: no bool and no type of NumPy
        return (*packed, checksum(packed))

    def intact(self, row: tuple[Any, ...]) -> bool:
        """Whether a row of :attr:`columns` has the right types and the right checksum."""
        return tuple(map(type, row)) in self._types and checksum(row[:-1]) == row[-1]


def checksum(row: tuple[Any, ...]) -> int:
    """CRC-32 of numbers, texts and None, and of bytes in the last column."""
    if row and isinstance(row[-1], bytes):
        return zlib.crc32(row[-1], checksum(row[:-1]))
    return zlib.crc32(ascii(row).encode())  # repr would depend on the version of Unicode


@final
class Database:
    """An SQLite file, or a database in memory.

    Args:
        path: the file; None for memory.
        where: its name in error messages.
        timeout: seconds to wait while another process writes.
        make: make the file if it does not exist.
    """

    def __init__(self, path: Path | None, where: str, timeout: float = 30.0, *, make: bool = False) -> None:
        self.where = where
        self._path, self._timeout = path, timeout
        self._lock = Lock(gate=True)
        self._inside = False  # a transaction; guarded by the lock
        self._closed = self._forked = False
        self._connect("rwc" if make else "rw")
        self._file = _identity(path)
        self._journal: tuple[int, int] | None = None  # identity of the write-ahead log, once it is written to
        renew_in_forks(self)

    def _connect(self, mode: str) -> None:
        uri = ":memory:" if self._path is None else f"{self._path.absolute().as_uri()}?mode={mode}"
        with translated(self.where):
            self.connection = sqlite3.connect(
                uri, uri=True, timeout=self._timeout, isolation_level=None, check_same_thread=False
            )
        try:
            limit: Any = getattr(self.connection, "setlimit", None)  # from Python 3.11 on
            if limit is not None:
                limit(_LIMIT_LENGTH, _LONGEST)
            for setting in (
                "synchronous = FULL",
                "foreign_keys = ON",
                "trusted_schema = OFF",
                "secure_delete = ON",
            ):
                self.rows(f"PRAGMA {setting}")
        except BaseException:
            self.close()
            raise

    def renew(self) -> None:
        """Close the file in a forked process; the next use opens it again.

        SQLite's locks belong to the parent. Now the parent still has its own, so that closing here leaves the
        write-ahead log alone.
        """
        if self._path is not None:
            self.connection.close()
            self._forked, self._journal = True, None

    def close(self) -> None:
        """Close the file. Closing twice does no harm; any other use afterwards is an AlbumError."""
        with self._lock, translated(self.where):
            self._closed = True
            self.connection.close()

    @contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock, translated(self.where):
            if self._forked and not self._closed:
                self.check_place()
                self._forked = False
                self._journal = None  # the parent may have deleted its own
                self._connect("rw")
            if not self._inside and self.connection.in_transaction:  # an interrupt came before its COMMIT
                self.connection.execute("ROLLBACK")
            yield self.connection

    @contextmanager
    def transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
        """Apply all changes of the block or none, also inside another transaction; reads see one snapshot."""
        with self._held() as run:
            nested = self._inside
            try:
                self._inside = True
                run.execute("SAVEPOINT step" if nested else f"BEGIN {kind}")
                if kind != "DEFERRED":
                    self.check_place()
                yield run
                run.execute("RELEASE step" if nested else "COMMIT")
            except BaseException:
                if run.in_transaction:  # false when the disk is full: SQLite has rolled back by itself
                    run.execute("ROLLBACK TO step" if nested else "ROLLBACK")
                raise
            finally:
                self._inside = nested

    def check_place(self) -> None:
        """Check that the file is still where it was opened: a write to it would be lost.

        Raises:
            AlbumError: it was moved, deleted or replaced, or its write-ahead log was.
        """
        if self._path is None:
            return
        journal = _identity(self._path.with_name(f"{self._path.name}-wal"))
        self._journal = self._journal or journal
        if _identity(self._path) != self._file or journal != self._journal:
            raise AlbumError(
                f"{self.where} was moved, deleted or replaced since it was opened; nothing was written. "
                "Close the album and open the one that is there now"
            )

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """All rows of a statement."""
        with self._held() as run:
            # All at once: an unfinished cursor would block closing the file.
            return run.execute(query, arguments).fetchall()

    def value(self, query: str) -> Any:
        """The first column of the first row of a statement."""
        return self.rows(query)[0][0]

    def counters(self) -> dict[str, int]:
        """The highest key given by table, and the checksum of ``settings``; damage is an IntegrityError."""
        rows = self.rows(
            "SELECT name, seq FROM sqlite_sequence UNION ALL "
            "SELECT name, crc32 FROM meta WHERE name = 'settings' LIMIT 100"
        )
        found = dict(rows)
        if len(found) < len(rows) or any(type(last) is not int or last < 0 for last in found.values()):
            raise IntegrityError(f"{self.where}: the counters of its keys are damaged; restore a backup")
        return found

    def select(self, columns: str, table: str, by: str, values: Sequence[int | str]) -> list[tuple[Any, ...]]:
        """The rows whose column ``by`` has one of the values, in no order."""
        with self.transaction() if len(values) > CHUNK else contextlib.nullcontext():
            return [
                row
                for some in batched(values, CHUNK)
                for row in self.rows(
                    f"SELECT {columns} FROM {table} WHERE {by} IN ({', '.join('?' * len(some))})", some
                )
            ]

    def read(self, table: Table, by: str, values: Sequence[int] | Sequence[str]) -> list[tuple[Any, ...]]:
        """The rows whose column ``by`` has one of the values, in no order and without their checksums."""
        return self.checked(table, self.select(table.columns, table.name, by, values))

    def checked(self, table: Table, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Rows of ``table.columns`` without their checksums; a damaged one is an IntegrityError."""
        found = []
        for row in rows:
            if not table.intact(row):
                raise IntegrityError(
                    f"{self.where}: the {table.what} {row[0]!r} is damaged; restore the catalog from a backup"
                )
            found.append(row[:-1])
        return found

    def verify(self, table: Table) -> None:
        """Read every row of a table; a damaged one is an IntegrityError."""
        with self.transaction() as run:
            for row in run.execute(f"SELECT {table.columns} FROM {table.name}"):
                self.checked(table, [row])

    def from_json(self, text: str, what: str) -> Any:
        """Parse a JSON column; damage is an IntegrityError."""
        try:
            return parse_json(text)
        except ValueError as error:
            raise IntegrityError(f"{self.where}: the {what} is damaged: {error}") from error

    def check_schema(self, statements: tuple[str, ...]) -> None:
        """Check that exactly these statements made the file: it has no view, no trigger and no other table.

        Raises:
            IntegrityError: they did not; names one difference.
        """
        found = {row[:2]: row for row in self.rows(f"{_MADE} LIMIT 1000")}
        wanted = _made_by(statements)
        for kind, name in sorted(found.keys() ^ wanted.keys(), key=str):
            fault = "lacks" if (kind, name) in wanted else "has"
            raise IntegrityError(
                f"{self.where} {fault} the {kind} {name!r}, so it was altered by another program; it is not "
                "opened"
            )
        if changed := [name for name in wanted if found[name] != wanted[name]]:
            raise IntegrityError(
                f"{self.where}: the {' '.join(changed[0])} was altered by another program; it is not opened"
            )

    def check_structure(self) -> None:
        """Let SQLite check pages, tables and indexes, in about 2 s per GB; damage is an IntegrityError."""
        found = self.value("PRAGMA integrity_check(1)")
        if found != "ok":
            raise IntegrityError(f"{self.where} is damaged: {_line(found)}; restore it from a backup")

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy one snapshot of the database to a file, atomically; other threads and processes may write.

        A ``path`` that is in use or cannot be written is an AlbumError.
        """
        target = Path(path).absolute()
        with self._lock:
            self.value("SELECT count(*) FROM sqlite_master")  # an error of this file must not name the target
            try:
                wal = target.with_name(target.name + "-wal")
                if wal.exists():  # SQLite would apply this journal to the copy
                    raise AlbumError(f"{target} is a catalog in use ({wal.name} exists); choose another path")
                with (
                    atomic_write(target) as temporary,
                    translated(str(target)),
                    contextlib.closing(sqlite3.connect(temporary)) as copy,
                ):
                    self.connection.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, no journal beside it
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise AlbumError(f"{target} cannot be written: {reason}") from error

    @contextmanager
    def held(self) -> Iterator[None]:
        """Make other threads wait."""
        with self._lock:
            yield

    def take_over(self, other: Database) -> None:
        """Use the connection of ``other``, which must not be used any more; call within :meth:`held`."""
        with translated(self.where):
            self.connection.close()
        self.connection, self.where = other.connection, other.where
        self._path, self._file, self._timeout = other._path, other._file, other._timeout


def _identity(file: Path | None) -> tuple[int, int] | None:
    """Device and inode of a file; None if there is none."""
    try:
        status = Path(file or "").stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


_MADE = "SELECT type, name, tbl_name, sql FROM sqlite_master"


@lru_cache
def _made_by(statements: tuple[str, ...]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """The rows of ``sqlite_master`` after some statements, by type and name."""
    with contextlib.closing(sqlite3.connect(":memory:")) as empty:
        for statement in statements:
            empty.execute(statement)
        return {row[:2]: row for row in empty.execute(_MADE)}


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Translate SQLite's errors: AlbumError if locked, full, read-only or closed, else IntegrityError."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite quotes damaged text in its message
        raise IntegrityError(f"{where} is damaged: it holds unreadable text; restore a backup") from error
    except UnicodeEncodeError as error:
        raise InvalidInputError(f"{error.object!r} is not Unicode, as all ids and digests are") from error
    except sqlite3.DatabaseError as error:
        for sign, advice in _ADVICE.items():
            if sign in str(error):
                raise AlbumError(f"{where}: {error}: {advice}") from error
        reason = _line(str(error))
        raise IntegrityError(f"{where} is damaged or not a catalog: {reason}; restore a backup") from error


def _line(text: str) -> str:
    """SQLite's description of damage in one line."""
    return " ".join(text.split())


@contextmanager
def opened(database: Database) -> Iterator[Database]:
    """A database that is closed if the block raises."""
    try:
        yield database
    except BaseException:
        database.close()
        raise
