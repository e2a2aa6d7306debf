"""The stages of a search in order: first stage, re-ranking, explanations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

from zsqretrieval.album.candidates import Viewer
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.search.dense import FirstStage, Found
from zsqretrieval.search.explain import explain_hits
from zsqretrieval.search.fusion import Fusion
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.rerank import CANDIDATES, Rerank, reorder, score_candidates
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.types import Image, Progress, Ranking


@final
class Pipeline:
    """Searches an album.

    Args:
        first_stage: fetches the candidates.
        viewer: gives the generator their images; None without a generator.
    """

    def __init__(self, first_stage: FirstStage, viewer: Viewer | None) -> None:
        self._first_stage, self._viewer = first_stage, viewer

    def search(
        self,
        queries: Sequence[str | Image],
        k: int,
        how: Rerank | None,
        *,
        fusion: Fusion,
        expansion: Fusion | None,
        bank: QueryBank | None,
        explain: bool,
        progress: Progress | None,
    ) -> list[Ranking]:
        """Search for each query; see :meth:`zsqretrieval.retriever.Retriever.search`.

        Args:
            queries: questions, or images, for which the first stage ranks alone.
            k: hits per query.
            how: re-ranking; None for the first stage alone.
            fusion: combines the scores unless ``how`` names a fusion.
            expansion: as for :meth:`~zsqretrieval.search.dense.FirstStage.search`.
            bank: the same.
            explain: whether to explain the hits.
            progress: called between batches of candidates.
        """
        if explain:
            self.need_generator("explain=True")
        if how is not None and how.needs_generator:
            self.need_generator(f"re-ranking by {how.name!r}", ", or use rerank=None")
        if explain or (how is not None and how.needs_generator):
            self.need_generator("").generator.get()  # loads before the clock starts
        only_nearest = how is None and bank is None and expansion is None
        depth = k if only_nearest else max(k, how.candidates if how else CANDIDATES)
        if how is not None and how.scoring is None:
            how = None
        found = self._first_stage.search(queries, depth, expansion=expansion, bank=bank)
        return [
            self._ranked(query, one, k, how, fusion, explain, progress)
            for query, one in zip(queries, found, strict=True)
        ]

    def _ranked(
        self,
        query: str | Image,
        found: Found,
        k: int,
        how: Rerank | None,
        fusion: Fusion,
        explain: bool,
        progress: Progress | None,
    ) -> Ranking:
        hits, timings = found.hits, found.timings
        if not isinstance(query, str):
            return Ranking(query.source, hits[:k], timings)
        if how is not None:
            begin = time.perf_counter()
            scores = score_candidates(how, self._viewer, query, found.records, progress=progress)
            hits = reorder(hits, how.name, scores, how.fusion_or(fusion))
            timings[how.name] = time.perf_counter() - begin
        hits = hits[:k]
        if explain:
            begin = time.perf_counter()
            rule = how.scoring if how is not None and isinstance(how.scoring, Likelihood) else Likelihood()
            records = {record.key: record for record in found.records}
            of_hits = [records[hit.key] for hit in hits]
            hits = explain_hits(self.need_generator("explain=True"), query, hits, of_hits, rule.prompt)
            timings["explain"] = time.perf_counter() - begin
        return Ranking(query, hits, timings, found.truncated)

    def need_generator(self, what: str, instead: str = "") -> Viewer:
        """The viewer, for something that needs a generator.

        Raises:
            InvalidInputError: there is no generator.
        """
        if self._viewer is None:
            raise InvalidInputError(
                f"{what} needs a generator, and this retriever has none: pass one to Retriever or "
                f"Retriever.open{instead}"
            )
        return self._viewer
