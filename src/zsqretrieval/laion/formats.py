"""Folders of embeddings, as clip-retrieval writes them.

folder/
img_emb/img_emb_0000.npy          float16 [n, dim], rows of unit length
metadata/metadata_0000.parquet    n rows; row i describes vector i
zsqretrieval.json                 encoder, dim and number of rows; only if this library wrote it
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.files import sync_directory
from zsqretrieval._util.optional import import_optional
from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, ZsqError

FACTS = "zsqretrieval.json"
"""File that states the encoder of a folder."""

_VECTORS, _TABLES = "img_emb", "metadata"
_LONGEST = 2**20  # bytes of FACTS
_MARK = b"zsqretrieval"  # in the metadata of a column: name in the album, and whether the cells are JSON
_ABSENT = object()  # in the place of a cell that is missing, unlike None
_INDEX = re.compile(r"__index_level_\d+__")  # of pandas

_IDS = ("id", "image_path", "key", "url")  # the first column that has a value names the row
_SOURCES = ("image_path", "url", "key")


@dataclass(frozen=True, slots=True, eq=False)
class VectorRow:
    """What comes with one vector."""

    id: str | None = None
    source: str | None = None
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON values


@dataclass(frozen=True, slots=True)
class Shard:
    """A file of vectors, and the table that describes them."""

    vectors: NDArray[np.floating[Any]]  # [n, dim], memory-mapped
    file: Path
    table: Path

    def rows(self) -> Iterator[VectorRow]:
        """The n rows of the table; an IntegrityError if it is damaged."""
        with opened_parquet(self.table) as table:
            for batch in table.iter_batches(batch_size=4096):
                columns: dict[str, list[Any]] = {}
                marked: list[tuple[str, bool, list[Any]]] = []
                for kind, column in zip(batch.schema, batch.columns, strict=True):
                    if (mark := (kind.metadata or {}).get(_MARK)) is not None:
                        name, is_json = parse_json(mark)
                        marked.append((name, is_json, _cells(column)))
                    elif not _INDEX.fullmatch(kind.name):
                        columns[kind.name] = _cells(column)
                for n in range(batch.num_rows):
                    given = {name: cells[n] for name, cells in columns.items() if cells[n] is not None}
                    own = {
                        name: parse_json(cells[n]) if is_json else cells[n]
                        for name, is_json, cells in marked
                        if cells[n] is not None
                    }
                    yield _row(given, own)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The shards of a folder; ``encoder`` is the fingerprint that it states, or None."""

    shards: tuple[Shard, ...]
    encoder: str | None

    def __len__(self) -> int:
        """Number of vectors."""
        return sum(len(shard.vectors) for shard in self.shards)


def open_embeddings(folder: Path) -> Embeddings:
    """Open a folder of embeddings: headers are checked, vectors are mapped into memory, nothing is unpickled.

    Raises:
        InvalidInputError: it is no such folder, or a shard has no table.
        IntegrityError: a file is damaged, or a shard has other numbers of vectors and of rows.
        MissingDependencyError: there is no pyarrow.
    """
    files = sorted((folder / _VECTORS).glob("img_emb_*.npy"), key=lambda one: (len(one.name), one.name))
    if not files:
        raise InvalidInputError(
            f"{folder} holds no {_VECTORS}/img_emb_*.npy; give a folder that clip-retrieval or "
            "export_embeddings wrote"
        )
    shards = tuple(_shard(file, folder / _TABLES) for file in files)
    found = Embeddings(shards, None)
    if not (folder / FACTS).is_file():
        return found
    try:
        with (folder / FACTS).open("rb") as file:
            facts = parse_json(file.read(_LONGEST))
        encoder, rows = facts["encoder"], facts["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / FACTS, error) from error
    if rows != len(found):
        raise IntegrityError(
            f"{folder} holds {len(found)} vectors, its {FACTS} says {rows}; copy all of its shards"
        )
    return Embeddings(shards, str(encoder))


def _shard(file: Path, tables: Path) -> Shard:
    number = file.stem.removeprefix("img_emb_")
    table = tables / f"metadata_{number}.parquet"
    if not file.is_file() or not table.is_file():
        missing = table if file.is_file() else file
        raise InvalidInputError(f"{file}: its shard has no file {missing}; write the shard again")
    try:
        with file.open("rb") as handle:
            array: NDArray[Any] = (
                np.lib.format.open_memmap(file, mode="r")
                if file.stat().st_size > 128
                else np.lib.format.read_array(handle, allow_pickle=False)
            )
    except Exception as error:  # NumPy raises many types for headers that are no description of an array
        raise _damaged(file, error) from error
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InvalidInputError(f"{file} holds {array.dtype} {list(array.shape)}, not float [n, dim]")
    with opened_parquet(table) as opened:
        rows = opened.metadata.num_rows
    if rows != len(array):
        raise IntegrityError(
            f"shard {number} of {file.parent.parent}: {file.name} has {len(array)} vectors, {table.name} has "
            f"{rows} rows, so it is unknown which belongs to which; write the shard again"
        )
    return Shard(array, file, table)


def _row(cells: Mapping[str, Any], own: Mapping[str, Any]) -> VectorRow:
    """The row of some cells without nulls, and of the metadata of an album."""
    used = {"caption"}
    named: list[str | None] = []
    for names in (_IDS, _SOURCES):
        column = next((name for name in names if cells.get(name, "") != ""), None)
        named.append(None if column is None else str(cells[column]))
        used |= {column} if column else set()
    caption = cells.get("caption", "")
    rest = {name: value for name, value in cells.items() if name not in used}
    id, source = named
    return VectorRow(id, source, str(caption) or None, {**rest, **own})


def _cells(column: Any) -> list[Any]:
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


def parquet_module() -> Any:
    """The module ``pyarrow.parquet``; a MissingDependencyError without it."""
    install = "pip install 'zsqretrieval[parquet]'"
    import_optional("pyarrow", "reading and writing parquet", install)
    from pyarrow import parquet

    return parquet


@contextlib.contextmanager
def opened_parquet(path: Path) -> Iterator[Any]:
    """An open table; damage that shows within the block is an IntegrityError."""
    parquet = parquet_module()
    from pyarrow import ArrowException

    try:
        with parquet.ParquetFile(path) as file:
            yield file
    except ZsqError:
        raise
    except (ArrowException, OSError, ValueError) as error:
        raise _damaged(path, error, ": not a whole parquet file") from error


def _damaged(path: Path, error: Exception, what: str = " is damaged") -> IntegrityError:
    reason = " ".join(str(error).split())  # some are several lines
    return IntegrityError(f"{path}{what}: {reason}; fetch or write it again")


# --- writing ----------------------------------------------------------------------------------------------

Write: TypeAlias = Callable[[NDArray[np.float32], Sequence[VectorRow]], None]


@contextlib.contextmanager
def writing_embeddings(
    folder: Path, *, encoder: str, dim: int, dtype: str = "float16", shard_size: int = 100_000
) -> Iterator[Write]:
    """Write a folder of embeddings: call the function of the block with n vectors [n, dim] and n rows.

    The folder appears under its name when the block ends, whole and on disk; never if it raises.

    Raises:
        AlbumError: ``folder`` exists, or the disk refuses.
        MissingDependencyError: there is no pyarrow.
    """
    parquet_module()
    if os.path.lexists(folder):
        raise AlbumError(f"{folder} exists already; choose a new path for the embeddings")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    vectors: list[NDArray[Any]] = []
    rows: list[VectorRow] = []
    written = shards = 0

    def flush(size: int) -> None:
        nonlocal vectors, rows, written, shards
        stacked = np.concatenate([*vectors, np.empty((0, dim), dtype)])
        with (temporary / _VECTORS / f"img_emb_{shards:04d}.npy").open("wb") as file:
            np.save(file, stacked[:size], allow_pickle=False)
            _flush(file)
        with (temporary / _TABLES / f"metadata_{shards:04d}.parquet").open("wb") as file:
            parquet_module().write_table(table_of(rows[:size]), file)
            _flush(file)
        shards, written = shards + 1, written + len(rows[:size])
        vectors, rows = [stacked[size:]], rows[size:]

    def write(some: NDArray[np.float32], described: Sequence[VectorRow]) -> None:
        vectors.append(some.astype(dtype))
        rows.extend(described)
        while len(rows) >= shard_size:
            flush(shard_size)

    try:
        for name in (_VECTORS, _TABLES):
            (temporary / name).mkdir(parents=True)
        yield write
        if rows or not shards:
            flush(shard_size)
        with (temporary / FACTS).open("w", encoding="ascii") as file:
            json.dump({"encoder": encoder, "dim": dim, "dtype": dtype, "rows": written}, file, indent=2)
            _flush(file)
        for one in (temporary / _VECTORS, temporary / _TABLES, temporary):
            sync_directory(one)
        temporary.rename(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise AlbumError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def table_of(rows: Sequence[VectorRow]) -> Any:
    """The table of n rows: ``image_path``, ``caption``, ``id``, and a column per key of the metadata."""
    import pyarrow as pa

    texts = {
        "image_path": [row.source for row in rows],
        "caption": [row.caption for row in rows],
        "id": [row.id for row in rows],
    }
    fields = [pa.field(name, pa.string()) for name in texts]
    columns: list[Any] = [pa.array(cells, pa.string()) for cells in texts.values()]
    taken = set(texts)
    for key in dict.fromkeys(key for row in rows for key in row.metadata):
        cells, kind = _column(row.metadata.get(key, _ABSENT) for row in rows)
        name = key
        while name in taken or not name or _INDEX.fullmatch(name):
            name += "_"
        taken.add(name)
        mark = json.dumps([key, kind is None])
        fields.append(pa.field(name, kind or pa.string(), metadata={_MARK: mark.encode()}))
        columns.append(pa.array(cells, kind or pa.string()))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


def _column(cells: Iterable[Any]) -> tuple[list[Any], Any]:
    """Cells and their type: text, numbers or truth values, or else JSON, whose type is None."""
    import pyarrow as pa

    values = list(cells)
    present = [one for one in values if one is not _ABSENT]
    for kind, plain in ((str, pa.string()), (bool, pa.bool_()), (float, pa.float64()), (int, pa.int64())):
        if all(type(one) is kind and (kind is not int or abs(cast(int, one)) < 2**63) for one in present):
            return [None if one is _ABSENT else one for one in values], plain
    return [None if one is _ABSENT else json.dumps(one) for one in values], None
