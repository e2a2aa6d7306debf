"""From a file, a tar or bytes to upright RGB pixels; the start of every image's way.

Describing (:func:`walk`, :func:`read_webdataset`, :func:`open_images`) and decoding (:func:`decode`) are
apart: describing never looks at pixels, so one broken image cannot stop a walk over a million. Decoding
raises :class:`~zsqretrieval.errors.ImageError`, which names the image, and skipping is up to the caller.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import stat
import struct
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeAlias

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

from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError, MissingDependencyError
from zsqretrieval.types import Image

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "ImageLike",
    "as_image",
    "decode",
    "digest",
    "open_images",
    "path_text",
    "read_bytes",
    "read_webdataset",
    "trimmed",
    "walk",
]

ImageLike: TypeAlias = str | os.PathLike[str] | bytes | PILImage.Image | Image
"""What can stand for an image: a path, encoded bytes, a PIL image, or the record of any of them."""

MAX_PIXELS = 89_478_485
"""The largest image decoded unless asked otherwise, in pixels: 256 MiB of RGB, Pillow's own limit."""

IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif"),
    }
)
"""File name endings taken for images while walking, in lower case."""

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def as_image(
    x: ImageLike,
    *,
    id: str | None = None,
    caption: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Image:
    """Describe an image without opening it.

    Args:
        x: a path, encoded bytes, a PIL image, or a record, which is returned with the changes below.
        id: the caller's own name for it.
        caption: text that belongs to it.
        metadata: free JSON-serialisable facts.

    Returns:
        The record. A path is made absolute, so that it can still be found from another folder.

    Raises:
        InvalidInputError: ``x`` is none of these, or a record of something else; or metadata is no mapping.
    """
    if isinstance(x, Image):
        if not isinstance(x.content, bytes | Path | PILImage.Image) or not isinstance(x.source, str):
            raise InvalidInputError(
                "an Image record holds bytes, a pathlib.Path or a PIL image, and its source as a text, not "
                f"{type(x.content).__name__} and {type(x.source).__name__}; as_image makes one of a path"
            )
        image = x
    elif isinstance(x, bytes):
        image = Image(content=x, source="<bytes>")
    elif isinstance(x, PILImage.Image):
        image = Image(content=x, source=path_text(getattr(x, "filename", "") or "<PIL image>"))
    elif isinstance(x, (str, os.PathLike)):
        path = Path(x).absolute()
        image = Image(content=path, source=path_text(path))
    else:
        raise InvalidInputError(
            f"an image must be a path, encoded bytes, a PIL image or an Image record, not {type(x).__name__}"
            " (an array becomes one by PIL.Image.fromarray)"
        )
    facts = image.metadata if metadata is None else metadata
    if not isinstance(facts, Mapping):
        raise InvalidInputError(
            f"the metadata of {image.source} must be a mapping such as {{'year': 1999}}, not {facts!r}"
        )
    return dataclasses.replace(
        image,
        id=image.id if id is None else id,
        caption=image.caption if caption is None else caption,
        metadata=facts,
    )


# --- pixels ---------------------------------------------------------------------------------------------


class _Jpeg(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Leave the resolution unread: Pillow emits warnings over damaged EXIF on the way to it."""


_AVIF = frozenset({b"avif", b"avis"})
_HEIF = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


def _brands(head: bytes) -> set[bytes]:
    """What a file of the MP4 family says it can be read as; the first box lists it."""
    if head[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(head[:4], "big"), len(head))
    return {head[8:12], *(head[start : start + 4] for start in range(16, end, 4))}


def _heif(file: IO[bytes]) -> ImageFile:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise MissingDependencyError(
            "pillow-heif", "reading HEIC images", "pip install 'zsqretrieval[heif]'"
        ) from error
    opened: Callable[[IO[bytes]], ImageFile] = HeifImageFile
    return opened(file)


# The decoders are called directly rather than through PIL.Image.open, which would also try formats that
# run other programs (EPS), and whose size limit is a process-wide setting that warns before it refuses.
_DECODERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[IO[bytes]], ImageFile]], ...] = (
    ("JPEG", lambda head: head.startswith(b"\xff\xd8\xff"), _Jpeg),
    ("PNG", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n"), PngImageFile),
    ("WebP", lambda head: head.startswith(b"RIFF") and head[8:12] == b"WEBP", WebPImageFile),
    ("GIF", lambda head: head.startswith((b"GIF87a", b"GIF89a")), GifImageFile),
    ("BMP", lambda head: head.startswith(b"BM"), BmpImageFile),
    ("TIFF", lambda head: head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TiffImageFile),
    ("AVIF", lambda head: not _AVIF.isdisjoint(_brands(head)), AvifImageFile),
    ("HEIC", lambda head: not _HEIF.isdisjoint(_brands(head)), _heif),
)

_HEAD = 64  # bytes that tell the formats apart

_UPRIGHT = {
    2: PILImage.Transpose.FLIP_LEFT_RIGHT,
    3: PILImage.Transpose.ROTATE_180,
    4: PILImage.Transpose.FLIP_TOP_BOTTOM,
    5: PILImage.Transpose.TRANSPOSE,
    6: PILImage.Transpose.ROTATE_270,
    7: PILImage.Transpose.TRANSVERSE,
    8: PILImage.Transpose.ROTATE_90,
}

# The ranges that pixels deeper than 8 bits usually fill; the smallest that holds them all is taken.
_RANGES = {"I": (255, 65535), "F": (1, 255, 65535)}


def decode(image: ImageLike, *, max_pixels: int = MAX_PIXELS, size_hint: int | None = None) -> PILImage.Image:
    """Decode an image to upright 8-bit RGB pixels.

    Reads JPEG, PNG, WebP, GIF, BMP, TIFF and AVIF in every colour mode Pillow knows, and HEIC with the extra
    ``heif``. The EXIF orientation is applied; of an animation or a document the first frame is taken;
    transparency is laid on white. Grey deeper than 8 bits is scaled, not clipped: 16-bit pixels by 255/65535;
    integer and float pixels from the smallest of the ranges 0..1 (floats only), 0..255, 0..65535 that holds
    them all, else from their own minimum and maximum. Colour profiles are not applied.

    Args:
        image: what to decode. A PIL image is not changed.
        max_pixels: refuse to decode anything larger; read from the header, before memory is taken.
        size_hint: the caller will shrink the shorter side to about this many pixels. A JPEG is then decoded
            at 1/2, 1/4 or 1/8 of its size where that keeps both sides at least this long: much faster, with
            slightly different pixels than decoding in full.

    Returns:
        A new PIL image of mode RGB that carries no metadata.

    Raises:
        ImageError: missing, empty, truncated, too large, or not an image; names it and says why.
        InvalidInputError: ``max_pixels`` or ``size_hint`` is below 1.
    """
    if max_pixels < 1 or (size_hint is not None and size_hint < 1):
        raise InvalidInputError(
            f"max_pixels and size_hint must be at least 1, not {max_pixels} and {size_hint}"
        )
    record = as_image(image)
    if isinstance(record.content, PILImage.Image):
        with _named(record.source, record.content.format or "PIL"):
            _check_size(record.source, record.content, max_pixels)
            return _upright(_to_rgb(record.content), record.content)
    with _opened(record) as file:
        head = file.read(_HEAD)
        file.seek(0)
        name, decoder = _decoder(record.source, head)
        with _named(record.source, name), decoder(file) as encoded:
            _check_size(record.source, encoded, max_pixels)
            if size_hint is not None:
                encoded.draft(None, (size_hint, size_hint))
            # The orientation is read last: a PNG may carry it after the pixels.
            return _upright(_to_rgb(encoded), encoded)


def trimmed(picture: PILImage.Image) -> PILImage.Image:
    """Cut the far ends off a picture whose sides are more than 16 : 1.

    For models that resize the shorter side and crop the middle square: resizing all of a 1 x 10,000 strip takes
    gigabytes.
    """
    width, height = picture.size
    limit = 16 * min(width, height)
    left, top = max(0, width - limit) // 2, max(0, height - limit) // 2
    return picture.crop((left, top, width - left, height - top)) if left or top else picture


@contextmanager
def _named(source: str, format: str) -> Iterator[None]:
    """Turn whatever a decoder raises on damaged bytes (an open set of types) into an ImageError."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except MissingDependencyError as error:
        raise ImageError(source, str(error)) from error
    except Exception as error:
        raise ImageError(source, f"damaged {format} image: {error or type(error).__name__}") from error


@contextmanager
def _opened(image: Image) -> Iterator[IO[bytes]]:
    """The encoded bytes of a record that is not a PIL image, as a file."""
    if isinstance(image.content, bytes):
        yield io.BytesIO(image.content)
        return
    path = image.content
    assert isinstance(path, Path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            os.scandir(path).close()  # a folder that cannot be listed has that as its reason
        file = path.open("rb") if stat.S_ISREG(mode) else None  # opening a pipe would wait for ever
    except FileNotFoundError as error:
        raise ImageError(image.source, "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ImageError(image.source, f"cannot be opened: {reason}") from error
    if file is None:
        raise ImageError(image.source, "is a folder or a device, not an image file")
    with file:
        yield file


def _decoder(source: str, head: bytes) -> tuple[str, Callable[[IO[bytes]], ImageFile]]:
    if not head:
        raise ImageError(source, "the file is empty")
    for name, matches, decoder in _DECODERS:
        if matches(head):
            return name, decoder
    names = ", ".join(name for name, _, _ in _DECODERS)
    raise ImageError(source, f"not an image in a format read here ({names})")


def _check_size(source: str, image: PILImage.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(source, f"has no pixels ({width} x {height})")
    if width * height > max_pixels:
        raise ImageError(
            source,
            f"too large: {width} x {height} is {width * height} pixels, the limit is {max_pixels}"
            "; make a smaller copy (decode(..., max_pixels=...) reads it, if you trust it)",
        )


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
    values = np.asarray(image).astype(np.float64)
    transparent = values == image.info.get("transparency", np.nan)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    ceilings = [top for top in _RANGES.get(image.mode, (65535,)) if low >= 0 and high <= top]
    if ceilings:
        low, high = 0.0, float(ceilings[0])
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    grey = np.rint((values - low) / (high - low or 1.0) * 255)
    grey[transparent] = 255
    return PILImage.fromarray(grey.astype(np.uint8))


def _upright(pixels: PILImage.Image, original: PILImage.Image) -> PILImage.Image:
    """Turn ``pixels`` as the EXIF of ``original`` says; a TIFF Pillow has turned already."""
    method = _UPRIGHT.get(_orientation(original.info.get("exif") or b""))
    if method is not None:
        pixels = pixels.transpose(method)
    pixels.info = {}  # else decoding the result again would turn it again
    return pixels


def _orientation(exif: bytes) -> int:
    """The orientation tag of an EXIF block: 1 (upright) to 8; 1 when there is none or it is damaged.

    Pillow's own reader emits warnings over damage anywhere in the block; this one looks at one tag.
    """
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

    Those of a PIL image are a PNG of what :func:`decode` makes of it: the same image always gives the same
    bytes, and decoding them gives exactly the same pixels.

    Raises:
        ImageError: the file cannot be read, or the PIL image not decoded.
    """
    record = as_image(image)
    if isinstance(record.content, PILImage.Image):
        buffer = io.BytesIO()
        decode(record).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()
    with _opened(record) as file:
        return b"".join(_blocks(file, record.source))


def digest(image: ImageLike) -> str:
    """SHA-256 of an image in hexadecimal: equal digests mean one and the same image.

    Taken over the encoded bytes; for a PIL image, over the size and pixels :func:`decode` gives.

    Raises:
        ImageError: the file cannot be read, or the PIL image not decoded.
    """
    record = as_image(image)
    if isinstance(record.content, PILImage.Image):
        pixels = decode(record)
        return hashlib.sha256(b"RGB %d %d " % pixels.size + pixels.tobytes()).hexdigest()
    sha256 = hashlib.sha256()
    with _opened(record) as file:
        for block in _blocks(file, record.source):
            sha256.update(block)
    return sha256.hexdigest()


def _blocks(file: IO[bytes], source: str) -> Iterator[bytes]:
    try:
        while block := file.read(1 << 20):
            yield block
    except OSError as error:
        raise ImageError(source, f"cannot be read: {error.strerror or error}") from error


# --- folders and tars -----------------------------------------------------------------------------------


def open_images(source: ImageLike | Iterable[ImageLike]) -> Iterator[Image]:
    """Describe every image of a source, without decoding any.

    Args:
        source: a folder (its images, see :func:`walk`, then the tars in it and in folders in it, where links
            to folders are not followed); a ``.tar``, ``.tar.gz`` or ``.tgz`` file (see
            :func:`read_webdataset`); a glob pattern of folders, tars and image files; any other path, bytes,
            PIL image or record as one image; or an iterable of these.

    Yields:
        Records in a stable order. A path that does not exist is described as well: decoding it says so.

    Raises:
        InvalidInputError: a pattern matches nothing, or something is not an image.
        IntegrityError: a tar is damaged.
    """
    if isinstance(source, (bytes, PILImage.Image, Image)):
        yield as_image(source)
    elif isinstance(source, (str, os.PathLike)):
        if source == "":  # which Path takes for the current folder
            raise InvalidInputError("an image path is empty; the current folder is '.'")
        yield from _open_path(Path(source))
    elif hasattr(source, "read"):  # whose lines would be taken for images
        raise InvalidInputError(f"{source!r} is an open file; give its path, or the bytes that read() gives")
    elif isinstance(source, Iterable):
        for one in source:
            yield from open_images(one)
    else:
        yield as_image(source)  # which refuses it


def _open_path(path: Path) -> Iterator[Image]:
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises at what cannot be looked at
        yield from walk(path)
        yield from read_webdataset(_tars(path))
    elif _is_tar(path) and not _is_pattern(path):
        yield from read_webdataset([path])
    elif _is_pattern(path):
        base = Path(path.anchor)
        found = sorted(base.glob(str(path.relative_to(base))), key=lambda match: match.parts)
        if not found:
            raise InvalidInputError(f"no file matches {path}")
        for match in found:
            if match.is_dir() or _is_tar(match) or match.suffix.lower() in IMAGE_SUFFIXES:
                yield from _open_path(match)
    else:
        yield as_image(path)


def _tars(folder: Path) -> Iterator[Path]:
    """The tars below a folder, sorted by folder; :func:`walk` has named the folders that cannot be listed."""
    for above, folders, files in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(above, name) for name in sorted(files) if _is_tar(Path(name)) and name[0] != ".")


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?[") and not os.path.exists(path)  # noqa: PTH110


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TAR_SUFFIXES)


def walk(folder: str | os.PathLike[str]) -> Iterator[Image]:
    """Describe the images of a folder and the folders in it.

    Takes what is named like an image (:data:`IMAGE_SUFFIXES`, in any case); hidden files and folders are
    passed over. Links are followed, but every real folder is visited once, so a loop of links ends. A
    ``.txt`` file of the same stem beside an image is its caption. Nothing is decoded; a folder that cannot be
    listed is yielded as if it were an image, so that whoever decodes it can report it by name.

    Args:
        folder: where to begin.

    Yields:
        Records whose ``id`` is the path from ``folder``, with ``/`` on every system, and whose ``source`` is
        the full path; sorted by name within each folder, by code point, on every system and in every locale.

    Raises:
        InvalidInputError: ``folder`` is not a folder.
        ImageError: a caption file cannot be read.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InvalidInputError(f"{root} is not a folder")
    return _walk(root, "", set())


def _walk(folder: Path, prefix: str, visited: set[tuple[int, int]]) -> Iterator[Image]:
    try:
        status = folder.stat()
        with os.scandir(folder) as listing:
            entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError:
        yield Image(content=folder, source=path_text(folder), id=path_text(prefix.rstrip("/")) or None)
        return
    if (status.st_dev, status.st_ino) in visited:
        return
    visited.add((status.st_dev, status.st_ino))
    names = {entry.name for entry in entries}
    for entry in entries:
        path = folder / entry.name
        if _is_folder(entry):
            yield from _walk(path, f"{prefix}{entry.name}/", visited)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            text = path.with_suffix(".txt")
            yield Image(
                content=path,
                source=path_text(path),
                id=path_text(prefix + entry.name),
                caption=_read_caption(text) if text.name in names else None,
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _read_caption(path: Path) -> str | None:
    try:
        return _caption(path.read_bytes())
    except OSError as error:  # the image is still an image
        reason = error.strerror or error
        warnings.warn(
            f"{path_text(path)}: the caption cannot be read: {reason}", RuntimeWarning, stacklevel=2
        )
        return None


def _caption(text: bytes) -> str | None:
    return text.decode("utf-8-sig", errors="replace").strip() or None


def path_text(path: str | bytes | os.PathLike[Any]) -> str:
    r"""A path as text that can be stored and printed: bytes that are not UTF-8 appear as ``\xNN``."""
    return os.fsencode(path).decode("utf-8", errors="backslashreplace")


def read_webdataset(tar_paths: Iterable[str | os.PathLike[str]]) -> Iterator[Image]:
    """Describe the images of tar files laid out as img2dataset and WebDataset do.

    Neighbouring members whose names agree up to the first dot of the last path component are one sample:
    ``{key}.jpg`` (or another of :data:`IMAGE_SUFFIXES`; the first one counts), ``{key}.txt`` its caption,
    ``{key}.json`` its metadata, whose ``caption`` stands in where there is no text. Where there is no such
    image, those with further dots in their names are images by themselves (``IMG.1.png``). Samples without
    an image are passed over, and metadata that cannot be read are told in a RuntimeWarning.

    Args:
        tar_paths: the tars, read in the order given; ``.tar.gz`` works as well.

    Yields:
        Records that hold the encoded bytes; ``id`` is ``{name of the tar without suffix}/{key}`` and
        ``source`` is ``{path of the tar}#{member}``.

    Raises:
        IntegrityError: a tar is missing its end, damaged, or not a tar. Names the tar. The samples before the
            damage have been yielded.
        InvalidInputError: a tar does not exist or cannot be opened.
    """
    for tar_path in tar_paths:
        path = Path(tar_path).absolute()
        stem = path.name[: -len(next((s for s in _TAR_SUFFIXES if path.name.lower().endswith(s)), ""))]
        key, sample = "", dict[str, tuple[str, bytes]]()
        for name, content in _members(path):
            folder, slash, base = name.rpartition("/")
            member_key, _, extension = base.partition(".")
            member_key = folder + slash + member_key
            if member_key != key:
                yield from _sample(path, stem, key, sample)
                key, sample = member_key, {}
            sample.setdefault(extension.lower(), (name, content))
        yield from _sample(path, stem, key, sample)


def _members(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every plain file in a tar, in order; raises if the tar does not end properly."""
    try:
        with tarfile.open(path, "r:gz" if path.name.lower().endswith("gz") else "r:") as tar:
            for member in tar:
                name = member.name.removeprefix("./")
                file = tar.extractfile(member) if member.isreg() else None
                if file is not None and not name.rpartition("/")[2].startswith("."):
                    yield path_text(name), file.read()
            # tarfile takes a damaged header for the end; the real end is a block of zeros.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"cut short or damaged at byte {tar.offset}")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise IntegrityError(f"{path_text(path)}: not a whole tar file: {error}; fetch it again") from error
    except OSError as error:
        if error.errno is None:  # gzip's own complaints have no errno
            raise IntegrityError(f"{path_text(path)}: not a whole tar file: {error}") from error
        raise InvalidInputError(f"{path_text(path)}: cannot be read: {error.strerror}") from error


def _sample(path: Path, stem: str, key: str, sample: Mapping[str, tuple[str, bytes]]) -> Iterator[Image]:
    images = [member for extension, member in sample.items() if f".{extension}" in IMAGE_SUFFIXES]
    if not images:
        dotted = [member for member in sample.values() if Path(member[0]).suffix.lower() in IMAGE_SUFFIXES]
        for name, content in dotted:
            yield Image(content, f"{path_text(path)}#{name}", id=f"{path_text(stem)}/{name}")
        return
    name, content = images[0]
    metadata = _metadata(path, *sample["json"]) if "json" in sample else {}
    caption = _caption(sample["txt"][1]) if "txt" in sample else metadata.get("caption")
    yield Image(
        content=content,
        source=f"{path_text(path)}#{name}",
        id=f"{path_text(stem)}/{key}",
        caption=caption if isinstance(caption, str) else None,
        metadata=metadata,
    )


def _metadata(path: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        # NaN and Infinity, which Python writes, are not JSON; they mean that a number is missing.
        metadata = json.loads(content, parse_constant=lambda _: None)
        if not isinstance(metadata, dict):
            raise ValueError(f"not an object but {type(metadata).__name__}")
    except (ValueError, RecursionError) as error:  # the image is still an image
        where = f"{path_text(path)}#{name}"
        warnings.warn(f"{where}: the metadata cannot be read: {error}", RuntimeWarning, stacklevel=2)
        return {}
    return metadata
