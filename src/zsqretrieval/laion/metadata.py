"""Metadata of LAION, DataComp, img2dataset and clip-retrieval, under one set of names and types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import IntegrityError
from zsqretrieval.laion.storage import File, Location, list_files, opened_parquet

if TYPE_CHECKING:
    import pyarrow as pa

_STRING, _FLOAT, _INT32, _INT64 = "string", "float32", "int32", "int64"

COLUMNS: Mapping[str, str] = {
    "url": _STRING, "caption": _STRING, "width": _INT32, "height": _INT32, "language": _STRING,
    "similarity": _FLOAT, "punsafe": _FLOAT, "pwatermark": _FLOAT, "nsfw": _STRING, "license": _STRING,
    "hash": _INT64, "md5": _STRING, "sha256": _STRING, "uid": _STRING, "key": _STRING, "status": _STRING,
}  # fmt: skip
"""Names and Arrow types of the canonical columns."""

UNREADABLE = "UNREADABLE"
"""The tag of a cell of ``nsfw`` that is no text."""

_OTHER_NAMES = {
    "caption": ("text", "alt_text"),
    "width": ("original_width",),
    "height": ("original_height",),
    "language": ("lang",),
}
_MARKS = ("punsafe", "pwatermark", "nsfw")
MOST_AT_ONCE = 64 * 2**20
"""Bytes of one batch."""
_MOST_NESTED = 2**27  # values in lists of one row group, such as boxes of faces


@dataclass(frozen=True, slots=True)
class MetadataBatch:
    """Some rows of a table, in canonical columns."""

    batch: pa.RecordBatch
    file: str
    first: int  # number of the first row in the file
    unreadable: Mapping[str, int] = field(default_factory=dict)  # cells that became NULL, by column


def read_metadata(
    source: Location, *, columns: Collection[str] | None = None, batch_size: int = 65_536
) -> Iterator[MetadataBatch]:
    """Read the tables of a file, folder, glob pattern or URL of fsspec, in canonical columns.

    Row groups are read page by page, so memory depends on ``batch_size`` and not on the size of a file. A
    batch has fewer rows where these are long.

    Args:
        source: a parquet file; a folder, of which all ``*.parquet`` are read, with its subfolders; a pattern.
        columns: canonical or other names to read; all when None. Those that a file lacks are absent.
        batch_size: most rows of a batch, >= 1.

    Yields:
        Batches in the order of the files, with the name of the file and the number of the first row.

    Raises:
        InvalidInputError: there is no such file, or nothing is in the folder.
        IntegrityError: a file is damaged, two of its columns have one name, or a row is ambiguous as in
            :func:`canonical`; names it.
        MissingDependencyError: there is no pyarrow, or no package for the URL.
    """
    check_counts(batch_size=batch_size)
    for file in list_files(source, ".parquet"):
        yield from read_table(file, columns=columns, batch_size=batch_size)


def read_table(
    file: File, *, columns: Collection[str] | None = None, batch_size: int = 65_536
) -> Iterator[MetadataBatch]:
    """Read one table, as :func:`read_metadata`."""
    with opened_parquet(file) as table:
        names = table.schema_arrow.names
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise IntegrityError(f"{file} has two columns {twice!r}; write it with one of each name")
        known = _named(names)
        wanted = {known.get(name, name) for name in names if columns is None} | set(columns or ())
        chosen = [name for name in names if known.get(name, name) in wanted or name.lower() in wanted]
        rows = rows_at_once(file, table, chosen, most=batch_size)
        first = 0
        for batch in table.iter_batches(rows, columns=chosen):
            unreadable: Counter[str] = Counter()
            try:
                batch = canonical(batch, unreadable)
            except IntegrityError as error:
                raise IntegrityError(f"{file}: {error}") from error
            yield MetadataBatch(batch, str(file), first, unreadable)
            first += batch.num_rows


def rows_at_once(file: File, table: Any, columns: Collection[str] | None = None, *, most: int) -> int:
    """Number of rows of which the columns of an open table have at most 64 MiB.

    The footer says how much is stored. It says nothing of texts that are stored once and repeated in every
    row, so the longest of those is looked up.

    Raises:
        IntegrityError: a cell is longer than 64 MiB, or a row group has more than 2**27 nested values.
    """
    for number in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(number)
        parts = [group.column(n) for n in range(group.num_columns)]
        parts = [one for one in parts if columns is None or one.path_in_schema.partition(".")[0] in columns]
        if any("." in one.path_in_schema and one.num_values > _MOST_NESTED for one in parts):
            raise IntegrityError(f"{file}: row group {number} has more than {_MOST_NESTED} nested values")
        stored = sum(max(one.total_uncompressed_size, 8 * one.num_values) for one in parts)
        texts = [one for one in parts if one.has_dictionary_page and one.physical_type == "BYTE_ARRAY"]
        repeated = [one.path_in_schema for one in texts if "." not in one.path_in_schema]
        longest = _longest(file, repeated, number) if repeated and group.num_rows else 0
        nested = sum(one.total_uncompressed_size for one in texts if "." in one.path_in_schema)
        if longest > MOST_AT_ONCE:
            raise IntegrityError(f"{file}: row group {number} has a cell of {longest} bytes; shorten it")
        of_one = max(stored // max(group.num_rows, 1), longest + nested, 1)
        most = min(most, max(1, MOST_AT_ONCE // of_one))
    return most


def _longest(file: File, columns: list[str], group: int) -> int:
    """Bytes of the longest texts in the dictionaries of some columns of a row group, added up."""
    from pyarrow import compute as pc

    total = 0
    with opened_parquet(file, read_dictionary=columns) as table:
        for batch in table.iter_batches(1, row_groups=[group], columns=columns):
            for column in batch.columns:
                if hasattr(column, "dictionary"):
                    total += pc.max(pc.binary_length(column.dictionary)).as_py() or 0
            break
    return total


def canonical(batch: pa.RecordBatch, unreadable: Counter[str] | None = None) -> pa.RecordBatch:
    """A batch with its known columns under the names and types of :data:`COLUMNS`.

    Names are compared without case: ``URL`` and ``url``, ``TEXT``, ``text`` and ``caption``. Of several, the
    canonical name comes first; an ``original_width`` beside a ``width`` stays. Other columns stay as they
    are, and a column that is absent stays absent. A cell that cannot be read as the type of its column is
    NULL: text that is no number, a fraction or another number beyond an integer column, floats beyond 2**53
    as hashes, text that is not UTF-8. Such a cell of ``nsfw`` is :data:`UNREADABLE`, which is no allowed tag.

    Args:
        batch: n rows, of columns with different names.
        unreadable: counts the cells that became NULL, by canonical name.

    Raises:
        IntegrityError: the names of two columns ``punsafe``, ``pwatermark`` or ``nsfw`` differ only in case,
            and their values do in a row. Else they are joined.
    """
    import pyarrow as pa
    from pyarrow import compute as pc

    known = _named(batch.schema.names)
    fields, arrays = [], []
    for kind, column in zip(batch.schema, batch.columns, strict=True):
        name = known.get(kind.name)
        if name is not None:
            empty = _empty(column)
            given, column = column, _converted(column, COLUMNS[name])
            if unreadable is not None and column.null_count > empty:
                unreadable[name] += column.null_count - empty
            column = _tags(given, column) if name == "nsfw" else column
            alike = [other for other in batch.schema.names if other.lower() == name and other != kind.name]
            for other in alike if name in _MARKS else ():
                more = _converted(batch.column(other), COLUMNS[name])
                more = _tags(batch.column(other), more) if name == "nsfw" else more
                if pc.any(pc.not_equal(column, more)).as_py():
                    raise IntegrityError(
                        f"a row has different values in {kind.name!r} and {other!r}; keep one of them"
                    )
                column = pc.coalesce(column, more)
            kind = kind.with_name(name).with_type(column.type)
        fields.append(kind)
        arrays.append(column)
    # Without columns, the number of rows would be lost.
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)) if arrays else batch


def batch_of(rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """The metadata of n rows as a canonical batch; values of other types count as their text."""
    pa = import_optional("pyarrow", "looking at metadata of LAION", "pip install 'zsqretrieval[parquet]'")

    def text(value: object) -> str | None:
        return None if value is None else str(value).encode(errors="replace").decode()

    names = list(dict.fromkeys(name for row in rows for name in row)) or [""]  # no columns would be no rows
    columns = [pa.array([text(row.get(name)) for row in rows], pa.string()) for name in names]
    return canonical(pa.RecordBatch.from_arrays(columns, names))


def _empty(column: Any) -> int:
    """Number of cells that are NULL, or NaN, which pandas writes for it."""
    from pyarrow import compute as pc
    from pyarrow import types

    nan = types.is_floating(column.type)
    return int(pc.sum(pc.is_null(column, nan_is_null=nan)).as_py() or 0)


def _named(names: Collection[str]) -> dict[str, str]:
    """The canonical names of columns, by the names that these have."""
    found: dict[str, str] = {}
    for name in COLUMNS:
        for other in (name, *_OTHER_NAMES.get(name, ())):
            alike = [one for one in names if one.lower() == other]
            if alike:
                found[other if other in alike else alike[0]] = name
                break
    return found


def _tags(given: Any, tags: Any) -> Any:
    """The tags of a column; one that cannot be read is not the same as none."""
    from pyarrow import compute as pc

    return pc.if_else(pc.and_(pc.is_null(tags), pc.is_valid(given)), UNREADABLE, tags)


def text_of(column: Any) -> Any:
    """A column of any type as texts; what cannot be read is NULL."""
    return _converted(column, _STRING)


def _converted(column: Any, kind: str) -> Any:
    """A column in one of the four types; what cannot be read is NULL."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if types.is_null(column.type) or types.is_nested(column.type):
        return pa.nulls(len(column), pa.type_for_alias(kind))
    if kind == _STRING:
        return _text(column)
    if _is_text(column.type):
        return _number_of_text(_text(column), kind)
    return _number(column, kind)


def _is_text(kind: Any) -> bool:
    return any(word in str(kind) for word in ("string", "binary"))


def _text(column: Any) -> Any:
    import pyarrow as pa

    if not _is_text(column.type):
        return _cast(column, pa.string())
    if column.type == pa.string():
        try:
            column.validate(full=True)  # that it is UTF-8
        except pa.ArrowInvalid:
            pass
        else:
            return column
    raw = column.cast(pa.binary())
    try:
        return raw.cast(pa.string())
    except pa.ArrowInvalid:
        return pa.array(map(_decoded, raw.to_pylist()), pa.string())


def _decoded(text: bytes | None) -> str | None:
    try:
        return None if text is None else text.decode()
    except UnicodeDecodeError:
        return None


def _number_of_text(column: Any, kind: str) -> Any:
    import pyarrow as pa
    from pyarrow import compute as pc

    text = pc.replace_substring_regex(pc.utf8_trim_whitespace(column), r"^\+", "")
    if kind == _FLOAT:
        real = pc.match_substring_regex(text, r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$")
        return _number(pc.if_else(real, text, None).cast(pa.float64()), kind)
    text = pc.replace_substring_regex(text, r"\.0*$", "")
    digits = pc.replace_substring_regex(text, "^-", "")
    short = pc.match_substring_regex(digits, "^[0-9]{1,18}$")
    long = pc.match_substring_regex(digits, "^[0-9]{19}$")
    fits = pc.or_(short, pc.and_(long, pc.less_equal(digits, str(2**63 - 1))))
    return _number(pc.if_else(fits, text, None).cast(pa.int64()), kind)


def _number(column: Any, kind: str) -> Any:
    """Numbers as another type; NULL for what is out of range, no whole number, or not finite."""
    import pyarrow as pa
    from pyarrow import compute as pc
    from pyarrow import types

    if types.is_decimal(column.type):
        column = column.cast(pa.float64(), safe=False)
    if not (types.is_integer(column.type) or types.is_floating(column.type)):
        return pa.nulls(len(column), pa.type_for_alias(kind))
    if types.is_floating(column.type):
        column = column.cast(pa.float64())
        if kind == _FLOAT:
            small = column.cast(pa.float32(), safe=False)
            return pc.if_else(pc.is_finite(small), small, None)
        column = pc.if_else(pc.less_equal(pc.abs(column), 2.0**53), column, None)
        return _number(pc.if_else(pc.equal(column, pc.floor(column)), column, None).cast(pa.int64()), kind)
    if kind == _FLOAT:
        return column.cast(pa.float32(), safe=False)
    most = 2**31 - 1 if kind == _INT32 else 2**63 - 1
    if column.type == pa.uint64():
        column = pc.if_else(pc.less_equal(column, pa.scalar(2**63 - 1, pa.uint64())), column, None)
    column = column.cast(pa.int64())
    inside = pc.and_(pc.less_equal(column, most), pc.greater_equal(column, -most - 1))
    return pc.if_else(inside, column, None).cast(pa.type_for_alias(kind))


def _cast(column: Any, kind: Any) -> Any:
    import pyarrow as pa

    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.nulls(len(column), kind)


def json_cells(column: Any) -> list[Any]:
    """The cells of a column as JSON values; None for null and for bytes."""
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if str(kind) in ("string", "large_string", "string_view"):  # which may not be UTF-8
        return [
            one if one is None else one.decode(errors="surrogateescape")
            for one in column.cast("binary").to_pylist()
        ]
    if "binary" in str(kind):
        return [None] * len(column)
    if types.is_temporal(kind) or types.is_decimal(kind):
        column = column.cast("int64" if types.is_duration(kind) else "string")
    return [None if one != one else one for one in column.to_pylist()]  # NaN, as of pandas
