"""``/api/explain`` and ``/api/questions``: what the generator says of one image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool

from zsqretrieval._util.batches import batched
from zsqretrieval.album.filters import Field
from zsqretrieval.errors import ImageError
from zsqretrieval.search.explain import words
from zsqretrieval.tasks.questions import generate_questions
from zsqretrieval.types import Explanation, Hit
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import AskQuestions, Explain, Explained, Question, Questions, Word
from zsqretrieval.web.state import Served, State, unless_gone

router = APIRouter(responses=RESPONSES)

_TOGETHER = 16  # images that are explained before the work can be given up


@router.post("/api/explain")
async def explain(request: Request, served: Served, asked: Explain) -> Explained:
    """Tell which words of a question an image explains, in bits, and answer the question."""
    served.need_generator()
    await run_in_threadpool(served.record, asked.id)
    work = served.generator_lane.alone(
        lambda report: explanations(served, asked.question, [asked.id], report)
    )
    found = await unless_gone(request, work)
    if asked.id not in found:
        raise Refused(422, "the image of this id cannot be opened", "invalid_image")
    return found[asked.id]


def explanations(served: State, question: str, ids: Sequence[str], report: Report) -> dict[str, Explained]:
    """Explain images for a question, by id; in the generator's lane."""
    found: dict[str, Explained] = {}
    for some in batched(ids, _TOGETHER):
        report()
        chosen = Field("id").isin(some)
        hits = served.retriever.search(question, len(some), where=chosen, rerank=None, explain=True)
        found |= {hit.id: _explained(question, hit.explanation) for hit in hits if hit.explanation}
    return found


def _explained(question: str, explanation: Explanation) -> Explained:
    """An explanation with the places of its words in the question."""
    bits = [word.gain / math.log(2) for word in words(explanation)]
    most = max(map(abs, bits), default=0.0) or 1.0
    lower = question.lower()
    found, at, text = [], 0, lower if len(lower) == len(question) else question
    for word, gain in zip(words(explanation), bits, strict=True):
        start = max(text.find(word.text.lower(), at), at)
        at = min(start + len(word.text), len(text))
        found.append(Word(text=word.text, start=min(start, at), end=at, bits=gain, share=gain / most))
    return Explained(words=found, answer=explanation.answer)


@router.post("/api/questions")
async def questions(request: Request, served: Served, asked: AskQuestions) -> Questions:
    """Give the questions that the album stores of an image, or else let the generator write some."""
    hit = await run_in_threadpool(served.hit, asked.id)
    found = (await run_in_threadpool(stored, served, asked.id))[: asked.n]
    if not found:
        served.need_generator()
        found = await unless_gone(
            request, served.generator_lane.alone(lambda _: _written(served, hit, asked.n))
        )
    return Questions(questions=found)


def stored(served: State, id: str) -> list[Question]:
    """The retained questions of an image, likeliest first."""
    return [
        Question(text=one.text, log_likelihood=one.log_likelihood, stored=True)
        for one in served.retriever.questions.list(id)
        if one.judgement.kept
    ]


def _written(served: State, hit: Hit, n: int) -> list[Question]:
    with served.retriever.gallery().showing([hit]) as (generator, (shown,)):
        if isinstance(shown, ImageError):
            raise shown
        (found,) = generate_questions(generator, [shown], n)
    return [Question(text=one.text, log_likelihood=one.log_likelihood, stored=False) for one in found]
