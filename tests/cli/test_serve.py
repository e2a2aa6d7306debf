"""`zsq serve` in a process of its own."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from running import Zsq
from small_sets import write_folder
from zsqretrieval.web.server import Server

SEARCH = {"terms": [{"text": "a red dog"}]}


@pytest.fixture
def served(zsq: Zsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_folder(tmp_path / "pictures")
    assert zsq("index", "pictures", "--out", "album", "--preset", "reading").code == 0
    return "album"


def address_of(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("Serving 6 images at http://"), line
    return line.split()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_signal_under_load_leaves_no_answer_half(
    served: str, process: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    with process("serve", served, "--port", "0") as server, ThreadPoolExecutor(8) as pool:
        address = address_of(server)
        assert httpx2.get(f"{address}thumb/red.png").status_code == 200
        assert (tmp_path / "cache" / "zsqretrieval" / "thumbnails.sqlite").is_file()
        done = []

        def ask(_: int) -> None:
            with httpx2.Client() as client:
                while not done or not done[-1]:
                    with ExitStack() as stack:
                        try:
                            answer = stack.enter_context(
                                client.stream("POST", f"{address}api/search", json=SEARCH, timeout=60)
                            )
                        except (httpx2.ConnectError, httpx2.ReadError, httpx2.RemoteProtocolError):
                            return  # no byte of an answer came: ended before it was connected
                        answer.read()
                    assert answer.status_code in (200, 429, 503)
                    if answer.status_code == 200:
                        assert json.loads(answer.text.splitlines()[-1])["event"] in ("done", "error")

        running = [pool.submit(ask, n) for n in range(8)]
        time.sleep(1)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        for one in running:
            one.result(60)


def test_another_address_needs_the_token_that_is_printed(
    served: str, process: Callable[..., subprocess.Popen[str]]
) -> None:
    with process("serve", served, "--host", "0.0.0.0", "--port", "0", "--no-rerank") as server:
        address, _, token = address_of(server).partition("?token=")
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert len(token) >= 20
        assert httpx2.get(f"{address}api/album").status_code == 401
        with httpx2.Client(follow_redirects=True) as client:
            page = client.get(address, params={"token": token})
            assert page.status_code == 200 and "token" not in str(page.url)
            facts = client.get(f"{address}api/album").json()
        assert (facts["images"], facts["generator"], facts["title"]) == (6, None, "album")
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def test_demo_is_served(zsq: Zsq, monkeypatch: pytest.MonkeyPatch) -> None:
    served = []
    monkeypatch.setattr(Server, "run", lambda self, sockets: served.append(self))
    ran = zsq("demo", "--preset", "reading", "--serve", "--port", "0", "-q", "a cat")
    assert ran.code == 0 and re.search(r"Serving \d+ images at http://127.0.0.1:\d+/\n", ran.stdout)
    assert len(served) == 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["none"], 1, "none"),
        (["album", "--token", "short"], 1, "at least 16"),
        (["album", "--host", "no.such.name.invalid"], 1, "cannot serve at"),
        (["album", "--port", "70000"], 2, "65535"),
    ],
)
def test_wrong_options_are_errors_in_words(
    served: str, zsq: Zsq, options: list[str], code: int, message: str
) -> None:
    ran = zsq("serve", *options)
    assert ran.code == code and message in ran.stderr
