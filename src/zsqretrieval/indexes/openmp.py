"""The threads of faiss, which are OpenMP's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import faiss

from zsqretrieval._util.processes import is_forked


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let faiss use so many threads in the block, for calls from this thread.

    In a forked process it uses one: OpenMP would wait for the threads of the parent.
    """
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1 if is_forked() else count)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
