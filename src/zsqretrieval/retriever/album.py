"""An album of images: made, opened, changed and saved.

    add: images --loader--> pixels --encoder--> vectors --one transaction--> catalog --> index

An album is a directory (``docs/albums.md``). Its catalog is the only source of truth; the index is updated
from it (:mod:`zsqretrieval.album.sync`), so nothing that an ``add`` returned can be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.processes import Lock
from zsqretrieval.album.candidates import StatesMode
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.edits import records_of, update
from zsqretrieval.album.features import sweep_all
from zsqretrieval.album.fields import FieldSurvey
from zsqretrieval.album.filters import Filter
from zsqretrieval.album.info import CATALOG
from zsqretrieval.album.ingest import Adder, AddReport
from zsqretrieval.album.milvus import milvus_at
from zsqretrieval.album.removal import removal_list
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.data.images import ImageLike
from zsqretrieval.data.sources import Reopener, Row
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.indexes.milvus import Milvus
from zsqretrieval.laion.safety import SafetyLike
from zsqretrieval.presets import Calibration, Preset, preset_named
from zsqretrieval.protocols import Encoder, Generator, Index
from zsqretrieval.retriever import opening
from zsqretrieval.retriever.opening import MilvusParts, Parts
from zsqretrieval.search.expansion import QuestionIndex
from zsqretrieval.search.store import Store
from zsqretrieval.types import MAX_PIXELS, Progress


class Album:
    """The images of a :class:`~zsqretrieval.retriever.Retriever`, with their vectors and their index."""

    def __init__(
        self,
        encoder: Encoder,
        index: Index | None = None,
        generator: Generator | LazyGenerator | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        states: StatesMode = "lazy",
        calibration: Calibration = Calibration(),  # noqa: B008  # frozen
    ) -> None:
        folder = None if path is None else opening.album_path(path).absolute()
        self._attach(opening.new_parts(encoder, index, generator, folder, states, calibration))

    def _attach(self, parts: Parts | MilvusParts) -> None:
        self.encoder, self.calibration = parts.encoder, parts.calibration
        self._store: Store = parts.store
        self._viewer = parts.viewer
        self._path, self._question_index = None, None
        if isinstance(parts, Parts):
            self._path = parts.path
            self._question_index = QuestionIndex(parts.catalog, parts.encoder, parts.index.like, parts.path)
        self._given = parts
        self._saving: Lock = self.__dict__.get("_saving") or Lock()  # held while others are attached

    @property
    def _parts(self) -> Parts:
        """The parts of an album with a catalog."""
        if not isinstance(self._given, Parts):
            raise InvalidInputError(
                f"{self._given.store.where} can be searched, added to with add_embeddings, and removed from; "
                "anything else needs an album in a directory or in memory (docs/milvus.md)"
            )
        return self._given

    @property
    def _catalog(self) -> Catalog:
        return self._parts.catalog

    @property
    def _index(self) -> IndexSync:
        return self._parts.index

    def _adder(self) -> Adder:
        parts = self._parts  # of one moment, so that encoder and catalog belong together
        return Adder(parts.encoder, parts.catalog, parts.index, parts.viewer, removal_list(self._path))

    @classmethod
    def _of(cls, parts: Parts | MilvusParts) -> Self:
        retriever = cls.__new__(cls)
        retriever._attach(parts)
        return retriever

    def __getstate__(self) -> tuple[Any, ...]:
        return opening.pack_parts(replace(self._parts, path=self._path, calibration=self.calibration))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._attach(opening.unpack_parts(*state))

    # --- opening and saving -------------------------------------------------------------------------------

    @classmethod
    def from_preset(cls, preset: str | Preset = "mini", *, states: StatesMode = "lazy") -> Self:
        """Make a retriever in memory from parts that belong together.

        Args:
            preset: a key of :data:`~zsqretrieval.presets.PRESETS`, or a preset such as
                ``PRESETS["mini"].variant(index="exact")``.
            states: as for :class:`Retriever`.

        Raises:
            InvalidInputError: no such preset, encoder, index or generator.
            WeightsError: the encoder's weights cannot be found.
        """
        return cls._of(opening.preset_parts(preset_named(preset), None, states))

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str] | Milvus,
        preset: str | Preset | None = None,
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        generator: Generator | LazyGenerator | None = None,
        states: StatesMode | Literal["auto"] = "auto",
        calibration: Calibration | None = None,
        trust_parts: bool = False,
    ) -> Self:
        """Open an album; with a preset, make it if there is none.

        An existing album keeps its own parts, restored by their plugin names. Index and generator load on
        first use: images added after the last save are indexed then, and a damaged index is rebuilt, with a
        RuntimeWarning.

        Args:
            path: the album's directory; or a collection of Milvus (docs/milvus.md), such as
                ``"milvus://host:19530/photos"`` or ``"milvus:photos.db"``, made with ``encoder`` or a preset.
            preset: parts of a new album; None if the album must exist. The encoder of an existing album must
                be the preset's.
            encoder: for an album whose encoder is not a plugin; must have its fingerprint.
            index: an empty index to fill from the catalog in place of the saved one.
            generator: replaces the album's generator; :meth:`save` stores it if it is a plugin.
            states: as for :class:`Retriever`; ``"auto"`` is the album's setting, ``"lazy"`` for a new one.
            calibration: replaces the album's; :meth:`save` stores it.
            trust_parts: load whatever files and repositories of weights the album names. False follows only
                what a preset or you name (docs/strangers.md). Code that comes with weights never runs.

        Raises:
            AlbumError: there is no album and no preset; a part or calibration cannot be restored, or is not
                trusted; or the album has links, pipes or devices among its files.
            MismatchError: the album was made with another encoder.
            InvalidInputError: a part is not of its kind, or ``states`` without a generator that computes
                features.
            IntegrityError: the catalog is damaged.
        """
        named = None if preset is None else preset_named(preset)
        given = encoder, index, generator, states, calibration, trust_parts
        place = milvus_at(path)
        if place is not None:
            return cls._of(opening.open_milvus(place, named, *given))
        return cls._of(opening.open_parts(opening.album_path(cast(str, path)), named, *given))

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the indexes beside the catalog; atomic.

        This only saves the next :meth:`open` from indexing again: images, vectors and features are on disk
        when :meth:`add` returns. An album in memory needs ``path`` and is on disk afterwards. An index that
        is not a plugin is not written. Features and kept bytes of removed images are deleted. A collection of
        Milvus indexes what was added last.

        Raises:
            AlbumError: no path was ever given, the album is elsewhere, or ``path`` holds an album.
            OSError: the disk refuses; the earlier save is still valid.
        """
        described = opening.described_parts(self._viewer, self.calibration)
        if isinstance(self._given, MilvusParts) and path is None:
            self._given.store.save(described)
            return
        with self._saving:
            catalog = self._catalog
            if self._path is None:
                if path is None:
                    raise AlbumError("this album is in memory; say where to save it: save(path)")
                folder = opening.album_path(path).absolute()
                opening.make_folder(folder)
                self._catalog.move_to(folder / CATALOG)
                self._path = folder
            elif path is not None and opening.album_path(path).absolute() != self._path:
                raise AlbumError(f"this album is in {self._path}; copy that directory to {path} instead")
            self._index.save(self._path)
            cast(QuestionIndex, self._question_index).save(self._path)
            catalog.sweep_kept()
            opened = None
            if self._viewer is not None:
                self._viewer.move_to(self._path)
                opened = self._viewer.store
                if described["generator"]["part"] is not None:
                    catalog.change_setting("generator", described["generator"])
            sweep_all(self._path, catalog.known_digests, opened=opened)
            catalog.change_setting("calibration", described["calibration"])

    def close(self) -> None:
        """Close the album; call :meth:`save` first to keep the index."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- the album ----------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """Directory of the album; None while it is in memory."""
        return self._path

    @property
    def index(self) -> Index:
        """The index. Change it only through :meth:`add` and :meth:`remove`."""
        return self._index.index

    @property
    def generator(self) -> Generator | None:
        """The generator, loaded now if it is not yet; None when there is none."""
        return None if self._viewer is None else self._viewer.generator.get()

    @property
    def has_generator(self) -> bool:
        """Whether there is a generator; loads nothing."""
        return self._viewer is not None

    @property
    def states(self) -> StatesMode:
        """When image features are cached."""
        return None if self._viewer is None else self._viewer.states

    def __len__(self) -> int:
        """Number of images."""
        return len(self._store)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._store.find(id) is not None

    def __repr__(self) -> str:
        given = self._given
        if isinstance(given, MilvusParts):
            return f"Retriever({type(self.encoder).__name__}, {given.store.where})"
        parts = f"{type(self.encoder).__name__}, {type(self._index.like).__name__}"
        return f"Retriever({parts}, in {self._path or 'memory'})"

    def records(self) -> Iterator[Record]:
        """Iterate over the records of all images, oldest first; in a collection of Milvus in any order."""
        return self._store.iter_records()

    def browse(
        self, k: int = 60, offset: int = 0, *, sort: str = "-added", where: Filter | None = None
    ) -> list[Record]:
        """List the records of k images, without a question.

        Args:
            k: images, >= 1.
            offset: images to skip, >= 0.
            sort: ``"added"``, ``"taken"`` (the time in the metadata; images without one come last) or
                ``"source"``; ``"-added"`` and so on in falling order.
            where: only images that this filter selects.

        Raises:
            InvalidInputError: a number is out of range, an unknown order, or a filter on a field that no
                image has.
        """
        check_counts(k=k)
        check_counts(0, offset=offset)
        with self._catalog.reading():
            return self._catalog.records(self._catalog.fields.page(where, sort, k, offset))

    def count(self, where: Filter | None = None) -> int:
        """Number of images that a filter selects; errors as :meth:`browse`."""
        return self._catalog.fields.count(where)

    def fields(self) -> list[FieldSurvey]:
        """Fields of the newest 20,000 images with their ranges and most frequent values, for a form."""
        return self._catalog.fields.survey()

    def find(self, id: str) -> Record | None:
        """Look up the record of one image; None when there is none."""
        return self._store.find(id)

    def find_all(self, ids: Iterable[str]) -> dict[str, Record]:
        """Look up the records of the images that there are, out of some, by id."""
        return dict(self._store.by_id(list(ids)))

    def files(self) -> Reopener:
        """Open images: ``with retriever.files() as files: files.open(hit.source, hit.digest)``."""
        return self._store.kept.files()

    def vector(self, id: str) -> NDArray[np.float32]:
        """Copy the vector of one image, float32 [dim]; an InvalidInputError if no image has the id."""
        while True:
            (record,) = records_of(self._store.by_id, [id])
            here, vectors = self._store.stored([record.key])
            if here:  # else it was removed between the two steps
                found: NDArray[np.float32] = vectors[0].copy()
                return found

    def add(
        self,
        images: ImageLike | Row | Iterable[ImageLike | Row],
        *,
        copy: bool = False,
        exif: bool = True,
        safety: SafetyLike = "auto",
        batch_size: int = 32,
        max_pixels: int = MAX_PIXELS,
        progress: Progress | None = None,
    ) -> AddReport:
        """Add images. Each batch is on disk before the next begins, so an interrupted call can be repeated.

        Unreadable images and damaged tars are skipped and named in the report. Equal bytes are one image;
        changed, moved and renamed files are recognised (docs/albums.md). A known image takes new captions
        and metadata. The album keeps the bytes of images that are no files.

        Args:
            images: paths (files, folders, tars, patterns), bytes, PIL images, records, rows of a data set
                (``{"image": ..., "caption": ..., ...}``), or an iterable of them.
            copy: keep the bytes of files, too, also of known ones, so that the album works without them.
            exif: add time, camera and place of photographs to their metadata as ``taken``, ``camera``,
                ``latitude`` and ``longitude`` (docs/filters.md); keys of your own metadata win.
            safety: rules for images whose metadata are of LAION (docs/laion.md); ``"auto"`` denies those that
                are not known to be safe, None applies none. The album's removal list always holds.
            batch_size: images encoded together, >= 1.
            max_pixels: size limit of an image in pixels, at most 2^30; larger ones are skipped. Images of the
                album stay readable whatever the limit of a later call is.
            progress: called after each batch; may raise to stop.

        Raises:
            InvalidInputError: something is not an image source, or does not exist; metadata is not JSON; or
                a number is < 1.
            AlbumError: the disk is full or the album is locked. After any error, earlier batches stay.
        """
        check_counts(batch_size=batch_size, max_pixels=max_pixels)
        return self._adder().add(
            images, batch_size=batch_size, max_pixels=max_pixels, progress=progress, copy=copy, exif=exif,
            safety=safety,
        )  # fmt: skip

    def update(
        self,
        ids: str | Iterable[str],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
        *,
        captions: str | Sequence[str | None] | None = None,
    ) -> None:
        """Change metadata and captions of images; all or none. On disk when this returns.

        Args:
            ids: one image, or n.
            metadata: JSON values, merged into those of every image; or n such mappings. A value of None
                deletes its key.
            captions: a caption for all images, or n captions; None or ``""`` in a list deletes one.

        Raises:
            InvalidInputError: an id is not in the album or given twice, numbers do not fit, or metadata is
                not JSON. Nothing has changed.
        """
        update(self._catalog, ids, metadata, captions)

    def index_fields(self, *names: str) -> None:
        """Keep the values of exactly these fields sorted, for faster filters (docs/filters.md).

        On disk when this returns; without names, no field is indexed. A name that is malformed is an
        InvalidInputError.
        """
        self._catalog.fields.index(names)

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images, their questions and kept bytes by id; all or none. On disk when this returns.

        Raises:
            InvalidInputError: an id is not in the album, or no string; names it. Nothing has changed.
        """
        self._store.remove(ids)
