"""Bounded queues of work whose threads compute waiting requests together.

    request --submit--> waiting (bounded, else BusyError) --thread--> those alike, in one call --> their answers

The event loop only waits. A request that is given up leaves the queue; work for nobody ends at its next report
of progress. If a call for several requests fails, each is computed by itself, so that a bad one fails alone.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias, final

from zsqretrieval.web.metrics import Metrics

Report: TypeAlias = Callable[[int, Any], None]
"""Called with the number of a request and news of its work; raises when nobody waits any more."""

Compute: TypeAlias = Callable[[Any, Sequence[Any], Report], Sequence[Any]]
"""Computes the answers for n items of equal options."""

_LONGEST_PAUSE = 60  # seconds that a client is asked to wait


class BusyError(Exception):
    """A queue is full."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {seconds} s")
        self.seconds = seconds


class _AbandonedError(Exception):
    """Nobody waits for the work any more."""


@dataclass(eq=False)
class Job:
    """A request in a lane."""

    compute: Compute
    options: Hashable
    item: Any
    report: Callable[[Any], None] | None
    future: Future[Any] = field(default_factory=Future)
    abandoned: bool = False

    async def result(self) -> Any:
        """Wait for the answer; a cancelled wait gives the work up."""
        try:
            return await asyncio.wrap_future(self.future)
        except asyncio.CancelledError:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Leave the queue, or tell the work that nobody waits for it."""
        self.abandoned = True
        self.future.cancel()


@final
class Lane:
    """A queue with its threads.

    Args:
        name: of its metrics and threads.
        metrics: of the server.
        waiting: most requests that wait.
        together: most requests of equal options that are computed together.
        threads: calls at the same time.
    """

    def __init__(
        self, name: str, metrics: Metrics, *, waiting: int, together: int = 1, threads: int = 1
    ) -> None:
        self._name, self._metrics = name, metrics
        self._most, self._together = waiting, together
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._seconds = 0.1  # per request, a moving average
        metrics.waiting.labels(name).set_function(lambda: len(self._waiting))
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{n}", daemon=True) for n in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        compute: Compute,
        item: Any,
        options: Hashable = None,
        report: Callable[[Any], None] | None = None,
    ) -> Job:
        """Let ``compute(options, items, report)`` answer an item, together with others of equal options.

        Raises:
            BusyError: too many requests wait.
        """
        job = Job(compute, options, item, report)
        with self._changed:
            if len(self._waiting) >= self._most:  # those that were given up make room
                self._waiting = deque(one for one in self._waiting if not one.future.cancelled())
            if len(self._waiting) >= self._most:
                self._metrics.refused.labels(self._name).inc()
                raise BusyError(min(max(math.ceil(self._seconds * self._most), 1), _LONGEST_PAUSE))
            self._waiting.append(job)
            self._changed.notify()
        return job

    async def run(self, compute: Compute, item: Any, options: Hashable = None) -> Any:
        """Submit an item and wait for its answer."""
        return await self.submit(compute, item, options).result()

    def close(self) -> None:
        """End the threads; requests that still wait are cancelled."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                job.future.cancel()
            self._waiting.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while some := self._next():
            begin = time.perf_counter()
            self._answer(some)
            seconds = time.perf_counter() - begin
            self._seconds += 0.2 * (seconds / len(some) - self._seconds)
            self._metrics.together.labels(self._name).observe(len(some))
            self._metrics.computing.labels(self._name).observe(seconds)

    def _next(self) -> list[Job]:
        """The first waiting job and those like it; none when the lane is closed."""
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return []
                first = self._waiting[0]
                alike = [
                    one
                    for one in self._waiting
                    if (one.compute, one.options) == (first.compute, first.options)
                ][: self._together]
                chosen = set(map(id, alike))
                self._waiting = deque(one for one in self._waiting if id(one) not in chosen)
            if some := [one for one in alike if one.future.set_running_or_notify_cancel()]:
                return some

    def _answer(self, some: Sequence[Job]) -> None:
        def report(n: int, news: Any) -> None:
            if self._closed or all(job.abandoned for job in some):
                raise _AbandonedError
            for job in some if n < 0 else [some[n]]:
                if job.report is not None and not job.abandoned:
                    job.report(news)

        try:
            answers = some[0].compute(some[0].options, [job.item for job in some], report)
        except Exception as error:
            if len(some) == 1 or isinstance(error, _AbandonedError):
                for job in some:
                    job.future.set_exception(error)
                return
            for job in some:
                if not job.abandoned:
                    self._answer([job])
            return
        for job, answer in zip(some, answers, strict=True):
            job.future.set_result(answer)
