"""Recall against speed: the curve of each engine, measured in turns, and rates at equal recall."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.engines import Engine, Setting
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.tuning import recall_of
from zsqretrieval.types import Progress

LEVELS = (0.90, 0.95, 0.98)  # recalls at which engines are compared
BATCH, SINGLE = "batch", "one_by_one"
_SINGLES = 200  # single queries of a round
_ENOUGH, _TOO_LOW, _FLAT = (
    0.995,
    0.85,
    0.0005,
)  # recalls beyond which, and a rise below which, nothing is timed


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """One setting of an engine: its recall, and its queries per second of CPU time in every round."""

    setting: Setting
    recall: float
    rates: Mapping[str, NDArray[np.float64]]  # BATCH and SINGLE: [rounds]

    def facts(self) -> dict[str, Any]:
        """Medians, and the lowest and highest."""
        found: dict[str, Any] = {"setting": self.setting, "recall": self.recall}
        for way, rates in self.rates.items():
            found[f"{way}_qps"], found[f"{way}_spread"] = float(np.median(rates)), spread(rates)
        return found


def spread(values: NDArray[np.float64]) -> list[float]:
    """Lowest and highest."""
    return [float(values.min()), float(values.max())]


def measure(
    engines: Mapping[str, Engine],
    queries: NDArray[np.float32],
    wanted: NDArray[np.int64],
    *,
    rounds: int,
    progress: Progress = lambda *_: None,
) -> dict[str, list[Point]]:
    """Curves of filled engines, each setting timed once a round, so that other load falls on all of them.

    Args:
        engines: by name, holding the same vectors.
        queries: float32 [q, dim], unit rows.
        wanted: keys of the true nearest, int64 [q, k].
        rounds: timings of each setting.
        progress: called with the settings timed so far.

    Raises:
        InvalidInputError: no rounds or no queries.
    """
    if rounds < 1 or not len(queries):
        raise InvalidInputError(f"{rounds} rounds, {len(queries)} queries: give at least one of each")
    plan = [
        (name, setting, found)
        for name, engine in engines.items()
        for setting, found in _worth_timing(engine, queries, wanted)
    ]
    seconds = np.empty((rounds, len(plan), 2))
    for number in range(rounds):
        for place, (name, setting, _) in enumerate(plan):
            engines[name].set(setting)
            seconds[number, place] = _per_query(engines[name], queries)
            progress("timing", number * len(plan) + place + 1, rounds * len(plan))
    curves: dict[str, list[Point]] = {name: [] for name in engines}
    for place, (name, setting, found) in enumerate(plan):
        rates = dict(zip((BATCH, SINGLE), 1 / seconds[:, place].T, strict=True))
        curves[name].append(Point(setting, found, rates))
    return curves


def _worth_timing(
    engine: Engine, queries: NDArray[np.float32], wanted: NDArray[np.int64]
) -> list[tuple[Setting, float]]:
    """Settings with their recalls: of each sweep those around the levels, until it is flat."""
    plan = []
    for sweep in engine.sweeps:
        points: list[tuple[Setting, float]] = []
        for setting in sweep:
            engine.set(setting)
            points.append((setting, recall_of(engine.search(queries).astype(np.int64), wanted)))
            seen = [found for _, found in points]
            if seen[-1] >= _ENOUGH or (len(seen) > 2 and seen[-1] - seen[-3] < _FLAT):
                break
        low = sum(found < _TOO_LOW for _, found in points)
        plan += points[max(0, low - 1) :]
    return plan


def _per_query(engine: Engine, queries: NDArray[np.float32]) -> tuple[float, float]:
    """CPU seconds per query, in one call with all, and in calls with one each."""
    some = queries[:_SINGLES]
    begin = time.process_time()
    engine.search(queries)
    middle = time.process_time()
    for query in some:
        engine.search(query[None])
    return (middle - begin) / len(queries), (time.process_time() - middle) / len(some)


def front(recalls: Sequence[float], rates: Sequence[float]) -> list[tuple[float, float]]:
    """The points that no other beats in both, by rising recall."""
    best: list[tuple[float, float]] = []
    for point in sorted(zip(recalls, rates, strict=True), reverse=True):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best[::-1]


def rate_at(level: float, recalls: Sequence[float], rates: Sequence[float]) -> float | None:
    """Rate at a recall, the logarithm interpolated along the front; None where the recall is not reached."""
    points = np.array(front(recalls, rates))
    if not len(points) or level > points[-1, 0]:
        return None
    return float(np.exp(np.interp(level, points[:, 0], np.log(points[:, 1]))))


def rates_at_levels(points: Sequence[Point], way: str) -> dict[str, NDArray[np.float64]]:
    """Rates [rounds] at each recall that the curve reaches, by its name as "0.90"."""
    recalls = [point.recall for point in points]
    found = {}
    for level in LEVELS:
        each = [
            rate_at(level, recalls, rates)
            for rates in np.array([point.rates[way] for point in points]).T.tolist()
        ]
        if None not in each:
            found[f"{level:.2f}"] = np.array(each, float)
    return found


def ratios(
    rates: Mapping[str, Mapping[str, NDArray[np.float64]]], ours: str, others: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """At each recall the ratio to the fastest of others: median over rounds, spread, and its name.

    The ratio is None where the index does not reach the recall, or none of the others does.
    """
    found: dict[str, dict[str, Any]] = {}
    for level in (f"{level:.2f}" for level in LEVELS):
        reached = [name for name in others if level in rates[name]]
        best = max(reached, key=lambda name: float(np.median(rates[name][level])), default=None)
        if best is None or level not in rates[ours]:
            found[level] = {"ratio": None, "spread": None, "peer": best}
            continue
        each = rates[ours][level] / rates[best][level]
        found[level] = {"ratio": float(np.median(each)), "spread": spread(each), "peer": best}
    return found
