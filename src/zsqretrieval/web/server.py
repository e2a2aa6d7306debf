"""Serving until a signal: new requests then get 503, and those in flight are answered."""

from __future__ import annotations

import signal
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

    def __init__(self, guard: Guard, grace: float) -> None:
        config = uvicorn.Config(
            guard, log_level="warning", server_header=False, timeout_graceful_shutdown=max(int(grace), 1)
        )
        super().__init__(config)
        self._guard, self._grace, self._ending = guard, grace, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End after the requests in flight; at the second signal, now."""
        if self._guard.ending or sig not in (signal.SIGINT, signal.SIGTERM):
            super().handle_exit(sig, frame)
        else:
            self._guard.ending, self._ending = True, time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Whether to end; asked ten times a second."""
        if self._guard.ending:
            waited = time.monotonic() - self._ending
            if waited > self._grace or (waited > _QUIET and not self._guard.open):
                self.should_exit = True
        return await super().on_tick(counter)
