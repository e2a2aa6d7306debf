"""Files on disks and in object stores, listed and opened through fsspec."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from zsqretrieval._util.optional import import_optional
from zsqretrieval.errors import IntegrityError, InvalidInputError, MissingDependencyError, ZsqError

Location: TypeAlias = "str | os.PathLike[str]"
"""A path, or a URL that fsspec reads, such as ``s3://bucket/folder`` or ``memory://folder``."""


@dataclass(frozen=True, slots=True)
class File:
    """A file of a file system of fsspec."""

    system: Any  # fsspec.AbstractFileSystem
    path: str  # within it
    size: int  # bytes

    def __str__(self) -> str:
        """The path of a local file, or the URL of any other."""
        return self.path if is_local(self.system) else str(self.system.unstrip_protocol(self.path))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    def open(self) -> Any:
        """An open file for reading and seeking; of a store, the last few blocks that were read stay."""
        if is_local(self.system):
            return Path(self.path).open("rb")
        return self.system.open(self.path, "rb", block_size=_BLOCK, cache_type="readahead")


_BLOCK = 4 * 2**20  # bytes fetched at once from a store


def located(source: Location) -> tuple[Any, str]:
    """The file system of a location, and the path within it.

    Raises:
        InvalidInputError: the location is empty, or of an unknown protocol.
        MissingDependencyError: the package of the protocol is not installed.
    """
    fsspec = import_optional("fsspec", "listing files of data sets", "pip install 'zsqretrieval[laion]'")
    text = os.fspath(source)
    if not text:
        raise InvalidInputError("a path is empty; the current folder is '.'")
    if isinstance(source, os.PathLike) or "://" not in text:
        return fsspec.filesystem("file"), Path(text).absolute().as_posix()
    try:
        system, path = fsspec.core.url_to_fs(text)
    except ImportError as error:
        protocol = text.partition("://")[0]
        raise MissingDependencyError(
            f"the package for {protocol}://", f"reading {text}", f"pip install 'fsspec[{protocol}]'"
        ) from error
    except ValueError as error:
        raise InvalidInputError(f"{text}: {error}; give a path or a URL that fsspec reads") from error
    return system, path


def is_local(system: Any) -> bool:
    """Whether a file system is that of this machine."""
    protocol = system.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)


def list_files(source: Location, suffix: str | tuple[str, ...]) -> list[File]:
    """The files of a folder and of its subfolders by their suffix, those of a glob pattern, or one file.

    Returns:
        Files in the order of their paths, in which numbers count as numbers; hidden ones are left out.

    Raises:
        InvalidInputError: it does not exist, cannot be listed, or nothing matches.
        MissingDependencyError: the package of a protocol is not installed.
    """
    system, path = located(source)
    with _listing(source):
        if system.isfile(path):
            found = {path: system.info(path)}
        elif any(mark in path for mark in "*?[") and not system.exists(path):
            found = system.glob(path, detail=True)
        else:
            found = system.find(path, detail=True)
            found = {name: info for name, info in found.items() if name.endswith(suffix)}
    if files := _files(system, found):
        return files
    wanted = suffix if isinstance(suffix, str) else suffix[0]
    raise InvalidInputError(f"{source} holds no file *{wanted}, or does not exist; check the location")


@contextlib.contextmanager
def local_copy(file: File) -> Iterator[Path]:
    """The path of a local file, or of a copy of any other that is deleted when the block ends."""
    if is_local(file.system):
        yield Path(file.path)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, file.name)
        with damage_named(file):
            file.system.get_file(file.path, str(path))
        yield path


def files_of(system: Any, folder: str) -> list[File]:
    """The files of a folder without subfolders, as :func:`list_files`; none if there is no such folder."""
    with _listing(folder):
        return _files(system, system.find(folder, maxdepth=1, detail=True) if system.isdir(folder) else {})


def _files(system: Any, found: dict[str, Any]) -> list[File]:
    files = (
        File(system, name, int(info["size"]))
        for name, info in found.items()
        if info["type"] == "file" and not name.rpartition("/")[2].startswith(".")
    )
    return sorted(files, key=lambda one: natural(one.path))


@contextlib.contextmanager
def _listing(source: Location) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # stores raise many types
        raise InvalidInputError(f"{source} cannot be listed: {_reason(error)}; check the location") from error


def natural(name: str) -> list[str | int]:
    """A key that sorts names with numbers by these: ``x_2`` before ``x_10``."""
    return [int(part) if n % 2 else part for n, part in enumerate(re.split("([0-9]+)", name))]


# --- parquet ----------------------------------------------------------------------------------------------


def parquet_module() -> Any:
    """The module ``pyarrow.parquet``; a MissingDependencyError without it."""
    install = "pip install 'zsqretrieval[parquet]'"
    import_optional("pyarrow", "reading and writing parquet", install)
    from pyarrow import parquet

    return parquet


@contextlib.contextmanager
def opened_parquet(path: File | Path, read_dictionary: Sequence[str] = ()) -> Iterator[Any]:
    """An open table; damage that shows within the block is an IntegrityError."""
    parquet = parquet_module()
    from pyarrow import ArrowException

    kinds = (ArrowException, OSError, ValueError)
    with damage_named(path, ": not a whole parquet file", kinds), contextlib.ExitStack() as closing:
        source = closing.enter_context(path.open() if isinstance(path, File) else path.open("rb"))
        yield closing.enter_context(
            parquet.ParquetFile(
                source,
                read_dictionary=list(read_dictionary),
                buffer_size=2**20,  # so that a column is read page by page, not as a whole
                pre_buffer=False,
            )
        )


@contextlib.contextmanager
def damage_named(
    path: object, what: str = " is damaged", kinds: tuple[type[Exception], ...] = (Exception,)
) -> Iterator[None]:
    """Turn errors of libraries that read a file into an IntegrityError; NumPy raises many types."""
    try:
        yield
    except (ZsqError, MemoryError):
        raise
    except kinds as error:
        raise IntegrityError(f"{path}{what}: {_reason(error)}; fetch or write it again") from error


def _reason(error: Exception) -> str:
    """An error in one line, without what is no text."""
    return " ".join(str(error).split()) or type(error).__name__
