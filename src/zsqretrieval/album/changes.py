"""The change log of stored vectors, by which an index is kept in step with the catalog.

The catalog has two logs, for the vectors of images and of questions (:mod:`zsqretrieval.album.questions`).
Each log is a table of vectors with rising keys and a table of removed keys. Keys and removals are numbered
without gaps, so a lost or altered entry is noticed. A removal has its key twice, the second time with all
bits inverted, which SQL can write, unlike a checksum.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import first_of
from zsqretrieval.album.sqlite import Database, Table
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError


@dataclass(frozen=True, slots=True)
class Position:
    """A point in the history of a log; the default is before the first vector."""

    last_key: int = 0  # highest key given so far
    last_removal: int = 0  # number of removals so far

    def is_beyond(self, other: Position) -> bool:
        """Whether this position has a key or a removal that is still to come at another."""
        return self.last_key > other.last_key or self.last_removal > other.last_removal


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A step from one position to a later one. Apply the removals first, then the additions."""

    added_keys: NDArray[np.int64]  # [n], rising, above every earlier key
    added_vectors: NDArray[np.float32]  # [n, dim]
    removed_keys: NDArray[np.int64]  # [m], all present before the step
    position: Position  # after the step


@final
class VectorLog:
    """The vectors of one table, each with a checksum, and their change log.

    ``vectors`` is a table whose first column is ``key`` and whose last is ``vector``, ``numbered`` the table
    whose AUTOINCREMENT gives the keys, ``removals`` a table of ``seq``, ``key`` and ``inverse``; ``what`` is
    a noun for errors.
    """

    def __init__(
        self, database: Database, dim: int, *, vectors: Table, numbered: str, removals: str, what: str
    ) -> None:
        self._database = database
        self._dim = dim
        self._vectors, self._numbered, self._removals, self._what = vectors, numbered, removals, what
        self._made = database.counters()["settings"]  # which name the encoder
        self.retired = False  # once this process has given the images new vectors, for searches still running

    def check_encoder(self) -> None:
        """Check that the vectors are still of the encoder that they were opened with; else an AlbumError."""
        if self._database.counters().get("settings") != self._made:
            raise self._other_encoder()

    def _other_encoder(self) -> AlbumError:
        again = "call again" if self.retired else "close the album and open it again"
        return AlbumError(
            f"{self._database.where} was encoded anew by another encoder since it was opened; {again}"
        )

    def next_key(self) -> int:
        """The key of the next vector; within the transaction that adds it."""
        self.check_encoder()
        return self.position.last_key + 1

    def replace(self, keys: Sequence[int], vectors: Sequence[NDArray[np.float32]]) -> None:
        """Give keys that are present other vectors; within a transaction that changes the encoder."""
        columns = ", ".join(self._vectors.columns.split(", ")[:-2])  # without vector and checksum
        row_of = {row[0]: row for row in self._database.select(columns, self._vectors.name, "key", keys)}
        packed = self.pack(vectors, [f"{self._what} {key}" for key in keys])
        rows = [self._vectors.pack((*row_of[key], vector)) for key, vector in zip(keys, packed, strict=True)]
        self._database.connection.executemany(
            f"UPDATE {self._vectors.name} SET vector = ?, crc32 = ? WHERE key = ?",
            ((*row[-2:], row[0]) for row in rows),
        )

    def pack(self, vectors: Sequence[ArrayLike], names: Sequence[str]) -> list[bytes]:
        """The stored forms of n vectors; an InvalidInputError says the name of a bad one."""
        given = [np.asarray(vector) for vector in vectors]
        for one, name in zip(given, names, strict=True):
            if one.shape != (self._dim,) or one.dtype.kind != "f":
                got = f"{one.dtype} {list(one.shape)}"
                raise InvalidInputError(f"{name!r}: the vector must be float32 [{self._dim}], not {got}")
        exact = np.empty((len(given), self._dim), "<f4")
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, which is refused
            for row, one in zip(exact, given, strict=True):
                row[:] = one
        bad = ~np.isfinite(exact).all(axis=1) | ~exact.any(axis=1)
        if bad.any():
            name = names[int(bad.argmax())]
            raise InvalidInputError(f"{name!r}: the vector is zero or not finite; nothing was added")
        return [row.tobytes() for row in exact]

    def unpack(self, rows: Sequence[tuple[Any, ...]]) -> NDArray[np.float32]:
        """Vectors float32 [n, dim] of n rows of the table with checksum; damage is an IntegrityError."""
        for row in rows:
            if not self._vectors.intact(row) or len(row[-2]) != 4 * self._dim:
                self._refuse(row[0])
        stacked = np.frombuffer(b"".join(row[-2] for row in rows), dtype="<f4")
        vectors = stacked.astype(np.float32).reshape(len(rows), self._dim)
        bad = ~np.isfinite(vectors).all(axis=1) | ~vectors.any(axis=1)  # of another program
        if bad.any():
            self._refuse(rows[int(bad.argmax())][0])
        return vectors

    def _refuse(self, key: int) -> NoReturn:
        raise IntegrityError(
            f"{self._database.where}: the vector of {self._what} {key} is damaged; restore the "
            f"catalog from a backup, or remove the {self._what} and add it again"
        )

    def get(self, keys: ArrayLike) -> NDArray[np.float32]:
        """Vectors float32 [n, dim] of keys int64 [n], all present, in order, verified by checksum."""
        wanted = key_list(keys)
        with self._database.transaction():
            self.check_encoder()
            found = self._database.select(self._vectors.columns, self._vectors.name, "key", wanted)
        row_of = {row[0]: n for n, row in enumerate(found)}
        self.refuse_unknown(wanted, row_of)
        return self.unpack(found)[[row_of[key] for key in wanted]]

    def refuse_unknown(self, wanted: Sequence[int], present: Container[int]) -> None:
        """Raise InvalidInputError when a key is not present; names it."""
        if unknown := [key for key in wanted if key not in present]:
            raise InvalidInputError(
                f"{self._database.where} has no {self._what} with key {first_of(unknown)}; nothing was "
                "changed"
            )

    def check_numbers(self) -> None:
        """Check that every key and every removal that was given a number is there; else an IntegrityError."""
        with self._database.transaction():
            count = {
                table: int(self._database.value(f"SELECT count(*) FROM {table}"))
                for table in (self._numbered, self._removals)
            }
            removed = count[self._removals]
            if self.position != Position(count[self._numbered] + removed, removed):
                raise IntegrityError(
                    f"{self._database.where} is damaged: it has {count[self._numbered]} {self._what} keys "
                    f"and {removed} removals at {self.position}; restore it from a backup"
                )

    def verify(self) -> None:
        """Read every vector and removal; a damaged one is an IntegrityError."""
        with self._database.transaction() as run:
            self.check_numbers()
            rows = run.execute(f"SELECT {self._vectors.columns} FROM {self._vectors.name}")
            while some := rows.fetchmany(900):
                self.unpack(some)
            self._removed_after(0, self.position.last_removal)

    def _removed_after(self, seq: int, most: int) -> list[tuple[int, int]]:
        """Numbers and keys of at most ``most`` removals; damage is an IntegrityError."""
        rows = self._database.rows(
            f"SELECT seq, key, inverse FROM {self._removals} WHERE seq > ? ORDER BY seq LIMIT ?", (seq, most)
        )
        for number, row in enumerate(rows, start=seq + 1):
            if row[:1] != (number,) or type(row[1]) is not int or row[2] != ~row[1]:
                raise IntegrityError(
                    f"{self._database.where}: removal {number} of {self._what}s is damaged; restore the "
                    "catalog from a backup"
                )
        return [row[:2] for row in rows]

    @property
    def position(self) -> Position:
        """The present position; every added or removed vector changes it, in any process.

        An AlbumError if the images have vectors of another encoder by now.
        """
        last = self._database.counters()
        if last.get("settings") != self._made and not self.retired:
            raise self._other_encoder()
        return Position(last.get(self._numbered, 0), last.get(self._removals, 0))

    def changes(self, since: Position, *, batch_size: int = 4096) -> Iterator[Change]:
        """The steps from an earlier position to the present.

        An index that held the vectors of ``since`` and applies every step holds exactly the present vectors.
        Vectors that were added and removed in between never appear. An index may stop after any step and
        continue from that step's position, even if the log has changed since.

        Args:
            since: an earlier :attr:`position`, or that of an earlier step.
            batch_size: the most keys added, and the most removed, in one step.

        Raises:
            MismatchError: ``since`` lies in the future: it belongs to another catalog, or this one was
                restored from an older backup.
            IntegrityError: a vector is damaged.
            AlbumError: the images have vectors of another encoder by now.
        """
        while True:
            with self._database.transaction():
                self.check_encoder()
                present = self.position
                if since.is_beyond(present):
                    raise MismatchError(
                        f"{self._database.where} stands at {present}, before {since}: that position is of "
                        "another catalog, or this one was restored; start again from Position()"
                    )
                if since == present:
                    return
                removals = self._removed_after(since.last_removal, batch_size)
                last_removal = removals[-1][0] if removals else since.last_removal
                # Add keys only once all removals of the same snapshot are read. Otherwise the later removal
                # of a key that was added and removed in between would be of a key that was never added.
                rows, last_key = [], since.last_key
                if last_removal == present.last_removal:
                    rows = self._database.rows(
                        f"SELECT {self._vectors.columns} FROM {self._vectors.name} WHERE key > ? "
                        "ORDER BY key LIMIT ?",
                        (since.last_key, batch_size),
                    )
                    last_key = rows[-1][0] if len(rows) == batch_size else present.last_key
            added = np.array([row[0] for row in rows], dtype=np.int64)
            removed = np.array([key for _, key in removals if key <= since.last_key], dtype=np.int64)
            position = Position(last_key, last_removal)
            yield Change(added, self.unpack(rows), removed, position)
            if position == present:
                return
            since = position


def key_list(keys: ArrayLike) -> list[int]:
    """Convert keys int64 [n] to Python integers; anything else is an InvalidInputError."""
    array = np.asarray(keys)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInputError(f"keys must be int64 [n], not {array.dtype} {list(array.shape)}")
    return [int(key) for key in array]
