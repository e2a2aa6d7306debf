"""Image sources: folders, tars, patterns and files, listed without decoding; and reopening by source.

Listing never looks at pixels, so one broken image cannot stop the listing of a million. Decoding reports it.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, final

from typing_extensions import Self

from zsqretrieval.data.images import (
    MOST_PIXELS,
    ImageLike,
    as_image,
    has_digest,
    opened,
    path_text,
    read_bytes,
)
from zsqretrieval.data.tars import (
    IMAGE_SUFFIXES,
    MAX_TEXT,
    TAR_ERRORS,
    TAR_SUFFIXES,
    Tar,
    read_beside,
    read_webdataset,
)
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError
from zsqretrieval.types import Image

Row: TypeAlias = Mapping[str, Any]
"""A row of a data set. The image is under ``"image"``: as :data:`~zsqretrieval.data.images.ImageLike`, or a
mapping with ``"bytes"`` and ``"path"``. A string under ``"caption"`` is its caption. All else is metadata."""


def open_images(source: ImageLike | Row | Iterable[ImageLike | Row]) -> Iterator[Image | ImageError]:
    """List the images of a source, without decoding any.

    Args:
        source: a folder (its images, see :func:`walk`, then the tars in it and in its subfolders; links to
            folders are not followed for tars); a ``.tar``, ``.tar.gz`` or ``.tgz`` file (see
            :func:`read_webdataset`); a glob pattern of folders, tars and image files; any other path, bytes,
            PIL image, record or :data:`Row` as one image; or an iterable of these.

    The order is stable. A path in an iterable that does not exist is listed too; decoding it raises an
    ImageError. What cannot be read of a tar is listed as an ImageError that names it, and damage behind the
    images before it.

    Raises:
        InvalidInputError: the path does not exist or is a zip archive, a pattern matches nothing, or an item
            is not an image: a URL, an array, a row without image.
    """
    if isinstance(source, (str, os.PathLike)):
        check_path(source)
    yield from _images(source)


def count_images(source: ImageLike | Row | Iterable[ImageLike | Row]) -> int | None:
    """Count what :func:`open_images` lists, without opening images or consuming an iterator.

    None if it cannot be known without reading a tar or listing an iterator, or if something is no source.
    """
    if isinstance(source, (str, os.PathLike)):
        count = 0
        try:
            for one in _images(source):
                if isinstance(one, ImageError) or isinstance(one.content, bytes):  # of a tar
                    return None
                count += 1
        except InvalidInputError:
            return None
        return count
    if isinstance(source, (Mapping, Image, *_ONE)) or not isinstance(source, Iterable):
        return 1
    if isinstance(source, (list, tuple)):
        counts = [count_images(one) for one in source]
        return None if None in counts else sum(count or 0 for count in counts)
    return len(source) if isinstance(source, Sized) else None  # rows of a data set


def check_path(path: str | os.PathLike[str]) -> None:
    """Check a path that somebody named, and did not find in a list, which may have gaps.

    Raises:
        InvalidInputError: it does not exist, cannot be examined, or is a URL or a zip archive.
    """
    if path == "":  # which Path takes for the current folder
        raise InvalidInputError("an image path is empty; the current folder is '.'")
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


def _images(source: Any) -> Iterator[Image | ImageError]:
    if isinstance(source, Mapping):
        yield _of_row(source)
    elif isinstance(source, (str, os.PathLike)):
        if source == "":
            check_path(source)
        yield from _open_path(Path(source))
    elif hasattr(source, "read"):  # iterating would give its lines
        raise InvalidInputError(f"{source!r} is an open file; give its path, or the bytes that read() gives")
    elif hasattr(source, "columns"):  # iterating would give these
        raise InvalidInputError(
            f"a {type(source).__name__} is not a list of rows; give table.to_dict('records') of pandas, or "
            "table.to_pylist() of pyarrow"
        )
    elif isinstance(source, Iterable) and not isinstance(source, _ONE) and getattr(source, "ndim", 1) == 1:
        for one in source:  # of an array of pixels, these would be rows of numbers
            yield from _images(one)
    else:
        yield as_image(source)


VECTOR = "-vector"
"""End of the digest of a row without an image; no image has such a digest."""

_ONE = (bytes, bytearray, memoryview)  # not a list of numbers


def _of_row(row: Row) -> Image | ImageError:
    if "image" not in row:
        names = ", ".join(map(str, row)) or "nothing"
        raise InvalidInputError(f"a row of a data set has its image under 'image'; this one has {names}")
    content = row["image"]
    if isinstance(content, Mapping):  # as Hugging Face gives an image that is not decoded
        encoded, path = content.get("bytes"), content.get("path")
        content = path if encoded is None else encoded if path is None else Image(encoded, path_text(path))
    if content is None:
        return ImageError("<row>", "the row has no image")
    image = as_image(content)
    metadata = {name: value for name, value in row.items() if name != "image"}
    caption = metadata.pop("caption") if isinstance(row.get("caption"), str) else image.caption
    return replace(image, caption=caption, metadata={**image.metadata, **metadata})


def _open_path(path: Path) -> Iterator[Image | ImageError]:
    image = as_image(path)
    if os.path.isdir(path):  # noqa: PTH112  # Path.is_dir raises on paths that cannot be examined
        yield from walk(path)
        for tar in _tars(path):
            yield from _open_tar(tar)
    elif _is_tar(path) and not _is_pattern(path):
        yield from _open_tar(path)
    elif _is_pattern(path):
        base = Path(path.anchor)
        try:
            found = sorted(base.glob(str(path.relative_to(base))), key=lambda match: match.parts)
        except RecursionError:  # of glob
            raise InvalidInputError(
                f"{path}: folders are nested too deep for a pattern; give the folder"
            ) from None
        if not found:
            raise InvalidInputError(f"no file matches {path}")
        for match in found:
            if match.is_dir() or _is_tar(match) or match.suffix.lower() in IMAGE_SUFFIXES:
                yield from _open_path(match)
    else:
        yield image


def _open_tar(path: Path) -> Iterator[Image | ImageError]:
    """The images of a tar, and behind them its damage, so that the tars after it are read."""
    try:
        yield from read_webdataset([path])
    except IntegrityError as error:
        source = path_text(path.absolute())
        yield ImageError(source, str(error).removeprefix(f"{source}: "))


def _tars(folder: Path) -> Iterator[Path]:
    """The tars below a folder, sorted by folder. :func:`walk` reports the folders that cannot be listed."""
    waiting = [os.fspath(folder.absolute())]
    while waiting:  # not os.walk, which before Python 3.12 recurses
        entries: list[os.DirEntry[str]] = []
        with suppress(OSError), os.scandir(waiting.pop()) as listing:
            entries = sorted((e for e in listing if not e.name.startswith(".")), key=lambda e: e.name)
        yield from (Path(e.path) for e in entries if _is_tar(Path(e.name)) and not _is_folder(e))
        waiting += [e.path for e in reversed(entries) if e.is_dir(follow_symlinks=False)]


def _is_pattern(path: Path) -> bool:
    return any(mark in str(path) for mark in "*?[") and not os.path.exists(path)  # noqa: PTH110


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(TAR_SUFFIXES)


# --- folders --------------------------------------------------------------------------------------------


def walk(folder: str | os.PathLike[str]) -> Iterator[Image]:
    """List the images of a folder and its subfolders, without decoding any.

    Takes files named like an image (:data:`IMAGE_SUFFIXES`, in any case) and skips hidden files and folders.
    Follows links, but visits every real folder once, so loops of links end. As in a tar, files of the same
    stem beside an image are its caption, ``.txt``, and its metadata, ``.json``. A folder that cannot be
    listed is yielded as if it were an image, so that decoding reports it by name. The ``id`` is the path from
    ``folder``, with ``/`` on every system, the ``source`` the full path. Sorted by name within each folder,
    by code point.

    Raises:
        InvalidInputError: ``folder`` is not a folder.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InvalidInputError(f"{root} is not a folder")
    return _walk(root)


def _walk(root: Path) -> Iterator[Image]:
    visited: set[tuple[int, int]] = set()
    open_folders = [_listed(root, "", visited)]  # not by recursion, whose depth is limited
    while open_folders:
        one = next(open_folders[-1], None)
        if one is None:
            open_folders.pop()
        elif isinstance(one, Image):
            yield one
        else:
            open_folders.append(_listed(*one, visited))


def _listed(folder: Path, prefix: str, visited: set[tuple[int, int]]) -> Iterator[Image | tuple[Path, str]]:
    """The images of a folder, and its subfolders with their prefix, by name."""
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
    beside = {_beside(Path(entry.name)): entry.name for entry in reversed(entries)}
    for entry in entries:
        path = folder / entry.name
        if _is_folder(entry):
            yield path, f"{prefix}{entry.name}/"
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            caption, metadata, notes = _read_beside(path, beside)
            yield Image(
                content=path,
                source=path_text(path),
                id=path_text(prefix + entry.name),
                caption=caption,
                metadata=metadata,
                notes=notes,
            )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _beside(name: Path) -> tuple[str, str]:
    """What the files of an image share, and their ending, which may be in any case."""
    return name.stem, name.suffix.lower()


def _read_beside(
    path: Path, beside: Mapping[tuple[str, str], str]
) -> tuple[str | None, dict[str, Any], tuple[str, ...]]:
    """Caption, metadata and notes of an image, from those of the files of its folder that belong to it."""
    contents: dict[str, bytes] = {}
    notes: tuple[str, ...] = ()
    for suffix in (".json", ".txt"):
        if name := beside.get((path.stem, suffix)):
            try:
                with opened(path.parent / name, path_text(path.parent / name), MAX_TEXT) as stream:
                    contents[suffix] = stream.read()
            except ImageError as error:  # keep the image
                notes += (f"{path_text(name)} was left out: {error.reason}",)
    caption, metadata, changes = read_beside(contents.get(".json"), contents.get(".txt"))
    return caption, metadata, notes + changes


# --- reopening ------------------------------------------------------------------------------------------


@final
class Reopener:
    """Reopens stored images: files, and members of tars as ``path#member``. For one thread.

    ``kept`` gives the bytes that an album keeps of an image, by its digest, or None.

    Tars stay open until the block ends. For a member of a ``.tar.gz`` everything before it is decompressed.

    An album made by somebody else may name any file as a source: the limits of files and tars hold here, too.
    """

    def __init__(self, kept: Callable[[str], bytes | None] | None = None) -> None:
        self._kept = kept
        self._tars: dict[str, Tar] = {}
        self._open = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    def open(self, source: str, sha256: str | None = None) -> Image:
        """Read the encoded bytes of an image, and verify its digest; None accepts any image.

        An image of that digest was within the size limit when it was added, so it may have up to 2^30 pixels.

        Raises:
            ImageError: the image is missing, was never a file, or has changed.
        """
        if sha256 is not None and sha256.endswith(VECTOR):
            raise ImageError(source, "was added as a vector, without its image")
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
            if damage is None:
                raise  # as its own cause, it would keep the frames and their images alive
            raise damage from error

    def _read(self, source: str) -> bytes:
        found = ((_file(path), member) for path, member in _splits(source))
        archive, member = next((pair for pair in found if pair[0] is not None), (None, ""))
        whole = _file(source)
        if whole is not None or archive is None:
            return read_bytes(Image(Path(whole or source), source))
        try:
            if archive not in self._tars:
                self._tars[archive] = self._open.enter_context(Tar(archive))
            tar = self._tars[archive]
            if member not in tar.members:
                raise ImageError(source, "no such member")
            return tar.read(member, source.removesuffix(member))
        except TAR_ERRORS as error:
            raise ImageError(source, f"cannot be read: {error}") from error


def _checked(image: Image, sha256: str | None) -> Image:
    if sha256 is None:
        return image
    if not has_digest(image, sha256):
        raise ImageError(image.source, "has changed since it was added; add it again")
    return replace(image, max_pixels=MOST_PIXELS)


def is_member(source: str) -> bool:
    """Whether a source names a member of a tar that exists, as :func:`read_webdataset` does."""
    return bool(archives(source))


def archives(source: str) -> list[str]:
    """The tars that exist of which a source may name a member; mostly one or none."""
    return [path for path, _ in _splits(source) if _is_tar(Path(path)) and _file(path) is not None]


def exists(path: str) -> bool | None:
    """Whether there is a file or link of a source; None when it cannot be examined."""
    for name in _names(path):
        try:
            if stat.S_ISDIR(os.lstat(name).st_mode):
                continue
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            return None
        return True
    return False


def _splits(source: str) -> Iterator[tuple[str, str]]:
    """Path and member of ``path#member``; a path may contain "#", too."""
    return ((source[: mark.start()], source[mark.end() :]) for mark in re.finditer("#", source))


_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def _file(path: str) -> str | None:
    """The file whose :func:`~zsqretrieval.data.images.path_text` is ``path``; None when it does not exist."""
    # Path.is_file raises on folders without permission.
    return next((one for one in _names(path) if os.path.isfile(one)), None)  # noqa: PTH113


def _names(path: str) -> Iterable[str]:
    """The names of files that ``path`` may be the text of; mostly one."""
    escaped = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    return dict.fromkeys((os.fsdecode(escaped), path))
