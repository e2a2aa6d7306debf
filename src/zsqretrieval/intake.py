"""From a stream of image records to decoded images, batch by batch; what cannot be read is set aside, named.

Bytes are read once, so that what is hashed is what is decoded, even if the file changes meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, final

from PIL import Image as PILImage
from typing_extensions import Self

from zsqretrieval.errors import ImageError
from zsqretrieval.images import decode, digest, read_bytes
from zsqretrieval.types import Image

__all__ = ["Arrival", "Intake", "Skipped", "Unopened"]

_T = TypeVar("_T")

_PIXELS_AT_ONCE = 64_000_000  # decoded images held in memory together: 192 MB of RGB


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out: where it came from and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Unopened:
    """An image whose encoded bytes are in memory, with their SHA-256 in hexadecimal."""

    image: Image
    content: bytes
    digest: str


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A decoded image and everything that is to be written down about it.

    Attributes:
        id: the record's own id, else the source of a file, else the beginning of the digest.
        source: where it came from.
        pixels: upright RGB.
        bytes: size of the encoded image.
        digest: SHA-256 in hexadecimal.
        caption: text that came with it, or None.
        metadata: free JSON facts.
    """

    id: str
    source: str
    pixels: PILImage.Image
    bytes: int
    digest: str
    caption: str | None
    metadata: Mapping[str, Any]


@final
class Intake:
    """Reads and decodes on a few threads and keeps count.

    Args:
        images: the records, described but not opened.
        batch_size: records read together.

    Attributes:
        seen: records dealt with so far.
        known: how many of them were known already.
        skipped: those that cannot be read or decoded, with the reason.
    """

    def __init__(self, images: Iterator[Image], batch_size: int) -> None:
        self.seen = 0
        self.known = 0
        self.skipped: list[Skipped] = []
        self._images = images
        self._batch_size = batch_size
        self._threads = min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def batches(self) -> Iterator[list[Unopened]]:
        """Read the records, ``batch_size`` at a time, in order; unreadable ones are left out."""
        while batch := list(islice(self._images, self._batch_size)):
            self.seen += len(batch)
            yield self._kept(self._pool.map(_read, batch))

    def unknown(self, batch: Sequence[Unopened], known: Container[str]) -> list[Unopened]:
        """Those whose digest is neither in ``known`` nor that of an earlier one of the batch."""
        new: dict[str, Unopened] = {}
        for one in batch:
            if one.digest not in known:
                new.setdefault(one.digest, one)
        self.known += len(batch) - len(new)
        return list(new.values())

    def decoded(self, images: Sequence[Unopened]) -> Iterator[list[Arrival]]:
        """Decode in order, in groups whose pixels together stay within bounds."""
        group: list[Arrival] = []
        pixels = 0
        for start in range(0, len(images), self._threads):
            for one in self._kept(self._pool.map(_open, images[start : start + self._threads])):
                size = one.pixels.width * one.pixels.height
                if group and pixels + size > _PIXELS_AT_ONCE:
                    yield group
                    group, pixels = [], 0
                group.append(one)
                pixels += size
        if group:
            yield group

    def _kept(self, results: Iterable[_T | Skipped]) -> list[_T]:
        kept: list[_T] = []
        for one in results:
            if isinstance(one, Skipped):
                self.skipped.append(one)
            else:
                kept.append(one)
        return kept


def _read(image: Image) -> Unopened | Skipped:
    try:
        content = read_bytes(image)
        # The digest of a PIL image is taken over its pixels, whatever they are encoded as.
        sha256 = digest(image if isinstance(image.content, PILImage.Image) else content)
    except ImageError as error:
        return Skipped(error.source, error.reason)
    return Unopened(image, content, sha256)


def _open(one: Unopened) -> Arrival | Skipped:
    image = one.image
    try:
        pixels = decode(Image(one.content, image.source))
    except ImageError as error:
        return Skipped(error.source, error.reason)
    name = image.id or (image.source if isinstance(image.content, Path) else one.digest[:16])
    return Arrival(name, image.source, pixels, len(one.content), one.digest, image.caption, image.metadata)
