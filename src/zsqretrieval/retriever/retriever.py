"""The facade: an encoder, an index and optionally a generator over an album of images.

    search: query --encoder, index--> candidates --generator--> scores --fusion--> Ranking

:class:`~zsqretrieval.retriever.album.Album` opens, changes and saves an album;
:class:`~zsqretrieval.retriever.collection.Collection` adds what concerns all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast, overload

from typing_extensions import TypedDict, Unpack

from zsqretrieval._util.checks import check_counts
from zsqretrieval._util.threads import in_thread
from zsqretrieval.album.candidates import need_generator
from zsqretrieval.album.filters import Filter
from zsqretrieval.data.images import ImageLike
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.retriever.collection import Collection
from zsqretrieval.retriever.opening import MilvusParts, Parts
from zsqretrieval.search.dense import FirstStage, MinProbability
from zsqretrieval.search.image_to_text import TextRanking, rank_texts
from zsqretrieval.search.pipeline import Pipeline, Request, Scored
from zsqretrieval.search.priors import Prior
from zsqretrieval.search.query import Query, QueryLike, query_image
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.search.rerank import Rerank, RerankLike
from zsqretrieval.tasks.album_questions import AlbumQuestions
from zsqretrieval.types import Progress

if TYPE_CHECKING:  # a search does without, and they import scipy
    from zsqretrieval.dialog.dialog import Dialog
    from zsqretrieval.dialog.gallery import AlbumGallery
    from zsqretrieval.dialog.policies import Policy


class SearchOptions(TypedDict, total=False):
    """The options of :meth:`Retriever.search`."""

    offset: int
    where: Filter | None
    rerank: RerankLike
    expand: bool
    bank: QueryBank | None
    collapse: float | None
    diversity: float
    min_probability: float | None
    explain: bool
    scored: Scored | None
    progress: Progress | None


class Retriever(Collection):
    """Finds images by asking questions of them.

    :meth:`open` opens an album or makes one; :meth:`from_preset` keeps one in memory until :meth:`save`. The
    constructor takes parts of your own and makes a new album.

    Args:
        encoder: encodes images and queries.
        index: an empty index of the encoder's dim, used by nothing else; a compressed index when None.
        generator: scores the candidates; None for the first stage alone. A
            :class:`~zsqretrieval.generators.lazy.LazyGenerator` is loaded on first use.
        path: directory of the new album, made when missing; None keeps the album in memory.
        states: when image features of the generator are cached in the album: ``"lazy"``, on first use;
            ``"disk"``, by :meth:`add`; None computes them for every query. A generator without
            :class:`~zsqretrieval.protocols.ImageStates` has none, and takes ``"lazy"`` or None.
        calibration: the constants of this pair of encoder and generator.

    Raises:
        MismatchError: index and encoder differ in dim or fingerprint.
        InvalidInputError: a part is not of its kind, the index is not empty, or ``states="disk"``
            without a generator that computes features.
        AlbumError: ``path`` holds an album, or the directory cannot be made.

    All methods are safe to call from several threads; searches run while images are added.
    """

    def _attach(self, parts: Parts | MilvusParts) -> None:
        super()._attach(parts)
        self._first_stage = FirstStage(parts.encoder, self._store, self._question_index)
        self._pipeline = Pipeline(self._first_stage, parts.viewer, self._store)
        if isinstance(parts, Parts):
            self._questions = AlbumQuestions(parts.catalog, parts.encoder, parts.store.keys, parts.viewer)

    @property
    def questions(self) -> AlbumQuestions:
        """Stored questions; see :class:`~zsqretrieval.tasks.album_questions.AlbumQuestions`."""
        self._parts  # noqa: B018  # refuses a collection of Milvus
        return self._questions

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a question, though a Sequence, too
        self, query: QueryLike, k: int = 10, **options: Unpack[SearchOptions]
    ) -> Ranking: ...

    @overload
    def search(
        self, query: Sequence[QueryLike], k: int = 10, **options: Unpack[SearchOptions]
    ) -> list[Ranking]: ...

    def search(
        self,
        query: QueryLike | Sequence[QueryLike],
        k: int = 10,
        *,
        offset: int = 0,
        where: Filter | None = None,
        rerank: RerankLike = "auto",
        expand: bool = False,
        bank: QueryBank | None = None,
        collapse: float | None = None,
        diversity: float = 0.0,
        min_probability: float | None = None,
        explain: bool = False,
        scored: Scored | None = None,
        progress: Progress | None = None,
    ) -> Ranking | list[Ranking]:
        """Find the images that best fit a question, an image, or each of a list of them.

        Encoder and index fetch candidates, the generator scores them, and a fusion of both scores ranks them.
        A list goes through encoder, index and generator in one batch. Images that cannot be opened rank last,
        with a RuntimeWarning. Without a text (an image, a hit, a vector) the first stage ranks alone.

        Args:
            query: a question (a ``str``), an image (a ``Path``, bytes, a PIL image or a record), a hit ("more
                like this"), a vector float [dim], a weighted sum of these
                (:class:`~zsqretrieval.search.query.Query`), or a list of them.
            k: hits, >= 1; fewer when the album is smaller.
            offset: hits to skip, >= 0, for the next page of k hits. Hits beyond the re-ranked candidates
                follow in the order of the first stage, with the score None.
            where: only images that this filter selects, such as ``Field("year") > 2010`` (docs/filters.md).
            rerank: a name, a scoring rule, a re-ranker, or all settings: see
                :class:`~zsqretrieval.search.rerank.Rerank`. None for the first stage alone; ``"auto"`` is
                ``"likelihood"`` with a generator, else None.
            expand: also search the stored questions of the images.
            bank: normalises the first-stage scores; see :meth:`query_bank`.
            collapse: cosine similarity, such as 0.97, from which near-duplicates are shown once, with their
                number in :attr:`Hit.duplicates <zsqretrieval.types.Hit.duplicates>`.
            diversity: weight from 0 to 1 of being unlike the hits before (maximal marginal relevance).
            min_probability: only hits whose estimated probability of being relevant is at least that, from 0
                to 1; sets :attr:`Hit.probability <zsqretrieval.types.Hit.probability>` and
                :attr:`Ranking.nothing_found <zsqretrieval.search.ranking.Ranking.nothing_found>`.
            explain: add explanations: the generator's answer, and the words that the image explains.
            scored: called while the generator re-ranks, every 16 candidates, with the number of a query and
                the fused scores of those scored so far by id, to order by; may raise to stop.
            progress: called between batches of candidates; may raise to stop.

        Returns:
            Hits, best first, with the score of every stage (:attr:`~zsqretrieval.types.Hit.scores`). A
            candidate that could not be scored has ``score`` None; if none could, the first stage ranks.

        Raises:
            InvalidInputError: the question is empty, or too long for the generator; a number is out of range;
                re-ranking without a generator, or for a query without a text; ``expand`` without stored
                questions; a filter on a field that no image has; or an argument is not of its kind.
            ImageError: an image cannot be decoded.
            MismatchError: the bank was made with another encoder.
            ZsqError: the generator or re-ranker returned numbers that cannot be ranked.
        """
        several = isinstance(query, Sequence) and not isinstance(query, str | bytes)
        queries = [Query(one) for one in cast("Sequence[QueryLike]", query if several else [query])]
        if (explain or rerank not in ("auto", None)) and not all(one.texts for one in queries):
            raise InvalidInputError(
                "re-ranking and explaining need a question, not an image, a hit or a vector; use rerank=None"
            )
        if (explain or min_probability is not None) and any(one.question is None for one in queries):
            raise InvalidInputError(
                "explain and min_probability need one question per query, not a sum of terms"
            )
        how = Rerank.of(rerank, generator=self.has_generator)
        if not any(one.texts for one in queries):
            how = None
        while True:
            pipeline, constants = self._pipeline, self.calibration
            asked = Request(
                k=k, offset=offset, where=where, how=how, fusion=constants.fusion,
                expansion=constants.expansion if expand else None,
                bank=bank, collapse=collapse, diversity=diversity, explain=explain, scored=scored,
                progress=progress, stopping=constants.depth,
                relevance=None if min_probability is None else MinProbability(
                    min_probability, constants.relevance_scale, constants.relevance_margin
                ),
            )  # fmt: skip
            try:
                rankings = pipeline.search(queries, asked)
            except AlbumError:
                if not self._has_replaced(pipeline):
                    raise
            else:
                return rankings if several else rankings[0]

    def _has_replaced(self, pipeline: Pipeline) -> bool:
        """Whether :meth:`reencode` in another thread replaces a pipeline; returns when it has."""
        if isinstance(self._given, Parts) and self._catalog.log.retired:
            with self._saving:
                pass
        return pipeline is not self._pipeline

    @overload
    async def asearch(  # type: ignore[overload-overlap]
        self, query: QueryLike, k: int = 10, **options: Unpack[SearchOptions]
    ) -> Ranking: ...

    @overload
    async def asearch(
        self, query: Sequence[QueryLike], k: int = 10, **options: Unpack[SearchOptions]
    ) -> list[Ranking]: ...

    async def asearch(
        self, query: Any, k: int = 10, **options: Unpack[SearchOptions]
    ) -> Ranking | list[Ranking]:
        """Search in a thread, as :meth:`search`; cancelling stops the search before its next batch."""
        return await in_thread(partial(self.search, query, k), **options)

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
        where: Filter | None = None,
        policy: Policy | None = None,
        budget: int = 10,
        sure: float = 0.9,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Dialog:
        """Start a dialog that asks clarifying questions to find one target image.

        Args:
            text: first description of the target image.
            candidates: first-stage candidates to begin with, >= 1; answers bring more.
            where: only images that this filter selects.
            policy: chooses the questions and interprets the answers; InformationGain when None.
            budget: most questions.
            sure: stop when an image is that probable, in (0, 1]; at 1 never for that reason.
            seed: seed of random draws.
            progress: called while the dialog computes; may raise to stop.

        Raises:
            InvalidInputError: there is no generator, album or text is empty, the filter selects no image, or
                a setting is out of range.
        """
        from zsqretrieval.dialog.dialog import Dialog
        from zsqretrieval.dialog.policies import InformationGain

        constants, policy = self.calibration, policy or InformationGain()
        gallery = self.gallery(where=where, progress=progress)
        if where is not None and len(self) and not self.count(where):
            raise InvalidInputError("the filter selects no image; choose another one")
        return Dialog(
            gallery, text, candidates=candidates, policy=policy, budget=budget,
            sure=sure, scale=constants.dialog_scale, temper=constants.dialog_temper,
            reread=constants.dialog_reread, seed=seed, progress=progress,
        )  # fmt: skip

    def gallery(self, *, where: Filter | None = None, progress: Progress | None = None) -> AlbumGallery:
        """The images for a dialog that was loaded from a file: ``dialog.attach(retriever.gallery())``.

        Args:
            where: only images that this filter selects become candidates; give the dialog's.
            progress: called while image features are computed; may raise to stop.

        Raises:
            InvalidInputError: there is no generator.
        """
        from zsqretrieval.dialog.gallery import AlbumGallery

        viewer = need_generator(self._viewer, "a dialog")
        return AlbumGallery(self.encoder, self._catalog, self._first_stage, viewer, progress, where)
