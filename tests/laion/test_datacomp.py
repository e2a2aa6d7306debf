"""DataComp's features and subset files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsqretrieval.errors import IntegrityError, InvalidInputError
from zsqretrieval.laion.datacomp import (
    UIDS,
    Subset,
    open_features,
    texts_of,
    uids_of,
    write_features,
    write_subset,
)

UID = st.integers(0, 2**128 - 1) | st.sampled_from([0, 1, 2**64 - 1, 2**64, 2**128 - 1])


@settings(max_examples=60, deadline=None)
@given(st.lists(UID, max_size=20), st.lists(UID, max_size=20))
def test_membership_is_that_of_a_set_of_integers(
    tmp_path_factory: pytest.TempPathFactory, inside: list[int], asked: list[int]
) -> None:
    path = tmp_path_factory.mktemp("subset") / "s.npy"
    write_subset(path, uids_of([f"{uid:032x}" for uid in inside]))
    subset = Subset(path)
    both = [*asked, *inside]
    assert subset.contains(uids_of([f"{uid:x}" for uid in both])).tolist() == [uid in inside for uid in both]
    assert texts_of(subset.uids) == [f"{uid:032x}" for uid in sorted(inside)] and len(subset) == len(inside)


def test_subset_is_the_file_that_datacomp_describes(tmp_path: Path) -> None:
    uids = ["ff" + "0" * 30, "00000000000000010000000000000002", "0" * 31 + "3"]
    write_subset(tmp_path / "s.npy", uids_of(pa.array(uids, pa.large_string())))
    written = np.load(tmp_path / "s.npy", mmap_mode="r")
    wanted = np.array([(int(uid[:16], 16), int(uid[16:32], 16)) for uid in uids], np.dtype("u8,u8"))
    assert written.dtype == np.dtype("u8,u8") and written.tolist() == np.sort(wanted).tolist()
    (tmp_path / "plain.bin").write_bytes(written.tobytes())  # as numpy.memmap writes
    assert Subset(tmp_path / "plain.bin").contains(wanted).all()


@pytest.mark.parametrize(
    ("cells", "said"),
    [(["g" * 32], "row 0: 'g"), (["0" * 32, None], "row 1: None"), ([""], "row 0"), (["0" * 33], "row 0")],
)
def test_text_that_is_no_uid_is_named_by_its_row(cells: list[Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        uids_of(cells)


@pytest.mark.parametrize(
    ("array", "error", "said"),
    [
        (np.array([(1, 2), (1, 1)], UIDS), IntegrityError, "row 1 is not sorted"),
        (np.array([(2, 0), (1, 1)], UIDS), IntegrityError, "row 1 is not sorted"),
        (np.zeros(4, np.uint64), InvalidInputError, "holds uint64"),
        (np.zeros((2, 2), UIDS), InvalidInputError, "not .* .n."),
        (b"1234567", IntegrityError, "no whole rows"),
    ],
)
def test_file_that_is_no_subset_is_refused(tmp_path: Path, array: Any, error: Any, said: str) -> None:
    path = tmp_path / "s.npy"
    path.write_bytes(array) if isinstance(array, bytes) else np.save(path, array)
    with pytest.raises(error, match=said):
        Subset(path)


def pool(folder: Path, name: str = "00", rows: int = 5) -> Path:
    folder.mkdir(exist_ok=True)
    table = pa.table(
        {"uid": [f"{n:032x}" for n in range(rows)], "text": ["a"] * rows, "original_width": [9] * rows}
    )
    features = {"l14_img": np.eye(rows, 8), "l14_txt": np.ones((rows, 4))}
    write_features(folder / f"{name}.parquet", table, features)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_features_come_with_the_rows_of_their_table(tmp_path: Path, compressed: bool) -> None:
    folder = pool(pool(tmp_path / "pool"), "01", 7)
    for path in folder.glob("*.npz"):
        with np.load(path) as arrays:
            kept = dict(arrays)
        if compressed:
            np.savez_compressed(path, **kept)
    found = open_features(folder, "l14_img")
    assert [len(one.vectors) for one in found.shards] == [5, 7] and len(found) == 12
    blocks = list(found.shards[1].blocks(batch_size=4))
    np.testing.assert_array_equal(np.concatenate([one for one, _ in blocks]), np.eye(7, 8, dtype=np.float16))
    assert blocks[1][1].batch.column("uid").to_pylist() == [f"{n:032x}" for n in range(4, 7)]
    assert blocks[0][1].batch.schema.names == ["uid", "caption", "width"]


def test_features_and_tables_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = pool(tmp_path / "pool")
    with pytest.raises(InvalidInputError, match=r"00.npz has no b32_img, only l14_img, l14_txt"):
        open_features(folder, "b32_img")
    pool(tmp_path / "other", rows=4)
    (tmp_path / "other/00.npz").rename(folder / "00.npz")
    with pytest.raises(IntegrityError, match=r"00.npz has 4 vectors, 00.parquet has 5 rows"):
        open_features(folder, "l14_img")
    (folder / "00.npz").rename(folder / "02.npz")
    with pytest.raises(InvalidInputError, match=r"02.npz has no table .*02.parquet"):
        open_features(folder, "l14_img")
    with pytest.raises(InvalidInputError, match="l14_img has the shape"):
        write_features(tmp_path / "x.parquet", pa.table({"uid": ["a"]}), {"l14_img": np.ones((2, 3))})
