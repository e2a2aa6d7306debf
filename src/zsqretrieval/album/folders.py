"""Keeping an album in step with folders: additions by :class:`Adder`, then removals.

A rehearsal does the same with a copy of the records in a temporary catalog, whose encoder computes nothing.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import batched
from zsqretrieval._util.checks import shown
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.ingest import Adder, AddReport, copy_of, is_at
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.data.images import path_text
from zsqretrieval.data.loader import Skipped
from zsqretrieval.data.sources import VECTOR, Reopener, archives, exists, open_images
from zsqretrieval.errors import AlbumError, ImageError, InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.types import Image, Progress


@dataclass(frozen=True, slots=True, repr=False)
class SyncReport(AddReport):
    """Result of :meth:`Retriever.sync <zsqretrieval.retriever.Retriever.sync>`."""

    removed: tuple[str, ...] = ()  # ids of images whose file is gone
    dry_run: bool = False  # whether nothing was changed


def checked_folders(folders: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The absolute paths of one or more folders; an InvalidInputError names one that cannot be listed."""
    given = [folders] if isinstance(folders, str | os.PathLike) else list(folders)
    for one in given:
        try:
            os.scandir(one if one else "\0").close()
        except (OSError, ValueError, TypeError) as error:
            reason = getattr(error, "strerror", None) or "it is no folder"
            raise InvalidInputError(
                f"{shown(one)} cannot be listed: {reason}; nothing was changed. Is its disk mounted?"
            ) from error
    return [Path(one).absolute() for one in given]


def sync_folders(
    adder: Adder, folders: Sequence[Path], progress: Progress | None, **settings: Any
) -> SyncReport:
    """Add the images of folders, and remove those whose file is gone from there.

    Raises:
        AlbumError: a folder is empty, of which the album has images. Nothing has changed.
    """
    begin = time.perf_counter()
    catalog = adder.catalog
    for folder in folders:
        if next(open_images(folder), None) is None and (lost := sum(1 for _ in _under([folder], catalog))):
            raise AlbumError(
                f"{folder} holds no images, but {lost} of the album come from there; nothing was changed. Is "
                "its disk mounted? To remove the images, use remove()"
            )
    seen: dict[str, str] = {}
    tars: set[str] = set()  # that were read to the end
    faults: list[Skipped] = []

    def images() -> Iterator[Image]:
        for folder in folders:
            for one in open_images(folder):
                if isinstance(one, ImageError):  # a damaged tar
                    faults.append(Skipped(one.source, one.reason))
                    continue
                if isinstance(one.content, bytes):
                    tars.update(archives(one.source))
                yield one

    def is_gone(record: Record) -> bool:
        source = record.source
        if source in seen or exists(source) is not False:
            return seen.get(source, record.digest) != record.digest and _is_replaced(record, seen, catalog)
        inside = archives(source)
        if source in unread:
            return False
        return not inside or not tars.isdisjoint(inside)

    report = adder.add(images(), progress=progress, seen=seen, **settings)
    unread = {one.source for one in faults}
    tars -= unread
    gone = {record.key: record for record in _under(folders, catalog) if is_gone(record)}
    with catalog.transaction():
        here = catalog.known_keys(list(gone))
        removed = [one for one in catalog.records(sorted(here)) if one.source == gone[one.key].source]
        catalog.remove([one.key for one in removed])
    catalog.sweep_kept([one.digest for one in removed])
    facts = {one.name: getattr(report, one.name) for one in fields(report)}
    facts |= {"skipped": (*report.skipped, *faults), "seconds": time.perf_counter() - begin}
    return SyncReport(**facts, removed=tuple(one.id for one in removed))


def _is_replaced(record: Record, seen: Mapping[str, str], catalog: Catalog) -> bool:
    """Whether the file of an image now holds another image of the album."""
    if record.digest.endswith(VECTOR) or not catalog.known_digests([seen[record.source]]):
        return False
    with Reopener() as files:  # the digest may be that of its pixels
        return not is_at(files, record.source, record.digest)


def _under(folders: Sequence[Path], catalog: Catalog) -> Iterator[Record]:
    """The images whose source is in one of the folders or in their subfolders."""
    places = tuple(path_text(folder).rstrip(os.sep) + os.sep for folder in folders)
    return (record for record in catalog.iter_records() if record.source.startswith(places))


class _NoEncoder:
    """Gives every image the same vector."""

    dim: ClassVar[int] = 1
    fingerprint: ClassVar[str] = "rehearsal"

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        return np.ones((len(images), 1), np.float32)

    encode_text: Any = None


@contextlib.contextmanager
def rehearsal(catalog: Catalog) -> Iterator[Adder]:
    """An adder to a temporary catalog with the records of another."""
    with (
        tempfile.TemporaryDirectory(prefix="zsq-") as folder,
        Catalog.create(Path(folder, "catalog.sqlite"), dim=1) as copy,
    ):
        for records in batched(catalog.iter_records(), 4096):
            copy.add([copy_of(record, np.ones(1, np.float32)) for record in records])
        index = IndexSync(copy, copy.log, ExactIndex(1))
        yield Adder(_NoEncoder(), copy, index, None)
