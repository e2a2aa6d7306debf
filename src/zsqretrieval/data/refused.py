"""Why a model fails for an image: its fault or the image's.

A model that also fails for a plain picture is broken, misused, or out of reach; no image is to blame.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TypeVar

from zsqretrieval._util.batches import each, fails
from zsqretrieval.errors import ImageError, ZsqError
from zsqretrieval.types import Image, ImageState

T = TypeVar("T")

_SIDE = 64  # pixels


@cache
def _plain(encoded: bool) -> Image:
    from PIL import Image as PILImage  # presets, which need no images, import this module

    picture = PILImage.new("RGB", (_SIDE, _SIDE), (127, 127, 127))
    if not encoded:
        return Image(picture, "<plain picture>")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return Image(buffer.getvalue(), "<plain picture>")


def plain(image: Image | ImageState) -> Image:
    """A grey picture to put in the place of an image: decoded if that is, else a file's bytes."""
    return _plain(isinstance(image, ImageState) or isinstance(image.content, (bytes, Path)))


def reason(error: Exception) -> str:
    """What an error says, with its type if it is not one of this library's or a ValueError."""
    if isinstance(error, ImageError):
        return error.reason
    own = isinstance(error, ZsqError | ValueError)
    return str(error) if own else f"{type(error).__name__}: {error}"


def each_image(
    part: str, call: Callable[[list[Image]], Iterable[T]], images: Iterable[Image]
) -> list[T | ImageError]:
    """Call a model on n images, with an error in the place of those that it cannot take.

    Args:
        part: what is called, such as ``the encoder CLIPEncoder``.
        call: for some images. If it also fails for a plain picture, its error is raised.
        images: n images.
    """

    def blame(image: Image, error: Exception) -> ImageError | None:
        if isinstance(error, ImageError):
            return ImageError(image.source, error.reason)
        if fails(call, [plain(image)]):
            return None
        named = ImageError(image.source, f"{part} cannot take it: {reason(error)}")
        named.__cause__ = error
        return named

    return each(call, images, blame)
