"""Re-rankers over a generator, for use without an album."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts, check_sequence, check_text
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Generator
from zsqretrieval.search.scoring import Likelihood, Scoring, YesNo, score_pairs
from zsqretrieval.types import Image


class _GeneratorReranker:
    _default: ClassVar[Scoring]

    def __init__(
        self, generator: Generator | LazyGenerator, rule: Scoring | None = None, *, batch_size: int = 16
    ) -> None:
        check_counts(batch_size=batch_size)
        self._generator = LazyGenerator.of(generator)
        self._rule = rule or self._default
        self._batch_size = batch_size

    @property
    def name(self) -> str:
        """Name of the score in :attr:`Hit.scores <zsqretrieval.types.Hit.scores>`."""
        return self._rule.name

    def score(self, question: str, images: Sequence[Image]) -> NDArray[np.float64]:
        """Score n images in one call of the generator: float64 [n], higher is better.

        Raises:
            InvalidInputError, ImageError: as :func:`~zsqretrieval.search.scoring.score_pairs`.
        """
        check_text(question, "the question")
        check_sequence(images, "images")
        with self._generator.using() as generator:
            return score_pairs(
                generator, self._rule, [question] * len(images), images, batch_size=self._batch_size
            )


class LikelihoodReranker(_GeneratorReranker):
    """Log P(question | image) of a generator, in nats.

    Args:
        generator: any generator, or one that loads on first use.
        rule: prompt and aggregate; ``Likelihood()`` when None.
        batch_size: pairs computed together; does not change the result.
    """

    _default = Likelihood()


class YesNoReranker(_GeneratorReranker):
    """Log-odds of yes, asked whether the image shows what the question says, in nats.

    Args:
        generator: any generator, or one that loads on first use.
        rule: prompt and words; ``YesNo()`` when None.
        batch_size: pairs computed together; does not change the result.
    """

    _default = YesNo()
