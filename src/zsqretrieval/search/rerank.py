"""Re-ranking: score the candidates of the first stage, and order them by their fused scores.

candidates --Scoring rule (generator) or Reranker--> scores --Fusion--> order
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.batches import tell
from zsqretrieval._util.checks import check_amounts, check_counts, first_of
from zsqretrieval.album.candidates import Viewer, open_image, parts_by_size
from zsqretrieval.album.catalog import Record
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import ImageError, InvalidInputError, PartError
from zsqretrieval.plugins import check_part
from zsqretrieval.search.depth import ROUND
from zsqretrieval.search.fusion import FUSED, Fusion, RerankOnly, best_first, finite_numbers, fuse
from zsqretrieval.search.query import Query
from zsqretrieval.search.scoring import RULES, Likelihood, Scoring, score_each
from zsqretrieval.types import Hit, Image, Progress

CANDIDATES = 100
"""Candidates of a search that re-ranks, expands or normalises, unless :class:`Rerank` says otherwise."""


@runtime_checkable
class Reranker(Protocol):
    """A model that scores images for a question without a generator: a cross-encoder, a server."""

    def score(self, question: str, images: Sequence[Image]) -> ArrayLike:
        """Score n images, not decoded: float [n], higher is better."""
        ...


@dataclass(frozen=True, slots=True)
class Rerank:
    """How to re-rank the candidates of a search.

    Attributes:
        scoring: a scoring rule for the generator, such as ``Likelihood()`` or ``YesNo()``; a
            :class:`Reranker`; or None for the first stage alone, with ``candidates`` for a query bank.
        fusion: combines first-stage and re-ranking scores; None takes the calibration's for a scoring rule,
            and the re-ranking score alone for a :class:`Reranker`.
        candidates: how many images are scored, >= 1; with ``risk``, at most.
        batch_size: images scored together, >= 1; does not change the result.
        on_error: ``"first_stage"`` lets the first stage rank, with a RuntimeWarning, when a
            :class:`Reranker` fails, such as a server that does not answer; ``"raise"`` raises its error.
        risk: stop scoring the candidates of a question when fewer than this many of the first k results are
            expected among those left, >= 0; so 0.05 is at most a chance of 5 % that they differ. 0 scores
            all. Needs ``Likelihood()``, a raw :class:`WeightedSum` and a calibration of depth.

    Raises:
        InvalidInputError: a part is not of its kind, or a number is below 1.
    """

    scoring: Scoring | Reranker | None = Likelihood()  # noqa: RUF009  # frozen
    fusion: Fusion | None = None
    candidates: int = CANDIDATES
    batch_size: int = 16
    on_error: Literal["raise", "first_stage"] = "raise"
    risk: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.scoring, type) or not isinstance(self.scoring, Scoring | Reranker | None):
            raise InvalidInputError(
                "re-ranking takes 'likelihood', 'yes_no', a rule such as Likelihood(), an object with "
                f"score(question, images), Rerank(...) or None, not {self.scoring!r}"
            )
        if self.fusion is not None:
            check_part("fusion", self.fusion)
        check_counts(candidates=self.candidates, batch_size=self.batch_size)
        check_amounts(risk=self.risk)
        if self.on_error not in ("raise", "first_stage"):
            raise InvalidInputError(f"on_error must be 'raise' or 'first_stage', not {self.on_error!r}")
        if self.risk and self.scoring != Likelihood():
            raise InvalidInputError(f"risk is calibrated for Likelihood(), not for {self.scoring!r}; use 0")

    @classmethod
    def of(cls, rerank: RerankLike, *, generator: bool) -> Rerank | None:
        """Turn the argument of a search into a Rerank.

        Args:
            rerank: see :data:`RerankLike`.
            generator: whether there is a generator; ``"auto"`` means ``"likelihood"`` with one, None without.

        Raises:
            InvalidInputError: anything else.
        """
        if rerank is None or isinstance(rerank, Rerank):
            return rerank
        if isinstance(rerank, str) and rerank == "auto":
            return cls() if generator else None
        rule = RULES.get(rerank, rerank) if isinstance(rerank, str) else rerank
        return cls(rule)  # type: ignore[arg-type]  # another string is refused there

    @property
    def name(self) -> str:
        """Name of the score in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>`."""
        return str(getattr(self.scoring, "name", type(self.scoring).__name__))

    @property
    def needs_generator(self) -> bool:
        """Whether the scores come from the generator."""
        return isinstance(self.scoring, Scoring)

    def fusion_or(self, calibrated: Fusion) -> Fusion:
        """The fusion to use, given the calibration's."""
        return self.fusion or (calibrated if self.needs_generator else RerankOnly())


RerankLike: TypeAlias = "Rerank | Scoring | Reranker | Literal['auto', 'likelihood', 'yes_no'] | None"
"""The argument ``rerank`` of a search: a name, a scoring rule, a re-ranker, all settings, or None."""


def score_candidates(
    how: Rerank,
    viewer: Viewer | None,
    files: Reopener,
    queries: Sequence[Query],
    candidates: Sequence[Sequence[Record]],
    *,
    progress: Progress | None = None,
    done: int = 0,
    total: int | None = None,
) -> list[NDArray[np.float64]]:
    """Score the candidates of q queries, in one call of the generator unless their files are very large.

    An image is opened once for all queries. The score of a query with several texts is their weighted sum.

    Args:
        how: the rule or re-ranker.
        viewer: gives the generator its inputs; None for a re-ranker.
        files: opens the images of the album.
        queries: q queries with texts.
        candidates: the n_i candidates of query i, each once.
        progress: counts pairs of questions and images.
        done: pairs that earlier calls scored.
        total: pairs of all calls, for ``progress``; those of this one when None.

    Returns:
        q arrays float64 [n_i], higher is better; nan for images that cannot be opened or that the generator
        cannot take, which a RuntimeWarning names.

    Raises:
        InvalidInputError: the generator cannot take a question; or as :func:`score_pairs`.
    """
    wanted: dict[int, list[tuple[int, int]]] = {}  # queries and places of every image by key
    for q, some in enumerate(candidates):
        for place, record in enumerate(some):
            wanted.setdefault(record.key, []).append((q, place))
    images = list({record.key: record for some in candidates for record in some}.values())
    total = total or _pairs(queries, candidates)
    scores = [np.zeros(len(some)) for some in candidates]
    unavailable: dict[int, ImageError] = {}
    failed: set[int] = set()  # queries
    for part in parts_by_size(images):
        # image by image, so that the texts of an image share its beginning
        pairs = [
            _Pair(q, place, weight, text, record)
            for record in images[part]
            for q, place in wanted[record.key]
            if q not in failed
            for weight, text in queries[q].texts
        ]
        counted = _counted(progress, done, len(pairs), total)
        if isinstance(how.scoring, Scoring):
            assert viewer is not None
            with viewer.showing(images[part], files, progress) as (generator, inputs):
                shown = {record.key: one for record, one in zip(images[part], inputs, strict=True)}
                found: Sequence[_Score] = score_each(
                    generator,
                    how.scoring,
                    [pair.text for pair in pairs],
                    [shown[pair.record.key] for pair in pairs],
                    batch_size=how.batch_size,
                    progress=counted,
                )
        else:
            opened = {record.key: open_image(files, record) for record in images[part]}
            found = _by_reranker(how, opened, pairs, counted)
        done += len(pairs)
        for pair, score in zip(pairs, found, strict=True):
            if score is None:
                failed.add(pair.query)
            elif isinstance(score, ImageError):
                unavailable[pair.record.key] = score
                scores[pair.query][pair.place] = math.nan
            else:
                scores[pair.query][pair.place] += pair.weight * score
    for q in failed:
        scores[q][:] = math.nan
    if unavailable:
        names = first_of(list(unavailable.values()))
        warnings.warn(
            f"{len(unavailable)} of {len(images)} candidates cannot be opened or scored and rank last, in "
            f"the order of the first stage: {names}. If images may move, keep copies in the "
            "album: add them with copy=True (--copy)",
            RuntimeWarning,
            stacklevel=3,
        )
    return scores


def score_until(
    how: Rerank,
    viewer: Viewer | None,
    files: Reopener,
    queries: Sequence[Query],
    candidates: Sequence[Sequence[Record]],
    enough: Callable[[int, NDArray[np.float64]], bool],
    *,
    first: int,
    progress: Progress | None = None,
) -> list[NDArray[np.float64]]:
    """Score candidates in rounds, in each of which all queries that need more take part.

    ``enough`` says of the number of a query and its scores so far whether it needs no more; ``first``
    candidates of each are scored in any case. Other arguments and errors are those of
    :func:`score_candidates`.

    Returns:
        q arrays float64 [m_i <= n_i], of the first candidates of each query.
    """
    scores = [np.empty(0) for _ in queries]
    total, size = _pairs(queries, candidates), max(first, ROUND)
    while some := [
        q for q, of_query in enumerate(candidates)
        if len(scores[q]) < len(of_query) and not (len(scores[q]) and enough(q, scores[q]))
    ]:  # fmt: skip
        found = score_candidates(
            how, viewer, files,
            [queries[q] for q in some],
            [candidates[q][len(scores[q]) : len(scores[q]) + size] for q in some],
            progress=progress, done=_pairs(queries, scores), total=total,
        )  # fmt: skip
        for q, new in zip(some, found, strict=True):
            scores[q] = np.concatenate([scores[q], new])
        size = ROUND
    return scores


def _pairs(queries: Sequence[Query], candidates: Sequence[Sized]) -> int:
    """Number of pairs of a text and a candidate."""
    return sum(len(query.texts) * len(some) for query, some in zip(queries, candidates, strict=True))


_Score: TypeAlias = float | ImageError | None
"""The score of a pair, why its image has none, or None if the re-ranker failed."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A question about an image, with its weight in the score of a candidate."""

    query: int
    place: int  # of the image among the candidates of the query
    weight: float
    text: str
    record: Record


def _counted(progress: Progress | None, before: int, pairs: int, total: int) -> Progress | None:
    """Report the progress in one part as a number of all pairs."""
    if progress is None:
        return None

    def report(step: str, done: int, of: int | None) -> None:
        progress(step, before + pairs * done // (of or 1), total)

    return report


def _by_reranker(
    how: Rerank,
    opened: Mapping[int, Image | ImageError],
    pairs: Sequence[_Pair],
    progress: Progress | None,
) -> list[_Score]:
    """Score pairs by a re-ranker, question by question; ``opened`` has the images by key."""
    found: list[_Score] = [None] * len(pairs)
    by_text: dict[str, list[int]] = {}
    for n, pair in enumerate(pairs):
        by_text.setdefault(pair.text, []).append(n)
    for done, (text, some) in enumerate(by_text.items(), 1):
        wanted = {pairs[n].record.key: opened[pairs[n].record.key] for n in some}
        scores: Mapping[int, float | ImageError] = {}
        try:
            scores = _asked(how, text, wanted)
        except Exception as error:  # of whatever model or server it is
            if how.on_error == "raise":
                raise
            warnings.warn(
                f"the re-ranker {how.name} failed for {text[:60]!r}, which the first stage ranks: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
        for n in some:
            found[n] = scores.get(pairs[n].record.key)
        tell(progress, "scoring", done, len(by_text))
    return found


def _asked(how: Rerank, text: str, images: Mapping[int, Image | ImageError]) -> dict[int, float | ImageError]:
    """Scores by key; the error for images that cannot be opened, or of which the re-ranker says so."""
    found: dict[int, float | ImageError] = {
        key: image for key, image in images.items() if isinstance(image, ImageError)
    }
    while True:
        able = {key: image for key, image in images.items() if key not in found and isinstance(image, Image)}
        try:
            return found | dict(zip(able, ask_reranker(how, text, list(able.values())), strict=True))
        except ImageError as error:
            refused = [key for key, image in able.items() if image.source == error.source]
            if not refused:
                raise
            found |= dict.fromkeys(refused, error)


def ask_reranker(how: Rerank, question: str, images: Sequence[Image]) -> list[float]:
    """Call a re-ranker and check its answer."""
    assert isinstance(how.scoring, Reranker)
    if not images:
        return []
    answer = how.scoring.score(question, images)
    scores = finite_numbers(answer, len(images))
    if scores is None:
        raise PartError(
            f"the re-ranker {how.name} gave {str(answer)[:200]} for {len(images)} images; it must give one "
            "finite number per image"
        )
    found: list[float] = scores.tolist()
    return found


def reorder(hits: Sequence[Hit], name: str, scores: NDArray[np.float64], fusion: Fusion) -> tuple[Hit, ...]:
    """Order n hits of the first stage, best first, by their fused scores.

    ``scores`` float64 [m <= n] are the re-ranking scores of the first m hits, of that ``name``. Hits without
    a score, or with nan, come last with the score None; if no hit has a score, the hits are returned
    unchanged.
    """
    scored = np.flatnonzero(~np.isnan(scores))
    if not len(scored):
        return tuple(hits)
    first_stage = np.array([hit.score for hit in hits], np.float64)
    fused = np.full(len(hits), -np.inf)
    fused[scored] = fuse(fusion, first_stage[scored], scores[scored])
    ranked = [replace(hit, score=None) for hit in hits]
    for n in scored.tolist():
        score = float(fused[n])
        stages = {**hits[n].scores, name: float(scores[n]), FUSED: score}
        ranked[n] = replace(hits[n], score=score, scores=stages)
    return tuple(ranked[n] for n in best_first(fused))
