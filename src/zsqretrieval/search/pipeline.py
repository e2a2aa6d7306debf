"""The stages of a search in order: first stage, re-ranking, explanations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

from zsqretrieval._util.checks import check_text
from zsqretrieval.album.candidates import Viewer, need_generator
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.data.images import ImageLike, as_image, decode
from zsqretrieval.search.dense import FirstStage, Found
from zsqretrieval.search.explain import explain_hits
from zsqretrieval.search.fusion import Fusion
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.rerank import CANDIDATES, Rerank, reorder, score_candidates
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.types import Image, Progress, Ranking


def as_query(query: ImageLike) -> str | Image:
    """A question, checked, or the image to search with: a ``str`` is always a question."""
    if not isinstance(query, str):
        return query_image(query)
    check_text(query, "the question")
    return query


def query_image(image: ImageLike) -> Image:
    """Decode as an album does on adding: an encoder may decode a large JPEG at reduced size by itself."""
    record = as_image(image)
    return Image(decode(record), record.source, max_pixels=record.max_pixels)


@final
class Pipeline:
    """Searches an album; ``viewer`` gives the generator the candidates, None without a generator."""

    def __init__(self, first_stage: FirstStage, viewer: Viewer | None, catalog: Catalog) -> None:
        self._first_stage, self._viewer, self._catalog = first_stage, viewer, catalog

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

        ``fusion`` combines the scores unless ``how`` names one; for an image the first stage ranks alone.
        """
        # a generator loads before the clock starts
        if explain:
            need_generator(self._viewer, "explain=True").generator.get()
        if how is not None and how.needs_generator:
            what = f"re-ranking by {how.name!r}"
            need_generator(self._viewer, what, ", or use rerank=None").generator.get()
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
            with self._catalog.kept.files() as files:
                scores = score_candidates(how, self._viewer, files, query, found.records, progress=progress)
            hits = reorder(hits, how.name, scores, how.fusion_or(fusion))
            timings[how.name] = time.perf_counter() - begin
        hits = hits[:k]
        if explain:
            begin = time.perf_counter()
            rule = how.scoring if how is not None and isinstance(how.scoring, Likelihood) else Likelihood()
            records = {record.key: record for record in found.records}
            of_hits = [records[hit.key] for hit in hits]
            assert self._viewer is not None
            with self._catalog.kept.files() as files:
                hits = explain_hits(self._viewer, files, query, hits, of_hits, rule.prompt)
            timings["explain"] = time.perf_counter() - begin
        return Ranking(query, hits, timings, found.truncated)
