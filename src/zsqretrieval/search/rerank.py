"""Re-ranking: what a generator makes of each candidate, and how that joins what the first stage thought.

Two steps, each of which can be replaced:

    candidates --Scoring--> one score per image --Fusion--> the score that the ranking is sorted by

A scoring rule asks the generator for likelihoods of texts and turns them into a number: :class:`Likelihood`
(UPR, arXiv 2204.07496, carried from passages to images) or :class:`YesNo`. A fusion is a pure function of two
arrays: :class:`RerankOnly`, :class:`WeightedSum`, :class:`Maximum` or :class:`ReciprocalRank`. :class:`Prior`
belongs to the other direction, from an image to texts. ``docs/rerank.md`` says when which matters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zsqretrieval._util.checks import check_amounts, check_numbers, check_sequence, check_verbalisers
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.generators.checked import read_texts
from zsqretrieval.generators.prompts import PROMPTS, Prompt, check_prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.types import Context, Hit, Image, ImageState, LogLikelihood

__all__ = [
    "Fusion",
    "Likelihood",
    "Maximum",
    "Pair",
    "Prior",
    "Progress",
    "ReciprocalRank",
    "RerankOnly",
    "Scoring",
    "WeightedSum",
    "YesNo",
    "best_first",
    "fuse",
    "log_prior",
    "null_images",
    "rerank",
    "score_images",
    "score_text_image_pairs",
    "score_texts",
    "standardized",
]

Progress: TypeAlias = Callable[[int, int], object]
"""Called after every batch with the number of candidates done and of all; may raise to stop the work."""

Asked: TypeAlias = tuple[str, "Image | ImageState"]
"""A text, and the image it is scored for."""

T = TypeVar("T")

FIRST_STAGE = "first_stage"
"""Name of the first stage's score."""

NORMALIZED = "normalized"
"""Name of the first stage's score after a query bank has corrected it."""

FUSED = "fused"
"""Name of the score that a fusion gives."""

# --- scoring rules ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A text whose likelihood after a context is asked for; its leading space belongs to it."""

    context: Context
    continuation: str


@runtime_checkable
class Scoring(Protocol):
    """A rule that turns likelihoods into a score; anything with these three members is one."""

    @property
    def name(self) -> str:
        """Names the score in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>` and the stage in timings."""
        ...

    def pairs(self, question: str, image: Image | ImageState) -> Sequence[Pair]:
        """What to ask the generator about one image; one pair or more."""
        ...

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        """The score of one image, finite, higher is better, from the likelihoods of its pairs in order."""
        ...


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-likelihood of the question given the image: UPR (Sachan et al., arXiv 2204.07496).

    Attributes:
        prompt: what the question continues; takes one image and no texts.
        aggregate: ``"sum"`` gives log P(question | image) in nats; ``"mean"`` divides it by the number of
            tokens. For one question that is the same order; docs/rerank.md says where they differ.

    Raises:
        InvalidInputError: the prompt takes anything else, or there is no such aggregate.
    """

    prompt: Prompt = PROMPTS["question"]
    aggregate: Literal["sum", "mean"] = "sum"
    name: ClassVar[str] = "likelihood"

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if self.aggregate not in ("sum", "mean"):
            raise InvalidInputError(f"aggregate must be 'sum' or 'mean', not {self.aggregate!r}")

    def pairs(self, question: str, image: Image | ImageState) -> list[Pair]:
        """The question after the prompt."""
        return [Pair(self.prompt.context(image), f" {question.strip()}")]

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        """Its log-likelihood: at most 0."""
        (one,) = likelihoods
        return one.sum if self.aggregate == "sum" else one.mean


@dataclass(frozen=True, slots=True)
class YesNo:
    """Whether the image shows what the question says: the log-odds of yes against no.

    The score is log P(yes) - log P(no) in nats, which is monotone in the probability
    P(yes) / (P(yes) + P(no)) of VQAScore (Lin et al., arXiv 2404.01291), given by :meth:`probability`, and
    unlike it does not crowd at 0 and 1 when it is added to another score. The probabilities of several
    verbalisers add up; wording moves results by points, so try some.

    Attributes:
        prompt: takes one image and the text ``question``.
        yes: continuations that mean yes, leading space included.
        no: continuations that mean no.

    Raises:
        InvalidInputError: the prompt takes anything else, or a verbaliser is missing, repeated or empty.
    """

    prompt: Prompt = PROMPTS["yes_no"]
    yes: tuple[str, ...] = (" yes",)
    no: tuple[str, ...] = (" no",)
    name: ClassVar[str] = "yes_no"

    def __post_init__(self) -> None:
        check_prompt(self.prompt, "question")
        yes, no = check_verbalisers(yes=self.yes, no=self.no)
        object.__setattr__(self, "yes", yes)
        object.__setattr__(self, "no", no)

    def pairs(self, question: str, image: Image | ImageState) -> list[Pair]:
        """Every verbaliser after the same context."""
        context = self.prompt.context(image, question=question.strip())
        return [Pair(context, word) for word in (*self.yes, *self.no)]

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        """The log-odds of yes."""
        sums = np.array([one.sum for one in likelihoods])
        count = len(self.yes)
        return float(np.logaddexp.reduce(sums[:count]) - np.logaddexp.reduce(sums[count:]))

    @staticmethod
    def probability(score: float) -> float:
        """P(yes) / (P(yes) + P(no)) of a score."""
        return 1 / (1 + math.exp(-score)) if score > 0 else math.exp(score) / (1 + math.exp(score))


# --- scores -----------------------------------------------------------------------------------------------


def score_images(
    generator: Generator,
    scoring: Scoring,
    question: str,
    images: Sequence[Image | ImageState],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Score images for one question.

    Args:
        generator: reads them.
        scoring: what is asked of it.
        question: what the images are to answer.
        images: n images, or their states.
        batch_size: images scored between two calls of ``progress``.
        progress: told how far it is; may raise to stop.

    Returns:
        float64 [n], finite, higher is better.

    Raises:
        ImageError: an image cannot be decoded; names it.
        InvalidInputError: the question is too long for the generator; ``batch_size`` < 1; or the scoring gave
            a score that is not finite.
        ZsqError: the generator gave too few or too many numbers, or one that is none; names the image.
    """
    check_sequence(images, "images")
    asked = [(question, image) for image in images]
    scores = _in_batches(partial(score_text_image_pairs, generator, scoring), asked, batch_size, progress)
    return np.array(scores, np.float64)


def score_texts(
    generator: Generator,
    scoring: Scoring,
    image: Image | ImageState,
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Score texts for one image: :func:`score_images` the other way round.

    Args:
        generator: reads the image.
        scoring: what is asked of it; a text takes the place of the question.
        image: the image, or its state.
        texts: n texts, each of which says something.
        batch_size: texts scored between two calls of ``progress``.
        progress: told how far it is; may raise to stop.

    Returns:
        float64 [n], finite, higher is better. Texts differ in how likely they are of themselves: see
        :func:`log_prior`.

    Raises:
        ImageError, InvalidInputError, ZsqError: as :func:`score_images`; names the text.
    """
    check_sequence(texts, "texts")
    asked = [(text, image) for text in texts]
    scores = _in_batches(partial(score_text_image_pairs, generator, scoring), asked, batch_size, progress)
    return np.array(scores, np.float64)


def score_text_image_pairs(
    generator: Generator, scoring: Scoring, asked: Sequence[Asked], *, batch_size: int = 16
) -> NDArray[np.float64]:
    """Score any texts for any images, in one call of the generator.

    Args:
        generator: reads the images.
        scoring: what is asked of it.
        asked: n texts, each with its image or its state.
        batch_size: most pairs computed together.

    Returns:
        float64 [n], finite, higher is better.

    Raises:
        ImageError, InvalidInputError, ZsqError: as :func:`score_images`; names the text and the image.
    """
    found = _likelihoods(generator, scoring, asked, batch_size=batch_size)
    scores = np.array([scoring.score(some) for some in found], np.float64)
    for (text, image), score in zip(asked, scores, strict=True):
        if not math.isfinite(score):
            raise InvalidInputError(
                f"{text!r} given {image.source}: the scoring {scoring.name!r} gave {score} for likelihoods "
                "that are all finite; it must give a finite number"
            )
    return scores


def _likelihoods(
    generator: Generator, scoring: Scoring, asked: Sequence[Asked], *, batch_size: int
) -> list[list[LogLikelihood]]:
    """The likelihoods of the rule's pairs, for every text and image."""
    pairs = [scoring.pairs(*one) for one in asked]
    found = iter(
        read_texts(
            generator,
            [pair.context for some in pairs for pair in some],
            [pair.continuation for some in pairs for pair in some],
            batch_size=batch_size,
        )
    )
    return [[next(found) for _ in some] for some in pairs]


def _in_batches(
    read: Callable[..., Iterable[T]], asked: Sequence[Asked], batch_size: int, progress: Progress | None
) -> list[T]:
    """What ``read`` makes of each text and image, and ``progress`` told after every batch."""
    if batch_size < 1:
        raise InvalidInputError(f"batch_size must be at least 1, not {batch_size}")
    found: list[T] = []
    for start in range(0, len(asked), batch_size):
        found.extend(read(asked[start : start + batch_size], batch_size=batch_size))
        if progress is not None:
            progress(len(found), len(asked))
    return found


# --- fusions ----------------------------------------------------------------------------------------------


@runtime_checkable
class Fusion(Protocol):
    """Joins the scores of two stages; anything with this member is one."""

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Join.

        Args:
            first_stage: float64 [n], the candidates' cosine similarities, or what a
                :class:`~zsqretrieval.search.query_bank.QueryBank` made of them, best first.
            scores: float64 [n], what the scoring rule made of the same candidates.

        Returns:
            float64 [n], in the same order; the ranking is sorted by it, highest first, and equal ones stay in
            the order of the first stage.
        """
        ...


@dataclass(frozen=True, slots=True)
class RerankOnly:
    """The scoring rule alone decides; the first stage has done its part by choosing the candidates."""

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """``scores`` as they are."""
        return np.array(scores, np.float64)


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """First stage plus ``weight`` times the score.

    Attributes:
        weight: 0 is the first stage alone, large is the score alone.
        scale: ``"standardized"`` compares deviations: both are first brought to mean 0 and standard deviation
            1 over the candidates of the question (all equal ones to 0), so that a weight carries over between
            models, questions of different lengths, and sum and mean. ``"raw"`` takes the numbers as they are:
            the weight then has a unit, cosine per nat, and has to be tuned for a pair of models.
        first_stage_scale: factor of the first stage when the scale is raw, such as CLIP's 100.

    Raises:
        InvalidInputError: a weight that is negative or not finite, or no such scale.
    """

    weight: float = 1.0
    scale: Literal["standardized", "raw"] = "standardized"
    first_stage_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale not in ("standardized", "raw"):
            raise InvalidInputError(f"scale must be 'standardized' or 'raw', not {self.scale!r}")
        check_amounts(weight=self.weight, first_stage_scale=self.first_stage_scale)
        if self.scale == "standardized" and self.first_stage_scale != 1:
            raise InvalidInputError("first_stage_scale is lost in standardizing; it needs scale='raw'")

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum."""
        if self.scale == "standardized":
            return standardized(first_stage) + self.weight * standardized(scores)
        return self.first_stage_scale * np.asarray(first_stage, np.float64) + self.weight * np.asarray(scores)


@dataclass(frozen=True, slots=True)
class Maximum:
    """The better one of both scores: a candidate that either stage is sure of comes first.

    Attributes:
        shift: added to the second score before the two are compared; large is the second score alone.
        scale: as for :class:`WeightedSum`. ``"raw"`` compares the numbers as they are, so that ``shift`` is
            in their unit and has to be tuned for a pair of models.

    Raises:
        InvalidInputError: the shift is not finite, or no such scale.
    """

    shift: float = 0.0
    scale: Literal["standardized", "raw"] = "standardized"

    def __post_init__(self) -> None:
        if self.scale not in ("standardized", "raw"):
            raise InvalidInputError(f"scale must be 'standardized' or 'raw', not {self.scale!r}")
        check_numbers(shift=self.shift)

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The maximum."""
        if self.scale == "standardized":
            first_stage, scores = standardized(first_stage), standardized(scores)
        return np.maximum(first_stage, np.asarray(scores, np.float64) + self.shift)


@dataclass(frozen=True, slots=True)
class ReciprocalRank:
    """The sum of 1 / (constant + rank) over both rankings (Cormack et al., SIGIR 2009); ranks begin at 1.

    It looks at ranks only, so neither scales nor a weight have to be known.

    Attributes:
        constant: how little the very first ranks count more than the next.

    Raises:
        InvalidInputError: the constant is negative or not finite.
    """

    constant: float = 60.0

    def __post_init__(self) -> None:
        check_amounts(constant=self.constant)

    def fuse(self, first_stage: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum; at most ``2 / (constant + 1)``."""
        return 1 / (self.constant + _ranks(first_stage)) + 1 / (self.constant + _ranks(scores))


def fuse(
    fusion: Fusion, first_stage: NDArray[np.float64], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Let a fusion join two stages, and make sure that what it says can be sorted.

    Returns:
        float64 [n]; empty for no candidates.

    Raises:
        InvalidInputError: it gave something else, or nan.
    """
    if not len(scores):
        return np.empty(0)
    fused = np.asarray(fusion.fuse(first_stage, scores), np.float64)
    if fused.shape != scores.shape or np.isnan(fused).any():
        raise InvalidInputError(
            f"the fusion {fusion!r} gave {fused.tolist()} for {len(scores)} candidates; "
            "it must give one number for each, and none of them nan"
        )
    return fused


def rerank(hits: Sequence[Hit], name: str, scores: NDArray[np.float64], fusion: Fusion) -> tuple[Hit, ...]:
    """Put the hits of the first stage in a new order.

    Args:
        hits: n hits by the score of the first stage, best first.
        name: of the scoring rule.
        scores: float64 [n], its scores; nan for a hit that it could not judge.
        fusion: joins both.

    Returns:
        The hits, best first, with the scores of every stage. Those that could not be judged come last, with
        the score -inf; if that is all of them, the hits are as they were.

    Raises:
        InvalidInputError: as :func:`fuse`.
    """
    judged = np.flatnonzero(~np.isnan(scores))
    if not len(judged):
        return tuple(hits)
    first_stage = np.array([hit.score for hit in hits])
    fused = np.full(len(hits), -np.inf)
    fused[judged] = fuse(fusion, first_stage[judged], scores[judged])
    ranked = [replace(hit, score=float(score)) for hit, score in zip(hits, fused, strict=True)]
    for n in judged:
        stages = {**ranked[n].scores, name: float(scores[n]), FUSED: float(fused[n])}
        ranked[n] = replace(ranked[n], scores=stages)
    return tuple(ranked[n] for n in best_first(fused))


def best_first(fused: ArrayLike) -> NDArray[np.intp]:
    """The order of a ranking: int [n] positions, highest first, equal ones as they stand."""
    return np.argsort(-np.asarray(fused, np.float64), kind="stable")


def standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores brought to mean 0 and standard deviation 1; all 0 where they are equal. float64 [n]."""
    exact = np.asarray(values, np.float64)
    spread = np.ptp(exact) if exact.size else 0.0
    if spread == 0:
        return np.zeros_like(exact)
    unit = (exact - exact.min()) / spread  # first, so that squares of tiny deviations do not vanish
    deviations: NDArray[np.float64] = (unit - unit.mean()) / unit.std()
    return deviations


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    ranks = np.empty(len(values))
    ranks[best_first(values)] = np.arange(1, len(values) + 1)
    return ranks


# --- the prior of a text ----------------------------------------------------------------------------------


def null_images(count: int = 3, *, seed: int = 0) -> tuple[Image, ...]:
    """Pictures of nothing: one mid-grey, the others Gaussian noise around it; 224 x 224, always the same.

    Raises:
        InvalidInputError: ``count`` < 1.
    """
    if count < 1:
        raise InvalidInputError(f"count must be at least 1, not {count}")
    from PIL import Image as PILImage

    random = np.random.default_rng(seed)
    noise = random.normal(127.5, 64, (count - 1, 224, 224, 3)).clip(0, 255).astype(np.uint8)
    pictures = [PILImage.new("RGB", (224, 224), (127, 127, 127)), *map(PILImage.fromarray, noise)]
    return tuple(Image(picture, f"<null image {n}>") for n, picture in enumerate(pictures))


@dataclass(frozen=True, slots=True, eq=False)
class Prior:
    """Corrects the likelihood of a text for how likely it is whatever the image shows.

    The score becomes log P(text | image) - alpha * log P(text), after VisualGPTScore (Lin et al., arXiv
    2306.01879), where log P(text) is the likelihood given a null image, averaged over a few of them.

    Attributes:
        alpha: how much of the prior is taken away, in [0, 1]. The paper tunes it to 0.82 on COCO, 0.72 on
            Flickr30k and 0.67 on ImageNet.
        null_images: pictures of nothing in particular; :func:`null_images` unless given.

    Raises:
        InvalidInputError: alpha is out of range, or there is no null image.
    """

    alpha: float = 0.8
    null_images: tuple[Image, ...] = field(default_factory=null_images)

    def __post_init__(self) -> None:
        check_numbers(alpha=self.alpha)
        if not 0 <= self.alpha <= 1:
            raise InvalidInputError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if not self.null_images:
            raise InvalidInputError("a prior needs at least one null image")
        if strange := [one for one in self.null_images if not isinstance(one, Image)]:
            raise InvalidInputError(
                "null_images must be Image records, which zsqretrieval.data.images.as_image makes, not "
                f"{strange[0]!r}"
            )


def log_prior(
    generator: Generator,
    likelihood: Likelihood,
    images: Sequence[Image | ImageState],
    texts: Sequence[str],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> NDArray[np.float64]:
    """Estimate log P(text): the average of P(text | null image), in log space.

    Args:
        generator: reads the null images.
        likelihood: the rule; what its aggregate is, is done to the estimate as well.
        images: the null images, or their states.
        texts: n texts.
        batch_size: texts scored between two calls of ``progress``.
        progress: told how far it is, over all images; may raise to stop.

    Returns:
        float64 [n], in nats, or nats per token.

    Raises:
        ImageError, InvalidInputError, ZsqError: as :func:`score_texts`.
    """
    asked = [(text, image) for image in images for text in texts]
    found = _in_batches(partial(_likelihoods, generator, likelihood), asked, batch_size, progress)
    given = [one for some in found for one in some]
    sums = [one.sum for one in given]  # probabilities are averaged, and no means of their logarithms
    averaged = np.logaddexp.reduce(np.reshape(sums, (len(images), len(texts)))) - math.log(len(images))
    if likelihood.aggregate == "mean":
        averaged /= [len(one) for one in given[: len(texts)]]
    return np.asarray(averaged, np.float64)
