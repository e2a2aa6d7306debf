"""Tars of images: WebDataset shards, read within limits and in any order of their members."""

from __future__ import annotations

import gzip
import json
import math
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, final

from typing_extensions import Self

from zsqretrieval._util.checks import first_of
from zsqretrieval._util.untrusted import has_holes, mended_json
from zsqretrieval.data.images import MAX_BYTES, check_bytes, path_text
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError
from zsqretrieval.types import Image

IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .webp .gif .bmp .tif .tiff .avif .heic .heif".split()  # noqa: SIM905
)
"""File name endings of images, in lower case."""

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
"""File name endings of tars, in lower case."""

MAX_TEXT = 16 * 2**20
"""Size limit of a file of text or metadata beside an image, in bytes."""

TAR_ERRORS = (tarfile.TarError, EOFError, zlib.error, OSError)
"""What reading a tar may raise."""

_MAX_VALUE = 2**16  # characters of a value of the metadata, as JSON
_MAX_NAME = 2**20  # bytes of a long name or of other notes in a tar
_GROWTH, _ANY_GROWTH = 16, 256 * 2**20  # of a compressed tar
_PADDING = 64 * 2**20  # bytes of zeros behind a tar, behind which another one may follow


@final
class Tar:
    """The members of a tar that are plain files; for one thread.

    Reads every tar of several that were joined by ``cat``. A compressed tar is read until it has grown to 16
    times its size and 256 MiB.

    Attributes:
        zipped: whether the tar is compressed, so that going back reads it again from the beginning.
        members: by name, as :func:`~zsqretrieval.data.images.path_text` prints it, in their order. The last
            one of a name counts, as for tar itself.
        repeated: names that several members have.
        links: names of other members: links and devices.
        damage: why nothing after these members can be read; empty for a whole tar.

    Raises:
        OSError, tarfile.ReadError: the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        path = Path(path)
        size = path.stat().st_size
        if not size:  # as pipes and some files of the system say, which would never end
            raise tarfile.ReadError("the file is empty")
        self.zipped = path.name.lower().endswith("gz")
        if self.zipped and has_holes(path):  # zeros behind the end, which gzip would skip
            raise tarfile.ReadError("it claims bytes that are not on the disk")
        self._most = _GROWTH * size + _ANY_GROWTH if self.zipped else size
        opened: Any = gzip.open(path) if self.zipped else path.open("rb")  # noqa: SIM115  # by __exit__
        self._file: IO[bytes] = opened
        self.members: dict[str, tarfile.TarInfo] = {}
        self.repeated: list[str] = []
        self.links: list[str] = []
        self.damage = ""
        try:
            while self._index():
                pass
        except (*TAR_ERRORS, ValueError) as error:  # ValueError: numbers of a header
            self.damage = str(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def _index(self) -> bool:
        """Read the headers from here to the end of one tar; whether another one follows."""
        self._tar = tarfile.TarFile(fileobj=self._file, tarinfo=_Header)
        for member in self._tar:
            end = member.offset_data + (0 if member.issparse() else member.size)
            if end > self._most:  # before the next step, which would decompress it
                grown = (
                    "it grows to more than 16 times its size, so unpack it" if self.zipped else "cut short"
                )
                raise tarfile.ReadError(f"{grown}: {path_text(member.name)} claims {member.size} bytes")
            if member.size < 0:  # which leads tarfile back to an earlier member
                raise tarfile.ReadError(f"damaged at byte {member.offset}")
            name = path_text(member.name.removeprefix("./"))
            if not member.isreg() and not member.isdir():
                self.links.append(name)
            elif member.isreg() and not name.rpartition("/")[2].startswith("."):
                if self.members.pop(name, None):
                    self.repeated.append(name)
                self.members[name] = member
        # tarfile takes a damaged header for the end; the real end is a block of zeros.
        self._file.seek(self._tar.offset)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"cut short or damaged at byte {self._tar.offset}")
        for _ in range(_PADDING // tarfile.BLOCKSIZE):
            block = self._file.read(tarfile.BLOCKSIZE)
            if block.strip(b"\0"):
                self._file.seek(-len(block), os.SEEK_CUR)
                return True
            if not block:
                break
        return False

    def read(self, name: str, where: str, limit: int = MAX_BYTES) -> bytes:
        """The content of a member.

        Raises:
            ImageError: it has more bytes than ``limit``; names it, with ``where`` in front.
            tarfile.TarError, EOFError, zlib.error, OSError: it is damaged.
        """
        member = self.members[name]
        check_bytes(where + name, member.size, limit)
        file = self._tar.extractfile(member)
        try:
            return file.read() if file else b""
        except MemoryError as error:
            raise ImageError(where + name, "not enough memory to read it") from error


class _Header(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """Parse a header; refuse notes of any size, which tarfile would read into memory."""
        header = super().frombuf(buf, encoding, errors)
        if header.type in _NOTES and not 0 <= header.size <= _MAX_NAME:
            raise tarfile.ReadError(f"a note of {header.size} bytes")
        return header


_NOTES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


class SurplusError(ImageError):
    """Names a member that looks like an image but is no sample's: a second image of one, or a link."""


# --- samples --------------------------------------------------------------------------------------------


def read_webdataset(tar_paths: Iterable[str | os.PathLike[str]]) -> Iterator[Image | ImageError]:
    """List the images of tar files in the layout of img2dataset and WebDataset.

    Members whose names agree up to the last dot are one sample, wherever they are: ``{key}.jpg`` (or another
    of :data:`IMAGE_SUFFIXES`; the first one), ``{key}.txt`` its caption, ``{key}.json`` its metadata,
    whose ``caption`` is used if there is no text file. An image with further dots in its name, such as
    ``0.mask.png``, is left out if ``0.jpg`` is there and no caption or metadata are its own. Samples without
    an image are skipped. Records hold the encoded bytes; ``id`` is ``{name of the tar without suffix}/{key}``
    (with further dots: the whole name), ``source`` is ``{path of the tar}#{member}``.

    What cannot be read is yielded as an ImageError that names the member: an image of more than 1 GiB; an
    image whose name a later member has, too; a link or a second image of a sample (:class:`SurplusError`); a
    caption that belongs to no image, or that a compressed tar holds far from its image. Text and numbers that
    had to be replaced are named in the notes of the record. Metadata that cannot be read at all is left out,
    which the notes say as well.

    Raises:
        IntegrityError: a tar is cut short, damaged, or not a tar; names it. The samples before the damage
            have been yielded.
        InvalidInputError: a tar does not exist or cannot be opened.
    """
    for tar_path in tar_paths:
        path = Path(tar_path).absolute()
        try:
            with Tar(path) as tar:
                yield from _samples(path, tar)
                if tar.damage:
                    raise tarfile.ReadError(tar.damage)
        except TAR_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:  # gzip's own errors have no errno
                raise InvalidInputError(f"{path_text(path)}: cannot be read: {error.strerror}") from error
            raise IntegrityError(
                f"{path_text(path)}: not a whole tar file: {error}; fetch it again"
            ) from error


def _samples(path: Path, tar: Tar) -> Iterator[Image | ImageError]:
    where = f"{path_text(path)}#"
    stem = path_text(path.name[: -len(next((s for s in TAR_SUFFIXES if path.name.lower().endswith(s)), ""))])
    samples: dict[str, dict[str, str]] = {}  # name up to the last dot -> extension -> name of the member
    for name in tar.members:
        folder, slash, base = name.rpartition("/")
        key, dot, extension = base.rpartition(".")
        if not dot:
            continue
        samples.setdefault(folder + slash + key, {}).setdefault(extension.lower(), name)
    images = {key: image for key, some in samples.items() if (image := _first_image(some))}
    images = {
        key: name
        for key, name in images.items()
        if _first_key(key) == key or {"txt", "json"} & samples[key].keys() or _first_key(key) not in images
    }
    for repeated in tar.repeated:
        yield ImageError(where + repeated, "a later member of the tar has the same name; rename one of them")
    for link in tar.links:
        if link.lower().endswith(tuple(IMAGE_SUFFIXES)):
            yield SurplusError(where + link, "is a link or a device, not a file")
    named = set(map(_first_key, images))
    for key, some in samples.items():
        if key in named and key not in images:
            for extension in sorted({"txt", "json"} & some.keys()):
                yield ImageError(where + some[extension], f"belongs to no image, since there is no {key}.jpg")
    order = sorted(images, key=lambda key: tar.members[images[key]].offset)
    places = [-1, *(tar.members[images[key]].offset for key in order), math.inf]
    for n, key in enumerate(order):
        some, image = samples[key], images[key]
        for extension, name in some.items():
            if f".{extension}" in IMAGE_SUFFIXES and name != image:
                yield SurplusError(where + name, f"{image} is the image of this sample; rename one of them")
        texts = {extension: name for extension, name in some.items() if extension in ("txt", "json")}
        if tar.zipped:  # going back would decompress everything again
            for extension, name in tuple(texts.items()):
                if not places[n] < tar.members[name].offset < places[n + 2]:
                    del texts[extension]
                    yield ImageError(where + name, f"is far from {image}; sort the compressed tar by name")
        try:
            yield _record(tar, where, f"{stem}/{key if _first_key(key) == key else image}", image, texts)
        except ImageError as error:
            yield error


def _record(tar: Tar, where: str, id: str, image: str, texts: Mapping[str, str]) -> Image:
    contents = dict[str, bytes]()
    notes: tuple[str, ...] = ()
    for name in sorted((image, *texts.values()), key=lambda name: tar.members[name].offset):
        try:
            contents[name] = tar.read(name, where, MAX_BYTES if name == image else MAX_TEXT)
        except ImageError as error:
            if name == image:
                raise
            notes += (f"{name} was left out: {error.reason}",)
    caption, metadata, changes = read_beside(
        contents.get(texts.get("json", "")), contents.get(texts.get("txt", ""))
    )
    return Image(contents[image], where + image, id, caption, metadata, notes=notes + changes)


def read_beside(
    metadata: bytes | None, caption: bytes | None
) -> tuple[str | None, dict[str, Any], tuple[str, ...]]:
    """Caption and metadata of an image from the files beside it, and what was replaced, in words.

    Without a caption of its own, the image has the ``caption`` of its metadata.
    """
    found, changes = read_metadata(metadata) if metadata is not None else ({}, ())
    text, more = read_caption(caption) if caption is not None else (None, ())
    of_metadata = found.get("caption")
    return text or (of_metadata if isinstance(of_metadata, str) else None), found, changes + more


def read_caption(content: bytes) -> tuple[str | None, tuple[str, ...]]:
    """A text without byte order mark, None if it is blank; and what was replaced, in words."""
    text = content.decode("utf-8-sig", "replace").strip() or None
    try:
        content.decode()
    except UnicodeDecodeError:
        return text, ("caption: bytes that are not UTF-8, now U+FFFD",)
    return text, ()


def read_metadata(content: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A JSON object, empty if it cannot be read; and what was replaced or left out, in words.

    Values of more than 64 KiB are left out, such as a copy of the image that annotation tools write.
    """
    repeated: list[str] = []

    def joined(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        whole = dict(pairs)
        if len(whole) < len(pairs):
            repeated.append("a name is given twice, of which the last counts")
        return whole

    try:
        text = content.decode(json.detect_encoding(content), "surrogateescape")
        metadata = json.loads(text, parse_int=_integer, object_pairs_hook=joined)
        if not isinstance(metadata, dict):
            raise ValueError(f"not an object but {type(metadata).__name__}")
        suspects = metadata.items() if len(content) > _MAX_VALUE else ()
        large = [name for name, value in suspects if len(json.dumps(value)) > _MAX_VALUE]
    except (ValueError, RecursionError) as error:  # keep the image
        return {}, (f"the metadata cannot be read: {error}",)
    metadata, changes = mended_json({name: value for name, value in metadata.items() if name not in large})
    left_out = [f"{first_of(large)} of more than 64 KiB left out"] if large else []
    return metadata, tuple(f"metadata: {change}" for change in (*changes, *repeated[:1], *left_out))


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= 4300 else math.inf  # Python refuses more digits


def _first_image(sample: Mapping[str, str]) -> str | None:
    return next((name for extension, name in sample.items() if f".{extension}" in IMAGE_SUFFIXES), None)


def _first_key(key: str) -> str:
    """The key up to the first dot of its last component."""
    folder, slash, base = key.rpartition("/")
    return folder + slash + base.partition(".")[0]
