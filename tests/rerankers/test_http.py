"""HTTPReranker against a real server on this machine, with every misbehaviour."""

from __future__ import annotations

import email.utils
import gzip
import json
import logging
import pickle
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

import rerank_server as rs
from zsqretrieval.errors import ImageError, InvalidInputError, PartError, ZsqError
from zsqretrieval.rerankers.http import HTTPReranker
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder, parametrize_checks, reranker_checks
from zsqretrieval.testing.pictures import painting, paintings
from zsqretrieval.types import Image

KEY = "sk-secret-0123456789"
QUICK = {"backoff": 0.001, "retries": 2, "timeout": 5.0}
RED, GREEN = (Image(PILImage.new("RGB", (20, 10), colour), colour) for colour in ("red", "green"))


@pytest.fixture(scope="module")
def steady() -> Iterator[Any]:
    with rs.serving() as server:
        yield server


@pytest.fixture
def server() -> Iterator[Any]:
    with rs.serving() as server:
        yield server


def reranker(server: Any, **more: Any) -> HTTPReranker:
    return HTTPReranker(server.url, "tiny", **{"self_check": False, **QUICK, **more})


@pytest.fixture(scope="module")
def made(steady: Any) -> Iterator[list[HTTPReranker]]:
    CURRENT[:] = [reranker(steady, batch_size=3, self_check=True)]
    yield CURRENT


CURRENT: list[HTTPReranker] = []


@parametrize_checks(reranker_checks, lambda: CURRENT[0])
def test_contract(check: Any, made: Any) -> None:
    check()


@pytest.mark.parametrize("documents", ["content", "image", "url"])
def test_request_is_what_servers_expect(server: Any, documents: Any) -> None:
    found = reranker(server, documents=documents, batch_size=2, api_key=KEY).score("red", [GREEN, RED, GREEN])
    assert found[1] > found[0] == found[2] and found.dtype == np.float64
    (path, headers, first), (_, _, second) = server.requests
    assert path == "/v1/rerank" and headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert (first["model"], first["query"], first["top_n"]) == ("tiny", "red", 2)
    assert len(first["documents"]) == 2 and len(second["documents"]) == 1
    shapes = {"content": list, "image": str, "url": str}
    sent = first["documents"][0]
    assert isinstance(sent if documents == "url" else sent[documents], shapes[documents])


def test_images_are_sent_upright_and_shrunk(server: Any) -> None:
    picture = painting(3, (400, 200))
    reranker(server, max_side=100).score("red", [Image(picture, "large")])
    uri = rs.uri_of(server.requests[0][2]["documents"][0])
    sent = PILImage.open(rs.io.BytesIO(rs.base64.b64decode(uri.partition(",")[2])))
    assert (sent.format, sent.size) == ("JPEG", (100, 50))


@pytest.mark.parametrize(
    ("given", "asked"),
    [("", "/v1/rerank"), ("/", "/v1/rerank"), ("/v1", "/v1/rerank"), ("/api/rerank", "/api/rerank")],
)
def test_address_is_completed(server: Any, given: str, asked: str) -> None:
    HTTPReranker(server.url + given, "tiny", self_check=False).score("red", [RED])
    assert server.requests[0][0] == asked


# --- the self-check ---------------------------------------------------------------------------------------


def test_server_is_checked_once(server: Any) -> None:
    checked = reranker(server, self_check=True)
    for _ in range(2):
        checked.score("green", [RED, GREEN])
    questions = [request["query"] for _, _, request in server.requests]
    assert questions == ["a red square", "green", "green"]


@pytest.mark.parametrize(
    "change", [lambda one: {**one, "relevance_score": 0.5}, lambda one: {**one, "index": 1 - one["index"]}]
)
def test_server_that_cannot_tell_colours_is_refused(server: Any, change: Any) -> None:
    server.usual = rs.answer(lambda results: {"results": list(map(change, results))})
    wrong = reranker(server, self_check=True)
    for _ in range(2):  # it is not used the second time, either
        with pytest.raises(PartError, match=r"127.0.0.1.*a blue square .* chat template .*self_check=False"):
            wrong.score("red", [RED])
    assert len(server.requests) == 2


# --- later, too large, too slow ---------------------------------------------------------------------------

PASSING = {
    "429": rs.status(429),
    "500": rs.status(500, b"<html>oops"),
    "503": rs.status(503),
    "hang-up": rs.hang_up,
    "half an answer": rs.half,
}


@pytest.mark.parametrize("fault", PASSING.values(), ids=[*PASSING])
def test_passing_fault_is_repeated(server: Any, fault: Any) -> None:
    server.replies += [fault, fault]
    assert len(reranker(server).score("red", [RED, GREEN])) == 2
    assert len(server.requests) == 3


@pytest.mark.parametrize("fault", PASSING.values(), ids=[*PASSING])
def test_lasting_fault_is_an_error_that_names_the_server(server: Any, fault: Any) -> None:
    server.usual = fault
    with pytest.raises(ZsqError, match=rf"server {server.url}/v1/rerank cannot be used after 3 attempts"):
        reranker(server).score("red", [RED])


def test_server_that_is_not_there_is_named() -> None:
    with rs.serving() as gone:
        pass
    with pytest.raises(ZsqError, match=rf"{gone.url}.* after 3 attempts: ConnectError.*check that it runs"):
        reranker(gone).score("red", [RED])


def test_pauses_double_with_jitter_or_are_what_the_server_asks(
    server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    later = email.utils.format_datetime(datetime.now(timezone.utc) + timedelta(seconds=100), usegmt=True)
    server.replies += [rs.status(503)] * 3
    server.replies += [rs.status(429, retry_after=wanted) for wanted in ("30", later, "soon", "-5")]
    reranker(server, backoff=1.0, retries=7).score("red", [RED])
    for pause, base in zip(pauses[:3], (1, 2, 4), strict=True):
        assert base / 2 <= pause <= base
    assert pauses[3] == 30 and 90 < pauses[4] <= 100
    assert 16 <= pauses[5] <= 32 and 30 <= pauses[6] <= 60
    assert len(set(pauses[:3])) == 3


def test_wait_beyond_the_total_time_is_not_waited(server: Any) -> None:
    server.usual = rs.status(429, retry_after="3600")
    start = time.monotonic()
    with pytest.raises(ZsqError, match=r"no scores within 10 seconds \(HTTP status 429.*raise total_timeout"):
        reranker(server, total_timeout=10).score("red", [RED])
    assert time.monotonic() - start < 5 and len(server.requests) == 1


@pytest.mark.parametrize("fault", [rs.dripping, rs.silent])
def test_slow_server_ends_in_time(server: Any, fault: Any) -> None:
    server.usual = fault
    start = time.monotonic()
    with pytest.raises(ZsqError, match=r"no scores within 0.3 seconds"):
        reranker(server, total_timeout=0.3).score("red", [RED])
    assert time.monotonic() - start < 2


def test_request_that_is_too_large_is_halved(server: Any) -> None:
    server.usual = rs.limited(2)
    images = paintings(7)
    found = reranker(server, batch_size=7).score("red", images)
    server.usual = rs.right
    assert found.tolist() == reranker(server, batch_size=7).score("red", images).tolist()


def test_image_that_alone_is_too_large_is_named(server: Any) -> None:
    server.usual = rs.limited(0)
    with pytest.raises(ImageError, match=r"^red: .* refuses \d+ bytes as too large \(413\); lower max_side"):
        reranker(server).score("red", [RED, GREEN])


# --- nonsense ---------------------------------------------------------------------------------------------


def results(change: Any) -> Any:
    return rs.answer(lambda found: {"results": change(found)})


def first(**other: Any) -> Any:
    return results(lambda found: [{**found[0], **other}, *found[1:]])


NONSENSE = {
    "HTML": (rs.status(200, b"<html>Welcome</html>"), "<html>Welcome"),
    "no JSON": (rs.status(200, b"{"), r"\{"),
    "no UTF-8": (rs.status(200, b"\xff\xfe"), "results"),
    "deep JSON": (rs.status(200, b"[" * 100_000), "nested"),
    "empty": (rs.status(200, b""), "results"),
    "a list": (rs.answer(lambda found: found), "no list of results"),
    "null": (rs.status(200, b"null"), "no list of results"),
    "no results": (rs.answer(lambda found: {"data": found}), "no 'results'"),
    "a missing image": (results(lambda found: found[1:]), "1 results for 1 of 2 images"),
    "none": (results(lambda found: []), "0 results"),
    "one too many": (results(lambda found: [*found, found[0]]), "3 results for 2 of 2"),
    "an image twice": (results(lambda found: [found[0], found[0]]), "2 results for 1 of 2"),
    "an index too large": (first(index=2), "index 2 of 2"),
    "a negative index": (first(index=-1), "index -1"),
    "an index as text": (first(index="0"), "index '0'"),
    "a boolean index": (first(index=True), "index True"),
    "no index": (results(lambda found: [{"relevance_score": 1.0}] * 2), "no 'index'"),
    "no score": (results(lambda found: [{"index": 0}, {"index": 1}]), "no 'relevance_score'"),
    "a score of null": (first(relevance_score=None), "relevance_score None"),
    "a score as text": (first(relevance_score="0.5"), "relevance_score '0.5'"),
    "NaN": (first(relevance_score=float("nan")), "NaN"),
    "infinity": (first(relevance_score=float("inf")), "Infinity"),
    "a number too large": (first(relevance_score=10**400), "too large"),
    "a number out of range": (
        rs.status(200, b'{"results": [{"index": 0, "relevance_score": 1e999}]}'),
        "1e999 is out of range",
    ),
    "results that are none": (results(lambda found: 3), "no list of results"),
    "texts for results": (results(lambda found: ["a", "b"]), "no list of results"),
    "endless": (rs.endless, "more than .* bytes"),
    "compressed": (
        rs.status(200, gzip.compress(b" " * 10**6), content_encoding="gzip"),
        "compressed, although",
    ),
}


@pytest.mark.parametrize(("reply", "reason"), NONSENSE.values(), ids=[*NONSENSE])
def test_nonsense_is_a_part_error_that_names_the_server(server: Any, reply: Any, reason: str) -> None:
    server.usual = reply
    with pytest.raises(
        PartError, match=rf"^the re-ranking server {server.url}/v1/rerank .*{reason}"
    ) as caught:
        reranker(server).score("red", [RED, GREEN])
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    assert len(server.requests) == 1, "an answer that is wrong is not asked for again"


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        (400, "check the model"),
        (401, "api_key"),
        (403, "api_key"),
        (404, "check the url"),
        (422, "documents="),
    ],
)
def test_refusal_says_what_to_do(server: Any, code: int, hint: str) -> None:
    server.usual = rs.status(code, b'{"error": "no\nsuch model"}')
    with pytest.raises(ZsqError, match=rf"HTTP status {code}: .*no such model.*; .*{hint}"):
        reranker(server).score("red", [RED])
    assert len(server.requests) == 1


# --- the key ----------------------------------------------------------------------------------------------


def test_redirect_is_not_followed_with_the_key(server: Any) -> None:
    with rs.serving() as other:
        server.usual = rs.status(307, location=f"{other.url}/v1/rerank")
        with pytest.raises(ZsqError, match=r"HTTP status 307.*redirects are not followed"):
            reranker(server, api_key=KEY).score("red", [RED])
        assert other.requests == []


@pytest.mark.parametrize("code", [200, 400, 503])
def test_key_that_a_server_repeats_is_in_no_message_or_log(
    server: Any, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.usual = rs.status(code, f"your key {KEY} is wrong".encode())
    one = reranker(server, api_key=KEY)
    with pytest.raises(ZsqError, match=r"your key \[key\]") as caught:
        one.score("red", [RED])
    shown = [repr(one), str(one), repr(caught.value), caplog.text]
    assert all(KEY not in text for text in shown) and repr(one) == f"HTTPReranker('{one._url}', 'tiny')"


def test_pickled_copy_asks_the_same_server(server: Any) -> None:
    one = reranker(server, api_key=KEY)
    assert pickle.loads(pickle.dumps(one)).score("red", [RED]) == one.score("red", [RED])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8000"}, "must be that of a server"),
        ({"url": "ftp://localhost"}, "must be that of a server"),
        ({"url": "http://"}, "must be that of a server"),
        ({"url": "http://host:port"}, "must be that of a server"),
        ({"url": "http://höst"}, "must be that of a server"),
        ({"url": f"http://me:{KEY}@host"}, "must have no user, password or query"),
        ({"url": f"http://host/?key={KEY}"}, "must have no user, password or query"),
        ({"url": 3}, "must be that of a server"),
        ({"model": ""}, "the model must be a non-empty string"),
        ({"api_key": f"{KEY}\n"}, "printable ASCII"),
        ({"api_key": ""}, "printable ASCII"),
        ({"documents": "text"}, "documents must be one of content, image, url"),
        ({"batch_size": 0}, "batch_size"),
        ({"retries": -1}, "retries"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_wrong_arguments_are_refused_without_the_key(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message) as caught:
        HTTPReranker(**{"url": "http://localhost", "model": "tiny", **arguments})
    assert KEY not in str(caught.value)


def test_search_ranks_by_the_server(server: Any) -> None:
    with Retriever(ToyEncoder()) as retriever:
        retriever.add([GREEN, RED])
        ranking = retriever.search("a red thing", rerank=reranker(server))
    assert ranking[0].source == "red" and "tiny" in ranking[0].scores
    assert json.dumps(dict(ranking[0].scores))
