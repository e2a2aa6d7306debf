"""An index that is kept in step with a catalog, and its snapshots in the album's directory.

The index only changes by the steps of the change log (:meth:`VectorLog.changes
<zsqretrieval.album.changes.VectorLog.changes>`) of the images or of the questions: after an add, after
loading, and after another process has written. A damaged snapshot is replaced by replaying the log from the
beginning.
"""

from __future__ import annotations

import secrets
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar, cast, final

from typing_extensions import Self

from zsqretrieval._util.files import locked
from zsqretrieval._util.processes import Lock
from zsqretrieval._util.untrusted import has_holes
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.changes import Position, VectorLog
from zsqretrieval.album.settings import SNAPSHOTS, SavedIndex
from zsqretrieval.errors import AlbumError, DamagedIndexError, IntegrityError, MismatchError
from zsqretrieval.plugins import check_empty_index, describe, empty_like
from zsqretrieval.protocols import Encoder, Index

_Answer = TypeVar("_Answer")

_DAMAGE = (IntegrityError, MismatchError, OSError, ValueError, EOFError)  # what reading damaged files raises


@final
class IndexSync:
    """Keeps an index in step with a change log of a catalog; it holds exactly the vectors of ``position``.

    ``name`` is that of its snapshot in the catalog, and of the snapshot's folder in :data:`SNAPSHOTS
    <zsqretrieval.album.settings.SNAPSHOTS>`.
    """

    def __init__(
        self,
        catalog: Catalog,
        log: VectorLog,
        index: Index,
        position: Position = Position(),  # noqa: B008  # frozen
        *,
        name: str = "index",
    ) -> None:
        self._catalog, self._log, self._name, self._index = catalog, log, name, index
        # None during a step. It stays None after an interrupt: the index may hold half of the step.
        self._position: Position | None = position
        self._last_key: int | None = None  # that it takes; None for all
        self._snapshot: tuple[Encoder, Path] | None = None  # where it is to be loaded from
        self._lock = Lock()

    @property
    def like(self) -> Index:
        """An index of its class and settings: itself, or an empty one while it is not loaded."""
        return self._index

    @property
    def index(self) -> Index:
        """The index as of the last :meth:`update`."""
        if self._snapshot is not None:
            self.update()
        return self._index

    def update(self) -> Index:
        """Bring the index up to date, and return it."""
        if self._snapshot is not None or self._position != self._log.position:
            with self._lock:
                self._follow()
        return self._index

    def ask(self, question: Callable[[Index], _Answer]) -> _Answer:
        """The answer of the index, up to date; of a new one if it finds that its file is damaged.

        An index may verify its file only where it reads it, in the middle of a search.
        """
        index = self.update()
        try:
            return question(index)
        except DamagedIndexError as error:
            with self._lock:
                if self._index is index:
                    self._start_again(error)
            return question(self.update())

    def _start_again(self, error: Exception) -> None:
        """Let the next step build a new index: the file of this one is damaged."""
        _warn(f"the saved {self._name} is damaged and is", error)
        self._position = None

    def follow(self) -> None:
        """Bring the index up to date if it is loaded."""
        if self._snapshot is None:
            self.update()

    def _follow(self) -> None:
        if self._snapshot is not None:
            self._load(*self._snapshot)
            self._snapshot = None
        try:
            self._take_changes()
        except DamagedIndexError as error:
            self._start_again(error)
            self._take_changes()

    def _take_changes(self) -> None:
        index, position = self._index, self._position
        anew = position is None  # then searches wait until it is whole
        if position is None:
            index, position = empty_like(index), Position()
        for change in self._log.changes(position):
            added, removed = change.added_keys, change.removed_keys
            if self._last_key is not None:
                added, removed = added[:0], removed[removed <= self._last_key]
            self._position = None
            if len(removed):
                index.remove(removed)
            if len(added):
                index.add(added, change.added_vectors)
            position = change.position
            if not anew:
                self._position = position
        self._index, self._position = index, position

    def compact(self) -> None:
        """Let the index forget removed vectors, if it can and would keep them until later."""
        with self._lock:
            self._follow()
            try:
                getattr(self._index, "compact", lambda: None)()
            except DamagedIndexError as error:
                self._start_again(error)  # a new one holds no removed vectors
                self._follow()

    @contextmanager
    def retiring(self) -> Iterator[Callable[[VectorLog], None]]:
        """Make updates wait for the block, which gives all images vectors of another encoder.

        Yields a function that takes the log of these. From then on this index only follows removals, for
        searches that still run.
        """
        with self._lock:
            self._follow()
            last_key = cast(Position, self._position).last_key

            def hand_over(log: VectorLog) -> None:
                self._log, self._last_key = log, last_key

            yield hand_over

    def save(self, album: Path) -> None:
        """Save a snapshot of the index, and delete all others; does nothing if the index is not a plugin.

        An OSError leaves the former snapshot valid.
        """
        part = describe("index", self._index)
        if part is None:
            return
        self._catalog.check_place()
        self.update()  # which locks the album, too, to load the index
        with locked(album, exclusive=True), self._lock:
            self._catalog.check_place()  # or the snapshots of another album would be deleted
            folder = f"{self._name}-{secrets.token_hex(4)}"
            try:
                self.ask(lambda index: index.save(album / folder))
                position = asdict(cast(Position, self._position))
                # The commit: from here on the new snapshot is the valid one, with its position.
                self._catalog.set_snapshot(self._name, {"part": part, "folder": folder, "position": position})
            finally:  # delete the snapshots of earlier, failed and killed saves
                saved = saved_index(self._catalog, self._name)
                current = None if saved is None else saved.folder
                for other in album.iterdir():
                    if SNAPSHOTS[self._name].fullmatch(other.name) and other.name != current:
                        shutil.rmtree(other, ignore_errors=True)

    @classmethod
    def saved(
        cls,
        catalog: Catalog,
        log: VectorLog,
        encoder: Encoder,
        album: Path,
        *,
        empty: Index,
        name: str = "index",
    ) -> Self:
        """The index of an album's snapshot, if that is of the kind of ``empty``, an empty index.

        It is loaded when it is first used: an index of a million vectors takes seconds. It is built from the
        catalog if there is no such snapshot, or, with a warning, if the snapshot is damaged.
        """
        check_empty_index(encoder, empty)
        sync = cls(catalog, log, empty, name=name)
        sync._snapshot = encoder, album
        return sync

    def _load(self, encoder: Encoder, album: Path) -> None:
        empty, name = self._index, self._name
        try:
            self._catalog.check_place()
        except AlbumError:
            return  # the folder is gone, or another album's; the open catalog has all vectors
        with locked(album, exclusive=False):  # or a save would delete the snapshot while it is loaded
            saved = saved_index(self._catalog, name)
            if saved is None or saved.part != describe("index", empty):
                return
            try:
                _check_files(album / saved.folder)
                if saved.position.is_beyond(self._log.position):
                    raise IntegrityError(f"it stands at {saved.position}, which is still to come")
                index = type(empty).load(
                    album / saved.folder, dim=encoder.dim, fingerprint=empty.fingerprint or None
                )
                self._index, self._position = index, saved.position
            except _DAMAGE as error:  # anything else is a mistake in the index's own code
                _warn(f"the saved {name} of {album} is damaged and is", error)


def saved_index(catalog: Catalog, name: str) -> SavedIndex | None:
    """The description of a snapshot; None if there is none or, with a warning, if it is damaged."""
    try:
        return SavedIndex.read(catalog, name)
    except IntegrityError as error:
        _warn("the index is", error)
        return None


def _check_files(snapshot: Path) -> None:
    """Refuse a snapshot whose files would take for ever to verify."""
    for file in snapshot.rglob("*"):
        if has_holes(file):
            raise IntegrityError(f"{file} claims {file.stat().st_size} bytes that are not on the disk")


def _warn(what: str, error: Exception) -> None:
    frame, level = sys._getframe(), 1  # the index is loaded by a search, an add, a save...
    while frame.f_back is not None and frame.f_globals["__name__"].startswith("zsqretrieval."):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{what} rebuilt from the catalog; save() writes a new one ({error})",
        RuntimeWarning,
        stacklevel=level,
    )
