"""Atomic text files, compressed if their name ends in ``.gz``."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

from zsqretrieval._util.files import atomic_write

__all__ = ["write_whole"]


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Replace a file as a whole; a crash leaves the former file, or none.

    Args:
        path: the file; missing folders are made.
        pieces: its text, with line ends. Characters that are not Unicode are escaped.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as unfinished, unfinished.open("wb") as file:
        if path.suffix == ".gz":
            # neither a name nor a time inside, so equal texts make equal files
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as zipped:
                zipped.writelines(piece.encode(errors="backslashreplace") for piece in pieces)
        else:
            file.writelines(piece.encode(errors="backslashreplace") for piece in pieces)
