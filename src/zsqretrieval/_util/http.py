"""HTTP requests with limits on time and size."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from zsqretrieval._util.optional import import_optional


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a server."""

    status: int
    headers: Mapping[str, str]  # names in any case
    body: bytes


class AnswerTooLargeError(ValueError):
    """A body is larger than its limit, or compressed, so that its size is unknown."""


def import_httpx(needed_for: str) -> Any:
    """The package httpx2, which huggingface_hub brings along since its version 2."""
    return import_optional("httpx2", needed_for, "pip install 'zsqretrieval[http]'")


def open_client(needed_for: str, headers: Mapping[str, str]) -> Any:
    """A client of httpx2, to be closed, that sends these headers."""
    httpx = import_httpx(needed_for)
    return httpx.Client(headers=headers, verify=_certificates(httpx))


@cache
def _certificates(httpx: Any) -> Any:
    """Those that the computer trusts; loading them takes longer than most requests."""
    return httpx.create_ssl_context()


def exchange(
    client: Any, method: str, url: str, *, timeout: float, deadline: float, limit: int, **request: Any
) -> Answer:
    """Send a request and receive the whole answer, compressed or redirected ones excluded.

    Args:
        client: of httpx2.
        method: such as ``"POST"``.
        url: where to.
        timeout: seconds for each step: to connect, to send, and to wait for more.
        deadline: of the whole exchange, as ``time.monotonic()`` counts.
        limit: of the body, in bytes.
        request: arguments of ``client.stream``, such as ``json``.

    Raises:
        TimeoutError: the deadline has passed.
        AnswerTooLargeError: the body is larger than the limit, or compressed.
        httpx2.TransportError: the server cannot be reached, or does not speak HTTP.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    with client.stream(method, url, timeout=min(timeout, left), **request) as response:
        if response.headers.get("content-encoding", "identity") != "identity":
            raise AnswerTooLargeError("it is compressed, although it was asked not to be")
        body = bytearray()
        for chunk in response.iter_raw():  # as it comes: a server may send one byte at a time
            body += chunk
            if len(body) > limit:
                raise AnswerTooLargeError(f"it has more than {limit} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError
        return Answer(response.status_code, response.headers, bytes(body))
