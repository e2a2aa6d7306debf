"""Everything that is checked before a route sees a request, and the headers of every answer.

host --> token --> origin --> ending? --> size of the body --> route --> headers, metrics
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from http.cookies import CookieError, SimpleCookie
from typing import Any, final
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zsqretrieval.web.failures import Refused, body
from zsqretrieval.web.metrics import Metrics
from zsqretrieval.web.settings import Settings

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
}
_SAFE = frozenset({"GET", "HEAD"})
_OPEN = "/healthz"  # needs no token
_COOKIE = "zsq_token"
_LARGE = {"/api/uploads": 1, "/v1/rerank": 4, "/v1/embeddings": 4}  # in uploads


@final
class Guard:
    """The outermost application; counts requests in flight.

    Attributes:
        ending: whether new requests get 503.
        open: requests that are being answered.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self.ending, self.open = False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begin = 500, time.perf_counter()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        self.open += 1
        self._metrics.open.set(self.open)
        try:
            redirect = self._admitted(scope)
            if redirect is not None:
                await _redirect(sending, redirect, str(self._settings.token))
            else:
                await self._app(scope, _limited(receive, self._limit(scope)), sending)
        except Refused as refused:
            await _refuse(sending, refused)
        finally:
            self.open -= 1
            self._metrics.open.set(self.open)
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - begin)

    def _admitted(self, scope: Scope) -> str | None:
        """Check a request; an address to go to if it brings the token in its own."""
        headers, path = Headers(scope=scope), scope["path"]
        host = headers.get("host", "")
        if not self._is_known(host):
            raise Refused(403, "this server is not known by that name; use its address, or --allow-host NAME")
        if self.ending:
            raise Refused(503, "the server is ending; try again later", seconds=5)
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        token = self._settings.token
        if token is not None and path != _OPEN:
            if scope["method"] in _SAFE and path == "/" and _equal(query.pop("token", ""), token):
                return "/" + (f"?{urlencode(query)}" if query else "")
            if not _equal(_given(headers), token):
                raise Refused(401, "open the address that `zsq serve` printed, or send its token as a Bearer")
        if scope["method"] not in _SAFE:
            origin = headers.get("origin")
            cross = headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
            if cross or (origin is not None and urlsplit(origin).netloc != host):
                raise Refused(403, "requests of other sites are refused")
        return None

    def _is_known(self, host: str) -> bool:
        """Whether a Host header is an address, which no other site can have, or one of the allowed names."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._settings.names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def _limit(self, scope: Scope) -> int:
        """Size limit of a body; an error if the request says that it is larger."""
        limit = _LARGE.get(scope["path"], 0) * self._settings.upload_bytes + self._settings.body_bytes
        length = Headers(scope=scope).get("content-length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise _too_large(limit)
        return limit


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request is too large: the limit is {limit} bytes")


def _limited(receive: Receive, limit: int) -> Receive:
    """Receive a body of at most ``limit`` bytes."""
    size = 0

    async def receiving() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _too_large(limit)
        return message

    return receiving


def _given(headers: Headers) -> str:
    """The token of a request, or an empty text."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _equal(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


async def _redirect(send: Send, address: str, token: str) -> None:
    cookie = f"{_COOKIE}={quote(token)}; HttpOnly; SameSite=Strict; Path=/"
    await _send(send, 303, b"", {"Location": address, "Set-Cookie": cookie})


async def _refuse(send: Send, refused: Refused) -> None:
    content = json.dumps(body(refused)).encode()
    await _send(
        send, refused.status_code, content, {"Content-Type": "application/json", **(refused.headers or {})}
    )


async def _send(send: Send, status: int, content: bytes, headers: dict[str, Any]) -> None:
    lines = {**headers, "Content-Length": str(len(content))}
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in lines.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
