"""Choosing among given texts by their likelihood: every closed question comes down to this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.dialog.posterior import log_normalized
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.protocols import Generator
from zsqretrieval.tasks.accuracy import Accuracy
from zsqretrieval.tasks.writing import Aggregate, listed, scored
from zsqretrieval.types import Context

__all__ = ["TIE", "Choice", "choose", "count_correct", "single_best"]

TIE = 1e-5
"""Scores closer than this, in nats, are a tie: so much may rounding move a score in float32."""


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a generator makes of several options.

    Attributes:
        options: C different texts, in the order they were given.
        scores: float64 [C], log P(option | context) in nats, or that per token where the mean was asked for.
    """

    options: tuple[str, ...]
    scores: NDArray[np.float64]

    @property
    def best(self) -> str | None:
        """The likeliest option; None when others are as likely."""
        position = single_best(self.scores)
        return None if position is None else self.options[position]

    @property
    def posterior(self) -> NDArray[np.float64]:
        """P(option | context, one of them is right), float64 [C], adds up to 1.

        Options count as equally likely before the image is seen. With means in place of sums it is the
        softmax of them, and no probability.
        """
        return np.asarray(np.exp(log_normalized(self.scores)))

    @property
    def margin(self) -> float:
        """By how many nats the best option leads the next."""
        second, first = np.sort(self.scores)[-2:]
        return float(first - second)


def choose(
    generator: Generator,
    contexts: Sequence[Context],
    options: Sequence[str],
    *,
    aggregate: Aggregate = "sum",
    batch_size: int = 16,
) -> list[Choice]:
    """Score every option as the continuation of every context.

    Args:
        generator: reads them.
        contexts: n contexts; an option follows after a space.
        options: two or more different texts.
        aggregate: ``"sum"`` takes log P(option | context), which favours options of few tokens; ``"mean"``
            divides by the number of tokens, which favours long options, whose later tokens are easy to tell.
        batch_size: pairs of context and option that are computed together.

    Returns:
        n choices, in the order of the contexts.

    Raises:
        InvalidInputError: too few options, one given twice, one that is no text or an empty one; or a
            context with its option is too long for the generator.
        ImageError: an image cannot be decoded; names it.
        ZsqError: the generator gave a number that is none.
    """
    names = listed(options, "options", least=2)
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(f"the option {repeated[0]!r} is given twice; every option must differ")
    scores = scored(
        generator,
        [context for context in contexts for _ in names],
        [f" {name}" for _ in contexts for name in names],
        aggregate=aggregate,
        batch_size=batch_size,
    )
    return [Choice(names, row) for row in scores.reshape(-1, len(names))]


def single_best(scores: NDArray[np.float64]) -> int | None:
    """The position of the highest score; None when another is within :data:`TIE` of it."""
    near = np.flatnonzero(scores.max() - scores <= TIE)
    return int(near[0]) if len(near) == 1 else None


def count_correct(choices: Sequence[Choice], answers: Sequence[str]) -> Accuracy:
    """How often the best option is the right one; a tie counts as a miss.

    Args:
        choices: n choices among the same options.
        answers: the n right options.

    Raises:
        InvalidInputError: their numbers differ, there are none, the options are not the same throughout, or
            an answer is none of them.
    """
    if len(choices) != len(answers):
        raise InvalidInputError(f"{len(choices)} choices for {len(answers)} answers; give one answer each")
    if not choices:
        raise InvalidInputError("there are no choices to count; give one or more")
    options = choices[0].options
    for position, (choice, answer) in enumerate(zip(choices, answers, strict=True)):
        if choice.options != options:
            raise InvalidInputError(
                f"choice {position} is among {choice.options}, the first among {options}; count them apart"
            )
        if answer not in options:
            raise InvalidInputError(f"answer {position} is {answer!r}, which is none of {options}")
    correct = sum(choice.best == answer for choice, answer in zip(choices, answers, strict=True))
    return Accuracy(correct, len(choices), 1 / len(options))
