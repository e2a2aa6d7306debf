"""Why a model fails for an image: its fault or the image's.

A model that also fails for a plain picture is broken, misused, or out of reach; no image is to blame.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache

from PIL import Image as PILImage

from zsqretrieval.errors import ImageError, ZsqError
from zsqretrieval.types import Image, ImageState

_SIDE = 64  # pixels


@cache
def _plain(encoded: bool) -> Image:
    picture = PILImage.new("RGB", (_SIDE, _SIDE), (127, 127, 127))
    if not encoded:
        return Image(picture, "<plain picture>")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Image(buffer.getvalue(), "<plain picture>")


def plain(image: Image | ImageState) -> Image:
    """A grey picture to put in the place of an image: decoded if that is, else a file's bytes."""
    return _plain(not (isinstance(image, Image) and isinstance(image.content, PILImage.Image)))


def reason(error: Exception) -> str:
    """What an error says, with its type if it is not one of this library's or a ValueError."""
    if isinstance(error, ImageError):
        return error.reason
    own = isinstance(error, ZsqError | ValueError)
    return str(error) if own else f"{type(error).__name__}: {error}"


def blame_image(part: str, call: Callable[[Image], object], image: Image, error: Exception) -> ImageError:
    """Name the image for which a call fails, after trying a plain picture.

    Args:
        part: what was called, such as ``the encoder CLIPEncoder``.
        call: for one image.
        image: for which it has failed.
        error: with which it has failed; raised again if the plain picture fails as well.
    """
    if isinstance(error, ImageError):
        return ImageError(image.source, error.reason)
    try:
        call(plain(image))
    except Exception:  # whatever it is, no image is to blame
        raise error from None
    named = ImageError(image.source, f"{part} cannot take it: {reason(error)}")
    named.__cause__ = error
    return named
