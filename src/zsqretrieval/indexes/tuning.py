"""The settings of a compressed search that reach a recall in the least time, found by measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.types import Neighbors

_REFINES = (2, 4, 8, 16)
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Measured:
    """Settings of a compressed index, and what they reach.

    Attributes:
        reduced: components of a code.
        probe: lists per query.
        refine: candidates per result.
        recall: share of the true k nearest that is found, mean over the queries.
        seconds: processor time of a query in a batch, median of three rounds.
    """

    reduced: int
    probe: int
    refine: int
    recall: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Tuning:
    """What :meth:`~zsqretrieval.indexes.compressed.CompressedIndex.tune` measured.

    Attributes:
        chosen: the settings that the index has now; None where it compares all vectors, since they are few.
        curve: the fastest settings for every recall that was met on the way, by rising recall.
        exact_seconds: processor time of a query that is compared with all vectors.
        reached: whether ``chosen`` has the recall that was asked for.
    """

    chosen: Measured | None
    curve: tuple[Measured, ...]
    exact_seconds: float
    reached: bool


class Tunable(Protocol):
    """A compressed index with trained lists."""

    probe: int
    refine: int

    @property
    def width(self) -> int: ...  # noqa: D102

    @property
    def list_count(self) -> int: ...  # noqa: D102

    def search(self, vectors: NDArray[np.float32], k: int) -> Neighbors: ...  # noqa: D102


def measure(
    index: Tunable, queries: NDArray[np.float32], truth: NDArray[np.int64], recall: float
) -> tuple[list[Measured], Measured]:
    """Measure an index with the fewest lists that reach a recall, for several numbers of candidates.

    Args:
        index: its ``probe`` and ``refine`` are changed.
        queries: float32 [q, dim].
        truth: the true nearest keys, int64 [q, k].
        recall: that is to be reached.

    Returns:
        All that was measured, and the fastest with that recall; without any, the one with the highest.
    """
    met: dict[tuple[int, int], Measured] = {}

    def at(probe: int, refine: int, rounds: int = 1) -> Measured:
        if (probe, refine) not in met or rounds > 1:
            index.probe, index.refine = probe, refine
            found, seconds = timed(lambda: index.search(queries, truth.shape[1]).keys, rounds)
            met[probe, refine] = Measured(index.width, probe, refine, recall_of(found, truth), seconds)
        return met[probe, refine]

    enough = []
    for refine in _REFINES:
        low, high = 1, 2
        while high < index.list_count and at(high, refine).recall < recall:
            low, high = high, min(2 * high, index.list_count)
        while high - low > 1 + low // 16:
            middle = (low + high) // 2
            low, high = (low, middle) if at(middle, refine).recall >= recall else (middle, high)
        last = at(high, refine, _ROUNDS)
        if last.recall >= recall:
            enough.append(last)
    everything = list(met.values())
    best = min(enough, key=lambda one: one.seconds) if enough else max(everything, key=lambda one: one.recall)
    return everything, best


def fastest(measured: Iterable[Measured]) -> tuple[Measured, ...]:
    """Those that no other one surpasses in recall and in time, by rising recall."""
    kept: list[Measured] = []
    for one in sorted(measured, key=lambda one: (-one.recall, one.seconds)):
        if not kept or one.seconds < kept[-1].seconds:
            kept.append(one)
    return tuple(reversed(kept))


def recall_of(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Share of the keys [q, k] of ``truth`` that are in the same row of ``found``; -1 is no key."""
    hits = (truth[:, :, None] == found[:, None, :]).any(axis=2) & (truth >= 0)
    return float(hits.sum() / (truth >= 0).sum())


def timed(search: Callable[[], NDArray[np.int64]], rounds: int = 1) -> tuple[NDArray[np.int64], float]:
    """The answer to q queries, and the processor time of one, median of the rounds."""
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        found = search()
        seconds.append(time.process_time() - begin)
    return found, statistics.median(seconds) / max(len(found), 1)
