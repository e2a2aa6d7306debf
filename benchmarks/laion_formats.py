"""Rows per second and memory of reading embeddings of LAION's size, without indexing them.

python -m benchmarks.laion_formats --shards 66 --json

Shards of 1,000,000 rows: vectors float16 [n, 768] of nothing but zeros, which take no room on the disk, and
one synthetic table with the columns of LAION-2B, linked into every shard. All bytes of all vectors and all
cells of the table are read.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.output import command_line, run, write_results
from zsqretrieval.laion.embeddings import open_embeddings

_ROWS, _DIM = 1_000_000, 768


def write_table(path: Path, rows: int) -> None:
    """A table of one row group, with URLs and captions that all differ."""
    random = np.random.default_rng(0)
    numbers = np.arange(rows)
    columns = {
        "URL": [f"https://images.example.org/{n * 7919 % rows}/{n}.jpg" for n in range(rows)],
        "TEXT": [f"a photograph of thing {n} beside the other one in a garden" for n in range(rows)],
        "WIDTH": random.integers(64, 4096, rows).astype(np.int32),
        "HEIGHT": random.integers(64, 4096, rows).astype(np.int32),
        "similarity": random.uniform(0.28, 0.5, rows),
        "hash": random.integers(-(2**63), 2**63 - 1, rows),
        "punsafe": pa.array(random.uniform(0, 1, rows).astype(np.float32), mask=numbers % 50 == 0),
        "pwatermark": random.uniform(0, 1, rows).astype(np.float32),
    }
    parquet.write_table(pa.table(columns), path, row_group_size=rows)


def write_shards(folder: Path, shards: int, rows: int) -> None:
    """Write the shards."""
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir()
    first = folder / "metadata/metadata_0000.parquet"
    write_table(first, rows)
    for n in range(shards):
        if n:
            os.link(first, folder / f"metadata/metadata_{n:04d}.parquet")
        with (folder / f"img_emb/img_emb_{n:04d}.npy").open("wb") as file:
            facts = {"descr": "<f2", "fortran_order": False, "shape": (rows, _DIM)}
            np.lib.format.write_array_header_1_0(file, facts)
            file.truncate(file.tell() + 2 * rows * _DIM)


def main() -> None:
    """Command line."""
    parser = command_line(
        "laion_formats", "Reading embeddings.", shards=(4, "Shards"), rows=(_ROWS, "Rows of each")
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        pid = os.fork()  # so that the memory of writing is not counted
        if not pid:
            write_shards(Path(name), options.shards, options.rows)
            os._exit(0)
        os.waitpid(pid, 0)
        size = sum(file.stat().st_size for file in Path(name).rglob("*.*"))
        begin = time.perf_counter()
        found = open_embeddings(name)
        opened = time.perf_counter() - begin
        rows = 0
        for shard in found.shards:
            for vectors, batch in shard.blocks():
                assert not vectors.view(np.uint16).max()
                rows += batch.batch.num_rows
        seconds = time.perf_counter() - begin
    unit = 1 if sys.platform == "darwin" else 1024
    facts = {
        "rows": rows,
        "gigabytes": round(size / 1e9, 1),
        "open_seconds": round(opened, 2),
        "seconds": round(seconds, 1),
        "rows_per_second": round(rows / seconds),
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20,
    }
    write_results(facts, list(facts), [[str(value) for value in facts.values()]], [], as_json=options.json)


if __name__ == "__main__":
    run(main)
