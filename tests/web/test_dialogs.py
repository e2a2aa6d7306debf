"""Dialogs over HTTP are those of the library."""

from __future__ import annotations

import math
from typing import Any

import pytest
from starlette.testclient import TestClient

from served import client, make_album
from zsqretrieval.album.filters import Field
from zsqretrieval.presets import Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.web import dialogs
from zsqretrieval.web.lanes import EndedError
from zsqretrieval.web.schemas import Answer

VAGUE = Calibration(dialog_scale=1.0, dialog_temper=0.05)  # never sure of an image


@pytest.fixture(scope="module")
def vague(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with make_album(tmp_path_factory.mktemp("vague")) as made:
        made.calibration = VAGUE
        yield made


@pytest.fixture(scope="module")
def talk(vague: Retriever) -> Any:
    with client(vague) as made:
        yield made


def state_of(dialog: Any) -> dict[str, Any]:
    """What the library says of a dialog."""
    proposal = dialog.proposal
    return {
        "question": proposal and proposal.question,
        "answers": list(proposal.answers) if proposal else [],
        "stopped": dialog.stopped,
        "entropy_bits": pytest.approx(dialog.entropy / math.log(2)),
        "history": [{"question": one.question, "answer": one.answer} for one in dialog.history],
        "asked": sum(one.question is not None for one in dialog.history),
        "budget": dialog.budget,
    }


def test_dialog_follows_the_library(talk: TestClient, vague: Retriever) -> None:
    said = talk.post("/api/dialog", json={"text": "a picture", "candidates": 5}).json()
    same = vague.dialog("a picture", candidates=5)
    address = f"/api/dialog/{said['dialog']}"
    steps = [("answer", {"answer": "yes"}), ("tell", {"text": "it is red"}), ("undo", None)]
    for path, body in [(None, None), *steps]:
        if path is not None:
            said = talk.post(f"{address}/{path}", json=body).json()
            {"answer": same.answer, "tell": same.tell}.get(path, lambda _: same.undo())(
                next(iter((body or {"": ""}).values()))
            )
        turns = [{name: turn[name] for name in ("question", "answer")} for turn in said["history"]]
        assert {**{name: said[name] for name in state_of(same)}, "history": turns} == state_of(same)
        assert {hit["id"]: hit["probability"] for hit in said["hits"]} == pytest.approx(
            dict(same.probabilities)
        )
        assert talk.get(address).json() == said
    assert talk.delete(address).status_code == 204
    for answer in (talk.get(address), talk.delete(address), talk.post(f"{address}/undo")):
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")


def test_dialog_is_about_the_images_of_a_filter(talk: TestClient, vague: Retriever) -> None:
    said = talk.post("/api/dialog", json={"text": "a picture", "where": "year < 2003"}).json()
    same = vague.dialog("a picture", where=Field("year") < 2003)
    assert {hit["id"] for hit in said["hits"]} == set(same.probabilities)
    assert len(said["hits"]) == 3
    after = talk.post(f"/api/dialog/{said['dialog']}/tell", json={"text": "it is white"}).json()
    assert len(after["hits"]) == 3
    none = talk.post("/api/dialog", json={"text": "a picture", "where": "year < 1900"})
    assert (none.status_code, "filter" in none.json()["error"]["message"]) == (400, True)


def test_refused_answer_changes_nothing(talk: TestClient) -> None:
    said = talk.post("/api/dialog", json={"text": "a picture"}).json()
    address = f"/api/dialog/{said['dialog']}"
    for path, body, status in (
        ("undo", None, 400),
        ("answer", {"answer": "?!"}, 400),
        ("answer", {"answer": "red " * 400}, 400),
        ("answer", {"answer": ""}, 422),
        ("tell", {}, 422),
    ):
        assert talk.post(f"{address}/{path}", json=body).status_code == status
    assert talk.get(address).json() == said


@pytest.mark.parametrize("again", ["get", "answer", "other"])
def test_answer_whose_question_was_interrupted_is_taken_once(
    talk: TestClient, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    def interrupted(*_: Any) -> Any:
        raise EndedError

    address = f"/api/dialog/{talk.post('/api/dialog', json={'text': 'a picture'}).json()['dialog']}"
    with monkeypatch.context() as patch:
        patch.setattr(dialogs, "_state", interrupted)
        assert talk.post(f"{address}/answer", json={"answer": "yes"}).status_code == 503
    if again == "other":
        for path, body in (("answer", {"answer": "no"}), ("tell", {"text": "yes"}), ("undo", None)):
            refused = talk.post(f"{address}/{path}", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    said = (
        talk.get(address) if again == "get" else talk.post(f"{address}/answer", json={"answer": "yes"})
    ).json()
    assert [turn["answer"] for turn in said["history"]] == ["yes"]
    after = talk.post(f"{address}/answer", json={"answer": "no"}).json()["history"]
    assert (after[1]["question"], after[1]["answer"]) == (said["question"], "no")


def test_second_answer_to_a_question_is_refused(talk: TestClient) -> None:
    said = talk.post("/api/dialog", json={"text": "a picture"}).json()
    address = f"/api/dialog/{said['dialog']}"
    body = {"answer": "yes", "question": said["question"]}
    after = talk.post(f"{address}/answer", json=body)
    assert after.status_code == 200
    again = talk.post(f"{address}/answer", json=body)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "conflict")
    assert talk.get(address).json() == after.json()


def test_question_that_nobody_waited_for_is_not_answered(talk: TestClient, vague: Retriever) -> None:
    def gone() -> None:
        raise EndedError

    id = talk.post("/api/dialog", json={"text": "a picture"}).json()["dialog"]
    one = talk.app.served.dialogs.get(id)  # type: ignore[attr-defined]
    with pytest.raises(EndedError):
        one.change(talk.app.served, id, Answer(answer="yes"), lambda dialog: dialog.answer("yes"), gone)  # type: ignore[attr-defined]
    said = talk.post(f"/api/dialog/{id}/answer", json={"answer": "yes"}).json()
    assert [turn["answer"] for turn in said["history"]] == ["yes"]


def test_dialogs_are_kept_in_a_limited_number(vague: Retriever) -> None:
    with client(vague, kept=2) as web:
        made = [web.post("/api/dialog", json={"text": "a picture"}).json()["dialog"] for _ in range(3)]
        assert [web.get(f"/api/dialog/{id}").status_code for id in made] == [404, 200, 200]
