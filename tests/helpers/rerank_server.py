"""A re-ranking server on this machine that scores colours, and misbehaves when told to."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image as PILImage

Reply = Callable[["Handler", dict[str, Any]], None]


def uri_of(document: Any) -> str:
    if isinstance(document, str):
        return document
    if "image" in document:
        return document["image"]
    (part,) = document["content"]
    return part["image_url"]["url"]


def relevance(query: str, document: Any) -> float:
    """How much of an image has the colour that the query names."""
    head, _, encoded = uri_of(document).partition(",")
    assert head == "data:image/jpeg;base64"
    pixels = np.asarray(PILImage.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB"), float) / 255
    channel = next((i for i, name in enumerate(("red", "green", "blue")) if name in query), 0)
    return float(pixels[..., channel].mean() - 0.4 * pixels.mean() + 0.01 * len(query))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        server.requests.append((self.path, dict(self.headers), request))
        reply = server.replies.pop(0) if server.replies else server.usual
        try:
            reply(self, request)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def say(self, status: int, body: Any, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"content-type": "application/json", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *words: Any) -> None:
        pass


def results_of(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Best first, as servers answer."""
    scores = [relevance(request["query"], document) for document in request["documents"]]
    order = np.argsort(scores)[::-1].tolist()
    return [{"index": i, "relevance_score": scores[i], "document": {}} for i in order]


def right(handler: Handler, request: dict[str, Any]) -> None:
    handler.say(200, {"id": "x", "results": results_of(request)})


def status(code: int, body: Any = b"{}", **headers: str) -> Reply:
    return lambda handler, request: handler.say(code, body, **headers)


def answer(change: Callable[[list[dict[str, Any]]], Any]) -> Reply:
    """An answer made of the right results."""
    return lambda handler, request: handler.say(200, change(results_of(request)))


def limited(most: int) -> Reply:
    """Refuse more documents than that as too large."""

    def reply(handler: Handler, request: dict[str, Any]) -> None:
        if len(request["documents"]) > most:
            handler.say(413, b"too large")
        else:
            right(handler, request)

    return reply


def hang_up(handler: Handler, request: dict[str, Any]) -> None:
    handler.close_connection = True


def half(handler: Handler, request: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"results": [')
    handler.close_connection = True


def endless(handler: Handler, request: dict[str, Any]) -> None:
    handler.send_response(200)
    handler.send_header("connection", "close")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(10_000):
        handler.wfile.write(b" " * 2**16)


def dripping(handler: Handler, request: dict[str, Any]) -> None:
    """One byte at a time: no step is too slow, but the whole is."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.close_connection = True
    for _ in range(1000):
        handler.wfile.write(b" ")
        time.sleep(0.02)


def silent(handler: Handler, request: dict[str, Any]) -> None:
    time.sleep(1)
    handler.close_connection = True


@contextmanager
def serving(usual: Reply = right) -> Iterator[Any]:
    """A server with ``url``, ``requests`` that it got, and ``replies`` that come before the usual one."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    server.requests, server.replies, server.usual = [], [], usual
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
