"""The first stage of a search: nearest images by vector, alone or joined with stored questions.

texts or images --encoder--> vectors --store--> records --> hits, best first
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.album.catalog import Record
from zsqretrieval.album.filters import Filter
from zsqretrieval.encoders.checked import encode_images, encode_texts
from zsqretrieval.errors import InvalidInputError, MismatchError
from zsqretrieval.indexes.checks import unit_rows
from zsqretrieval.protocols import Encoder, truncated
from zsqretrieval.search.diversity import collapsed
from zsqretrieval.search.expansion import Candidate, QuestionIndex, hit_of
from zsqretrieval.search.fusion import FIRST_STAGE, NORMALIZED, Fusion, best_first
from zsqretrieval.search.query import Query
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.relevance import Relevance
from zsqretrieval.search.store import Store
from zsqretrieval.types import Hit, Image

_CANCELLED = 1e-6
"""Share of the weights below which a sum of vectors is rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """The n candidates of one query, best first."""

    records: list[Record]
    hits: tuple[Hit, ...]
    timings: dict[str, float]  # seconds by step; queries of a batch share its time equally
    truncated: bool  # whether the encoder cut the query


@dataclass(frozen=True, slots=True)
class MinProbability:
    """The least probability of relevance of a hit, with the encoder's constants."""

    least: float
    scale: float
    margin: float


@final
class FirstStage:
    """Searches a store by vectors; ``questions`` is the index of its questions, None where there are none."""

    def __init__(self, encoder: Encoder, store: Store, questions: QuestionIndex | None) -> None:
        self._encoder, self._store, self._questions = encoder, store, questions
        self._relevance: dict[tuple[float, float], Relevance] = {}  # by its constants
        self._has_warned = False  # of a question that the encoder cuts

    def search(
        self,
        queries: Sequence[Query],
        k: int,
        *,
        where: Filter | None = None,
        expansion: Fusion | None = None,
        bank: QueryBank | None = None,
        collapse: float | None = None,
        relevance: MinProbability | None = None,
    ) -> list[Found]:
        """Find the candidates of q queries in one pass through encoder and index.

        Args:
            queries: the queries. The image of a hit is left out.
            k: candidates per query, >= 1; fewer when the album is smaller.
            where: only images that it selects.
            expansion: combines similarities to images and to their stored questions; None for images alone.
            bank: normalises the scores.
            collapse: cosine similarity from which near-duplicates of a candidate are left out.
            relevance: only candidates that are probably relevant.
        """
        if expansion is not None and not self._questions:
            raise InvalidInputError(
                "this album has no stored questions to search; make some with Retriever.questions.generate() "
                "or `zsq questions ALBUM`, or leave expand out"
            )
        if bank is not None:
            self._check_bank(bank)
        begin = time.perf_counter()
        vectors = self._encode(queries)
        encoded = time.perf_counter()
        among = None if where is None else self._store.matching(where)

        def look(some: list[int], depth: int) -> list[tuple[list[Candidate], bool]]:
            """The candidates of some queries, normalised, and whether there may be more."""
            rows = vectors[some]
            found = (
                self._nearest(rows, depth, among)
                if expansion is None
                else [self._expanded(row[None], depth, expansion, among) for row in rows]
            )
            more = [len(one) == depth for one in found]  # before those that were just removed are left out
            if bank is not None:
                searched = time.perf_counter()
                found = [self._normalized(one, bank) for one in found]
                timings[NORMALIZED] = timings.get(NORMALIZED, 0.0) + time.perf_counter() - searched
            return list(zip(found, more, strict=True))

        timings = {"encode": encoded - begin, FIRST_STAGE: 0.0}
        found = self._complete(queries, k, look, collapse)
        if relevance is not None:
            found = [
                self._relevant(vector, one, relevance) for vector, one in zip(vectors, found, strict=True)
            ]
        timings[FIRST_STAGE] = time.perf_counter() - encoded - timings.get(NORMALIZED, 0.0)
        shares = {step: seconds / max(len(queries), 1) for step, seconds in timings.items()}
        return [
            Found([record for record, _ in one], tuple(hit for _, hit in one), dict(shares), cut)
            for one, cut in zip(found, self._truncated(queries), strict=True)
        ]

    def _complete(
        self,
        queries: Sequence[Query],
        k: int,
        look: Callable[[list[int], int], list[tuple[list[Candidate], bool]]],
        collapse: float | None,
    ) -> list[list[Candidate]]:
        """K candidates per query without near-duplicates and without the hits that were searched with."""
        left_out = [
            {term.content.key for term in query.terms if isinstance(term.content, Hit)} for query in queries
        ]
        complete: list[list[Candidate]] = [[] for _ in queries]
        waiting, depth = list(range(len(queries))), k + max(map(len, left_out), default=0)
        while waiting:
            short: list[int] = []
            for n, (candidates, more) in zip(waiting, look(waiting, depth), strict=True):
                others = [one for one in candidates if one[0].key not in left_out[n]]
                if collapse is not None:
                    others = self._collapsed(others, collapse)
                complete[n] = others[:k]
                if len(others) < k and more:
                    short.append(n)
            waiting, depth = short, 2 * depth
        return complete

    def _truncated(self, queries: Sequence[Query]) -> list[bool]:
        """Whether the encoder cut each query; the first one causes a warning."""
        texts = list(dict.fromkeys(text for query in queries for _, text in query.texts))
        cut = dict(zip(texts, truncated(self._encoder, texts), strict=True))
        if any(cut.values()) and not self._has_warned:
            self._has_warned = True
            longest = next(text for text in texts if cut[text])
            warnings.warn(
                f"the question {longest[:60]!r}... is longer than the encoder reads: its end "
                "plays no part in the first stage. Shorten it. Further ones are not named; they have "
                "Ranking.truncated",
                RuntimeWarning,
                stacklevel=4,
            )
        return [any(cut[text] for _, text in query.texts) for query in queries]

    def _check_bank(self, bank: object) -> None:
        if not isinstance(bank, QueryBank):
            raise InvalidInputError(f"bank must be a QueryBank of Retriever.query_bank(), not {bank!r}")
        if bank.fingerprint != self._encoder.fingerprint:
            raise MismatchError(
                f"the bank was made with encoder {bank.fingerprint!r}, the album with "
                f"{self._encoder.fingerprint!r}; make the bank again with Retriever.query_bank()"
            )

    def _encode(self, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Encode all texts in one call and all images in another: float32 [q, dim], unit rows."""
        terms = [term for query in queries for term in query.terms]
        texts = list(dict.fromkeys(term.content for term in terms if isinstance(term.content, str)))
        images = [term.content for term in terms if isinstance(term.content, Image)]
        of_texts = dict(zip(texts, encode_texts(self._encoder, texts), strict=True)) if texts else {}
        of_images = iter(encode_images(self._encoder, images) if images else ())
        vectors = np.empty((len(queries), self._encoder.dim), np.float32)
        for n, query in enumerate(queries):
            parts = []
            for term in query.terms:
                content = term.content
                if isinstance(content, str):
                    part = of_texts[content]
                elif isinstance(content, Image):
                    part = next(of_images)
                else:
                    part = self._vector_of(content) if isinstance(content, Hit) else content
                parts.append(part)
            vectors[n] = self._summed(query, parts)
        return vectors

    def _summed(self, query: Query, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """The weighted sum of the vectors of the terms, of unit length."""
        for part in parts:
            if part.shape != (self._encoder.dim,):
                raise InvalidInputError(
                    f"the query vector has {len(part)} numbers; the encoder of this album makes "
                    f"{self._encoder.dim}"
                )
        if len(parts) == 1:
            return parts[0] if query.terms[0].weight > 0 else -parts[0]
        weights = np.array([term.weight for term in query.terms])
        whole = weights @ np.array(parts, np.float64)
        length = np.linalg.norm(whole)
        if length < _CANCELLED * np.abs(weights).sum():
            raise InvalidInputError(f"the terms of the query {str(query)!r} cancel; change the weights")
        unit: NDArray[np.float32] = (whole / length).astype(np.float32)
        return unit

    def _vector_of(self, hit: Hit) -> NDArray[np.float32]:
        record = self._store.find(hit.id)
        here, vectors = self.present([hit])
        if record is None or (record.key, record.digest) != (hit.key, hit.digest) or not here:
            raise InvalidInputError(
                f"the hit {hit.id!r} is not of this album, or was removed; search with the image itself"
            )
        vector: NDArray[np.float32] = vectors[0]
        return vector

    def _nearest(self, vectors: NDArray[np.float32], k: int, among: Any) -> list[list[Candidate]]:
        return [
            [(record, hit_of(record, {FIRST_STAGE: score})) for record, score in found]
            for found in self._store.nearest(vectors, k, among)
        ]

    def _expanded(
        self, vector: NDArray[np.float32], k: int, expansion: Fusion, among: Any
    ) -> list[Candidate]:
        assert self._questions is not None
        by_image = [record.key for record, _ in self._store.nearest(vector, k, among)[0]]
        return self._questions.joined(np.array(by_image, np.int64), vector, k, expansion, among)

    def present(self, hits: Sequence[Hit]) -> tuple[list[int], NDArray[np.float32]]:
        """The positions of the hits that are still in the album, and their unit vectors float32 [n, dim]."""
        here, vectors = self._store.stored([hit.key for hit in hits])
        return here, unit_rows(vectors, self._encoder.dim)

    def _collapsed(self, found: Sequence[Candidate], threshold: float) -> list[Candidate]:
        """The candidates without near-duplicates, which are counted."""
        here, vectors = self.present([hit for _, hit in found])
        kept = [found[n] for n in here]
        owners = collapsed(vectors, threshold)
        counts = np.bincount(owners, minlength=len(kept))
        return [
            (record, replace(hit, duplicates=int(counts[n]) - 1))
            for n, (record, hit) in enumerate(kept)
            if owners[n] == n
        ]

    def _relevant(
        self, vector: NDArray[np.float32], found: Sequence[Candidate], asked: MinProbability
    ) -> list[Candidate]:
        """The candidates that are probably relevant, with their probabilities."""
        constants = asked.scale, asked.margin
        if constants not in self._relevance:
            self._relevance[constants] = Relevance(self._encoder, *constants)
        here, vectors = self.present([hit for _, hit in found])
        probabilities = self._relevance[constants].probabilities(vectors @ vector, vectors)
        return [
            (found[n][0], replace(found[n][1], probability=probability))
            for n, probability in zip(here, probabilities.tolist(), strict=True)
            if probability >= asked.least
        ]

    def _normalized(self, found: Sequence[Candidate], bank: QueryBank) -> list[Candidate]:
        """Normalise scores by the bank and sort again; images removed meanwhile are left out."""
        here, vectors = self.present([hit for _, hit in found])
        kept = [found[n] for n in here]
        scores = bank.normalized([hit.scores[FIRST_STAGE] for _, hit in kept], vectors)
        return [
            (kept[n][0], replace(kept[n][1], score=score, scores={**kept[n][1].scores, NORMALIZED: score}))
            for n, score in ((n, float(scores[n])) for n in best_first(scores))
        ]
