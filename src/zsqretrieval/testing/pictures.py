"""Small, distinct pictures without symmetry, for checks of encoders and generators."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image as PILImage

from zsqretrieval.testing.checks import expect
from zsqretrieval.types import Image

# EXIF orientation -> how the camera changed the upright picture before storing it; viewers undo it.
# Source: the Exif standard (JEITA CP-3451), tag 0x0112, "Orientation".
ORIENTATIONS = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_90,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_270,
}


def painting(seed: int, size: tuple[int, int] = (64, 48)) -> PILImage.Image:
    """A field of 4 x 3 random colours around one dominant tint: RGB, ``size`` is (width, height)."""
    rng = np.random.default_rng(seed)
    tint = rng.integers(0, 256, 3)
    fields = ((tint + rng.integers(0, 256, (3, 4, 3))) // 2).astype(np.uint8)
    return PILImage.fromarray(fields).resize(size, PILImage.Resampling.NEAREST)


def paintings(n: int, first_seed: int = 0) -> list[Image]:
    """``n`` different paintings as PNG bytes, in different sizes."""
    return [
        as_image(painting(seed, size=(40 + 8 * (seed % 4), 48)), f"painting {seed}")
        for seed in range(first_seed, first_seed + n)
    ]


def encoded(picture: PILImage.Image, format: str = "PNG", exif: PILImage.Exif | None = None) -> bytes:
    """The picture as a file's bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, format, **({} if exif is None else {"exif": exif}))
    return buffer.getvalue()


def as_image(picture: PILImage.Image, source: str, format: str = "PNG") -> Image:
    """The picture as an undecoded :class:`~zsqretrieval.types.Image`."""
    return Image(encoded(picture, format), source)


def turned(picture: PILImage.Image, orientation: int) -> Image:
    """The picture transposed by the EXIF ``orientation`` (2 to 8), with the tag."""
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    stored = picture.transpose(ORIENTATIONS[orientation])
    return Image(encoded(stored, "PNG", exif), f"painting with EXIF orientation {orientation}")


def colour_modes() -> dict[str, Image]:
    """One painting in common colour modes and formats, by description."""
    picture = painting(7)
    grey = picture.convert("L")
    clear = picture.copy()
    clear.putalpha(grey)
    grey_alpha = PILImage.merge("LA", (grey, grey))
    palette = picture.convert("P", palette=PILImage.Palette.ADAPTIVE)
    deep_grey = PILImage.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    pictures = {
        "a grey PNG": (grey, "PNG"),
        "a grey PNG with alpha": (grey_alpha, "PNG"),
        "a black-and-white PNG": (picture.convert("1"), "PNG"),
        "a palette PNG": (palette, "PNG"),
        "an RGBA PNG": (clear, "PNG"),
        "a 16-bit PNG": (deep_grey, "PNG"),
        "a CMYK JPEG": (picture.convert("CMYK"), "JPEG"),
        "a grey JPEG": (grey, "JPEG"),
        "a WebP": (picture, "WEBP"),
        "a GIF": (palette, "GIF"),
    }
    return {name: as_image(picture, name, format) for name, (picture, format) in pictures.items()}


def broken_images() -> list[Image]:
    """Images that cannot be decoded: no image, an empty, a truncated and a missing file."""
    good = encoded(painting(6, (200, 150)), "JPEG")
    return [
        Image(b"this is no image", "notes-renamed.jpg"),
        Image(b"", "empty.png"),
        Image(good[: len(good) // 2], "half-downloaded.jpg"),
        Image(Path("no-such-folder") / "gone.png", "gone.png"),
    ]


@contextmanager
def unchanged_images() -> Iterator[list[Image]]:
    """Images for a call, which must leave the list and the pixels as they are."""
    picture = painting(8).convert("P")
    images = [Image(picture, "palette picture"), *paintings(2)]
    given, state = list(images), (picture.mode, picture.size, picture.tobytes())
    yield images
    kept = len(images) == len(given) and all(a is b for a, b in zip(images, given, strict=True))
    expect(kept, "the list of images unchanged", "other contents")
    same_pixels = (picture.mode, picture.size, picture.tobytes()) == state
    expect(same_pixels, "the PIL picture unchanged", f"mode {picture.mode}, size {picture.size}")
