"""Documents of other frameworks: their order for a question, and hits as metadata."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, final

from zsqretrieval._util.checks import check_counts, check_text
from zsqretrieval.data.documents import DocumentImage, Fetch, as_document_image
from zsqretrieval.data.images import dimensions, in_threads
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.protocols import Generator
from zsqretrieval.search.fusion import best_first
from zsqretrieval.search.scoring import Scoring, rule_of, score_each
from zsqretrieval.types import Hit, Image


@final
class DocumentRanker:
    """Orders images of documents by a generator's scores for a question.

    Args:
        generator: the language model; a :class:`~zsqretrieval.generators.lazy.LazyGenerator` is loaded on
            first use.
        scoring: ``"likelihood"``, ``"yes_no"``, or a rule such as ``Likelihood(...)``.
        batch_size: images scored together, >= 1; does not change the result.
        fetch: as for :func:`~zsqretrieval.data.documents.as_document_image`.

    Raises:
        InvalidInputError: a part is not of its kind, or ``batch_size`` < 1.
    """

    def __init__(
        self,
        generator: Generator | LazyGenerator,
        scoring: Scoring | str = "likelihood",
        *,
        batch_size: int = 16,
        fetch: Fetch = False,
    ) -> None:
        check_counts(batch_size=batch_size)
        self.generator, self._scoring = LazyGenerator.of(generator), rule_of(scoring)
        self._batch_size, self._fetch = batch_size, fetch

    def rank(self, question: str, images: Sequence[DocumentImage]) -> list[tuple[int, float | None]]:
        """Order n images for a question.

        Returns:
            Position and score of each image, best first. Images that cannot be opened, or that the generator
            cannot take, come last in the order given, with the score None; a RuntimeWarning counts them.

        Raises:
            InvalidInputError: the question is empty, or too long for the generator.
        """
        check_text(question, "the question")
        if not images:
            return []
        opened = in_threads(self._opened, images)
        with self.generator.using() as model:
            found = score_each(
                model, self._scoring, [question] * len(opened), opened, batch_size=self._batch_size
            )
        if faults := [one for one in found if isinstance(one, ImageError)]:
            warnings.warn(
                f"{len(faults)} of {len(images)} documents have no image that can be scored and rank last, "
                f"the first: {faults[0]}",
                RuntimeWarning,
                stacklevel=3,
            )
        scores = [None if isinstance(one, ImageError) else one for one in found]
        order = best_first([-math.inf if one is None else one for one in scores])
        return [(n, scores[n]) for n in order.tolist()]

    def _opened(self, value: DocumentImage) -> Image | ImageError:
        """The image if its header can be read, else the reason."""
        try:
            image = as_document_image(value, fetch=self._fetch)
            dimensions(image)
        except InvalidInputError as error:
            return error if isinstance(error, ImageError) else ImageError("<document>", str(error))
        return image


HIT_FIELDS = ("id", "source", "digest", "caption", "score", "scores")
"""Fields of a hit in the metadata of its document."""


def hit_metadata(hit: Hit) -> dict[str, Any]:
    """A hit as JSON values: the metadata of its image and the :data:`HIT_FIELDS`, which take precedence."""
    return {**hit.metadata, **{name: getattr(hit, name) for name in HIT_FIELDS}, "scores": dict(hit.scores)}
