"""Adding images to an album: read, encode, and write each batch in one transaction.

sources --loader--> bytes, digest --catalog--> known?
new:    loader --> pixels, encoder --> vector, generator --> state
all:    one transaction --> catalog, change log --> index
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, TypeAlias, final, get_args

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import tell
from zsqretrieval.album.candidates import Viewer
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.removal import listed
from zsqretrieval.album.sqlite import to_json
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.data.exif import KEYS as EXIF_KEYS
from zsqretrieval.data.images import ImageLike
from zsqretrieval.data.loader import Loader, NewImage, Skipped
from zsqretrieval.data.sources import VECTOR, Reopener, Row, count_images, is_member, open_images
from zsqretrieval.encoders.checked import encode_each
from zsqretrieval.errors import ImageError
from zsqretrieval.laion.hashes import HashList
from zsqretrieval.laion.safety import Denied, SafetyLike, permitted
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import MAX_PIXELS, Progress

Fate: TypeAlias = Literal["added", "replaced", "moved", "updated", "known"]

_SUFFIX = re.compile(r"#[0-9a-f]{8}([0-9a-f]{56})?\Z")  # appended to an id that another source has


def counted(report: Any) -> str:
    """A short ``__repr__`` of a report: the numbers of its ids and images, not all of them."""
    shown = []
    for one in fields(report):
        value = getattr(report, one.name)
        value = len(value) if isinstance(value, tuple) else value
        shown.append(f"{one.name}={value:.3g}" if isinstance(value, float) else f"{one.name}={value}")
    return f"{type(report).__name__}({', '.join(shown)})"


@dataclass(frozen=True, slots=True, repr=False)
class AddReport:
    """Result of :meth:`Retriever.add <zsqretrieval.retriever.Retriever.add>`; every image counts once."""

    added: tuple[str, ...]  # ids of new images
    replaced: tuple[str, ...]  # ids that belong to another image now, because the file has changed
    moved: tuple[str, ...]  # new ids of images of the album whose file was moved
    updated: tuple[str, ...]  # ids of images of the album whose caption or metadata changed
    known: int  # number of other images that were in the album already, byte for byte
    skipped: tuple[Skipped, ...]  # images that could not be read or encoded
    seconds: float  # duration
    mended: tuple[Skipped, ...] = ()  # new images of whose caption or metadata a part was replaced
    denied: Mapping[str, int] = field(default_factory=dict)  # numbers of rows that were left out, by reason

    __repr__ = counted


@dataclass(slots=True)
class Tally:
    """What became of the images of one call so far; every image counts once."""

    denied: Denied = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    mended: list[Skipped] = field(default_factory=list)
    repeated: int = 0  # images that an earlier one of the same batch equals
    ids: dict[Fate, list[str]] = field(default_factory=lambda: {fate: [] for fate in get_args(Fate)})
    begin: float = field(default_factory=time.perf_counter)

    def count(self, written: Iterable[tuple[Fate, str]]) -> None:
        """Count images by what became of them."""
        for fate, id in written:
            self.ids[fate].append(id)

    @property
    def done(self) -> int:
        """The number of images."""
        left_out = len(self.skipped) + sum(self.denied.values())
        return sum(map(len, self.ids.values())) + self.repeated + left_out

    def report(self) -> AddReport:
        """The report of the call."""
        return AddReport(
            **{fate: tuple(some) for fate, some in self.ids.items() if fate != "known"},
            known=len(self.ids["known"]) + self.repeated,
            skipped=tuple(self.skipped),
            seconds=time.perf_counter() - self.begin,
            mended=tuple(self.mended),
            denied=self.denied,
        )


@final
class Adder:
    """Adds images to an album. ``viewer`` caches image features; it is None without a generator.

    The bytes of images are kept in the album if they cannot be read again from a file, or with ``copy``.
    Images on the list ``removed``, and rows of LAION that its rules deny, are left out.
    """

    def __init__(
        self,
        encoder: Encoder,
        catalog: Catalog,
        index: IndexSync,
        viewer: Viewer | None,
        removed: HashList | None = None,
    ) -> None:
        self.encoder, self.catalog, self._index, self._viewer = encoder, catalog, index, viewer
        self.removed = removed

    def add(
        self,
        images: ImageLike | Row | Iterable[ImageLike | Row],
        *,
        batch_size: int,
        progress: Progress | None,
        copy: bool = False,
        exif: bool = True,
        max_pixels: int = MAX_PIXELS,
        seen: dict[str, str] | None = None,
        safety: SafetyLike = "auto",
    ) -> AddReport:
        """As :meth:`Retriever.add <zsqretrieval.retriever.Retriever.add>`.

        ``seen`` takes the digest of everything that was read, by its source.
        """
        tally = Tally()
        total = None if progress is None else count_images(images)
        opened = open_images(images)
        with Loader(opened, batch_size, max_pixels, copy=copy, exif=exif) as loader, Reopener() as files:
            tally.skipped, tally.mended = loader.skipped, loader.mended
            for batch in loader:
                if seen is not None:
                    seen.update({one.source: one.digest for one in batch})
                batch = self.permitted(batch, safety, tally.denied)
                known = self.catalog.by_digest(one.digest for one in batch)
                settled = set(known)
                if self._viewer is not None:
                    settled -= self._viewer.blind_to(known)
                waiting = [one for one in batch if one.digest in settled]
                for group in loader.decoded([one for one in batch if one.digest not in settled]):
                    encoded = self._encoded(group, known, loader.skipped)
                    tally.count(self.write([*waiting, *encoded], known, files, copy))
                    tally.repeated = loader.repeated
                    waiting = []
                    for one in group:
                        one.image = None  # else the pixels of the whole batch stay in memory
                    tell(progress, "adding images", tally.done, total)
        return tally.report()

    def permitted(self, images: list[NewImage], safety: SafetyLike, denied: Denied) -> list[NewImage]:
        """Leave out images on the removal list, and by their metadata; counts them by reason."""
        if self.removed is not None:
            hits = listed(self.removed, images)
            if hits.any():
                denied["removed"] = denied.get("removed", 0) + int(hits.sum())
                images = [one for one, hit in zip(images, hits, strict=True) if not hit]
        return list(itertools.compress(images, permitted([one.metadata for one in images], safety, denied)))

    def _encoded(
        self, images: Sequence[NewImage], known: Mapping[str, Record], skipped: list[Skipped]
    ) -> list[NewImage]:
        """Encode the new images; those that the encoder cannot take are skipped."""
        new = {one.digest: one.image for one in images if one.digest not in known and one.image is not None}
        vectors = dict(
            zip(new, encode_each(self.encoder, list(new.values()), batch_size=len(images)), strict=True)
        )
        kept: list[NewImage] = []
        for one in images:
            vector = vectors.get(one.digest)
            if isinstance(vector, ImageError):
                skipped.append(Skipped(one.source, vector.reason))
                continue
            one.vector = vector
            if one.digest in new:
                one.metadata = {**one.exif, **one.metadata}
            kept.append(one)
        return kept

    def write(
        self, images: Sequence[NewImage], known: Mapping[str, Record], files: Reopener, copy: bool = False
    ) -> list[tuple[Fate, str]]:
        """Write new images, with vectors, and known ones in one transaction; none if nothing has changed.

        ``known`` has the records of the known ones by digest.

        Returns:
            What became of each image, and its id in the album; in no order.
        """
        # Known images come first: one that was renamed frees its id for a new image.
        images = sorted(images, key=lambda one: one.digest not in known)
        new = [one for one in images if one.digest not in known]
        misplaced = [one for one in images if one.digest in known and not _has_name(known[one.digest], one)]
        decoded = {one.digest: one.image for one in images if one.image is not None and one.width}
        moved = {
            one.digest
            for one in misplaced
            if one.digest.endswith(VECTOR)  # its id and vector
            or (
                not is_at(files, known[one.digest].source, one.digest)
                and is_at(files, one.source, one.digest)
            )
        }
        self.catalog.check_place()
        kept = self._to_keep(images, known, files, copy)
        updated = any(_updated(known[one.digest], one) for one in images if one.digest in known)
        with self._viewer.keeping(decoded) if self._viewer and decoded else contextlib.nullcontext():
            if not (new or misplaced or kept or updated):
                return [("known", one.id) for one in images]
            with self.catalog.transaction():
                plan = _Plan(self.catalog, images, moved)
                fates = [plan.decide(one) for one in images]
                self.catalog.kept.put(kept)
                plan.write(self.catalog)
        if gone := [*kept, *plan.removed]:  # some of `kept` may just have been removed by another process
            self.catalog.sweep_kept(gone)
        self._index.follow()
        return fates

    def _to_keep(
        self, images: Sequence[NewImage], known: Mapping[str, Record], files: Reopener, copy: bool
    ) -> dict[str, bytes]:
        """The encoded bytes by digest that the album has to keep and does not yet, or not intact."""
        found: dict[str, bytes] = {}
        for one in images:
            record = known.get(one.digest)
            source = one.source if record is None else record.source
            if one.encoded is None or (not copy and (is_member(source) or is_at(files, source, one.digest))):
                continue
            # Bytes without a record are those of a removed image, and about to be deleted.
            if record is None or not self.catalog.kept.intact(one.digest):
                found[one.digest] = one.encoded
        return found


class _Plan:
    """The changes of one batch, worked out in memory; within a transaction of the catalog.

    ``moved`` has the digests of known images that can be opened at their new source but not at their old one.
    An id and a source together name one image at a time. A new image with the id and source of another
    replaces it. A known image with the id and source of another takes its id; the other one loses its id, and
    is removed unless a later image of the batch says where it is now. A known image whose file was moved
    takes the new name if it is free. A known image takes the caption and the metadata that come with it.

    ``removed`` has the digests of removed images.
    """

    def __init__(self, catalog: Catalog, images: Sequence[NewImage], moved: set[str]) -> None:
        self._moved = moved
        self.removed: list[str] = []
        self._present = catalog.by_digest(one.digest for one in images)
        self._added: dict[str, NewImage] = {}  # by digest
        self._renamed: dict[int, Record] = {}  # by key
        self._removed: list[int] = []
        self._displaced: dict[str, Record] = {}  # by digest
        self._named: dict[str, dict[str, Record | NewImage]] = {}  # by id without suffix, then by id
        for record in catalog.namesakes(one.id for one in images):
            self._put(self._present.get(record.digest, record))

    def decide(self, image: NewImage) -> tuple[Fate, str]:
        """Plan the next image of the batch; known images come before new ones."""
        namesakes = self._named.get(image.id, {}).values()
        of_source = [one for one in namesakes if one.source == image.source]
        former = min(of_source, key=lambda one: one.id, default=None)  # has the name so far
        present = self._present.get(image.digest)
        if (present is None) is (image.vector is None):  # another process has just removed or added it
            return "known", image.id
        misplaced = image.digest in self._moved or image.digest in self._displaced
        if present is not None and (present is former or (former is None and not misplaced)):
            record = None if present.key in self._renamed else _updated(present, image)
            if record is None:
                return "known", image.id
            self._present[record.digest] = self._renamed[record.key] = record
            self._put(record)
            return "updated", record.id
        for one in (former, present):
            if one is not None and one.digest not in self._displaced:
                self._take(one)
        id = free_id(image, self._named.get(image.id, {})) if former is None else former.id
        if present is None:
            if former is not None:
                self._remove(former)
            image.id = id
            self._added[image.digest] = image
            self._put(image)
            return ("added" if former is None else "replaced"), id
        if former is not None:
            assert isinstance(former, Record)
            self._displaced[former.digest] = former
        self._displaced.pop(image.digest, None)
        caption, metadata = image.caption or present.caption, _metadata(present, image)
        record = replace(present, id=id, source=image.source, caption=caption, metadata=metadata)
        self._present[record.digest] = self._renamed[record.key] = record
        self._put(record)
        return ("moved" if former is None else "replaced"), id

    def write(self, catalog: Catalog) -> None:
        """Write the planned changes."""
        for record in self._displaced.values():
            self._remove(record)
        if self._removed:
            catalog.remove(self._removed)
        if self._renamed:
            catalog.rename(list(self._renamed.values()))
        if self._added:
            catalog.add(list(self._added.values()))

    def _remove(self, one: Record | NewImage) -> None:
        if isinstance(one, Record):
            self._renamed.pop(one.key, None)
            self._removed.append(one.key)
            self.removed.append(one.digest)
        else:
            del self._added[one.digest]

    def _put(self, one: Record | NewImage) -> None:
        for name in names_of(one.id):
            self._named.setdefault(name, {})[one.id] = one

    def _take(self, one: Record | NewImage) -> None:
        for name in names_of(one.id):
            self._named.get(name, {}).pop(one.id, None)


def free_id(image: NewImage | Record, taken: Container[str]) -> str:
    """The id of an image, or with a part of its digest appended if another image has it."""
    name = image.id
    ids = (name, f"{name}#{image.digest[:8]}", f"{name}#{image.digest[:64]}")
    return next((id for id in ids if id not in taken), name)


def copy_of(record: Record, vector: NDArray[np.float32]) -> NewImage:
    """The image of a record, to be added to another catalog."""
    facts = {one.name: getattr(record, one.name) for one in fields(record) if one.name != "key"}
    return NewImage(**facts, vector=vector)


def names_of(id: str) -> set[str]:
    """An id, and the one that it was before a part of a digest was appended."""
    return {id, _SUFFIX.sub("", id)}


def _has_name(record: Record, image: NewImage) -> bool:
    return record.source == image.source and image.id in names_of(record.id)


def _updated(record: Record, image: NewImage) -> Record | None:
    """The record with the caption and metadata of the same image, added again; None if nothing is new."""
    caption, metadata = image.caption or record.caption, _metadata(record, image)
    if image.source != record.source or (caption, metadata) == (record.caption, record.metadata):
        return None
    return replace(record, caption=caption, metadata=metadata)


def _metadata(record: Record, image: NewImage) -> Mapping[str, Any]:
    """The metadata of the same image, added again: what came with it now, and what EXIF gave before."""
    if not image.metadata:
        return record.metadata
    of_exif = {key: value for key, value in record.metadata.items() if key in EXIF_KEYS}
    given: dict[str, Any] = json.loads(to_json(dict(image.metadata), f"metadata of {record.id!r}"))
    return {**of_exif, **given}


def is_at(files: Reopener, source: str, digest: str) -> bool:
    """Whether the image of a digest can be read at a source."""
    try:
        files.open(source, digest)
    except ImageError:
        return False
    return True
