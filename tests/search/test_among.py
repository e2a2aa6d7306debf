"""Nearest images among some: every index, every share of the album, and answers that break the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index_data import ranked, vectors
from refusing import refused
from zsqretrieval import Field
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import PartError
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.search.among import nearest_among
from zsqretrieval.testing import ToyIndex
from zsqretrieval.types import Neighbors

DIM, N = 32, 2500
GALLERY, QUERIES = vectors(N, DIM), vectors(20, DIM, seed=1)
KEYS = np.arange(1, N + 1)


def gallery(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    return GALLERY[keys - 1] * 3  # an album may hold vectors of any length


def never(keys: NDArray[np.int64]) -> NDArray[np.float32]:
    raise AssertionError("the stored vectors are not needed")


@pytest.fixture(scope="module", params=[ExactIndex, CompressedIndex, HNSWIndex, ToyIndex])
def index(request: pytest.FixtureRequest) -> Any:
    made = request.param(DIM)
    made.add(KEYS, GALLERY)
    return made


@pytest.mark.parametrize("count", [1, 3, 10, 1024, 1025, N])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_nearest_are_found_among_the_keys(index: Any, count: int, k: int) -> None:
    keys = np.sort(np.random.default_rng(count).permutation(KEYS)[:count])
    found = nearest_among(index, QUERIES, k, keys, gallery)
    best, scores = ranked(GALLERY[keys - 1], keys, QUERIES, k)
    assert (found.keys.dtype, found.scores.dtype) == (np.int64, np.float32)
    assert found.keys.shape == (len(QUERIES), min(k, count))
    assert np.isin(found.keys, keys).all()
    shared = [len({*one.tolist()} & {*other.tolist()}) for one, other in zip(found.keys, best, strict=True)]
    assert sum(shared) >= 0.95 * best.size
    if count <= 1024 or not isinstance(index, HNSWIndex | CompressedIndex):
        assert sum(shared) >= 0.999 * best.size, "all but ties in float32"
        np.testing.assert_allclose(found.scores, scores, atol=1e-5)


def test_no_keys_and_no_queries_give_no_neighbours(index: Any) -> None:
    found = nearest_among(index, QUERIES, 5, np.empty(0, np.int64), never)
    assert found.keys.tolist() == [[-1]] * len(QUERIES) and np.isnan(found.scores).all()
    assert nearest_among(index, QUERIES[:0], 5, KEYS, never).keys.shape == (0, 5)


def test_index_that_filters_is_asked_for_many_keys() -> None:
    index = ExactIndex(DIM)
    index.add(KEYS, GALLERY)
    assert (nearest_among(index, QUERIES, 5, KEYS[::2], never).keys % 2 == 1).all()


@pytest.mark.parametrize("missing", [1, 2000, N - 5])
def test_keys_that_the_index_does_not_hold_are_found(missing: int) -> None:
    index = ExactIndex(DIM)
    index.add(KEYS[missing:], GALLERY[missing:])
    found = nearest_among(index, QUERIES, N, KEYS, gallery)
    np.testing.assert_array_equal(np.sort(found.keys), np.broadcast_to(KEYS, found.keys.shape))


def spoiled(change: Callable[[NDArray[np.int64], NDArray[np.float32]], Any]) -> Any:
    """An exact index whose answers among keys are changed."""

    class Index(ToyIndex):
        def search_among(self, queries: Any, k: int, keys: NDArray[np.int64]) -> Any:
            best, scores = ranked(GALLERY[keys - 1], keys, queries, k)
            return change(best, scores.astype(np.float32))

    index = Index(DIM)
    index.add(KEYS, GALLERY)
    return index


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda keys, scores: Neighbors(np.where(keys == keys[0, 1], 2, keys), scores),
            "a key that is not among",
        ),
        (lambda keys, scores: Neighbors(keys[:, :-1], scores), "keys of shape"),
        (lambda keys, scores: Neighbors(keys, -scores - 1), "not best first|not a cosine"),
        (lambda keys, scores: None, "NoneType, not Neighbors"),
    ],
)
def test_answers_that_break_the_contract_are_refused(change: Any, told: str) -> None:
    with pytest.raises(PartError, match=told):
        nearest_among(spoiled(change), QUERIES, 3, KEYS[::2], gallery)


def test_padded_answer_is_completed_without_touching_it() -> None:
    given: list[Neighbors] = []

    def padded(keys: NDArray[np.int64], scores: NDArray[np.float32]) -> Neighbors:
        keys[3:, 1:], scores[3:, 1:] = -1, np.nan
        keys.flags.writeable = scores.flags.writeable = False
        given.append(Neighbors(keys, scores))
        return given[0]

    found = nearest_among(spoiled(padded), QUERIES, 3, KEYS[::2], gallery)
    np.testing.assert_array_equal(found.keys, ranked(GALLERY[::2], KEYS[::2], QUERIES, 3)[0])
    assert (given[0].keys[3:, 1:] == -1).all()


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.create(None, dim=DIM) as made:
        rows = [
            NewImage(str(n), "/p", 1, f"{n:064x}", metadata={"n": n}, width=1, height=1, vector=row)
            for n, row in enumerate(GALLERY[:1500])
        ]
        made.add(rows)
        yield made


@pytest.mark.parametrize("kind", [ExactIndex, CompressedIndex, HNSWIndex, ToyIndex])
def test_k_results_right_after_images_were_removed(kind: Any, catalog: Catalog) -> None:
    index = kind(DIM)
    index.add(KEYS[:1500], GALLERY[:1500])
    nearest_ones = index.search(QUERIES[:1], 40).keys[0]
    catalog.remove(nearest_ones)  # the index still holds them
    for least in (0, 300, 1400):
        keys = catalog.fields.matching(Field("n") >= least)
        found = nearest_among(index, QUERIES[:1], 20, keys, catalog.log.get).keys[0]
        assert len(set(found.tolist()) & set(keys.tolist())) == 20
        assert not set(found.tolist()) & set(nearest_ones.tolist())
    refused("has no image with key", nearest_among, index, QUERIES, 9, nearest_ones, catalog.log.get)
