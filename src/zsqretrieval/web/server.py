"""Serving until a signal: new requests then get 503, and those in flight are answered.

signal --> grace: work goes on --> work fails, which is an answer --> the end
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

import uvicorn

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.web.guard import Guard

_QUIET = 0.3  # seconds in which clients of open connections learn that the server ends
_IDLE = 120  # seconds that a connection stays open; a client may use one that is just being closed
_LAST = 10  # seconds in which requests that get no time any more are told so


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; an InvalidInputError if the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.create_server(address[:2], family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"cannot serve at {host}, port {port}: {reason}; choose others") from error
    with opened:
        yield opened


@final
class Server(uvicorn.Server):
    """Uvicorn, which would close its door at once."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(
            uvicorn.Config(
                guard,
                log_level="warning",
                server_header=False,
                proxy_headers=False,  # any client could send them, and so be another one
                timeout_graceful_shutdown=_LAST,
                timeout_keep_alive=_IDLE,
            )
        )
        self._guard, self._since = guard, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End when the requests in flight are answered; at the second signal, without them."""
        if not self._guard.ending:
            self._guard.ending, self._since = True, time.monotonic()
        else:
            self._since = -math.inf

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        if self._guard.ending:
            waited = time.monotonic() - self._since
            left = waited - self._guard.served.settings.grace
            if left > 0:
                for lane in self._guard.served.lanes:
                    lane.end()
                self._guard.end()
            self.should_exit = left > _LAST or (waited > _QUIET and not self._guard.open)
        return await super().on_tick(counter)
