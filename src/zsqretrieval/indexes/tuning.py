"""The settings of a compressed search that reach a recall in the least time, found by measuring."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_REFINES = (2, 3, 4, 6, 8, 16)
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


def measure(
    search: Callable[[int, int], NDArray[np.int64]],
    reduced: int,
    lists: int,
    truth: NDArray[np.int64],
    recall: float,
) -> tuple[list[Measured], Measured]:
    """Measure a search with the fewest lists that reach a recall, for several numbers of candidates.

    Args:
        search: keys [q, k] found with ``probe`` and ``refine``.
        reduced: components of its codes.
        lists: number of its lists.
        truth: the true nearest keys, int64 [q, k].
        recall: that is to be reached.

    Returns:
        All that was measured, and the fastest with that recall; without any, the one with the highest.
    """
    met: dict[tuple[int, int], Measured] = {}

    def at(probe: int, refine: int, rounds: int = 1) -> Measured:
        if (probe, refine) not in met or rounds > 1:
            found, seconds = timed(lambda: search(probe, refine), rounds)
            met[probe, refine] = Measured(reduced, probe, refine, recall_of(found, truth), seconds)
        return met[probe, refine]

    enough = []
    for refine in _REFINES:
        low, high = 0, 1
        while high < lists and at(high, refine).recall < recall:
            low, high = high, min(2 * high, lists)
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
    hits = sum(np.isin(wanted[wanted >= 0], row).sum() for wanted, row in zip(truth, found, strict=True))
    return float(hits / (truth >= 0).sum())


def timed(search: Callable[[], NDArray[np.int64]], rounds: int = 1) -> tuple[NDArray[np.int64], float]:
    """The answer to q queries, and the processor time of one, median of the rounds."""
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        found = search()
        seconds.append(time.process_time() - begin)
    return found, statistics.median(seconds) / max(len(found), 1)
