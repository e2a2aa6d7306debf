"""What is checked before a route sees a request, and the headers of every answer.

name of the host --> ending? --> token --> origin --> size, number --> route --> headers, metrics
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsqretrieval.web.failures import Refused, body, ending, problem
from zsqretrieval.web.state import State

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_OPEN = "/healthz"  # needs no token, and is always answered
_LARGE = frozenset({"/api/uploads", "/v1/rerank", "/v1/embeddings"})  # bring images
_BODY = 2**20  # bytes of any other request
_SLOWEST = 100_000  # bytes per second of a body that gets more time


@final
class Guard:
    """The outermost application.

    Attributes:
        served: what the application shares.
        ending: whether new requests get 503.
        open: requests that are being answered.
    """

    def __init__(self, app: ASGIApp, served: State) -> None:
        self._app, self.served = app, served
        self._settings, self._metrics = served.settings, served.metrics
        self.ending, self.open, self._large = False, 0, 0
        self._coming: set[asyncio.Future[Message]] = set()  # parts of bodies
        self._metrics.open.set_function(lambda: self.open)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        head, scope = scope["method"] == "HEAD", {**scope}
        if head:
            scope["method"] = "GET"
        status, begin = 0, time.perf_counter()  # no status yet

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status, headers = message["status"], MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                # After 408 the rest of the body would be the next request; at the end, nobody would read one.
                if status == 408 or self.ending:
                    headers["Connection"] = "close"
                if headers.get("Allow") == "GET":
                    headers["Allow"] = "GET, HEAD"
            elif head:
                message = {**message, "body": b""}
            await send(message)

        self.open += 1
        try:
            if self.ending:
                await self._drain(receive)
            if (address := self._admit(scope)) is not None:
                name, value = _cookie(Headers(scope=scope)), quote(str(self._settings.token))
                cookie = f"{name}={value}; HttpOnly; SameSite=Lax; Path=/"
                await _send(sending, 303, b"", {"Location": address, "Set-Cookie": cookie})
            else:
                with self._room(scope["path"]):
                    await self._app(scope, self._limited(receive, self._limit(scope)), sending)
        except Exception as error:
            if status:  # the application has answered, or the client has gone
                raise
            refused = problem(error, self.served.album_path)
            headers = {"Content-Type": "application/json", **(refused.headers or {})}
            await _send(sending, refused.status_code, json.dumps(body(refused)).encode(), headers)
        finally:
            self.open -= 1
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status or 500).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - begin)

    def _admit(self, scope: Scope) -> str | None:
        """Check a request; the address to go to if it brings the token in its own."""
        headers, reading = Headers(scope=scope), scope["method"] == "GET"
        host = headers.get("host", "").lower()
        if not self._is_known(host):
            raise Refused(403, "this server is not known by that name; use its address, or --allow-host NAME")
        if self.ending:
            raise ending()
        token = self._settings.token
        if token is not None and scope["path"] != _OPEN:
            pairs = parse_qsl(scope["query_string"].decode("latin-1"))
            if reading and scope["path"] == "/" and _equal(dict(pairs).get("token", ""), token):
                others = [(name, value) for name, value in pairs if name != "token"]
                return f"/?{urlencode(others)}" if others else "/"
            if not _equal(_token_of(headers), token):
                raise Refused(401, "open the address that `zsq serve` printed, or send its token as a Bearer")
        if not reading:
            origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
            if site not in ("same-origin", "none") or (origin and origin.lower().partition("//")[2] != host):
                raise Refused(403, "requests from other sites are refused")
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a Host header is an address, which no name of another site can be, or an allowed name."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self._settings.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    @contextmanager
    def _room(self, path: str) -> Iterator[None]:
        """Count a request; an error if there are too many."""
        large = path in _LARGE
        full = self.open > self._settings.connections and path != _OPEN
        if full or (large and self._large >= self._settings.large):
            raise Refused(429, "the server is busy; try again in a second", "busy", seconds=1)
        self._large += large
        try:
            yield
        finally:
            self._large -= large

    def _limit(self, scope: Scope) -> int:
        """Size limit of a body; an error if the request says that it is larger."""
        limit = _BODY + 2 * self._settings.upload_bytes * (scope["path"] in _LARGE)
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise _too_large(limit)
        return limit

    def _limited(self, receive: Receive, limit: int) -> Receive:
        """Receive a body of at most ``limit`` bytes in limited time."""
        size, more, due = 0, True, time.monotonic() + self._settings.body_seconds

        async def receiving() -> Message:
            nonlocal size, more
            if not more:  # only whether the client leaves
                return await receive()
            part = asyncio.ensure_future(receive())
            self._coming.add(part)
            try:
                await asyncio.wait([part], timeout=due + size / _SLOWEST - time.monotonic())
                if part.cancelled():
                    raise ending()
                if not part.done():
                    raise Refused(408, "the request did not arrive in time; send it again")
                message = part.result()
            finally:
                self._coming.discard(part)
                part.cancel()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            if size > limit:
                raise _too_large(limit)
            return message

        return receiving

    async def _drain(self, receive: Receive) -> None:
        """Read a request whose connection will be closed: unread bytes would take the answer along."""
        receiving = self._limited(receive, _BODY)
        with suppress(Refused):
            while (await receiving()).get("more_body"):
                pass

    def end(self) -> None:
        """Answer requests that have not arrived with 503."""
        for part in self._coming:
            part.cancel()


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request is too large: the limit is {limit} bytes")


def _token_of(headers: Headers) -> str:
    """The token of a request, or an empty text."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    for pair in headers.get("cookie", "").split(";"):  # others may be of other applications, and odd
        name, _, value = pair.strip().partition("=")
        if name == _cookie(headers):
            return unquote(value)
    return ""


def _cookie(headers: Headers) -> str:
    """The name of the cookie, with the port, since browsers send one host's cookies to all of its ports."""
    port = re.search(r":(\d{1,5})$", headers.get("host", ""))
    return f"zsq_token_{port[1]}" if port else "zsq_token"


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


async def _send(send: Send, status: int, content: bytes, headers: Mapping[str, str]) -> None:
    lines = {**headers, "Content-Length": str(len(content))}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
