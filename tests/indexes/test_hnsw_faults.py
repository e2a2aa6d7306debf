"""The cases in which plain hnswlib crashes, loses data or answers wrongly in silence, except for its files.

A docstring describes hnswlib by itself; the test shows the behaviour of :class:`HNSWIndex`. The numbers are
those of the fault table in ``docs/indexes.md``; rows 3 to 9 are in ``test_hnsw_files.py``. Rows 1, 2, 12,
17, 18, 19 and 26 are checks of every index in ``zsqretrieval.testing``; ``test_refusals.py`` has their
messages.
"""

from __future__ import annotations

import copy
import functools
import pickle
import threading
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from index_data import filled, self_recall, vectors
from together import together
from zsqretrieval._util import files as storage
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes import hnsw
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex

DIM = 32


def graph_file(path: Path) -> Path:
    return storage.peek_snapshot(path).file("graph.bin")


def overlap(found: np.ndarray, wanted: np.ndarray) -> float:
    """Recall of found keys [q, k], in any order."""
    pairs = zip(found.tolist(), wanted.tolist(), strict=True)
    return float(np.mean([len(set(f) & set(w)) / len(w) for f, w in pairs]))


def exact(n: int) -> ExactIndex:
    index = ExactIndex(DIM)
    index.add(np.arange(n), vectors(n))
    return index


def test_row_10_graph_that_finds_too_few_is_replaced_by_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph does not reach enough vectors: hnswlib refuses the batch, or finds too few per query."""
    index, truth = filled(), exact(400)
    queries = vectors(6, seed=2)
    monkeypatch.setattr(hnsw.Graph, "search", lambda *_: None)
    np.testing.assert_array_equal(index.search(queries, 10).keys, truth.search(queries, 10).keys)

    def two_only(graph: object, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(queries), 1), np.int64), np.zeros((len(queries), 1), np.float32)

    monkeypatch.setattr(hnsw.Graph, "search", two_only)
    np.testing.assert_array_equal(index.search(queries, 10).keys, truth.search(queries, 10).keys)


def test_row_11_ef_below_k_keeps_the_recall() -> None:
    """With ef 5 and k 50 there is no error, and recall is .906."""
    queries = vectors(100, seed=1)
    found = filled(2000, ef=5, M=6).search(queries, 50).keys
    assert overlap(found, exact(2000).search(queries, 50).keys) > 0.97


def test_row_13_forty_per_cent_identical_vectors_keep_the_recall_of_others() -> None:
    """Placeholder images: the recall of all OTHER vectors falls from 1.00 to .78, at any ef."""
    rows = vectors(3000, rank=20)
    generator = np.random.default_rng(0)
    same = generator.choice(3000, 1200, replace=False)
    rows[same] = rows[same[0]]
    others = np.setdiff1d(np.arange(3000), same)
    index = HNSWIndex(DIM, threads=1)
    index.add(np.arange(3000), rows)
    assert self_recall(index, others, rows[others]) == 1
    found = index.search(rows[same[:1]], 1300)
    assert found.keys[0, :1200].tolist() == np.sort(same).tolist()
    np.testing.assert_allclose(found.scores[0, :1200], 1, atol=1e-5)
    assert len(index) == 3000
    index.remove(same[:1199])
    assert index.search(rows[same[:1]], 1).keys[0, 0] == same[1199]


@pytest.mark.parametrize(
    "resizing", [False, True], ids=["row_14_search_while_adding", "row_15_while_resizing"]
)
def test_rows_14_and_15_search_during_an_addition_is_correct(resizing: bool) -> None:
    """Adding beside searching is not thread-safe; resizing beside searching is a segmentation fault."""
    rows = vectors(2600)
    index = HNSWIndex(DIM, threads=2)
    index.add(np.arange(200), rows[:200])
    done, rounds = threading.Event(), [0, 0, 0]

    def search(number: int) -> None:
        while not done.is_set():
            rounds[number] += 1
            found = index.search(rows[:40], 5)
            assert (found.keys[:, 0] == np.arange(40)).all()
            assert (found.keys >= 0).all()

    def add() -> None:
        step = 60 if resizing else 2400  # many small additions outgrow the capacity again and again
        try:
            for start in range(200, 2600, step):
                index.add(np.arange(start, start + step), rows[start : start + step])
                if resizing:
                    index.remove(np.arange(start, start + step // 2))
        finally:
            done.set()

    together(add, *(lambda number=number: search(number) for number in range(3)))
    assert min(rounds) > 3, "searches starved"
    assert len(index) == (1400 if resizing else 2600)


def test_row_16_one_thread_builds_equal_graphs(tmp_path: Path) -> None:
    """Built by two threads, the bytes differ from run to run."""
    for name in "ab":
        filled(600, threads=1).save(tmp_path / name)
    assert graph_file(tmp_path / "a").read_bytes() == graph_file(tmp_path / "b").read_bytes()
    filled(600, threads=1, seed=7).save(tmp_path / "c")
    assert graph_file(tmp_path / "a").read_bytes() != graph_file(tmp_path / "c").read_bytes()


def test_row_20_ef_and_removals_survive_loading(tmp_path: Path) -> None:
    """ef falls back to 10 on load, in silence, and recall with it."""
    index = filled(600, ef=77, M=6)
    index.remove(np.arange(50))
    index.ef = 91
    index.save(tmp_path)
    loaded = HNSWIndex.load(tmp_path)
    assert (loaded.ef, len(loaded), loaded.config) == (91, 550, index.config)
    assert loaded._graph is not None
    assert loaded._graph._native.ef == 91
    found = loaded.search(vectors(600), 20)
    np.testing.assert_array_equal(found.keys, index.search(vectors(600), 20).keys)
    assert not np.isin(found.keys, np.arange(50)).any()
    loaded.add(np.arange(50), vectors(50))  # the removed ones can come back
    assert self_recall(loaded, np.arange(600), vectors(600)) == 1


def test_row_20_pickling_is_refused() -> None:
    """A pickled index comes back without its locks and with half of its settings."""
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(InvalidInputError, match="save it to a directory"):
            copying(filled(20))


def test_row_21_half_precision_is_stored_as_single(tmp_path: Path) -> None:
    """float16 input is accepted and takes as much room as float32: so it is here, to float16's accuracy."""
    index = HNSWIndex(DIM, threads=1)
    index.add(np.arange(300), vectors(300).astype(np.float16))
    assert self_recall(index, np.arange(300), vectors(300)) == 1
    index.save(tmp_path / "half")
    filled(300).save(tmp_path / "single")
    sizes = [graph_file(tmp_path / name).stat().st_size for name in ("half", "single")]
    assert abs(sizes[0] - sizes[1]) < 0.02 * sizes[1]


@functools.cache
def large() -> tuple[HNSWIndex, ExactIndex]:
    """Both indexes of 3000 vectors, for searches only."""
    return filled(3000), exact(3000)


@pytest.mark.parametrize("share", [0.004, 0.05, 0.5, 0.9, 1.0])
def test_row_22_search_among_some_keys_keeps_the_recall(share: float) -> None:
    """A filter is a Python callback per visited vector, slow and for one thread only."""
    index, truth = large()
    queries = vectors(30, seed=1)
    allowed = np.random.default_rng(4).choice(3000, int(3000 * share), replace=False)
    found = index.search_among(queries, 10, allowed).keys
    assert np.isin(found, allowed).all()
    assert overlap(found, truth.search_among(queries, 10, allowed).keys) > 0.99


def test_row_22_filter_of_far_vectors_still_returns_k() -> None:
    """The allowed vectors are those far from the query, which a wider search does not reach."""
    index, truth = large()
    query = vectors(3000)[:1]
    far = truth.search(query, 3000).keys[0, 1500:]
    found = index.search_among(query, 10, far)
    np.testing.assert_array_equal(found.keys, truth.search_among(query, 10, far).keys)


def test_row_23_removal_of_most_vectors_frees_memory() -> None:
    """With 80 % marked as deleted, count and memory stay as they were."""
    index = filled(1000)
    index.remove(np.arange(0, 400))
    assert len(index) == 600
    index.remove(np.arange(400, 800))
    assert len(index) == 200
    assert index._table.size == 200
    assert index._graph is not None
    assert index._graph._native.get_current_count() == 200
    assert self_recall(index, np.arange(800, 1000), vectors(1000)[800:]) == 1


def test_row_24_churn_keeps_the_recall() -> None:
    """Replacing deleted elements in place is slow; here they stay behind as tombstones."""
    index = filled(600)
    rows = dict(enumerate(vectors(600)))
    generator = np.random.default_rng(0)
    for turn in range(6):
        gone = generator.choice(sorted(rows), 300, replace=False)
        index.remove(gone)
        fresh = vectors(300, seed=100 + turn)
        new_keys = np.arange(1000 * (turn + 1), 1000 * (turn + 1) + 300)
        index.add(new_keys, fresh)
        rows = {key: row for key, row in rows.items() if key not in set(gone.tolist())}
        rows.update(zip(new_keys.tolist(), fresh, strict=True))
        assert len(index) == 600
        assert index._table.size <= 1500
    assert self_recall(index, np.array(list(rows)), np.array(list(rows.values()))) > 0.995


def test_row_24_repeated_removal_and_addition_adds_no_rows() -> None:
    """Tombstones of identical vectors would accumulate, with the effect of row 13."""
    index = filled(100)
    for _ in range(300):
        index.remove(np.arange(40))
        index.add(np.arange(40), vectors(100)[:40])
    assert index._table.size == 100
    assert self_recall(index, np.arange(100), vectors(100)) == 1


def test_row_24_emptied_index_can_be_saved_and_filled_again(tmp_path: Path) -> None:
    index = filled(100)
    index.remove(np.arange(100))
    assert len(index) == 0
    assert (index.search(vectors(2), 3).keys == -1).all()
    index.save(tmp_path)
    index = HNSWIndex.load(tmp_path)
    index.add(np.arange(100), vectors(100))
    assert self_recall(index, np.arange(100), vectors(100)) == 1


@pytest.mark.parametrize("M", [1, 0, -2, 10_001, 2.5, True])
def test_row_25_m_out_of_range_is_refused(M: int) -> None:
    """M of 0 or 1 raises about memory that could not be allocated."""
    with pytest.raises(InvalidInputError, match="M must be an integer from 2 to 10000"):
        HNSWIndex(DIM, M=M)


def test_row_25_smallest_m_works() -> None:
    assert self_recall(filled(50, M=2), np.arange(50), vectors(50)) > 0.9


def test_addition_beyond_32_bit_row_numbers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """hnswlib numbers its elements with 32 bits and does not check."""
    monkeypatch.setattr(hnsw, "_MAX_ROWS", 100)
    index = filled(90)
    with pytest.raises(InvalidInputError, match="32 bits; split"):
        index.add(np.arange(200, 211), vectors(11, seed=2))
    assert len(index) == 90
    index.add(np.arange(200, 210), vectors(10, seed=2))


@pytest.mark.parametrize("failing_chunk", [1, 3])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_addition_that_fails_half_way_is_reverted(
    monkeypatch: pytest.MonkeyPatch, failing_chunk: int, error: type[BaseException]
) -> None:
    """hnswlib keeps the vectors that it inserted before memory ran out or an interrupt."""
    monkeypatch.setattr(hnsw, "_ADD_CHUNK", 50)
    index = filled(100)
    index.remove(np.array([5]))  # its vector comes back in the addition that fails
    real, calls = hnsw.Graph.add, []

    def add(graph: hnsw.Graph, rows: np.ndarray, first_row: int) -> None:
        calls.append(first_row)
        if len(calls) == failing_chunk:
            real(graph, rows[:7], first_row)
            raise error("no more")
        real(graph, rows, first_row)

    rows = np.vstack([vectors(100)[5:6], vectors(180, seed=3)])
    keys = np.arange(1000, 1181)
    monkeypatch.setattr(hnsw.Graph, "add", add)
    with pytest.raises(error):
        index.add(keys, rows)
    monkeypatch.setattr(hnsw.Graph, "add", real)
    assert len(index) == 99
    found = index.search(rows, 10).keys
    assert (found >= 0).all()
    assert (found < 100).all()
    index.add(keys, rows)
    assert self_recall(index, keys, rows) == 1


def test_first_addition_that_fails_leaves_an_empty_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = HNSWIndex(DIM)
    with monkeypatch.context() as patch:
        patch.setattr(hnsw.Graph, "add", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            index.add(np.arange(5), vectors(5))
    index.save(tmp_path)
    assert len(HNSWIndex.load(tmp_path)) == len(index) == 0
    index.add(np.arange(5), vectors(5))
    assert self_recall(index, np.arange(5), vectors(5)) == 1


def test_capacity_beyond_memory_is_a_memory_error() -> None:
    with pytest.raises(MemoryError, match="cannot allocate room for"):
        hnsw.Graph.create(2**20, capacity=2**31, M=16, ef_construction=10, ef=10, seed=1, threads=1)
