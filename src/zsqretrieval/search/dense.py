"""The first stage of a search: what the vectors find, alone or joined with the questions of images.

    text or image --encoder--> vector --index--> keys --catalog--> records --> hits, best first

The index may hold what is not in the catalog any more, for a moment: a hit that was removed between the two
steps is a reason to search again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.sync import Follower
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.protocols import Encoder
from zsqretrieval.search.expansion import Compared, QuestionIndex, compare
from zsqretrieval.search.fusion import FIRST_STAGE, NORMALIZED, Fusion, best_first
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.types import Hit, Image

__all__ = ["FirstStage", "Found"]


@dataclass(frozen=True, slots=True)
class Found:
    """What the first stage has found.

    Attributes:
        records: n images, best first.
        hits: n hits, in the same order.
        timings: seconds to ``"encode"``, for the ``"first_stage"`` itself, and until it was ``"normalized"``.
    """

    records: list[Record]
    hits: tuple[Hit, ...]
    timings: dict[str, float]


@final
class FirstStage:
    """Searches an album by vectors.

    Args:
        encoder: makes the vectors.
        catalog: the images.
        follower: keeps the index of images where the catalog stands.
        questions: the index of questions.
    """

    def __init__(
        self, encoder: Encoder, catalog: Catalog, follower: Follower, questions: QuestionIndex
    ) -> None:
        self._encoder, self._catalog, self._follower = encoder, catalog, follower
        self._questions = questions

    def keys(self, vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Keys int64 [q, k] of the images nearest to vectors float32 [q, dim], best first; -1 for none."""
        return self._follower.follow().search(vectors, k).keys

    def of_text(self, text: str, k: int) -> Found:
        """The k images that best fit a text; ``score`` is the cosine similarity."""
        return self._found(lambda: self._encoder.encode_text([text]), lambda vector: self._near(vector, k))

    def of_image(self, image: Image, k: int) -> Found:
        """The k images most like an image; ``score`` is the cosine similarity."""
        return self._found(lambda: self._encoder.encode_image([image]), lambda vector: self._near(vector, k))

    def expanded(self, text: str, k: int, expansion: Fusion) -> Found:
        """The k images that best fit a text by themselves and by the questions kept for them.

        Raises:
            InvalidInputError: no questions are kept, or as :func:`~zsqretrieval.search.expansion.join`.
        """
        if not len(self._questions):
            raise InvalidInputError(
                "this album keeps no questions to search; make some with Retriever.generate_questions() or "
                "`zsq questions ALBUM`, or leave expand out"
            )

        def near(vector: NDArray[np.float32]) -> tuple[list[Record], list[Hit]]:
            alike = self.keys(vector, k)[0]
            asked = self._questions.nearest(vector, k)
            keys = np.concatenate([alike[alike >= 0], asked])
            found = compare(self._catalog, keys, vector, expansion)[:k]
            return [one.record for one in found], [_compared_hit(one) for one in found]

        return self._found(lambda: self._encoder.encode_text([text]), near)

    def normalized(self, found: Found, bank: QueryBank) -> Found:
        """What was found, without what its images get from any question; images gone meanwhile are left out.

        Raises:
            IntegrityError: a vector is damaged.
        """
        begin = time.perf_counter()
        keys = [record.key for record in found.records]
        with self._catalog.reading():
            present = self._catalog.known_keys(keys)
            there = [n for n, key in enumerate(keys) if key in present]
            vectors = self._catalog.vectors([keys[n] for n in there])
        scores = bank.normalized([found.hits[n].score for n in there], vectors)
        order = [(there[place], float(scores[place])) for place in best_first(scores)]
        hits = tuple(
            replace(hit, score=score, scores={**hit.scores, NORMALIZED: score})
            for hit, score in ((found.hits[n], score) for n, score in order)
        )
        timings = {**found.timings, NORMALIZED: time.perf_counter() - begin}
        return Found([found.records[n] for n, _ in order], hits, timings)

    def _found(
        self,
        encode: Callable[[], NDArray[np.float32]],
        near: Callable[[NDArray[np.float32]], tuple[list[Record], list[Hit]]],
    ) -> Found:
        begin = time.perf_counter()
        vector = encode()
        encoded = time.perf_counter()
        records, hits = near(vector)
        timings = {"encode": encoded - begin, FIRST_STAGE: time.perf_counter() - encoded}
        return Found(records, tuple(hits), timings)

    def _near(self, vector: NDArray[np.float32], k: int) -> tuple[list[Record], list[Hit]]:
        while True:
            position = self._catalog.position
            neighbors = self._follower.follow().search(vector, k)
            found = neighbors.keys[0] >= 0
            try:
                records = self._catalog.records(neighbors.keys[0][found])
            except InvalidInputError as error:  # a hit was removed between the two steps: search again
                if position == self._catalog.position:
                    raise IntegrityError(f"index and catalog of this album disagree: {error}") from error
            else:
                return records, list(map(_hit, records, neighbors.scores[0][found].tolist()))


def _hit(record: Record, score: float) -> Hit:
    return Hit(
        key=record.key,
        id=record.id,
        source=record.source,
        score=score,
        scores={FIRST_STAGE: score},
        caption=record.caption,
        metadata=record.metadata,
        digest=record.digest,
    )


def _compared_hit(one: Compared) -> Hit:
    hit = _hit(one.record, one.joined)
    return replace(hit, scores=one.scores, matched_question=one.matched)
