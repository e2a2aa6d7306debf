"""The facade: an encoder, an index and (optionally) a generator, joined over an album of images.

An album is a directory:

    catalog.sqlite     the durable truth: every image's record and vector, one transaction per batch
    index-<token>/     a snapshot of the index, so that it need not be built anew

The index only ever follows the catalog (:meth:`Catalog.changes <zsqretrieval.catalog.Catalog.changes>`):
after an ``add``, after a load, after another process has written, and from the very beginning when its
snapshot is damaged. That is why nothing an ``add`` has returned can be lost.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval import plugins
from zsqretrieval.catalog import Catalog, NewImage, Position, Record
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.images import ImageLike, as_image, open_images
from zsqretrieval.intake import Arrival, Intake, Skipped
from zsqretrieval.protocols import Configurable, Encoder, Generator, Index
from zsqretrieval.types import Hit, Image, Neighbors, Ranking

__all__ = ["PRESETS", "AddReport", "Preset", "Progress", "Retriever"]

Progress = Callable[[int], object]
"""Called with the number of images dealt with so far."""

FIRST_STAGE = "first_stage"

_CATALOG = "catalog.sqlite"
_PIXELS_AT_ONCE = 64_000_000  # decoded images held in memory together: 192 MB of RGB


@dataclass(frozen=True, slots=True)
class Preset:
    """Parts that go together, by plugin name and settings."""

    encoder: str
    encoder_config: Mapping[str, Any] = field(default_factory=dict)
    index: str = "hnsw"


PRESETS: Mapping[str, Preset] = {
    "mini": Preset("mini"),
    "clip": Preset("clip", {"model": "ViT-B-32", "pretrained": "laion2b_s34b_b79k"}),
}


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
        index: an empty index of the encoder's dim; an HNSW index when None.
        generator: reads the candidates; kept for the stages that use it.
        path: directory of a new album, made when missing; must not hold an album yet.

    Raises:
        MismatchError: index and encoder differ in dim or fingerprint.
        InvalidInputError: the index is not empty.
        AlbumError: there is an album at ``path`` already.

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
        index = _new_index("hnsw", encoder) if index is None else index
        _check_parts(encoder, index)
        if path is not None:
            Path(path).mkdir(parents=True, exist_ok=True)
        catalog = Catalog.create(
            None if path is None else Path(path) / _CATALOG,
            dim=encoder.dim,
            settings={"encoder": encoder.fingerprint},
        )
        catalog.set_meta("encoder", _describe("encoder", encoder))
        catalog.set_meta("index", _describe("index", index))
        self._attach(encoder, index, generator, catalog, None if path is None else Path(path))

    def _attach(
        self, encoder: Encoder, index: Index, generator: Generator | None, catalog: Catalog, path: Path | None
    ) -> None:
        self.encoder = encoder
        self.index = index
        self.generator = generator
        self._catalog = catalog
        self._path = path
        self._position = Position()
        self._lock = threading.RLock()

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
            InvalidInputError: no such preset.
            WeightsError: the model weights are neither cached nor to be fetched.
        """
        if name not in PRESETS:
            raise InvalidInputError(f"there is no preset {name!r}; choose from {', '.join(PRESETS)}")
        preset = PRESETS[name]
        encoder = cast(Encoder, plugins.create("encoder", preset.encoder, preset.encoder_config))
        return cls(encoder, _new_index(index or preset.index, encoder), path=path)

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
        last saved, by this or another process, are indexed now. A damaged index is rebuilt with a warning.

        Args:
            path: the album's directory.
            encoder: must have the fingerprint the album was made with.
            index: an empty index to fill from the catalog, in place of the saved one.
            generator: reads the candidates.

        Raises:
            AlbumError: there is no album at ``path``; or its encoder is not a plugin and has to be given.
            MismatchError: the encoder is not the one the album was made with.
            IntegrityError: the catalog is damaged.
        """
        path = Path(path)
        if not (path / _CATALOG).is_file():
            raise AlbumError(f"{path} is not an album (it holds no {_CATALOG}); make one with `zsq index`")
        catalog = Catalog.open(path / _CATALOG)
        try:
            if encoder is None:
                encoder = cast(Encoder, _restore("encoder", catalog.get_meta("encoder"), path))
            made_with, found = catalog.settings.get("encoder"), encoder.fingerprint
            if made_with != found:
                raise MismatchError(
                    f"{path} was made with encoder {made_with!r}, but the encoder here is {found!r}: their "
                    "vectors cannot be compared; use that encoder, or index the images anew"
                )
            retriever = cls.__new__(cls)
            if index is not None:
                _check_parts(encoder, index)
                retriever._attach(encoder, index, generator, catalog, path)
            else:
                saved, position = _load_index(catalog, encoder, path)
                retriever._attach(encoder, saved, generator, catalog, path)
                retriever._position = position
            retriever._follow()
        except BaseException:
            catalog.close()
            raise
        return retriever

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the index beside the catalog; atomic.

        For an album on disk this only spares the next :meth:`load` the work of indexing: images and vectors
        were safe when :meth:`add` returned. An album in memory needs ``path``, and lives there afterwards.

        Raises:
            AlbumError: no path was ever given, the album lives elsewhere, or ``path`` holds an album.
            OSError: the disk refuses; what was saved before is still valid.
        """
        with self._lock:
            if self._path is None:
                if path is None:
                    raise AlbumError("this album lives in memory; say where to save it: save(path)")
                self._move_to(Path(path))
            elif path is not None and Path(path).absolute() != self._path.absolute():
                raise AlbumError(f"this album lives in {self._path}; copy that directory to {path} instead")
            self._follow()
            self._save_index(cast(Path, self._path))

    def _move_to(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        if (path / _CATALOG).exists():
            raise AlbumError(f"{path} holds an album already; load it, or save to another directory")
        self._catalog.backup(path / _CATALOG)
        in_memory, self._catalog = self._catalog, Catalog.open(path / _CATALOG)
        in_memory.close()
        self._path = path

    def _save_index(self, path: Path) -> None:
        description = _describe("index", self.index)
        if description is None:
            return  # not a plugin: load() takes an index to fill from the catalog
        former = self._catalog.get_meta("index")
        folder = f"index-{secrets.token_hex(4)}"
        self.index.save(path / folder)
        position = {"last_key": self._position.last_key, "last_removal": self._position.last_removal}
        self._catalog.set_meta("index", {**description, "folder": folder, "position": position})
        if former and former.get("folder"):
            shutil.rmtree(path / former["folder"], ignore_errors=True)

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

    def __len__(self) -> int:
        """Number of images."""
        return len(self._catalog)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._catalog.find(id) is not None

    def __repr__(self) -> str:
        where = "memory" if self._path is None else str(self._path)
        parts = f"{type(self.encoder).__name__}, {type(self.index).__name__}"
        return f"Retriever({parts}, {len(self)} images in {where})"

    def records(self) -> Iterator[Record]:
        """Every image's record, in the order added."""
        return self._catalog.iter_records()

    def find(self, id: str) -> Record | None:
        """The record of one image, or None."""
        return self._catalog.find(id)

    def add(
        self,
        images: ImageLike | Iterable[ImageLike],
        *,
        batch_size: int = 32,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add images; each batch is on disk before the next begins, so an interrupted call can be repeated.

        An image that cannot be read is skipped and named in the report. The same bytes twice are one image. A
        file that changed since it was added replaces its former self. A name already taken by an image from
        another place gets a part of the image's digest appended (``cat.jpg#1f2e3d4c``).

        Args:
            images: paths (files, folders, tars, patterns), bytes, PIL images, records, or an iterable of
                them.
            batch_size: images encoded together.
            progress: called after each batch.

        Raises:
            InvalidInputError: something that is not an image source, or ``batch_size`` < 1.
            AlbumError: the disk is full or the album is locked; earlier batches stay.
        """
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
        begin = time.perf_counter()
        added: list[str] = []
        replaced: list[str] = []
        with Intake(open_images(images), batch_size) as intake:
            for batch in intake.batches():
                with self._lock:
                    new = intake.unknown(batch, self._catalog.known_digests([one.digest for one in batch]))
                    for group in intake.decoded(new):
                        names, former = self._store(group)
                        added.extend(name for name in names if name not in former)
                        replaced.extend(former)
                    self._follow()
                if progress is not None:
                    progress(intake.seen)
        return AddReport(
            tuple(added), tuple(replaced), intake.known, tuple(intake.skipped), time.perf_counter() - begin
        )

    def _store(self, images: Sequence[Arrival]) -> tuple[list[str], dict[str, int]]:
        """Encode a few images that the catalog does not hold, and write them down."""
        vectors = self.encoder.encode_image(
            [Image(image.pixels, image.source) for image in images], batch_size=len(images)
        )
        names, former = self._names(images)
        rows = [
            NewImage(
                id=name,
                source=image.source,
                width=image.pixels.width,
                height=image.pixels.height,
                bytes=image.bytes,
                digest=image.digest,
                vector=vector,
                caption=image.caption,
                metadata=image.metadata,
            )
            for name, image, vector in zip(names, images, vectors, strict=True)
        ]
        self._catalog.add(rows, replacing=list(former.values()))
        return names, former

    def _names(self, images: Sequence[Arrival]) -> tuple[list[str], dict[str, int]]:
        """An id for each image, and the keys of the present images that go by the same id and source."""
        present = self._catalog.known_ids([image.id for image in images])
        records = self._catalog.records(list(present.values()))
        source_of = {record.id: record.source for record in records}
        names: dict[str, None] = {}
        former: dict[str, int] = {}
        for image in images:
            name = image.id
            if name in names or source_of.get(name, image.source) != image.source:
                name = f"{image.id}#{image.digest[:8]}"
            elif name in present:
                former[name] = present[name]
            names[name] = None
        return list(names), former

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images by their ids; all of them or none.

        Raises:
            InvalidInputError: an id is not in the album; names it. Nothing has changed.
        """
        wanted = list(dict.fromkeys([ids] if isinstance(ids, str) else ids))
        with self._lock:
            present = self._catalog.known_ids(wanted)
            missing = [id for id in wanted if id not in present]
            if missing:
                raise InvalidInputError(
                    f"{len(missing)} of {len(wanted)} ids are not in the album, the first is {missing[0]!r}; "
                    "nothing was removed"
                )
            self._catalog.remove(list(present.values()))
            self._follow()

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
        return self._search(question, lambda: self.encoder.encode_text([question]), k)

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
        return self._search(record.source, lambda: self.encoder.encode_image([record]), k)

    def _search(self, query: str, encode: Callable[[], NDArray[np.float32]], k: int) -> Ranking:
        if k < 1:
            raise InvalidInputError(f"k must be at least 1, not {k}")
        begin = time.perf_counter()
        vector = encode()
        encoded = time.perf_counter()
        hits = self._hits(vector, k)
        timings = {"encode": encoded - begin, FIRST_STAGE: time.perf_counter() - encoded}
        return Ranking(query, hits, timings)

    def _hits(self, vector: NDArray[np.float32], k: int) -> tuple[Hit, ...]:
        for _ in range(3):
            self._follow()
            neighbors = self.index.search(vector, k)
            try:
                return self._join(neighbors)
            except InvalidInputError:
                continue  # another process removed a hit between the two steps: follow and search again
        raise AlbumError("the album is being changed faster than it can be searched; try again")

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

    def _follow(self) -> None:
        """Bring the index to where the catalog stands."""
        if self._position == self._catalog.position:
            return
        with self._lock:
            for change in self._catalog.changes(self._position):
                if len(change.removed_keys):
                    self.index.remove(change.removed_keys)
                if len(change.added_keys):
                    self.index.add(change.added_keys, change.added_vectors)
                self._position = change.position


# --- parts ------------------------------------------------------------------------------------------------


def _new_index(name: str, encoder: Encoder) -> Index:
    return cast(
        Index, plugins.create("index", name, {"dim": encoder.dim, "fingerprint": encoder.fingerprint})
    )


def _check_parts(encoder: Encoder, index: Index) -> None:
    if index.dim != encoder.dim:
        raise MismatchError(f"the index has dim {index.dim}, the encoder {encoder.dim}; make them equal")
    if index.fingerprint and index.fingerprint != encoder.fingerprint:
        raise MismatchError(
            f"the index was made for encoder {index.fingerprint!r}, but the encoder here is "
            f"{encoder.fingerprint!r}; make an index for this one"
        )
    if len(index):
        raise InvalidInputError(f"the index holds {len(index)} vectors already; give an empty one")


def _describe(kind: plugins.Kind, part: object) -> dict[str, Any] | None:
    """How to make the part again, or None when it is not a plugin."""
    name = plugins.name_of(kind, part)
    if name is None or not isinstance(part, Configurable):
        return None
    return {"plugin": name, "config": dict(part.config)}


def _restore(kind: plugins.Kind, description: Mapping[str, Any] | None, path: Path) -> object:
    if description is None:
        raise AlbumError(
            f"{path} was made with an {kind} that is not a plugin, so it cannot be restored by name; "
            "give the same one to Retriever.load"
        )
    return plugins.create(kind, description["plugin"], description["config"])


def _load_index(catalog: Catalog, encoder: Encoder, path: Path) -> tuple[Index, Position]:
    """The saved index and where it stands; an empty one when nothing was saved or the snapshot is damaged."""
    description = catalog.get_meta("index")
    empty = cast(Index, _restore("index", description, path))
    if not description.get("folder"):
        return empty, Position()
    folder = path / description["folder"]
    try:
        saved = type(empty).load(folder, dim=encoder.dim, fingerprint=encoder.fingerprint)
        return saved, Position(**description["position"])
    except IntegrityError as error:
        warnings.warn(
            f"the index of {path} is damaged and is rebuilt from the catalog; save() will keep it ({error})",
            RuntimeWarning,
            stacklevel=3,
        )
        return empty, Position()
