"""Memory of a loaded index, measured in a process of its own."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.engines import Engine, Setting, make


def loaded_memory(
    name: str, dim: int, folder: Path, queries: Path, setting: Setting
) -> dict[str, int] | None:
    """Bytes that a saved index adds to a fresh process that loads it and answers a batch; None off Linux.

    ``anonymous`` is the process's own memory; ``file`` is mapped from the disk, and given back when memory is
    scarce.
    """
    if not Path("/proc/self/status").exists():
        return None
    given = json.dumps([name, dim, str(folder), str(queries), setting])
    command = [sys.executable, "-m", "benchmarks.memory", given]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def _resident() -> dict[str, int]:
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what is free is not the index's
    status = Path("/proc/self/status").read_text()
    kinds = {"anonymous": "RssAnon", "file": "RssFile"}
    return {
        kind: 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status)[1])  # type: ignore[index]
        for kind, field in kinds.items()
    }


def _warm_up(engine: Engine, dim: int) -> None:
    """Load code and start pools with a few vectors, so that they do not count."""
    rows = np.random.default_rng(0).standard_normal((1000, dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    engine.build(rows)
    engine.set(engine.sweeps[0][0])
    engine.search(rows)
    with tempfile.TemporaryDirectory() as folder:
        engine.save(Path(folder))
        engine.load(Path(folder))


def _measure(name: str, dim: int, folder: str, queries: str, setting: Setting) -> None:
    _warm_up(make(name, dim), dim)
    engine, asked = make(name, dim), np.load(queries)
    before = _resident()
    engine.load(Path(folder))
    engine.set(setting)
    engine.search(asked)
    after = _resident()
    sys.stdout.write("\n" + json.dumps({kind: after[kind] - before[kind] for kind in before}) + "\n")


if __name__ == "__main__":
    _measure(*json.loads(sys.argv[1]))
