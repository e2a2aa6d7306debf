"""Loading images for an album: read, hash and decode in threads, batch by batch.

The bytes are read once, so the decoded image is the hashed one even if the file changes in between.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage
from typing_extensions import Self

from zsqretrieval.data.images import decode, digest, read_bytes
from zsqretrieval.errors import ImageError, ZsqError
from zsqretrieval.types import Image

_PIXELS_AT_ONCE = 64_000_000  # decoded images held in memory together: 192 MB of RGB


@dataclass(frozen=True, slots=True)
class Skipped:
    """An image that was left out: where it came from, and why."""

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


@final
class Loader:
    """Reads and decodes images on a few threads; with ``copy``, each has its encoded bytes.

    Attributes:
        repeated: number of decoded images that an earlier one of the same batch equals.
        skipped: images that cannot be read or decoded.
    """

    def __init__(self, images: Iterator[Image], batch_size: int, *, copy: bool = False) -> None:
        self._read = partial(_read, copy=copy)
        self.repeated = 0
        self.skipped: list[Skipped] = []
        self._images = images
        self._batch_size = batch_size
        self._threads = min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads)

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
        try:
            for image in self._images:
                batch.append(image)
                if len(batch) == self._batch_size:
                    yield batch
                    batch = []
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
        different = [same[0] for same in alike.values()]
        group: list[NewImage] = []
        pixels = 0
        for start in range(0, len(different), self._threads):
            some = different[start : start + self._threads]
            for one, error in zip(some, self._pool.map(_decode, some), strict=True):
                same = alike[one.digest]
                if error is not None:
                    self.skipped += [Skipped(image.source, error.reason) for image in same]
                    continue
                self.repeated += len(same) - 1
                if group and pixels + one.width * one.height > _PIXELS_AT_ONCE:
                    yield group
                    group, pixels = [], 0
                group.append(one)
                pixels += one.width * one.height
        yield group


def _read(image: Image, *, copy: bool) -> NewImage | Skipped:
    try:
        content: bytes | PILImage.Image
        if isinstance(image.content, PILImage.Image):
            content = decode(image)  # identified by its pixels, not by an encoding
            encoded = read_bytes(content)
        else:
            content = encoded = read_bytes(image)
    except ImageError as error:
        return Skipped(error.source, error.reason)
    sha256 = digest(content)
    return NewImage(
        id=image.id or (image.source if isinstance(image.content, Path) else sha256[:16]),
        source=image.source,
        bytes=len(encoded),
        digest=sha256,
        caption=image.caption,
        metadata=image.metadata,
        image=Image(content, image.source),
        encoded=encoded if copy or not isinstance(image.content, Path) else None,
    )


def _decode(one: NewImage) -> ImageError | None:
    assert one.image is not None
    try:
        pixels = one.image.content
        if not isinstance(pixels, PILImage.Image):
            pixels = decode(one.image)
    except ImageError as error:
        return error
    one.image = Image(pixels, one.source)
    one.width, one.height = pixels.size
    return None
