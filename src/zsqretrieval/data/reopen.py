"""Opening again an image of which a source is known, and perhaps the digest."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tarfile
import zlib
from pathlib import Path
from types import TracebackType
from typing import final

from typing_extensions import Self

from zsqretrieval.data.images import decode, digest, path_text, read_bytes
from zsqretrieval.errors import ImageError
from zsqretrieval.types import Image

__all__ = ["Reopener"]


@final
class Reopener:
    """Opens files, and members of tars by ``path#member``; keeps the tars open until it is closed itself.

    For one thread. A member of a ``.tar.gz`` is reached through everything before it, so that takes time.
    """

    def __init__(self) -> None:
        self._tars: dict[str, tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tar, _ in self._tars.values():
            tar.close()

    def open(self, source: str, sha256: str | None = None) -> Image:
        """Read an image and, where its digest is known, make sure that it is still the same.

        Args:
            source: as in :attr:`Record.source <zsqretrieval.album.catalog.Record.source>`.
            sha256: its digest, as :func:`zsqretrieval.data.images.digest` gives it; None takes what is there now.

        Returns:
            The image as encoded bytes, not decoded.

        Raises:
            ImageError: it is not there any more, was never a file, or has changed.
        """
        content = self._read(source)
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            # What was added as a PIL image has the digest of its pixels, whatever file it came from.
            pixels = decode(Image(content, source))
            if digest(pixels) != sha256:
                raise ImageError(source, "is another image than the one that was added; add it again")
        return Image(content, source)

    def _read(self, source: str) -> bytes:
        whole = _file(source)
        path, mark, member = source.partition("#")
        archive = _file(path)
        while mark and archive is None:
            further, mark, member = member.partition("#")
            path = f"{path}#{further}"
            archive = _file(path)
        if whole is not None or archive is None:
            return read_bytes(Image(Path(whole or source), source))
        try:
            tar, members = self._tar(archive)
            if member not in members:
                raise ImageError(source, "no such member")
            file = tar.extractfile(members[member])
            return file.read() if file else b""
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise ImageError(source, f"cannot be read: {error}") from error

    def _tar(self, path: str) -> tuple[tarfile.TarFile, dict[str, tarfile.TarInfo]]:
        if path not in self._tars:
            tar = tarfile.open(path)  # noqa: SIM115  # closed by __exit__
            members: dict[str, tarfile.TarInfo] = {}
            self._tars[path] = tar, members
            with contextlib.suppress(tarfile.TarError, EOFError, zlib.error):  # what stands before the damage
                for member in tar:
                    if member.isreg():
                        members[path_text(member.name.removeprefix("./"))] = member
        return self._tars[path]


_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")


def _file(path: str) -> str | None:
    """The file that :func:`~zsqretrieval.data.images.path_text` wrote as this path; None when there is none."""
    escaped = _ESCAPED.sub(lambda found: bytes.fromhex(found[1].decode()), os.fsencode(path))
    # Path.is_file raises where a folder on the way may not be looked into.
    names = dict.fromkeys((path, os.fsdecode(escaped)))  # mostly one and the same
    return next((one for one in names if os.path.isfile(one)), None)  # noqa: PTH113
