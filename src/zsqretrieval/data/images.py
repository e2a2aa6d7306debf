"""Image decoding: from a file, bytes or a PIL image to upright RGB pixels."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar

import numpy as np
from PIL import Image as PILImage
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.optional import import_optional
from zsqretrieval.data.exif import read_exif
from zsqretrieval.errors import ImageError, InvalidInputError, MissingDependencyError
from zsqretrieval.types import MAX_PIXELS, Image

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | PILImage.Image | Image
"""An image argument: a path, encoded bytes, a PIL image, or an :class:`~zsqretrieval.types.Image` record."""

MOST_PIXELS = 2**30
"""Largest size limit in pixels for the images of an album; it holds when they are opened again."""

MAX_BYTES = 2**30
"""Size limit of an encoded image in bytes."""

BYTES_AT_ONCE = 256 * 2**20
"""Encoded images that are held in memory together, in bytes."""

DECODERS = 4
"""Threads that decode for a model."""

S = TypeVar("S")
T = TypeVar("T")


def as_image(x: ImageLike) -> Image:
    """Describe an image without opening it. Paths are made absolute, so they still work from another folder.

    Raises:
        InvalidInputError: ``x`` has another type, is a URL, or is a record with other content or metadata.
    """
    if isinstance(x, Image):
        if not isinstance(x.content, bytes | Path | PILImage.Image) or not isinstance(x.source, str):
            raise InvalidInputError(
                "an Image record holds bytes, a pathlib.Path or a PIL image, and its source as a str, not "
                f"{type(x.content).__name__} and {type(x.source).__name__}; make one of a path with as_image"
            )
        if not isinstance(x.metadata, Mapping):
            raise InvalidInputError(
                f"the metadata of {x.source} must be a mapping such as {{'year': 1999}}, not {x.metadata!r}"
            )
        return x
    if isinstance(x, bytes):
        return Image(x, "<bytes>")
    if isinstance(x, PILImage.Image):
        name = getattr(x, "filename", "")
        return Image(x, path_text(Path(os.fsdecode(name)).absolute()) if name else "<PIL image>")
    if isinstance(x, (str, os.PathLike)):
        path = Path(x).absolute()
        if _URL.match(os.fspath(x)) and not os.path.lexists(path):
            raise InvalidInputError(
                f"{x} is a URL, and this library never downloads: fetch the file, then give its path or its "
                "bytes"
            )
        return Image(path, path_text(path))
    raise InvalidInputError(
        f"an image must be a path, encoded bytes, a PIL image or an Image record, not {type(x).__name__}"
        " (convert an array with PIL.Image.fromarray)"
    )


# pathlib drops the second slash; a drive has one letter
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|data:")


def path_text(path: str | bytes | os.PathLike[Any]) -> str:
    r"""A path as Unicode: bytes that are not UTF-8 become ``\xNN``, other paths are as they are.

    A ``\`` that stands before ``xNN`` in the name itself becomes ``\x5c``, so that no two paths share a text.
    """
    name = os.fsdecode(path)
    if os.sep == "/":
        name = _LIKE_ESCAPED.sub(r"\\x5c", name)
    try:
        return os.fsencode(name).decode("utf-8", errors="backslashreplace")
    except UnicodeEncodeError:  # no file has such a name
        return name.encode(errors="backslashreplace").decode()


_LIKE_ESCAPED = re.compile(r"\\(?=x[0-9a-f]{2})")


# --- pixels ---------------------------------------------------------------------------------------------


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Skip the resolution: Pillow warns about damaged EXIF when it looks for it."""


class _Tiff(TiffImageFile):
    def load_prepare(self) -> None:
        """Skip Pillow's own limit, which holds for the whole process."""
        if self._im is None:
            self.im = PILImage.new(self.mode, (self.tag_v2[256], self.tag_v2[257]), None).im
        ImageFile.load_prepare(self)


_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _brands(head: bytes) -> set[bytes]:
    """The brands of a file of the MP4 family, from its first box."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}


def _heif(file: IO[bytes]) -> ImageFile:
    install = "pip install 'zsqretrieval[heif]'"
    heif = import_optional("pillow_heif", "reading HEIC images", install, package="pillow-heif")
    opened: ImageFile = heif.HeifImageFile(file)
    return opened


# Not PIL.Image.open: it also tries formats that run other programs (EPS), and its size limit holds for the
# whole process and warns before it refuses.
_DECODERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[IO[bytes]], ImageFile]], ...] = (
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), _Jpeg),
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImageFile),
    ("WebP", lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", WebPImageFile),
    ("GIF", lambda head: head.startswith((b"GIF87a", b"GIF89a")), GifImageFile),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImageFile),
    ("TIFF", lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _Tiff),
    ("AVIF", lambda head: not _AVIF.isdisjoint(_brands(head)), AvifImageFile),
    ("HEIC", lambda head: not _HEIF.isdisjoint(_brands(head)), _heif),
)

_UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}

# Pillow warns of damaged tags in a TIFF and of animated PNGs without frames, and decodes them or raises.
warnings.filterwarnings("ignore", module=r"PIL\.(Png|Tiff)ImagePlugin")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors are printed

# Usual ranges of pixels deeper than 8 bits, smallest first.
_RANGES = {"I": (255, 65535), "F": (1, 255, 65535)}


def decode(
    image: ImageLike, *, max_pixels: int | None = None, size_hint: int | None = None
) -> PILImage.Image:
    """Decode an image to upright 8-bit RGB pixels: a new PIL image of mode RGB without metadata.

    Decodes JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF in every colour mode of Pillow, and HEIC with the extra
    ``heif``. Applies the EXIF orientation, takes the first frame of an animation or a document, and puts
    transparent images on white. Grey deeper than 8 bits is scaled, not clipped: 16-bit pixels by 255/65535;
    integer and float pixels from the smallest of the ranges 0..1 (floats only), 0..255, 0..65535 that holds
    them all, else from their own minimum and maximum. Colour profiles are not applied.

    Args:
        image: the image; a PIL image is not changed.
        max_pixels: size limit, compared with the header before memory is allocated; the record's when None,
            200 million unless it says otherwise. Encoded images are limited to 1 GiB.
        size_hint: the caller will shrink the shorter side to about this many pixels. A JPEG is then decoded
            at 1/2, 1/4 or 1/8 of its size if both sides stay at least this long: much faster, with
            slightly different pixels than decoding in full.

    Raises:
        ImageError: missing, empty, truncated, too large, or not an image; names it and the reason.
        InvalidInputError: ``max_pixels`` or ``size_hint`` is below 1.
    """
    check_counts(or_none=True, max_pixels=max_pixels, size_hint=size_hint)
    record = as_image(image)
    with _header(record, max_pixels) as original:
        if size_hint is not None and original is not record.content:
            original.draft(None, (size_hint, size_hint))
        # Decode before reading the orientation: in a PNG it may come after the pixels.
        return _upright(_to_rgb(original), original)


def decode_with_exif(image: Image) -> tuple[PILImage.Image, dict[str, str | float]]:
    """As :func:`decode`, with what :func:`~zsqretrieval.data.exif.read_exif` finds."""
    with _header(image) as original:
        exif = read_exif(original) if isinstance(original, TiffImageFile) else {}  # while its file is open
        pixels = _to_rgb(original)
        return _upright(pixels, original), exif or read_exif(original)


def dimensions(image: ImageLike) -> tuple[int, int]:
    """Width and height in pixels from the header of an image, before its orientation is applied.

    Raises:
        ImageError: as :func:`decode`, as far as the header shows it.
    """
    with _header(as_image(image)) as original:
        return original.size


@contextmanager
def _header(record: Image, max_pixels: int | None = None) -> Iterator[PILImage.Image]:
    """Open an image and check its size; its pixels are not decoded yet."""
    limit = record.max_pixels if max_pixels is None else max_pixels
    if isinstance(record.content, PILImage.Image):
        with _named(record.source, record.content.format or "PIL"):
            _check_size(record.source, record.content, limit)
            yield record.content
        return
    with _encoded(record) as file:
        name, decoder = _decoder(record.source, file.read(64))
        file.seek(0)
        with _named(record.source, name), decoder(file) as encoded:
            _check_size(record.source, encoded, limit)
            yield encoded


def format_of(image: ImageLike) -> str:
    """Format of an encoded image by its first bytes: ``"JPEG"``, ``"PNG"``, ``"WebP"`` and so on.

    Raises:
        ImageError: it cannot be opened, or is no image in a supported format.
    """
    record = as_image(image)
    with _encoded(record) as file:
        return _decoder(record.source, file.read(64))[0]


def in_threads(function: Callable[[S], T], images: Sequence[S]) -> list[T]:
    """Apply a function that opens images on a few threads: Pillow releases the interpreter lock."""
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        return list(pool.map(function, images))


def trimmed(picture: PILImage.Image) -> PILImage.Image:
    """Cut the far ends off a picture whose sides are more than 16 : 1.

    For models that resize the shorter side and crop the middle square: resizing all of a 1 x 10,000 strip
    takes gigabytes.
    """
    width, height = picture.size
    limit = 16 * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    if not left and not top:
        return picture
    box = (left, top, width - left, height - top)
    # Not crop, which has a limit of its own.
    return picture.transform((box[2] - left, box[3] - top), PILImage.Transform.EXTENT, box)


@contextmanager
def _named(source: str, format: str) -> Iterator[None]:
    """Turn any exception of a decoder into an ImageError; damaged bytes raise many types."""
    try:
        yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(source, f"not enough memory for this {format} image") from error
    except MissingDependencyError as error:
        raise ImageError(source, str(error)) from error
    except Exception as error:
        raise ImageError(source, f"damaged {format} image: {error or type(error).__name__}") from error


@contextmanager
def _encoded(image: Image) -> Iterator[IO[bytes]]:
    """Open the encoded bytes of a record that does not hold a PIL image."""
    if isinstance(image.content, bytes):
        yield io.BytesIO(image.content)
        return
    assert isinstance(image.content, Path)
    with opened(image.content, image.source) as file:
        yield file


@contextmanager
def opened(path: Path, source: str, limit: int = MAX_BYTES) -> Iterator[IO[bytes]]:
    """Open a regular file of at most ``limit`` bytes.

    Raises:
        ImageError: there is no such file, or it cannot be read within the block; names ``source``.
    """
    try:
        status = path.stat()
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # a folder that cannot be listed: report that reason
        # Opening a pipe would wait for ever, and reading some files of the system, which say they are empty.
        file: IO[bytes] | None = None
        if stat.S_ISREG(mode):
            file = path.open("rb") if status.st_size else io.BytesIO()
    except FileNotFoundError as error:
        raise ImageError(source, "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(source, f"cannot be opened: {reason}") from error
    if file is None:
        raise ImageError(source, "is a folder or a device, not a file")
    with file:
        check_bytes(source, status.st_size, limit)
        try:
            yield file
        except (OSError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
            raise ImageError(source, f"cannot be read: {reason}") from error


def check_bytes(source: str, size: int, limit: int = MAX_BYTES) -> None:
    """Raise an ImageError if something has more bytes than the limit."""
    if size > limit:
        raise ImageError(source, f"too large: {size} bytes, the limit is {limit}")


def _decoder(source: str, head: bytes) -> tuple[str, Callable[[IO[bytes]], ImageFile]]:
    """Name and decoder of a format, by the first bytes of a file."""
    if not head:
        raise ImageError(source, "the file is empty")
    for name, matches, decoder in _DECODERS:
        if matches(head):
            return name, decoder
    names = ", ".join(name for name, _, _ in _DECODERS)
    raise ImageError(source, f"not an image in a supported format ({names})")


def _check_size(source: str, image: PILImage.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(source, f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        size = f"too large: {width} x {height} is {width * height} pixels, the limit is {max_pixels}"
        remedy = "make a smaller copy, or raise max_pixels (--max-pixels) if you trust it"
        raise ImageError(source, f"{size}; {remedy}")


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode in _RANGES or image.mode.startswith("I;16"):
        image = _to_grey(image)
    if image.mode == "La":  # premultiplied; Pillow converts it to LA only
        image = image.convert("LA")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _to_grey(image: PILImage.Image) -> PILImage.Image:
    """Scale deep grey pixels to 8 bits (mode L); a transparent level becomes white."""
    pixels = np.asarray(image)
    # Some rows at a time: float64 takes up to four times the memory of the pixels, and several copies.
    parts = [pixels[row : row + 64] for row in range(0, len(pixels), 64)]
    extremes = [(some.min(), some.max()) for part in parts if (some := part[np.isfinite(part)]).size]
    low = min((float(low) for low, _ in extremes), default=0.0)
    high = max((float(high) for _, high in extremes), default=0.0)
    ceilings = [top for top in _RANGES.get(image.mode, (65535,)) if low >= 0 and high <= top]
    if ceilings:
        low, high = 0.0, float(ceilings[0])
    grey = np.empty(pixels.shape, np.uint8)
    for part, scaled in zip(parts, np.split(grey, range(64, len(grey), 64)), strict=True):
        values = np.nan_to_num(part.astype(np.float64), nan=low, posinf=high, neginf=low)
        scaled[:] = np.rint((values - low) / (high - low or 1.0) * 255)
        scaled[part == image.info.get("transparency", np.nan)] = 255
    return PILImage.fromarray(grey)


def _upright(pixels: PILImage.Image, original: PILImage.Image) -> PILImage.Image:
    """Apply the EXIF orientation of ``original`` to ``pixels``. Pillow has already done so for a TIFF."""
    method = _UPRIGHT.get(_orientation(original.info.get("exif") or b""))
    if method is not None:
        pixels = pixels.transpose(method)
    pixels.info = {}  # otherwise decoding the result would turn it again
    return pixels


def _orientation(exif: bytes) -> int:
    """The orientation of an EXIF block, 1 (upright) to 8. Pillow's reader would warn about any damage."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "L", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for entry in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == 0x0112:
                return int(struct.unpack_from(order + ("L" if kind == 4 else "H"), exif, entry + 8)[0])
    except struct.error:
        pass
    return 1


# --- bytes ----------------------------------------------------------------------------------------------


def read_bytes(image: ImageLike) -> bytes:
    """The encoded bytes of an image.

    A PIL image is decoded and encoded as PNG: the same image always gives the same bytes, and decoding them
    gives exactly the same pixels.

    Raises:
        ImageError: the file cannot be read, or the PIL image not decoded.
    """
    record = as_image(image)
    if isinstance(record.content, PILImage.Image):
        buffer = io.BytesIO()
        decode(record).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    with _encoded(record) as file:
        return file.read()


def digest(image: ImageLike) -> str:
    """SHA-256 of an image in hexadecimal; equal digests mean the same image.

    Taken over the encoded bytes; for a PIL image, over its size and pixels as decoded by :func:`decode`, or
    over its encoding as PNG above 200 million pixels, so that kept bytes are verified without decoding them.

    Raises:
        ImageError: the file cannot be read, or the PIL image not decoded.
    """
    record = as_image(image)
    content = None
    if isinstance(record.content, PILImage.Image):
        pixels = decode(record)
        if pixels.width * pixels.height <= MAX_PIXELS:
            content = b"RGB %d %d " % pixels.size + pixels.tobytes()
    return hashlib.sha256(read_bytes(record) if content is None else content).hexdigest()


def has_digest(image: Image, sha256: str) -> bool:
    """Whether encoded bytes are the image of a digest, which may be that of its pixels.

    Raises:
        ImageError: the file cannot be read, or the bytes are damaged.
    """
    if sha256 == digest(image):
        return True
    # An image that was added as a PIL image has the digest of its pixels.
    return sha256 == digest(replace(image, content=decode(image, max_pixels=MAX_PIXELS)))
