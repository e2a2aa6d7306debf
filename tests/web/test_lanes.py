"""Lanes: joined, bounded, and nobody's request is lost or answered with another's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zsqretrieval.web.lanes import BusyError, EndedError, Lane
from zsqretrieval.web.metrics import Metrics


@pytest.fixture
def lane() -> Iterator[Lane]:
    made = Lane("test", Metrics(), waiting=8, together=4)
    yield made
    made.close()


class Blocked:
    """Work that a test lets go on, which keeps the lane busy; counts the calls of others."""

    def __init__(self, lane: Lane) -> None:
        self.started, self.go_on, self.calls = threading.Event(), threading.Event(), list[Any]()
        self.job = lane.submit(self._block, "blocked")
        assert self.started.wait(10)

    def _block(self, _: Any, items: Any, report: Any) -> Any:
        self.started.set()
        assert self.go_on.wait(10)
        return items

    def count(self, options: Any, items: list[Any], report: Any) -> list[Any]:
        self.calls.append((options, items))
        return [(options, item) for item in items]


def test_requests_of_equal_options_are_computed_together(lane: Lane) -> None:
    blocked = Blocked(lane)
    jobs = [lane.submit(blocked.count, n, "ab"[n % 2]) for n in range(7)]
    blocked.go_on.set()
    assert [job.future.result(10) for job in jobs] == [("ab"[n % 2], n) for n in range(7)]
    assert blocked.calls == [("a", [0, 2, 4, 6]), ("b", [1, 3, 5])]


def test_full_queue_is_refused_until_somebody_gives_up(lane: Lane) -> None:
    blocked = Blocked(lane)
    jobs = [lane.submit(blocked.count, n) for n in range(8)]
    with pytest.raises(BusyError) as error:
        lane.submit(blocked.count, 8)
    assert error.value.seconds >= 1
    jobs[3].give_up()
    jobs.append(lane.submit(blocked.count, 8))
    blocked.go_on.set()
    assert [job.future.result(10)[1] for n, job in enumerate(jobs) if n != 3] == [0, 1, 2, 4, 5, 6, 7, 8]
    assert all(3 not in items for _, items in blocked.calls)


def test_bad_request_fails_alone(lane: Lane) -> None:
    def inverse(_: Any, items: list[float], report: Any) -> list[float]:
        return [1 / item for item in items]

    blocked = Blocked(lane)
    jobs = [lane.submit(inverse, item) for item in (1, 0, 4)]
    blocked.go_on.set()
    assert (jobs[0].future.result(10), jobs[2].future.result(10)) == (1, 0.25)
    with pytest.raises(ZeroDivisionError):
        jobs[1].future.result(10)


def test_work_ends_when_nobody_waits_for_it(lane: Lane) -> None:
    ended, reported = threading.Event(), threading.Event()

    def endless(_: Any, items: Any, report: Callable[..., None]) -> Any:
        try:
            while True:
                report("still there")
        finally:
            ended.set()

    async def leave() -> None:
        job = lane.submit(endless, 1, news=lambda _: reported.set())
        task = asyncio.create_task(job.result())
        await asyncio.to_thread(reported.wait, 10)
        task.cancel()

    asyncio.run(leave())
    assert ended.wait(10)


def test_news_reach_the_request_that_they_are_about(lane: Lane) -> None:
    heard: dict[int, list[Any]] = {n: [] for n in range(3)}

    def work(_: Any, items: list[int], report: Callable[..., None]) -> list[int]:
        report("all")
        for n, item in enumerate(items):
            report(item, n)
        return items

    blocked = Blocked(lane)
    jobs = [lane.submit(work, n, news=heard[n].append) for n in heard]
    blocked.go_on.set()
    assert [job.future.result(10) for job in jobs] == [0, 1, 2]
    assert heard == {n: ["all", n] for n in range(3)}


def test_ended_lane_fails_what_waits_and_refuses_what_comes() -> None:
    lane = Lane("test", Metrics(), waiting=8)
    blocked = Blocked(lane)
    waiting = lane.submit(blocked.count, 1)
    lane.end()
    assert isinstance(waiting.future.exception(10), EndedError)
    with pytest.raises(EndedError):
        lane.submit(blocked.count, 2)
    blocked.go_on.set()
    lane.close()
    assert blocked.job.future.result(10) == "blocked" and blocked.calls == []


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 9), st.booleans()), max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_every_request_gets_its_own_answer(
    requests: list[tuple[str, int, bool]], together: int, threads: int
) -> None:
    def work(options: str, items: list[int], report: Any) -> list[tuple[str, int]]:
        assert 1 <= len(items) <= together
        if min(items) < 0:
            raise ValueError(items)
        return [(options, item) for item in items]

    lane = Lane("test", Metrics(), waiting=40, together=together, threads=threads)
    jobs = [lane.submit(work, item, options) for options, item, _ in requests]
    for job, (_, _, stays) in zip(jobs, requests, strict=True):
        if not stays:
            job.give_up()
    for job, (options, item, stays) in zip(jobs, requests, strict=True):
        if stays and item >= 0:
            assert job.future.result(10) == (options, item)
        elif stays:
            assert isinstance(job.future.exception(10), ValueError)
    lane.close()
