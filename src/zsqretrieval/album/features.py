"""Image features (states) of a generator, cached in the album.

Features are stored by the digest of their image, in a folder named after the generator. So features that are
found are always the right ones, whatever has changed in the catalog, and missing ones only cost time.

    states-1f2e3d4c5b6a7980/                one generator
        9a41d5b07c22e6f8.safetensors        one batch, or several small ones merged by a sweep; written once

A file has one tensor per image, named by the digest, in the order of the digests. Its metadata hold the
CRC-32 of every tensor and their own SHA-256. Reading some images reads only their tensors.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import warnings
import zlib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from zsqretrieval._util.files import atomic_write, locked
from zsqretrieval._util.floats import all_finite
from zsqretrieval._util.processes import Lock
from zsqretrieval._util.untrusted import has_holes, parse_json
from zsqretrieval.errors import AlbumError
from zsqretrieval.protocols import ImageStates

FOLDER = re.compile(r"states-[0-9a-f]{16}")
"""Name of a generator's folder in an album."""

_SUFFIX = ".safetensors"
_SMALL = 64 << 20  # bytes; a sweep merges smaller files


@dataclass(frozen=True, slots=True)
class StateKind:
    """What is stored, if it is not the features of a generator."""

    fingerprint: str
    state_shape: tuple[int, ...]
    state_dtype: Any


@dataclass(frozen=True, slots=True)
class _Place:
    """Where features stand."""

    file: str
    last: int  # 1 for the last tensor of the file, 2 for the one before it, and so on
    crc32: int


@final
class StateStore:
    """The cached image features of one generator, by the digests of the images; in memory without an album.

    Methods may be called from several threads. Several processes may use one album.
    """

    def __init__(self, generator: ImageStates | StateKind, album: Path | None = None) -> None:
        self.fingerprint = generator.fingerprint
        self._shape = tuple(generator.state_shape)
        self._dtype = np.dtype(generator.state_dtype)
        self._folder: Path | None = None
        self._memory: dict[str, NDArray[Any]] = {}
        self._places: dict[str, _Place] = {}  # by digest
        self._files: dict[str, int | None] = {}  # number of tensors; None if the header is damaged
        self._damaged: set[str] = set()  # files with damaged tensors
        self._lock = Lock()
        if album is not None:
            self.move_to(album)

    def move_to(self, album: Path) -> None:
        """Store features in the directory of an album from now on, including those in memory.

        On an AlbumError (the disk refuses) they stay in memory.
        """
        folder = album / states_folder(self._facts())
        with self._lock:
            try:
                folder.mkdir(exist_ok=True)
                if self._memory:
                    _write(folder, self._facts(), self._memory)
            except OSError as error:
                raise AlbumError(f"image features cannot be stored in {folder}: {error.strerror}") from error
            self._folder, self._memory = folder, {}
            self._look()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Prevent sweeps: for :meth:`put` together with adding the images themselves."""
        with self._lock if self._folder is None else locked(self._folder, exclusive=False):
            yield

    def missing(self, digests: Iterable[str]) -> list[str]:
        """The digests without features, each once."""
        wanted = list(dict.fromkeys(digests))
        with self._lock:
            if any(digest not in self._places for digest in wanted):
                self._look()
            return [one for one in wanted if one not in self._places and one not in self._memory]

    def get(self, digests: Iterable[str]) -> dict[str, NDArray[Any]]:
        """The features that are stored, verified by their checksums; read-only.

        Damaged features count as missing, with a RuntimeWarning.
        """
        wanted = list(dict.fromkeys(digests))
        with self._lock:
            missing = set(self.missing(wanted))
            found = {digest: self._memory[digest] for digest in wanted if digest in self._memory}
            by_file: dict[str, list[str]] = {}
            for digest in wanted:
                if digest not in missing and digest not in found:
                    by_file.setdefault(self._places[digest].file, []).append(digest)
            for file, some in by_file.items():
                self._announce(file, some)
            gone = [file for file, some in by_file.items() if not self._read(file, some, found)]
            if not gone:
                return found
            self._forget(gone)  # another process has merged them
            return found | self.get(digest for file in gone for digest in by_file[file])

    def put(self, states: Mapping[str, NDArray[Any]]) -> None:
        """Store features, on disk when this returns if there is a directory; call within :meth:`held`.

        Raises:
            OSError: the disk refuses; nothing was stored.
        """
        if not states:
            return
        with self._lock:
            if self._folder is None:
                self._memory |= {digest: _read_only(state.copy()) for digest, state in states.items()}
            else:
                self._enter(*_write(self._folder, self._facts(), states))

    def drop(self) -> None:
        """Delete everything that is stored."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def sweep(self, known: Callable[[list[str]], Container[str]], *, every: bool = False) -> None:
        """Delete the features of removed images, and merge small files.

        Args:
            known: returns the digests, out of some, of images that still exist.
            every: rewrite every file that has features of a removed image, not only those that have many.
        """
        folder = self._folder
        if folder is None:
            with self._lock:
                kept = known(list(self._memory))
                self._memory = {digest: state for digest, state in self._memory.items() if digest in kept}
            return
        with locked(folder, exclusive=True), self._lock:  # in this order, as in `held` and then `put`
            self._look()
            some: list[str] = []
            size = 0
            for file, count in self._to_merge(known, every):
                some.append(file)
                size += count * self._state_bytes
                if size >= _SMALL:  # the merged features are in memory
                    self._merge(folder, some)
                    some, size = [], 0
            self._merge(folder, some)
            for leftover in folder.glob(".*.tmp"):  # of a killed process: nobody writes now
                leftover.unlink(missing_ok=True)

    def _to_merge(self, known: Callable[[list[str]], Container[str]], every: bool) -> list[tuple[str, int]]:
        """Forget the features of removed images; returns files to rewrite, with their remaining images."""
        digests: dict[str, list[str]] = {file: [] for file in self._files}
        for digest, place in self._places.items():
            digests[place.file].append(digest)
        sparse: list[tuple[str, int]] = []
        small: list[tuple[str, int]] = []
        for file, stored in digests.items():
            kept = known(stored)
            gone = [digest for digest in stored if digest not in kept]
            for digest in gone:
                del self._places[digest]
            total, living = self._files[file], len(stored) - len(gone)
            if total is None or file in self._damaged or (living if every else 2 * living) < total:
                sparse.append((file, living))
            elif living * self._state_bytes < _SMALL:
                small.append((file, living))
        return sparse + small if sparse or len(small) > 1 else []

    def _merge(self, folder: Path, files: Sequence[str]) -> None:
        states = self.get([digest for digest, place in self._places.items() if place.file in files])
        if states:
            self._enter(*_write(folder, self._facts(), states))
        self._forget(files)
        for file in files:
            with contextlib.suppress(OSError):  # open in a reader on Windows; a later sweep deletes it
                (folder / file).unlink()

    @property
    def _state_bytes(self) -> int:
        return self._dtype.itemsize * math.prod(self._shape)

    def _facts(self) -> dict[str, Any]:
        return states_facts(StateKind(self.fingerprint, self._shape, self._dtype))

    def _look(self) -> None:
        """Read the headers of new files, and forget deleted ones."""
        if self._folder is None:
            return
        names = set[str]()
        with contextlib.suppress(FileNotFoundError):  # the user has deleted the folder
            names = {file.name for file in os.scandir(self._folder) if file.name.endswith(_SUFFIX)}
        self._forget(self._files.keys() - names)
        for name in sorted(names - self._files.keys()):
            try:
                facts = read_facts(self._folder / name)
                if {key: facts.get(key) for key in self._facts()} != self._facts():
                    raise ValueError("it was not made by this generator")
            except FileNotFoundError:
                continue
            except (OSError, ValueError) as error:
                self._files[name] = None
                _warn(f"{self._folder / name} is damaged ({error})")
            else:
                self._enter(name, facts["crc32"])

    def _enter(self, name: str, crc32: Mapping[str, int]) -> None:
        self._files[name] = len(crc32)
        self._places |= {
            digest: _Place(name, last, crc32[digest])
            for last, digest in enumerate(sorted(crc32, reverse=True), 1)
        }

    def _forget(self, files: Collection[str]) -> None:
        if files:
            gone = set(files)
            self._files = {name: count for name, count in self._files.items() if name not in gone}
            self._places = {digest: place for digest, place in self._places.items() if place.file not in gone}
            self._damaged -= gone

    def _announce(self, name: str, digests: Sequence[str]) -> None:
        """Ask the system for tensors of a file before they are read: a disk is faster with many requests."""
        if not hasattr(os, "posix_fadvise") or self._folder is None:
            return
        with contextlib.suppress(OSError), (self._folder / name).open("rb", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            for digest in digests:
                start = end - self._places[digest].last * self._state_bytes
                os.posix_fadvise(file.fileno(), max(start, 0), self._state_bytes, os.POSIX_FADV_WILLNEED)

    def _read(self, name: str, digests: Sequence[str], found: dict[str, NDArray[Any]]) -> bool:
        """Add the intact tensors of a file to ``found``, forget damaged ones; False if the file is gone."""
        assert self._folder is not None
        states: dict[str, NDArray[Any]] = {}
        try:
            with (self._folder / name).open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                for digest in digests:
                    state = np.empty(self._shape, self._dtype)
                    file.seek(max(end - self._places[digest].last * self._state_bytes, 0))
                    if file.readinto(state.data) == state.nbytes:
                        states[digest] = state
        except FileNotFoundError:
            return False
        except OSError:
            pass
        damaged = 0
        for digest in digests:
            stored = states.get(digest)
            if (
                stored is not None
                and zlib.crc32(stored.data) == self._places[digest].crc32
                and all_finite(stored)  # else a generator failed that was not checked
            ):
                found[digest] = _read_only(stored)
            else:
                del self._places[digest]
                damaged += 1
        if damaged:
            self._damaged.add(name)
            _warn(f"{damaged} of {len(digests)} image features in {self._folder / name} are damaged")
        return True


def sweep_all(
    album: Path,
    known: Callable[[list[str]], Container[str]],
    *,
    every: bool = False,
    opened: StateStore | None = None,
) -> None:
    """Delete the features of removed images that any generator computed; as :meth:`StateStore.sweep`.

    The store of the album that is open already is not read again, and also deletes what it found damaged.
    """
    done = None
    if opened is not None:
        opened.sweep(known, every=every)
        done = states_folder(opened._facts())
    for folder in sorted(one for one in album.glob("states-*") if FOLDER.fullmatch(one.name)):
        if folder.name == done:
            continue
        for _, facts in itertools.islice(_sound_files(folder), 1):
            with contextlib.suppress(KeyError, TypeError, ValueError):  # of another program
                store = StateStore(
                    StateKind(facts["fingerprint"], tuple(facts["shape"]), facts["dtype"]), album
                )
                store.sweep(known, every=every)


def take_states(ours: Path, theirs: Path, *, every: bool) -> int:
    """Copy the features of another album; returns the number of images that had none here.

    Of the generators that both albums have features of, or of every one.
    """
    taken = 0
    for folder in sorted(one for one in theirs.glob("states-*") if FOLDER.fullmatch(one.name)):
        here = ours / folder.name
        if not every and not here.is_dir():
            continue
        held = {digest for _, facts in _sound_files(here) for digest in facts["crc32"]}
        for file, facts in _sound_files(folder):
            if new := facts["crc32"].keys() - held:
                here.mkdir(exist_ok=True)
                with (
                    locked(here, exclusive=False),
                    atomic_write(here / f"{secrets.token_hex(8)}{_SUFFIX}") as temporary,
                ):
                    shutil.copyfile(file, temporary)
                held |= new
                taken += len(new)
    return taken


def _sound_files(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The files of a folder that have an intact header, and what it says."""
    for file in sorted(folder.glob(f"*{_SUFFIX}")):
        with contextlib.suppress(OSError, ValueError):
            yield file, read_facts(file)


def states_folder(facts: Mapping[str, Any]) -> str:
    """The folder of features with these facts: a generator may have a narrower dtype elsewhere."""
    return f"states-{_sha256(json.dumps(facts, sort_keys=True))[:16]}"


def states_facts(generator: ImageStates | StateKind) -> dict[str, Any]:
    """What a file of features says of their generator."""
    dtype = np.dtype(generator.state_dtype)
    return {"fingerprint": generator.fingerprint, "shape": list(generator.state_shape), "dtype": dtype.str}


def _write(
    folder: Path, facts: Mapping[str, Any], states: Mapping[str, NDArray[Any]]
) -> tuple[str, dict[str, int]]:
    """Write a file; returns its name, and the CRC-32 by digest."""
    name = f"{secrets.token_hex(8)}{_SUFFIX}"
    folder.mkdir(exist_ok=True)
    with atomic_write(folder / name) as temporary:
        return name, write_states(temporary, facts, states)


def write_states(file: Path, facts: Mapping[str, Any], states: Mapping[str, NDArray[Any]]) -> dict[str, int]:
    """Write features by digest to a new file; returns their CRC-32. Equal features make equal files."""
    tensors = {digest: np.ascontiguousarray(state) for digest, state in states.items()}
    crc32 = {digest: zlib.crc32(state.data) for digest, state in tensors.items()}
    text = json.dumps({**facts, "crc32": crc32})
    file.write_bytes(save(tensors, {"facts": text, "sha256": _sha256(text)}))
    return crc32


def read_facts(path: Path) -> dict[str, Any]:
    """Metadata of a file: fingerprint, shape, dtype, and crc32 by digest.

    Raises:
        ValueError: the file is damaged. Apart from crc32, the values may have any type.
    """
    if has_holes(path):  # which safetensors would map into memory
        raise ValueError("it claims bytes that are not on the disk")
    try:
        with safe_open(path, framework="np") as file:
            metadata, names = file.metadata() or {}, set(file.keys())
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if metadata.get("sha256") != _sha256(metadata.get("facts", "")):
        raise ValueError("the checksum of its header does not match")
    facts = parse_json(metadata.get("facts", ""))
    if not isinstance(facts, dict) or not isinstance(facts.get("crc32"), dict):
        raise ValueError("its header is no object with checksums")
    if names != facts["crc32"].keys() or not all(type(one) is int for one in facts["crc32"].values()):
        raise ValueError("its header does not list its tensors")
    return facts


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _read_only(state: NDArray[Any]) -> NDArray[Any]:
    state.flags.writeable = False
    return state


def _warn(what: str) -> None:
    warnings.warn(
        f"{what}; missing features are computed again, and save() deletes damaged ones",
        RuntimeWarning,
        stacklevel=2,
    )
