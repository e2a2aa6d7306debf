"""Arguments that both indexes refuse; a refusal changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index_data import vectors
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex

DIM = 8
GOOD = vectors(3, DIM)


def row_with(value: float) -> np.ndarray:
    bad = GOOD.copy()
    bad[1, 2] = value
    return bad


@pytest.fixture(params=[ExactIndex, CompressedIndex, HNSWIndex])
def index(request: pytest.FixtureRequest) -> Any:
    index = request.param(DIM)
    index.add(np.array([10, 20]), vectors(2, DIM, seed=7))
    return index


def state(index: Any) -> tuple[int, list[list[int]]]:
    return len(index), index.search(GOOD, 5).keys.tolist()


BAD_VECTORS = {
    "one dimension": (GOOD[0], r"vector\[None, :\]"),
    "three dimensions": (GOOD[None], r"shape \[1, 3, 8\]"),
    "too short": (GOOD[:, :5], r"shape \[3, 5\]"),
    "too long": (np.ones((3, 9), np.float32), r"\[n, 8\]"),
    "nan": (row_with(np.nan), "vector 1 of 3 has a value that is not finite"),
    "infinite": (row_with(-np.inf), "vector 1 of 3 has a value that is not finite"),
    "beyond float32": (np.full((3, DIM), 1e300), "vector 0 of 3 has a value that is not finite"),
    "zero": (GOOD * np.array([[1], [1], [0]], np.float32), "vector 2 of 3 is zero"),
    "integers": (np.ones((3, DIM), np.int64), "dtype int64"),
    "text": (np.full((3, DIM), "a"), "dtype <U1"),
    "complex": (np.ones((3, DIM), np.complex64), "dtype complex64"),
    "ragged": ([[1.0], [1.0, 2.0]], "cannot be read as an array"),
    "nothing": (None, "shape"),
}


@pytest.mark.parametrize("case", BAD_VECTORS)
def test_bad_vectors_are_refused(index: Any, case: str) -> None:
    bad, message = BAD_VECTORS[case]
    before = state(index)
    with pytest.raises(InvalidInputError, match=message):
        index.add(np.arange(3), bad)
    with pytest.raises(InvalidInputError, match=message):
        index.search(bad, 2)
    with pytest.raises(InvalidInputError, match=message):
        index.search_among(bad, 2, np.array([10]))
    assert state(index) == before


BAD_ADDITIONS = {
    "negative": ([0, -1, 2], "key -1 is negative"),
    "repeated": ([4, 5, 4], "key 4 is given more than once"),
    "present": ([1, 20, 2], "key 20 is stored already"),
    "too few": ([1, 2], "2 keys came with 3 vectors"),
    "floating": ([1.0, 2.0, 3.0], "dtype float64"),
    "boolean": ([True, False, True], "dtype bool"),
    "beyond int64": (np.array([1, 2, 2**63], np.uint64), "does not fit into int64"),
    "two dimensions": ([[1, 2, 3]], r"shape \[1, 3\]"),
}


@pytest.mark.parametrize("case", BAD_ADDITIONS)
def test_bad_keys_to_add_are_refused(index: Any, case: str) -> None:
    keys, message = BAD_ADDITIONS[case]
    before = state(index)
    with pytest.raises(InvalidInputError, match=message):
        index.add(keys, GOOD)
    assert state(index) == before


@pytest.mark.parametrize(
    ("keys", "message"),
    [([10, 11], "key 11 is not stored"), ([10, 10], "more than once"), ([-1], "negative")],
)
def test_bad_keys_to_remove_are_refused(index: Any, keys: list[int], message: str) -> None:
    before = state(index)
    with pytest.raises(InvalidInputError, match=message):
        index.remove(np.array(keys))
    assert state(index) == before


@pytest.mark.parametrize("k", [0, -3, 1.5, None, True, "2"])
def test_bad_k_is_refused(index: Any, k: Any) -> None:
    with pytest.raises(InvalidInputError, match="k must be an integer"):
        index.search(GOOD, k)
