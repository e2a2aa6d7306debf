"""An index that follows a catalog, and its snapshots in the album's directory.

The index is never written to on its own account: it takes the steps of
:meth:`Catalog.changes <zsqretrieval.catalog.Catalog.changes>` after an addition, after a load, after another
process has written, and from the very beginning when its snapshot is damaged.
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

from zsqretrieval.catalog import Catalog, Change, Position
from zsqretrieval.errors import IntegrityError, MismatchError
from zsqretrieval.parts import check_parts, describe, empty_like, restore
from zsqretrieval.protocols import Encoder, Index
from zsqretrieval.storage import locked

__all__ = ["Follower"]

_FOLDER = re.compile(r"index-[0-9a-f]{8}")


@final
class Follower:
    """Keeps an index where its catalog stands.

    Args:
        catalog: the truth.
        index: holds exactly the images of ``position``.
        position: a position of the catalog.
    """

    def __init__(self, catalog: Catalog, index: Index, position: Position | None = None) -> None:
        self._catalog = catalog
        self._index = index
        # None while a step is being taken, and for good when it was interrupted: the index is then in doubt.
        self._position: Position | None = position or Position()
        self._lock = threading.RLock()

    @property
    def index(self) -> Index:
        """The index, where it was last brought to."""
        return self._index

    def follow(self) -> Index:
        """Bring the index to where the catalog stands, and return it."""
        if self._position != self._catalog.position:
            with self._lock:
                if self._position is None:
                    self._index, self._position = empty_like(self._index), Position()
                for change in self._catalog.changes(self._position):
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
            folder = f"index-{secrets.token_hex(4)}"
            try:
                self._index.save(album / folder)
                position = asdict(cast(Position, self._position))
                # The one step that makes the snapshot valid, together with its position.
                self._catalog.set_meta("index", {"part": part, "folder": folder, "position": position})
            finally:
                self._sweep(album)

    def _sweep(self, album: Path) -> None:
        """Delete the snapshots that former, failed and killed saves left."""
        current = (self._catalog.get_meta("index") or {}).get("folder")
        for folder in album.iterdir():
            if _FOLDER.fullmatch(folder.name) and folder.name != current:
                shutil.rmtree(folder, ignore_errors=True)

    @classmethod
    def load(cls, catalog: Catalog, encoder: Encoder, album: Path) -> Self:
        """Read the snapshot of an album; an empty index where there is none, or it is damaged.

        Raises:
            AlbumError: the index of the album is not a plugin.
        """
        with locked(album, exclusive=False):  # a save would delete the snapshot that is being read
            saved = catalog.get_meta("index")
            empty: Index = restore("index", saved["part"] if saved else catalog.settings.get("index"), album)
            check_parts(encoder, empty)
            if saved is None:
                return cls(catalog, empty)
            try:
                index = type(empty).load(
                    album / saved["folder"], dim=encoder.dim, fingerprint=empty.fingerprint or None
                )
                return cls(catalog, index, Position(**saved["position"]))
            except (IntegrityError, MismatchError, OSError) as error:
                warnings.warn(
                    f"the saved index of {album} is damaged and is rebuilt from the catalog; "
                    f"save() will keep the new one ({error})",
                    RuntimeWarning,
                    stacklevel=3,
                )
        return cls(catalog, empty)
