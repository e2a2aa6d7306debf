"""Serving until a signal: new requests then get 503, and those in flight are answered.

signal --> grace: work goes on --> work fails, which is an answer --> the end
"""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.web.guard import Guard

_QUIET = 0.3  # seconds in which clients of open connections learn that the server ends
_INSIDE = 2.0  # seconds in which the last open connections may still ask
_IDLE = 120  # seconds that a connection stays open; a client may use one that is just being closed
_LAST = 10  # seconds in which requests that get no time any more are told so


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens; an InvalidInputError if the address cannot be used."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.create_server(address[:2], family=family, backlog=512)
        opened.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, True
        )  # else each answer waits 40 ms for an ACK
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidInputError(f"cannot serve at {host}, port {port}: {reason}; choose others") from error
    with opened:
        yield opened


@final
class _Connection(H11Protocol):
    """Closes if the head of a request does not arrive in time, for which uvicorn would wait forever."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._arrived()
        elif self._late is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrived()
        super().connection_lost(exc)

    def _wait(self) -> None:
        guard = self.config.app
        assert isinstance(guard, Guard)
        self._late = self.loop.call_later(guard.served.settings.body_seconds, self.transport.close)

    def _arrived(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


@final
class Server(uvicorn.Server):
    """Uvicorn, which would close its door at once."""

    def __init__(self, guard: Guard) -> None:
        super().__init__(
            uvicorn.Config(
                guard,
                http=_Connection,
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door first, and answer those who are inside, whose requests uvicorn would not read."""
        for door in self.servers:
            door.close()
        until = time.monotonic() + _INSIDE
        while self.server_state.connections and time.monotonic() < until:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

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
