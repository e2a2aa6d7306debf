"""Recall and speed of an index, measured against exact search in the same process.

python -m benchmarks.index --vectors 100000 --json
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.output import command_line, run, write_results
from benchmarks.synthetic import CliplikeVectors, cliplike
from zsqretrieval import plugins
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.protocols import Index

_K = 10
_SINGLES = 100  # single queries per round


@dataclass(frozen=True, slots=True)
class SearchBench:
    """Results of one index for one kind of queries: recall, and queries per second, medians over rounds."""

    recall_at_10: float  # share of the exact ten nearest neighbours that were found, mean over queries
    batch_qps: float  # with all queries in one call
    single_qps: float  # with one query per call
    exact_batch_qps: float  # of ExactIndex
    exact_single_qps: float


@dataclass(frozen=True, slots=True)
class IndexBench:
    """Results of one index on one gallery."""

    index: str  # name of the class
    count: int  # vectors in the gallery
    dim: int
    build_seconds: float  # wall time of adding all vectors in one call
    bytes_per_vector: float  # size of the saved index divided by count
    text: SearchBench  # with text-like queries, across the modality gap
    image: SearchBench  # with image-like queries


def bench_index(index: Index, data: CliplikeVectors, *, rounds: int = 5) -> IndexBench:
    """Fill an empty index with a gallery and measure it, in turns with exact search.

    Raises:
        InvalidInputError: the index is not empty, or the gallery has fewer than 10 vectors.
    """
    if len(index):
        raise InvalidInputError(f"the index holds {len(index)} vectors already; measure an empty one")
    if len(data.gallery) < _K:
        raise InvalidInputError(f"recall@{_K} needs {_K} vectors in the gallery, not {len(data.gallery)}")
    keys = np.arange(len(data.gallery))
    truth = ExactIndex(index.dim)
    truth.add(keys, data.gallery)
    begin = time.perf_counter()
    index.add(keys, data.gallery)
    build_seconds = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as directory:
        index.save(Path(directory))
        size = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())
    return IndexBench(
        index=type(index).__name__,
        count=len(keys),
        dim=index.dim,
        build_seconds=build_seconds,
        bytes_per_vector=size / len(keys),
        text=bench_search(index, truth, data.text_queries, rounds=rounds),
        image=bench_search(index, truth, data.image_queries, rounds=rounds),
    )


def bench_search(index: Index, truth: Index, queries: NDArray[np.float32], *, rounds: int = 5) -> SearchBench:
    """Compare an index with an exact one, ``truth``, with the same keys on the same queries [q, dim].

    Raises:
        InvalidInputError: no rounds, no queries, or the two indexes hold different numbers of keys.
    """
    if rounds < 1 or not len(queries) or len(index) != len(truth):
        raise InvalidInputError(
            f"{rounds} rounds, {len(queries)} queries, {len(index)} and {len(truth)} keys: give at least one "
            "round and one query, and two indexes with the same keys"
        )
    found, wanted = index.search(queries, _K).keys, truth.search(queries, _K).keys
    hits = (found[:, :, None] == wanted[:, None, :]) & (wanted[:, None, :] >= 0)
    # Seconds per query, [rounds, 4].
    times = np.array(
        [[s for each in (index, truth) for s in _seconds_per_query(each, queries)] for _ in range(rounds)]
    )
    batch, single, exact_batch, exact_single = (1 / np.median(times, axis=0)).tolist()
    return SearchBench(float(hits.sum() / (wanted >= 0).sum()), batch, single, exact_batch, exact_single)


def _seconds_per_query(index: Index, queries: NDArray[np.float32]) -> tuple[float, float]:
    """In one call with all queries, and in calls with one query each."""
    some = queries[:_SINGLES]
    begin = time.perf_counter()
    index.search(queries, _K)
    middle = time.perf_counter()
    for query in some:
        index.search(query[None], _K)
    return (middle - begin) / len(queries), (time.perf_counter() - middle) / len(some)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = command_line(
        "index",
        "Measure recall and speed of an index against exact search, on synthetic CLIP-like vectors.",
        vectors=(20_000, "Vectors in the gallery, at least 10."),
        dim=(512, "Length of a vector, at least 8."),
    )
    parser.add_argument("--index", default="hnsw", help="hnsw, exact or a plugin's name [default: hnsw]")
    given = parser.parse_args(arguments)
    data = cliplike(given.vectors, dim=given.dim, rank=min(96, given.dim - 2))
    bench = bench_index(plugins.load("index", given.index)(given.dim), data)
    rows = []
    for kind, one in (("text-like", bench.text), ("image-like", bench.image)):
        rates = (one.batch_qps, one.exact_batch_qps, one.single_qps, one.exact_single_qps)
        rows.append((kind, f"{one.recall_at_10:.3f}", *(f"{rate:.0f}" for rate in rates)))
    write_results(
        asdict(bench),
        ("queries", "recall@10", "queries/s in one call", "exact", "one per call", "exact"),
        rows,
        [
            f"{bench.index}: {bench.count} synthetic vectors of dim {bench.dim}, built in "
            f"{bench.build_seconds:.1f} s, {bench.bytes_per_vector:.0f} bytes a vector on disk"
        ],
        as_json=given.json,
    )


if __name__ == "__main__":
    run(main)
