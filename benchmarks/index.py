"""Recall, speed, build time and memory of the library's indexes beside others that are installed.

OMP_NUM_THREADS=1 python -m benchmarks.index --vectors 100000 --json
OMP_NUM_THREADS=1 python -m benchmarks.index --vectors photos.npy --queries captions.npy --plot pareto.svg
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.comparison import bench_index
from benchmarks.curves import BATCH, SINGLE
from benchmarks.engines import K, available
from benchmarks.guard import check_against
from benchmarks.output import command_line, progress_bar, run, write_results
from benchmarks.plots import pareto
from benchmarks.synthetic import cliplike
from zsqretrieval._util.files import write_whole
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.checks import unit_rows


def vectors_of(gallery: str, queries: str, dim: int) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
    """Gallery and queries as unit rows, and a description: synthetic ones for a number, or those of files.

    Raises:
        InvalidInputError: a file is not an array of floating vectors, or only one of the two is a file.
    """
    if gallery.isdecimal():
        if queries not in ("text", "image"):
            raise InvalidInputError(f"synthetic vectors have queries text or image, not {queries!r}")
        data = cliplike(int(gallery), dim=dim, rank=min(96, dim - 2))
        return data.gallery, data.text_queries if queries == "text" else data.image_queries, "synthetic"
    read = []
    for file in (gallery, queries):
        try:
            read.append(np.load(file, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{file} cannot be read as a .npy file of vectors: {error}") from error
    width = read[0].shape[-1]
    return unit_rows(read[0], width), unit_rows(read[1], width), f"{Path(gallery).name}, {Path(queries).name}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    ours, missing = available()
    parser = command_line(
        "index",
        "Measure the library's indexes beside others: recall, queries per CPU second, build, memory.",
        dim=(512, "Length of a synthetic vector, at least 8."),
        rounds=(5, "Timings of each setting, in turns."),
        threads=(2, "Threads that are compared with one; 1 for no comparison."),
    )
    parser.add_argument(
        "--vectors", default="20000", help="How many synthetic ones, or FILE.npy, float [n, dim]."
    )
    parser.add_argument(
        "--queries", default="text", help="text or image (synthetic), or FILE.npy, float [q, dim]."
    )
    parser.add_argument(
        "--systems", default=",".join(ours), help="Names with commas [default: all installed]."
    )
    parser.add_argument("--index", default=ours[0], help=f"Whose ratios are reported [default: {ours[0]}].")
    parser.add_argument("--cache", type=Path, help="Folder where built peers are kept for the next run.")
    parser.add_argument("--plot", type=Path, help="SVG of recall and rate.")
    parser.add_argument("--compare", type=Path, help="JSON of an earlier run: fail if a ratio became worse.")
    given = parser.parse_args(arguments)
    gallery, queries, data = vectors_of(given.vectors, given.queries, given.dim)
    with progress_bar("index") as progress:
        found = bench_index(
            gallery, queries, given.systems.split(","), index=given.index, rounds=given.rounds,
            threads=given.threads, cache=given.cache, progress=progress,
        )  # fmt: skip
    facts = {"data": data, "skipped": missing, **found}
    if given.plot:
        write_whole(given.plot, [pareto(facts)])
    write_results(facts, COLUMNS, table(facts), notes(facts), as_json=given.json)
    if given.compare:
        check_against(facts, given.compare)


COLUMNS = (
    "index", "build, CPU-s", "memory, bytes/vector",
    "queries/s at .90", ".95", ".98", "one by one: .90", ".95", ".98",
)  # fmt: skip


def table(facts: Mapping[str, Any]) -> list[list[str]]:
    """Rows of :data:`COLUMNS`; a dash where a recall is not reached."""
    rows = []
    for name, one in facts["systems"].items():
        memory = one["memory"].get("anonymous_bytes_per_vector")
        rates = [one["qps"][way].get(level) for way in (BATCH, SINGLE) for level in ("0.90", "0.95", "0.98")]
        cells = [f"{rate:,.0f}" if rate else "-" for rate in (memory, *rates)]
        rows.append([name, f"{one['build_cpu_s']:.1f}", *cells])
    return rows


def notes(facts: Mapping[str, Any]) -> list[str]:
    """Sentences below the table."""
    said = [
        f"{facts['count']:,} vectors of dim {facts['dim']} ({facts['data']}), {facts['queries']} queries, "
        f"recall@{K}, one thread, queries per CPU second, medians of {facts['rounds']} rounds"
    ]
    for title in ("hnswlib", "best_peer"):
        each = facts[f"qps_ratio_to_{title}"].items()
        shown = ", ".join(f"{ratio:.2f} at {level}" for level, ratio in each if ratio)
        said.append(
            f"{facts['index']} to {title.replace('_', ' ')} in batch: {shown or 'no recall reached by both'}"
        )
    if facts["skipped"]:
        said.append(f"not installed: {', '.join(facts['skipped'])}")
    return said


if __name__ == "__main__":
    run(main)
