"""Bounded queues of work, whose threads compute requests together.

    request --submit--> waiting (bounded, else BusyError) --thread--> all of equal options --> answers

The event loop only waits. A request that is given up leaves the queue, and work for nobody ends at its next
report of progress. If a call for several requests fails, each is computed alone, and a bad one fails alone.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar, final

from zsqretrieval.web.metrics import Metrics

T = TypeVar("T")

_LONGEST_PAUSE = 60  # seconds that a client is asked to wait


class Report(Protocol):
    """Tells the request of a number, or all, about the work; raises when nobody waits for it any more."""

    def __call__(self, news: Any = None, n: int | None = None) -> None: ...  # noqa: D102


Compute: TypeAlias = Callable[[Any, Sequence[Any], Report], Sequence[Any]]
"""Computes the answers to n items of equal options."""


class BusyError(Exception):
    """A queue is full."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the server is busy; try again in {seconds} s")
        self.seconds = seconds


class EndedError(Exception):
    """The server ends, or nobody waits for the work any more."""


@dataclass(eq=False)
class Job:
    """A request in a lane."""

    compute: Compute
    options: Any
    item: Any
    news: Callable[[Any], object] | None
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
        """Leave the queue, or let the work end at its next report."""
        self.abandoned = True
        self.future.cancel()


@final
class Lane:
    """A queue with its threads.

    Args:
        name: of its metrics and threads.
        metrics: of the server.
        waiting: most requests that wait.
        together: most requests that are computed together.
        threads: number of calls at the same time.
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
        self._threads = [threading.Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(
        self, compute: Compute, item: Any, options: Any = None, news: Callable[[Any], object] | None = None
    ) -> Job:
        """Let ``compute(options, items, report)`` answer an item, with others of equal options.

        Args:
            compute: the work, in a thread of the lane.
            item: of this request.
            options: those of all items.
            news: called in that thread with what the work reports.

        Raises:
            BusyError: too many requests wait.
            EndedError: the server ends.
        """
        job = Job(compute, options, item, news)
        with self._changed:
            if len(self._waiting) >= self._most:  # those that were given up make room
                self._waiting = deque(one for one in self._waiting if not one.abandoned)
            if self._closed:
                raise EndedError
            if len(self._waiting) >= self._most:
                self._metrics.refused.labels(self._name).inc()
                raise BusyError(min(max(math.ceil(self._seconds * self._most), 1), _LONGEST_PAUSE))
            self._waiting.append(job)
            self._changed.notify()
        return job

    async def run(self, compute: Compute, item: Any, options: Any = None) -> Any:
        """Submit an item and wait for its answer."""
        return await self.submit(compute, item, options).result()

    async def alone(self, call: Callable[[Report], T]) -> T:
        """Run a call that is not joined with others."""
        found: T = await self.run(lambda _, __, report: [call(report)], None)
        return found

    def end(self) -> None:
        """Fail all requests: those that wait now, others at their next report."""
        with self._changed:
            self._closed = True
            for job in self._waiting:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(EndedError())
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """End the threads."""
        self.end()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while some := self._next():
            self._metrics.together.labels(self._name).observe(len(some))
            begin = time.perf_counter()
            self._answer(some)
            seconds = time.perf_counter() - begin
            self._seconds += 0.2 * (seconds / len(some) - self._seconds)
            self._metrics.computing.labels(self._name).observe(seconds)

    def _next(self) -> list[Job]:
        """The first waiting job and those like it; none when the lane is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                first, alike, others = self._waiting[0], list[Job](), deque[Job]()
                for job in self._waiting:
                    same = job is first or (job.compute == first.compute and job.options == first.options)
                    (alike if same and len(alike) < self._together else others).append(job)
                self._waiting = others
            if some := [job for job in alike if job.future.set_running_or_notify_cancel()]:
                return some

    def _answer(self, some: Sequence[Job]) -> None:
        def report(news: Any = None, n: int | None = None) -> None:
            if self._closed or all(job.abandoned for job in some):
                raise EndedError
            for job in some if n is None else [some[n]]:
                if job.news is not None and not job.abandoned:
                    job.news(news)

        try:
            answers = some[0].compute(some[0].options, [job.item for job in some], report)
        except Exception as error:
            if len(some) > 1 and not isinstance(error, EndedError):
                for job in some:
                    self._answer([job])
                return
            for job in some:
                job.future.set_exception(error)
        else:
            for job, answer in zip(some, answers, strict=True):
                job.future.set_result(answer)
