"""The facade: an encoder, an index and optionally a generator over an album of images.

    search: query --encoder, index--> candidates --generator--> scores --fusion--> Ranking

:class:`~zsqretrieval.retriever.album.Album` adds, changes and saves the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast, overload

from zsqretrieval._util.checks import check_counts
from zsqretrieval.album.candidates import need_generator
from zsqretrieval.data.images import ImageLike
from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.dialog.gallery import AlbumGallery
from zsqretrieval.dialog.policies import InformationGain, Policy
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever.album import Album
from zsqretrieval.retriever.opening import Parts
from zsqretrieval.search.dense import FirstStage
from zsqretrieval.search.image_to_text import TextRanking, rank_texts
from zsqretrieval.search.pipeline import Pipeline, as_query, query_image
from zsqretrieval.search.priors import Prior
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.rerank import Rerank, RerankLike
from zsqretrieval.tasks.album_questions import AlbumQuestions
from zsqretrieval.types import Image, Progress, Ranking


class Retriever(Album):
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

    def _attach(self, parts: Parts) -> None:
        super()._attach(parts)
        self._first_stage = FirstStage(parts.encoder, parts.catalog, parts.index, self._question_index)
        self._pipeline = Pipeline(self._first_stage, parts.viewer, parts.catalog)
        self.questions = AlbumQuestions(parts.catalog, parts.encoder, self._first_stage.keys, parts.viewer)

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
