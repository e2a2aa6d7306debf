"""Images of an album as inputs of the generator: cached features, or else the reopened image."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, final

from numpy.typing import NDArray

from zsqretrieval._util.batches import batched, tell
from zsqretrieval._util.checks import first_of
from zsqretrieval._util.processes import Lock
from zsqretrieval.album.catalog import Record
from zsqretrieval.album.features import StateStore
from zsqretrieval.album.settings import AlbumSettings
from zsqretrieval.data.images import BYTES_AT_ONCE
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import AlbumError, ImageError, InvalidInputError
from zsqretrieval.generators.checked import read_images
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Generator, ImageStates
from zsqretrieval.types import Image, ImageState, Progress

StatesMode: TypeAlias = Literal["lazy", "disk"] | None
"""When image features are cached in the album's directory (in memory while the album is): on first use, when
an image is added, or never."""

_FEATURES_AT_ONCE = 16
_MANY = 32  # images whose features take a search several times as long as the rest of it

_log = logging.getLogger("zsqretrieval")


def parts_by_size(records: Sequence[Record]) -> Iterator[slice]:
    """Split images into parts of at most 256 MiB of encoded bytes each: one part for most searches."""
    start, size = 0, 0
    for n, record in enumerate(records):
        if n > start and size + record.bytes > BYTES_AT_ONCE:
            yield slice(start, n)
            start, size = n, 0
        size += record.bytes
    if start < len(records):
        yield slice(start, len(records))


@final
class Viewer:
    """Gives the generator the images of an album; ``album`` is None while it is in memory.

    Raises:
        InvalidInputError: no such mode, or a generator that computes no image features.
    """

    def __init__(self, generator: LazyGenerator, states: StatesMode, album: Path | None) -> None:
        if states not in ("lazy", "disk", None):
            raise InvalidInputError(f"states must be 'lazy', 'disk' or None, not {states!r}")
        if states == "disk" and generator.made is not None:
            _check_states(generator.made)
        self.generator = generator
        self.states: StatesMode = states
        self._album = album
        self._store: StateStore | None = None
        self._lock = Lock()

    @classmethod
    def of(
        cls, generator: Generator | LazyGenerator | None, states: StatesMode, album: Path | None
    ) -> Viewer | None:
        """Wrap a generator; None without one, where ``states`` is an InvalidInputError unless lazy."""
        if generator is None:
            if states not in ("lazy", None):
                raise InvalidInputError(f"states={states!r} needs a generator that computes image features")
            return None
        return cls(LazyGenerator.of(generator), states, album)

    @classmethod
    def restore(
        cls,
        settings: AlbumSettings,
        generator: Generator | LazyGenerator | None,
        states: StatesMode | Literal["auto"],
        album: Path | None,
    ) -> Viewer | None:
        """Rebuild the viewer of an album, unless another generator or mode is given."""
        part = settings.generator
        if generator is None and part is not None:
            generator = LazyGenerator(part["plugin"], part["config"])
        if states == "auto":
            states = "lazy" if generator is None else settings.states
        return cls.of(generator, states, album)

    @staticmethod
    def describe(viewer: Viewer | None) -> dict[str, Any]:
        """Describe generator and mode as JSON."""
        if viewer is None:
            return {"part": None, "states": "lazy"}  # for a generator that comes later
        return {"part": viewer.generator.part, "states": viewer.states}

    def move_to(self, album: Path) -> None:
        """Move the features to the directory of an album that was in memory."""
        with self._lock:
            if self._album is None and self._store is not None:
                self._store.move_to(album)
            self._album = album

    def _opened(self) -> StateStore | None:
        """Open the feature store; loads the generator, whose fingerprint names it."""
        if self.states is not None and self._store is None:
            generator = self.generator.get()
            if self.states == "lazy" and not isinstance(generator, ImageStates):
                return None
            with self._lock:
                if self._store is None:
                    self._store = self._made(_check_states(generator))
        return self._store

    def _made(self, generator: ImageStates) -> StateStore:
        try:
            return StateStore(generator, self._album)
        except AlbumError as error:
            if self.states != "lazy":
                raise
            warnings.warn(f"{error}; they are kept in memory", RuntimeWarning, stacklevel=6)
            return StateStore(generator)

    def _eager(self) -> StateStore | None:
        """The feature store, if images get their features when they are added."""
        return None if self.states == "lazy" else self._opened()

    def blind_to(self, digests: Iterable[str]) -> set[str]:
        """Select the digests whose features have to be cached and are not."""
        store = self._eager()
        return set() if store is None else set(store.missing(digests))

    @contextlib.contextmanager
    def keeping(self, images: Mapping[str, Image]) -> Iterator[None]:
        """Cache the features of images by digest before the block begins; the block adds the images.

        In this order an added image always has its features, even if it came as bytes and cannot be reopened.
        A crash in between leaves features without an image, which does no harm. An image that the generator
        cannot take has none, which a RuntimeWarning says.
        """
        store = self._eager()
        if store is None:
            yield
            return
        states: dict[str, NDArray[Any]] = {}
        refused: dict[str, ImageError] = {}
        while True:
            new = {one: images[one] for one in store.missing(images) if one not in states | refused}
            made, without = self._features(new)
            states, refused = states | made, refused | without
            if without:
                warnings.warn(
                    f"{len(without)} images have no cached features: {first_of([*without.values()])}. They "
                    "rank last in re-ranked searches",
                    RuntimeWarning,
                    stacklevel=6,
                )
            with store.held():
                missing = [one for one in store.missing(images) if one not in refused]
                if not states.keys() >= set(missing):  # another process removed some just before
                    continue
                try:
                    store.put({digest: states[digest] for digest in missing})
                except OSError as error:
                    raise AlbumError(f"cannot write image features: {error.strerror or error}") from error
                yield
                return

    @property
    def store(self) -> StateStore | None:
        """The features, if some were used."""
        return self._store

    @contextlib.contextmanager
    def showing(
        self, records: Sequence[Record], files: Reopener, progress: Progress | None = None
    ) -> Iterator[tuple[Generator, list[Image | ImageState | ImageError]]]:
        """Lend the generator, with its input for every record: features, image, or the error.

        The caller keeps ``files`` open over several calls, so that tars are read once. ``progress`` counts
        the images whose features are computed.
        """
        with self.generator.using() as generator:
            yield generator, self._inputs(records, files, progress)

    def _inputs(
        self, records: Sequence[Record], files: Reopener, progress: Progress | None
    ) -> list[Image | ImageState | ImageError]:
        store = self._opened()
        if store is None:
            if len(records) >= _MANY and isinstance(self.generator.get(), ImageStates):
                _hint(
                    "image features are not cached, so every search and dialog computes them again; open the "
                    "album with states='lazy' (zsq index --states lazy) to make both several times faster"
                )
            return [open_image(files, record) for record in records]
        states = store.get(record.digest for record in records)
        opened = {one.digest: open_image(files, one) for one in records if one.digest not in states}
        images = {at: one for at, one in opened.items() if isinstance(one, Image)}
        if self.states == "lazy" and len(images) >= _MANY:
            _hint(
                f"the generator sees {len(images)} of {len(records)} images for the first time, which takes "
                "a while. Their features are kept, so later searches are several times faster. To compute "
                "those of all images now, add them again with states='disk' (zsq index --states disk)"
            )
        unavailable = opened
        for done, some in enumerate(batched(images, _FEATURES_AT_ONCE), 1):
            new, refused = self._features({one: images[one] for one in some})
            self._keep(store, new)  # now: the next batch may be interrupted
            states |= new
            unavailable |= refused
            count = min(done * _FEATURES_AT_ONCE, len(images))
            tell(progress, "computing image features", count, len(images))
        return [
            unavailable[one.digest]
            if one.digest not in states
            else ImageState(states[one.digest], store.fingerprint, one.source)
            for one in records
        ]

    def _keep(self, store: StateStore, states: Mapping[str, NDArray[Any]]) -> None:
        try:
            with store.held():
                store.put(states)
        except OSError as error:
            warnings.warn(
                f"image features cannot be written ({error}); the next search computes them again",
                RuntimeWarning,
                stacklevel=5,
            )

    def _features(self, images: Mapping[str, Image]) -> tuple[dict[str, NDArray[Any]], dict[str, ImageError]]:
        """Features by digest, and why there are none for images that the generator cannot take."""
        if not images:
            return {}, {}
        with self.generator.using() as generator:
            found = dict(zip(images, read_images(generator, list(images.values())), strict=True))
        return (
            {at: one.values for at, one in found.items() if isinstance(one, ImageState)},
            {at: one for at, one in found.items() if isinstance(one, ImageError)},
        )


_hints: list[str] = []  # that were given in this process


def _hint(text: str) -> None:
    """Log a hint, if it is the first of the process."""
    if not _hints:
        _hints.append(text)
        _log.info(text)


def need_generator(viewer: Viewer | None, what: str, instead: str = "") -> Viewer:
    """The viewer, for something that needs a generator; an InvalidInputError if there is none."""
    if viewer is None:
        raise InvalidInputError(
            f"{what} needs a generator, and this retriever has none: pass one to Retriever or "
            f"Retriever.open{instead}"
        )
    return viewer


def open_image(files: Reopener, record: Record) -> Image | ImageError:
    """Reopen the image of a record, or return why it cannot be."""
    try:
        return files.open(record.source, record.digest)
    except ImageError as error:
        return error


def _check_states(generator: Generator) -> ImageStates:
    if not isinstance(generator, ImageStates):
        raise InvalidInputError(
            f"{type(generator).__name__} computes no image features, so none can be cached; use states=None"
        )
    return generator
