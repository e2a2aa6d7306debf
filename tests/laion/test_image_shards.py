"""Shards of img2dataset: written, read back, and what does not fit together."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from plain import png
from tars import pack
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError
from zsqretrieval.laion.image_shards import open_image_shards, write_image_shard
from zsqretrieval.types import Image


def samples(count: int) -> Iterable[tuple[bytes | None, dict[str, Any]]]:
    """Images, of which every third could not be fetched."""
    for n in range(count):
        row = {"url": f"https://a.org/{n}", "caption": f"text {n}", "punsafe": 0.1 if n else None, "WIDTH": n}
        yield (None if n % 3 == 2 else png(n)), row


@pytest.mark.parametrize("remote", [False, True])
def test_shard_comes_back_as_it_was_written(tmp_path: Path, remote: bool) -> None:
    for number in (0, 10, 9):
        write_image_shard(tmp_path, number, samples(7), suffix="png")
    source: Any = tmp_path
    if remote:
        source = "memory://image-shards"
        fsspec.filesystem("memory").put(str(tmp_path), source, recursive=True)
    shards = open_image_shards(source)
    assert [one.tar.name for one in shards] == ["00000.tar", "00009.tar", "00010.tar"]
    images = [one for one in shards[1].images() if isinstance(one, Image)]
    assert [one.id for one in images] == [f"00009/{90000 + n:09d}" for n in (0, 1, 3, 4, 6)]
    first, second = images[:2]
    assert first.content == png(0) and first.caption == "text 0" and first.metadata["status"] == "success"
    assert first.source == f"{shards[1].tar}#000090000.png"
    assert second.metadata["url"] == "https://a.org/1" and second.metadata["width"] == 1
    stats = shards[0].read_stats()
    assert stats is not None and (stats["count"], stats["successes"]) == (7, 5)
    assert stats["status_dict"] == {"success": 5, "failed_to_download": 2}
    rows = parquet.read_table(tmp_path / "00000.parquet").to_pylist()
    assert [row["status"] for row in rows][2:4] == ["failed_to_download", "success"]


def edit_table(folder: Path, **columns: Any) -> None:
    path = folder / "00000.parquet"
    table = parquet.read_table(path)
    for name, cells in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(cells))
    parquet.write_table(table, path)


def edit_stats(folder: Path, content: str) -> None:
    (folder / "00000_stats.json").write_text(content)


KEYS = [f"{n:09d}" for n in range(4)]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: edit_table(folder, key=[*KEYS[:3], "9"]),
         r"00000.tar#000000003.png: no row .* '000000003'"),
        (lambda folder: edit_table(folder, key=[*KEYS[:3], KEYS[0]]),
         "key '000000000' is missing or given twice"),
        (lambda folder: edit_table(folder, key=[*KEYS[:3], None]), "key None is missing"),
        (lambda folder: edit_table(folder, status=["success"] * 4),
         "says 4 rows and 3 images, 00000.parquet has 4 and 4"),
        (lambda folder: parquet.write_table(pa.table({"a": [1]}), folder / "00000.parquet"),
         "no column 'key'"),
        (lambda folder: edit_stats(folder, '{"count": 4, "successes": 2}'), "says 4 rows and 2 images"),
        (lambda folder: edit_stats(folder, "no JSON"), "00000_stats.json is damaged"),
        (lambda folder: edit_stats(folder, '{"count": true, "successes": 3}'), "no whole numbers"),
        (lambda folder: edit_stats(folder, "[" * 1000), "00000_stats.json is damaged"),
        (lambda folder: edit_stats(folder, " " * 2**21), "2097152 bytes"),
        (lambda folder: pack(folder / "00000.tar", {f"{key}.png": png(1) for key in KEYS[:2]}),
         r"00000.tar: no image has the key '000000003'"),
    ],
)  # fmt: skip
def test_shard_whose_parts_do_not_fit_is_refused_by_shard_and_key(
    tmp_path: Path, damage: Any, said: str
) -> None:
    write_image_shard(tmp_path, 0, samples(4), suffix="png")
    damage(tmp_path)
    (shard,) = open_image_shards(tmp_path)
    with pytest.raises(IntegrityError, match=said):
        list(shard.images())


def test_shard_without_statistics_is_read_and_known_as_unfinished(tmp_path: Path) -> None:
    write_image_shard(tmp_path, 0, samples(4), suffix="png")
    (tmp_path / "00000_stats.json").unlink()
    (shard,) = open_image_shards(tmp_path)
    assert shard.read_stats() is None and len(list(shard.images())) == 3


def test_hostile_members_of_a_shard_are_named_or_left_out_and_never_written(tmp_path: Path) -> None:
    write_image_shard(tmp_path, 0, samples(2), suffix="png")
    path = tmp_path / "00000.tar"
    content = {f"{key}.png": png(n) for n, key in enumerate(KEYS[:2])}
    with tarfile.open(path, "w") as tar:
        for name in ("link.png", "../up.png", "/etc/abs.png", *content):
            member = tarfile.TarInfo(name)
            if name == "link.png":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member) if name not in content else pack_into(tar, member, content[name])
    (shard,) = open_image_shards(tmp_path)
    found = shard.images()
    link = next(found)
    assert isinstance(link, ImageError) and link.source == f"{path}#link.png"
    with pytest.raises(IntegrityError, match=r"#\.\./up.png: no row"):
        list(found)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "00000.parquet",
        "00000.tar",
        "00000_stats.json",
    ]


def pack_into(tar: tarfile.TarFile, member: tarfile.TarInfo, content: bytes) -> None:
    import io

    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"key": "../x"}], "key '../x' is no plain name"),
        ([{"key": "a"}, {"key": "a"}], "given twice"),
        ([{"x": 1}, {"x": "a"}], "values that no table holds"),
        ([{}] * 10_001, "at most 10000"),
    ],
)
def test_shard_that_cannot_be_read_again_is_not_written(tmp_path: Path, rows: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        write_image_shard(tmp_path, 0, ((None, row) for row in rows))
    assert not (tmp_path / "00000_stats.json").exists()
    assert json.dumps(rows)
