"""The facade: an encoder, an index and (optionally) a generator, joined over an album of images.

An album is a directory (``docs/albums.md``):

    catalog.sqlite     the durable truth: every image's record and vector, one transaction per batch
    index-<token>/     a snapshot of the index, so that it need not be built anew
    questions-<token>/ the same of the index of questions, where there are some
    states-<digest>/   what a generator saw in each image, so that it need not look again; only if asked for

The index only ever follows the catalog (:mod:`zsqretrieval.album.sync`). That is why nothing an ``add`` has
returned can be lost. What is behind the methods: :mod:`~zsqretrieval.album.ingest`,
:mod:`~zsqretrieval.tasks.album_questions`, :mod:`~zsqretrieval.search.dense`, :mod:`~zsqretrieval.search.rerank`,
:mod:`~zsqretrieval.search.explain`, :mod:`~zsqretrieval.search.image_to_text` and :mod:`~zsqretrieval.dialog.dialog`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from typing_extensions import Self

from zsqretrieval._util.checks import check_counts, check_text
from zsqretrieval.album.candidates import StatesMode, Viewer
from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.info import CATALOG, find_catalog
from zsqretrieval.album.ingest import Adder, AddReport, Progress
from zsqretrieval.album.questions import StoredQuestion, StyleFacts
from zsqretrieval.album.sync import Follower
from zsqretrieval.data.images import ImageLike, as_image, decode
from zsqretrieval.data.loader import Skipped
from zsqretrieval.dialog.dialog import SCALE, TEMPER, Dialog
from zsqretrieval.dialog.gallery import AlbumGallery
from zsqretrieval.dialog.policies import InformationGain, Policy
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.presets import (
    PRESETS,
    LazyGenerator,
    Preset,
    check_part,
    check_parts,
    describe,
    describe_fusion,
    new_index,
    preset_encoder,
    preset_fusion,
    preset_generator,
    preset_index,
    restore,
    restore_fusion,
)
from zsqretrieval.protocols import Encoder, Generator, Index
from zsqretrieval.search.dense import FirstStage
from zsqretrieval.search.expansion import EXPANSION, QuestionIndex
from zsqretrieval.search.explain import explain_hits
from zsqretrieval.search.fusion import Fusion, RerankOnly, WeightedSum
from zsqretrieval.search.image_to_text import TextRanking, rank_texts
from zsqretrieval.search.priors import Prior
from zsqretrieval.search.query_bank import SCALE as BANK_SCALE
from zsqretrieval.search.query_bank import STRENGTH as BANK_STRENGTH
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.rerank import rerank
from zsqretrieval.search.scoring import Likelihood, Scoring
from zsqretrieval.tasks.album_questions import FilterReport, QuestionsReport, ask_images, judge_again
from zsqretrieval.tasks.questions import STYLES, Style
from zsqretrieval.types import Image, Ranking
from zsqretrieval.types import Progress as ScoringProgress

__all__ = ["PRESETS", "AddReport", "Preset", "Progress", "Retriever", "Skipped"]

_FUSION = WeightedSum()
_RERANK_ONLY = RerankOnly()


class Retriever:
    """Finds images by questions.

    Without ``path`` the album lives in memory until :meth:`save` gives it a directory; with ``path`` a new
    album is made there, and every :meth:`add` is on disk when it returns. :meth:`load` opens an album.

    Args:
        encoder: turns images and questions into vectors.
        index: an empty index of the encoder's dim, used by nobody else; an HNSW index when None.
        generator: reads the candidates; None for the first stage alone. A
            :class:`~zsqretrieval.presets.LazyGenerator` is made when it is first needed.
        path: directory of a new album, made when missing; must not hold an album yet.
        states: whether what the generator sees in an image is computed when the image is added, and kept:
            ``"disk"`` beside the index, ``"memory"`` until :meth:`close`; None computes it from the image
            with every question. Needs a generator that makes
            :class:`~zsqretrieval.protocols.ImageStates`.
        fusion: how :meth:`search` joins the scores of encoder and generator unless it is told otherwise.

    Raises:
        MismatchError: index and encoder differ in dim or fingerprint.
        InvalidInputError: a part is none of its kind; the index is not empty; or ``states`` without a
            generator that makes them.
        AlbumError: there is an album at ``path`` already, or no directory can be made there.

    Methods may be called from several threads; searches run while images are added.
    """

    def __init__(
        self,
        encoder: Encoder,
        index: Index | None = None,
        generator: Generator | LazyGenerator | None = None,
        *,
        path: str | os.PathLike[str] | None = None,
        states: StatesMode = None,
        fusion: Fusion = _FUSION,
    ) -> None:
        fusion = _checked(fusion)
        check_part("encoder", encoder)
        index = new_index("hnsw", encoder) if index is None else index
        check_parts(encoder, index)
        album = None if path is None else Path(path).absolute()
        viewer = _viewer(generator, states, album)
        folder = None if album is None else _make_folder(album)
        parts = {
            "encoder_part": describe("encoder", encoder),
            "index": describe("index", index),
            "generator": _described(viewer),
            "fusion": describe_fusion(fusion),
        }
        catalog = Catalog.create(
            None if folder is None else folder / CATALOG,
            dim=encoder.dim,
            settings={"encoder": encoder.fingerprint, **parts},
        )
        self._attach(encoder, Follower(catalog, catalog.log, index), viewer, fusion, catalog, folder)

    def _attach(
        self,
        encoder: Encoder,
        follower: Follower,
        viewer: Viewer | None,
        fusion: Fusion,
        catalog: Catalog,
        path: Path | None,
    ) -> None:
        self.encoder = encoder
        self._viewer = viewer
        self._fusion = fusion
        self._follower = follower
        self._questions = QuestionIndex(catalog, encoder, follower.index, path)
        self._first_stage = FirstStage(encoder, catalog, follower, self._questions)
        self._catalog = catalog
        self._path = path
        self._saving = threading.Lock()

    # --- making, loading, saving --------------------------------------------------------------------------

    @classmethod
    def from_preset(
        cls,
        name: str = "mini",
        *,
        path: str | os.PathLike[str] | None = None,
        index: str | None = None,
        generator: str | None = "auto",
        encoder_config: Mapping[str, Any] | None = None,
        generator_config: Mapping[str, Any] | None = None,
        states: StatesMode = None,
        fusion: Fusion | Literal["auto"] = "auto",
    ) -> Self:
        """Make a retriever from parts that are known to go together.

        The generator is made, and its weights read, when it is first needed.

        Args:
            name: a key of :data:`PRESETS`.
            path: directory of a new album; None keeps it in memory.
            index: plugin name of another index than the preset's (``"exact"``).
            generator: plugin name of another generator than the preset's, which is ``"auto"``; None for the
                first stage alone.
            encoder_config: settings of the encoder that differ from the preset's, such as weights in a local
                folder.
            generator_config: the same for the generator.
            states: as for :class:`Retriever`.
            fusion: as for :class:`Retriever`; ``"auto"`` is the preset's, or ``WeightedSum()`` with another
                generator than the preset's.

        Raises:
            InvalidInputError: no such preset, index or generator.
            WeightsError: the encoder's weights are neither cached nor to be fetched.
        """
        lazy = preset_generator(name, generator, generator_config)
        joined = preset_fusion(name, generator) if _is_auto(fusion) else _checked(fusion)
        encoder = preset_encoder(name, encoder_config)
        made = preset_index(name, encoder, index)
        return cls(encoder, made, lazy, path=path, states=states, fusion=joined)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        index: Index | None = None,
        generator: Generator | LazyGenerator | None = None,
        states: StatesMode | Literal["auto"] = "auto",
        fusion: Fusion | Literal["auto"] = "auto",
    ) -> Self:
        """Open an album.

        Encoder, index and generator are restored by their plugin names unless given; the generator when it is
        first needed. Images added since the index was last saved, by this or another process, are indexed
        now. A damaged index is rebuilt from the catalog, with a RuntimeWarning.

        Args:
            path: the album's directory.
            encoder: must have the fingerprint the album was made with.
            index: an empty index to fill from the catalog, in place of the saved one.
            generator: reads the candidates, in place of the album's; :meth:`save` makes it the album's, if it
                is a plugin. One that is not has to be given every time; without, the first stage is alone.
            states: as for :class:`Retriever`; ``"auto"`` is what the album was made or last saved with.
            fusion: as for :class:`Retriever`; ``"auto"`` is what the album was made or last saved with, also
                for another generator. :meth:`save` makes another one the album's, if it is the library's own.

        Raises:
            AlbumError: there is no album at ``path``; or its encoder or index is not a plugin, or its fusion
                not the library's own, and has to be given.
            MismatchError: the encoder is not the one the album was made with.
            InvalidInputError: a part is none of its kind; or ``states`` without a generator that makes them.
            IntegrityError: the catalog is damaged.
        """
        folder = Path(path).absolute()
        catalog = Catalog.open(find_catalog(folder))
        try:
            made_with = catalog.settings.get("encoder")
            if encoder is None:
                encoder = restore("encoder", catalog.settings.get("encoder_part"), folder)
            check_part("encoder", encoder)
            if made_with != encoder.fingerprint:
                raise MismatchError(
                    f"{folder} was made with encoder {made_with!r}, but the encoder here is "
                    f"{encoder.fingerprint!r}: their vectors cannot be compared; use that encoder, or index "
                    "the images anew"
                )
            if index is None:
                follower = Follower.load(catalog, catalog.log, encoder, folder)
            else:
                check_parts(encoder, index)
                follower = Follower(catalog, catalog.log, index)
            viewer = _restored(catalog, generator, states, folder)
            joined = restore_fusion(_kept_fusion(catalog), folder) if _is_auto(fusion) else _checked(fusion)
            follower.follow()
        except BaseException:
            catalog.close()
            raise
        retriever = cls.__new__(cls)
        retriever._attach(encoder, follower, viewer, joined, catalog, folder)
        return retriever

    def save(self, path: str | os.PathLike[str] | None = None) -> None:
        """Write the index, and that of questions where there are some, beside the catalog; atomic.

        For an album on disk this only spares the next :meth:`load` the work of indexing: images, vectors and
        image states were safe when :meth:`add` returned. An album in memory needs ``path``, and lives there
        afterwards. An index that is not a plugin is not written: :meth:`load` has to be given one to fill.
        States of removed images are deleted.

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
            self._questions.save(self._path)
            if self._viewer is not None:
                self._viewer.move_to(self._path)
                self._viewer.sweep(self._catalog.known_digests)
                described = _described(self._viewer)
                if described["part"] is not None and described != _kept(self._catalog):
                    self._catalog.set_meta("generator", described)
            fusion = describe_fusion(self._fusion)
            if fusion is not None and fusion != _kept_fusion(self._catalog):
                self._catalog.set_meta("fusion", fusion)

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
    def generator(self) -> Generator | None:
        """The generator, made now if it has not been needed before; None when there is none."""
        return None if self._viewer is None else self._viewer.generator.get()

    @property
    def has_generator(self) -> bool:
        """Whether there is a generator, without making it."""
        return self._viewer is not None

    @property
    def states(self) -> StatesMode:
        """Where image states are kept."""
        return None if self._viewer is None else self._viewer.states

    @property
    def fusion(self) -> Fusion:
        """How :meth:`search` joins the scores of encoder and generator unless it is told otherwise."""
        return self._fusion

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
        it. A present image that is not where it was, and is among those given, gets its new id and source
        (a file that was moved). An id taken by an image from another source gets a part of the digest
        appended (``cat.jpg#1f2e3d4c``). Where image states are kept, those that are missing of images in the
        album are made as well.

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
        check_counts(batch_size=batch_size)
        adder = Adder(self.encoder, self._catalog, self._follower, self._viewer)
        return adder.add(images, batch_size=batch_size, progress=progress)

    def remove(self, ids: str | Iterable[str]) -> None:
        """Remove images by their ids, and their questions; all of them or none. On disk once this returns.

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

    # --- questions of images ------------------------------------------------------------------------------

    def generate_questions(
        self,
        n: int = 3,
        *,
        style: str | Style = "questions",
        answers: bool = False,
        top_k: int | None = 10,
        temperature: float = 0.7,
        seed: int = 0,
        max_new_tokens: int = 24,
        batch_size: int = 16,
        progress: ScoringProgress | None = None,
    ) -> QuestionsReport:
        """Let the generator write questions about every image, and keep those that lead back to it.

        Each batch is on disk, with where it came from, before the next begins; images that were asked with
        the same settings by the same generator are not asked again. So an interrupted call, or one after
        more images were added, can be repeated as it was. A question is kept when searching it by the first
        stage finds its own image among the first ``top_k`` of the album *as it is at that moment*; after the
        album has grown, :meth:`filter_questions` judges all of them anew.

        Args:
            n: how many questions of an image at most, >= 1.
            style: a name in :data:`zsqretrieval.tasks.questions.STYLES`, or a style of your own.
            answers: let the generator answer each question as well.
            top_k: how far from the top the own image may stand, >= 1; None keeps every question. Of images
                that were asked before it changes nothing.
            temperature: of the sampling.
            seed: of the sampling; gives the same questions of the same images in the same batches, since a
                draw is named by the place of its image in the batch.
            max_new_tokens: length limit of a question and of an answer.
            batch_size: images shown to the generator together; another one draws other questions.
            progress: told after every batch how many images are dealt with; may raise to stop.

        Raises:
            InvalidInputError: there is no generator, or it writes no texts; no such style, or one that cannot
                be answered; ``n``, ``top_k`` or ``batch_size`` < 1.
            AlbumError: the disk is full or the album is locked; earlier batches stay.
        """
        return ask_images(
            self._catalog,
            self._reader("writing questions"),
            self.encoder,
            self._first_stage.keys,
            n=n,
            style=style,
            answers=answers,
            top_k=top_k,
            temperature=temperature,
            seed=seed,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            progress=progress,
        )

    def filter_questions(
        self, top_k: int | None = 10, *, batch_size: int = 64, progress: ScoringProgress | None = None
    ) -> FilterReport:
        """Search every question once more, in the album as it is now, and keep those that find their image.

        Questions that were not kept are judged as well, and may come back. Needs no generator.

        Args:
            top_k: how far from the top the own image may stand, >= 1; None keeps every question.
            batch_size: questions searched together.
            progress: told after every batch how many questions are done; may raise to stop.

        Raises:
            InvalidInputError: ``top_k`` or ``batch_size`` < 1.
            AlbumError: the disk is full or the album is locked; earlier batches stay.
        """
        return judge_again(
            self._catalog,
            self.encoder,
            self._first_stage.keys,
            top_k=top_k,
            batch_size=batch_size,
            progress=progress,
        )

    def questions(self, id: str | None = None) -> Iterator[StoredQuestion]:
        """The questions of all images in the order they were made, or those of one image, likeliest first.

        Raises:
            InvalidInputError: there is no image of that id.
        """
        if id is None:
            return (one for batch in self._catalog.questions.batches() for one in batch)
        record = self._catalog.find(id)
        if record is None:
            where = "the album in memory" if self._path is None else f"the album {self._path}"
            raise InvalidInputError(
                f"there is no image {id!r} in {where}; Retriever.records() lists the ids that there are"
            )
        return iter(self._catalog.questions.of([record.key]))

    def question_styles(self) -> list[StyleFacts]:
        """How many questions there are of each style, and of how many images."""
        return self._catalog.questions.styles()

    def remove_questions(self, style: str | None = None) -> int:
        """Forget all questions, or those of one style; gives how many. Images can then be asked anew.

        An image that loses a question may also be asked anew in the other styles, since it may have said the
        same in one of them.

        Raises:
            InvalidInputError: there is no such style, neither in :data:`zsqretrieval.tasks.questions.STYLES` nor in
                the album; names those that there are.
        """
        known = sorted({*STYLES, *(facts.style for facts in self.question_styles())})
        if style is not None and style not in known:
            raise InvalidInputError(f"there is no style {style!r}; there are {', '.join(known)}")
        return self._catalog.questions.remove(style)

    def query_bank(
        self,
        texts: Sequence[str] | None = None,
        *,
        style: str = "search",
        size: int = 2000,
        scale: float = BANK_SCALE,
        strength: float = BANK_STRENGTH,
    ) -> QueryBank:
        """Questions that tell which images fit any question, for :meth:`search` to take that away.

        Args:
            texts: questions like those to come, one or more; the album's kept ones when None
                (:meth:`generate_questions`).
            style: which of the album's: such as say what is to be seen. Few questions that fit many images,
                as of the style ``"questions"``, do harm (docs/rerank.md).
            size: how many of the album's at most, >= 1, drawn at random and always the same ones. A search
                compares every candidate with all of them.
            scale: inverse temperature, > 0; see :class:`~zsqretrieval.search.query_bank.QueryBank`.
            strength: how much is taken away.

        Raises:
            InvalidInputError: the album keeps no questions of the style, a text says nothing, or a number is
                out of range.
            IntegrityError: a vector is damaged.
        """
        check_counts(size=size)
        if texts is not None:
            return QueryBank.from_texts(self.encoder, texts, scale=scale, strength=strength)
        vectors = self._catalog.questions.sample(style, size)
        if not len(vectors):
            raise InvalidInputError(
                f"this album keeps no questions of the style {style!r} to make a bank of; make some with "
                f"Retriever.generate_questions(style={style!r}) or `zsq questions ALBUM --style {style}`, or "
                "give texts"
            )
        return QueryBank(vectors, self.encoder.fingerprint, scale, strength)

    # --- searching ----------------------------------------------------------------------------------------

    def search(
        self,
        question: str,
        k: int = 10,
        *,
        candidates: int = 100,
        scoring: Scoring | Literal["auto"] | None = "auto",
        fusion: Fusion | Literal["auto"] = "auto",
        expand: bool = False,
        expansion: Fusion = EXPANSION,
        bank: QueryBank | None = None,
        explain: bool = False,
        batch_size: int = 16,
        progress: ScoringProgress | None = None,
    ) -> Ranking:
        """Find the images that best fit a question.

        The first stage, encoder and index, fetches candidates; the generator scores each; the fusion of both
        ranks them. A candidate that the generator cannot be shown, because it has no state and its file is
        gone or has changed, ranks after all others, with a RuntimeWarning.

        Args:
            question: any text.
            k: how many hits, >= 1; fewer when the album is smaller.
            candidates: how many images the generator scores, >= 1; ``k`` when that is more.
            scoring: what the generator is asked, such as ``Likelihood()`` or ``YesNo()``; None for the first
                stage alone. ``"auto"`` is ``Likelihood()`` where there is a generator, else None.
            fusion: how both scores are joined; ``"auto"`` is :attr:`fusion`, the retriever's own.
            expand: let the first stage look at the questions kept for the images as well
                (:meth:`generate_questions`).
            expansion: how similarities to images and to questions are joined then; see
                :func:`zsqretrieval.search.expansion.join`.
            bank: takes away from the first stage what an image gets from any question, before scores are
                joined; :meth:`query_bank` makes one.
            explain: let the generator answer the question from each hit, and tell which words of the question
                the image explains.
            batch_size: candidates scored together; must not change the result.
            progress: told after every batch how many candidates are done; may raise to stop.

        Returns:
            Hits, best first, each with the score of every stage by name: ``"first_stage"``, the cosine
            similarity in [-1, 1]; the scoring's own, ``"likelihood"`` or ``"yes_no"``; ``"fused"``, which is
            also ``score``. Without scoring, ``score`` is the cosine similarity. A candidate that could not be
            scored has ``score`` -inf and only ``"first_stage"``; when none could be, the ranking is the
            first stage's. With ``expand``, also ``"image_similarity"`` and, where the image has a question,
            ``"question_similarity"``, which ``"first_stage"`` joins; ``matched_question`` is the nearest one.
            With ``bank``, also ``"normalized"``, which takes the place of ``"first_stage"`` in what follows.
            With ``explain``, ``explanation``, but None for an image that cannot be shown.

        Raises:
            InvalidInputError: the question is empty or not text; ``k``, ``candidates`` or ``batch_size`` < 1;
                scoring or explaining without a generator; ``fusion``, ``expansion`` or ``bank`` is none;
                ``expand`` in an album without questions; or the question is too long for the generator.
            MismatchError: the bank was made by another encoder.
            ZsqError: the generator's numbers are broken; names the image.
        """
        check_text(question, "the question")
        check_counts(k=k, candidates=candidates, batch_size=batch_size)
        if bank is not None:
            self._check_bank(bank)
        rule = self._rule(scoring)
        joined = self._fusion if _is_auto(fusion) else _checked(fusion)
        viewer = self._reader("explain=True") if explain else None if rule is None else self._viewer
        if viewer is not None:
            viewer.generator.get()  # loaded before the clock runs
        if expand:
            found = self._first_stage.expanded(question, max(k, candidates), _checked(expansion, "expansion"))
        else:
            wanted = k if rule is None and bank is None else max(k, candidates)
            found = self._first_stage.of_text(question, wanted)
        if bank is not None:
            found = self._first_stage.normalized(found, bank)
        hits, timings = found.hits, dict(found.timings)
        if rule is not None and viewer is not None:
            begin = time.perf_counter()
            scores = viewer.score(rule, question, found.records, batch_size=batch_size, progress=progress)
            hits = rerank(hits, rule.name, scores, joined)
            timings[rule.name] = time.perf_counter() - begin
        hits = hits[:k]
        if explain and viewer is not None:
            begin = time.perf_counter()
            records = {record.key: record for record in found.records}
            prompt = rule.prompt if isinstance(rule, Likelihood) else Likelihood().prompt
            hits = explain_hits(
                viewer, question, hits, [records[hit.key] for hit in hits], prompt, batch_size=batch_size
            )
            timings["explain"] = time.perf_counter() - begin
        return Ranking(question, hits, timings)

    def search_image(self, image: ImageLike, k: int = 10) -> Ranking:
        """Find the images most like an image; one that is in the album finds itself first.

        There is no question here, so the first stage is alone.

        Args:
            image: a path, bytes, a PIL image or a record.
            k: how many hits, >= 1; fewer when the album is smaller.

        Raises:
            ImageError: the image cannot be decoded.
            InvalidInputError: k < 1.
        """
        check_counts(k=k)
        record = _decoded(image)
        found = self._first_stage.of_image(record, k)
        return Ranking(record.source, found.hits, found.timings)

    def search_texts(
        self,
        image: ImageLike,
        texts: Sequence[str],
        k: int | None = None,
        *,
        scoring: Scoring | Literal["auto"] | None = "auto",
        prior: Prior | Literal["auto"] | None = "auto",
        fusion: Fusion = _RERANK_ONLY,
        batch_size: int = 16,
        progress: ScoringProgress | None = None,
    ) -> TextRanking:
        """Find the texts that best fit an image, among those given; the album has no part in it.

        Some texts are likely whatever the image shows, and would win by that. So here a likelihood is
        corrected for its prior (docs/rerank.md), which multiplies the work by one and the number of null
        images.

        Args:
            image: a path, bytes, a PIL image or a record.
            texts: n texts, each of which says something.
            k: how many hits, >= 1; all when None.
            scoring: as for :meth:`search`; a text takes the place of the question.
            prior: how the likelihood is corrected; ``"auto"`` is ``Prior()`` for a
                :class:`~zsqretrieval.search.scoring.Likelihood` and None for any other scoring.
            fusion: how the score joins the cosine similarity.
            batch_size: texts scored together; must not change the result.
            progress: told after every batch how many texts are done, null images included; may raise to stop.

        Returns:
            Texts, best first, each with its scores by name: ``"first_stage"``, the cosine similarity; the
            scoring's own; with a prior ``"prior"``, log P(text), and ``"corrected"``; ``"fused"``, which is
            also ``score``.

        Raises:
            ImageError: the image cannot be decoded.
            InvalidInputError: ``texts`` is one text or holds what says nothing; ``k`` or ``batch_size`` < 1;
                scoring without a generator; ``fusion`` is none; a prior for anything but a likelihood; or a
                text is too long for the generator.
            ZsqError: the generator's numbers are broken; names the text.
        """
        check_counts(or_none=True, k=k)
        check_counts(batch_size=batch_size)
        rule = self._rule(scoring)
        fusion = _checked(fusion)
        return rank_texts(
            self.encoder,
            None if rule is None or self._viewer is None else self._viewer.generator,
            _decoded(image),
            texts,
            k,
            scoring=rule,
            prior=prior,
            fusion=fusion,
            batch_size=batch_size,
            progress=progress,
        )

    # --- asking back --------------------------------------------------------------------------------------

    def dialog(
        self,
        text: str,
        *,
        candidates: int = 100,
        policy: Policy = InformationGain(),  # noqa: B008  # frozen
        budget: int = 10,
        sure: float = 0.9,
        scale: float = SCALE,
        temper: float = TEMPER,
        reread: float = 1.0,
        seed: int = 0,
        batch_size: int = 64,
    ) -> Dialog:
        """Look for one image by being asked about it.

        Args:
            text: what is known of the image, to begin with.
            candidates: how many images of the first stage are considered, >= 1; answers bring more.
            policy: what is asked, and what answers mean.
            budget: how many questions are asked at most.
            sure: ask no more when an image is that probable, in (0, 1]; at 1 never for that reason.
            scale: factor from cosine similarity to log-probability.
            temper: exponent of the likelihood of an answer.
            reread: how much of what the encoder makes of an answer counts beside that.
            seed: of what is drawn.
            batch_size: images shown to the generator together.

        Returns:
            A dialog, with :attr:`~zsqretrieval.dialog.dialog.Dialog.question` to be answered.

        Raises:
            InvalidInputError: there is no generator; the album is empty; the text says nothing; or a setting
                is out of range.
        """
        return Dialog(
            self.gallery, text, candidates=candidates, policy=policy, budget=budget, sure=sure, scale=scale,
            temper=temper, reread=reread, seed=seed, batch_size=batch_size,
        )  # fmt: skip

    @property
    def gallery(self) -> AlbumGallery:
        """The images as a dialog sees them: ``dialog.attach(retriever.gallery)``.

        Raises:
            InvalidInputError: there is no generator.
        """
        return AlbumGallery(self.encoder, self._catalog, self._first_stage, self._reader("a dialog"))

    # --- what these share ---------------------------------------------------------------------------------

    def _rule(self, scoring: Scoring | Literal["auto"] | None) -> Scoring | None:
        if isinstance(scoring, str) and scoring == "auto":
            return Likelihood() if self._viewer is not None else None
        if scoring is None:
            return None
        if isinstance(scoring, type) or not isinstance(scoring, Scoring):
            raise InvalidInputError(
                f"scoring must be a rule such as Likelihood() or YesNo(), 'auto' or None, not {scoring!r}"
            )
        self._reader(f"scoring by {scoring.name!r}", ", or leave scoring out for the first stage alone")
        return scoring

    def _check_bank(self, bank: object) -> None:
        if not isinstance(bank, QueryBank):
            raise InvalidInputError(f"bank must be made by Retriever.query_bank(), or None, not {bank!r}")
        if bank.fingerprint != self.encoder.fingerprint:
            raise MismatchError(
                f"the bank was made by encoder {bank.fingerprint!r}, and the images by "
                f"{self.encoder.fingerprint!r}: their vectors cannot be compared; make it again "
                "with Retriever.query_bank()"
            )

    def _reader(self, what: str, instead: str = "") -> Viewer:
        if self._viewer is None:
            raise InvalidInputError(
                f"{what} needs a generator, and there is none: give one to Retriever or "
                f"Retriever.load{instead}"
            )
        return self._viewer


def _viewer(
    generator: Generator | LazyGenerator | None, states: StatesMode, album: Path | None
) -> Viewer | None:
    if generator is None:
        if states is not None:
            raise InvalidInputError(f"states={states!r} needs a generator that makes them; give one as well")
        return None
    lazy = generator if isinstance(generator, LazyGenerator) else LazyGenerator.of(generator)
    return Viewer(lazy, states, album)


def _described(viewer: Viewer | None) -> dict[str, Any]:
    if viewer is None:
        return {"part": None, "states": None}
    return {"part": viewer.generator.part, "states": viewer.states}


def _kept(catalog: Catalog) -> dict[str, Any]:
    """The generator that an album was last saved with, else made with, and where its states are kept."""
    return catalog.get_meta("generator") or catalog.settings.get("generator") or _described(None)


def _restored(
    catalog: Catalog,
    generator: Generator | LazyGenerator | None,
    states: StatesMode | Literal["auto"],
    album: Path,
) -> Viewer | None:
    kept = _kept(catalog)
    if generator is None and kept["part"] is not None:
        generator = LazyGenerator(kept["part"]["plugin"], kept["part"]["config"])
    if states == "auto":
        states = None if generator is None else kept["states"]
    return _viewer(generator, states, album)


def _kept_fusion(catalog: Catalog) -> Any:
    """The description of the fusion that an album was last saved with, else made with."""
    at_first = catalog.settings.get("fusion", describe_fusion(_FUSION))  # an old album says nothing of it
    return catalog.get_meta("fusion", at_first)


def _is_auto(fusion: object) -> bool:
    return isinstance(fusion, str) and fusion == "auto"


def _checked(fusion: object, what: str = "fusion") -> Fusion:
    if isinstance(fusion, type) or not isinstance(fusion, Fusion):
        raise InvalidInputError(
            f"{what} must be one such as WeightedSum() or ReciprocalRank(), not {fusion!r}"
        )
    return fusion


def _decoded(image: ImageLike) -> Image:
    """Decoded here as in `add`: an encoder may decode a large JPEG at reduced size by itself."""
    record = as_image(image)
    return Image(decode(record), record.source)


def _make_folder(path: str | os.PathLike[str]) -> Path:
    folder = Path(path).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AlbumError(f"no directory can be made at {folder}: {error.strerror or error}") from error
    return folder
