"""The fields of a catalog's images, built in and of their metadata, and filters over them in SQL.

Comparisons are guarded by the type of the JSON value, because SQLite would order any text above any number.
Numbers of filters and catalog are read from JSON by the same code, so that equal ones are equal.

The values of fields that are filtered often are kept in a table of their own, sorted. It is no index on an
expression of SQLite's: the schema would then name fields, and could not be compared with one that is fixed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.filters import BUILT_IN, METADATA, MOST_KEYS, Field, Filter, Value, field_name
from zsqretrieval.album.sqlite import Database, Table
from zsqretrieval.errors import IntegrityError, InvalidInputError

SCHEMA = (
    "CREATE TABLE indexed_fields (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, crc32 INTEGER NOT NULL)",
    """CREATE TABLE field_values (
        image INTEGER NOT NULL REFERENCES images ON DELETE CASCADE,
        field INTEGER NOT NULL REFERENCES indexed_fields ON DELETE CASCADE,
        kind TEXT,
        value,
        PRIMARY KEY (image, field)) WITHOUT ROWID""",
    "CREATE INDEX field_values_sorted ON field_values (field, kind, value)",
)
"""Tables of indexed fields; each has a row for every image, with NULL where it has no value."""

_INDEXED = Table("indexed_fields", "indexed field", id=int, name=str)

_Path: TypeAlias = tuple[str, ...]
_SQL: TypeAlias = "tuple[str, list[Any]]"  # an expression and its arguments

_SHOWN = 40  # fields that an error names
_BATCH = 900
_SURVEYED = 20_000  # newest images of a survey
_FIELDS = 200  # of a survey
_FREQUENT, _SHORT = 30, 100  # values of a field in a survey, and characters of a text among them
_DATE = re.compile(r"\d{4}-\d\d-\d\d")

SORTS = ("added", "taken", "source")
"""What images are sorted by; with ``-`` before it, in falling order."""


@dataclass(frozen=True, slots=True)
class FieldSurvey:
    """The values of a field.

    Attributes:
        name: its name, for :class:`~zsqretrieval.album.filters.Field`.
        type: of all its values; ``"date"`` if all are texts that begin with an ISO 8601 date.
        values: the most frequent ones, most frequent first, without texts of more than 100 characters;
            members of lists count as values.
        least: smallest number or date; None for texts.
        most: largest number or date; None for texts.
    """

    name: str
    type: Literal["number", "text", "date"]
    values: tuple[Value, ...]
    least: float | str | None
    most: float | str | None


@final
class FieldTable:
    """The fields of the images of a catalog."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: set[_Path] = {(name,) for name in BUILT_IN}

    def matching(self, filter: Filter) -> NDArray[np.int64]:
        """The keys int64 [m], rising, of the images that a filter selects.

        Raises:
            InvalidInputError: no image has one of its fields; names those that there are.
        """
        rows = self._select("key", filter, "ORDER BY key")
        return np.fromiter((key for (key,) in rows), np.int64, len(rows))

    def count(self, filter: Filter | None) -> int:
        """The number of images that a filter selects; errors as :meth:`matching`."""
        return int(self._select("count(*)", filter)[0][0])

    def page(self, filter: Filter | None, sort: str, k: int, offset: int) -> list[int]:
        """The keys of k images in the order of one of :data:`SORTS`; those without a time come last.

        Raises:
            InvalidInputError: there is no such order; or as :meth:`matching`.
        """
        falling, name = sort.startswith("-"), sort.removeprefix("-")
        if name not in SORTS:
            raise InvalidInputError(f"images are sorted by {', '.join(SORTS)}, not {sort!r}")
        value = {"added": "key", "source": "source", "taken": _place((METADATA, "taken"))[0]}[name]
        order = f"ORDER BY {value} IS NULL, {value}{' DESC' * falling}, key LIMIT ? OFFSET ?"
        return [key for (key,) in self._select("key", filter, order, k, offset)]

    def _select(self, columns: str, filter: Filter | None, end: str = "", *arguments: int) -> list[Any]:
        with self._database.transaction():
            where, values = "1", list[Any]()
            if filter is not None:
                indexed = self._indexed()
                self._check_known(filter.fields() - indexed.keys())
                where, values = _compiled(filter, indexed)
            return self._database.rows(
                f"SELECT {columns} FROM images WHERE {where} {end}", [*values, *arguments]
            )

    def survey(self) -> list[FieldSurvey]:
        """The fields of the newest 20,000 images with their values, the 200 that most of these have.

        Ids, sources and captions are not among them.
        """
        counts: dict[_Path, Counter[tuple[bool, Value]]] = {}
        names = [name for name in BUILT_IN if _KINDS.get(name) == "integer"]
        query = f"SELECT key, metadata, {', '.join(names)} FROM images ORDER BY key DESC LIMIT {_SURVEYED}"
        for key, text, *numbers in self._database.rows(query):
            metadata = self._database.from_json(text, f"metadata of image {key}")
            found: list[tuple[_Path, Any]] = [
                ((name,), one) for name, one in zip(names, numbers, strict=True)
            ]
            for path in _leaves(metadata, (METADATA,)):
                value: Any = metadata
                for step in path[1:]:
                    value = value[step]
                found += ((path, one) for one in (value if isinstance(value, list) else [value]))
            for path, one in found:
                if isinstance(one, str | int | float):
                    counts.setdefault(path, Counter())[isinstance(one, bool), one] += 1
        common = set(sorted(counts, key=lambda path: -counts[path].total())[:_FIELDS])
        return [_surveyed(path, counted) for path, counted in counts.items() if path in common]

    def index(self, names: Iterable[str]) -> None:
        """Keep the values of exactly these fields sorted, so that filters on them need not read all metadata.

        A field may be one that no image has yet. On disk when this returns.
        """
        wanted = [Field(name).path for name in names]
        with self._database.transaction("IMMEDIATE") as run:
            run.execute("DELETE FROM indexed_fields")
            rows = enumerate(map(field_name, dict.fromkeys(wanted)))
            run.executemany(_INDEXED.insert, map(_INDEXED.pack, rows))
            self.follow()

    def indexed(self) -> list[str]:
        """The names of the indexed fields."""
        return [field_name(path) for path in self._indexed()]

    def follow(self, keys: Sequence[int] | None = None) -> None:
        """Bring indexed values up to date after images, by default all, were added or have new metadata."""
        chosen = "" if keys is None else "WHERE key IN (SELECT value FROM json_each(?))"
        for path, id in self._indexed().items():
            value, kind = _place(path)
            self._database.rows(
                f"INSERT OR REPLACE INTO field_values SELECT key, {id}, {kind}, {value} FROM images {chosen}",
                () if keys is None else (json.dumps(list(keys)),),
            )

    def verify(self) -> None:
        """Compare the indexed values with the metadata; a difference is an IntegrityError."""
        for path, id in self._indexed().items():
            value, kind = _place(path)
            stored = f"SELECT image, kind, value FROM field_values WHERE field = {id}"
            derived = f"SELECT key, {kind}, {value} FROM images"
            for one, other in ((stored, derived), (derived, stored)):
                if self._database.rows(f"SELECT 1 FROM ({one} EXCEPT {other}) LIMIT 1"):
                    raise IntegrityError(
                        f"{self._database.where}: the indexed values of the field {field_name(path)} are "
                        "damaged; index the fields again"
                    )

    def _indexed(self) -> dict[_Path, int]:
        """Paths of the indexed fields, and their numbers in the table of values."""
        rows = self._database.rows(f"SELECT {_INDEXED.columns} FROM indexed_fields ORDER BY id")
        try:
            return {Field(name).path: id for id, name in self._database.checked(_INDEXED, rows)}
        except InvalidInputError as error:
            raise IntegrityError(f"{self._database.where}: an indexed field is damaged: {error}") from error

    def names(self) -> list[str]:
        """The names of all fields, for :class:`~zsqretrieval.album.filters.Field`: built-in ones first."""
        found: set[_Path] = set()
        last = 0
        query = "SELECT key, metadata FROM images WHERE key > ? ORDER BY key LIMIT ?"
        while rows := self._database.rows(query, (last, _BATCH)):
            for last, text in rows:
                metadata = self._database.from_json(text, f"metadata of image {last}")
                if not isinstance(metadata, dict):
                    raise IntegrityError(f"{self._database.where}: the metadata of image {last} is damaged")
                found.update(_leaves(metadata, (METADATA,)))
        return [*BUILT_IN, *sorted(map(field_name, found))]

    def _check_known(self, paths: set[_Path]) -> None:
        """Raise InvalidInputError for a field that no image has, unless there are no images."""
        for path in sorted(paths - self._known):
            kind = _place(path)[1]
            if self._database.rows(f"SELECT 1 FROM images WHERE {kind} IS NOT NULL LIMIT 1"):
                self._known.add(path)
            elif names := self.names() if self._database.value("SELECT count(*) FROM images") else []:
                more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
                raise InvalidInputError(
                    f"no image of {self._database.where} has the field {field_name(path)}; the fields are "
                    f"{', '.join(names[:_SHOWN])}{more}"
                )


def _leaves(metadata: Mapping[str, Any], path: _Path) -> Iterator[_Path]:
    """The paths of all values in nested objects; a path with an empty key or too many keys has no name."""
    for key, value in metadata.items():
        if key and isinstance(value, dict) and len(path) < MOST_KEYS:
            yield from _leaves(value, (*path, key))
        elif key and len(path) <= MOST_KEYS:
            yield (*path, key)


def _surveyed(path: _Path, counted: Counter[tuple[bool, Value]]) -> FieldSurvey:
    values: list[Any] = [value for _, value in counted]
    kind: Literal["number", "text", "date"] = "text"
    if not any(is_truth for is_truth, _ in counted) and not any(isinstance(one, str) for one in values):
        kind = "number"
    elif all(isinstance(one, str) and _DATE.match(one) for one in values):
        kind = "date"
    least, most = (None, None) if kind == "text" else (min(values), max(values))
    by_frequency = (value for (_, value), _ in counted.most_common())
    short = [one for one in by_frequency if not isinstance(one, str) or len(one) <= _SHORT]
    return FieldSurvey(field_name(path), kind, tuple(short[:_FREQUENT]), least, most)


# --- SQL ----------------------------------------------------------------------------------------------------


def _compiled(filter: Filter, indexed: Mapping[_Path, int]) -> _SQL:
    """A filter as a condition on a row of images, true or else false or NULL."""
    if filter.op == "not":
        inner, arguments = _compiled(filter.parts[0], indexed)
        return f"NOT ifnull({inner}, 0)", arguments
    if filter.op in ("and", "or"):
        parts = [_compiled(part, indexed) for part in filter.parts]
        joined = f" {filter.op.upper()} ".join(sql for sql, _ in parts)
        return f"({joined})", [one for _, some in parts for one in some]
    if filter.path in indexed:
        sql, arguments = _condition(filter, "field_values.value", "field_values.kind")
        values = f"SELECT image FROM field_values WHERE field = {indexed[filter.path]}"
        return f"key IN ({values} AND {sql})", arguments
    return _condition(filter, *_place(filter.path))


def _condition(filter: Filter, value: str, kind: str) -> _SQL:
    """A comparison of a value of a kind, as a condition."""
    if filter.op == "in":
        return _equals(value, kind, filter.values)
    given = filter.values[0]
    if filter.op == "contains":
        items = f"json_each(CASE {kind} WHEN 'array' THEN {value} ELSE '[]' END) AS item"
        member, arguments = _equals("item.value", "item.type", filter.values)
        sql = f"EXISTS (SELECT 1 FROM {items} WHERE {member})"
        if isinstance(given, str):
            sql, arguments = f"({sql} OR {kind} = 'text' AND instr({value}, ?))", [*arguments, given]
        return sql, arguments
    if isinstance(given, str):
        return f"({kind} = 'text' AND {value} {filter.op} ?)", [given]
    number = "json_extract(?, '$')"
    return f"({kind} IN {_NUMBER} AND {value} {filter.op} {number})", [json.dumps(given)]


_NUMBER = "('integer', 'real')"


def _equals(value: str, kind: str, given: Sequence[Value]) -> _SQL:
    """Whether a value of a kind is one of those given."""
    texts = [one for one in given if isinstance(one, str)]
    numbers = [one for one in given if isinstance(one, int | float) and not isinstance(one, bool)]
    sql: list[str] = []
    arguments: list[Any] = []
    for guard, some in ((f"{kind} = 'text'", texts), (f"{kind} IN {_NUMBER}", numbers)):
        if some:
            sql.append(f"{guard} AND {value} IN (SELECT value FROM json_each(?))")
            arguments.append(json.dumps(some))
    sql += [f"{kind} = '{json.dumps(one)}'" for one in (True, False) if any(one is any_ for any_ in given)]
    if None in given:
        sql.append(f"{value} IS NULL")
    return f"({' OR '.join(sql) or '0'})", arguments


def _place(path: _Path) -> tuple[str, str]:
    """SQL of a field's value and of its JSON type; both NULL where it is missing."""
    if path[0] != METADATA:
        return path[0], f"CASE WHEN {path[0]} IS NOT NULL THEN '{_KINDS.get(path[0], 'text')}' END"
    keys = [json.dumps(key) for key in path[1:]]  # escaped as in the catalog
    if not any("\\" + '"' in key for key in keys):
        at = _quoted(f"$.{'.'.join(keys)}")
        return f"json_extract(metadata, {at})", f"json_type(metadata, {at})"
    # Older versions of SQLite cannot quote a quotation mark in a path.
    inner = "metadata"
    steps, conditions = [], []
    for n, key in enumerate(keys):
        steps.append(f"json_each({inner}) AS step{n}")
        conditions.append(f"step{n}.key = json_extract({_quoted(key)}, '$')")
        inner = f"CASE step{n}.type WHEN 'object' THEN step{n}.value ELSE '{{}}' END"
    found = f"FROM {', '.join(steps)} WHERE {' AND '.join(conditions)}"
    last = f"step{len(steps) - 1}"
    return f"(SELECT {last}.value {found})", f"(SELECT {last}.type {found})"


_KINDS = {"width": "integer", "height": "integer", "bytes": "integer"}


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
