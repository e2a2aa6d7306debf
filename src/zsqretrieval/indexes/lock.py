"""A readers-writer lock that serves in order of arrival."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from zsqretrieval._util.processes import renew_in_forks


class SharedLock:
    """Many readers or one writer, first come first served, so neither side starves the other.

    A long write in pieces, each with its own hold of the lock, lets waiting readers in between. Not
    reentrant.
    """

    def __init__(self) -> None:
        self.renew()
        renew_in_forks(self)

    def renew(self) -> None:
        """Forget all holders, in a forked process."""
        self._changed = threading.Condition()
        self._queue: deque[object] = deque()
        self._readers = 0
        self._writing = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock as one of several readers."""
        self._enter(exclusive=False)
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock as the only writer."""
        self._enter(exclusive=True)
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._changed.notify_all()

    def _enter(self, *, exclusive: bool) -> None:
        ticket = object()
        with self._changed:
            self._queue.append(ticket)
            try:
                while self._queue[0] is not ticket or self._writing or (exclusive and self._readers):
                    self._changed.wait()
                if exclusive:
                    self._writing = True
                else:
                    self._readers += 1
            finally:
                self._queue.remove(ticket)
                self._changed.notify_all()  # the next in the queue may be a reader that can enter now
