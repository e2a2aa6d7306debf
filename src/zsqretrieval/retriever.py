"""The facade: an encoder, an index and optionally a generator over an album of images.

    add:     images --loader--> pixels --encoder--> vectors --one transaction--> catalog --> index
    search:  query --encoder, index--> candidates --generator--> scores --fusion--> Ranking

An album is a directory (``docs/albums.md``). Its catalog is the only source of truth; the index is updated
from it (:mod:`zsqretrieval.album.sync`), so nothing that an ``add`` returned can be lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

from typing_extensions import Self

from zsqretrieval import opening
from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.processes import Lock
from zsqretrieval.album.candidates import StatesMode, Viewer, need_generator
from zsqretrieval.album.catalog import Record
from zsqretrieval.album.info import CATALOG
from zsqretrieval.album.ingest import Adder, AddReport
from zsqretrieval.data.images import ImageLike
from zsqretrieval.data.sources import Reopener, Row
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.gallery import AlbumGallery
from zsqretrieval.dialog.policies import InformationGain, Policy
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.opening import Parts
from zsqretrieval.presets import Calibration, Preset, preset_named
from zsqretrieval.protocols import Encoder, Generator, Index
from zsqretrieval.search.dense import FirstStage
from zsqretrieval.search.expansion import QuestionIndex
from zsqretrieval.search.image_to_text import TextRanking, rank_texts
from zsqretrieval.search.pipeline import Pipeline, as_query, query_image
from zsqretrieval.search.priors import Prior
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.rerank import Rerank, RerankLike
from zsqretrieval.tasks.album_questions import AlbumQuestions
from zsqretrieval.types import MAX_PIXELS, Image, Progress, Ranking


class Retriever:
    """Finds images by asking questions of them.

    :meth:`open` opens an album or makes one; :meth:`from_preset` keeps one in memory until :meth:`save`. The
    constructor takes parts of your own and makes a new album.

    Args:
        encoder: encodes images and queries.
        index: an empty index of the encoder's dim, used by nothing else; an HNSW index when None.
        generator: scores the candidates; None for the first stage alone. A
            :class:`~zsqretrieval.generators.lazy.LazyGenerator` is loaded on first use.
        path: directory of the new album, made when missing; None keeps the album in memory.
        states: when image features of the generator are cached in the album: ``"lazy"``, on first use;
            ``"disk"``, by :meth:`add`; None computes them for every query. A generator without
            :class:`~zsqretrieval.protocols.ImageStates` has none, and takes ``"lazy"`` or None.
        calibration: the constants of this pair of encoder and generator.

    Attributes:
        questions: stored questions; see :class:`~zsqretrieval.tasks.album_questions.AlbumQuestions`.

    Raises:
        MismatchError: index and encoder differ in dim or fingerprint.
        InvalidInputError: a part is not of its kind, the index is not empty, or ``states="disk"``
            without a generator that computes features.
        AlbumError: ``path`` holds an album, or the directory cannot be made.

    All methods are safe to call from several threads; searches run while images are added.
    """

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

    def _attach(self, parts: Parts) -> None:
        self.encoder, self.calibration = parts.encoder, parts.calibration
        self._catalog, self._viewer, self._path = parts.catalog, parts.viewer, parts.path
        self._index = parts.index
        self._question_index = QuestionIndex(parts.catalog, parts.encoder, parts.index.index, parts.path)
        self._first_stage = FirstStage(parts.encoder, parts.catalog, parts.index, self._question_index)
        self._pipeline = Pipeline(self._first_stage, parts.viewer, parts.catalog)
        self.questions = AlbumQuestions(parts.catalog, parts.encoder, self._first_stage.keys, parts.viewer)
        self._saving, self._parts = Lock(), parts

    @classmethod
    def _of(cls, parts: Parts) -> Self:
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
        path: str | os.PathLike[str],
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

        An existing album keeps its own parts, restored by their plugin names; the generator loads on first
        use. Images added after the last save are indexed now. A damaged index is rebuilt, with a
        RuntimeWarning.

        Args:
            path: the album's directory.
            preset: parts of a new album; None if the album must exist. The encoder of an existing album must
                be the preset's.
            encoder: for an album whose encoder is not a plugin; must have its fingerprint.
            index: an empty index to fill from the catalog in place of the saved one.
            generator: replaces the album's generator; :meth:`save` stores it if it is a plugin.
            states: as for :class:`Retriever`; ``"auto"`` is the album's setting, ``"lazy"`` for a new one.
            calibration: replaces the album's; :meth:`save` stores it.
            trust_parts: load whatever files and repositories of weights the album names. False follows only
                what a preset or you name (docs/albums.md). Code that comes with weights never runs.

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
        return cls._of(opening.open_parts(opening.album_path(path), named, *given))

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the indexes beside the catalog; atomic.

        This only saves the next :meth:`open` from indexing again: images, vectors and features are on disk
        when :meth:`add` returns. An album in memory needs ``path`` and is on disk afterwards. An index that
        is not a plugin is not written. Features and kept bytes of removed images are deleted.

        Raises:
            AlbumError: no path was ever given, the album is elsewhere, or ``path`` holds an album.
            OSError: the disk refuses; the earlier save is still valid.
        """
        with self._saving:
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
            self._question_index.save(self._path)
            self._catalog.sweep_kept()
            if self._viewer is not None:
                self._viewer.move_to(self._path)
                self._viewer.sweep(self._catalog.known_digests)
                described = Viewer.describe(self._viewer)
                if described["part"] is not None:
                    self._catalog.change_setting("generator", described)
            self._catalog.change_setting("calibration", self.calibration.describe())

    def close(self) -> None:
        """Close the album; call :meth:`save` first to keep the index."""
        self._catalog.close()

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
        return len(self._catalog)

    def __contains__(self, id: object) -> bool:
        return isinstance(id, str) and self._catalog.find(id) is not None

    def __repr__(self) -> str:
        parts = f"{type(self.encoder).__name__}, {type(self.index).__name__}"
        return f"Retriever({parts}, in {self._path or 'memory'})"

    def records(self) -> Iterator[Record]:
        """Iterate over the records of all images, oldest first."""
        return self._catalog.iter_records()

    def find(self, id: str) -> Record | None:
        """Look up the record of one image; None when there is none."""
        return self._catalog.find(id)

    def files(self) -> Reopener:
        """Open images: ``with retriever.files() as files: files.open(hit.source, hit.digest)``."""
        return self._catalog.kept.files()

    def add(
        self,
        images: ImageLike | Row | Iterable[ImageLike | Row],
        *,
        copy: bool = False,
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
        adder = Adder(self.encoder, self._catalog, self._index, self._viewer)
        return adder.add(images, batch_size=batch_size, max_pixels=max_pixels, progress=progress, copy=copy)

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images, their questions and kept bytes by id; all or none. On disk when this returns.

        Raises:
            InvalidInputError: an id is not in the album, or no string; names it. Nothing has changed.
        """
        self._catalog.remove_ids(ids)
        self._index.update()

    # --- searching ----------------------------------------------------------------------------------------

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a question, though a Sequence, too
        self,
        query: ImageLike,
        k: int = 10,
        *,
        rerank: RerankLike = "auto",
        expand: bool = False,
        bank: QueryBank | None = None,
        explain: bool = False,
        progress: Progress | None = None,
    ) -> Ranking: ...

    @overload
    def search(
        self,
        query: Sequence[ImageLike],
        k: int = 10,
        *,
        rerank: RerankLike = "auto",
        expand: bool = False,
        bank: QueryBank | None = None,
        explain: bool = False,
        progress: Progress | None = None,
    ) -> list[Ranking]: ...

    def search(
        self,
        query: ImageLike | Sequence[ImageLike],
        k: int = 10,
        *,
        rerank: RerankLike = "auto",
        expand: bool = False,
        bank: QueryBank | None = None,
        explain: bool = False,
        progress: Progress | None = None,
    ) -> Ranking | list[Ranking]:
        """Find the images that best fit a question, an image, or each of a list of them.

        Encoder and index fetch candidates, the generator scores them, and a fusion of both scores ranks them.
        For an image (a ``Path``, bytes, a PIL image or a record) the first stage ranks alone. A list goes
        through encoder and index in one batch. Images that cannot be opened rank last, with a RuntimeWarning.

        Args:
            query: a question, an image, or a list of them. A ``str`` is always a question.
            k: hits, >= 1; fewer when the album is smaller.
            rerank: a name, a scoring rule, a re-ranker, or all settings: see
                :class:`~zsqretrieval.search.rerank.Rerank`. None for the first stage alone; ``"auto"`` is
                ``"likelihood"`` with a generator, else None.
            expand: also search the stored questions of the images.
            bank: normalises the first-stage scores; see :meth:`query_bank`.
            explain: add explanations: the generator's answer, and the words that the image explains.
            progress: called between batches of candidates; may raise to stop.

        Returns:
            Hits, best first, with the score of every stage (:attr:`~zsqretrieval.types.Hit.scores`). A
            candidate that could not be scored has ``score`` None; if none could, the first stage ranks.

        Raises:
            InvalidInputError: the question is empty, or too long for the generator; ``k`` < 1; re-ranking or
                explaining without a generator or for an image; ``expand`` without stored questions; or an
                argument is not of its kind.
            ImageError: an image cannot be decoded.
            MismatchError: the bank was made with another encoder.
            ZsqError: the generator or re-ranker returned numbers that cannot be ranked.
        """
        check_counts(k=k)
        several = isinstance(query, Sequence) and not isinstance(query, str | bytes)
        queries = [as_query(one) for one in cast("Sequence[ImageLike]", query if several else [query])]
        if (explain or rerank not in ("auto", None)) and any(isinstance(one, Image) for one in queries):
            raise InvalidInputError(
                "re-ranking and explaining need a question, not an image; use rerank=None"
            )
        how = Rerank.of(rerank, generator=self.has_generator)
        if all(isinstance(one, Image) for one in queries):
            how = None
        rankings = self._pipeline.search(
            queries, k, how,
            fusion=self.calibration.fusion, expansion=self.calibration.expansion if expand else None,
            bank=bank, explain=explain, progress=progress,
        )  # fmt: skip
        return rankings if several else rankings[0]

    def query_bank(
        self, texts: Sequence[str] | None = None, *, style: str = "search", size: int = 2000
    ) -> QueryBank:
        """Make a query bank, with which :meth:`search` lowers images that are near every question.

        Args:
            texts: questions like those to come, one or more; None takes the album's kept questions.
            style: style of these. Few questions that fit many images, as in ``"questions"``, do harm
                (docs/rerank.md).
            size: most questions of the album, >= 1, a fixed random sample; a search compares every candidate
                with all of them.

        Raises:
            InvalidInputError: the album has no kept questions of the style, a text is empty, or ``size`` < 1.
        """
        check_counts(size=size)
        scale, strength = self.calibration.bank_scale, self.calibration.bank_strength
        if texts is not None:
            return QueryBank.from_texts(self.encoder, texts, scale=scale, strength=strength)
        vectors = self._catalog.questions.sample(style, size)
        if not len(vectors):
            raise InvalidInputError(
                f"this album has no kept questions of the style {style!r}; make some with "
                f"Retriever.questions.generate(style={style!r}) or `zsq questions ALBUM --style {style}`, or "
                "pass texts"
            )
        return QueryBank(vectors, self.encoder.fingerprint, scale, strength)

    def rank_texts(
        self,
        image: ImageLike,
        texts: Sequence[str],
        k: int | None = None,
        *,
        rerank: RerankLike = "auto",
        prior: Prior | Literal["auto"] | None = "auto",
        progress: Progress | None = None,
    ) -> TextRanking:
        """Rank texts for an image, the other direction of retrieval. The album plays no part.

        A likelihood is corrected for its prior (docs/rerank.md), since some texts are likely with any image;
        this multiplies the work by one plus the number of null images.

        Args:
            image: a path, bytes, a PIL image or a record.
            texts: n non-empty strings.
            k: hits, >= 1; all when None.
            rerank: as for :meth:`search`, but the score ranks alone unless a ``Rerank`` names a fusion.
            prior: correction of the likelihood; ``"auto"`` is ``Prior()`` for a likelihood, else None.
            progress: called between batches; may raise to stop.

        Returns:
            Texts, best first; their scores also have ``"prior"`` and ``"corrected"``.

        Raises:
            ImageError, InvalidInputError, ZsqError: as :meth:`search`, for texts.
        """
        check_counts(or_none=True, k=k)
        how = Rerank.of(rerank, generator=self.has_generator)
        generator = None
        if how is not None and how.scoring is not None:
            generator = need_generator(self._viewer, "re-ranking texts", ", or use rerank=None").generator
        record = query_image(image)
        return rank_texts(self.encoder, generator, record, texts, k, how=how, prior=prior, progress=progress)

    def dialog(
        self,
        text: str,
        *,
        candidates: int = 100,
        policy: Policy = InformationGain(),  # noqa: B008  # frozen
        budget: int = 10,
        sure: float = 0.9,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Dialog:
        """Start a dialog that asks clarifying questions to find one target image.

        Args:
            text: first description of the target image.
            candidates: first-stage candidates to begin with, >= 1; answers bring more.
            policy: chooses the questions and interprets the answers.
            budget: most questions.
            sure: stop when an image is that probable, in (0, 1]; at 1 never for that reason.
            seed: seed of random draws.
            progress: called while the dialog computes; may raise to stop.

        Raises:
            InvalidInputError: there is no generator, album or text is empty, or a setting is out of range.
        """
        constants = self.calibration
        return Dialog(
            self._gallery(progress), text, candidates=candidates, policy=policy, budget=budget, sure=sure,
            scale=constants.dialog_scale, temper=constants.dialog_temper, reread=constants.dialog_reread,
            seed=seed, progress=progress,
        )  # fmt: skip

    @property
    def gallery(self) -> AlbumGallery:
        """The images for a dialog that was loaded from a file: ``dialog.attach(retriever.gallery)``.

        Raises:
            InvalidInputError: there is no generator.
        """
        return self._gallery(None)

    def _gallery(self, progress: Progress | None) -> AlbumGallery:
        viewer = need_generator(self._viewer, "a dialog")
        return AlbumGallery(self.encoder, self._catalog, self._first_stage, viewer, progress)
