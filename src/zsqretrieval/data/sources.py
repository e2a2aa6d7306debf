"""Image sources: folders, tars, patterns and files, listed without decoding; and reopening by source.

Listing never looks at pixels, so one broken image cannot stop the listing of a million. Decoding reports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tarfile
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, final

from typing_extensions import Self

from zsqretrieval._util.untrusted import has_holes
from zsqretrieval.data.images import ImageLike, as_image, has_digest, path_text, read_bytes
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError
from zsqretrieval.types import Image

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif".split()  # noqa: SIM905
)
"""File name endings of images, in lower case."""

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


Row: TypeAlias = Mapping[str, Any]
"""A row of a data set. The image is under ``"image"``: as :data:`~zsqretrieval.data.images.ImageLike`, or a
mapping with ``"bytes"`` and ``"path"``. A string under ``"caption"`` is its caption. All else is metadata."""


def open_images(source: ImageLike | Row | Iterable[ImageLike | Row]) -> Iterator[Image]:
    """List the images of a source, without decoding any.

    Args:
        source: a folder (its images, see :func:`walk`, then the tars in it and in its subfolders; links to
            folders are not followed for tars); a ``.tar``, ``.tar.gz`` or ``.tgz`` file (see
            :func:`read_webdataset`); a glob pattern of folders, tars and image files; any other path, bytes,
            PIL image, record or :data:`Row` as one image; or an iterable of these.

    The order is stable. A path in an iterable that does not exist is listed too; decoding it raises an
    ImageError.

    Raises:
        InvalidInputError: the path does not exist or is a zip archive, a pattern matches nothing, or an item
            is not an image: a URL, an array, a row without image.
        IntegrityError: a tar is damaged.
    """
    if isinstance(source, (str, os.PathLike)) and source != "":
        check_path(source)
    yield from _images(source)


def check_path(path: str | os.PathLike[str]) -> None:
    """Check a path that somebody named, and did not find in a list, which may have gaps.

    Raises:
        InvalidInputError: it does not exist, cannot be examined, or is a URL or a zip archive.
    """
    if _is_pattern(Path(path)):
        return
    where = path_text(as_image(path).source)
    try:
        os.stat(path)  # noqa: PTH116  # a path may be too long for pathlib
    except (OSError, ValueError) as error:  # ValueError: a null byte
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidInputError(f"{where}: {reason}; nothing was added, check the path") from error
    if os.fspath(path).lower().endswith(".zip"):
        raise InvalidInputError(f"{where}: zip archives are not read; unpack it, or make a tar of it")


def _images(source: Any) -> Iterator[Image]:
    if isinstance(source, Mapping):
        yield _of_row(source)
    elif isinstance(source, (str, os.PathLike)):
        if source == "":  # which Path takes for the current folder
            raise InvalidInputError("an image path is empty; the current folder is '.'")
        yield from _open_path(Path(source))
    elif hasattr(source, "read"):  # iterating would give its lines
        raise InvalidInputError(f"{source!r} is an open file; give its path, or the bytes that read() gives")
    elif isinstance(source, Iterable) and not isinstance(source, _ONE) and getattr(source, "ndim", 1) == 1:
        for one in source:  # of an array of pixels, these would be rows of numbers
            yield from _images(one)
    else:
        yield as_image(source)


_ONE = (bytes, bytearray, memoryview)  # not a list of numbers


def _of_row(row: Row) -> Image:
    if "image" not in row:
        names = ", ".join(map(str, row)) or "nothing"
        raise InvalidInputError(f"a row of a data set has its image under 'image'; this one has {names}")
    content = row["image"]
    if isinstance(content, Mapping):  # as Hugging Face gives an image that is not decoded
        encoded, path = content.get("bytes"), content.get("path")
        content = path if encoded is None else encoded if path is None else Image(encoded, path_text(path))
    image = as_image(b"" if content is None else content)  # a gap in the data is skipped and counted
    metadata = {name: value for name, value in row.items() if name != "image"}
    caption = metadata.pop("caption") if isinstance(row.get("caption"), str) else image.caption
    return replace(image, caption=caption, metadata={**image.metadata, **metadata})


def _open_path(path: Path) -> Iterator[Image]:
    image = as_image(path)
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises on paths that cannot be examined
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
        yield image


def _tars(folder: Path) -> Iterator[Path]:
    """The tars below a folder, sorted by folder. :func:`walk` reports the folders that cannot be listed."""
    for above, folders, files in os.walk(folder.absolute()):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(above, name) for name in sorted(files) if _is_tar(Path(name)) and name[0] != ".")


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?[") and not os.path.exists(path)  # noqa: PTH110


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TAR_SUFFIXES)


# --- folders --------------------------------------------------------------------------------------------


def walk(folder: str | os.PathLike[str]) -> Iterator[Image]:
    """List the images of a folder and its subfolders, without decoding any.

    Takes files named like an image (:data:`IMAGE_SUFFIXES`, in any case) and skips hidden files and folders.
    Follows links, but visits every real folder once, so loops of links end. A ``.txt`` file of the same stem
    beside an image is its caption. A folder that cannot be listed is yielded as if it were an image, so that
    decoding reports it by name. The ``id`` is the path from ``folder``, with ``/`` on every system, the
    ``source`` the full path. Sorted by name within each folder, by code point.

    Raises:
        InvalidInputError: ``folder`` is not a folder.
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
    except OSError as error:  # keep the image
        reason = f"the caption cannot be read: {error.strerror or error}"
        warnings.warn(f"{path_text(path)}: {reason}", RuntimeWarning, stacklevel=2)
        return None


def _caption(text: bytes) -> str | None:
    return text.decode("utf-8-sig", errors="replace").strip() or None


# --- tars -----------------------------------------------------------------------------------------------


def read_webdataset(tar_paths: Iterable[str | os.PathLike[str]]) -> Iterator[Image]:
    """List the images of tar files in the layout of img2dataset and WebDataset.

    Neighbouring members whose names agree up to the first dot of the last path component are one sample:
    ``{key}.jpg`` (or another of :data:`IMAGE_SUFFIXES`; the first one counts), ``{key}.txt`` its caption,
    ``{key}.json`` its metadata, whose ``caption`` is used if there is no text file. In a sample without such
    an image, images with further dots in their names are listed separately (``IMG.1.png``). Samples without
    an image are skipped. Metadata that cannot be read causes a RuntimeWarning. Records hold the encoded
    bytes; ``id`` is ``{name of the tar without suffix}/{key}``, ``source`` is ``{path of the tar}#{member}``.

    Raises:
        IntegrityError: a tar is cut short, damaged, or not a tar; names it. The samples before the damage
            have been yielded.
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
    """Name and content of every plain file in a tar, in order; raises if the tar has no proper end."""
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
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip's own errors have no errno
            raise InvalidInputError(f"{path_text(path)}: cannot be read: {error.strerror}") from error
        raise IntegrityError(f"{path_text(path)}: not a whole tar file: {error}; fetch it again") from error


def _sample(path: Path, stem: str, key: str, sample: Mapping[str, tuple[str, bytes]]) -> Iterator[Image]:
    images = [member for extension, member in sample.items() if f".{extension}" in IMAGE_SUFFIXES]
    if not images:
        for name, content in sample.values():
            if Path(name).suffix.lower() in IMAGE_SUFFIXES:
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
        # Python writes NaN and Infinity, which are not JSON, for missing numbers.
        metadata = json.loads(content, parse_constant=lambda _: None)
        if not isinstance(metadata, dict):
            raise ValueError(f"not an object but {type(metadata).__name__}")
    except (ValueError, RecursionError) as error:  # keep the image
        where = f"{path_text(path)}#{name}"
        warnings.warn(f"{where}: the metadata cannot be read: {error}", RuntimeWarning, stacklevel=2)
        return {}
    return metadata


# --- reopening ------------------------------------------------------------------------------------------


@final
class Reopener:
    """Reopens stored images: files, and members of tars as ``path#member``. For one thread.

    ``kept`` gives the bytes that an album keeps of an image, by its digest, or None.

    Tars stay open until the block ends. For a member of a ``.tar.gz`` everything before it is decompressed.

    An album made by somebody else may name any file as a source. So only regular files are read, at most
    1 GiB of one image, and a compressed tar only until it has grown to 16 times its size and 256 MiB.
    """

    def __init__(self, kept: Callable[[str], bytes | None] | None = None) -> None:
        self._kept = kept
        self._tars: dict[str, tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for tar, _ in self._tars.values():
            tar.close()

    def open(self, source: str, sha256: str | None = None) -> Image:
        """Read the encoded bytes of an image, and verify its digest; None accepts any image.

        Raises:
            ImageError: the image is missing, was never a file, or has changed.
        """
        damage = None
        if self._kept is not None and sha256 is not None:
            try:
                kept = self._kept(sha256)
                if kept is not None:
                    return _checked(Image(kept, source), sha256)
            except ImageError as error:
                damage = ImageError(
                    source, f"its bytes in the album are damaged ({error.reason}); add it again"
                )
        try:
            return _checked(Image(self._read(source), source), sha256)
        except ImageError as error:
            raise damage or error from error

    def _read(self, source: str) -> bytes:
        found = ((_file(path), member) for path, member in _splits(source))
        archive, member = next((pair for pair in found if pair[0] is not None), (None, ""))
        whole = _file(source)
        if whole is not None or archive is None:
            return read_file(Path(whole or source), source)
        try:
            tar, members = self._tar(archive)
            if member not in members:
                raise ImageError(source, "no such member")
            _check_bytes(source, members[member].size)
            file = tar.extractfile(members[member])
            return file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ImageError(source, f"cannot be read: {error}") from error

    def _tar(self, path: str) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
        if path not in self._tars:
            size = os.path.getsize(path)  # noqa: PTH202
            if not size:  # as some files of the system say, which would never end
                raise tarfile.ReadError("the file is empty")
            zipped = path.lower().endswith("gz")
            if zipped and has_holes(Path(path)):  # zeros behind the end, which gzip would skip
                raise tarfile.ReadError("it claims bytes that are not on the disk")
            tar = tarfile.open(path, "r:gz" if zipped else "r:", tarinfo=_Header)  # noqa: SIM115  # by __exit__
            members: dict[str, tarfile.TarInfo] = {}
            self._tars[path] = tar, members
            with contextlib.suppress(tarfile.TarError, EOFError, zlib.error):  # keep those before damage
                for member in tar:
                    if member.isreg():
                        members[path_text(member.name.removeprefix("./"))] = member
                    if member.offset_data + member.size > _GROWTH * size + _ANY_GROWTH:
                        break  # before the next step, which would decompress this one
        return self._tars[path]


def _checked(image: Image, sha256: str | None) -> Image:
    if sha256 is not None and not has_digest(image, sha256):
        raise ImageError(image.source, "has changed since it was added; add it again")
    return image


def read_file(path: Path, source: str) -> bytes:
    """Read a file of at most 1 GiB, and if it is a regular one; else an ImageError."""
    try:
        size = path.stat().st_size
    except (OSError, ValueError):  # which read_bytes reports
        size = 0
    _check_bytes(source, size)
    return read_bytes(Image(path, source))


_MAX_BYTES = 2**30  # of one encoded image
_MAX_NAME = 2**20  # bytes of a long name or of other notes in a tar
_GROWTH, _ANY_GROWTH = 16, 256 * 2**20  # of a compressed tar


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header; refuse notes of any size, which tarfile would read into memory."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _NOTES and header.size > _MAX_NAME:
            raise tarfile.ReadError(f"a note of {header.size} bytes")
        return header


_NOTES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def is_member(source: str) -> bool:
    """Whether a source names a member of a tar that exists, as :func:`read_webdataset` does."""
    return any(_is_tar(Path(path)) and _file(path) is not None for path, _ in _splits(source))


def _splits(source: str) -> Iterator[tuple[str, str]]:
    """Path and member of ``path#member``; a path may contain "#", too."""
    return ((source[: mark.start()], source[mark.end() :]) for mark in re.finditer("#", source))


def _check_bytes(source: str, size: int) -> None:
    if size > _MAX_BYTES:
        raise ImageError(source, f"too large: {size} bytes, the limit is {_MAX_BYTES}")


_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def _file(path: str) -> str | None:
    """The file whose :func:`~zsqretrieval.data.images.path_text` is ``path``; None when it does not exist."""
    escaped = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    names = dict.fromkeys((path, os.fsdecode(escaped)))  # mostly the same name twice
    # Path.is_file raises on folders without permission.
    return next((one for one in names if os.path.isfile(one)), None)  # noqa: PTH113
