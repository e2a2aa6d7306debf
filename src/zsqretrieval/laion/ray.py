"""Shard workers as actors of Ray: one task, such as an encoder, in each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zsqretrieval._util.ray import Call, each_answer, start_actors
from zsqretrieval.laion.image_shards import ImageShard
from zsqretrieval.laion.shards import ShardsReport, Task, attempt_shards, finish, summary
from zsqretrieval.types import MAX_PIXELS


def run_on_ray(
    make_task: Callable[[], Task],
    shards: Sequence[ImageShard],
    out: str | os.PathLike[str],
    numbers: Iterable[int] | None = None,
    *,
    actors: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    attempts: int = 3,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[Mapping[str, Any]], object] = lambda stats: None,
) -> ShardsReport:
    """As :func:`~zsqretrieval.laion.shards.run_shards`, on actors of Ray.

    Tars and ``out`` must have the same paths on all machines. A shard whose actor dies is done again.

    Args:
        make_task: makes the task in each actor; can be pickled.
        shards: all shards.
        out: folder of the results.
        numbers: the shards to do; None for all.
        actors: number of actors; None for as many as the cluster has room for.
        cpus: cores for each.
        gpus: GPUs for each; a fraction shares one.
        attempts: most attempts for each shard.
        max_pixels: images of more pixels are refused.
        report: called with the stats of each shard.

    Raises:
        MissingDependencyError: Ray is not installed.
        ZsqError: an actor died again and again.
        Exception: as there.
    """
    begin = time.perf_counter()
    whole = str(Path(out).absolute())
    workers = start_actors(_Worker, make_task, list(shards), whole, actors=actors, cpus=cpus, gpus=gpus)
    chosen = list(range(len(shards)) if numbers is None else numbers)
    ended: list[Mapping[str, Any]] = []

    def took(_: int, stats: Mapping[str, Any]) -> None:
        ended.append(stats)
        report(stats)

    each_answer(workers, [Call("run", (number, attempts, max_pixels)) for number in chosen], took)
    each_answer(workers[:1], [Call("finish")], lambda *_: None)
    return summary(ended, time.perf_counter() - begin)


class _Worker:
    def __init__(self, make_task: Callable[[], Task], shards: Sequence[ImageShard], out: str) -> None:
        self._task, self._shards, self._out = make_task(), shards, Path(out)

    def run(self, number: int, attempts: int, max_pixels: int) -> Mapping[str, Any]:
        (stats,) = attempt_shards(self._task, self._shards, self._out, [number], attempts, max_pixels)
        return stats

    def finish(self) -> None:
        finish(self._task, self._shards, self._out)
