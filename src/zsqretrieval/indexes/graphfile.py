"""Verification of hnswlib's graph files, before native code loads them.

hnswlib uses the neighbour ids of a file without a check: one out of range is a segmentation fault at a later
query. So every number that native code uses as an offset is checked first, also in crafted files. Layout of
hnswlib 0.8 on a 64-bit machine: a header, one fixed-size record per element (ground-level links, vector,
label), then for each element the links of its upper levels.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsqretrieval.errors import IntegrityError
from zsqretrieval.indexes.keys import digest_rows

_HEADER = struct.Struct("=6QiI3QdQ")
_BLOCK = 4096


@dataclass(frozen=True, slots=True, eq=False)
class GraphFile:
    """A verified graph file of n elements."""

    labels: NDArray[np.int64]  # [n]
    deleted: NDArray[np.bool_]  # [n]; deletion marks
    records: NDArray[Any]  # [n], mapped from the file

    def digests(self) -> NDArray[np.bytes_]:
        """Digest of every element's vector, [n]."""
        return np.concatenate([digest_rows(block["vector"]) for block in _blocks(self.records)])


def read_graph_file(file: Path, *, dim: int, M: int) -> GraphFile:
    """Verify the structure of a file of hnswlib's ``save_index``.

    Raises:
        IntegrityError: the file is not a sound graph of this dim and M.
    """
    per_level = 4 + 4 * M
    links, vector = ("links", "u4", (2 * M,)), ("vector", "f4", (dim,))
    record = np.dtype([("count", "u2"), ("mark", "u1"), ("unused", "u1"), links, vector, ("label", "u8")])
    size = file.stat().st_size
    _require(file, size >= _HEADER.size, "is shorter than its header")
    with file.open("rb") as handle:
        header = _HEADER.unpack(handle.read(_HEADER.size))
    ground, capacity, n, record_size, label_at, vector_at, top, entry, m_upper, m_ground, m, _, _ = header
    layout = (ground, record_size, label_at, vector_at, m_upper, m_ground, m)
    expected = (0, record.itemsize, record.itemsize - 8, record.itemsize - 8 - 4 * dim, M, 2 * M, M)
    _require(file, layout == expected, f"has the layout {layout}, dim {dim} and M {M} need {expected}")
    _require(file, 0 < n <= capacity, f"holds {n} elements in room for {capacity}")
    upper_at = _HEADER.size + n * record.itemsize
    _require(file, upper_at <= size, f"has {size} bytes, too few for {n} elements")

    records = np.memmap(file, record, "r", _HEADER.size, (n,))
    with file.open("rb") as handle:
        handle.seek(upper_at)
        upper = handle.read()
    levels, upper_links = _read_upper(file, upper, n, per_level)
    _require(
        file, top >= 0 and entry < n and levels[entry] >= top, "starts searching at a level that is not there"
    )
    for level, ids in upper_links:
        _require(file, bool((ids < n).all()), "links to an element that is not there")
        _require(file, bool((levels[ids] >= level).all()), "links to an element above its highest level")
    for block in _blocks(records):
        _require(file, bool((block["count"] <= 2 * M).all()), "has more links than fit")
        used = np.arange(2 * M) < block["count"][:, None]
        _require(
            file, not bool((used & (block["links"] >= n)).any()), "links to an element that is not there"
        )
        lengths = np.einsum("ij,ij->i", block["vector"], block["vector"])
        _require(file, bool((np.abs(lengths - 1) < 1e-3).all()), "holds a vector that is not of unit length")
    labels = records["label"].astype(np.int64)
    _require(file, np.unique(labels).size == n and labels.min() >= 0, "uses a label twice")
    return GraphFile(labels, (records["mark"] & 1).astype(bool), records)


def _read_upper(
    file: Path, upper: bytes, n: int, per_level: int
) -> tuple[NDArray[np.int64], list[tuple[int, NDArray[np.int64]]]]:
    """Highest level of every element, and the links of each of its upper levels."""
    levels = np.zeros(n, np.int64)
    links: list[tuple[int, NDArray[np.int64]]] = []
    at = 0
    for element in range(n):
        _require(file, at + 4 <= len(upper), "ends before its last element")
        size = int.from_bytes(upper[at : at + 4], "little")
        at += 4
        if not size:
            continue
        _require(
            file, size % per_level == 0 and at + size <= len(upper), "has upper links of an impossible size"
        )
        levels[element] = size // per_level
        for level in range(1, size // per_level + 1):
            count = int.from_bytes(upper[at : at + 2], "little")
            _require(file, count <= per_level // 4 - 1, "has more upper links than fit")
            links.append((level, np.frombuffer(upper, "u4", count, at + 4).astype(np.int64)))
            at += per_level
    _require(file, at == len(upper), f"has {len(upper) - at} bytes too many")
    return levels, links


def _blocks(records: NDArray[Any]) -> Iterator[NDArray[Any]]:
    return (records[start : start + _BLOCK] for start in range(0, len(records), _BLOCK))


def _require(file: Path, holds: bool, otherwise: str) -> None:
    if not holds:
        raise IntegrityError(f"{file} {otherwise}: it is no sound graph; rebuild the index from its source")
