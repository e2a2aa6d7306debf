"""Searches over HTTP are those of the library, in pages and as a stream."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from served import GONE, MARKUP, ODD, client, events, make_album, picture
from zsqretrieval.album.filters import Filter
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.search.query import Query
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.testing import ToyGenerator
from zsqretrieval.web.explain import explanations
from zsqretrieval.web.lanes import EndedError

JSON = {"Accept": "application/json"}


def asked(web: TestClient, **search: Any) -> dict[str, Any]:
    answer = web.post("/api/search", json={"terms": [{"text": "a red bus"}], **search}, headers=JSON)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def ids(found: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in found["hits"]]


def test_stream_begins_with_the_first_stage_and_ends_with_all(web: TestClient, shown: Retriever) -> None:
    first, *between, done = events(web.post("/api/search", json={"terms": [{"text": "a red bus"}], "k": 4}))
    assert (first["event"], first["total"], first["nothing_found"]) == ("first_stage", len(shown), False)
    assert ids(first) == shown.search("a red bus", 4, rerank=None).ids
    assert {one["event"] for one in between} == {"progress"}
    assert (between[-1]["done"], between[-1]["of"]) == (len(shown), len(shown))
    ranking = shown.search("a red bus", 4, min_probability=0.0)
    assert (done["event"], ids(done), done["truncated"]) == ("done", ranking.ids, False)
    before = shown.search("a red bus", 100, rerank=None).ids
    best = max(hit.scores["likelihood"] for hit in shown.search("a red bus", 8))
    for rank, (hit, one) in enumerate(zip(done["hits"], ranking, strict=True), 1):
        assert hit["rank"] == rank and hit["moved"] == before.index(one.id) + 1 - rank
        assert hit["likelihood"] == one.scores["likelihood"] <= best + 1e-9
        assert hit["probability"] == one.probability and hit["similarity"] == one.scores["first_stage"]
        assert 0 <= hit["question_fit"] <= 1
    assert list(done["seconds"]) == ["encode", "first_stage", "likelihood"]


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"rerank": False}, {"rerank": None}),
        ({"candidates": 9}, {"rerank": Rerank(candidates=9)}),
        ({"where": "year > 2003"}, {"where": Filter.parse("year > 2003")}),
        ({"collapse": 0.9}, {"collapse": 0.9}),
        ({"diversity": 0.7}, {"diversity": 0.7}),
        ({"diversity": 0.7, "rerank": False}, {"diversity": 0.7, "rerank": None}),
        ({"min_probability": 0.5}, {"min_probability": 0.5}),
        ({"min_probability": 1.0}, {"min_probability": 1.0}),
    ],
)
def test_options_are_those_of_the_library(
    web: TestClient, shown: Retriever, options: dict[str, Any], same: dict[str, Any]
) -> None:
    expected = shown.search("a red bus", 9, **same)
    found = asked(web, k=9, **options)
    assert ids(found) == expected.ids
    assert [hit["duplicates"] for hit in found["hits"]] == [hit.duplicates for hit in expected]
    if "min_probability" in options:
        assert found["nothing_found"] == expected.nothing_found


@pytest.mark.parametrize("candidates", [2, 5, 9, 60])
@pytest.mark.parametrize("rerank", [True, False])
def test_pages_join_to_the_whole_ranking(web: TestClient, candidates: int, rerank: bool) -> None:
    whole = asked(web, k=9, candidates=candidates, rerank=rerank)
    pages = [asked(web, k=2, offset=n, candidates=candidates, rerank=rerank) for n in range(0, 9, 2)]
    joined = [hit for page in pages for hit in page["hits"]]
    for hit in (*joined, *whole["hits"]):
        del hit["question_fit"]
    assert joined == whole["hits"] and len(joined) == 9


def test_terms_make_the_query_of_the_library(web: TestClient, shown: Retriever) -> None:
    upload = web.post("/api/uploads", files={"file": ("x.png", picture("green"))}).json()["upload"]
    terms = [
        {"text": "a red bus"}, {"id": "blue.png", "weight": 0.5}, {"upload": upload, "weight": -0.25}
    ]  # fmt: skip
    (like,) = [hit for hit in shown.search("red", 9, rerank=None) if hit.id == "blue.png"]
    query = Query("a red bus") + 0.5 * Query(like) - 0.25 * Query(picture("green"))
    assert ids(asked(web, terms=terms)) == shown.search(query, 9).ids
    assert "blue.png" not in ids(asked(web, terms=[{"id": "blue.png"}]))
    assert ids(asked(web, terms=[{"upload": upload}]))[0] == "green.png"


@pytest.fixture
def many(tmp_path: Any) -> Iterator[Retriever]:
    """An album of more images than are scored or explained at once."""
    with make_album(tmp_path) as made:
        made.add([picture(colour, (9 + n, 9)) for n, colour in enumerate(["red", "blue", "green"] * 10)])
        yield made


def test_scores_arrive_before_the_end_and_order_as_the_fusion(many: Retriever) -> None:
    many.calibration = replace(many.calibration, fusion=WeightedSum(0.01))
    with client(many) as web:
        found = events(web.post("/api/search", json={"terms": [{"text": "a red bus"}], "k": 60}))
    parts = [one["scores"] for one in found if one["event"] == "scores"]
    assert [len(one) for one in parts] in ([16, 32], [15, 31])  # one image is gone
    hits = [hit for hit in found[-1]["hits"] if hit["likelihood"] is not None]
    for part in parts:
        some = [hit for hit in hits if hit["id"] in part]  # in the final order
        some.sort(key=lambda hit: hit["first_stage_rank"])
        first, scores = (np.array([hit[name] for hit in some]) for name in ("similarity", "likelihood"))
        fused = WeightedSum(0.01).fuse(first, scores)
        assert [part[hit["id"]] for hit in some] == pytest.approx(np.exp(fused - fused.max()).tolist())


def test_duplicates_stay_when_the_page_is_longer_than_the_candidates(many: Retriever) -> None:
    with client(many) as web:
        search = {"terms": [{"text": "a red bus"}], "k": 60, "candidates": 6, "collapse": 0.9}
        first, *_, done = events(web.post("/api/search", json=search))
    before = {hit["id"]: hit["duplicates"] for hit in first["hits"]}
    assert max(before.values()) > 2
    assert {hit["id"]: hit["duplicates"] for hit in done["hits"]} == before


def test_explanations_are_given_up_between_batches(many: Retriever) -> None:
    calls: list[None] = []

    def report() -> None:
        calls.append(None)
        if len(calls) > 1:
            raise EndedError

    ids_ = many.search("a red bus", 20, rerank=None).ids
    with client(many) as web, pytest.raises(EndedError):
        explanations(web.app.served, "a red bus", ids_, report)  # type: ignore[attr-defined]
    with client(many) as web:
        found = asked(web, k=20, explain=True)
        assert [hit["id"] for hit in found["hits"] if hit["explanation"] is None] in ([], [GONE])


def test_explained_hits_have_the_places_of_words(web: TestClient, shown: Retriever) -> None:
    found = asked(web, k=2, explain=True)
    (hit, _) = shown.search("a red bus", 2, explain=True)
    words = found["hits"][0]["explanation"]["words"]
    assert found["hits"][0]["explanation"]["answer"] == hit.explanation.answer  # type: ignore[union-attr]
    assert {"text": "red", "start": 2, "end": 5}.items() <= words[1].items() or words[1]["text"] == "red"
    assert max(abs(word["share"]) for word in words) == 1
    alone = web.post("/api/explain", json={"id": "red.png", "question": "a red bus"}).json()
    (same,) = [hit for hit in asked(web, k=9, explain=True)["hits"] if hit["id"] == "red.png"]
    assert alone == same["explanation"]


def test_questions_are_stored_ones_or_written_now(tmp_path: Any) -> None:
    with make_album(tmp_path) as album, client(album) as web:
        written = web.post("/api/questions", json={"id": ODD, "n": 2}).json()["questions"]
        assert len(written) == 2 and not any(one["stored"] for one in written)
        album.questions.generate(2, top_k=None)
        stored = web.post("/api/questions", json={"id": ODD, "n": 2}).json()["questions"]
        kept = [one for one in album.questions.list(ODD) if one.judgement.kept]
        assert [one["text"] for one in stored] == [one.text for one in kept][:2]
        assert all(one["stored"] for one in stored)
        assert web.get("/api/images/red.png").json()["questions"]
        expanded = asked(web, expand=True)
        assert expanded["hits"][0]["matched_question"]


@pytest.mark.parametrize(
    ("search", "status", "message"),
    [
        ({"terms": []}, 422, "terms"),
        ({"terms": [{}]}, 422, "one of text, id and upload"),
        ({"terms": [{"text": "a", "id": "b"}]}, 422, "one of text, id and upload"),
        ({"terms": [{"text": " "}]}, 400, "non-empty"),
        ({"terms": [{"text": "a" * 3000}]}, 422, "2000"),
        ({"terms": [{"text": "a", "weight": 0}]}, 400, "weight"),
        ({"terms": [{"text": "a"}, {"text": "a", "weight": -1}]}, 400, "cancel"),
        ({"terms": [{"text": "a"}] * 17}, 422, "16"),
        ({"terms": [{"id": "unknown"}]}, 404, "no image 'unknown'"),
        ({"terms": [{"upload": "unknown"}]}, 404, "upload the image again"),
        ({"where": "year >"}, 400, "column"),
        ({"where": "sauce = 1"}, 400, "no image of the album has the field sauce"),
        ({"where": "year = 1 or source contains '/tmp'"}, 400, "source cannot be used"),
        ({"k": 0}, 422, "k"),
        ({"candidates": 100_000}, 422, "200"),
        ({"offset": 1_000_000}, 422, "offset"),
        ({"min_probability": 2}, 422, "min_probability"),
        ({"expand": True}, 400, "no stored questions"),
        ({"bank": True}, 400, "questions"),
        ({"colour": "red"}, 422, "colour"),
    ],
)
def test_refusals_say_what_is_wrong(
    web: TestClient, search: dict[str, Any], status: int, message: str
) -> None:
    answer = web.post("/api/search", json={"terms": [{"text": "a red bus"}], **search})
    error = answer.json()["error"]
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json")
    assert message in error["message"] and "secret" not in error["message"]
    assert set(error) == {"code", "message"}


def test_long_question_is_refused_by_the_generator_alone(web: TestClient) -> None:
    found = events(web.post("/api/search", json={"terms": [{"text": "red " * 300}]}))
    assert (found[0]["event"], found[-1]["event"]) == ("first_stage", "error")
    assert found[-1]["error"]["code"] == "invalid_input" and "tokens" in found[-1]["error"]["message"]
    answer = web.post("/api/search", json={"terms": [{"text": "red " * 300}]}, headers=JSON)
    assert answer.status_code == 400


def test_album_without_generator_is_ranked_by_the_first_stage(tmp_path: Any) -> None:
    with make_album(tmp_path, generator=None) as album, client(album) as web:
        assert ids(asked(web)) == album.search("a red bus", 9).ids
        assert web.get("/api/album").json()["generator"] is None
        assert web.post("/api/search", json={"terms": [{"text": "a"}], "explain": True}).status_code == 400
        for path, body in (
            ("/api/explain", {"id": "red.png", "question": "what?"}),
            ("/api/questions", {"id": "red.png"}),
            ("/api/dialog", {"text": "a bus"}),
            ("/v1/rerank", {"query": "a bus", "documents": ["red.png"]}),
        ):
            answer = web.post(path, json=body)
            assert answer.status_code == 400 and "without a generator" in answer.json()["error"]["message"]


class SlowGenerator(ToyGenerator):
    """Waits before its first scores; counts the questions of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.calls = threading.Event(), list[int]()

    def log_likelihood(self, contexts: Any, continuations: Any, **options: Any) -> Any:
        self.calls.append(len(set(continuations)))
        assert self.go_on.wait(20)
        return super().log_likelihood(contexts, continuations, **options)


def test_users_share_the_generator_and_too_many_get_429(tmp_path: Any) -> None:
    generator = SlowGenerator()
    generator.go_on.set()
    album = make_album(tmp_path, generator=generator)
    questions = [f"a red bus {n}" for n in range(9)]
    with album, client(album, waiting=6, reranked_together=4) as web:
        generator.calls.clear()
        generator.go_on.clear()
        with ThreadPoolExecutor(10) as pool:
            running = pool.submit(asked, web)
            while not generator.calls:
                pass
            answers = [pool.submit(_post, web, text) for text in questions]
            full = []
            for one in as_completed(answers, 20):
                full.append(one)
                if len(full) == 3:  # the others wait for the generator
                    break
            generator.go_on.set()
            running.result(20)
            done = [one.result(20) for one in answers]
        assert [one.result().status_code for one in full] == [429] * 3
        assert sum(one.status_code == 429 for one in done) == 3
        assert sorted(generator.calls) == [1, 2, 4]
        refused = next(one for one in done if one.status_code == 429)
        assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "busy"
        for text, one in zip(questions, done, strict=False):
            if one.status_code == 200:
                assert ids(one.json()) == album.search(text, 60).ids


def _post(web: TestClient, text: str) -> Any:
    return web.post("/api/search", json={"terms": [{"text": text}]}, headers=JSON)


def test_markup_stays_text(web: TestClient) -> None:
    found = asked(web)
    (hit,) = [one for one in found["hits"] if one["id"] == "blue.png"]
    assert hit["caption"] == MARKUP
    page = web.get("/")
    assert MARKUP not in page.text and "<script>alert" not in page.text
    assert GONE in ids(found)
