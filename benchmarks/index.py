"""How well and how fast an index answers, against exact search on the same machine at the same moment."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import InvalidInputError
from benchmarks.synthetic import CliplikeVectors
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.protocols import Index

__all__ = ["IndexBench", "SearchBench", "bench_index", "bench_search"]

_K = 10
_SINGLES = 100  # queries asked one at a time per round


@dataclass(frozen=True, slots=True)
class SearchBench:
    """One index, one kind of queries.

    Attributes:
        recall_at_10: share of the exact ten nearest that were found, mean over queries.
        batch_qps: queries per second, all in one call; median over rounds.
        single_qps: queries per second, one per call; median over rounds.
        exact_batch_qps: the same of :class:`~zsqretrieval.indexes.exact.ExactIndex`.
        exact_single_qps: the same, one per call.
    """

    recall_at_10: float
    batch_qps: float
    single_qps: float
    exact_batch_qps: float
    exact_single_qps: float


@dataclass(frozen=True, slots=True)
class IndexBench:
    """One index on one gallery.

    Attributes:
        index: name of the class.
        count: vectors in the gallery.
        dim: their length.
        build_seconds: wall time of adding all of them in one call.
        bytes_per_vector: size of the saved index over ``count``.
        text: text-like queries, from across the modality gap.
        image: image-like queries.
    """

    index: str
    count: int
    dim: int
    build_seconds: float
    bytes_per_vector: float
    text: SearchBench
    image: SearchBench


def bench_index(index: Index, data: CliplikeVectors, *, rounds: int = 5) -> IndexBench:
    """Fill an empty index with a gallery and measure it.

    Args:
        index: an empty index of the gallery's dim; filled afterwards.
        data: gallery (at least 10 vectors) and queries, for instance of
            :func:`~benchmarks.synthetic.cliplike`.
        rounds: how often the searches are timed; the index and exact search take turns, and medians are
            reported, so that both feel the same load.

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
    began = time.perf_counter()
    index.add(keys, data.gallery)
    build_seconds = time.perf_counter() - began
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
    """Compare two filled indexes on the same queries.

    Args:
        index: the index to measure.
        truth: an exact index with the same keys and vectors.
        queries: float32 [q, dim], at least one.
        rounds: how often both are timed, in turns.

    Raises:
        InvalidInputError: no rounds, no queries, or the two indexes hold different numbers of keys.
    """
    if rounds < 1 or not len(queries) or len(index) != len(truth):
        raise InvalidInputError(
            f"{rounds} rounds, {len(queries)} queries, {len(index)} and {len(truth)} keys: at least one "
            "round and one query are needed, and two indexes with the same keys"
        )
    found, wanted = index.search(queries, _K).keys, truth.search(queries, _K).keys
    hits = (found[:, :, None] == wanted[:, None, :]) & (wanted[:, None, :] >= 0)
    timers = (_batch_seconds, _single_seconds)
    times = np.array(
        [[seconds(each, queries) for each in (index, truth) for seconds in timers] for _ in range(rounds)]
    )
    batch, single, exact_batch, exact_single = (1 / np.median(times, axis=0)).tolist()
    return SearchBench(
        recall_at_10=float(hits.sum() / (wanted >= 0).sum()),
        batch_qps=batch,
        single_qps=single,
        exact_batch_qps=exact_batch,
        exact_single_qps=exact_single,
    )


def _batch_seconds(index: Index, queries: NDArray[np.float32]) -> float:
    """Seconds per query of one call with all of them."""
    began = time.perf_counter()
    index.search(queries, _K)
    return (time.perf_counter() - began) / len(queries)


def _single_seconds(index: Index, queries: NDArray[np.float32]) -> float:
    """Seconds per query of calls with one each."""
    some = queries[:_SINGLES]
    began = time.perf_counter()
    for query in some:
        index.search(query[None], _K)
    return (time.perf_counter() - began) / len(some)
