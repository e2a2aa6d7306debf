"""An index that follows a catalog, and its snapshots in the album's directory.

The index is never written to on its own account: it takes the steps of
:meth:`VectorLog.changes <zsqretrieval.album.changes.VectorLog.changes>` after an addition, after a load, after
another process has written, and from the very beginning when its snapshot is damaged. What it follows are the
vectors of images, or those of questions.
"""

from __future__ import annotations

import re
import secrets
import shutil
import threading
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import cast, final

from typing_extensions import Self

from zsqretrieval._util.files import locked
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.changes import Change, Position, VectorLog
from zsqretrieval.errors import IntegrityError, MismatchError
from zsqretrieval.plugins import check_empty_index, describe, empty_like, restore
from zsqretrieval.protocols import Encoder, Index

__all__ = ["Follower"]


@final
class Follower:
    """Keeps an index where a log of its catalog stands.

    Args:
        catalog: the truth, which also remembers the snapshot.
        log: of the catalog; what the index follows.
        index: holds exactly the vectors of ``position``.
        position: a position of the log.
        name: of the snapshot, in the catalog and as the beginning of its folder's name.
    """

    def __init__(
        self,
        catalog: Catalog,
        log: VectorLog,
        index: Index,
        position: Position | None = None,
        *,
        name: str = "index",
    ) -> None:
        self._catalog = catalog
        self._log = log
        self._name = name
        self._index = index
        # None while a step is being taken, and for good when it was interrupted: the index is then in doubt.
        self._position: Position | None = position or Position()
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """The index, where it was last brought to."""
        return self._index

    def follow(self) -> Index:
        """Bring the index to where the log stands, and return it."""
        if self._position != self._log.position:
            with self._lock:
                if self._position is None:
                    self._index, self._position = empty_like(self._index), Position()
                for change in self._log.changes(self._position):
                    self._take(change)
        return self._index

    def _take(self, change: Change) -> None:
        self._position = None
        if len(change.removed_keys):
            self._index.remove(change.removed_keys)
        if len(change.added_keys):
            self._index.add(change.added_keys, change.added_vectors)
        self._position = change.position

    def save(self, album: Path) -> None:
        """Write a snapshot of the index into the album, and delete all others. Nothing without a plugin name.

        Raises:
            OSError: the disk refuses; the former snapshot is still valid.
        """
        part = describe("index", self._index)
        if part is None:
            return
        with locked(album, exclusive=True), self._lock:
            self.follow()
            folder = f"{self._name}-{secrets.token_hex(4)}"
            try:
                self._index.save(album / folder)
                position = asdict(cast(Position, self._position))
                # The one step that makes the snapshot valid, together with its position.
                self._catalog.set_meta(self._name, {"part": part, "folder": folder, "position": position})
            finally:
                self._sweep(album)

    def _sweep(self, album: Path) -> None:
        """Delete the snapshots that former, failed and killed saves left."""
        current = (self._catalog.get_meta(self._name) or {}).get("folder")
        snapshot = re.compile(rf"{self._name}-[0-9a-f]{{8}}")
        for folder in album.iterdir():
            if snapshot.fullmatch(folder.name) and folder.name != current:
                shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def load(
        cls,
        catalog: Catalog,
        log: VectorLog,
        encoder: Encoder,
        album: Path,
        *,
        name: str = "index",
        empty: Index | None = None,
    ) -> Self:
        """Read the snapshot of an album; an empty index where there is none, or it is damaged.

        Args:
            catalog: the truth.
            log: of the catalog; what the index follows.
            encoder: makes the vectors.
            album: its directory.
            name: of the snapshot.
            empty: an empty index to fill where the snapshot is of another kind; the album's when None.

        Raises:
            AlbumError: the index of the album is not a plugin.
        """
        with locked(album, exclusive=False):  # a save would delete the snapshot that is being read
            saved = catalog.get_meta(name)
            if empty is None:
                part = saved["part"] if saved else catalog.settings.get("index")
                empty = cast(Index, restore("index", part, album))
            elif saved is not None and saved["part"] != describe("index", empty):
                saved = None
            check_empty_index(encoder, empty)
            if saved is None:
                return cls(catalog, log, empty, name=name)
            try:
                index = type(empty).load(
                    album / saved["folder"], dim=encoder.dim, fingerprint=empty.fingerprint or None
                )
                return cls(catalog, log, index, Position(**saved["position"]), name=name)
            except (IntegrityError, MismatchError, OSError) as error:
                warnings.warn(
                    f"the saved {name} of {album} is damaged and is rebuilt from the catalog; "
                    f"save() will keep the new one ({error})",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return cls(catalog, log, empty, name=name)
