"""SQLite as the catalog needs it: one connection for all threads, nested transactions, errors of ours."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from zsqretrieval._util.files import sync_directory
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError

__all__ = ["Database", "translated"]

_CHUNK = 900  # older SQLite takes 999 variables in a statement

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
class Database:
    """One SQLite file, or one in memory.

    Args:
        uri: what SQLite opens.
        where: what errors call it.
        timeout: seconds to wait for another process that is writing.

    Raises:
        AlbumError: it cannot be opened.
        IntegrityError: it is no database, or damaged.
    """

    def __init__(self, uri: str, where: str, timeout: float) -> None:
        self.where = where
        self._lock = threading.RLock()
        self._inside = False  # a transaction; read and set while holding the lock
        with translated(where):
            self.connection = sqlite3.connect(
                uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        try:
            with translated(where):
                self.connection.execute("PRAGMA synchronous = FULL")
                self.connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file. Closing twice does no harm; any other use afterwards is an AlbumError."""
        with self._lock, translated(self.where):
            self.connection.close()

    @contextmanager
    def transaction(self, kind: str = "DEFERRED") -> Iterator[sqlite3.Connection]:
        """All or nothing, within another one as well; one snapshot for all that is read inside."""
        with self._lock, translated(self.where):
            run, nested = self.connection, self._inside
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

    def value(self, query: str, arguments: Sequence[Any] = ()) -> Any:
        """The first column of the first row; within a transaction."""
        return self.connection.execute(query, arguments).fetchone()[0]

    def select(
        self, columns: str, table: str, by: str, values: Sequence[int] | Sequence[str]
    ) -> Iterator[Any]:
        """Rows whose column ``by`` is among the values, in no order; within a transaction."""
        for start in range(0, len(values), _CHUNK):
            chunk = values[start : start + _CHUNK]
            marks = ", ".join("?" * len(chunk))
            query = f"SELECT {columns} FROM {table} WHERE {by} IN ({marks})"
            # All at once: a cursor left half-read would be in the way of closing the file.
            yield from self.connection.execute(query, chunk).fetchall()

    def from_json(self, text: str, what: str) -> Any:
        """Read what was kept as JSON.

        Raises:
            IntegrityError: it is none.
        """
        try:
            return json.loads(text)
        except ValueError as error:
            raise IntegrityError(f"{self.where}: the {what} is damaged: {error}") from error

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy it, as it stands at one moment, to a file; others may go on writing.

        Atomic: a crash or a full disk leaves either what ``path`` held before or the whole copy.

        Raises:
            AlbumError: ``path`` is this file or another in use, or cannot be written.
        """
        target = Path(path).absolute()
        wal = target.with_name(target.name + "-wal")
        if wal.exists():  # beside another file, SQLite would apply this journal to the copy
            raise AlbumError(f"{target} is a catalog in use ({wal.name} exists); back up to another path")
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
        with self._lock:
            with self.transaction():  # one that is closed or damaged is an error here, not the target's
                self.value("SELECT count(*) FROM sqlite_master")
            try:
                with translated(str(target)), contextlib.closing(sqlite3.connect(temporary)) as copy:
                    self.connection.backup(copy)
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

    @contextmanager
    def held(self) -> Iterator[None]:
        """Other threads wait outside."""
        with self._lock:
            yield

    def take_over(self, other: Database) -> None:
        """Go on with the connection of another one, which is not used any more; within :meth:`held`."""
        with translated(self.where):
            self.connection.close()
        self.connection, self.where = other.connection, other.where


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise SQLite's errors as ours.

    Raises:
        AlbumError: the file is locked, full, read-only or closed; says what to do.
        IntegrityError: it is damaged.
        InvalidInputError: a text is not Unicode.
    """
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
