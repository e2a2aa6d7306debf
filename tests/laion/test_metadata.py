"""Tables of several makers under one set of names and types."""

from __future__ import annotations

import math
import sys
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from zsqretrieval.errors import IntegrityError, InvalidInputError, MissingDependencyError
from zsqretrieval.laion.metadata import COLUMNS, canonical, read_metadata


def table(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


LAION_400M = table(
    SAMPLE_ID=[1, 2], URL=["u", "v"], TEXT=["a", None], LICENSE=["?", "CC"], NSFW=["UNLIKELY", "NSFW"],
    similarity=pa.array([0.3, math.nan]), WIDTH=pa.array([640.0, math.nan]), HEIGHT=pa.array([480.0, None]),
)  # fmt: skip
LAION_5B = table(
    URL=["u", "v"], TEXT=["a", "b"], WIDTH=pa.array([640, 1], pa.int32()), HEIGHT=pa.array([480, 1]),
    LANGUAGE=["de", None], similarity=[0.3, 0.2], hash=pa.array([-(2**63), 7]),
    punsafe=pa.array([0.1, None], pa.float32()), pwatermark=pa.array([0.5, 1.0], pa.float16()),
)  # fmt: skip
DATACOMP = table(
    uid=["0" * 32, "f" * 32], url=["u", "v"], text=["a", "b"], original_width=[640, 1],
    original_height=[480, 1],
    clip_b32_similarity_score=[0.3, 0.2], clip_l14_similarity_score=[0.2, 0.1], sha256=["x", "y"],
    face_bboxes=[[[0.1, 0.2, 0.3, 0.4]], []],
)  # fmt: skip
IMG2DATASET = table(
    url=["u", "v"], caption=["a", None], key=["000000001", "000000002"], status=["success", "failed"],
    width=pa.array([256, None], pa.int32()), height=pa.array([256, None]), original_width=[640, None],
    md5=["x", None], punsafe=pa.array([0.1, None], pa.float32()), NSFW=["UNSURE", None],
)  # fmt: skip


@pytest.mark.parametrize(
    ("batch", "names"),
    [
        (LAION_400M, "SAMPLE_ID url caption license nsfw similarity width height"),
        (LAION_5B, "url caption width height language similarity hash punsafe pwatermark"),
        (DATACOMP, "uid url caption width height clip_b32_similarity_score clip_l14_similarity_score sha256 "
                   "face_bboxes"),
        (IMG2DATASET, "url caption key status width height original_width md5 punsafe nsfw"),
        (table(image_path=["a"], caption=["b"], TEXT=["c"], Url=["d"], URL=["e"]),
         "image_path caption TEXT url URL"),
    ],
    ids=["LAION-400M", "LAION-5B", "DataComp", "img2dataset", "clip-retrieval"],
)  # fmt: skip
def test_columns_of_each_maker_get_one_name_and_type(batch: pa.RecordBatch, names: str) -> None:
    unreadable = Counter[str]()
    found = canonical(batch, unreadable)
    assert found.schema.names == names.split() and not unreadable
    assert all(found.schema.field(one).type == kind for one, kind in COLUMNS.items() if one in names.split())
    assert canonical(found).equals(found)


CELLS: list[tuple[str, pa.Array, list[Any], int]] = [
    ("width", pa.array([2**31 - 1, 2**31, -1, None]), [2**31 - 1, None, -1, None], 1),
    ("width", pa.array([1.5, 2.0, math.inf, math.nan, 1e300]), [None, 2, None, None, None], 3),
    ("width", pa.array(["640", " 480.0 ", "+1", "", "x", "1e3"]), [640, 480, 1, None, None, None], 3),
    ("width", pa.array([True, False]), [None, None], 2),
    ("width", pa.array([[1], None]), [None, None], 1),
    ("width", pa.array([Decimal("1.0"), Decimal("1.5")]), [1, None], 1),
    ("hash", pa.array([2**63, 5], pa.uint64()), [None, 5], 1),
    ("hash", pa.array([2.0**53, 2.0**54]), [2**53, None], 1),
    ("hash", pa.array(["9223372036854775807", "9223372036854775808", "-12"]), [2**63 - 1, None, -12], 1),
    ("punsafe", pa.array(["0.5", "5e-1", ".25", "nan", "0x1", "1_0"]), [0.5, 0.5, 0.25, None, None, None], 3),
    ("punsafe", pa.array([math.inf, 1e300, 1.0]), [None, None, 1.0], 2),
    ("punsafe", pa.array([None, None]), [None, None], 0),
    ("punsafe", pa.array([{"a": 1}, None]), [None, None], 1),
    ("url", pa.array([b"a", b"\xff", None]), ["a", None, None], 1),
    ("url", pa.array([b"a", b"\xff"]).view(pa.string()), ["a", None], 1),
    ("url", pa.array(["a", None]).dictionary_encode(), ["a", None], 0),
    ("url", pa.array(["a"], pa.string_view()), ["a"], 0),
    ("key", pa.array([12, None]), ["12", None], 0),
    ("key", pa.array([[1]]), [None], 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "cells", "wanted", "lost"), CELLS)
def test_cell_that_is_not_of_the_type_is_null_and_counted(
    name: str, cells: pa.Array, wanted: list[Any], lost: int
) -> None:
    unreadable = Counter[str]()
    found = canonical(pa.RecordBatch.from_arrays([cells], [name.upper()]), unreadable)
    assert found.column(name).to_pylist() == wanted and unreadable[name] == lost
    found.validate(full=True)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=9), max_size=5),
       st.sampled_from(sorted(COLUMNS)), st.data())  # fmt: skip
def test_any_cells_of_any_type_become_the_canonical_type(
    cells: list[Any], name: str, data: st.DataObject
) -> None:
    kind = data.draw(st.sampled_from([int, float, str]))
    column = pa.array([one if isinstance(one, kind) else None for one in cells])
    found = canonical(pa.RecordBatch.from_arrays([column], [name]))
    assert found.schema.field(name).type == pa.type_for_alias(COLUMNS[name])
    found.validate(full=True)
    if kind is int and COLUMNS[name] == "int64":
        assert found.column(name).to_pylist() == column.to_pylist()


# --- files ------------------------------------------------------------------------------------------------


def write(path: Path, rows: int, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"URL": [f"{path.stem}/{n}" for n in range(rows)], "punsafe": [0.5] * rows, "x": [b"1"] * rows}
    parquet.write_table(pa.table(columns), path, **options)
    return path


def test_files_folders_patterns_and_urls_are_read_in_numeric_order(tmp_path: Path) -> None:
    import fsspec

    for n in (10, 2):
        write(tmp_path / "a" / f"part_{n}.parquet", 5, row_group_size=3)
    (tmp_path / "a" / "_SUCCESS").touch()
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a"), "/metadata-test", recursive=True)
    for source in (tmp_path / "a", str(tmp_path / "a" / "part_*.parquet"), "memory://metadata-test"):
        found = list(read_metadata(source, batch_size=2, columns=["url", "punsafe", "width"]))
        urls = [url for one in found for url in one.batch.column("url").to_pylist()]
        assert urls == [f"part_{k}/{n}" for k in (2, 10) for n in range(5)]
        assert [one.first for one in found][:2] == [0, 2]
        assert all(one.batch.schema.names == ["url", "punsafe"] and one.batch.num_rows <= 2 for one in found)
        assert found[0].file.startswith("memory://" if "memory" in str(source) else str(tmp_path))
        assert found[-1].file.endswith("part_10.parquet")


REFUSED: list[tuple[str, type[Exception], str]] = [
    ("missing", InvalidInputError, "missing holds no file"),
    ("*.nothing", InvalidInputError, "holds no file"),
    ("nowhere://x", InvalidInputError, "nowhere"),
    ("", InvalidInputError, "empty"),
    ("torn.parquet", IntegrityError, "torn.parquet: not a whole parquet file"),
    ("twice.parquet", IntegrityError, "two columns 'url'"),
]


@pytest.mark.parametrize(("source", "error", "words"), REFUSED)
def test_unreadable_metadata_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, error: type[Exception], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = write(tmp_path / "torn.parquet", 100).read_bytes()
    (tmp_path / "torn.parquet").write_bytes(content[:200] + content[300:])
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["url", "url"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(error, match=words):
        list(read_metadata(source))


def test_package_that_a_url_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'fsspec\[s3\]'"):
        list(read_metadata("s3://bucket/metadata"))


def test_long_cells_make_small_batches(tmp_path: Path) -> None:
    images = pa.table({"jpg": [np.random.default_rng(n).bytes(2**20) for n in range(70)]})
    parquet.write_table(images, tmp_path / "a.parquet")
    assert max(one.batch.num_rows for one in read_metadata(tmp_path)) <= 64
