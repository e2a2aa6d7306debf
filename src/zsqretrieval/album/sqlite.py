"""SQLite for the catalog: one connection for all threads, nested transactions, and this library's errors."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from zsqretrieval._util.batches import batched
from zsqretrieval._util.files import atomic_write
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError

CHUNK = 900
"""Values in one statement: older versions of SQLite take at most 999."""

# SQLite's messages that do not mean damage, and the user's remedy.
_ADVICE = {
    "locked": "another process is writing to it; try again",
    "disk is full": "nothing was changed; free some space and try again",
    "readonly": "it cannot be written; check its permissions and those of its folder",
    "unable to open": "check that its folder exists and can be written",
    "disk I/O error": "the disk failed to read or write; check the disk and its free space",
    "closed database": "it was closed; open it again",
}


@final
class Database:
    """An SQLite file, or a database in memory; ``where`` is its name in error messages."""

    def __init__(self, uri: str, where: str, timeout: float) -> None:
        self.where = where
        self._lock = threading.RLock()
        self._inside = False  # a transaction; guarded by the lock
        with translated(where):
            self.connection = sqlite3.connect(
                uri, uri=True, timeout=timeout, isolation_level=None, check_same_thread=False
            )
        try:
            self.rows("PRAGMA synchronous = FULL")
            self.rows("PRAGMA foreign_keys = ON")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. Closing twice does no harm; any other use afterwards is an AlbumError."""
        with self._lock, translated(self.where):
            self.connection.close()

    @contextmanager
    def _held(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time."""
        with self._lock, translated(self.where):
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
                yield run
                run.execute("RELEASE step" if nested else "COMMIT")
            except BaseException:
                if run.in_transaction:  # false when the disk is full: SQLite has rolled back by itself
                    run.execute("ROLLBACK TO step" if nested else "ROLLBACK")
                raise
            finally:
                self._inside = nested

    def rows(self, query: str, arguments: Sequence[Any] = ()) -> list[Any]:
        """All rows of a statement."""
        with self._held() as run:
            # All at once: an unfinished cursor would block closing the file.
            return run.execute(query, arguments).fetchall()

    def value(self, query: str, arguments: Sequence[Any] = ()) -> Any:
        """The first column of the first row of a statement."""
        return self.rows(query, arguments)[0][0]

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

    def from_json(self, text: str, what: str) -> Any:
        """Parse a JSON column; damage is an IntegrityError."""
        try:
            return json.loads(text)
        except ValueError as error:
            raise IntegrityError(f"{self.where}: the {what} is damaged: {error}") from error

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Copy one snapshot of the database to a file, atomically; other threads and processes may write.

        A ``path`` that is in use or cannot be written is an AlbumError.
        """
        target = Path(path).absolute()
        wal = target.with_name(target.name + "-wal")
        if wal.exists():  # SQLite would apply this journal to the copy
            raise AlbumError(f"{target} is a catalog in use ({wal.name} exists); back up to another path")
        with self._lock:
            self.value("SELECT count(*) FROM sqlite_master")  # an error of this file must not name the target
            try:
                with (
                    atomic_write(target) as temporary,
                    translated(str(target)),
                    contextlib.closing(sqlite3.connect(temporary)) as copy,
                ):
                    self.connection.backup(copy)
                    copy.execute("PRAGMA journal_mode = DELETE")  # one file, no journal beside it
            except OSError as error:
                raise AlbumError(f"{target} cannot be written: {error.strerror or error}") from error

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
        raise IntegrityError(f"{where} is damaged or not a catalog: {error}; restore a backup") from error
