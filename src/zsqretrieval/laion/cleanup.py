"""Removing listed rows from a folder of embeddings.

Each shard that has such rows is written again beside the old one, vectors and table, and takes its place when
both are whole and on disk. A crash leaves the old shard, or is completed by the next call.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.files import atomic_write, flush_file, sync_directory
from zsqretrieval.errors import AlbumError
from zsqretrieval.laion.embeddings import FACTS, open_embeddings
from zsqretrieval.laion.hashes import HashList
from zsqretrieval.laion.safety import NO_RULES
from zsqretrieval.laion.storage import opened_parquet, parquet_module

_NEW = ".removed"  # suffix of a file that is to take the place of the one without it
_AT_ONCE = 65_536  # rows
_TABLES = "metadata/metadata_*.parquet"


def remove_from_folder(folder: Path, removed: HashList) -> int:
    """Remove the rows of a folder of embeddings that are on a list; returns how many.

    Rows are found by their columns ``url``, ``md5``, ``sha256``, ``hash`` and ``uid``. Other arrays of the
    same shard (``text_emb``) lose the same rows.

    Raises:
        InvalidInputError: it is no such folder.
        IntegrityError: a file is damaged, or a shard has other numbers of vectors and rows.
        AlbumError: the disk refuses.
    """
    with _refused(folder):
        _complete(folder)
    rules = replace(NO_RULES, removed=removed)
    gone = 0
    for shard in open_embeddings(folder).shards:
        kept = rules.mask_table(shard.table)
        if not kept.all():
            with _refused(folder):
                _rewrite(folder, Path(shard.table.path), kept)
                gone += int((~kept).sum())
    with _refused(folder):
        _count(folder)
    return gone


def _rewrite(folder: Path, table: Path, kept: NDArray[np.bool_]) -> None:
    """Replace the files of a shard by files without some rows."""
    arrays = [file for file in sorted(folder.glob("*_emb/*_emb_*.npy")) if _number(file) == _number(table)]
    for file in arrays:
        _write(file, partial(_write_array, file, kept=kept))
    _write(table, partial(_write_table, table, kept=kept))
    _replace(table)  # first: from now on the next call completes the shard
    for file in arrays:
        _replace(file)


def _complete(folder: Path) -> None:
    """Finish the shard whose table an interrupted call has replaced; drop all else that it began."""
    table_of = {_number(table): table for table in folder.glob(_TABLES)}
    for new in sorted(folder.glob(f"*/*{_NEW}")):
        old = new.with_name(new.name.removesuffix(_NEW))
        table = table_of.get(_number(old))
        replaced = old.suffix == ".npy" and table is not None and not _new(table).exists()
        if replaced and len(np.load(new, mmap_mode="r", allow_pickle=False)) == _rows(cast(Path, table)):
            _replace(old)
    for new in folder.glob(f"*/*{_NEW}"):
        new.unlink()


def _number(file: Path) -> int:
    """The number of the shard of a file."""
    digits = file.stem.rpartition("_")[2]
    return int(digits) if digits.isdecimal() else -1


def _count(folder: Path) -> None:
    """Correct the number of rows that this library wrote beside the shards."""
    facts = folder / FACTS
    if facts.is_file():
        stated = json.loads(facts.read_text(encoding="ascii"))
        rows = sum(_rows(table) for table in folder.glob(_TABLES))
        if stated.get("rows") != rows:
            with atomic_write(facts) as temporary:
                temporary.write_text(json.dumps({**stated, "rows": rows}, indent=2), encoding="ascii")


def _rows(table: Path) -> int:
    with opened_parquet(table) as opened:
        return int(opened.metadata.num_rows)


def _new(file: Path) -> Path:
    return file.with_name(file.name + _NEW)


def _write(file: Path, write: Callable[[Path], object]) -> None:
    """Write the file that is to take the place of another; on disk when this returns."""
    write(_new(file))
    flush_file(_new(file))
    sync_directory(file.parent)


def _replace(file: Path) -> None:
    _new(file).replace(file)
    sync_directory(file.parent)


def _write_array(file: Path, new: Path, kept: NDArray[np.bool_]) -> None:
    old = np.load(file, mmap_mode="r", allow_pickle=False)
    places = np.flatnonzero(kept)
    with new.open("wb") as out:
        shape = (len(places), *old.shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(old.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for begin in range(0, len(places), _AT_ONCE):
            out.write(np.ascontiguousarray(old[places[begin : begin + _AT_ONCE]]).tobytes())


def _write_table(file: Path, new: Path, kept: NDArray[np.bool_]) -> None:
    first = 0
    with opened_parquet(file) as old, parquet_module().ParquetWriter(new, old.schema_arrow) as out:
        for batch in old.iter_batches(_AT_ONCE):
            out.write_batch(batch.filter(_arrow(kept[first : first + batch.num_rows])))
            first += batch.num_rows


def _arrow(mask: NDArray[np.bool_]) -> Any:
    import pyarrow as pa

    return pa.array(mask)


@contextlib.contextmanager
def _refused(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AlbumError(f"{folder} cannot be written: {error.strerror or error}") from error
