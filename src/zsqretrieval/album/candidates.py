"""What a generator is shown: the state of an image where it is kept, else the image itself, opened again."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.catalog import Record
from zsqretrieval.album.features import StateStore
from zsqretrieval.data.reopen import Reopener
from zsqretrieval.errors import AlbumError, ImageError, InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Generator, ImageStates
from zsqretrieval.search.scoring import Scoring, score_images
from zsqretrieval.types import Image, ImageState, Progress

__all__ = ["StatesMode", "Viewer"]

StatesMode: TypeAlias = Literal["disk", "memory"] | None
"""Where image states are kept: in the album's directory, in memory, or nowhere."""


@final
class Viewer:
    """Shows images to a generator.

    Args:
        generator: sees them; not made before it is needed.
        states: where image states are kept.
        album: directory of the album; None while it lives in memory, and states with it.
    """

    def __init__(self, generator: LazyGenerator, states: StatesMode, album: Path | None) -> None:
        if states not in ("disk", "memory", None):
            raise InvalidInputError(f"states must be 'disk', 'memory' or None, not {states!r}")
        if states is not None and generator.made is not None:
            _check_states(generator.made)
        self.generator = generator
        self.states: StatesMode = states
        self._album = album
        self._store: StateStore | None = None
        self._lock = threading.Lock()

    def move_to(self, album: Path) -> None:
        """The album lives in a directory from now on.

        Raises:
            AlbumError: the disk refuses.
        """
        with self._lock:
            if self.states == "disk" and self._store is not None and self._store.in_memory:
                self._store.move_to(album)
            self._album = album

    def _opened(self) -> StateStore | None:
        """Where states are kept; makes the generator, whose fingerprint names them."""
        if self.states is not None and self._store is None:
            generator = _check_states(self.generator.get())
            with self._lock:
                if self._store is None:
                    self._store = StateStore(generator, self._album if self.states == "disk" else None)
        return self._store

    # --- adding -------------------------------------------------------------------------------------------

    def blind_to(self, digests: Iterable[str]) -> set[str]:
        """Of some digests, those whose states are to be kept and are not."""
        store = self._opened()
        return set() if store is None else set(store.missing(digests))

    @contextlib.contextmanager
    def keeping(self, images: Mapping[str, Image]) -> Iterator[None]:
        """Keep the states of images by digest; on disk when the block begins, where the images are added.

        In this order an image that was added has its state, even if it came as bytes and cannot be opened
        again. A crash in between leaves a state without an image, which does no harm.

        Raises:
            AlbumError: the disk refuses.
        """
        store = self._opened()
        if store is None:
            yield
            return
        states: dict[str, NDArray[Any]] = {}
        while True:
            new = [digest for digest in store.missing(images) if digest not in states]
            states |= zip(new, self._see([images[digest] for digest in new]), strict=True)
            with store.held():
                missing = store.missing(images)
                if not states.keys() >= set(missing):  # something was swept away just before
                    continue
                try:
                    store.put({digest: states[digest] for digest in missing})
                except OSError as error:
                    raise AlbumError(f"image states cannot be written: {error.strerror or error}") from error
                yield
                return

    def sweep(self, known: Callable[[list[str]], Container[str]]) -> None:
        """Forget the states of images that are gone; only where states were used."""
        if self._store is not None:
            self._store.sweep(known)

    # --- searching ----------------------------------------------------------------------------------------

    def score(
        self,
        scoring: Scoring,
        question: str,
        records: Sequence[Record],
        *,
        batch_size: int,
        progress: Progress | None = None,
    ) -> NDArray[np.float64]:
        """Score images of the album for a question.

        An image that has no state, and whose source does not lead back to it, cannot be scored: a
        RuntimeWarning names it.

        Args:
            scoring: what the generator is asked.
            question: what the images are to answer.
            records: n images.
            batch_size: images shown together.
            progress: told after every batch how many are done; may raise to stop.

        Returns:
            float64 [n], higher is better; nan for images that cannot be scored.

        Raises:
            InvalidInputError, ZsqError: as :func:`~zsqretrieval.search.scoring.score_images`.
        """
        scores = np.full(len(records), np.nan)
        unseen: list[ImageError] = []
        with Reopener() as files:
            for start in range(0, len(records), batch_size):
                batch = records[start : start + batch_size]
                with self.showing(batch, files) as (generator, shown):
                    seen = {start + n: one for n, one in enumerate(shown) if not isinstance(one, ImageError)}
                    scores[list(seen)] = score_images(
                        generator, scoring, question, list(seen.values()), batch_size=batch_size
                    )
                unseen += [one for one in shown if isinstance(one, ImageError)]
                if progress is not None:
                    progress(start + len(batch), len(records))
        if unseen:
            names = "; ".join(map(str, unseen[:3])) + ("; ..." if len(unseen) > 3 else "")
            warnings.warn(
                f"{len(unseen)} of {len(records)} candidates cannot be shown to the generator and rank after "
                f"the others, in the order of the first stage: {names}. Keep image states (states='disk') of "
                "images that are not files, or do not stay",
                RuntimeWarning,
                stacklevel=3,
            )
        return scores

    @contextlib.contextmanager
    def showing(
        self, records: Sequence[Record], files: Reopener
    ) -> Iterator[tuple[Generator, list[Image | ImageState | ImageError]]]:
        """The generator, and what it can be shown of every record: the state, the image, or why neither.

        Args:
            records: n images of the album.
            files: opens images; kept open by the caller over several calls, for the sake of tars.
        """
        with self.generator.using() as generator:
            yield generator, self._show(records, files)

    def _show(self, records: Sequence[Record], files: Reopener) -> list[Image | ImageState | ImageError]:
        """Of every image its state, the image, or why there is neither."""
        store = self._opened()
        if store is None:
            return [_open(files, record) for record in records]
        states = store.get(record.digest for record in records)
        opened = {one.digest: _open(files, one) for one in records if one.digest not in states}
        images = {digest: one for digest, one in opened.items() if isinstance(one, Image)}
        new = dict(zip(images, self._see(list(images.values())), strict=True))
        try:
            with store.held():
                store.put(new)
        except OSError as error:
            warnings.warn(
                f"image states cannot be written ({error}) and will be computed again",
                RuntimeWarning,
                stacklevel=4,
            )
        states |= new
        return [
            ImageState(states[one.digest], store.fingerprint, one.source)
            if one.digest in states
            else opened[one.digest]
            for one in records
        ]

    def _see(self, images: Sequence[Image]) -> Sequence[NDArray[Any]]:
        if not images:
            return []
        with self.generator.using() as generator:
            return list(_check_states(generator).image_states(images))


def _open(files: Reopener, record: Record) -> Image | ImageError:
    try:
        return files.open(record.source, record.digest)
    except ImageError as error:
        return error


def _check_states(generator: Generator) -> ImageStates:
    if not isinstance(generator, ImageStates):
        raise InvalidInputError(
            f"{type(generator).__name__} makes no image states, so none can be kept; use states=None"
        )
    return generator
