"""Who is let in, and what every answer says."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from served import client, picture
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, PartError
from zsqretrieval.retriever import Retriever
from zsqretrieval.web.app import make_app
from zsqretrieval.web.guard import POLICY, Guard
from zsqretrieval.web.settings import Settings

TOKEN = "a token of many characters;"
SEARCH = {"terms": [{"text": "a red bus"}]}


def code(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.fixture(scope="module")
def locked(shown: Retriever) -> Any:
    with client(shown, token=TOKEN) as made:
        yield made


@pytest.mark.parametrize("path", ["/", "/api/album", "/thumb/red.png", "/metrics", "/openapi.json", "/no"])
@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"},
        {"Cookie": "zsq_token=wrong"}, {"Cookie": "zsq_token"}, {"Authorization": "Bearer "},
        {"Authorization": "Bearer \u00fc".encode("latin-1")},
    ],
)  # fmt: skip
def test_without_the_token_nothing_is_told(locked: TestClient, path: str, headers: Any) -> None:
    answer = locked.get(path, headers=headers)
    assert code(answer) == (401, "unauthorized")
    assert "Images" not in answer.text and TOKEN not in answer.text


def test_token_in_the_address_becomes_a_cookie(locked: TestClient) -> None:
    assert locked.get("/healthz").json() == {"status": "ok"}
    assert locked.get("/api/album", params={"token": TOKEN}).status_code == 401
    assert locked.get("/", params={"token": "wrong"}).status_code == 401
    answer = locked.get("/", params={"q": "a & b", "token": TOKEN, "not": ["c", "d"]})
    assert (answer.status_code, answer.headers["location"]) == (303, "/?q=a+%26+b&not=c&not=d")
    cookie = answer.headers["set-cookie"]
    assert "; HttpOnly; SameSite=Lax; Path=/" in cookie and TOKEN not in cookie
    headers = {"Cookie": cookie.partition(";")[0]}
    locked.cookies.clear()
    assert locked.get("/", headers=headers).status_code == 200
    assert locked.get("/api/album", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("others", ['x={"a":1}', "flag", "a@b=1", "zsq_token_9000=other", ""])
@pytest.mark.parametrize(("host", "name"), [("testserver", "zsq_token"), ("[::1]:8000", "zsq_token_8000")])
def test_cookies_of_other_applications_hide_no_token(
    locked: TestClient, others: str, host: str, name: str
) -> None:
    answer = locked.get("/", params={"token": TOKEN}, headers={"Host": host})
    cookie = answer.headers["set-cookie"].partition(";")[0]
    locked.cookies.clear()
    assert cookie.partition("=")[0] == name
    for cookies in (f"{others}; {cookie}", f"{cookie};{others}"):
        assert locked.get("/api/album", headers={"Host": host, "Cookie": cookies}).status_code == 200


def test_fault_of_the_guard_is_an_error_in_words(shown: Retriever, monkeypatch: pytest.MonkeyPatch) -> None:
    with client(shown) as web:
        monkeypatch.setattr(Guard, "_admit", lambda *_: 1 / 0)
        answer = web.get("/api/album")
    assert code(answer) == (500, "internal")
    assert answer.headers["content-security-policy"] == POLICY


@pytest.mark.parametrize("token", ["", "short", "ü" * 20])
def test_weak_token_is_refused(token: str) -> None:
    with pytest.raises(InvalidInputError, match="16"):
        Settings(token=token)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("testserver", 200), ("TESTSERVER:80", 200), ("127.0.0.1:8000", 200), ("[::1]:8000", 200),
        ("192.168.0.7", 200), ("evil.example", 403), ("testserver.evil.example", 403), ("localhost", 403),
        ("127.0.0.1.evil.example", 403), ("evil@testserver@evil", 403), ("", 403), ("[::1", 403),
    ],
)  # fmt: skip
def test_only_own_names_and_addresses_are_answered(web: TestClient, host: str, status: int) -> None:
    assert web.get("/api/album", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://testserver"}, 200),
        ({"Origin": "http://testserver", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://testserver:81"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_requests_of_other_sites_change_nothing(web: TestClient, headers: Any, status: int) -> None:
    for call in (
        lambda: web.post("/api/search", json=SEARCH, headers=headers),
        lambda: web.post("/api/uploads", files={"file": ("x.png", picture())}, headers=headers),
    ):
        assert call().status_code == status
    assert web.get("/api/album", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/api/album", "/thumb/red.png", "/image/red.png", "/no", "/static/v/app.js"]
)
def test_every_answer_has_the_headers(web: TestClient, path: str) -> None:
    headers = web.get(path).headers
    assert headers["content-security-policy"] == POLICY and "unsafe" not in POLICY
    assert headers["x-content-type-options"] == "nosniff" and "cache-control" in headers
    assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/api/album", "/image/red.png", "/healthz", "/no"])
def test_head_is_get_without_its_body(web: TestClient, path: str) -> None:
    get, head = web.get(path), web.head(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers == get.headers


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/api/album", "GET, HEAD"), ("GET", "/api/search", "POST"), ("HEAD", "/api/search", "POST")],
)
def test_wrong_method_is_told_the_right_one(web: TestClient, method: str, path: str, allowed: str) -> None:
    answer = web.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


def test_page_has_no_inline_script_or_style(web: TestClient) -> None:
    page = web.get("/").text
    assert re.findall(r"<script(?![^>]*\ssrc=)", page) == []
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    for address in re.findall(r"""(?:src|href)="(/static/[^"]+)""", page):
        assert web.get(address).headers["cache-control"].endswith("immutable")


@pytest.mark.parametrize("name", ["../app.py", "..%2fapp.py", "", "no.js", "%00", "/etc/passwd"])
def test_static_files_are_a_fixed_set(web: TestClient, name: str) -> None:
    assert web.get(f"/static/v/{name}").status_code == 404


def test_large_bodies_are_refused_unread(shown: Retriever) -> None:
    def endless() -> Any:
        while True:
            yield b" " * 100_000

    with client(shown, upload_bytes=100_000) as web:
        for path in ("/api/search", "/api/uploads", "/v1/rerank"):
            headers = {"Content-Type": "application/json", "Content-Length": str(10**9)}
            assert code(web.post(path, content=b"{}", headers=headers)) == (413, "too_large")
            headers["Content-Length"] = "-1"
            assert code(web.post(path, content=b"{}", headers=headers)) == (413, "too_large")
    with client(shown) as web:
        answer = web.post("/api/search", content=b" " * 2_000_000, headers={"Transfer-Encoding": "chunked"})
        assert code(answer)[0] in (413, 422)


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 422),
        (b"\xff\xfe", "application/json", 422),
        (b"[" * 100_000, "application/json", 400),
        (b'{"terms": [{"text": "\\ud800"}]}', "application/json", 422),
        (b'{"terms": [{"text": "a", "weight": NaN}]}', "application/json", 422),
        (b'{"terms": [{"text": "a", "weight": 1e999}]}', "application/json", 422),
        (b'{"terms": [{"text": "a\\u0000b"}]}', "application/json", 200),
        (b'{"terms": [{"text": "a"}]}', "text/plain", 422),
        (b"terms=a", "application/x-www-form-urlencoded", 422),
    ],
)
def test_odd_bodies_are_errors_in_words(web: TestClient, content: bytes, kind: str, status: int) -> None:
    answer = web.post("/api/search", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("error", "status", "code_"),
    [
        (AlbumError("/secret/place is locked"), 503, "unavailable"),
        (IntegrityError("/secret/place is damaged"), 503, "unavailable"),
        (PartError("the generator /secret/place"), 503, "unavailable"),
        (RuntimeError("/secret/place"), 500, "internal"),
        (MemoryError(), 500, "internal"),
    ],
)
def test_errors_of_the_server_are_told_to_its_log_alone(
    shown: Retriever, monkeypatch: pytest.MonkeyPatch, caplog: Any, error: Exception, status: int, code_: str
) -> None:
    with client(shown) as web:

        def fail(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(shown, "search", fail)
        monkeypatch.setattr(shown, "browse", fail)
        for answer in (web.post("/api/search", json=SEARCH), web.get("/api/images")):
            assert code(answer) == (status, code_) and "secret" not in answer.text
        assert web.get("/api/album").status_code == 200
    assert type(error).__name__ in caplog.text


def test_requests_are_counted(shown: Retriever) -> None:
    with client(shown) as web:
        web.get("/thumb/red.png")
        web.get("/thumb/none")
        web.get("/a/path?token=x")
        web.post("/api/search", json=SEARCH)
        lines = web.get("/metrics").text.splitlines()
    for line in (
        'zsq_requests_total{route="/thumb/{id:id}",status="200"} 1.0',
        'zsq_requests_total{route="/thumb/{id:id}",status="404"} 1.0',
        'zsq_requests_total{route="other",status="404"} 1.0',
        'zsq_together_sum{lane="generator"} 1.0',
        f"zsq_images {len(shown)}.0",
        "zsq_open_requests 1.0",
    ):
        assert line in lines


def test_too_many_open_requests_get_429_except_of_health_and_an_ending_server_503(shown: Retriever) -> None:
    guard = make_app(shown, Settings(names=frozenset({"testserver"}), connections=1))

    async def ask(path: str) -> list[int]:
        statuses: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        scope: Any = {
            "type": "http", "method": "GET", "path": path, "query_string": b"",
            "headers": [(b"host", b"testserver")],
        }  # fmt: skip

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        guard.open = 1
        await guard(scope, receive, send)
        guard.open, guard.ending = 0, True
        await guard(scope, receive, send)
        return statuses

    with TestClient(guard):
        assert asyncio.run(ask("/metrics")) == [429, 503]
        guard.ending = False
        assert asyncio.run(ask("/healthz")) == [200, 503]
