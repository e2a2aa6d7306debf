"""Blocking calls from coroutines."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from zsqretrieval.types import Progress

T = TypeVar("T")


class _StoppedError(Exception):
    """Ends a call whose coroutine was cancelled."""


async def in_thread(call: Callable[..., T], *, progress: Progress | None = None, **arguments: Any) -> T:
    """Run ``call(progress=..., **arguments)`` in a thread.

    When the coroutine is cancelled, the call ends at its next report of progress.
    """
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
