"""Encoded bytes of images, kept in the album: those of images that are no files, and all with ``copy=True``.

    images/9a41d5b07c22e6f8…    one file per image, named by its digest

A file is on disk before its record, and deleted after it; both while its process holds the catalog's write
transaction. So no record loses its bytes; a crash only leaves bytes without a record, which a save deletes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import final

from zsqretrieval._util.files import atomic_write, sync_directory
from zsqretrieval.data.images import has_digest, read_bytes
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import AlbumError, ImageError, IntegrityError
from zsqretrieval.types import Image

IMAGES = "images"
"""Folder of the kept bytes in an album."""

_NAME = re.compile(r"[0-9a-f]{64}")


@final
class KeptImages:
    """The kept bytes of an album by digest; in memory without a folder. Changes need a write transaction."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._memory: dict[str, bytes] = {}

    def __contains__(self, digest: str) -> bool:
        if self._folder is None or not _NAME.fullmatch(digest):  # that of another program could be a path
            return digest in self._memory
        return (self._folder / digest).is_file()

    def get(self, digest: str) -> bytes | None:
        """The bytes, not verified; None if they are not kept.

        Raises:
            ImageError: they cannot be read.
        """
        if self._folder is None:
            return self._memory.get(digest)
        if digest not in self:
            return None
        return read_bytes(Image(self._folder / digest, digest))

    def put(self, contents: Mapping[str, bytes]) -> None:
        """Keep bytes, on disk when this returns; on an AlbumError (the disk refuses) some are not kept."""
        if self._folder is None:
            self._memory |= contents
            return
        try:
            if contents and not self._folder.is_dir():
                self._folder.mkdir()
                sync_directory(self._folder.parent)
            for digest, content in contents.items():
                with atomic_write(self._folder / digest) as temporary:
                    temporary.write_bytes(content)
        except OSError as error:
            reason = error.strerror or error
            raise AlbumError(f"{self._folder}: bytes of images cannot be kept: {reason}") from error

    def sweep(
        self, known: Callable[[list[str]], Container[str]], digests: Sequence[str] | None = None
    ) -> None:
        """Delete bytes without a record, out of some; when None, of all, and what killed processes left.

        ``known`` returns the digests, out of some, that have a record.
        """
        some = self.digests() if digests is None else list(digests)
        living = known(some)
        gone = [digest for digest in some if digest not in living and digest in self]
        for digest in gone:
            self._memory.pop(digest, None)
        if self._folder is not None:
            unfinished = [] if digests is not None else self._folder.glob(".*.tmp")
            for file in [*(self._folder / digest for digest in gone), *unfinished]:
                with contextlib.suppress(OSError):  # open in a reader on Windows
                    file.unlink()

    def digests(self) -> list[str]:
        """The digests of all that is kept."""
        if self._folder is None or not self._folder.is_dir():
            return list(self._memory)
        return [file.name for file in self._folder.iterdir() if _NAME.fullmatch(file.name)]

    def copied_to(self, folder: Path) -> KeptImages:
        """A copy, in a folder, of bytes in memory; an AlbumError if the disk refuses."""
        there = KeptImages(folder)
        there.put(self._memory)
        return there

    def files(self) -> Reopener:
        """Reopen images, those that are kept and others."""
        return Reopener(self.get)

    def intact(self, digest: str) -> bool:
        """Whether bytes are kept and are those of their digest."""
        try:
            content = self.get(digest)
            return content is not None and has_digest(Image(content, digest), digest)
        except ImageError:
            return False

    def verify(self, known: Container[str]) -> None:
        """Compare the bytes of some digests with them; damage is an IntegrityError that names the file."""
        for digest in self.digests():
            if digest in known and not self.intact(digest):
                raise IntegrityError(
                    f"{self._folder or 'memory'}: the image {digest} is damaged; remove it and add it again"
                )
