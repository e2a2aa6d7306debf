"""Snapshots: a directory whose content changes all at once or not at all, and is verified before use.

A snapshot is a directory of data files and one ``manifest.json``. Data files carry a part of their SHA-256
digest in their names, so a new generation is written beside the old one; replacing the manifest is the one
step that makes it valid. A crash or a full disk before that step leaves the old state, after it the new one.

    graph-5f0c2a9be1d34c77.bin      data, named by content
    keys-9a41d5b07c22e6f8.npy
    manifest.json                   the commit point: kind, facts, size and SHA-256 of every data file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import IntegrityError, MismatchError

__all__ = [
    "FORMAT_VERSION",
    "Snapshot",
    "StoredFile",
    "array_part",
    "locked",
    "open_snapshot",
    "peek_snapshot",
    "read_array",
    "sync_directory",
    "write_snapshot",
]

FORMAT_NAME = "zsqretrieval-snapshot"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"

_BLOCK = 1 << 20
_PART_NAME = re.compile(r"[a-z]+\.[a-z]+")
_STORED_NAME = re.compile(r"[a-z]+-[0-9a-f]{16}\.[a-z]+")
_SCRATCH_NAME = re.compile(r"\.[a-z]+-[0-9a-f]{16}\.tmp")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One data file as the manifest describes it.

    Attributes:
        name: its name inside the snapshot directory.
        size: bytes.
        sha256: hexadecimal digest of its content.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a manifest says.

    Attributes:
        path: the directory.
        kind: what is stored here, for instance ``"exact"`` or ``"hnsw"``.
        facts: JSON values the writer recorded (dim, metric, count, fingerprint, ...).
        files: the data files by part name, for instance ``"keys.npy"``.
    """

    path: Path
    kind: str
    facts: Mapping[str, Any]
    files: Mapping[str, StoredFile]

    def file(self, part: str) -> Path:
        """Path of a data file.

        Raises:
            IntegrityError: the manifest names no such part.
        """
        if part not in self.files:
            raise IntegrityError(
                f"{self.path / MANIFEST} lists no part {part!r}, which a snapshot of kind {self.kind!r} "
                "must have; rebuild it from its source"
            )
        return self.path / self.files[part].name

    def expect(self, **facts: Any) -> None:
        """Refuse a snapshot whose facts are not these; None stands for any value.

        Raises:
            MismatchError: a fact differs; names both sides.
        """
        for name, wanted in facts.items():
            found = self.facts.get(name)
            if wanted is not None and found != wanted:
                raise MismatchError(
                    f"{self.path} was saved with {name} {found!r}, but {name} {wanted!r} is asked for; "
                    "open it with what it was made with, or build a new one"
                )


def write_snapshot(
    path: Path, kind: str, facts: Mapping[str, Any], parts: Mapping[str, Callable[[Path], object]]
) -> Snapshot:
    """Replace the snapshot in the directory ``path``, atomically and durably.

    Args:
        path: the directory; made when missing. Files in it that no snapshot wrote are left alone.
        kind: what is stored, checked by :func:`open_snapshot`.
        facts: JSON-serialisable facts kept in the manifest.
        parts: part name (``"keys.npy"``: small letters, a dot, small letters) -> a function that writes the
            file at the path it is given, and raises OSError when it cannot.

    Returns:
        The snapshot as written.

    Raises:
        OSError: the disk refuses; the former snapshot, if any, is still valid.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    with locked(path, exclusive=True):
        scratch: list[Path] = []
        try:
            files = {part: _write_part(path, part, write, scratch) for part, write in parts.items()}
            snapshot = Snapshot(path, kind, dict(facts), files)
            sync_directory(path)
            new_manifest = path / f".manifest-{secrets.token_hex(8)}.tmp"
            scratch.append(new_manifest)
            with new_manifest.open("w", encoding="utf-8") as handle:
                handle.write(_manifest_text(snapshot))
                handle.flush()
                os.fsync(handle.fileno())
            new_manifest.replace(path / MANIFEST)
            sync_directory(path)
        finally:
            for leftover in scratch:
                leftover.unlink(missing_ok=True)
        _remove_stale(snapshot)
    return snapshot


def peek_snapshot(path: Path) -> Snapshot:
    """Read and verify the manifest in ``path`` without touching the data files.

    Raises:
        IntegrityError: there is no manifest, it is damaged, or of another format version.
    """
    path = Path(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
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
            f"{path / MANIFEST} is of format {manifest.get('format')!r} version {manifest.get('version')!r}; "
            f"this library reads {FORMAT_NAME!r} version {FORMAT_VERSION}: use the version that wrote it"
        )
    try:
        files = {part: StoredFile(**entry) for part, entry in manifest["files"].items()}
        snapshot = Snapshot(path, manifest["kind"], manifest["facts"], files)
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path / MANIFEST, f"an entry is missing or of the wrong type ({error!r})") from error
    for part, stored in files.items():
        if not _STORED_NAME.fullmatch(stored.name):
            raise _damaged(path / MANIFEST, f"part {part!r} has the impossible file name {stored.name!r}")
    return snapshot


@contextlib.contextmanager
def open_snapshot(path: Path, kind: str, **expected: Any) -> Iterator[Snapshot]:
    """Open the snapshot in ``path`` for reading, after every data file's size and digest were verified.

    While the context is open no other process of this library can replace the snapshot (advisory lock).

    Args:
        path: the directory.
        kind: refuse a snapshot of any other kind.
        expected: facts that must hold; None stands for any value.

    Raises:
        IntegrityError: missing, truncated or altered data; names the file.
        MismatchError: another kind, or another fact than expected; names both sides.
    """
    path = Path(path)
    with locked(path, exclusive=False):
        snapshot = peek_snapshot(path)
        if snapshot.kind != kind:
            raise MismatchError(
                f"{path} holds a snapshot of kind {snapshot.kind!r}, but kind {kind!r} is asked for; "
                "open it as what it is"
            )
        snapshot.expect(**expected)
        for stored in snapshot.files.values():
            _verify(path, stored)
        yield snapshot


def array_part(array: NDArray[Any]) -> Callable[[Path], None]:
    """A part for :func:`write_snapshot` that holds one array in NumPy's ``.npy`` format."""

    def write(file: Path) -> None:
        with file.open("wb") as handle:
            np.save(handle, array, allow_pickle=False)

    return write


def read_array(file: Path) -> NDArray[Any]:
    """Read an array written through :func:`array_part`; never unpickles.

    Raises:
        IntegrityError: it is not such a file.
    """
    try:
        with file.open("rb") as handle:
            array: NDArray[Any] = np.lib.format.read_array(handle, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise _damaged(file, f"it is no array ({error})") from error
    return array


def _write_part(path: Path, part: str, write: Callable[[Path], object], scratch: list[Path]) -> StoredFile:
    if not _PART_NAME.fullmatch(part):
        raise ValueError(f"part name {part!r} is not of the form 'letters.letters'")
    stem, suffix = part.split(".")
    temporary = path / f".{stem}-{secrets.token_hex(8)}.tmp"
    scratch.append(temporary)
    write(temporary)
    with temporary.open("rb+") as handle:
        os.fsync(handle.fileno())  # also reports writes that failed after `write` had returned
    size, digest = _measure(temporary)
    stored = StoredFile(f"{stem}-{digest[:16]}.{suffix}", size, digest)
    temporary.replace(path / stored.name)
    return stored


def _verify(path: Path, stored: StoredFile) -> None:
    file = path / stored.name
    try:
        size = file.stat().st_size
        if size != stored.size:
            raise _damaged(file, f"it has {size} bytes, the manifest says {stored.size}")
        if _measure(file) != (stored.size, stored.sha256):
            raise _damaged(file, "its SHA-256 digest is not the one in the manifest")
    except FileNotFoundError:
        raise _damaged(file, "it is missing") from None


def _measure(file: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, read in blocks."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb") as handle:
        while block := handle.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return size, digest.hexdigest()


def _manifest_text(snapshot: Snapshot) -> str:
    manifest: dict[str, Any] = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "kind": snapshot.kind,
        "facts": snapshot.facts,
        "files": {
            part: {"name": stored.name, "size": stored.size, "sha256": stored.sha256}
            for part, stored in snapshot.files.items()
        },
    }
    return json.dumps({**manifest, "checksum": _checksum(manifest)}, indent=2, sort_keys=True) + "\n"


def _checksum(manifest: Mapping[str, Any]) -> str:
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _remove_stale(snapshot: Snapshot) -> None:
    """Delete what former or interrupted saves left, and nothing else."""
    current = {stored.name for stored in snapshot.files.values()}
    for file in snapshot.path.iterdir():
        ours = _STORED_NAME.fullmatch(file.name) or _SCRATCH_NAME.fullmatch(file.name)
        if ours and file.name not in current:
            # A file that stays is harmless; a reader on Windows may hold it open.
            with contextlib.suppress(OSError):
                file.unlink()


def _damaged(file: Path, what: str) -> IntegrityError:
    return IntegrityError(f"{file} is damaged: {what}; restore it from a copy or rebuild it from its source")


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut."""
    if os.name == "nt":  # a directory cannot be opened there, and renames are journalled
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Advisory lock on the directory, freed by the system when the process dies.

    Where the platform or file system has none, two processes must not save to one directory at once.
    """
    try:
        import fcntl

        descriptor = os.open(path, os.O_RDONLY)
    except (ImportError, OSError):  # a missing directory is reported by the caller, in its own words
        yield
        return
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)
