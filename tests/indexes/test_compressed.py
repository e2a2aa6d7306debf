"""CompressedIndex: the contract with lists, recall, tuning, and files verified when they are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.synthetic import CliplikeVectors, cliplike
from index_data import vectors
from zsqretrieval._util.files import array_part, peek_snapshot, write_snapshot
from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.indexes import compressed, rows
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.lists import Lists
from zsqretrieval.indexes.tuning import measure
from zsqretrieval.testing import index_checks, parametrize_checks
from zsqretrieval.testing.index_model import recall

_N = 9000  # enough for lists


@pytest.fixture(scope="module")
def data() -> CliplikeVectors:
    return cliplike(_N, 200, dim=64, rank=40, clusters=200)


@pytest.fixture(scope="module")
def saved(data: CliplikeVectors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("index")
    filled(data).save(path)
    return path


def filled(data: CliplikeVectors, **settings: Any) -> CompressedIndex:
    index = CompressedIndex(64, threads=1, **settings)
    index.add(np.arange(_N), data.gallery)
    return index


def recall_of(index: CompressedIndex, data: CliplikeVectors, keys: np.ndarray | None = None) -> float:
    kept = np.arange(_N) if keys is None else keys
    found = index.search(data.text_queries, 10)
    return recall(found, data.text_queries, kept, data.gallery[kept])


def make_with_every_list(dim: int, fingerprint: str = "") -> CompressedIndex:
    return CompressedIndex(dim, fingerprint=fingerprint, probe=10_000, refine=8)


@parametrize_checks(index_checks, make_with_every_list)
def test_contract_with_lists_of_few_vectors(
    check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, few in (("_TRAINED_ROWS", 30), ("_TAIL", 4), ("_EXACT_ROWS", 8), ("_CHUNK", 16)):
        monkeypatch.setattr(compressed, name, few)
    check()


def test_recall_at_the_defaults_on_text_like_queries(data: CliplikeVectors) -> None:
    index = filled(data)
    assert index.list_count == 512 and index.width == 64
    assert recall_of(index, data) >= 0.95


def test_loaded_index_answers_the_same_before_and_after_more_is_added(
    data: CliplikeVectors, saved: Path
) -> None:
    index, loaded = filled(data), CompressedIndex.load(saved)
    more = vectors(1500, 64)
    for _ in range(2):
        one, other = index.search(data.text_queries, 10), loaded.search(data.text_queries, 10)
        assert np.array_equal(one.keys, other.keys) and np.allclose(one.scores, other.scores, atol=1e-5)
        for each in (index, loaded):
            each.add(np.arange(_N, _N + 1500), more)
            assert (each.search(more[:50], 1).keys[:, 0] == np.arange(_N, _N + 50)).mean() >= 0.98
            each.remove(np.arange(_N, _N + 1500))


def test_lists_are_trained_again_when_the_vectors_have_doubled(data: CliplikeVectors) -> None:
    index = CompressedIndex(64, threads=1)
    index.add(np.arange(2000), data.gallery[:2000])
    assert index.list_count == 0
    index.add(np.arange(2000, _N), data.gallery[2000:])
    assert index.list_count == 512
    index.add(np.arange(_N, 4 * _N), vectors(3 * _N, 64))
    assert index.list_count == 1024
    assert recall_of(index, data) > 0  # the others are far away
    among = index.search_among(data.text_queries, 10, np.arange(_N))
    assert recall(among, data.text_queries, np.arange(_N), data.gallery) >= 0.95
    assert (index.search(data.gallery[:200], 1).keys[:, 0] == np.arange(200)).mean() >= 0.98


def test_reopened_index_is_trained_again_when_it_has_doubled(tmp_path: Path) -> None:
    index, n = CompressedIndex(16, threads=1), 2048
    index.add(np.arange(n), vectors(n, 16))
    assert index.list_count == 256
    for seed in (1, 2):
        index.save(tmp_path)
        index = CompressedIndex.load(tmp_path)
        index.add(np.arange(n, n + 1400), vectors(1400, 16, seed=seed))
        n += 1400
    assert index._codes is not None and index._codes.trained == n > 2 * 2048


def test_vectors_unlike_the_earlier_ones_are_found(data: CliplikeVectors) -> None:
    random = np.random.default_rng(0)
    first, later = np.zeros((2, 4000, 256), np.float32)
    first[:, :100] = random.standard_normal((4000, 100))
    later[:, 100:200] = random.standard_normal((4000, 100))
    index = CompressedIndex(256, threads=1)
    index.add(np.arange(4000), first)
    index.add(np.arange(4000, 7900), later[:3900])
    assert (index.search(later[:200], 1).keys[:, 0] == np.arange(4000, 4200)).mean() >= 0.98


def test_removed_vectors_are_excluded_and_forgotten_when_most_are_gone(data: CliplikeVectors) -> None:
    index = filled(data)
    kept = np.arange(0, _N, 3)
    gone = np.setdiff1d(np.arange(_N), kept)
    first, second = gone[: _N // 3], gone[_N // 3 :]
    index.remove(first)
    assert index._table.size == _N
    assert not np.isin(index.search(data.text_queries, 50).keys, first).any()
    index.remove(second)
    assert recall_of(index, data, kept) >= 0.95
    assert not np.isin(index.search(data.text_queries, 50).keys, gone).any()
    assert index._table.size == len(kept) and index.list_count == 256


def test_no_queries_give_no_rows(data: CliplikeVectors) -> None:
    index = filled(data)
    assert index.search(data.text_queries[:0], 4).keys.shape == (0, 4)
    assert index.search_among(data.text_queries[:0], 4, np.arange(_N // 2)).scores.shape == (0, 4)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
def test_filtered_search_keeps_its_recall(
    data: CliplikeVectors, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "_EXACT_ROWS", 50)
    index = filled(data)
    among = np.flatnonzero(np.random.default_rng(0).random(_N) < share)
    found = index.search_among(data.text_queries, 10, among)
    assert np.isin(found.keys, among).all()
    assert recall(found, data.text_queries, among, data.gallery[among]) >= 0.95


def test_scores_are_cosines_to_a_few_hundred_thousandths(data: CliplikeVectors) -> None:
    index = filled(data)
    found = index.search(data.text_queries, 10)
    true = np.einsum("qkd,qd->qk", data.gallery[found.keys], data.text_queries)
    assert np.abs(found.scores - true).max() < 5e-5


def test_vectors_without_principal_components_keep_all_of_theirs() -> None:
    index = CompressedIndex(256, threads=1)
    index.add(np.arange(_N), vectors(_N, 256, rank=256))
    assert index.width >= 192


# --- tuning


def test_tuning_reaches_the_recall_and_is_saved(data: CliplikeVectors, tmp_path: Path) -> None:
    index = filled(data, probe=1, refine=1)
    tuning = index.tune(data.text_queries, 0.98)
    assert tuning.reached and tuning.chosen is not None and tuning.chosen.recall >= 0.98
    assert (index.probe, index.refine) == (tuning.chosen.probe, tuning.chosen.refine)
    assert recall_of(index, data) >= 0.97
    recalls = [one.recall for one in tuning.curve]
    assert recalls == sorted(recalls) and len(recalls) > 2
    index.save(tmp_path)
    loaded = CompressedIndex.load(tmp_path)
    assert loaded.config == index.config and loaded.probe == index.probe


@pytest.mark.parametrize(("needed", "lists"), [(1, 1), (1, 64), (2, 64), (5, 64)])
def test_tuning_finds_the_fewest_lists_that_reach_the_recall(needed: int, lists: int) -> None:
    truth = np.arange(20).reshape(4, 5)
    _, best = measure(lambda probe, _: truth if probe >= needed else truth + 20, 8, lists, truth, 0.95)
    assert best.probe == needed


def test_few_vectors_need_no_tuning() -> None:
    index = CompressedIndex(32)
    index.add(np.arange(100), vectors(100))
    tuning = index.tune(vectors(5, seed=1))
    assert tuning.reached and tuning.chosen is None and tuning.exact_seconds > 0


@pytest.mark.parametrize(
    ("n", "recall", "message"),
    [
        (0, 0.9, "there are no queries"),
        (3, 0, "recall must be above 0 and at most 1, not 0"),
        (3, 1.01, "recall must be above 0 and at most 1, not 1.01"),
        (3, float("nan"), "recall must be a finite number"),
    ],
)
def test_tuning_without_queries_or_with_an_impossible_recall_is_refused(
    n: int, recall: float, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        CompressedIndex(32).tune(vectors(n), recall)


@pytest.mark.parametrize("setting", ["probe", "refine", "reduced", "lists", "threads"])
def test_settings_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(InvalidInputError, match=f"{setting} must be an integer"):
        CompressedIndex(8, **{setting: 0})
    with pytest.raises(InvalidInputError, match="reduced must be an integer from 1 to 8"):
        CompressedIndex(8, reduced=9)


# --- damage


def load_damaged(saved: Path, folder: Path, *, row: int) -> tuple[CompressedIndex, Path]:
    """Load a copy of an index of dim 64 with a flipped bit in the vector of a row, and name the file."""
    shutil.copytree(saved, folder)
    file = peek_snapshot(folder).file("vectors.bin")
    content = bytearray(file.read_bytes())
    content[2 * 64 * row] ^= 1
    file.write_bytes(content)
    return CompressedIndex.load(folder), file


def test_damaged_vectors_are_found_when_they_are_read(
    data: CliplikeVectors, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_WHOLE_BYTES", 0)
    index, file = load_damaged(saved, tmp_path / "index", row=500)
    index.probe = index.refine = 1  # so that a search reads few blocks
    assert index.search(data.gallery[8000:8001], 1).keys == 8000
    with pytest.raises(IntegrityError, match=f"{file.name} is damaged: rows 256 and following"):
        index.search(data.gallery[500:501], 1)
    with pytest.raises(IntegrityError, match="is damaged"):
        index.save(tmp_path / "copy")  # damage is not copied under a new digest
    assert not (tmp_path / "copy" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("members.npy", lambda array: array + 1),
        ("members.npy", lambda array: np.zeros_like(array)),
        ("lists.npy", lambda array: np.append(array[:-1], array[-1] + 5)),
        ("lists.npy", lambda array: np.append(array[1:] * 0 - 1, array.sum() + len(array) - 1)),
        ("codes.npy", lambda array: array[:, :-1]),
        ("codes.npy", lambda array: array.astype(np.float32)),
        ("centroids.npy", lambda array: array * np.nan),
        ("rotation.npy", lambda array: array[:-1]),
        ("rotation.npy", lambda array: array.sum()),
        ("rotation.npy", lambda array: array * np.float32(1e30)),
        ("lists.npy", lambda array: array.sum()),
        ("lists.npy", lambda array: np.append(array[1:] * 0 + 2**62, array.sum())),
        ("rows.npy", lambda array: array + 10**6),
        ("digests.npy", lambda array: array[:-1]),
        ("blocks.npy", lambda array: array[:-1]),
        ("keys.npy", lambda array: array + 10**6),
    ],
)
def test_forged_parts_are_refused(saved: Path, tmp_path: Path, part: str, change: Any) -> None:
    snapshot = peek_snapshot(saved)
    parts: dict[str, Any] = {
        name: lambda file, name=name: shutil.copy(snapshot.file(name), file) for name in snapshot.files
    }
    parts[part] = array_part(change(np.load(snapshot.file(part))))
    write_snapshot(tmp_path, snapshot.kind, snapshot.facts, parts)
    with pytest.raises(IntegrityError, match=r"rebuild the index from its source|the key table"):
        CompressedIndex.load(tmp_path)


def test_failed_addition_is_reverted(data: CliplikeVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    index = filled(data)
    before = index.search(data.text_queries, 10)

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    more = vectors(2000, 64)
    with monkeypatch.context() as patch:
        patch.setattr(Lists, "add", fail)
        with pytest.raises(MemoryError, match="no room"):
            index.add(np.arange(_N, _N + 2000), more)
    assert len(index) == _N
    after = index.search(data.text_queries, 10)
    assert recall_of(index, data) >= 0.95 and after.keys.shape == before.keys.shape
    index.add(np.arange(_N, _N + 2000), more)
    assert len(index) == _N + 2000
    assert (index.search(more[:100], 1).keys[:, 0] == np.arange(_N, _N + 100)).mean() >= 0.98


def test_interrupted_tuning_changes_no_setting(
    data: CliplikeVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = filled(data)
    before = index.config

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compressed, "measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        index.tune(data.text_queries[:20])
    assert index.config == before


def test_tuning_for_more_results_than_vectors_takes_little_memory(data: CliplikeVectors) -> None:
    assert filled(data).tune(data.text_queries[:3], 0.5, k=10**8).reached


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_process_can_search_and_train(data: CliplikeVectors) -> None:
    index = CompressedIndex(64, threads=2)
    index.add(np.arange(_N), data.gallery)
    expected = index.search(data.text_queries, 5).keys
    child = os.fork()
    if not child:  # in which OpenMP would wait for the parent's threads
        try:
            assert np.array_equal(index.search(data.text_queries, 5).keys, expected)
            index.add(np.arange(_N, 3 * _N), vectors(2 * _N, 64))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


def test_batches_in_threads_give_the_answers_of_one_thread(data: CliplikeVectors, saved: Path) -> None:
    one, two = CompressedIndex.load(saved), CompressedIndex.load(saved)
    two._threads = 2
    assert len(data.text_queries) > compressed._TOGETHER  # so that there are several parts
    found, others = one.search(data.text_queries, 10), two.search(data.text_queries, 10)
    assert np.array_equal(found.keys, others.keys) and np.array_equal(found.scores, others.scores)
    for index in (one, two):
        assert recall_of(index, data) >= 0.95


def test_candidates_that_are_missing_read_nothing(
    data: CliplikeVectors, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_WHOLE_BYTES", 0)
    index, _ = load_damaged(saved, tmp_path / "index", row=0)
    found = index._store.scores(data.gallery[500:501], np.array([[500, -1, -1]]))
    assert found[0, 0] == pytest.approx(1, abs=5e-5)
