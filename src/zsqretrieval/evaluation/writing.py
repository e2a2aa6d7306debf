"""Files that are there whole, or not at all."""

from __future__ import annotations

import gzip
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import IO, cast

from zsqretrieval._util.files import sync_directory

__all__ = ["write_whole"]


def write_whole(path: Path, pieces: Iterable[str | bytes]) -> None:
    """Write a file; a crash leaves the former file, or none.

    Args:
        path: the file; folders on the way are made. It is compressed when its name ends in ``.gz``.
        pieces: its content, line ends included. Text is written in UTF-8; what is no Unicode is escaped.

    Raises:
        OSError: the disk refuses.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with unfinished.open("wb") as file:
            written = cast(IO[bytes], _zipped(file) if path.suffix == ".gz" else file)
            for piece in pieces:
                written.write(piece if isinstance(piece, bytes) else piece.encode(errors="backslashreplace"))
            if written is not file:
                written.close()
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    sync_directory(path.parent)


def _zipped(file: IO[bytes]) -> gzip.GzipFile:
    """Neither a name nor a time within, so that the same text makes the same file."""
    return gzip.GzipFile("", "wb", fileobj=file, mtime=0)
