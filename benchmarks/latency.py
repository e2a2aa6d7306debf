"""Time from the command ``zsq search`` to its answer, in new processes, beside the import of torch alone.

python -m benchmarks.latency --images 50 --json
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.embed import crops
from benchmarks.output import command_line, run, write_results

_ZSQ = ("-c", "from zsqretrieval.cli import main; main()")
_ASK = (*_ZSQ, "search", "album", "a person beside the water", "-k", "5")
_COMMANDS = {
    "import torch": ("-c", "import torch"),
    "first stage": (*_ASK, "--rerank", "none"),
    "re-ranked": _ASK,
}


def bench(folder: Path, images: int, rounds: int) -> dict[str, Any]:
    """Measure with an album of photographs in an empty folder: medians, lowest and highest."""
    (folder / "photographs").mkdir()
    for n, content in enumerate(crops(images)):
        (folder / "photographs" / f"{n:06d}.jpg").write_bytes(content)
    _ran(folder, (*_ZSQ, "index", "photographs", "--out", "album"))
    for command in _COMMANDS.values():
        _ran(folder, command)  # once before it counts: files are in the page cache, features are kept
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in _COMMANDS}
    for _ in range(rounds):
        for name, command in _COMMANDS.items():
            times[name].append(_ran(folder, command))
    return {
        "images": images,
        "rounds": rounds,
        "commands": {
            name: {
                clock: dict(
                    zip(("median", "least", "most"), np.quantile(column, (0.5, 0, 1)).tolist(), strict=True)
                )
                for clock, column in zip(("wall_s", "cpu_s"), np.transpose(taken), strict=True)
            }
            for name, taken in times.items()
        },
    }


def _ran(folder: Path, command: tuple[str, ...]) -> tuple[float, float]:
    """Wall time, and processor time of all threads, of a Python process."""
    # As installed: compiled once, and not for each question.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *command], cwd=folder, check=True, stdout=subprocess.DEVNULL, env=environment
    )
    wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "latency",
        "Measure the time from typing zsq search to the answer, with the mini preset.",
        images=(50, "Images of the album."),
        rounds=(5, "Turns."),
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        facts = bench(Path(folder), given.images, given.rounds)
    rows = [
        (name, *(f"{one[clock]['median']:.1f}" for clock in ("wall_s", "cpu_s")))
        for name, one in facts["commands"].items()
    ]
    notes = [f"{given.images} images, medians of {given.rounds} rounds in new processes"]
    write_results(facts, ("", "seconds", "CPU seconds"), rows, notes, as_json=given.json)


if __name__ == "__main__":
    run(main)
