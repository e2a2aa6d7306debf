"""Folders of embeddings, as clip-retrieval writes them.

folder/
img_emb/img_emb_0000.npy          float16 [n, dim], rows of unit length
text_emb/text_emb_0000.npy        of the captions, if they were encoded
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
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.files import flush_file, sync_directory
from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.data.images import in_threads
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError
from zsqretrieval.laion.arrays import StoredArray, open_array
from zsqretrieval.laion.metadata import MOST_AT_ONCE, MetadataBatch, json_cells, read_table, rows_at_once
from zsqretrieval.laion.storage import (
    File,
    Location,
    damage_named,
    files_of,
    located,
    opened_parquet,
    parquet_module,
)

FACTS = "zsqretrieval.json"
"""File that states the encoder of a folder."""

_IMAGES, _TEXTS, _TABLES = "img_emb", "text_emb", "metadata"
_WIDEST = 2**16  # numbers of a vector
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


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A file of vectors, and the table that describes them."""

    vectors: StoredArray  # float [n, dim]
    file: File
    table: File

    def rows(self, kept: NDArray[np.bool_] | None = None) -> Iterator[VectorRow]:
        """The n rows of the table, or those of a mask [n]; an IntegrityError if it is damaged."""
        first = 0
        with opened_parquet(self.table) as table:
            for batch in table.iter_batches(rows_at_once(self.table, table, most=4096)):
                if kept is not None:  # before any cell is read
                    first, mask = first + batch.num_rows, kept[first : first + batch.num_rows]
                    batch = batch.filter(mask)
                columns: dict[str, list[Any]] = {}
                marked: list[tuple[str, bool, list[Any]]] = []
                for kind, column in zip(batch.schema, batch.columns, strict=True):
                    if (mark := (kind.metadata or {}).get(_MARK)) is not None:
                        name, is_json = parse_json(mark)
                        marked.append((name, is_json, json_cells(column)))
                    elif not _INDEX.fullmatch(kind.name):
                        columns[kind.name] = json_cells(column)
                for n in range(batch.num_rows):
                    given = {name: cells[n] for name, cells in columns.items() if cells[n] is not None}
                    own = {
                        name: parse_json(cells[n]) if is_json else cells[n]
                        for name, is_json, cells in marked
                        if cells[n] is not None
                    }
                    yield _row(given, own)

    def blocks(
        self, *, columns: Collection[str] | None = None, batch_size: int = 65_536
    ) -> Iterator[tuple[NDArray[np.floating[Any]], MetadataBatch]]:
        """The vectors [m, dim] and the m rows of one batch after another, of at most 64 MiB each.

        Nothing is made per row: vectors of local files are mapped into memory, rows are in the columns of
        :func:`~zsqretrieval.laion.metadata.canonical`.
        """
        width = self.vectors.dtype.itemsize * self.vectors.shape[1]
        rows = min(batch_size, max(1, MOST_AT_ONCE // max(width, 1)))
        for batch in read_table(self.table, columns=columns, batch_size=rows):
            yield self.vectors[batch.first : batch.first + batch.batch.num_rows], batch


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The shards of a folder; ``encoder`` is the fingerprint that it states, or None."""

    shards: tuple[Shard, ...]
    encoder: str | None

    def __len__(self) -> int:
        """Number of vectors."""
        return sum(len(shard.vectors) for shard in self.shards)


def open_embeddings(
    folder: Location,
    kind: Literal["img_emb", "text_emb"] = "img_emb",
    *,
    metadata: Location | None = None,
) -> Embeddings:
    """Open a folder of embeddings, on a disk or in a store: all headers are checked, no vector is read.

    Shards are in the order of their numbers, however many zeros are in front of these.

    Args:
        folder: path or URL of fsspec.
        kind: vectors of the images, or of their captions.
        metadata: folder of the tables, if it is not ``metadata`` in the folder.

    Raises:
        InvalidInputError: it is no such folder, or a shard lacks its vectors or its table.
        IntegrityError: a file is damaged, or a shard has other numbers of vectors and of rows.
        MissingDependencyError: there is no pyarrow, or no package for the URL.
    """
    system, path = located(folder)
    files = _numbered(system, f"{path}/{kind}", kind, "npy")
    if not files:
        raise InvalidInputError(
            f"{folder} holds no {kind}/{kind}_*.npy; give a folder that clip-retrieval or "
            "export_embeddings wrote"
        )
    place = (system, f"{path}/{_TABLES}") if metadata is None else located(metadata)
    tables = _numbered(*place, "metadata", "parquet")
    if alone := sorted(files.keys() ^ tables.keys()):
        file, other = files.get(alone[0]), tables.get(alone[0])
        missing = (
            f"{_TABLES}/metadata_{_number(file)}.parquet" if file else f"{kind}/{kind}_{_number(other)}.npy"
        )
        raise InvalidInputError(f"{file or other}: its shard has no file {missing}; write the shard again")

    def opened(number: int) -> Shard:
        file = files[number]
        return paired(open_array(file), file, tables[number], f"shard {_number(file)} of {folder}")

    found = Embeddings(tuple(in_threads(opened, sorted(files))), None)
    facts = File(system, f"{path}/{FACTS}", 0)
    if not system.isfile(facts.path):
        return found
    with damage_named(facts), facts.open() as file:
        stated = parse_json(file.read(_LONGEST))
        encoder, rows = stated["encoder"], stated["rows"]
    if rows != len(found):
        raise IntegrityError(
            f"{folder} holds {len(found)} vectors, its {FACTS} says {rows}; copy all of its shards"
        )
    return Embeddings(found.shards, str(encoder))


def _numbered(system: Any, folder: str, name: str, suffix: str) -> dict[int, File]:
    """The files ``{name}_{number}.{suffix}`` of a folder, by number."""
    found: dict[int, File] = {}
    for file in files_of(system, folder):
        if re.fullmatch(rf"{name}_[0-9]{{1,18}}\.{suffix}", file.name):
            number = int(_number(file))
            if number in found:
                raise InvalidInputError(f"{found[number]} and {file.name} have one number; keep one of them")
            found[number] = file
    return found


def _number(file: File | None) -> str:
    """The digits in the name of a file of a shard."""
    return re.sub("[^0-9]", "", file.name) if file else ""


def paired(array: StoredArray, file: File, table: File, name: str) -> Shard:
    """A shard of an array of a file, float [n, dim], and of a table of n rows.

    Raises:
        InvalidInputError: the array has another type or number of dimensions.
        IntegrityError: the table is damaged, or has another number of rows.
    """
    if len(array.shape) != 2 or array.dtype.kind != "f" or array.shape[1] > _WIDEST:
        raise InvalidInputError(f"{array.name} holds {array.dtype} {list(array.shape)}, not float [n, dim]")
    with opened_parquet(table) as opened:
        rows = opened.metadata.num_rows
    if rows != len(array):
        raise IntegrityError(
            f"{name}: {file.name} has {len(array)} vectors, {table.name} has {rows} rows, so it is unknown "
            "which belongs to which; write the shard again"
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


# --- writing ----------------------------------------------------------------------------------------------


Write: TypeAlias = Callable[..., None]


@contextlib.contextmanager
def writing_embeddings(
    folder: Path,
    *,
    encoder: str,
    dim: int,
    dtype: str = "float16",
    shard_size: int = 100_000,
    texts: bool = False,
) -> Iterator[Write]:
    """Write a folder of embeddings.

    Call the function of the block with n vectors [n, dim] and n rows; if ``texts``, also with the n vectors
    of their captions, for ``text_emb``. The folder appears under its name when the block ends, whole and on
    disk; never if it raises.

    Raises:
        AlbumError: ``folder`` exists, or the disk refuses.
        MissingDependencyError: there is no pyarrow.
    """
    parquet_module()
    if os.path.lexists(folder):
        raise AlbumError(f"{folder} exists already; choose a new path for the embeddings")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    kinds = (_IMAGES, _TEXTS) if texts else (_IMAGES,)
    waiting: dict[str, list[NDArray[Any]]] = {kind: [] for kind in kinds}
    rows: list[VectorRow] = []
    written = shards = 0

    def flush(size: int) -> None:
        nonlocal rows, written, shards
        for kind in kinds:
            stacked = np.concatenate([*waiting[kind], np.empty((0, dim), dtype)])
            array = temporary / kind / f"{kind}_{shards:04d}.npy"
            np.save(array, stacked[:size], allow_pickle=False)
            flush_file(array)
            waiting[kind] = [stacked[size:]]
        table = temporary / _TABLES / f"metadata_{shards:04d}.parquet"
        parquet_module().write_table(table_of(rows[:size]), table)
        flush_file(table)
        shards, written = shards + 1, written + len(rows[:size])
        rows = rows[size:]

    def write(
        vectors: NDArray[np.floating[Any]],
        described: Sequence[VectorRow],
        captions: NDArray[np.floating[Any]] | None = None,
    ) -> None:
        for kind, some in zip(kinds, (vectors, captions), strict=False):
            waiting[kind].append(np.asarray(some).astype(dtype))
        rows.extend(described)
        while len(rows) >= shard_size:
            flush(shard_size)

    try:
        for name in (*kinds, _TABLES):
            (temporary / name).mkdir(parents=True)
        yield write
        if rows or not shards:
            flush(shard_size)
        facts = {"encoder": encoder, "dim": dim, "dtype": dtype, "rows": written}
        (temporary / FACTS).write_text(json.dumps(facts, indent=2), encoding="ascii")
        flush_file(temporary / FACTS)
        for one in (*(temporary / name for name in (*kinds, _TABLES)), temporary):
            sync_directory(one)
        temporary.rename(folder)
        sync_directory(folder.parent)
    except OSError as error:
        raise AlbumError(f"{folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
