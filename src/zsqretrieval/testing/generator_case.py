"""A generator under test, and the inputs and comparisons that its checks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from zsqretrieval.protocols import Generator
from zsqretrieval.testing.checks import expect
from zsqretrieval.testing.pictures import paintings
from zsqretrieval.types import Context, LogLikelihood

QUESTIONS = (
    "red",
    "what is the colour of the picture?",
    "is the thing blue?",
    "what thing is in the picture, and is the colour of the thing red or green?",
    "yes",
)
WORDS = ("what", "is", "the", "red", "green", "blue", "yes", "no", "dog", "a", "on", "house")


@dataclass(frozen=True)
class GeneratorCase:
    """A generator, with facts that only its author knows.

    Attributes:
        generator: the generator under test.
        vocabulary: all continuations of one token; their probabilities must sum to 1. Empty when unknown;
            then the probabilities of some words must not exceed 1.
        split: texts (a, b) such that the tokens of ``a + b`` are those of a, then those of b, for the chain
            rule; None to try common ones.
        too_long: a text longer than the model's context length.
        tolerance: largest rounding difference of a token's log-probability, in nats. 16-bit arithmetic
            needs about 0.05. Where results must differ, they must differ by more than ten times this.
    """

    generator: Generator
    vocabulary: Sequence[str] = ()
    split: tuple[str, str] | None = None
    too_long: str = "what is the colour of " * 5_000
    tolerance: float = 1e-4


GeneratorFactory: TypeAlias = Callable[[], Generator | GeneratorCase]


def as_case(make_generator: GeneratorFactory) -> GeneratorCase:
    """Make a generator, as a case."""
    made = make_generator()
    return made if isinstance(made, GeneratorCase) else GeneratorCase(made)


def five_contexts() -> list[Context]:
    """Five contexts of different lengths, with none, one and two images; as many as :data:`QUESTIONS`."""
    red, green, blue, grey = paintings(4, first_seed=20)
    return [
        (red, "Question:"),
        ("The picture:", green, "A question about the picture is:"),
        ("Only text. Question:",),
        (blue, "then", grey, "Question:"),
        (grey,),
    ]


def score(case: GeneratorCase, contexts: Sequence[Context], texts: Sequence[str]) -> list[LogLikelihood]:
    """Score the pairs and check the number of likelihoods."""
    found = case.generator.log_likelihood(contexts, texts)
    expect(len(found) == len(texts), f"{len(texts)} likelihoods", len(found))
    return found


def largest_gap(one: LogLikelihood, other: LogLikelihood) -> float:
    """Largest difference of a log-probability; infinite when the tokens differ."""
    if one.tokens != other.tokens or one.token_log_probs.shape != other.token_log_probs.shape:
        return float("inf")
    return float(np.abs(one.token_log_probs - other.token_log_probs).max())


def expect_same(
    case: GeneratorCase, ones: Sequence[LogLikelihood], others: Sequence[LogLikelihood], what: str
) -> None:
    """Check that log-probabilities are equal up to the tolerance."""
    for one, other in zip(ones, others, strict=True):
        got = f"{one.token_log_probs} and {other.token_log_probs} for {one.tokens}"
        expect(largest_gap(one, other) <= case.tolerance, f"equal log-probabilities for {what}", got)
