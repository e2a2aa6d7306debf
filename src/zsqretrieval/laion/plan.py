"""What a collection of a given size needs: memory, disks, machines, time and money.

The formulas and the sources of their constants are in ``docs/scale.md``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zsqretrieval.errors import InvalidInputError

HNSW_RATES: Mapping[float, tuple[float, float]] = {
    0.90: (3769, 1477),
    0.95: (2397, 990),
    0.98: (1392, 553),
}
"""Queries a second of one core by recall@10: at 100,000 and at 1,000,000 vectors of dim 512 (hnswlib)."""

HNSW_BUILD = 85.0, 1014.0
"""Core seconds to build the index at these two sizes."""

LINKS = 16
"""Parameter M of the graph."""

PQ_BYTES = 128
PQ_RATE = 20.0
"""Queries a second of one machine with all of LAION-5B as PQ codes on an SSD, as published."""

METADATA_BYTES = 154
"""Metadata of one row of LAION-5B: 900 GB divided by 5.85e9 rows."""

SCORED_FROM_FEATURES, SCORED_FROM_PIXELS = 1192.0, 325.0
"""Candidates a second that Kosmos scores on an H200, in bfloat16."""

ENCODED = 312.0
"""Images a second that ViT-L/14 encodes on an A100."""

FEATURE_BYTES = 64 * 2048 * 2
"""Image features of Kosmos in float16."""

_LEAST, _MOST = 1e-9, 1e18  # of any number; beyond, results are none
_USABLE = 0.8  # of memory and disk
_HNSWLIB_MOST = 2**32 - 1  # vectors; its numbers have 32 bits


@dataclass(frozen=True, slots=True)
class Machine:
    """One server, and what it costs."""

    memory: float = 256e9  # bytes
    disk: float = 8e12  # bytes of SSD
    cores: int = 32
    price: float | None = None  # per hour
    gpu_price: float | None = None  # of one GPU per hour


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """One way to keep the vectors."""

    index: str
    bytes: float  # of the index
    on: str  # "memory" or "disk"
    shards: int  # each on its own machine; a query asks all
    replicas: int  # of every shard, for the rate of queries
    machines: int
    rate: float  # queries a second of all machines
    build_core_hours: float | None  # None: not known
    recall: float | None  # None: not known; measure it
    basis: str  # where rate and build time come from


@dataclass(frozen=True, slots=True)
class Plan:
    """The needs of a collection."""

    vectors: float
    dim: int
    recall: float
    qps: float
    candidates: int  # re-ranked for each question
    vector_bytes: float  # of all vectors in float16
    metadata_bytes: float
    feature_bytes: float  # of the image features of all images, if they are kept
    embedding_gpu_hours: float
    indexes: tuple[IndexPlan, ...]  # the one that needs the fewest machines first
    rerank_gpus: dict[str, int]  # for the rate of queries, by what the generator reads: features or pixels
    rerank_gpu_seconds: dict[str, float]  # per thousand questions
    price: dict[str, float] | None  # of a thousand questions at that rate; None without prices


def plan(
    vectors: float,
    dim: int,
    *,
    recall: float = 0.95,
    qps: float = 10.0,
    candidates: int = 50,
    machine: Machine = Machine(),
) -> Plan:
    """Work out what a collection needs.

    Args:
        vectors: number of images, >= 1.
        dim: length of a vector, >= 1.
        recall: recall@10 of the index, from 0.9 to 0.98: between the sizes and recalls that were measured.
        qps: questions a second, > 0.
        candidates: candidates that are re-ranked for each question; 0 for the first stage alone.
        machine: the servers.

    Raises:
        InvalidInputError: a number is out of range.
    """
    numbers = {"vectors": vectors, "dim": dim, "qps": qps, **_resources(machine)}
    for name, value in numbers.items():
        if not _LEAST <= value <= _MOST:
            raise InvalidInputError(
                f"{name} must be a positive number, from {_LEAST:g} to {_MOST:g}, not {value!r}"
            )
    if not 0 <= candidates <= _MOST:
        raise InvalidInputError(f"candidates must be >= 0 and at most {_MOST:g}, not {candidates}")
    if not min(HNSW_RATES) <= recall <= max(HNSW_RATES):
        raise InvalidInputError(
            f"recall must be from {min(HNSW_RATES)} to {max(HNSW_RATES)}, where it was measured, not {recall}"
        )
    indexes = tuple(
        sorted(
            [_hnsw(vectors, dim, recall, qps, machine), _pq(vectors, dim, qps, machine)],
            key=lambda one: one.machines,
        )
    )
    speeds = {"features": SCORED_FROM_FEATURES, "pixels": SCORED_FROM_PIXELS}
    seconds = {name: 1000 * candidates / speed for name, speed in speeds.items()}
    price = None
    if machine.price is not None and (machine.gpu_price is not None or not candidates):
        hours = 1000 / qps / 3600  # of a thousand questions
        price = {"search": indexes[0].machines * machine.price * hours}
        price |= {f"re-rank from {one}": (machine.gpu_price or 0) * s / 3600 for one, s in seconds.items()}
    return Plan(
        vectors=vectors,
        dim=dim,
        recall=recall,
        qps=qps,
        candidates=candidates,
        vector_bytes=2.0 * vectors * dim,
        metadata_bytes=METADATA_BYTES * vectors,
        feature_bytes=FEATURE_BYTES * vectors,
        embedding_gpu_hours=vectors / ENCODED / 3600,
        indexes=indexes,
        rerank_gpus={name: math.ceil(qps * one / 1000) for name, one in seconds.items()},
        rerank_gpu_seconds=seconds,
        price=price,
    )


def hnsw_bytes(vectors: float, dim: int) -> float:
    """Bytes of an HNSW index in float32: vectors, two layers' worth of links at the bottom, labels."""
    upper = 4 * (LINKS + 1) / (LINKS - 1)  # a share 1 / LINKS of the vectors is in each next layer
    return vectors * (4 * dim + 4 * (2 * LINKS + 1) + 8 + upper)


def pq_bytes(vectors: float) -> float:
    """Bytes of an index of product-quantised codes: code and label; its centroids do not count."""
    return vectors * (PQ_BYTES + 8)


def hnsw_rate(vectors: float, dim: int, recall: float) -> float:
    """Queries a second of one core: a power law of the size, between the measured recalls log-linear."""
    logs = [math.log(_power_law(vectors, *rates)) for rates in HNSW_RATES.values()]
    return math.exp(np.interp(recall, list(HNSW_RATES), logs)) * 512 / dim


def _power_law(vectors: float, small: float, large: float) -> float:
    """A quantity known at 1e5 and 1e6 vectors; below 1e5 as there."""
    return float(small * (large / small) ** math.log10(max(vectors, 1e5) / 1e5))


def _hnsw(vectors: float, dim: int, recall: float, qps: float, machine: Machine) -> IndexPlan:
    size = hnsw_bytes(vectors, dim)
    shards = max(math.ceil(size / (_USABLE * machine.memory)), math.ceil(vectors / _HNSWLIB_MOST))
    rate = machine.cores * hnsw_rate(vectors / shards, dim, recall)
    replicas = math.ceil(qps / rate)
    build = shards * _power_law(vectors / shards, *HNSW_BUILD) * dim / 512 / 3600
    return IndexPlan(
        "HNSW in memory", size, "memory", shards, replicas, shards * replicas, replicas * rate, build, recall,
        "measured at 1e5 and 1e6 vectors, extrapolated beyond",
    )  # fmt: skip


def _pq(vectors: float, dim: int, qps: float, machine: Machine) -> IndexPlan:
    size = pq_bytes(vectors) + 2.0 * vectors * dim  # with exact vectors in float16 for refinement
    shards = math.ceil(size / (_USABLE * machine.disk))
    replicas = math.ceil(qps / PQ_RATE)
    return IndexPlan(
        f"IVF_PQ {PQ_BYTES} on disk, refined", size, "disk", shards, replicas, shards * replicas,
        replicas * PQ_RATE, None, None,
        "published for 5.85e9 vectors on one machine; smaller collections are faster",
    )  # fmt: skip


def _resources(machine: Machine) -> dict[str, float]:
    prices = {"price": machine.price, "gpu_price": machine.gpu_price}
    given = {name: one for name, one in prices.items() if one is not None}
    return {"memory": machine.memory, "disk": machine.disk, "cores": machine.cores, **given}
