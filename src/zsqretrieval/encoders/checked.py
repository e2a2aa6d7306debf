"""Checks of an encoder's answers.

An encoder may be a plugin, so its answers are checked here, and only here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import each, fails, sound
from zsqretrieval.data.refused import each_image, reason
from zsqretrieval.errors import ImageError, InvalidInputError, PartError, ZsqError
from zsqretrieval.protocols import Encoder
from zsqretrieval.types import Image

TOLERANCE = 0.01
"""Largest error of the length of a unit vector: encoders that compute in 16 bits are this exact."""

Row = NDArray[np.float32]


def encode_images(encoder: Encoder, images: Sequence[Image]) -> NDArray[np.float32]:
    """Encode images: float32 [n, dim]; see :meth:`zsqretrieval.protocols.Encoder.encode_image`.

    Raises:
        ImageError: an image cannot be decoded, or this encoder cannot take it; names it.
        PartError: the answer breaks the contract.
    """
    return _stacked(encoder, sound(encode_each(encoder, images), ImageError))


def encode_each(encoder: Encoder, images: Sequence[Image], *, batch_size: int = 32) -> list[Row | ImageError]:
    """Encode images, with an error in the place of those that cannot be.

    An image that fails alone is at fault if the encoder can take a plain picture; else its error is raised.
    """

    def call(some: list[Image]) -> NDArray[np.float32]:
        return check_vectors(encoder, encoder.encode_image(some, batch_size=batch_size), len(some))

    return each_image(_name(encoder), call, images)


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.float32]:
    """Encode texts: float32 [n, dim]; see :meth:`zsqretrieval.protocols.Encoder.encode_text`.

    Raises:
        InvalidInputError: this encoder cannot take a text; names it.
        PartError: the answer breaks the contract.
    """
    return _stacked(encoder, sound(encode_each_text(encoder, texts), InvalidInputError))


def encode_each_text(encoder: Encoder, texts: Sequence[str]) -> list[Row | InvalidInputError]:
    """Encode texts, with an error in the place of those that this encoder cannot take.

    A text that fails alone is at fault if the encoder can take a short one; else its error is raised.
    """

    def call(some: list[str]) -> NDArray[np.float32]:
        return check_vectors(encoder, encoder.encode_text(some), len(some))

    def blame(text: str, error: Exception) -> InvalidInputError | None:
        if fails(call, ["a"]):
            return None
        named = InvalidInputError(f"{_name(encoder)} cannot take the text {text[:200]!r}: {reason(error)}")
        named.__cause__ = error
        return named

    return each(call, texts, blame)


def check_vectors(encoder: Encoder, vectors: object, count: int) -> NDArray[np.float32]:
    """Check n vectors of an encoder, and return them as float32 [n, dim].

    Raises:
        PartError: not n rows of dim floating-point numbers, or not of unit length.
        ZsqError: a vector is zero or not finite, which may be due to its item.
    """
    if not isinstance(vectors, np.ndarray) or vectors.dtype.kind != "f":
        shown = vectors.dtype if isinstance(vectors, np.ndarray) else type(vectors).__name__
        raise _broken(encoder, f"{shown}, not a float32 array")
    if vectors.shape != (count, encoder.dim):
        raise _broken(encoder, f"vectors of shape {list(vectors.shape)}, not {[count, encoder.dim]}")
    with np.errstate(over="ignore"):
        rows = vectors.astype(np.float32, copy=False)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise ZsqError(
            f"{_name(encoder)} gave a vector that is zero or not finite: its weights are damaged, or its "
            "numbers overflow"
        )
    if (np.abs(lengths - 1) > TOLERANCE).any():
        raise _broken(encoder, f"a vector of length {lengths[np.argmax(np.abs(lengths - 1))]:.4g}, not 1")
    return rows


def _stacked(encoder: Encoder, rows: list[Row]) -> NDArray[np.float32]:
    return np.stack(rows) if rows else np.empty((0, encoder.dim), np.float32)


def _name(encoder: Encoder) -> str:
    return f"the encoder {type(encoder).__name__}"


def _broken(encoder: Encoder, what: str) -> PartError:
    return PartError(
        f"{_name(encoder)} gave {what}; it breaks its contract, which "
        "zsqretrieval.testing.check_encoder checks"
    )
