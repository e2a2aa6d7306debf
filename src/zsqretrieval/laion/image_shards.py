"""Shards of img2dataset: a tar of images, the table of all its rows, and statistics.

folder/
00000.tar            {key}.jpg, {key}.txt, {key}.json of every image that was fetched
00000.parquet        a row per URL, also of those that failed: key, status, url, caption, ...
00000_stats.json     count, successes, failures; written last
"""

from __future__ import annotations

import io
import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.files import atomic_write
from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.data.images import path_text
from zsqretrieval.data.tars import TAR_SUFFIXES, SurplusError, read_webdataset
from zsqretrieval.errors import AlbumError, ImageError, IntegrityError, InvalidInputError
from zsqretrieval.laion.metadata import canonical, json_cells, read_table
from zsqretrieval.laion.storage import (
    File,
    Location,
    damage_named,
    files_of,
    list_files,
    local_copy,
    parquet_module,
)
from zsqretrieval.types import Image

_SUCCESS = "success"
_LONGEST_STATS = 2**20  # bytes
_MOST_ROWS, _MOST_BYTES = 100_000, 256 * 2**20  # of the table of a shard, which is held in memory
_PER_SHARD = 10_000  # keys are numbered from this times the number of the shard


@dataclass(frozen=True, slots=True)
class ImageShard:
    """A tar, and its table and statistics, if they are there; a shard without statistics is unfinished."""

    tar: File
    table: File | None
    stats: File | None

    def read_stats(self) -> Mapping[str, Any] | None:
        """``successes`` and all else of the statistics; None without any. DataComp writes no ``count``.

        Raises:
            IntegrityError: they are longer than 1 MiB, no JSON, or without these numbers.
        """
        if self.stats is None:
            return None
        with damage_named(self.stats):
            if self.stats.size > _LONGEST_STATS:
                raise ValueError(f"it has {self.stats.size} bytes")
            with self.stats.open() as file:
                stats = parse_json(file.read(_LONGEST_STATS))
            numbers = (
                [stats.get(name, 0) for name in ("count", "successes")] if isinstance(stats, dict) else []
            )
            if {type(number) for number in numbers} != {int} or "successes" not in stats:
                raise ValueError("it has no whole numbers count and successes")
        return dict(stats)

    def images(self) -> Iterator[Image | ImageError]:
        """The images in the order of the tar, each with the row of the table that has its key.

        The cells of the row that are not NULL, in canonical columns, are added to the metadata of the image.
        What cannot be read is yielded as an ImageError, as by
        :func:`~zsqretrieval.data.tars.read_webdataset`. A tar of a store is first copied to this machine.

        Raises:
            IntegrityError: an image has no row, a row of a fetched image has no image, two rows have one key,
                or the statistics have other numbers; names the shard and the key.
        """
        rows = None if self.table is None else self._rows(self.table)
        with local_copy(self.tar) as tar:
            for one in read_webdataset([tar]):
                member = one.source.removeprefix(f"{path_text(tar)}#")
                source, key = f"{self.tar}#{member}", member.rpartition(".")[0]
                if isinstance(one, ImageError):
                    if rows is not None and not isinstance(one, SurplusError):
                        rows.pop(key, None)
                    yield type(one)(source, one.reason)
                    continue
                if rows is not None and key not in rows:
                    raise IntegrityError(
                        f"{source}: no row of {self.table} has the key {key!r}; fetch both again"
                    )
                row = {} if rows is None else rows.pop(key)
                yield replace(one, source=source, metadata={**one.metadata, **row})
        for key, row in (rows or {}).items():
            if row.get("status", _SUCCESS) == _SUCCESS:
                raise IntegrityError(
                    f"{self.tar}: no image has the key {key!r} of a row of {self.table}; fetch both again"
                )

    def _rows(self, table: File) -> dict[str, dict[str, Any]]:
        """The cells of each row that are not NULL, by key."""
        rows: dict[str, dict[str, Any]] = {}
        size = fetched = 0
        for part in read_table(table):
            names = part.batch.schema.names
            size += part.batch.nbytes
            if "key" not in names or size > _MOST_BYTES or part.first + part.batch.num_rows > _MOST_ROWS:
                wrong = "has no column 'key'" if "key" not in names else "is too large for one shard"
                raise IntegrityError(f"{table} {wrong}; give the table that img2dataset wrote")
            for cells in zip(*map(json_cells, part.batch.columns), strict=True):
                row = {name: cell for name, cell in zip(names, cells, strict=True) if cell is not None}
                if row.get("key") is None or row["key"] in rows:
                    raise IntegrityError(
                        f"{table}: the key {row.get('key')!r} is missing or given twice; fetch it again"
                    )
                rows[row["key"]] = row
                fetched += row.get("status", _SUCCESS) == _SUCCESS
        stats = {"count": len(rows), "successes": fetched, **(self.read_stats() or {})}
        if (stats["count"], stats["successes"]) != (len(rows), fetched):
            raise IntegrityError(
                f"{self.stats} says {stats['count']} rows and {stats['successes']} images, {table.name} has "
                f"{len(rows)} and {fetched}; fetch the shard again"
            )
        return rows


def open_image_shards(source: Location) -> list[ImageShard]:
    """The shards of a folder, pattern or tar, on a disk or in a store, by number.

    Raises:
        InvalidInputError: there is no tar.
        MissingDependencyError: there is no package for the URL.
    """
    folders: dict[str, dict[str, File]] = {}
    shards = []
    for tar in list_files(source, TAR_SUFFIXES):
        folder, _, name = tar.path.rpartition("/")
        if folder not in folders:
            folders[folder] = {file.name: file for file in files_of(tar.system, folder)}
        stem = name.partition(".")[0]
        beside = folders[folder]
        shards.append(ImageShard(tar, beside.get(f"{stem}.parquet"), beside.get(f"{stem}_stats.json")))
    return shards


def write_image_shard(
    folder: Path,
    number: int,
    samples: Iterable[tuple[bytes | None, Mapping[str, Any]]],
    *,
    suffix: str = "jpg",
    digits: int = 5,
) -> None:
    """Write one shard, as img2dataset does; its statistics appear last, when all else is on the disk.

    Args:
        folder: made when missing; files of this shard are replaced.
        number: of the shard, >= 0.
        samples: at most 10,000 pairs of an encoded image, or None if it could not be fetched, and its row of
            JSON values: ``url``, ``caption`` and others. ``key`` and ``status`` are added if missing.
        suffix: of the names of images, without dot.
        digits: of the number in the names of files.

    Raises:
        InvalidInputError: too many samples, two of one key, a key that is no plain name, or values of several
            types under one name.
        AlbumError: the disk refuses.
        MissingDependencyError: there is no pyarrow.
    """
    parquet = parquet_module()
    import pyarrow as pa

    check_counts(0, number=number)
    begin, stem = time.time(), f"{number:0{digits}d}"
    rows: list[dict[str, Any]] = []
    keys = set[str]()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / f"{stem}.tar") as path, tarfile.open(path, "w") as tar:
            for n, (image, given) in enumerate(samples):
                if n == _PER_SHARD:
                    raise InvalidInputError(f"a shard has at most {_PER_SHARD} samples; write several")
                added = {
                    "key": f"{number * _PER_SHARD + n:0{digits + 4}d}",
                    "status": _SUCCESS if image is not None else "failed_to_download",
                }
                row = {"url": None, "caption": None, **added, "error_message": None, **given}
                key = row["key"]
                if not isinstance(key, str) or not re.fullmatch("[A-Za-z0-9_-]+", key) or key in keys:
                    raise InvalidInputError(f"sample {n}: the key {key!r} is no plain name, or given twice")
                keys.add(key)
                rows.append(row)
                if image is not None:
                    texts = {"txt": row["caption"] or "", "json": json.dumps(row, indent=4)}
                    _add(tar, f"{key}.{suffix}", image)
                    for end, text in texts.items():
                        _add(tar, f"{key}.{end}", text.encode(errors="surrogatepass"))
        names = dict.fromkeys(name for row in rows for name in row)
        try:
            batch = pa.RecordBatch.from_pydict({name: [row.get(name) for row in rows] for name in names})
        except pa.ArrowException as error:
            raise InvalidInputError(
                f"rows of shard {stem} have values that no table holds: {error}"
            ) from error
        with atomic_write(folder / f"{stem}.parquet") as path:
            parquet.write_table(pa.Table.from_batches([canonical(batch)]), path)
        found = Counter(row["status"] for row in rows)
        stats = {
            "count": len(rows), "successes": found[_SUCCESS],
            "failed_to_download": found["failed_to_download"], "failed_to_resize": found["failed_to_resize"],
            "duration": time.time() - begin, "start_time": begin, "end_time": time.time(),
            "status_dict": found,
        }  # fmt: skip
        with atomic_write(folder / f"{stem}_stats.json") as path:
            path.write_text(json.dumps(stats, indent=4), encoding="utf-8")
    except OSError as error:
        raise AlbumError(f"{folder}/{stem} cannot be written: {error.strerror or error}") from error


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
