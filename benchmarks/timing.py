"""Time of a call."""

from __future__ import annotations

import time
from collections.abc import Callable


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and CPU seconds of all threads, of a call."""
    begin, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begin, time.process_time() - cpu
