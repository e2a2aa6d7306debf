"""Scoring rules: turn the generator's likelihoods into one score per text and image.

:class:`Likelihood` is UPR (arXiv 2204.07496) carried from passages to images; :class:`YesNo` asks whether the
image shows what the text says. :func:`score_pairs` scores any texts for any images in one call of the
generator, so that its engine plans all of them together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.batches import sound
from zsqretrieval._util.checks import check_sequence, check_verbalisers
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.checked import distinct, read_each
from zsqretrieval.generators.prompts import PROMPTS, Prompt, check_prompt
from zsqretrieval.protocols import Generator
from zsqretrieval.search.fusion import finite_numbers, logistic
from zsqretrieval.types import Context, Image, ImageState, LogLikelihood, Progress


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A context and the continuation whose likelihood is needed; the leading space belongs to the text."""

    context: Context
    continuation: str


@runtime_checkable
class Scoring(Protocol):
    """A rule that turns the likelihoods of a few pairs into one score; any object with these members."""

    @property
    def name(self) -> str:
        """Name of the score in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>` and in timings."""
        ...

    def pairs(self, question: str, image: Image | ImageState) -> Sequence[Pair]:
        """The pairs to score for one image, one or more."""
        ...

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        """The score of one image from the likelihoods of its pairs, in order: finite, higher is better."""
        ...


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-likelihood of the question given the image: UPR (Sachan et al., arXiv 2204.07496).

    Attributes:
        prompt: text before the question; takes one image and no other field.
        aggregate: ``"sum"`` gives log P(question | image) in nats; ``"mean"`` divides it by the number of
            tokens. For one question that is the same order; docs/rerank.md says where they differ.

    Raises:
        InvalidInputError: the prompt takes other fields, or the aggregate is unknown.
    """

    prompt: Prompt = PROMPTS["question"]
    aggregate: Literal["sum", "mean"] = "sum"
    name: ClassVar[str] = "likelihood"

    def __post_init__(self) -> None:
        check_prompt(self.prompt)
        if self.aggregate not in ("sum", "mean"):
            raise InvalidInputError(f"aggregate must be 'sum' or 'mean', not {self.aggregate!r}")

    def pairs(self, question: str, image: Image | ImageState) -> list[Pair]:
        """One pair: the question after the prompt."""
        return [Pair(self.prompt.context(image), f" {question.strip()}")]

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        """The log-likelihood, at most 0."""
        (one,) = likelihoods
        return one.sum if self.aggregate == "sum" else one.mean


@dataclass(frozen=True, slots=True)
class YesNo:
    """Log-odds of yes against no, when asked whether the image shows what the question says.

    The score is log P(yes) - log P(no) in nats, which is monotone in the probability
    P(yes) / (P(yes) + P(no)) of VQAScore (Lin et al., arXiv 2404.01291), given by :meth:`probability`, and
    unlike it does not crowd at 0 and 1 when it is added to another score. The probabilities of several
    verbalisers add up, each sequence of tokens once (" yes" and " Yes" are one for a tokenizer that ignores
    case); wording moves results by points, so try some.

    Attributes:
        prompt: takes one image and the field ``question``.
        yes: continuations that mean yes, with their leading space.
        no: continuations that mean no.

    Raises:
        InvalidInputError: the prompt takes other fields, or a verbaliser is missing, repeated or empty.
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
        """One pair per verbaliser, after the same context."""
        context = self.prompt.context(image, question=question.strip())
        return [Pair(context, word) for word in (*self.yes, *self.no)]

    def score(self, likelihoods: Sequence[LogLikelihood]) -> float:
        """The log-odds of yes, in nats.

        Raises:
            InvalidInputError: a word that means yes has the same tokens as one that means no.
        """
        yes, no = likelihoods[: len(self.yes)], likelihoods[len(self.yes) :]
        if both := {one.tokens for one in yes} & {one.tokens for one in no}:
            raise InvalidInputError(
                f"yes={self.yes!r} and no={self.no!r} share the tokens {next(iter(both))} of this "
                "generator's tokenizer; choose words that it tells apart"
            )
        return _log_sum(yes) - _log_sum(no)

    @staticmethod
    def probability(score: float) -> float:
        """P(yes) / (P(yes) + P(no)) of a score."""
        return float(logistic(score))


def _log_sum(likelihoods: Sequence[LogLikelihood]) -> float:
    """Log of the probability of any of the texts."""
    kept = distinct([one.tokens for one in likelihoods])
    return float(np.logaddexp.reduce([likelihoods[i].sum for i in kept]))


RULES: Mapping[str, Scoring] = {Likelihood.name: Likelihood(), YesNo.name: YesNo()}
"""The scoring rules that have a name of their own, with their default settings."""


def rule_of(scoring: Scoring | str) -> Scoring:
    """A scoring rule, or the one of a name of :data:`RULES`; an InvalidInputError for anything else."""
    rule = RULES.get(scoring, scoring) if isinstance(scoring, str) else scoring
    if isinstance(rule, type) or not isinstance(rule, Scoring):
        raise InvalidInputError(
            f"scoring must be a rule for the generator, not {scoring!r}; use "
            f"{', '.join(map(repr, RULES))}, or a rule such as YesNo()"
        )
    return rule


def score_each(
    generator: Generator,
    scoring: Scoring,
    texts: Sequence[str],
    images: Sequence[Image | ImageState | ImageError],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[float | ImageError]:
    """Score n texts, each for its image, with an error in the place of images that cannot be scored.

    Arguments and other errors are those of :func:`score_pairs`.
    """
    faults: dict[int, InvalidInputError] = {}
    scores: list[float | ImageError] = score_pairs(
        generator, scoring, texts, images, batch_size=batch_size, progress=progress, faults=faults
    ).tolist()
    for n, fault in faults.items():
        if not isinstance(fault, ImageError):  # the text is at fault
            raise fault
        scores[n] = fault
    return scores


def score_pairs(
    generator: Generator,
    scoring: Scoring,
    texts: Sequence[str],
    images: Sequence[Image | ImageState | ImageError],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
    faults: dict[int, InvalidInputError] | None = None,
) -> NDArray[np.float64]:
    """Score n texts, each for its image, in one call of the generator.

    Args:
        generator: the language model.
        scoring: the rule.
        texts: n texts.
        images: n images or their cached features; the same object may stand for several texts. With
            ``faults``, also errors in the place of images that cannot be opened.
        batch_size: pairs computed together; does not change the result.
        progress: called between the generator's batches; may raise to stop.
        faults: is given, by position, why texts have no score: an ImageError if the image is at fault, alone
            or together with the text. When None, the first one is raised.

    Returns:
        float64 [n], finite, higher is better; nan where there is a fault.

    Raises:
        ImageError: an image cannot be decoded, or the generator cannot take it; names it.
        InvalidInputError: a text is too long for the generator, or the rule gave a score that is not finite.
        PartError: an answer of the generator breaks its contract.
        ZsqError: no likelihood is finite.
    """
    check_sequence(texts, "texts")
    check_sequence(images, "images")
    given = list(zip(texts, images, strict=True))
    pairs = [[] if isinstance(image, ImageError) else scoring.pairs(text, image) for text, image in given]
    found = iter(
        read_each(
            generator,
            [pair.context for some in pairs for pair in some],
            [pair.continuation for some in pairs for pair in some],
            batch_size=batch_size,
            progress=progress,
            stop=faults is None,
        )
    )
    scores = np.full(len(given), np.nan)
    for n, ((text, image), some) in enumerate(zip(given, pairs, strict=True)):
        try:
            if isinstance(image, ImageError):
                raise image
            read = sound([next(found) for _ in some], InvalidInputError)
        except InvalidInputError as error:
            if faults is None:
                raise
            faults[n] = error
        else:
            scores[n] = _score(scoring, text, image, read)
    return scores


def _score(
    scoring: Scoring, text: str, image: Image | ImageState, likelihoods: Sequence[LogLikelihood]
) -> float:
    score = scoring.score(likelihoods)
    if finite_numbers([score], 1) is None:
        raise InvalidInputError(
            f"{text!r} given {image.source}: the scoring rule {scoring.name!r} gave {score} for finite "
            "likelihoods; it must give a finite number"
        )
    return float(score)
