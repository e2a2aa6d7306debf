"""Re-ranking: score the candidates of the first stage, and order them by their fused scores.

candidates --Scoring rule (generator) or Reranker--> scores --Fusion--> order
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import check_counts
from zsqretrieval.album.candidates import Viewer, open_image, parts_by_size
from zsqretrieval.album.catalog import Record
from zsqretrieval.data.sources import Reopener
from zsqretrieval.errors import ImageError, InvalidInputError, PartError
from zsqretrieval.plugins import check_part
from zsqretrieval.search.fusion import FUSED, Fusion, RerankOnly, best_first, finite_numbers, fuse
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo, score_pairs
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
        candidates: how many images are scored, >= 1.
        batch_size: images scored together, >= 1; does not change the result.

    Raises:
        InvalidInputError: a part is not of its kind, or a number is below 1.
    """

    scoring: Scoring | Reranker | None = Likelihood()  # noqa: RUF009  # frozen
    fusion: Fusion | None = None
    candidates: int = CANDIDATES
    batch_size: int = 16

    def __post_init__(self) -> None:
        if isinstance(self.scoring, type) or not isinstance(self.scoring, Scoring | Reranker | None):
            raise InvalidInputError(
                "re-ranking takes 'likelihood', 'yes_no', a rule such as Likelihood(), an object with "
                f"score(question, images), Rerank(...) or None, not {self.scoring!r}"
            )
        if self.fusion is not None:
            check_part("fusion", self.fusion)
        check_counts(candidates=self.candidates, batch_size=self.batch_size)

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
        if isinstance(rerank, str):
            if rerank == "auto":
                return cls() if generator else None
            rule = {Likelihood.name: Likelihood(), YesNo.name: YesNo()}.get(rerank, rerank)
            return cls(rule)  # type: ignore[arg-type]  # refused there
        return cls(rerank)

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
    question: str,
    records: Sequence[Record],
    *,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Score n candidates for a question, in one call of the generator unless their files are very large.

    ``files`` opens the images of the album.

    Returns:
        float64 [n], higher is better; nan for images that cannot be opened or that the generator cannot take,
        which a RuntimeWarning names.

    Raises:
        InvalidInputError: the generator cannot take the question; or as :func:`score_pairs`.
    """
    scores = np.full(len(records), np.nan)
    unavailable: list[ImageError] = []
    for part in parts_by_size(records):
        if isinstance(how.scoring, Scoring):
            assert viewer is not None
            faults: dict[int, InvalidInputError] = {}
            with viewer.showing(records[part], files, progress) as (generator, inputs):
                scores[part] = score_pairs(
                    generator,
                    how.scoring,
                    [question] * len(inputs),
                    inputs,
                    batch_size=how.batch_size,
                    progress=_of_part(progress, part, len(records)),
                    faults=faults,
                )
            for fault in faults.values():
                if not isinstance(fault, ImageError):  # the question is at fault
                    raise fault
                unavailable.append(fault)
        else:
            opened = [open_image(files, record) for record in records[part]]
            images = [one for one in opened if isinstance(one, Image)]
            unavailable += [one for one in opened if isinstance(one, ImageError)]
            available = np.array([isinstance(one, Image) for one in opened])
            scores[part][available] = _ask_reranker(how, question, images)
    if unavailable:
        names = "; ".join(map(str, unavailable[:3])) + (
            f"; and {len(unavailable) - 3} more" * (len(unavailable) > 3)
        )
        warnings.warn(
            f"{len(unavailable)} of {len(records)} candidates cannot be opened or scored and rank last, in "
            f"the order of the first stage: {names}. If images may move, keep copies in the "
            "album: add them with copy=True (--copy)",
            RuntimeWarning,
            stacklevel=3,
        )
    return scores


def _of_part(progress: Progress | None, part: slice, candidates: int) -> Progress | None:
    """Report the generator's progress in one part as a number of candidates."""
    if progress is None:
        return None

    def report(step: str, done: int, total: int | None) -> None:
        progress(step, part.start + (part.stop - part.start) * done // (total or 1), candidates)

    return report


def _ask_reranker(how: Rerank, question: str, images: Sequence[Image]) -> NDArray[np.float64]:
    """Call a re-ranker and check its answer."""
    assert isinstance(how.scoring, Reranker)
    if not images:
        return np.empty(0)
    answer = how.scoring.score(question, images)
    scores = finite_numbers(answer, len(images))
    if scores is None:
        raise PartError(
            f"the re-ranker {how.name} gave {str(answer)[:200]} for {len(images)} images; it must give one "
            "finite number per image"
        )
    return scores


def reorder(hits: Sequence[Hit], name: str, scores: NDArray[np.float64], fusion: Fusion) -> tuple[Hit, ...]:
    """Order n hits of the first stage, best first, by their fused scores.

    ``scores`` float64 [n] are the re-ranking scores of that ``name``. Hits whose score is nan come last with
    the score None; if no hit has a score, the hits are returned unchanged.
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
