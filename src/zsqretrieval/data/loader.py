"""From a stream of image records to decoded images, batch by batch; what cannot be read is set aside, named.

Bytes are read once, so that what is hashed is what is decoded, even if the file changes meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar, final

from PIL import Image as PILImage
from typing_extensions import Self

from zsqretrieval.data.images import decode, digest, read_bytes
from zsqretrieval.errors import ImageError, ZsqError
from zsqretrieval.types import Image

__all__ = ["Arrival", "Intake", "Label", "Skipped"]

_T = TypeVar("_T")

_PIXELS_AT_ONCE = 64_000_000  # decoded images held in memory together: 192 MB of RGB


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out: where it came from and why."""

    source: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """What an image is called, and what came with it.

    Attributes:
        id: the record's own id, else the source of a file, else the beginning of the digest.
        source: where it came from.
        digest: SHA-256 in hexadecimal.
        caption: text that came with it, or None.
        metadata: free JSON facts.
    """

    id: str
    source: str
    digest: str
    caption: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A decoded image and everything that is to be written down about it.

    Attributes:
        label: what it is called.
        pixels: upright RGB.
        bytes: size of the encoded image.
    """

    label: Label
    pixels: PILImage.Image
    bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class _Unopened:
    """An image and its encoded bytes."""

    label: Label
    content: bytes


@final
class Intake:
    """Reads and decodes on a few threads and keeps count.

    Args:
        images: the records, described but not opened.
        batch_size: records read together.
        known: of some digests, those that need not be decoded.

    Attributes:
        repeated: how many records are the same image as an earlier one of their batch.
        skipped: those that cannot be read or decoded, with the reason.
    """

    def __init__(
        self, images: Iterator[Image], batch_size: int, known: Callable[[list[str]], Container[str]]
    ) -> None:
        self.repeated = 0
        self.skipped: list[Skipped] = []
        self._images = images
        self._batch_size = batch_size
        self._known = known
        self._threads = min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[tuple[list[Label], list[Arrival]]]:
        """What is known, and decoded images in order, at most ``batch_size`` together, fewer when large.

        Either may be empty. Errors of ``images`` are raised after what came before them.
        """
        for batch in self._batches():
            unopened = self._kept(self._map(_read, batch))
            known = self._known([one.label.digest for one in unopened])
            labels = [one.label for one in unopened if one.label.digest in known]
            for arrivals in self._decoded([one for one in unopened if one.label.digest not in known]):
                yield labels, arrivals
                labels = []

    def _batches(self) -> Iterator[list[Image]]:
        batch: list[Image] = []
        try:
            for image in self._images:
                batch.append(image)
                if len(batch) == self._batch_size:
                    yield batch
                    batch = []
        except ZsqError:  # a damaged tar, for instance
            yield batch
            raise
        if batch:
            yield batch

    def _decoded(self, images: Sequence[_Unopened]) -> Iterator[list[Arrival]]:
        """Decode in order, in groups of different images whose pixels together stay within bounds."""
        group: dict[str, Arrival] = {}
        pixels = 0
        for start in range(0, len(images), self._threads):
            for one in self._kept(self._pool.map(_open, images[start : start + self._threads])):
                size = one.pixels.width * one.pixels.height
                if one.label.digest in group:
                    self.repeated += 1
                    continue
                if pixels + size > _PIXELS_AT_ONCE:
                    yield list(group.values())
                    group, pixels = {}, 0
                group[one.label.digest] = one
                pixels += size
        yield list(group.values())

    def _map(self, read: Callable[[Image], _T], batch: Sequence[Image]) -> Iterable[_T]:
        # A PIL image loads its file when first read, which must not happen in two threads at once.
        in_memory = any(isinstance(image.content, PILImage.Image) for image in batch)
        return map(read, batch) if in_memory else self._pool.map(read, batch)

    def _kept(self, results: Iterable[_T | Skipped]) -> list[_T]:
        kept: list[_T] = []
        for one in results:
            if isinstance(one, Skipped):
                self.skipped.append(one)
            else:
                kept.append(one)
        return kept


def _read(image: Image) -> _Unopened | Skipped:
    try:
        content = read_bytes(image)
        # The digest of a PIL image is taken over its pixels, whatever they are encoded as.
        sha256 = digest(image if isinstance(image.content, PILImage.Image) else content)
    except ImageError as error:
        return Skipped(error.source, error.reason)
    name = image.id or (image.source if isinstance(image.content, Path) else sha256[:16])
    return _Unopened(Label(name, image.source, sha256, image.caption, image.metadata), content)


def _open(one: _Unopened) -> Arrival | Skipped:
    try:
        pixels = decode(Image(one.content, one.label.source))
    except ImageError as error:
        return Skipped(error.source, error.reason)
    return Arrival(one.label, pixels, len(one.content))
