"""Time of reading stored image features, from the disk and from the page cache.

python -m benchmarks.states --images 1000 --json
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.output import command_line, run, write_results
from zsqretrieval.album.features import StateKind, StateStore

_SHAPES = {"mini": (32, 384), "kosmos": (64, 2048)}
_BATCH = 250


def bench_reading(
    folder: Path, shape: tuple[int, int], images: int, read: int, rounds: int
) -> dict[str, Any]:
    """Read the float16 features of ``read`` random images, from the disk and from the page cache, in turns.

    Returns medians in milliseconds. The page cache is emptied of the files with ``posix_fadvise``.
    """
    store = StateStore(StateKind("random", shape, np.float16), folder)
    random = np.random.default_rng(0)
    names = [f"{n:064x}" for n in range(images)]
    for start in range(0, images, _BATCH):
        with store.held():
            store.put(
                {one: random.normal(size=shape).astype(np.float16) for one in names[start : start + _BATCH]}
            )
    files = [path for path in folder.rglob("*") if path.is_file()]
    times: dict[str, list[tuple[float, float]]] = {"cold": [], "warm": []}
    for _ in range(rounds):
        some = random.choice(names, read, replace=False).tolist()
        for kind, taken in times.items():  # the same images: after the cold turn they are in memory
            if kind == "cold":
                for path in files:
                    with path.open("rb") as file:
                        os.fsync(file.fileno())
                        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            wall, cpu = time.perf_counter(), time.process_time()
            found = store.get(some)
            taken.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)))
            assert len(found) == read
    return {
        kind: dict(zip(("wall_ms", "cpu_ms"), np.median(taken, axis=0).tolist(), strict=True))
        for kind, taken in times.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "states",
        "Time reading stored image features (float16), with and without the page cache.",
        images=(1000, "Images in the album."),
        read=(100, "Images that are read."),
        rounds=(5, "Timings."),
    )
    parser.add_argument("--folder", type=Path, help="directory for the album, on the disk to measure")
    given = parser.parse_args(arguments)
    facts: dict[str, Any] = {"images": given.images, "read": given.read}
    for name, shape in _SHAPES.items():
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            facts[name] = bench_reading(Path(folder), shape, given.images, given.read, given.rounds)
    write_results(
        facts,
        ("features of", "page cache", "milliseconds", "CPU milliseconds"),
        [
            (name, kind, f"{taken['wall_ms']:.1f}", f"{taken['cpu_ms']:.1f}")
            for name in _SHAPES
            for kind, taken in facts[name].items()
        ],
        [f"{given.read} of {given.images} images, float16, medians of {given.rounds} rounds"],
        as_json=given.json,
    )


if __name__ == "__main__":
    run(main)
