"""One test per way in which plain hnswlib crashes, loses data or answers wrongly in silence.

Each docstring says what hnswlib does by itself; the test shows what :class:`HNSWIndex` does instead. The
numbers are those of the fault table in ``docs/indexes.md``.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import index_data
from index_data import unit, vectors

from zsqretrieval._util import files as storage
from zsqretrieval.errors import IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.indexes import hnsw
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.graphfile import read_graph_file
from zsqretrieval.indexes.hnsw import HNSWIndex

DIM = 32


def filled(n: int = 400, dim: int = DIM, **settings: int) -> HNSWIndex:
    index = HNSWIndex(dim, **{"threads": 1, **settings})  # type: ignore[arg-type]
    index.add(np.arange(n), vectors(n, dim))
    return index


def self_recall(index: HNSWIndex, keys: np.ndarray, rows: np.ndarray) -> float:
    return float((index.search(rows, 1).keys[:, 0] == keys).mean())


def graph_file(path: Path) -> Path:
    return storage.peek_snapshot(path).file("graph.bin")


def forge(path: Path, change: Callable[[bytearray], None]) -> None:
    """Alter the graph file and make size and digest in the manifest agree with it."""
    snapshot = storage.peek_snapshot(path)
    content = bytearray(snapshot.file("graph.bin").read_bytes())
    keys = snapshot.file("keys.npy").read_bytes()
    change(content)
    parts = {
        "keys.npy": lambda file: file.write_bytes(keys),
        "graph.bin": lambda file: file.write_bytes(content),
    }
    storage.write_snapshot(path, snapshot.kind, snapshot.facts, parts)


def test_row_01_query_of_another_dimension() -> None:
    """A query of 32 numbers to an index of 64 is a segmentation fault, of 65 heap corruption."""
    index = filled(100, 64)
    for bad in (np.ones((2000, 32), np.float32), np.ones(64, np.float32), np.ones((3, 65), np.float32)):
        with pytest.raises(InvalidInputError, match=r"needs \[n, 64\]"):
            index.search(bad, 5)
    assert self_recall(index, np.arange(100), vectors(100, 64)) == 1


def test_row_02_search_before_anything_is_added() -> None:
    """Searching an index that was never initialised is a segmentation fault."""
    index = HNSWIndex(DIM)
    assert (index.search(vectors(3), 4).keys == -1).all()
    assert (index.search_among(vectors(3), 4, np.arange(9)).keys == -1).all()


def test_row_03_truncated_empty_or_random_file(tmp_path: Path) -> None:
    """hnswlib notices these itself; so must we, before it sees them, and name the file."""
    filled().save(tmp_path)
    file = graph_file(tmp_path)
    good = file.read_bytes()
    noise = np.random.default_rng(0).bytes(len(good))
    for bad in (good[:-4], good[: len(good) // 2], good[:30], b"", noise):
        file.write_bytes(bad)
        with pytest.raises(IntegrityError, match=file.name):
            HNSWIndex.load(tmp_path)
        with pytest.raises(IntegrityError, match=file.name):  # also without the manifest's digest
            read_graph_file(file, dim=DIM, M=16)


def test_row_04_neighbour_ids_out_of_range(tmp_path: Path) -> None:
    """Bit rot in a neighbour id loads in silence and is a segmentation fault at a later query."""
    filled().save(tmp_path)

    def change(content: bytearray) -> None:
        content[96 + 4 : 96 + 8] = b"\xff\xff\xff\x7f"

    file = graph_file(tmp_path)
    rotten = bytearray(file.read_bytes())
    change(rotten)
    good = file.read_bytes()
    file.write_bytes(rotten)
    with pytest.raises(IntegrityError, match="SHA-256"):
        HNSWIndex.load(tmp_path)
    file.write_bytes(good)
    forge(tmp_path, change)
    with pytest.raises(IntegrityError, match="not there"):
        HNSWIndex.load(tmp_path)


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (8, struct.pack("<Q", 3)),
        (16, struct.pack("<Q", 10**6)),
        (48, b"\x63\0\0\0"),
        (52, b"\xff\xff\xff\xff"),
    ],
    ids=["max_elements", "cur_element_count", "maxlevel", "enterpoint"],
)
def test_row_05_crafted_header(tmp_path: Path, offset: int, value: bytes) -> None:
    """A header that claims less room than elements loads, then overflows the heap."""
    filled().save(tmp_path)

    def change(content: bytearray) -> None:
        content[offset : offset + len(value)] = value

    forge(tmp_path, change)
    with pytest.raises(IntegrityError, match="no sound graph"):
        HNSWIndex.load(tmp_path)


def test_row_05_no_forged_byte_reaches_native_code_unchecked(tmp_path: Path) -> None:
    """Crafted files in general: whatever passes the structural check can be searched and grown."""
    filled(60).save(tmp_path / "good")
    generator = np.random.default_rng(5)
    refused = 0
    content = graph_file(tmp_path / "good").read_bytes()
    record = 4 + 4 * 32 + 4 * DIM + 8
    for round_ in range(120):
        bad = bytearray(content)
        # half of the rounds hit the header and the upper levels, which are small but matter most
        high = 96 if round_ % 4 == 0 else len(bad)
        low = 96 + 60 * record if round_ % 4 == 1 else 0
        for position in generator.integers(low, high, 3):
            bad[position] = generator.integers(0, 256)
        file = tmp_path / "bad.bin"
        file.write_bytes(bad)
        try:
            stored = read_graph_file(file, dim=DIM, M=16)
        except IntegrityError:
            refused += 1
            continue
        graph = hnsw.Graph.load(file, DIM, count=len(stored.labels), M=16, ef=50, threads=1)
        graph.search(vectors(20, seed=3), 10)
        graph.add(vectors(5, seed=4), 10**6)
    assert 20 < refused < 120


def test_row_06_zeroed_vectors(tmp_path: Path) -> None:
    """A zeroed part of the vectors loads in silence; recall 0.45."""
    filled().save(tmp_path)
    file = graph_file(tmp_path)
    content = bytearray(file.read_bytes())
    content[1000:40_000] = bytes(39_000)
    good = file.read_bytes()
    file.write_bytes(content)
    with pytest.raises(IntegrityError, match="SHA-256"):
        HNSWIndex.load(tmp_path)
    file.write_bytes(good)

    def change(content: bytearray) -> None:
        content[96 + 132 : 96 + 132 + 4 * DIM] = bytes(4 * DIM)

    forge(tmp_path, change)
    with pytest.raises(IntegrityError, match="unit length"):
        HNSWIndex.load(tmp_path)


def test_row_07_another_dimension_metric_encoder_or_kind(tmp_path: Path) -> None:
    """A file of dim 64 loads as dim 128 or 32, one of l2 as cosine, in silence, and answers wrongly."""
    HNSWIndex(DIM, fingerprint="clip").save(tmp_path / "hnsw")
    with pytest.raises(MismatchError, match=r"dim 32.*dim 64"):
        HNSWIndex.load(tmp_path / "hnsw", dim=64)
    with pytest.raises(MismatchError, match=r"'clip'.*'siglip'"):
        HNSWIndex.load(tmp_path / "hnsw", fingerprint="siglip")
    with pytest.raises(MismatchError, match=r"'hnsw'.*'exact'"):
        ExactIndex.load(tmp_path / "hnsw")
    facts = {**HNSWIndex(DIM).config, "metric": "l2", "count": 0, "rows": 0}
    storage.write_snapshot(tmp_path / "l2", "hnsw", facts, {})
    with pytest.raises(MismatchError, match=r"'l2'.*'cosine'"):
        HNSWIndex.load(tmp_path / "l2")
    filled().save(tmp_path / "full")
    snapshot = storage.peek_snapshot(tmp_path / "full")
    parts = {part: snapshot.file(part).read_bytes() for part in snapshot.files}
    for lie in ({"dim": 64}, {"M": 8}):
        storage.write_snapshot(
            tmp_path / "lie",
            "hnsw",
            {**snapshot.facts, **lie},
            {
                part: lambda file, content=content: file.write_bytes(content)
                for part, content in parts.items()
            },  # type: ignore[misc]
        )
        with pytest.raises(IntegrityError, match="layout"):
            HNSWIndex.load(tmp_path / "lie")


KILLED = """
import sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[2])
from index_data import vectors
from zsqretrieval.indexes.hnsw import HNSWIndex
index = HNSWIndex.load(Path(sys.argv[1]))
print("ready", flush=True)
while True:
    n = len(index)
    index.add(np.arange(n, n + 5), vectors(5, 32, seed=n))
    index.save(Path(sys.argv[1]))
    print("saved", flush=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_row_08_killed_while_saving(tmp_path: Path) -> None:
    """kill -9 during a save over a good file leaves 0 bytes of it."""
    filled(300).save(tmp_path)
    least = 300
    for round_ in range(15):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), str(Path(index_data.__file__).parent)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        if round_ == 14:
            process.stdout.readline()  # however slow the machine, one save is known to have returned
        time.sleep(0.004 + 0.0043 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        index = HNSWIndex.load(tmp_path)
        assert len(index) >= least, "a committed save was lost"
        assert len(index) % 5 == 0
        least = len(index)
        assert self_recall(index, np.arange(300), vectors(300)) == 1
    assert least > 300


FULL_DISK = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import numpy as np
from index_data import vectors
from zsqretrieval.indexes.hnsw import HNSWIndex
index = HNSWIndex.load(Path(sys.argv[1]))
index.add(np.arange(1000, 1400), vectors(400, 32, seed=8))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
try:
    index.save(Path(sys.argv[1]))
except OSError as error:
    print("refused:", error)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE")
@pytest.mark.parametrize("limit", [0, 3000, 50_000, 150_000])
def test_row_09_full_disk(tmp_path: Path, limit: int) -> None:
    """Saving to a full disk or a missing directory returns without any error."""
    filled(300).save(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(Path(index_data.__file__).parent), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("refused:"), done
    assert len(HNSWIndex.load(tmp_path)) == 300
    assert not [file for file in tmp_path.iterdir() if file.name.endswith(".tmp")]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_row_09_what_hnswlib_does_not_report(tmp_path: Path) -> None:
    """The graph writer itself, on the device that is always full and in a directory that is not there."""
    graph = filled()._graph
    assert graph is not None
    with pytest.raises(OSError, match="0 of"):
        graph.save(Path("/dev/full"))
    with pytest.raises(OSError, match="missing"):
        graph.save(tmp_path / "missing" / "graph.bin")


def test_row_10_more_asked_for_than_there_is() -> None:
    """k beyond the count, or a filter that admits fewer, raises about a contiguous 2D array."""
    index = filled(50)
    found = index.search(vectors(4, seed=1), 80)
    assert ((found.keys >= 0).sum(axis=1) == 50).all()
    assert all(set(row[:50]) == set(range(50)) for row in found.keys.tolist())
    found = index.search_among(vectors(4, seed=1), 80, np.arange(40, 60))
    assert all(set(row[:10]) == set(range(40, 50)) for row in found.keys.tolist())
    assert (found.keys[:, 10:] == -1).all()


def test_row_10_a_graph_that_falls_short_is_backed_by_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where the graph cannot be walked to enough vectors: refused batch, or too few per query."""
    index, truth = filled(), ExactIndex(DIM)
    truth.add(np.arange(400), vectors(400))
    queries = vectors(6, seed=2)
    monkeypatch.setattr(hnsw.Graph, "search", lambda *_: None)
    np.testing.assert_array_equal(index.search(queries, 10).keys, truth.search(queries, 10).keys)

    def two_only(graph: object, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros((len(queries), 1), np.int64), np.zeros((len(queries), 1), np.float32)

    monkeypatch.setattr(hnsw.Graph, "search", two_only)
    np.testing.assert_array_equal(index.search(queries, 10).keys, truth.search(queries, 10).keys)


def test_row_11_ef_below_k() -> None:
    """With ef 5 and k 50 there is no error, and recall is .906."""
    index = filled(2000, ef=5, M=6)
    truth = ExactIndex(DIM)
    truth.add(np.arange(2000), vectors(2000))
    queries = vectors(100, seed=1)
    found, wanted = index.search(queries, 50).keys, truth.search(queries, 50).keys
    recall = np.mean(
        [len(set(f) & set(w)) / 50 for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]
    )
    assert recall > 0.97


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_row_12_values_that_are_not_finite(value: float) -> None:
    """A nan row is stored and lowers the recall of the others; a nan query gets answers of distance nan."""
    index = filled()
    bad = vectors(3, seed=6)
    bad[2, 5] = value
    with pytest.raises(InvalidInputError, match="vector 2 of 3"):
        index.add(np.array([1000, 1001, 1002]), bad)
    with pytest.raises(InvalidInputError, match="vector 2 of 3"):
        index.search(bad, 3)
    assert len(index) == 400
    assert self_recall(index, np.arange(400), vectors(400)) == 1


def test_row_13_forty_per_cent_identical_vectors() -> None:
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
def test_rows_14_and_15_search_while_adding(resizing: bool) -> None:
    """Adding beside searching is not thread-safe; resizing beside searching is a segmentation fault."""
    rows = vectors(2600)
    index = HNSWIndex(DIM, threads=2)
    index.add(np.arange(200), rows[:200])
    stop, errors, rounds = threading.Event(), [], [0, 0, 0]

    def search(number: int) -> None:
        try:
            while not stop.is_set():
                rounds[number] += 1
                found = index.search(rows[:40], 5)
                assert (found.keys[:, 0] == np.arange(40)).all()
                assert (found.keys >= 0).all()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        step = 60 if resizing else 2400  # many small additions outgrow the capacity again and again
        for start in range(200, 2600, step):
            index.add(np.arange(start, start + step), rows[start : start + step])
            if resizing:
                index.remove(np.arange(start, start + step // 2))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert min(rounds) > 3, "searches starved"
    assert len(index) == (1400 if resizing else 2600)


def test_row_16_one_thread_builds_the_same_graph_every_time(tmp_path: Path) -> None:
    """Built by two threads, the bytes differ from run to run."""
    for name in "ab":
        filled(600, threads=1).save(tmp_path / name)
    assert graph_file(tmp_path / "a").read_bytes() == graph_file(tmp_path / "b").read_bytes()
    filled(600, threads=1, seed=7).save(tmp_path / "c")
    assert graph_file(tmp_path / "a").read_bytes() != graph_file(tmp_path / "c").read_bytes()


def test_row_17_keys_that_are_not_natural_numbers() -> None:
    """1.7 becomes label 1 and -3.2 becomes 18446744073709551613, in silence."""
    index = HNSWIndex(DIM)
    for keys in ([1.7, 2.0], [-3, 1], [-3.2, 1.0]):
        with pytest.raises(InvalidInputError):
            index.add(np.array(keys), vectors(2))
    large = np.array([2**62, 2**63 - 1])
    index.add(large, vectors(2))
    assert index.search(vectors(2), 1).keys[:, 0].tolist() == large.tolist()


def test_row_18_a_key_that_is_there_already() -> None:
    """The same label again overwrites the vector in silence."""
    index = filled(20)
    with pytest.raises(InvalidInputError, match="key 7 is stored already"):
        index.add(np.array([100, 7]), vectors(2, seed=5))
    assert len(index) == 20
    assert self_recall(index, np.arange(20), vectors(20)) == 1


def test_row_19_lengths_are_not_kept() -> None:
    """A vector of length 7 is stored with length 1: so it is here, and the score is a true cosine."""
    rows = vectors(300)
    index, truth = HNSWIndex(DIM), ExactIndex(DIM)
    for each in (index, truth):
        each.add(np.arange(300), rows * np.linspace(0.001, 900, 300, dtype=np.float32)[:, None])
    found, wanted = index.search(7 * rows[:50], 5), truth.search(rows[:50], 5)
    np.testing.assert_array_equal(found.keys, wanted.keys)
    exact = np.einsum("qd,qkd->qk", unit(rows[:50]).astype(float), rows[found.keys].astype(float))
    np.testing.assert_allclose(found.scores, exact, atol=1e-5)


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


def test_row_20_pickling_is_refused_in_words() -> None:
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


@pytest.mark.parametrize("share", [0.004, 0.05, 0.5, 0.9, 1.0])
def test_row_22_searching_among_some_keys(share: float) -> None:
    """A filter is a Python callback per visited vector, slow and for one thread only."""
    rows, queries = vectors(3000), vectors(30, seed=1)
    index, truth = filled(3000), ExactIndex(DIM)
    truth.add(np.arange(3000), rows)
    allowed = np.random.default_rng(4).choice(3000, int(3000 * share), replace=False)
    found, wanted = index.search_among(queries, 10, allowed), truth.search_among(queries, 10, allowed)
    assert np.isin(found.keys, allowed).all()
    recall = np.mean(
        [len(set(f) & set(w)) / 10 for f, w in zip(found.keys.tolist(), wanted.keys.tolist(), strict=True)]
    )
    assert recall > 0.99


def test_row_22_a_filter_against_the_query_still_fills_the_answer() -> None:
    """Allowed are exactly the vectors far from the query, which no widened search meets."""
    rows = vectors(3000)
    index, truth = filled(3000), ExactIndex(DIM)
    truth.add(np.arange(3000), rows)
    query = rows[:1]
    far = truth.search(query, 3000).keys[0, 1500:]
    np.testing.assert_array_equal(
        index.search_among(query, 10, far).keys, truth.search_among(query, 10, far).keys
    )


def test_row_23_removing_most_gives_memory_back() -> None:
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


def test_row_24_churn() -> None:
    """Replacing deleted elements in place is slow; here they are left behind, and recall stays."""
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


def test_row_24_removing_and_adding_one_vector_for_ever_costs_nothing() -> None:
    """Tombstones of identical vectors would pile up, with the effect of row 13."""
    index = filled(100)
    for _ in range(300):
        index.remove(np.arange(40))
        index.add(np.arange(40), vectors(100)[:40])
    assert index._table.size == 100
    assert self_recall(index, np.arange(100), vectors(100)) == 1


def test_row_24_everything_removed_then_added_again(tmp_path: Path) -> None:
    """An index may become empty, be saved so, and live on."""
    index = filled(100)
    index.remove(np.arange(100))
    assert len(index) == 0
    assert (index.search(vectors(2), 3).keys == -1).all()
    index.save(tmp_path)
    index = HNSWIndex.load(tmp_path)
    index.add(np.arange(100), vectors(100))
    assert self_recall(index, np.arange(100), vectors(100)) == 1


@pytest.mark.parametrize("M", [1, 0, -2, 10_001, 2.5, True])
def test_row_25_too_few_links(M: int) -> None:
    """M of 0 or 1 raises about memory that could not be allocated."""
    with pytest.raises(InvalidInputError, match="M must be an integer from 2 to 10000"):
        HNSWIndex(DIM, M=M)


def test_row_25_the_fewest_links_work() -> None:
    """M of 2 is poor but sound."""
    assert self_recall(filled(50, M=2), np.arange(50), vectors(50)) > 0.9


def test_row_26_growth_and_unknown_keys() -> None:
    """Over capacity, resizing below the count and unknown ids are errors of hnswlib's own."""
    index = HNSWIndex(DIM)
    for start in range(0, 900, 90):
        index.add(np.arange(start, start + 90), vectors(900)[start : start + 90])
    assert self_recall(index, np.arange(900), vectors(900)) == 1
    with pytest.raises(InvalidInputError, match="key 900 is not stored"):
        index.remove(np.array([3, 900]))
    assert len(index) == 900


def test_the_32_bit_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """hnswlib numbers its elements with 32 bits and does not check."""
    monkeypatch.setattr(hnsw, "_MAX_ROWS", 100)
    index = filled(90)
    with pytest.raises(InvalidInputError, match="32 bits; split"):
        index.add(np.arange(200, 211), vectors(11, seed=2))
    assert len(index) == 90
    index.add(np.arange(200, 210), vectors(10, seed=2))


@pytest.mark.parametrize("failing_chunk", [1, 3])
@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
def test_an_addition_that_fails_half_way_is_taken_back(
    monkeypatch: pytest.MonkeyPatch, failing_chunk: int, error: type[BaseException]
) -> None:
    """hnswlib leaves what it had inserted when memory ran out; an interrupt leaves half."""
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


def test_a_first_addition_that_fails_leaves_an_empty_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hnsw.Graph.add

    def add(*_: object) -> None:
        raise MemoryError

    index = HNSWIndex(DIM)
    monkeypatch.setattr(hnsw.Graph, "add", add)
    with pytest.raises(MemoryError):
        index.add(np.arange(5), vectors(5))
    monkeypatch.setattr(hnsw.Graph, "add", real)
    index.save(tmp_path)
    assert len(HNSWIndex.load(tmp_path)) == len(index) == 0
    index.add(np.arange(5), vectors(5))
    assert self_recall(index, np.arange(5), vectors(5)) == 1


def test_more_memory_than_there_is() -> None:
    with pytest.raises(MemoryError, match="cannot allocate room for"):
        hnsw.Graph.create(2**20, capacity=2**31, M=16, ef_construction=10, ef=10, seed=1, threads=1)


def test_the_manifest_tells_all_without_loading(tmp_path: Path) -> None:
    index = HNSWIndex(DIM, fingerprint="clip", ef=99)
    index.add(np.arange(30), np.repeat(vectors(10), 3, axis=0))
    index.save(tmp_path)
    facts = storage.peek_snapshot(tmp_path).facts
    assert facts == {**index.config, "metric": "cosine", "count": 30, "rows": 10}
    assert json.loads((tmp_path / "manifest.json").read_text())["files"].keys() == {"graph.bin", "keys.npy"}


def test_graph_and_key_table_must_agree(tmp_path: Path) -> None:
    index = filled(60)
    index.remove(np.arange(10))
    index.save(tmp_path)

    def undelete(content: bytearray) -> None:
        record = 4 + 4 * 32 + 4 * DIM + 8
        for element in range(60):
            content[96 + element * record + 2] = 0

    forge(tmp_path, undelete)
    with pytest.raises(IntegrityError, match="disagree"):
        HNSWIndex.load(tmp_path)
