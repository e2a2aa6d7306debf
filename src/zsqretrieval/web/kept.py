"""Things that clients refer to by an unguessable id: bounded in number, and dropped after a while."""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Kept(Generic[T]):
    """Values by id; at most ``most``, each for ``seconds`` after its last use. The oldest leave first."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._values: OrderedDict[str, tuple[float, T]] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()

    def put(self, value: T, id: str | None = None) -> str:
        """Keep a value under an id, by default a new one; returns the id."""
        id = id or secrets.token_urlsafe(16)
        with self._lock:
            self._values[id] = time.monotonic(), value
            self._values.move_to_end(id)
            self._drop()
        return id

    def get(self, id: str) -> T | None:
        """The value of an id, or None."""
        with self._lock:
            self._drop()
            if id not in self._values:
                return None
            _, value = self._values[id]
            self._values[id] = time.monotonic(), value
            self._values.move_to_end(id)
            return value

    def pop(self, id: str) -> T | None:
        """Forget a value and return it; None if there is none."""
        with self._lock:
            return self._values.pop(id, (0.0, None))[1]

    def _drop(self) -> None:
        oldest = time.monotonic() - self._seconds
        while self._values and (
            len(self._values) > self._most or next(iter(self._values.values()))[0] < oldest
        ):
            self._values.popitem(last=False)
