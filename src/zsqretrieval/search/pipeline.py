"""The stages of a search in order: first stage, re-ranking, diversity, page, explanations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from zsqretrieval._util.checks import check_counts, check_shares
from zsqretrieval.album.candidates import Viewer, need_generator
from zsqretrieval.album.catalog import Record
from zsqretrieval.album.filters import Filter
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.search.dense import FirstStage, Found, MinProbability
from zsqretrieval.search.depth import Depth
from zsqretrieval.search.diversity import diversified
from zsqretrieval.search.explain import explain_hits
from zsqretrieval.search.fusion import Fusion, WeightedSum, fuse
from zsqretrieval.search.query import Query
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.search.rerank import CANDIDATES, Rerank, reorder, score_candidates, score_until
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.search.store import Store
from zsqretrieval.types import Hit, Progress

Scored: TypeAlias = Callable[[int, Mapping[str, float]], object]
"""Called with the number of a query and the fused scores so far by id, to order by."""


@dataclass(frozen=True, slots=True)
class Request:
    """The settings of a search; see :meth:`zsqretrieval.retriever.Retriever.search`.

    Raises:
        InvalidInputError: a number is out of range, a part is not of its kind, or two settings exclude each
            other.
    """

    k: int
    offset: int
    where: Filter | None
    how: Rerank | None
    fusion: Fusion  # of both stages, unless ``how`` names one
    expansion: Fusion | None
    bank: QueryBank | None
    collapse: float | None
    diversity: float
    relevance: MinProbability | None
    stopping: Depth | None  # when enough candidates are scored
    explain: bool
    scored: Scored | None  # gets fused scores as they are computed
    progress: Progress | None

    def __post_init__(self) -> None:
        check_counts(k=self.k)
        check_counts(0, offset=self.offset)
        if self.where is not None and not isinstance(self.where, Filter):
            raise InvalidInputError(
                "where must be a filter such as Field('year') > 2010 or Filter.parse(...), not "
                f"{self.where!r}"
            )
        check_shares(diversity=self.diversity)
        if self.collapse is not None:
            check_shares(above_zero=True, collapse=self.collapse)
        if self.relevance is not None:
            check_shares(min_probability=self.relevance.least)
            if self.relevance.scale == 0:
                raise InvalidInputError(
                    "min_probability needs the calibration of this encoder, and its relevance_scale is 0: "
                    "estimate it with zsqretrieval.search.relevance.fit (docs/searching.md)"
                )
        if self.how is not None and self.how.risk:
            self._check_risk(self.how)
        sifted = any(one is not None for one in (self.bank, self.expansion, self.relevance))
        if sifted and self.end > self.settled:
            raise InvalidInputError(
                f"with a query bank, expansion or min_probability, all {self.end} hits up to the end of the "
                f"page must be candidates, which are {self.settled}: raise them with "
                f"Rerank(candidates={self.end})"
            )

    def _check_risk(self, how: Rerank) -> None:
        if self.stopping is None:
            raise InvalidInputError(
                "risk needs the calibration of this pair of models, and its depth_deviation is 0: estimate "
                "it with zsqretrieval.search.depth.fit (docs/rerank.md)"
            )
        fusion = how.fusion_or(self.fusion)
        if not (isinstance(fusion, WeightedSum) and fusion.scale == "raw" and fusion.weight):
            raise InvalidInputError(
                "risk needs a fusion that takes each candidate by itself, WeightedSum(..., scale='raw') with "
                f"a weight above 0, not {fusion!r}"
            )

    @property
    def end(self) -> int:
        """Number of hits up to the end of the page."""
        return self.k + self.offset

    @property
    def settled(self) -> int:
        """Number of candidates that all stages order; the same for every page of one size."""
        return max(self.k, self.how.candidates if self.how else CANDIDATES)

    @property
    def depth(self) -> int:
        """Number of candidates of the first stage."""
        by_all = (self.how, self.bank, self.expansion, self.relevance, self.collapse, self.diversity or None)
        return self.end if all(one is None for one in by_all) else max(self.end, self.settled)


@final
class Pipeline:
    """Searches an album; ``viewer`` gives the generator the candidates, None without a generator."""

    def __init__(self, first_stage: FirstStage, viewer: Viewer | None, store: Store) -> None:
        self._first_stage, self._viewer, self._store = first_stage, viewer, store

    def search(self, queries: Sequence[Query], asked: Request) -> list[Ranking]:
        """Search for each query; see :meth:`zsqretrieval.retriever.Retriever.search`.

        All queries share one pass through encoder and index, and one through the generator. Queries without
        texts are ranked by the first stage alone.
        """
        # a generator loads before the clock starts
        if asked.explain:
            need_generator(self._viewer, "explain=True").generator.get()
        if asked.how is not None and asked.how.needs_generator:
            what = f"re-ranking by {asked.how.name!r}"
            need_generator(self._viewer, what, ", or use rerank=None").generator.get()
        found = self._first_stage.search(
            queries,
            asked.depth,
            where=asked.where,
            expansion=asked.expansion,
            bank=asked.bank,
            collapse=asked.collapse,
            relevance=asked.relevance,
        )
        ranked = [
            Ranking(str(query), one.hits, one.timings, one.truncated)
            for query, one in zip(queries, found, strict=True)
        ]
        if asked.how is not None and asked.how.scoring is not None:
            ranked = self._reranked(queries, found, ranked, asked.how, asked)
        pages = []
        for one in ranked:
            hits = self._diverse(one.hits, asked) if asked.diversity else one.hits
            pages.append(replace(one, hits=hits[asked.offset : asked.end]))
        if asked.explain:
            records = {record.key: record for one in found for record in one.records}
            pages = [
                self._explained(query, page, records, asked)
                for query, page in zip(queries, pages, strict=True)
            ]
        return [page.of_album(self._store.kept) for page in pages]

    def _reranked(
        self,
        queries: Sequence[Query],
        found: Sequence[Found],
        ranked: Sequence[Ranking],
        how: Rerank,
        asked: Request,
    ) -> list[Ranking]:
        """Re-rank the first ``settled`` hits of the queries with texts; the rest follow without a score."""
        begin = time.perf_counter()
        some = [n for n, query in enumerate(queries) if query.texts]
        scores = self._scores(some, [queries[n] for n in some], [found[n] for n in some], how, asked)
        seconds = (time.perf_counter() - begin) / max(len(some), 1)
        reranked = list(ranked)
        for n, of_query in zip(some, scores, strict=True):
            hits = reorder(ranked[n].hits, how.name, of_query, how.fusion_or(asked.fusion))
            timings = {**ranked[n].timings, how.name: seconds}
            unscored = int(np.isnan(of_query).sum())
            reranked[n] = replace(ranked[n], hits=hits, timings=timings, unscored=unscored)
        return reranked

    def _scores(
        self,
        numbers: Sequence[int],
        queries: Sequence[Query],
        found: Sequence[Found],
        how: Rerank,
        asked: Request,
    ) -> list[NDArray[np.float64]]:
        """Re-ranking scores of the first candidates of queries with texts: all, or as many as risk allows.

        ``numbers`` are those of the queries in the whole search.
        """
        candidates = [one.records[: asked.settled] for one in found]
        with self._store.kept.files() as files:
            if not how.risk and asked.scored is None:
                return score_candidates(
                    how, self._viewer, files, queries, candidates, progress=asked.progress
                )
            fusion, stopping = how.fusion_or(asked.fusion), asked.stopping
            first_stage = [np.array([hit.score for hit in one.hits], np.float64) for one in found]

            def enough(q: int, scores: NDArray[np.float64]) -> bool:
                if asked.scored is not None:
                    able = np.flatnonzero(~np.isnan(scores))
                    fused = fuse(fusion, first_stage[q][able], scores[able])
                    ids = [candidates[q][n].id for n in able.tolist()]
                    asked.scored(numbers[q], dict(zip(ids, fused.tolist(), strict=True)))
                if not how.risk or queries[q].question is None:  # the likelihoods of a sum spread otherwise
                    return False
                assert isinstance(fusion, WeightedSum) and stopping is not None
                left = first_stage[q][: asked.settled]
                return stopping.missing(fusion, left, scores, asked.end) <= how.risk

            return score_until(
                how, self._viewer, files, queries, candidates, enough,
                first=asked.end if how.risk else 1, progress=asked.progress,
            )  # fmt: skip

    def _diverse(self, hits: Sequence[Hit], asked: Request) -> tuple[Hit, ...]:
        """Order the first ``settled`` hits that have a score by maximal marginal relevance."""
        scored = [hit for hit in hits[: asked.settled] if hit.score is not None]
        rest = [hit for n, hit in enumerate(hits) if hit.score is None or n >= asked.settled]
        here, vectors = self._first_stage.present(scored)
        scores = np.array([scored[n].score for n in here], np.float64)
        order = diversified(scores, vectors, asked.diversity)
        return (*(scored[here[n]] for n in order), *rest)

    def _explained(
        self, query: Query, page: Ranking, records: Mapping[int, Record], asked: Request
    ) -> Ranking:
        begin = time.perf_counter()
        scoring = asked.how.scoring if asked.how is not None else None
        rule = scoring if isinstance(scoring, Likelihood) else Likelihood()
        question = query.question
        assert self._viewer is not None and question is not None
        with self._store.kept.files() as files:
            of_hits = [records[hit.key] for hit in page.hits]
            hits = explain_hits(self._viewer, files, question, page.hits, of_hits, rule.prompt)
        timings = {**page.timings, "explain": time.perf_counter() - begin}
        return replace(page, hits=hits, timings=timings)
