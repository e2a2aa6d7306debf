"""``/api/explain`` and ``/api/questions``: what the generator makes of one image."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastapi import APIRouter, Request

from zsqretrieval.album.filters import Field
from zsqretrieval.errors import ImageError
from zsqretrieval.search.explain import words
from zsqretrieval.tasks.questions import generate_questions
from zsqretrieval.types import Explanation
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import AskQuestions, Explain, Explained, Question, Questions, Word
from zsqretrieval.web.state import Served, State, unless_gone

router = APIRouter(responses=RESPONSES)


@router.post("/api/explain")
async def explain(request: Request, served: Served, asked: Explain) -> Explained:
    """Tell which words of a question an image explains, in bits, and answer the question."""
    served.need_generator()
    served.record(asked.id)
    work = served.second.run(explanations, (asked.question, (asked.id,)), served)
    found: dict[str, Explained] = await unless_gone(request, work)
    if asked.id not in found:
        raise Refused(422, "the image of this id cannot be opened", "invalid_image")
    return found[asked.id]


def explanations(
    state: State, asked: Sequence[tuple[str, Sequence[str]]], _: Report
) -> list[dict[str, Explained]]:
    """Explain images for questions, by id."""
    found = []
    for question, ids in asked:
        hits = state.retriever.search(
            question, len(ids), where=Field("id").isin(ids), rerank=None, explain=True
        )
        found.append({one.id: explained(question, one.explanation) for one in hits if one.explanation})
    return found


def explained(question: str, explanation: Explanation) -> Explained:
    """An explanation with the places of its words in the question."""
    found, at, lower = [], 0, question.lower()
    gains = [(word.text, word.gain / math.log(2)) for word in words(explanation)]
    most = max((abs(bits) for _, bits in gains), default=0.0) or 1.0
    for text, bits in gains:
        start = max(lower.find(text.lower(), at), at)
        at = min(start + len(text), len(question))
        found.append(Word(text=text, start=min(start, at), end=at, bits=bits, share=bits / most))
    return Explained(words=found, answer=explanation.answer)


@router.post("/api/questions")
async def questions(request: Request, served: Served, asked: AskQuestions) -> Questions:
    """Give the questions that the album stores of an image, or else let the generator write some."""
    found = stored(served, served.record(asked.id).id)[: asked.n]
    if not found:
        served.need_generator()
        found = await unless_gone(request, served.second.run(_generated, (asked.id, asked.n), served))
    return Questions(questions=found)


def stored(state: State, id: str) -> list[Question]:
    """The retained questions of an image, likeliest first."""
    return [
        Question(text=one.text, log_likelihood=one.log_likelihood, stored=True)
        for one in state.retriever.questions.list(id)
        if one.judgement.kept
    ]


def _generated(state: State, asked: Sequence[tuple[str, int]], _: Report) -> list[list[Question]]:
    found = []
    for id, n in asked:
        with state.retriever.gallery.showing([state.hit(id)]) as (generator, (shown,)):
            if isinstance(shown, ImageError):
                raise shown
            (written,) = generate_questions(generator, [shown], n)
        found.append(
            [Question(text=one.text, log_likelihood=one.log_likelihood, stored=False) for one in written]
        )
    return found
