"""``/api/dialog``: clarifying questions. The thread of the generator's lane computes one after another."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from zsqretrieval.dialog.dialog import Dialog
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import Answer, Candidate, DialogState, Said, StartDialog, Statement
from zsqretrieval.web.state import Served, State, facts, parsed, unless_gone

router = APIRouter(responses=RESPONSES)

_SHOWN = 60  # candidates


@dataclass(eq=False)
class KeptDialog:
    """A dialog, its state for clients, and the report of the request for which it computes."""

    dialog: Dialog | None = None
    state: DialogState | None = None
    report: Report | None = None
    said: BaseModel | str | None = None  # the last change

    def change(
        self,
        served: State,
        id: str,
        said: BaseModel | str | None,
        change: Callable[[Dialog], Any],
        report: Report,
    ) -> DialogState:
        """Change the dialog, and compute its next question.

        Without a state, an earlier change was made and only its question is missing. It is computed now, and
        the same change, which a client sends again, is not made twice.
        """
        assert self.dialog is not None
        self.report = report
        try:
            if self.state is not None:
                change(self.dialog)
                self.state, self.said = None, said
            elif said not in (None, self.said):
                raise Refused(409, "another answer came before this one; get the dialog")
            found = _state(served, id, self.dialog)
            report()  # nobody has seen the question if nobody waits for it
            self.state = found
        finally:
            self.report = None
        return found

    def progress(self, *_: Any) -> None:
        """End work that nobody waits for."""
        if self.report is not None:
            self.report()


@router.post("/api/dialog")
async def start(request: Request, served: Served, asked: StartDialog) -> DialogState:
    """Begin a dialog about one image."""
    served.need_generator()
    one, where = KeptDialog(), parsed(asked.where)
    id = secrets.token_urlsafe(16)

    def begin(report: Report) -> DialogState:
        one.report = report
        one.dialog = served.retriever.dialog(
            asked.text, candidates=asked.candidates, where=where, progress=one.progress
        )
        return one.change(served, id, None, lambda _: None, report)

    found = await unless_gone(request, served.generator_lane.alone(begin))
    served.dialogs.put(one, id)
    return found


@router.get("/api/dialog/{dialog}")
async def state(request: Request, served: Served, dialog: str) -> DialogState:
    """Tell where a dialog is."""
    return _open(served, dialog).state or await _changed(request, served, dialog, None, lambda _: None)


@router.post("/api/dialog/{dialog}/answer")
async def answer(request: Request, served: Served, dialog: str, asked: Answer) -> DialogState:
    """Answer the question."""

    def answered(one: Dialog) -> None:
        if asked.question not in (None, one.proposal and one.proposal.question):
            raise Refused(409, "this question was answered already; get the dialog")
        one.answer(asked.answer)

    return await _changed(request, served, dialog, asked, answered)


@router.post("/api/dialog/{dialog}/tell")
async def tell(request: Request, served: Served, dialog: str, asked: Statement) -> DialogState:
    """Say something without a question."""
    return await _changed(request, served, dialog, asked, lambda one: one.tell(asked.text))


@router.post("/api/dialog/{dialog}/undo")
async def undo(request: Request, served: Served, dialog: str) -> DialogState:
    """Take the last answer back."""
    return await _changed(request, served, dialog, "undo", lambda one: one.undo())


@router.delete("/api/dialog/{dialog}", status_code=204, response_class=Response, response_model=None)
async def end(served: Served, dialog: str) -> None:
    """Forget a dialog."""
    if served.dialogs.pop(dialog) is None:
        raise _unknown()


def _unknown() -> Refused:
    return Refused(404, "this dialog is not kept any more; begin another one")


def _open(served: State, id: str) -> KeptDialog:
    found = served.dialogs.get(id)
    if found is None:
        raise _unknown()
    return found


async def _changed(
    request: Request, served: State, id: str, said: BaseModel | str | None, change: Callable[[Dialog], Any]
) -> DialogState:
    one = _open(served, id)
    return await unless_gone(
        request, served.generator_lane.alone(lambda report: one.change(served, id, said, change, report))
    )


def _state(served: State, id: str, dialog: Dialog) -> DialogState:
    proposal, ranking = dialog.proposal, dialog.ranking
    shown = ranking.hits[:_SHOWN]
    records = served.retriever.find_all(hit.id for hit in shown)
    return DialogState(
        dialog=id,
        question=proposal and proposal.question,
        answers=list(proposal.answers) if proposal else [],
        stopped=dialog.stopped,
        entropy_bits=dialog.entropy / math.log(2),
        history=[
            Said(
                question=turn.question,
                answer=turn.answer,
                bits_before=turn.entropy_before / math.log(2),
                bits_after=turn.entropy_after / math.log(2),
            )
            for turn in dialog.history
        ],
        hits=[
            Candidate(**facts(records[hit.id]), probability=0.0 if hit.score is None else math.exp(hit.score))
            for hit in shown
            if hit.id in records
        ],
        asked=sum(turn.question is not None for turn in dialog.history),
        budget=dialog.budget,
    )
