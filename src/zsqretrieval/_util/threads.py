"""Blocking calls from coroutines, and work ahead of its use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from zsqretrieval.types import Progress

T = TypeVar("T")

_END = object()


class _StoppedError(Exception):
    """Ends a call whose coroutine was cancelled."""


async def in_thread(call: Callable[..., T], *, progress: Progress | None = None, **arguments: Any) -> T:
    """Run ``call(progress=..., **arguments)`` in a thread.

    When the coroutine is cancelled, the call ends at its next report of progress.
    """
    import asyncio  # slow to import, and a search does without

    cancelled = threading.Event()

    def report(step: str, done: int, total: int | None) -> None:
        if cancelled.is_set():
            raise _StoppedError
        if progress is not None:
            progress(step, done, total)

    try:
        return await asyncio.to_thread(call, progress=report, **arguments)
    except asyncio.CancelledError:
        cancelled.set()
        raise


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """The items of an iterator; a thread computes the next one while the caller uses this one."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        pending = pool.submit(next, items, _END)
        while (item := pending.result()) is not _END:
            pending = pool.submit(next, items, _END)
            yield cast(T, item)
