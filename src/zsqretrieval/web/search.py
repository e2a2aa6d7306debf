"""``/api/search``: the first stage at once, then re-ranked scores as they arrive.

terms --Query--> encoder's lane:   the order of the first stage  --> first_stage
                 generator's lane: the same search, re-ranked    --> progress, scores, done
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, TypeAlias

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from zsqretrieval.album.filters import Filter
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import FIRST_STAGE
from zsqretrieval.search.query import Query
from zsqretrieval.search.query_bank import QueryBank
from zsqretrieval.search.ranking import Ranking
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.types import Hit
from zsqretrieval.web.explain import explanations
from zsqretrieval.web.failures import RESPONSES, body, problem
from zsqretrieval.web.lanes import Job, Report
from zsqretrieval.web.schemas import FirstStage, Ranked, Search, Term
from zsqretrieval.web.schemas import Hit as HitOfPage
from zsqretrieval.web.state import Served, State, facts, parsed, unless_gone

router = APIRouter(responses=RESPONSES)

STREAM = "application/x-ndjson"
_FRESH = 60.0  # seconds that a query bank is used
_LIKELIHOOD = "likelihood"
_News: TypeAlias = "asyncio.Queue[dict[str, Any] | None]"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a search; equal ones are computed together."""

    state: State
    depth: int  # hits of the first stage; 0 in the generator's lane
    settled: int  # candidates that all stages order
    rerank: bool
    diversity: float
    where: Filter | None
    collapse: float | None
    expand: bool
    bank: QueryBank | None
    least: float | None  # probability of relevance; None where it is unknown

    def search(self, queries: Sequence[Query], k: int, **more: Any) -> list[Ranking]:
        """Search for some queries."""
        return self.state.retriever.search(
            queries, k, where=self.where, collapse=self.collapse, expand=self.expand, bank=self.bank,
            min_probability=self.least, **more,
        )  # fmt: skip


def first_stage(how: Options, queries: Sequence[Query], _: Report) -> list[Ranking]:
    """Search by encoder and index."""
    return how.search(queries, how.depth, rerank=None)


def by_all_stages(how: Options, queries: Sequence[Query], report: Report) -> list[Ranking]:
    """Order the candidates by all stages."""

    def scored(n: int, scores: Mapping[str, float]) -> None:
        best = max(scores.values(), default=0.0)
        report({"event": "scores", "scores": {id: math.exp(one - best) for id, one in scores.items()}}, n)

    def progress(_: str, done: int, of: int | None) -> None:
        report({"event": "progress", "done": done, "of": of or 0})

    rerank = Rerank(candidates=how.settled) if how.rerank else None
    return how.search(
        queries, how.settled, rerank=rerank, diversity=how.diversity, scored=scored, progress=progress
    )


def warm_up(retriever: Retriever, *, generates: bool) -> None:
    """Load what the first search would load."""
    least = 0.0 if retriever.calibration.relevance_scale else None
    how = Rerank(candidates=1) if generates else None
    retriever.search("a picture", 1, rerank=how, min_probability=least)


def _query(state: State, terms: Sequence[Term]) -> Query:
    return reduce(add, (Query(_content(state, one)) * one.weight for one in terms))


def _content(state: State, term: Term) -> Any:
    if term.text is not None:
        return term.text
    if term.id is not None:
        return state.hit(term.id)
    return state.upload(term.upload or "").vector


def _understood(state: State, asked: Search) -> tuple[Query, Options]:
    """The query and the options of a request."""
    query, retriever = _query(state, asked.terms), state.retriever
    if asked.explain:
        state.need_generator()
    least = asked.min_probability
    if least is None and query.question is not None and retriever.calibration.relevance_scale:
        least = 0.0
    return query, Options(
        state,
        depth=max(asked.offset + asked.k, asked.candidates),
        settled=asked.candidates,
        rerank=asked.rerank and state.generator is not None and bool(query.texts),
        diversity=asked.diversity,
        where=parsed(asked.where),
        collapse=asked.collapse,
        expand=asked.expand,
        bank=state.remember("bank", retriever.query_bank, _FRESH) if asked.bank else None,
        least=least,
    )


@router.post(
    "/api/search",
    response_model=Ranked,
    responses={200: {"content": {STREAM: {"schema": {"type": "string"}}}}},
)
async def search(request: Request, served: Served, asked: Search) -> Any:
    """Search. The answer is a stream of events, or with `Accept: application/json` the last one alone."""
    query, how = await run_in_threadpool(_understood, served, asked)
    ranking_key = asked.model_dump_json(exclude={"k", "offset", "explain"})
    news: _News = asyncio.Queue()
    loop = asyncio.get_running_loop()
    known: Ranking | None = served.rankings.get(ranking_key) if asked.offset else None
    second: Job | None = None
    if known is None and (how.rerank or how.diversity):
        lane = served.generator_lane if how.rerank else served.encoder_lane
        second = lane.submit(
            by_all_stages,
            query,
            replace(how, depth=0),
            lambda one: loop.call_soon_threadsafe(news.put_nowait, one),
        )
    try:
        only = replace(how, settled=0, rerank=False, diversity=0.0)
        plain: Ranking = await unless_gone(request, served.encoder_lane.run(first_stage, query, only))
        page = _Page(served, asked, query, plain, None if how.least is None else plain.nothing_found)
        events = _events(page, known, second, news, ranking_key)
        if "application/json" in request.headers.get("accept", ""):
            return Response(await unless_gone(request, _last(events)), media_type="application/json")
    except BaseException:
        if second is not None:
            second.give_up()
        raise
    leave = None if second is None else BackgroundTask(second.give_up)  # of a client that left at once
    return StreamingResponse(_lines(events, served), media_type=STREAM, background=leave)


async def _events(
    page: _Page, ordered: Ranking | None, second: Job | None, news: _News, ranking_key: str
) -> AsyncIterator[str]:
    """The events as JSON."""
    yield (await run_in_threadpool(page.first)).model_dump_json()
    if second is not None:
        task = asyncio.create_task(second.result())
        task.add_done_callback(lambda _: news.put_nowait(None))
        try:
            while (one := await news.get()) is not None:
                yield json.dumps(one)
            ordered = await task
        finally:
            task.cancel()
        page.served.rankings.put(ordered, ranking_key)
    done = await run_in_threadpool(page.done, ordered)
    if page.asked.explain and page.query.question is not None and done.hits:
        question, ids = page.query.question, [hit.id for hit in done.hits]
        found = await page.served.generator_lane.alone(
            lambda report: explanations(page.served, question, ids, report)
        )
        for hit in done.hits:
            hit.explanation = found.get(hit.id)
    yield done.model_dump_json()


async def _last(events: AsyncIterator[str]) -> str:
    return [one async for one in events][-1]


async def _lines(events: AsyncIterator[str], served: State) -> AsyncIterator[str]:
    try:
        async for one in events:
            yield f"{one}\n"
    except Exception as error:
        yield json.dumps({"event": "error", **body(problem(error, served.album_path))}) + "\n"


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of results, first in the order of the first stage, then in the final one."""

    served: State
    asked: Search
    query: Query
    plain: Ranking  # of the first stage, up to the end of the page
    nothing_found: bool | None

    def first(self) -> FirstStage:
        """The page by the first stage."""
        return FirstStage(
            hits=self._hits(self.plain.hits),
            total=self.served.retriever.count(parsed(self.asked.where)),
            seconds=sum(self.plain.timings.values()),
            nothing_found=self.nothing_found,
        )

    def done(self, ordered: Ranking | None) -> Ranked:
        """The page by all stages; without a ranking of theirs, by the first."""
        hits, timings = self.plain.hits, dict(self.plain.timings)
        if ordered is not None:
            settled = set(ordered.ids)
            hits = (*ordered.hits, *(hit for hit in hits if hit.id not in settled))
            timings |= ordered.timings
        return Ranked(
            hits=self._hits(hits),
            seconds=timings,
            nothing_found=self.nothing_found,
            truncated=self.plain.truncated,
        )

    def _hits(self, hits: Sequence[Hit]) -> list[HitOfPage]:
        shown = hits[self.asked.offset : self.asked.offset + self.asked.k]
        records = self.served.retriever.find_all(hit.id for hit in shown)
        # the first stage has seen more duplicates if the page is longer than the candidates
        before = {hit.id: (rank, hit.duplicates) for rank, hit in enumerate(self.plain.hits, 1)}
        best = max((hit.scores.get(_LIKELIHOOD, -math.inf) for hit in hits), default=0.0)
        found = []
        for rank, hit in enumerate(shown, self.asked.offset + 1):
            if hit.id not in records:  # removed since
                continue
            first, duplicates = before.get(hit.id, (None, hit.duplicates))
            likelihood = hit.scores.get(_LIKELIHOOD)
            found.append(
                HitOfPage(
                    **facts(records[hit.id]),
                    rank=rank,
                    first_stage_rank=first,
                    moved=None if first is None else first - rank,
                    probability=hit.probability,
                    similarity=hit.scores[FIRST_STAGE],
                    likelihood=likelihood,
                    question_fit=None if likelihood is None else math.exp(likelihood - best),
                    duplicates=duplicates,
                    matched_question=hit.matched_question,
                )
            )
        return found
