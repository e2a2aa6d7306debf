"""Thumbnails in the format that a browser likes best, kept on disk.

The file is the user's, not the album's: an album made by somebody else cannot bring pictures of its own.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Literal, TypeAlias, final

from PIL import Image as PILImage
from PIL import features

from zsqretrieval._util.cache import Cache, cache_key
from zsqretrieval.album.catalog import Record
from zsqretrieval.data.images import decode
from zsqretrieval.errors import IntegrityError
from zsqretrieval.retriever import Retriever

Format: TypeAlias = Literal["AVIF", "WEBP", "JPEG"]

_MOST = 50_000  # about 1 GB
_SETTINGS: dict[Format, dict[str, int]] = {
    "AVIF": {"quality": 60, "speed": 9},
    "WEBP": {"quality": 78, "method": 1},
    "JPEG": {"quality": 78},
}


def preferred(accept: str) -> Format:
    """The best format that an Accept header names."""
    if "image/avif" in accept and features.check("avif"):
        return "AVIF"
    return "WEBP" if "image/webp" in accept or "*/*" in accept else "JPEG"


def encoded(pixels: PILImage.Image, side: int, format: Format) -> bytes:
    """A picture of at most ``side`` pixels per side."""
    shrunk = pixels.copy()
    shrunk.thumbnail((side, side), PILImage.Resampling.LANCZOS)
    buffer = io.BytesIO()
    shrunk.save(buffer, format, **_SETTINGS[format])
    return buffer.getvalue()


@final
class Thumbnails:
    """Thumbnails of the images of an album; in memory if the file cannot be used."""

    def __init__(self, retriever: Retriever, path: Path | None) -> None:
        self._retriever = retriever
        try:
            self._cache = Cache(path and path / "thumbnails.sqlite", capacity=_MOST)
        except (OSError, IntegrityError):
            self._cache = Cache(capacity=_MOST // 10)

    def make(self, record: Record, side: int, format: Format) -> bytes:
        """Make or look up a thumbnail of at most ``side`` pixels per side; errors as of a decoder."""
        key = cache_key(record.digest, str(side), format)
        found = self._cache.get_many([key]).get(key)
        if found is None:
            with self._retriever.files() as files:
                image = files.open(record.source, record.digest)
            found = encoded(decode(image, size_hint=side), side, format)
            with contextlib.suppress(IntegrityError):  # such as of a full disk: made again next time
                self._cache.put_many({key: found})
        return found
