"""Graph files that plain hnswlib loads, loses or overwrites in silence: rows 3 to 9 of ``docs/indexes.md``.

A docstring describes hnswlib by itself; the test shows the behaviour of :class:`HNSWIndex`.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

import index_data
from index_data import filled, self_recall, vectors
from zsqretrieval._util import files as storage
from zsqretrieval.errors import IntegrityError, MismatchError
from zsqretrieval.indexes import hnsw
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.graphfile import read_graph_file
from zsqretrieval.indexes.hnsw import HNSWIndex

DIM = 32
HEADER = 96  # bytes of a graph file before its first element
HELPERS = str(Path(index_data.__file__).parent)
RECORD = 4 + 4 * 32 + 4 * DIM + 8  # bytes of an element of M 16


def graph_file(path: Path) -> Path:
    return storage.peek_snapshot(path).file("graph.bin")


def rewrite(
    source: Path, target: Path, facts: Mapping[str, object] | None = None, **replaced: bytearray
) -> None:
    """Write a snapshot again with other facts or parts, and a manifest that agrees with them."""
    snapshot = storage.peek_snapshot(source)
    content = {part: snapshot.file(part).read_bytes() for part in snapshot.files}
    content |= {part.replace("_", "."): value for part, value in replaced.items()}
    parts = {part: lambda file, data=data: file.write_bytes(data) for part, data in content.items()}
    storage.write_snapshot(target, snapshot.kind, facts or snapshot.facts, parts)  # type: ignore[arg-type]


def forge(path: Path, change: Callable[[bytearray], None]) -> None:
    """Alter the graph file; size and digest in the manifest agree with it."""
    content = bytearray(graph_file(path).read_bytes())
    change(content)
    rewrite(path, path, graph_bin=content)


def alter(file: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


def overwrite(offset: int, value: bytes) -> Callable[[bytearray], None]:
    def change(content: bytearray) -> None:
        content[offset : offset + len(value)] = value

    return change


def undelete(content: bytearray) -> None:
    for element in range(400):
        content[HEADER + element * RECORD + 2] = 0


def test_row_03_truncated_empty_or_random_file_is_refused_by_name(tmp_path: Path) -> None:
    """hnswlib notices these itself; the error must come earlier and name the file."""
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


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (overwrite(HEADER + 4, b"\xff\xff\xff\x7f"), "links to an element that is not there"),
        (overwrite(8, struct.pack("<Q", 3)), "holds 400 elements in room for 3"),
        (overwrite(16, struct.pack("<Q", 10**6)), "no sound graph"),
        (overwrite(48, b"\x63\0\0\0"), "starts searching at a level"),
        (overwrite(52, b"\xff\xff\xff\xff"), "starts searching at a level"),
        (overwrite(HEADER + 132, bytes(4 * DIM)), "unit length"),
        (undelete, "graph and key table disagree"),
    ],
    ids=[
        "row_04_neighbour_id", "row_05_max_elements", "row_05_element_count", "row_05_max_level",
        "row_05_entry_point", "row_06_zeroed_vector", "deletion_marks",
    ],
)  # fmt: skip
def test_altered_graph_file_is_refused(
    tmp_path: Path, change: Callable[[bytearray], None], fault: str
) -> None:
    """All load in silence: a wrong neighbour id crashes a later query, a crafted header overflows the heap,
    zeroed vectors lower the recall to 0.45.
    """
    index = filled()
    index.remove(np.arange(10))
    index.save(tmp_path)
    good = graph_file(tmp_path).read_bytes()
    alter(graph_file(tmp_path), change)
    with pytest.raises(IntegrityError, match="SHA-256"):
        HNSWIndex.load(tmp_path)
    graph_file(tmp_path).write_bytes(good)
    forge(tmp_path, change)
    with pytest.raises(IntegrityError, match=fault):
        HNSWIndex.load(tmp_path)


@pytest.mark.parametrize("rounds", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_row_05_forged_bytes_are_refused_or_harmless(tmp_path: Path, rounds: int) -> None:
    """Crafted files in general: whatever passes the structural check can be searched and grown."""
    filled(60).save(tmp_path / "good")
    generator = np.random.default_rng(5)
    refused = 0
    content = graph_file(tmp_path / "good").read_bytes()
    for round_ in range(rounds):
        bad = bytearray(content)
        # half of the rounds change the header and the upper levels, which are small but matter most
        high = HEADER if round_ % 4 == 0 else len(bad)
        low = HEADER + 60 * RECORD if round_ % 4 == 1 else 0
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
    assert rounds / 6 < refused < rounds


def test_row_07_another_dimension_metric_encoder_or_kind_is_refused(tmp_path: Path) -> None:
    """A file of dim 64 loads as dim 128 or 32, one of l2 as cosine, in silence, and answers wrongly."""
    index = filled(fingerprint="clip")
    index.save(tmp_path / "hnsw")
    facts = storage.peek_snapshot(tmp_path / "hnsw").facts
    rewrite(tmp_path / "hnsw", tmp_path / "l2", {**facts, "metric": "l2"})
    for kind, path, wanted, message in (
        (HNSWIndex, "hnsw", {"dim": 64}, r"dim 32.*dim 64"),
        (HNSWIndex, "hnsw", {"fingerprint": "siglip"}, r"'clip'.*'siglip'"),
        (ExactIndex, "hnsw", {}, r"'hnsw'.*'exact'"),
        (HNSWIndex, "l2", {}, r"'l2'.*'cosine'"),
    ):
        with pytest.raises(MismatchError, match=message):
            kind.load(tmp_path / path, **wanted)
    for lie in ({"dim": 64}, {"M": 8}):
        rewrite(tmp_path / "hnsw", tmp_path / "lie", {**facts, **lie})
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
@pytest.mark.parametrize("rounds", [4, pytest.param(15, marks=pytest.mark.slow)])
def test_row_08_kill_while_saving_loses_no_committed_save(tmp_path: Path, rounds: int) -> None:
    """kill -9 during a save over a good file leaves 0 bytes of it."""
    filled(300).save(tmp_path)
    least = 300
    for round_ in range(rounds):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(tmp_path), HELPERS], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        if round_ == rounds - 1:
            process.stdout.readline()  # also on a slow machine, one save has returned
        time.sleep(0.004 + 0.065 * round_ / rounds)
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
path = Path(sys.argv[1])
index = HNSWIndex.load(path)
index.add(np.arange(1000, 1400), vectors(400, 32, seed=8))
for limit in (0, 3000, 50_000, 150_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        index.save(path)
    except OSError as error:
        names = [file.name for file in path.iterdir() if file.name.endswith(".tmp")]
        print("refused:", len(HNSWIndex.load(path)), names)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs RLIMIT_FSIZE")
def test_row_09_full_disk_is_an_error_and_keeps_the_old_state(tmp_path: Path) -> None:
    """Saving to a full disk or a missing directory returns without any error."""
    filled(300).save(tmp_path)
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path), HELPERS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["refused: 300 []"] * 4, done


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_row_09_write_that_hnswlib_does_not_report_is_an_error(tmp_path: Path) -> None:
    """The graph writer itself, on the device that is always full and in a directory that is not there."""
    graph = filled()._graph
    assert graph is not None
    with pytest.raises(OSError, match="0 of"):
        graph.save(Path("/dev/full"))
    with pytest.raises(OSError, match="missing"):
        graph.save(tmp_path / "missing" / "graph.bin")


def test_manifest_has_all_facts_without_loading(tmp_path: Path) -> None:
    index = HNSWIndex(DIM, fingerprint="clip", ef=99)
    index.add(np.arange(30), np.repeat(vectors(10), 3, axis=0))
    index.save(tmp_path)
    facts = storage.peek_snapshot(tmp_path).facts
    assert facts == {**index.config, "metric": "cosine", "count": 30, "rows": 10}
    assert json.loads((tmp_path / "manifest.json").read_text())["files"].keys() == {"graph.bin", "keys.npy"}
