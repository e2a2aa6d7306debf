"""Image states kept beside the index: what the seeing part of a generator made of each image.

A state is kept under the digest of its image and in a directory named after the generator. So a state that
is found is always the right one, whatever has become of the catalog since, and a missing one costs time only.

    states-1f2e3d4c5b6a7980/      of one generator
        9a41d5b07c22e6f8.states   a segment, written once: what a batch brought, or a sweep put together

A segment begins with a header, JSON with a checksum, that lists the digest and CRC-32 of every row; the rows
follow, to be mapped into memory. It appears under its name only when all of it is on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.files import locked, sync_directory
from zsqretrieval.errors import AlbumError, ZsqError
from zsqretrieval.protocols import ImageStates

__all__ = ["StateStore", "segment_facts"]

_START = struct.Struct("<8sII")  # magic, bytes of the header, its CRC-32
_MAGIC = b"zsqSTAT1"
_ALIGNMENT = 64
_SUFFIX = ".states"
_SMALL = 64 << 20  # bytes; smaller segments are put together by a sweep
_OPEN = 100  # segments put together at once: each that is mapped holds a file open


@dataclass(frozen=True, slots=True)
class _Segment:
    """Where the rows of a segment start, in bytes, and how many there are."""

    start: int
    rows: int


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a state lies."""

    segment: str
    row: int
    crc32: int


@final
class StateStore:
    """The states of one generator's images, by the digests of the images.

    Args:
        generator: makes them; only its fingerprint, shape and dtype are asked for.
        album: directory of the album; None keeps states in memory.

    Methods may be called from several threads. Several processes may use one album.
    """

    def __init__(self, generator: ImageStates, album: Path | None = None) -> None:
        self.fingerprint = generator.fingerprint
        self._shape = tuple(generator.state_shape)
        self._dtype = np.dtype(generator.state_dtype)
        self._folder: Path | None = None
        self._memory: dict[str, NDArray[Any]] = {}
        self._places: dict[str, _Place] = {}
        self._segments: dict[str, _Segment | None] = {}  # None where the header is damaged
        self._damaged: set[str] = set()  # segments with rows that are
        self._lock = threading.RLock()
        if album is not None:
            self.move_to(album)

    @property
    def in_memory(self) -> bool:
        """Whether states are lost with the process."""
        return self._folder is None

    def move_to(self, album: Path) -> None:
        """Keep states in an album's directory from now on, those in memory included.

        Raises:
            AlbumError: the disk refuses; the states are still in memory.
        """
        kind = json.dumps(self._facts(), sort_keys=True)  # a generator may have a narrower dtype elsewhere
        folder = album / f"states-{hashlib.sha256(kind.encode()).hexdigest()[:16]}"
        with self._lock:
            try:
                folder.mkdir(exist_ok=True)
                if self._memory:
                    _write(folder, self._facts(), list(self._memory.items()))
            except OSError as error:
                raise AlbumError(f"image states cannot be kept in {folder}: {error.strerror}") from error
            self._folder, self._memory = folder, {}
            self._look()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Nothing is swept away meanwhile: around :meth:`put` and the adding of the images themselves."""
        with self._lock if self._folder is None else locked(self._folder, exclusive=False):
            yield

    def missing(self, digests: Iterable[str]) -> list[str]:
        """Those digests of which there is no state, each once."""
        wanted = list(dict.fromkeys(digests))
        with self._lock:
            if any(digest not in self._places for digest in wanted):
                self._look()
            return [one for one in wanted if one not in self._places and one not in self._memory]

    def get(self, digests: Iterable[str]) -> dict[str, NDArray[Any]]:
        """The states that are there, each verified by its checksum.

        A damaged one counts as missing, with a RuntimeWarning.

        Returns:
            Arrays of the generator's ``state_shape`` by digest, read-only; mapped from disk or in memory.
        """
        wanted = list(dict.fromkeys(digests))
        with self._lock:
            missing = set(self.missing(wanted))
            found = {digest: self._memory[digest] for digest in wanted if digest in self._memory}
            lying_in: dict[str, list[str]] = {}
            for digest in wanted:
                if digest not in missing and digest not in found:
                    lying_in.setdefault(self._places[digest].segment, []).append(digest)
            gone = [segment for segment, some in lying_in.items() if not self._read(segment, some, found)]
            if not gone:
                return found
            self._forget(gone)  # put together with others by another process
            return found | self.get(digest for segment in gone for digest in lying_in[segment])

    def put(self, states: Mapping[str, NDArray[Any]]) -> None:
        """Keep states; on disk once this returns, if there is a directory. To be called within :meth:`held`.

        Raises:
            ZsqError: a state is not of the generator's ``state_shape`` and ``state_dtype``.
            OSError: the disk refuses; nothing was kept.
        """
        for state in states.values():
            if state.shape != self._shape or state.dtype != self._dtype:
                raise ZsqError(
                    f"the generator {self.fingerprint!r} made a state of {state.dtype} {list(state.shape)} "
                    f"but says {self._dtype} {list(self._shape)}; run zsqretrieval.testing.check_generator"
                )
        if not states:
            return
        with self._lock:
            if self._folder is None:
                self._memory |= {digest: _frozen(state) for digest, state in states.items()}
            else:
                self._enter(*_write(self._folder, self._facts(), list(states.items())))

    def sweep(self, known: Callable[[list[str]], Container[str]]) -> None:
        """Forget the states of images that are gone, and put small segments together.

        Args:
            known: of some digests, those whose images are still there.

        Raises:
            OSError: the disk refuses; nothing was lost.
        """
        folder = self._folder
        if folder is None:
            with self._lock:
                kept = known(list(self._memory))
                self._memory = {digest: state for digest, state in self._memory.items() if digest in kept}
            return
        with locked(folder, exclusive=True), self._lock:  # in this order, as in `held` and then `put`
            self._look()
            poor = self._poor(folder, known)
            for start in range(0, len(poor), _OPEN):
                self._put_together(folder, poor[start : start + _OPEN])
            for leftover in folder.glob(".*.tmp"):  # of a killed process: nobody is writing now
                leftover.unlink(missing_ok=True)

    def _poor(self, folder: Path, known: Callable[[list[str]], Container[str]]) -> list[str]:
        """Forget the states of images that are gone; the segments that are not worth keeping as they are."""
        living: dict[str, list[str]] = {name: [] for name in self._segments}
        for digest, place in self._places.items():
            living[place.segment].append(digest)
        sparse: list[str] = []
        small: list[str] = []
        for name, digests in living.items():
            kept = known(digests)
            for digest in digests:
                if digest not in kept:
                    del self._places[digest]
            segment = self._segments[name]
            living_rows = sum(digest in kept for digest in digests)
            if segment is None or name in self._damaged or 2 * living_rows < segment.rows:
                sparse.append(name)
            elif (folder / name).stat().st_size < _SMALL:
                small.append(name)
        return sparse + small if sparse or len(small) > 1 else []

    def _put_together(self, folder: Path, names: Sequence[str]) -> None:
        states = self.get([digest for digest, place in self._places.items() if place.segment in names])
        if states:
            self._enter(*_write(folder, self._facts(), list(states.items())))
        self._forget(names)
        for name in names:
            with contextlib.suppress(OSError):  # Windows keeps what is mapped; a later sweep removes it
                (folder / name).unlink()

    # --- segments -----------------------------------------------------------------------------------------

    def _facts(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "shape": list(self._shape), "dtype": self._dtype.str}

    def _look(self) -> None:
        """Take notice of the segments that have appeared."""
        if self._folder is None:
            return
        names = set[str]()
        with contextlib.suppress(FileNotFoundError):  # somebody has thrown the states away
            names = {file.name for file in os.scandir(self._folder) if file.name.endswith(_SUFFIX)}
        self._forget(self._segments.keys() - names)
        for name in sorted(names - self._segments.keys()):
            try:
                header, segment = _read_header(self._folder / name)
                if {key: header.get(key) for key in self._facts()} != self._facts():
                    raise ValueError("it was not made by this generator")
                rows = [(str(digest), int(crc32)) for digest, crc32 in header["rows"]]
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                self._segments[name] = None
                _warn(f"{self._folder / name} is damaged ({error})")
            else:
                self._enter(name, segment, rows)

    def _enter(self, name: str, segment: _Segment, rows: Sequence[tuple[str, int]]) -> None:
        self._segments[name] = segment
        self._places |= {digest: _Place(name, row, crc32) for row, (digest, crc32) in enumerate(rows)}

    def _forget(self, names: Collection[str]) -> None:
        if names:
            gone = set(names)
            self._segments = {name: one for name, one in self._segments.items() if name not in gone}
            self._places = {digest: one for digest, one in self._places.items() if one.segment not in gone}
            self._damaged -= gone

    def _read(self, name: str, digests: Sequence[str], found: dict[str, NDArray[Any]]) -> bool:
        """Add sound rows of a segment to ``found``, forget damaged ones; False when the segment is gone."""
        segment = self._segments[name]
        assert self._folder is not None and segment is not None
        file = self._folder / name
        rows: NDArray[Any] | None = None
        try:
            shape = (segment.rows, *self._shape)
            rows = np.memmap(file, self._dtype, mode="r", offset=segment.start, shape=shape)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):  # it is cut short
            pass
        damaged = 0
        for digest in digests:
            place = self._places[digest]
            if rows is not None and _checksum(rows[place.row]) == place.crc32:
                found[digest] = rows[place.row]
            else:
                del self._places[digest]
                damaged += 1
        if damaged:
            self._damaged.add(name)
            _warn(f"{damaged} of {len(digests)} image states in {file} are damaged")
        return True


def _write(
    folder: Path, facts: Mapping[str, Any], states: Sequence[tuple[str, NDArray[Any]]]
) -> tuple[str, _Segment, list[tuple[str, int]]]:
    """Write a segment; its name, and the digest and CRC-32 of every row."""
    rows = [(digest, _checksum(state)) for digest, state in states]
    header = json.dumps({**facts, "rows": rows}).encode()
    header += b" " * (-(len(header) + _START.size) % _ALIGNMENT)
    name = f"{secrets.token_hex(8)}{_SUFFIX}"
    unfinished = folder / f".{name}.tmp"
    folder.mkdir(exist_ok=True)
    try:
        with unfinished.open("wb") as file:
            file.write(_START.pack(_MAGIC, len(header), zlib.crc32(header)) + header)
            for _, state in states:
                file.write(state.tobytes())
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(folder / name)
        sync_directory(folder)
    finally:
        unfinished.unlink(missing_ok=True)
    return name, _Segment(_START.size + len(header), len(rows)), rows


def segment_facts(path: Path) -> Mapping[str, Any]:
    """What a segment says of itself: ``fingerprint``, ``dtype``, and ``rows``, each with its digest first.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    facts, _ = _read_header(path)
    return facts


def _read_header(path: Path) -> tuple[dict[str, Any], _Segment]:
    """The header of a segment, verified, and where its rows lie.

    Raises:
        ValueError: it is damaged.
    """
    with path.open("rb") as file:
        start = file.read(_START.size)
        if len(start) < _START.size:
            raise ValueError("it is cut short")
        magic, length, crc32 = _START.unpack(start)
        header = file.read(length)
    if magic != _MAGIC or len(header) < length or zlib.crc32(header) != crc32:
        raise ValueError("the checksum of its header does not match")
    facts: dict[str, Any] = json.loads(header)
    return facts, _Segment(_START.size + length, len(facts["rows"]))


def _checksum(state: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(state).data)


def _frozen(state: NDArray[Any]) -> NDArray[Any]:
    kept: NDArray[Any] = state.copy()
    kept.flags.writeable = False
    return kept


def _warn(what: str) -> None:
    warnings.warn(
        f"{what}; what is missing is computed again, and save() clears the rest away",
        RuntimeWarning,
        stacklevel=2,
    )
