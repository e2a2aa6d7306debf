"""A real server: graceful ends, clients that leave, and many clients at once."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from served import listening_at, make_album, picture
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyGenerator
from zsqretrieval.web.server import listening

SEARCH = {"terms": [{"text": "a red bus"}]}


class Waiting(ToyGenerator):
    """Scores when a test lets it; counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on, self.started, self.ended = (threading.Event() for _ in range(3))

    def log_likelihood(self, contexts: Any, continuations: Any, **options: Any) -> Any:
        self.started.set()
        try:
            while not self.go_on.wait(0.01):
                if options.get("progress") is not None:
                    options["progress"]("scoring", 0, len(contexts))
            return super().log_likelihood(contexts, continuations, **options)
        finally:
            self.ended.set()


@pytest.fixture
def slow(tmp_path: Any) -> Any:
    generator = Waiting()
    generator.go_on.set()
    with make_album(tmp_path, generator=generator) as album:
        yield album, generator


def hold(generator: Waiting) -> None:
    for one in (generator.go_on, generator.started, generator.ended):
        one.clear()


def test_requests_in_flight_are_answered_and_new_ones_get_503(slow: Any) -> None:
    album, generator = slow
    with listening_at(album) as (address, server), ThreadPoolExecutor(1) as pool:
        with httpx2.Client(base_url=address) as client:
            assert client.get("/healthz").status_code == 200
            hold(generator)
            running = pool.submit(lambda: httpx2.post(f"{address}/api/search", json=SEARCH, timeout=20))
            assert generator.started.wait(10)
            server.handle_exit(signal.SIGTERM, None)
            for again in (client, httpx2):
                answer = again.get(f"{address}/api/album")
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
                assert answer.headers["connection"] == "close"  # nobody would read another request
                assert answer.json()["error"]["code"] == "unavailable"
            generator.go_on.set()
            last = json.loads(running.result(20).text.splitlines()[-1])
        assert last["event"] == "done" and last["hits"]
        for _ in range(100):
            if server.should_exit:
                break
            time.sleep(0.1)
        assert server.should_exit


@pytest.mark.parametrize(("grace", "signals"), [(0.5, 1), (30.0, 2)])
def test_requests_that_get_no_more_time_are_told_so(slow: Any, grace: float, signals: int) -> None:
    album, generator = slow
    begun = threading.Event()
    with listening_at(album, grace=grace) as (address, server), ThreadPoolExecutor(2) as pool:

        def stream() -> Any:
            with httpx2.stream("POST", f"{address}/api/search", json=SEARCH, timeout=20) as answer:
                lines = []
                for line in answer.iter_lines():
                    begun.set()
                    lines.append(line)
            return json.loads(lines[-1])

        def post() -> Any:
            accept = {"Accept": "application/json"}
            return httpx2.post(f"{address}/api/search", json=SEARCH, headers=accept, timeout=20)

        httpx2.get(f"{address}/healthz")
        hold(generator)
        running = pool.submit(stream), pool.submit(post)
        assert generator.started.wait(10) and begun.wait(10)
        while server._guard.open < len(running):
            time.sleep(0.01)
        for _ in range(signals):
            server.handle_exit(signal.SIGTERM, None)
        last, one = (answer.result(20) for answer in running)
        assert (last["event"], last["error"]["code"]) == ("error", "unavailable")
        assert (one.status_code, one.json()["error"]["code"]) == (503, "unavailable")


@pytest.mark.parametrize("accept", ["application/json", "*/*"])
def test_work_ends_when_the_client_leaves(slow: Any, accept: str) -> None:
    album, generator = slow
    with listening_at(album) as (address, _):
        httpx2.get(f"{address}/healthz")
        hold(generator)
        body = json.dumps(SEARCH).encode()
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                f"POST /api/search HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nContent-Type: "
                f"application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            assert generator.started.wait(10)
        assert generator.ended.wait(10)
        generator.go_on.set()
        assert httpx2.get(f"{address}/api/album").status_code == 200


def test_answers_are_sent_at_once() -> None:
    with listening("127.0.0.1", 0) as door, socket.create_connection(door.getsockname()):
        accepted, _ = door.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_port_in_use_is_an_error_in_words(shown: Retriever) -> None:
    with (
        listening("127.0.0.1", 0) as taken,
        pytest.raises(InvalidInputError, match="in use"),
        listening(*taken.getsockname()),
    ):
        pass
    with pytest.raises(InvalidInputError, match="cannot serve at"), listening("no.such.name.invalid", 0):
        pass


@pytest.mark.parametrize("path", ["/api/search", "/api/uploads", "/v1/embeddings"])
@pytest.mark.parametrize(("ends", "status"), [(False, b"408 "), (True, b"503 ")])
def test_half_a_request_is_answered_in_time(shown: Retriever, path: str, ends: bool, status: bytes) -> None:
    settings: dict[str, Any] = {"grace": 0.3} if ends else {"body_seconds": 0.3}
    with listening_at(shown, large=1, connections=1, **settings) as (address, server):
        assert httpx2.get(f"{address}/healthz").status_code == 200
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            kind = "multipart/form-data; boundary=b" if path == "/api/uploads" else "application/json"
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
            client.sendall(f"{head}Content-Length: 100\r\n\r\n--b\r\n".encode())
            if ends:
                time.sleep(0.2)
                server.handle_exit(signal.SIGTERM, None)
            else:
                assert httpx2.get(f"{address}/healthz").status_code == 200
            answer = b""
            while part := client.recv(65536):  # until the server closes
                answer += part
        assert answer.startswith(b"HTTP/1.1 " + status) and b'{"error":' in answer
        assert ends or httpx2.get(f"{address}/api/album").status_code == 200


@pytest.mark.parametrize("before", ["", "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"])
@pytest.mark.parametrize("half", ["", "GET / HTTP/1.1\r\nHo"])
def test_half_a_head_closes_the_connection_in_time(shown: Retriever, before: str, half: str) -> None:
    with listening_at(shown, body_seconds=0.3) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as client:
            if before:
                client.sendall(before.encode())
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
                half = half or "G"  # without a byte, it is a connection that is kept
            client.sendall(half.encode())
            while client.recv(65536):  # the rest of the first answer; then the server closes
                pass


def test_clients_cannot_name_themselves(shown: Retriever) -> None:
    with listening_at(shown, upload_rate=1) as (address, _):
        statuses = [
            httpx2.post(
                f"{address}/api/uploads",
                files={"file": ("x.png", picture())},
                headers={"X-Forwarded-For": f"10.0.0.{n}"},
            ).status_code
            for n in range(2)
        ]
    assert statuses == [200, 429]


def test_many_clients_lose_nothing(shown: Retriever) -> None:
    questions = [f"a {colour} bus" for colour in ("red", "green", "blue", "white")]
    with (
        listening_at(shown, waiting=16) as (address, _),
        ThreadPoolExecutor(40) as pool,
        httpx2.Client(limits=httpx2.Limits(max_connections=50), timeout=60) as client,
    ):

        def ask(n: int) -> tuple[str, str]:
            body = {"terms": [{"text": questions[n % 4]}], "k": 1}
            while True:
                answer = client.post(
                    f"{address}/api/search", json=body, headers={"Accept": "application/json"}
                )
                if answer.status_code != 429:
                    break
                assert int(answer.headers["retry-after"]) >= 1
                time.sleep(0.1)
            assert answer.status_code == 200, answer.text
            return questions[n % 4], answer.json()["hits"][0]["id"]

        found = set(pool.map(ask, range(160)))
    assert found == {(text, shown.search(text, 1)[0].id) for text in questions}
