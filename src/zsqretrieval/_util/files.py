"""Durable files: atomic writes, folder locks, and snapshots, which are folders of verified files.

A snapshot is a folder of data files and one ``manifest.json``. Each data file carries a part of its SHA-256
digest in its name, so a new save writes its files beside the old ones. Replacing the manifest is the commit:
a crash or a full disk before it keeps the old snapshot, after it the new one is valid.

    graph-5f0c2a9be1d34c77.bin      data file, named by its content
    keys-9a41d5b07c22e6f8.npy
    manifest.json                   kind, facts, and the size and SHA-256 of every data file
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import json
import os
import re
import secrets
import stat
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.untrusted import parse_json
from zsqretrieval.errors import IntegrityError, InvalidInputError, MismatchError

FORMAT_NAME = "zsqretrieval-snapshot"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_LONGEST_MANIFEST = 2**20  # bytes

_STORED_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}\.[a-z]+")
_OUR_NAME = re.compile(
    rf"{_STORED_NAME.pattern}|\.[a-z]+\.[a-z]+\.[0-9a-f]{{16}}\.tmp"
)  # stored or temporary


# --- one file -------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Read a UTF-8 file, without byte order mark; unpacks one whose name ends in ``.gz``.

    Raises:
        InvalidInputError: it cannot be read or is not UTF-8; names it.
    """
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"{path}: not UTF-8 at byte {error.start}; convert the file") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:  # ValueError: a path with a NUL
        why = getattr(error, "strerror", None) or error  # errors of gzip have no strerror
        raise InvalidInputError(f"{path}: cannot be read: {why}") from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Non-blank lines with their numbers; errors as of :func:`read_text`."""
    # Not splitlines, which also splits at characters that captions contain, such as U+0085 and U+2028.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield number, line


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Replace a file as a whole, on disk when the block ends; a crash leaves the old file or the new one.

    Yields the path of a temporary file in the same folder, not made yet. The block writes and closes it. If
    the block raises, or the disk refuses (OSError), ``path`` is unchanged. A pipe or a device is an OSError.
    """
    if not _is_replaceable(path):
        raise OSError(errno.EINVAL, "is a pipe or a device, not a file", str(path))
    with temporary_path(path) as temporary:
        yield temporary
        flush_file(temporary)
        temporary.replace(path)
        sync_directory(path.parent)


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Replace a text file as a whole, compressed if its name ends in ``.gz``; missing folders are made.

    Line ends are part of the pieces. Characters that are not Unicode are escaped. A pipe or a device, such as
    ``/dev/stdout``, is written to, if somebody reads it; of a link, the file that it leads to is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path = Path(os.path.realpath(path)) if path.is_file() else path
    whole = atomic_write(path) if _is_replaceable(path) else contextlib.nullcontext(path)
    with whole as unfinished, open(unfinished, "wb", opener=_at_once) as file:
        # The compressed file holds neither name nor time, so equal texts make equal files.
        zipped = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.suffix == ".gz" else None
        with zipped or contextlib.nullcontext(file) as out:
            out.writelines(piece.encode(errors="backslashreplace") for piece in pieces)


def _at_once(path: str, flags: int) -> int:
    """Open a file; a pipe that nobody reads is an OSError in place of a wait without end."""
    if not hasattr(os, "O_NONBLOCK"):
        return os.open(path, flags, 0o666)
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def _is_replaceable(path: Path) -> bool:
    """Whether a path is free, or that of a file or a folder, perhaps by links; not of a pipe or a device."""
    try:
        mode = path.stat().st_mode
    except OSError:  # writing it says what is wrong
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, not made yet; deleted at the end if it was not renamed."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def flush_file(file: Path) -> None:
    """Wait until a file is on the disk; reports writes that failed later than :meth:`close`."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def sync_directory(path: Path) -> None:
    """Flush the file names of a folder to disk."""
    if os.name == "nt":  # a folder cannot be opened there, and renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold an advisory lock on a folder; the system frees it when the process dies.

    Where there is no such lock (some platforms and file systems), two processes must not save at once.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):  # the caller reports a missing folder
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a process forked meanwhile has the descriptor, too
        os.close(descriptor)


# --- snapshots ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A data file's entry in the manifest."""

    name: str  # file name inside the snapshot folder
    size: int  # bytes
    sha256: str  # hexadecimal digest of the content


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The manifest of a snapshot."""

    path: Path  # the folder
    kind: str  # type of the content, such as "exact" or "hnsw"
    facts: Mapping[str, Any]  # JSON values of the writer (dim, metric, count, fingerprint, ...)
    files: Mapping[str, StoredFile]  # data files by part name, such as "keys.npy"

    def file(self, part: str) -> Path:
        """Path of a data file; an IntegrityError if the manifest has no such part."""
        if part not in self.files:
            raise IntegrityError(
                f"{self.path / MANIFEST} lists no part {part!r}, which a snapshot of kind {self.kind!r} "
                "must have; rebuild it from its source"
            )
        return self.path / self.files[part].name


def write_snapshot(
    path: Path, kind: str, facts: Mapping[str, Any], parts: Mapping[str, Callable[[Path], object]]
) -> None:
    """Replace the snapshot in a folder, atomically and durably.

    Args:
        path: the folder, made when missing. Files that no snapshot wrote are not touched.
        kind: type of the content, checked by :func:`open_snapshot`.
        facts: JSON-serialisable values for the manifest.
        parts: by part name (``"keys.npy"``: lower-case letters, a dot, lower-case letters), a function that
            writes the file at the path it is given.

    Raises:
        OSError: the disk refuses; the old snapshot, if any, is still valid.
    """
    path.mkdir(parents=True, exist_ok=True)
    with locked(path, exclusive=True):
        files = {part: _write_part(path, part, write) for part, write in parts.items()}
        snapshot = Snapshot(path, kind, dict(facts), files)
        sync_directory(path)
        with atomic_write(path / MANIFEST) as temporary:
            temporary.write_text(_manifest_text(snapshot), encoding="utf-8")
        # Delete the files of earlier and interrupted saves, and no others.
        current = {stored.name for stored in files.values()}
        for file in path.iterdir():
            if _OUR_NAME.fullmatch(file.name) and file.name not in current:
                with contextlib.suppress(OSError):  # a reader on Windows may hold it open; it does no harm
                    file.unlink()


def peek_snapshot(path: Path) -> Snapshot:
    """Read and verify the manifest of a snapshot, without its data files.

    Raises:
        IntegrityError: there is no manifest, it is damaged, or it has another format version.
    """
    try:
        if (path / MANIFEST).stat().st_size > _LONGEST_MANIFEST:
            raise _damaged(path / MANIFEST, f"it has more than {_LONGEST_MANIFEST} bytes")
        manifest = parse_json((path / MANIFEST).read_bytes())
        claimed = manifest.pop("checksum")
    except FileNotFoundError:
        raise IntegrityError(
            f"{path} holds no {MANIFEST}: nothing was saved there, or not by this library; check the path"
        ) from None
    except NotADirectoryError:
        raise IntegrityError(f"{path} is no directory, so nothing was saved there; check the path") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(path / MANIFEST, f"it cannot be read ({error})") from error
    if claimed != _checksum(manifest):
        raise _damaged(path / MANIFEST, "its checksum does not match its content")
    if manifest.get("format") != FORMAT_NAME or manifest.get("version") != FORMAT_VERSION:
        raise IntegrityError(
            f"{path / MANIFEST} has format {manifest.get('format')!r} version {manifest.get('version')!r}; "
            f"this library reads {FORMAT_NAME!r} version {FORMAT_VERSION}: use the version that wrote it"
        )
    try:
        files = {part: StoredFile(**entry) for part, entry in manifest["files"].items()}
        snapshot = Snapshot(path, manifest["kind"], dict(manifest["facts"]), files)
        if not all(isinstance(one.name, str) and isinstance(one.sha256, str) for one in files.values()):
            raise TypeError("names and digests are texts")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _damaged(path / MANIFEST, f"an entry is missing or of the wrong type ({error!r})") from error
    for part, stored in files.items():
        if not _STORED_NAME.fullmatch(stored.name):
            raise _damaged(path / MANIFEST, f"part {part!r} has the impossible file name {stored.name!r}")
    return snapshot


@contextlib.contextmanager
def open_snapshot(
    path: Path, kind: str, *, unread: Collection[str] = (), **expected: Any
) -> Iterator[Snapshot]:
    """Open a snapshot for reading, after verifying the size and digest of every data file.

    Within the block no other process of this library can replace the snapshot (advisory lock).

    Args:
        path: the folder.
        kind: required kind.
        unread: parts whose content the caller verifies when it reads it; here only their size is.
        expected: required facts; None accepts any value.

    Raises:
        IntegrityError: missing, truncated or altered data; names the file.
        MismatchError: another kind or fact than expected; names both sides.
    """
    with locked(path, exclusive=False):
        snapshot = peek_snapshot(path)
        for name, wanted in {"kind": kind, **expected}.items():
            found = snapshot.kind if name == "kind" else snapshot.facts.get(name)
            if wanted is not None and found != wanted:
                raise MismatchError(
                    f"{path} was saved with {name} {found!r}, but {name} {wanted!r} is asked for; "
                    "open it with the settings it was made with, or build a new one"
                )
        for part, stored in snapshot.files.items():
            _verify(path, stored, content=part not in unread)
        yield snapshot


def array_part(array: NDArray[Any]) -> Callable[[Path], None]:
    """A part for :func:`write_snapshot`: one array in NumPy's ``.npy`` format."""

    def write(file: Path) -> None:
        with file.open("wb") as handle:  # given a path, np.save would append .npy to it
            np.save(handle, array, allow_pickle=False)

    return write


def read_array(file: Path) -> NDArray[Any]:
    """Read an array written by :func:`array_part`; never unpickles. Damage is an IntegrityError."""
    try:
        with file.open("rb") as handle:
            array: NDArray[Any] = np.lib.format.read_array(handle, allow_pickle=False)
    except (ValueError, EOFError, TypeError, MemoryError) as error:  # a header may claim any shape
        raise _damaged(file, f"it holds no array ({error})") from error
    return array


def _write_part(path: Path, part: str, write: Callable[[Path], object]) -> StoredFile:
    with temporary_path(path / part) as temporary:
        write(temporary)
        flush_file(temporary)
        digest = sha256_of(temporary)
        stem, suffix = part.split(".")
        stored = StoredFile(f"{stem}-{digest[:16]}.{suffix}", temporary.stat().st_size, digest)
        temporary.replace(path / stored.name)
    return stored


def _verify(path: Path, stored: StoredFile, *, content: bool) -> None:
    file = path / stored.name
    try:
        size = file.stat().st_size
        if size != stored.size:
            raise _damaged(file, f"it has {size} bytes, the manifest says {stored.size}")
        if content and sha256_of(file) != stored.sha256:
            raise _damaged(file, "its SHA-256 digest differs from the manifest's")
    except FileNotFoundError:
        raise _damaged(file, "it is missing") from None


def sha256_of(file: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with file.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _manifest_text(snapshot: Snapshot) -> str:
    manifest: dict[str, Any] = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "kind": snapshot.kind,
        "facts": snapshot.facts,
        "files": {part: asdict(stored) for part, stored in snapshot.files.items()},
    }
    return json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=2, sort_keys=True) + "\n"


def _checksum(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _damaged(file: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{file} is damaged: {what}; restore it from a copy or rebuild it from its source")
