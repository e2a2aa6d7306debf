"""The first stage of a search: nearest images by vector, alone or joined with stored questions.

    texts or images --encoder--> vectors --index--> keys --catalog--> records --> hits, best first

The index may briefly hold keys that are no longer in the catalog. A hit that was removed between the two
steps makes the search start again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.encoders.checked import encode_images, encode_texts
from zsqretrieval.errors import IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.indexes.checks import nearest
from zsqretrieval.protocols import Encoder, truncated
from zsqretrieval.search.expansion import Candidate, QuestionIndex, compare, hit_of
from zsqretrieval.search.fusion import FIRST_STAGE, NORMALIZED, Fusion, best_first
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.types import Hit, Image


@dataclass(frozen=True, slots=True)
class Found:
    """The n candidates of one query, best first."""

    records: list[Record]
    hits: tuple[Hit, ...]
    timings: dict[str, float]  # seconds by step; queries of a batch share its time equally
    truncated: bool  # whether the encoder cut the query


@final
class FirstStage:
    """Searches an album by vectors; ``follower`` is its index of images, ``questions`` that of questions."""

    def __init__(
        self, encoder: Encoder, catalog: Catalog, follower: IndexSync, questions: QuestionIndex
    ) -> None:
        self._encoder, self._catalog, self._follower = encoder, catalog, follower
        self._questions = questions
        self._has_warned = False  # of a question that the encoder cuts

    def keys(self, vectors: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Keys int64 [q, at most k] of the images nearest to vectors [q, dim], best first; -1 for none."""
        return nearest(self._follower.update(), vectors, k).keys

    def search(
        self,
        queries: Sequence[str | Image],
        k: int,
        *,
        expansion: Fusion | None = None,
        bank: QueryBank | None = None,
    ) -> list[Found]:
        """Find the candidates of q queries in one pass through encoder and index.

        Args:
            queries: texts or images.
            k: candidates per query, >= 1; fewer when the album is smaller.
            expansion: combines similarities to images and to their stored questions; None for images alone.
            bank: normalises the scores.
        """
        if expansion is not None and not len(self._questions):
            raise InvalidInputError(
                "this album has no stored questions to search; make some with Retriever.questions.generate() "
                "or `zsq questions ALBUM`, or leave expand out"
            )
        if bank is not None:
            self._check_bank(bank)
        begin = time.perf_counter()
        vectors = self._encode(queries)
        encoded = time.perf_counter()
        found = (
            self._nearest(vectors, k)
            if expansion is None
            else [self._expanded(vector[None], k, expansion) for vector in vectors]
        )
        searched = time.perf_counter()
        timings = {"encode": encoded - begin, FIRST_STAGE: searched - encoded}
        if bank is not None:
            found = [self._normalized(one, bank) for one in found]
            timings[NORMALIZED] = time.perf_counter() - searched
        shares = {step: seconds / max(len(queries), 1) for step, seconds in timings.items()}
        return [
            Found([record for record, _ in one], tuple(hit for _, hit in one), dict(shares), cut)
            for one, cut in zip(found, self._truncated(queries), strict=True)
        ]

    def _truncated(self, queries: Sequence[str | Image]) -> list[bool]:
        """Whether the encoder cut each query; the first one causes a warning."""
        texts = [query for query in queries if isinstance(query, str)]
        cut = truncated(self._encoder, texts)
        if any(cut) and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"the question {texts[cut.index(True)][:60]!r}... is longer than the encoder reads: its end "
                "plays no part in the first stage. Shorten it. Further ones are not named; they have "
                "Ranking.truncated",
                RuntimeWarning,
                stacklevel=4,
            )
        of_texts = iter(cut)
        return [isinstance(query, str) and next(of_texts) for query in queries]

    def _check_bank(self, bank: object) -> None:
        if not isinstance(bank, QueryBank):
            raise InvalidInputError(f"bank must be a QueryBank of Retriever.query_bank(), not {bank!r}")
        if bank.fingerprint != self._encoder.fingerprint:
            raise MismatchError(
                f"the bank was made with encoder {bank.fingerprint!r}, the album with "
                f"{self._encoder.fingerprint!r}; make the bank again with Retriever.query_bank()"
            )

    def _encode(self, queries: Sequence[str | Image]) -> NDArray[np.float32]:
        """Encode texts in one call and images in another: float32 [q, dim]."""
        vectors = np.empty((len(queries), self._encoder.dim), np.float32)
        texts = {n: query for n, query in enumerate(queries) if isinstance(query, str)}
        images = {n: query for n, query in enumerate(queries) if not isinstance(query, str)}
        if texts:
            vectors[list(texts)] = encode_texts(self._encoder, list(texts.values()))
        if images:
            vectors[list(images)] = encode_images(self._encoder, list(images.values()))
        return vectors

    def _nearest(self, vectors: NDArray[np.float32], k: int) -> list[list[Candidate]]:
        while True:
            position = self._catalog.log.position
            neighbors = nearest(self._follower.update(), vectors, k)
            there = neighbors.keys >= 0  # [q, k]
            try:
                records = iter(self._catalog.records(neighbors.keys[there]))
            except InvalidInputError as error:  # a hit was removed between the two steps: search again
                if position == self._catalog.log.position:
                    raise IntegrityError(
                        f"the index {type(self._follower.index).__name__} and the catalog of this album "
                        f"disagree: {error}"
                    ) from error
                continue
            return [
                [
                    (record := next(records), hit_of(record, {FIRST_STAGE: score}))
                    for score in scores[row].tolist()
                ]
                for scores, row in zip(neighbors.scores, there, strict=True)
            ]

    def _expanded(self, vector: NDArray[np.float32], k: int, expansion: Fusion) -> list[Candidate]:
        by_image = self.keys(vector, k)[0]
        by_question = self._questions.nearest(vector, k)
        keys = np.concatenate([by_image[by_image >= 0], by_question])
        return compare(self._catalog, keys, vector, expansion)[:k]

    def _normalized(self, found: list[Candidate], bank: QueryBank) -> list[Candidate]:
        """Normalise scores by the bank and sort again; images removed meanwhile are left out."""
        with self._catalog.reading():
            present = self._catalog.known_keys([record.key for record, _ in found])
            kept = [(record, hit) for record, hit in found if record.key in present]
            vectors = self._catalog.log.get([record.key for record, _ in kept])
        scores = bank.normalized([hit.scores[FIRST_STAGE] for _, hit in kept], vectors)
        return [
            (kept[n][0], replace(kept[n][1], score=score, scores={**kept[n][1].scores, NORMALIZED: score}))
            for n, score in ((n, float(scores[n])) for n in best_first(scores))
        ]
