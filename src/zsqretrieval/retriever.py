"""The facade: an encoder, an index and (optionally) a generator, joined over an album of images.

An album is a directory (``docs/albums.md``):

    catalog.sqlite     the durable truth: every image's record and vector, one transaction per batch
    index-<token>/     a snapshot of the index, so that it need not be built anew

The index only ever follows the catalog (:mod:`zsqretrieval.following`). That is why nothing an ``add`` has
returned can be lost.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval.album import CATALOG, find_catalog
from zsqretrieval.catalog import Catalog, NewImage, Record
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.following import Follower
from zsqretrieval.images import ImageLike, as_image, decode, open_images
from zsqretrieval.intake import Arrival, Intake, Skipped
from zsqretrieval.parts import PRESETS, Preset, check_parts, describe, new_index, preset_parts, restore
from zsqretrieval.protocols import Encoder, Generator, Index
from zsqretrieval.types import Hit, Image, Neighbors, Ranking

__all__ = ["PRESETS", "AddReport", "Preset", "Progress", "Retriever", "Skipped"]

Progress: TypeAlias = Callable[[int], object]
"""Called with the number of images dealt with so far."""

FIRST_STAGE = "first_stage"

_SUFFIX = re.compile(r"(#[0-9a-f]{8}([0-9a-f]{56})?)?")  # what follows an id that was taken


@dataclass(frozen=True, slots=True)
class AddReport:
    """What became of the images given to :meth:`Retriever.add`; every one is counted exactly once.

    Attributes:
        added: ids of the images that are new.
        replaced: ids of the images whose file had changed since they were added.
        known: how many were in the album already, byte for byte.
        skipped: those that could not be read, with the reason.
        seconds: time taken.
    """

    added: tuple[str, ...]
    replaced: tuple[str, ...]
    known: int
    skipped: tuple[Skipped, ...]
    seconds: float


class Retriever:
    """Finds images by questions.

    Without ``path`` the album lives in memory until :meth:`save` gives it a directory; with ``path`` a new
    album is made there, and every :meth:`add` is on disk when it returns. :meth:`load` opens an album.

    Args:
        encoder: turns images and questions into vectors.
        index: an empty index of the encoder's dim, used by nobody else; an HNSW index when None.
        generator: reads the candidates; kept for the stages that use it.
        path: directory of a new album, made when missing; must not hold an album yet.

    Raises:
        MismatchError: index and encoder differ in dim or fingerprint.
        InvalidInputError: the index is not empty.
        AlbumError: there is an album at ``path`` already, or no directory can be made there.

    Methods may be called from several threads; searches run while images are added.
    """

    def __init__(
        self,
        encoder: Encoder,
        index: Index | None = None,
        generator: Generator | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        index = new_index("hnsw", encoder) if index is None else index
        check_parts(encoder, index)
        folder = None if path is None else _make_folder(path)
        parts = {"encoder_part": describe("encoder", encoder), "index": describe("index", index)}
        catalog = Catalog.create(
            None if folder is None else folder / CATALOG,
            dim=encoder.dim,
            settings={"encoder": encoder.fingerprint, **parts},
        )
        self._attach(encoder, Follower(catalog, index), generator, catalog, folder)

    def _attach(
        self,
        encoder: Encoder,
        follower: Follower,
        generator: Generator | None,
        catalog: Catalog,
        path: Path | None,
    ) -> None:
        self.encoder = encoder
        self.generator = generator
        self._follower = follower
        self._catalog = catalog
        self._path = path
        self._saving = threading.Lock()

    # --- making, loading, saving --------------------------------------------------------------------------

    @classmethod
    def from_preset(
        cls, name: str = "mini", *, path: str | os.PathLike[str] | None = None, index: str | None = None
    ) -> Self:
        """Make a retriever from parts that are known to go together.

        Args:
            name: a key of :data:`PRESETS`.
            path: directory of a new album; None keeps it in memory.
            index: plugin name of another index than the preset's (``"exact"``).

        Raises:
            InvalidInputError: no such preset or index.
            WeightsError: the model weights are neither cached nor to be fetched.
        """
        encoder, made = preset_parts(name, index)
        return cls(encoder, made, path=path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        generator: Generator | None = None,
    ) -> Self:
        """Open an album.

        Encoder and index are restored by their plugin names unless given. Images added since the index was
        last saved, by this or another process, are indexed now. A damaged index is rebuilt from the catalog,
        with a RuntimeWarning.

        Args:
            path: the album's directory.
            encoder: must have the fingerprint the album was made with.
            index: an empty index to fill from the catalog, in place of the saved one.
            generator: reads the candidates.

        Raises:
            AlbumError: there is no album at ``path``; or a part of it is not a plugin and has to be given.
            MismatchError: the encoder is not the one the album was made with.
            IntegrityError: the catalog is damaged.
        """
        folder = Path(path).absolute()
        catalog = Catalog.open(find_catalog(folder))
        try:
            made_with = catalog.settings.get("encoder")
            if encoder is None:
                encoder = restore("encoder", catalog.settings.get("encoder_part"), folder)
            if made_with != encoder.fingerprint:
                raise MismatchError(
                    f"{folder} was made with encoder {made_with!r}, but the encoder here is "
                    f"{encoder.fingerprint!r}: their vectors cannot be compared; use that encoder, or index "
                    "the images anew"
                )
            if index is None:
                follower = Follower.load(catalog, encoder, folder)
            else:
                check_parts(encoder, index)
                follower = Follower(catalog, index)
            follower.follow()
        except BaseException:
            catalog.close()
            raise
        retriever = cls.__new__(cls)
        retriever._attach(encoder, follower, generator, catalog, folder)
        return retriever

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the index beside the catalog; atomic.

        For an album on disk this only spares the next :meth:`load` the work of indexing: images and vectors
        were safe when :meth:`add` returned. An album in memory needs ``path``, and lives there afterwards. An
        index that is not a plugin is not written: :meth:`load` has to be given one to fill.

        Raises:
            AlbumError: no path was ever given, the album lives elsewhere, or ``path`` holds an album.
            OSError: the disk refuses; what was saved before is still valid.
        """
        with self._saving:
            if self._path is None:
                if path is None:
                    raise AlbumError("this album lives in memory; say where to save it: save(path)")
                folder = _make_folder(path)
                self._catalog.move_to(folder / CATALOG)
                self._path = folder
            elif path is not None and Path(path).absolute() != self._path:
                raise AlbumError(f"this album lives in {self._path}; copy that directory to {path} instead")
            self._follower.save(self._path)

    def close(self) -> None:
        """Let go of the album. What was added stays; call :meth:`save` first to keep the index as well."""
        self._catalog.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- the album ----------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """Directory of the album; None while it lives in memory."""
        return self._path

    @property
    def index(self) -> Index:
        """The index. It belongs to the album: change it only through :meth:`add` and :meth:`remove`."""
        return self._follower.index

    def __len__(self) -> int:
        """Number of images."""
        return len(self._catalog)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._catalog.find(id) is not None

    def __repr__(self) -> str:
        where = "memory" if self._path is None else str(self._path)
        return f"Retriever({type(self.encoder).__name__}, {type(self.index).__name__}, in {where})"

    def records(self) -> Iterator[Record]:
        """Every image's record, in the order added."""
        return self._catalog.iter_records()

    def find(self, id: str) -> Record | None:
        """The record of one image, or None."""
        return self._catalog.find(id)

    # --- adding and removing ------------------------------------------------------------------------------

    def add(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add images; each batch is on disk before the next begins, so an interrupted call can be repeated.

        An image that cannot be read is skipped and named in the report. The same bytes twice are one image.
        An image with the id and the source of a present one, but other bytes (a file that changed), replaces
        it. An id taken by an image from another source gets a part of the digest appended
        (``cat.jpg#1f2e3d4c``).

        Args:
            images: paths (files, folders, tars, patterns), bytes, PIL images, records, or an iterable of
                them.
            batch_size: images encoded together.
            progress: called after each batch.

        Raises:
            InvalidInputError: something that is not an image source, facts that cannot be kept, or
                ``batch_size`` < 1. What came before in the iterable stays.
            IntegrityError: a tar is damaged; what came before stays.
            AlbumError: the disk is full or the album is locked; earlier batches stay.
        """
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
        begin = time.perf_counter()
        ids: dict[_Fate, list[str]] = {"added": [], "replaced": [], "known": []}
        with Intake(open_images(images), batch_size, self._catalog.known_digests) as intake:
            for batch in intake:
                for fate, id in self._store(batch):
                    ids[fate].append(id)
                if progress is not None:
                    progress(sum(map(len, ids.values())) + intake.known + len(intake.skipped))
        return AddReport(
            added=tuple(ids["added"]),
            replaced=tuple(ids["replaced"]),
            known=len(ids["known"]) + intake.known,
            skipped=tuple(intake.skipped),
            seconds=time.perf_counter() - begin,
        )

    def _store(self, images: Sequence[Arrival]) -> list[tuple[_Fate, str]]:
        """Encode images, write them down in one transaction, and let the index follow."""
        if not images:
            return []
        pixels = [Image(image.pixels, image.source) for image in images]
        vectors = self.encoder.encode_image(pixels, batch_size=len(pixels))
        with self._catalog.transaction():
            fates = [self._write(image, vector) for image, vector in zip(images, vectors, strict=True)]
        self._follower.follow()
        return fates

    def _write(self, image: Arrival, vector: NDArray[np.float32]) -> tuple[_Fate, str]:
        if self._catalog.known_digests([image.digest]):  # another thread or process was faster
            return "known", image.id
        namesakes = self._catalog.namesakes(image.id)
        former = next(
            (
                one
                for one in namesakes
                if one.source == image.source and _SUFFIX.fullmatch(one.id.removeprefix(image.id))
            ),
            None,
        )
        if former is not None:
            self._catalog.remove([former.key])
        taken = {one.id for one in namesakes}
        names = (image.id, f"{image.id}#{image.digest[:8]}", f"{image.id}#{image.digest}")
        id = former.id if former else next((name for name in names if name not in taken), image.id)
        row = NewImage(
            id=id,
            source=image.source,
            width=image.pixels.width,
            height=image.pixels.height,
            bytes=image.bytes,
            digest=image.digest,
            vector=vector,
            caption=image.caption,
            metadata=image.metadata,
        )
        self._catalog.add([row])
        return "replaced" if former else "added", id

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images by their ids; all of them or none. On disk once this returns.

        Raises:
            InvalidInputError: an id is not in the album; names it. Nothing has changed.
        """
        wanted = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
        with self._catalog.transaction():
            present = self._catalog.known_ids(id for id in wanted if isinstance(id, str))
            missing = [id for id in wanted if id not in present]
            if missing:
                raise InvalidInputError(
                    f"{len(missing)} of {len(wanted)} ids are not in the album, the first is {missing[0]!r}; "
                    "nothing was removed"
                )
            self._catalog.remove(list(present.values()))
        self._follower.follow()

    # --- searching ----------------------------------------------------------------------------------------

    def search(self, question: str, k: int = 10) -> Ranking:
        """Find the images that best fit a question.

        Args:
            question: any text.
            k: how many hits, >= 1; fewer when the album is smaller.

        Returns:
            Hits, best first; ``score`` is the cosine similarity in [-1, 1].

        Raises:
            InvalidInputError: the question is empty or not text, or k < 1.
        """
        if not isinstance(question, str) or not question.strip():
            raise InvalidInputError(f"the question must be a text that says something, not {question!r}")
        return self._search(question, k, lambda: self.encoder.encode_text([question]))

    def search_image(self, image: ImageLike, k: int = 10) -> Ranking:
        """Find the images most like an image; one that is in the album finds itself first.

        Args:
            image: a path, bytes, a PIL image or a record.
            k: how many hits, >= 1; fewer when the album is smaller.

        Raises:
            ImageError: the image cannot be decoded.
            InvalidInputError: k < 1.
        """
        record = as_image(image)
        # Decoded here as in `add`: an encoder may decode a large JPEG at reduced size by itself.
        return self._search(
            record.source, k, lambda: self.encoder.encode_image([Image(decode(record), record.source)])
        )

    def _search(self, query: str, k: int, encode: Callable[[], NDArray[np.float32]]) -> Ranking:
        if k < 1:
            raise InvalidInputError(f"k must be at least 1, not {k}")
        begin = time.perf_counter()
        vector = encode()
        encoded = time.perf_counter()
        hits = self._hits(vector, k)
        timings = {"encode": encoded - begin, FIRST_STAGE: time.perf_counter() - encoded}
        return Ranking(query, hits, timings)

    def _hits(self, vector: NDArray[np.float32], k: int) -> tuple[Hit, ...]:
        while True:
            position = self._catalog.position
            neighbors = self._follower.follow().search(vector, k)
            try:
                return self._join(neighbors)
            except InvalidInputError as error:  # a hit was removed between the two steps: search again
                if position == self._catalog.position:
                    raise IntegrityError(f"index and catalog of {self!r} disagree: {error}") from error

    def _join(self, neighbors: Neighbors) -> tuple[Hit, ...]:
        found = neighbors.keys[0] >= 0
        records = self._catalog.records(neighbors.keys[0][found])
        return tuple(
            Hit(
                key=record.key,
                id=record.id,
                source=record.source,
                score=float(score),
                scores={FIRST_STAGE: float(score)},
                caption=record.caption,
                metadata=record.metadata,
            )
            for record, score in zip(records, neighbors.scores[0][found], strict=True)
        )


_Fate: TypeAlias = Literal["added", "replaced", "known"]


def _make_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlbumError(f"no directory can be made at {folder}: {error.strerror or error}") from error
    return folder
