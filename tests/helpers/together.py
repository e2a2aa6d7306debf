"""Work in several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def together(*works: Callable[[], object]) -> None:
    """Run each in its own thread, and raise what any of them raised."""
    with ThreadPoolExecutor(len(works)) as pool:
        started = [pool.submit(work) for work in works]
    for one in started:
        one.result()
