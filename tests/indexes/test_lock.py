"""The lock of the indexes: order of arrival, and waiting threads that are interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from zsqretrieval.indexes.lock import SharedLock

SOON = 10.0  # seconds; far more than any wait takes


class Interruptible(threading.Condition):
    """A condition whose wait raises KeyboardInterrupt in one thread, without a notice to the others."""

    def __init__(self) -> None:
        super().__init__()
        self.struck = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread().name != "interrupted":
            return super().wait(timeout)
        while not self.struck.is_set():
            super().wait(0.01)
        raise KeyboardInterrupt


def started(work: Callable[[], object], name: str | None = None) -> threading.Thread:
    thread = threading.Thread(target=work, name=name, daemon=True)
    thread.start()
    return thread


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("exclusive", [True, False])
def test_interrupted_waiter_lets_the_next_one_in(exclusive: bool) -> None:
    lock, condition = SharedLock(), Interruptible()
    lock._changed = condition
    entered = threading.Event()

    def gives_up() -> None:
        with pytest.raises(KeyboardInterrupt), lock.exclusive() if exclusive else lock.shared():
            pass

    def reads() -> None:
        with lock.shared():
            entered.set()

    waiting = []
    # A writer waits for a reader; the reader behind the writer may enter as soon as the writer gives up.
    with lock.shared() if exclusive else lock.exclusive():
        waiting.append(started(gives_up, "interrupted"))
        until(lambda: len(lock._queue) == 1)
        waiting.append(started(reads))
        until(lambda: len(lock._queue) == 2)
        condition.struck.set()
        waiting[0].join(SOON)
        assert entered.wait(SOON if exclusive else 0.05) == exclusive
    for thread in waiting:
        thread.join(SOON)
        assert not thread.is_alive()
    assert entered.is_set() and not lock._queue
    done = started(lambda: lock.exclusive().__enter__())
    done.join(SOON)
    assert not done.is_alive(), "the lock is free"


def test_readers_share_and_do_not_overtake_a_writer() -> None:
    lock, order = SharedLock(), list[str]()

    def writes() -> None:
        with lock.exclusive():
            order.append("writes")

    def reads() -> None:
        with lock.shared():
            order.append("reads")

    with lock.shared():
        with lock.shared():
            writer = started(writes)
            until(lambda: len(lock._queue) == 1)
            reader = started(reads)
            until(lambda: len(lock._queue) == 2)
        assert order == []
    for thread in (writer, reader):
        thread.join(SOON)
    assert order == ["writes", "reads"]
