"""ExactIndex against the definition."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_data import expect_among, ranked, unit, vectors
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes import base, exact
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.protocols import Configurable, FilteredIndex


def filled(n: int = 300, dim: int = 32) -> ExactIndex:
    index = ExactIndex(dim, fingerprint="f")
    index.add(np.arange(n), vectors(n, dim))
    return index


@pytest.mark.parametrize("k", [1, 10, 299, 300, 500])
def test_search_equals_the_definition(k: int) -> None:
    gallery, queries = vectors(300), vectors(40, seed=1)
    keys = np.random.default_rng(3).permutation(1000)[:300]
    index = ExactIndex(32)
    index.add(keys, gallery)
    found = index.search(queries, k)
    wanted_keys, wanted_scores = ranked(gallery, keys, queries, k)
    m = min(k, 300)
    np.testing.assert_array_equal(found.keys[:, :m], wanted_keys)
    np.testing.assert_allclose(found.scores[:, :m], wanted_scores, atol=1e-6)
    assert (found.keys[:, m:] == -1).all()
    assert np.isnan(found.scores[:, m:]).all()


@settings(max_examples=60, deadline=None)
@given(
    coordinates=st.lists(st.tuples(*[st.integers(-1, 1)] * 2).filter(any), min_size=1, max_size=40),
    k=st.integers(1, 45),
    row_block=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_ties_are_ranked_by_key_for_any_block_size(
    coordinates: list[tuple[int, int]], k: int, row_block: int, seed: int
) -> None:
    gallery = np.array(coordinates, np.float32)
    keys = np.random.default_rng(seed).permutation(len(gallery) * 3)[: len(gallery)]
    queries = np.array([[1, 0], [0, -1], [3, 4]], np.float32)  # equal cosines are equal float32
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_ROW_BLOCK", row_block)
        patch.setattr(exact, "_QUERY_BLOCK", 2)
        index = ExactIndex(2)
        index.add(keys, gallery)
        found = index.search(queries, k)
    for query, row_keys, row_scores in zip(unit(queries), found.keys, found.scores, strict=True):
        scores = unit(gallery) @ query
        wanted = [int(key) for _, key in sorted(zip(-np.round(scores, 5), keys, strict=True))][:k]
        assert row_keys[: len(wanted)].tolist() == wanted
        assert (np.diff(row_scores[: len(wanted)]) <= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 600),
    q=st.integers(1, 40),
    k=st.integers(1, 30),
    block=st.integers(1, 600),
    seed=st.integers(0, 99),
)
def test_many_equal_scores_are_ranked_by_key(n: int, q: int, k: int, block: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    gallery = random.integers(-1, 2, (n, 4)).astype(np.float32) / 2  # products of halves are exact
    queries = random.integers(-1, 2, (q, 4)).astype(np.float32) / 2
    keys, k = random.permutation(2 * n)[:n], min(k, n)
    rows = np.arange(n)
    parts = [slice(start, start + block) for start in range(0, n, block)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "_FOUND", 100)
        found, scores = base.top_rows(queries, ((rows[part], gallery[part]) for part in parts), k, keys)
    exact_scores = queries @ gallery.T
    wanted = np.lexsort((np.broadcast_to(keys, exact_scores.shape), -exact_scores), axis=-1)[:, :k]
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(scores, np.take_along_axis(exact_scores, wanted, axis=1))


def test_search_among_equals_the_definition_over_those_keys() -> None:
    gallery, queries = vectors(300), vectors(20, seed=2)
    gallery[100:200] = gallery[7]
    index = ExactIndex(32)
    index.add(np.arange(300), gallery)
    expect_among(index, gallery, queries, 10, [5, 7, 8, 120, 150, 299, 150, 10_000, -4])


def test_removal_of_most_vectors_frees_memory() -> None:
    index = filled(300)
    index.remove(np.arange(200))
    assert len(index) == 100
    assert len(index._vectors) == 100
    assert index.search(vectors(300)[250:251], 1).keys[0, 0] == 250


def test_pickled_and_copied_indexes_are_independent(tmp_path: Path) -> None:
    index = filled()
    index.remove(np.array([3]))
    for twin in (pickle.loads(pickle.dumps(index)), copy.deepcopy(index)):
        np.testing.assert_array_equal(twin.search(vectors(9), 5).keys, index.search(vectors(9), 5).keys)
        assert twin.config == index.config
        twin.add(np.array([3]), vectors(1, seed=8))
    assert len(index) == 299


def test_config_rebuilds_and_bad_settings_are_refused() -> None:
    assert isinstance(filled(), FilteredIndex) and isinstance(filled(), Configurable)
    assert ExactIndex.from_config(filled().config).config == {"dim": 32, "fingerprint": "f"}
    with pytest.raises(InvalidInputError, match="exactly"):
        ExactIndex.from_config({"dim": 32, "fingerprint": "", "ef": 5})
    for dim in (0, -1, 2.5, True, None, "8"):
        with pytest.raises(InvalidInputError, match="dim must be an integer"):
            ExactIndex(dim)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_process_searches_with_one_thread() -> None:
    index, queries = filled(), vectors(50, seed=5)
    index.search(queries, 5)  # starts the threads of the parent
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found = pool.apply_async(index.search, (queries, 5)).get(timeout=60)
    np.testing.assert_array_equal(found.keys, index.search(queries, 5).keys)


def test_one_query_uses_one_thread_and_a_batch_all(monkeypatch: pytest.MonkeyPatch) -> None:
    index, used, knn = filled(), [], faiss.knn

    def watched(*arguments: object, **settings: object) -> object:
        used.append(faiss.omp_get_max_threads())
        return knn(*arguments, **settings)

    monkeypatch.setattr(faiss, "knn", watched)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(3)
    try:
        index.search(vectors(1), 5)
        index.search(vectors(50), 5)
        assert (used, faiss.omp_get_max_threads()) == ([1, 3], 3)
    finally:
        faiss.omp_set_num_threads(before)


def test_few_queries_are_compared_by_one_product() -> None:
    """Its default made faiss 1.15 compare 250 queries of 512 numbers one after another."""
    assert faiss.cvar.distance_compute_blas_threshold <= 4 * 512
