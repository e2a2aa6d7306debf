"""Encoder that keeps every vector in a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.cache import Cache, cache_key
from zsqretrieval._util.checks import check_counts, check_strings
from zsqretrieval.data.images import digest
from zsqretrieval.encoders.checked import check_vectors
from zsqretrieval.protocols import Encoder, truncated
from zsqretrieval.types import Image

T = TypeVar("T")


class CachedEncoder:
    """An :class:`~zsqretrieval.protocols.Encoder` that computes no vector twice.

    An image is identified by the digest of its bytes, wherever they are stored. Keys contain the encoder's
    fingerprint, so one file serves many encoders. Threads may share an instance, processes a file.

    Args:
        encoder: computes the vectors.
        cache: a cache, or the path of its SQLite file, made when missing; None to keep vectors in memory.
        capacity: maximum number of vectors in a cache made here; the oldest are dropped.

    Raises:
        IntegrityError: the file is not a cache, or is damaged.
    """

    def __init__(
        self, encoder: Encoder, cache: Cache | str | Path | None = None, *, capacity: int = 1_000_000
    ) -> None:
        check_counts(capacity=capacity)
        self.encoder = encoder
        if not isinstance(cache, Cache):
            cache = Cache(None if cache is None else Path(cache), capacity=capacity)
        self.cache = cache

    def __repr__(self) -> str:
        return f"CachedEncoder({self.encoder!r})"

    @property
    def dim(self) -> int:
        """Length of every vector."""
        return self.encoder.dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the wrapped encoder: the vectors are the same."""
        return self.encoder.fingerprint

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode images that are not cached; see :meth:`zsqretrieval.protocols.Encoder.encode_image`."""
        names = [f"image {digest(image)}" for image in images]
        return self._encode(self.encoder.encode_image, images, names, batch_size)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        """Encode texts that are not cached; see :meth:`zsqretrieval.protocols.Encoder.encode_text`."""
        check_strings(texts)
        return self._encode(self.encoder.encode_text, texts, [f"text {text}" for text in texts], batch_size)

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Which texts the wrapped encoder cuts; none if it does not tell."""
        return truncated(self.encoder, texts)

    def close(self) -> None:
        """Close the cache; the encoder cannot be used afterwards."""
        self.cache.close()

    def _encode(
        self,
        encode: Callable[..., NDArray[np.float32]],
        items: Sequence[T],
        names: list[str],
        batch_size: int,
    ) -> NDArray[np.float32]:
        keys = [cache_key("vector", self.fingerprint, name) for name in names]
        size = 4 * self.dim
        known = {key: value for key, value in self.cache.get_many(keys).items() if len(value) == size}
        new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        if new:
            vectors = check_vectors(self.encoder, encode(list(new.values()), batch_size=batch_size), len(new))
            made = {key: vector.astype("<f4").tobytes() for key, vector in zip(new, vectors, strict=True)}
            self.cache.put_many(made)
            known |= made
        rows = b"".join(known[key] for key in keys)
        return np.frombuffer(rows, "<f4").astype(np.float32).reshape(len(keys), self.dim)
