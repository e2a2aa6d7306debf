"""Loading images for an album: read, hash and decode in threads, batch by batch.

The bytes are read once, so the decoded image is the hashed one even if the file changes in between.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from typing_extensions import Self

from zsqretrieval._util.untrusted import mended_json
from zsqretrieval.data.images import (
    BYTES_AT_ONCE,
    DECODERS,
    MOST_PIXELS,
    decode,
    decode_with_exif,
    digest,
    dimensions,
    read_bytes,
)
from zsqretrieval.errors import ImageError, ZsqError
from zsqretrieval.types import MAX_PIXELS, Image

_PIXELS_AT_ONCE = 64_000_000  # decoded images held in memory together: 192 MB of RGB
_LARGE = 16 * 2**20  # bytes of a file whose header is examined before all of it is read


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out, or something of it: where it came from, and why."""

    source: str
    reason: str


@dataclass(slots=True, eq=False)
class NewImage:
    """An image on its way into an album. Reading, decoding and encoding fill in its fields."""

    id: str  # the record's own, else the path of a file, else the start of the digest
    source: str  # where the image came from
    bytes: int  # size of the encoded image
    digest: str  # SHA-256 in hexadecimal
    caption: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON values, without NaN and infinity
    image: Image | None = None  # with encoded bytes after reading, with upright RGB pixels after decoding
    encoded: builtins.bytes | None = None  # of an image that is no file, or to be copied
    width: int = 0  # pixels, after decoding
    height: int = 0
    vector: NDArray[np.float32] | None = None  # [dim], finite, not zero; after encoding
    notes: tuple[str, ...] = ()  # what was replaced in caption and metadata
    exif: Mapping[str, Any] = field(default_factory=dict)  # further metadata, after decoding


@final
class Loader:
    """Reads and decodes images on a few threads: with ``copy`` also their encoded bytes, with ``exif`` EXIF.

    Without EXIF, ``size_hint`` is that of :func:`~zsqretrieval.data.images.decode`.
    Some 256 MiB of encoded images and 64 million decoded pixels are in memory together, or one larger image.

    Attributes:
        repeated: number of decoded images that an earlier one of the same batch equals.
        skipped: images that cannot be read or decoded.
        mended: decoded images of whose caption or metadata something was replaced, and what.
    """

    def __init__(
        self,
        images: Iterator[Image | ImageError],
        batch_size: int,
        max_pixels: int = MAX_PIXELS,
        *,
        copy: bool = False,
        exif: bool = True,
        size_hint: int | None = None,
    ) -> None:
        self._copy, self._exif, self._size_hint = copy, exif, size_hint
        self.repeated = 0
        self.skipped: list[Skipped] = []
        self.mended: list[Skipped] = []
        self._max_pixels = min(max_pixels, MOST_PIXELS)
        self._images = images
        self._batch_size = batch_size
        self._pool = ThreadPoolExecutor(DECODERS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __iter__(self) -> Iterator[list[NewImage]]:
        """Read and hash ``batch_size`` images at a time. An error of ``images`` comes after its batch."""
        for batch in self._batches():
            # A PIL image loads its file on first use, which must not happen in two threads at once.
            in_memory = any(isinstance(image.content, PILImage.Image) for image in batch)
            read = list(map(self._read, batch) if in_memory else self._pool.map(self._read, batch))
            self.skipped += [one for one in read if isinstance(one, Skipped)]
            yield [one for one in read if not isinstance(one, Skipped)]

    def _batches(self) -> Iterator[list[Image]]:
        batch: list[Image] = []
        held = 0
        try:
            for image in self._images:
                if isinstance(image, ImageError):
                    self.skipped.append(Skipped(image.source, image.reason))
                    continue
                size = _encoded_size(image)
                if batch and held + size > BYTES_AT_ONCE:
                    yield batch
                    batch, held = [], 0
                batch.append(image)
                held += size
                if len(batch) == self._batch_size:
                    yield batch
                    batch, held = [], 0
        except ZsqError:  # for instance a damaged tar
            yield batch
            raise
        if batch:
            yield batch

    def decoded(self, batch: Sequence[NewImage]) -> Iterator[list[NewImage]]:
        """Decode images of one batch, each digest once, in order; in groups whose pixels fit into memory."""
        alike: dict[str, list[NewImage]] = {}
        for one in batch:
            alike.setdefault(one.digest, []).append(one)
        waiting = self._sound(_measure, [same[0] for same in alike.values()], alike)
        while True:
            pixels = np.cumsum([one.width * one.height for one in waiting])
            count = max(1, int((pixels <= _PIXELS_AT_ONCE).sum()))
            group = self._sound(self._decode, waiting[:count], alike)
            self.repeated += sum(len(alike[one.digest]) - 1 for one in group)
            self.mended += [Skipped(one.source, "; ".join(one.notes)) for one in group if one.notes]
            yield group
            waiting = waiting[count:]
            if not waiting:
                return

    def _sound(
        self,
        step: Callable[[NewImage], None],
        images: Sequence[NewImage],
        alike: Mapping[str, Sequence[NewImage]],
    ) -> list[NewImage]:
        """Take a step with every image; those that fail, and their copies, are skipped."""

        def fault(one: NewImage) -> ImageError | None:
            try:
                step(one)
            except ImageError as error:
                return error
            return None

        faults = list(self._pool.map(fault, images))
        for one, error in zip(images, faults, strict=True):
            if error is not None:
                self.skipped += [Skipped(image.source, error.reason) for image in alike[one.digest]]
        return [one for one, error in zip(images, faults, strict=True) if error is None]

    def _read(self, image: Image) -> NewImage | Skipped:
        record = Image(image.content, image.source, max_pixels=self._max_pixels)
        exif: Mapping[str, Any] = {}
        try:
            if isinstance(image.content, PILImage.Image):
                # Identified by its pixels, not by an encoding.
                pixels, exif = decode_with_exif(record)
                record = replace(record, content=pixels)
            elif isinstance(image.content, Path) and _encoded_size(image) > _LARGE:
                dimensions(record)
            content = read_bytes(record)
            if isinstance(image.content, Path):
                record = replace(record, content=content)
        except ImageError as error:
            return Skipped(error.source, error.reason)
        sha256 = digest(record)
        caption, of_caption = mended_json(image.caption)
        metadata, of_metadata = mended_json(dict(image.metadata))
        return NewImage(
            id=image.id or (image.source if isinstance(image.content, Path) else sha256[:16]),
            source=image.source,
            bytes=len(content),
            digest=sha256,
            caption=caption,
            metadata=metadata,
            image=record,
            encoded=content if self._copy or not isinstance(image.content, Path) else None,
            notes=(*image.notes, *of_caption, *of_metadata),
            exif=exif if self._exif else {},
        )

    def _decode(self, one: NewImage) -> None:
        assert one.image is not None
        if not isinstance(one.image.content, PILImage.Image):
            if self._exif:
                pixels, one.exif = decode_with_exif(one.image)
            else:
                pixels = decode(one.image, size_hint=self._size_hint)
            one.image = replace(one.image, content=pixels)
        assert isinstance(one.image.content, PILImage.Image)
        one.width, one.height = one.image.content.size


def _encoded_size(image: Image) -> int:
    """Bytes of an image before it is decoded; 0 for a file that cannot be examined."""
    if isinstance(image.content, bytes):
        return len(image.content)
    if isinstance(image.content, PILImage.Image):
        return 3 * image.content.width * image.content.height
    try:
        return image.content.stat().st_size
    except (OSError, ValueError):
        return 0


def _measure(one: NewImage) -> None:
    assert one.image is not None
    one.width, one.height = dimensions(one.image)
