"""Folders of clip-retrieval on disks and in stores: numbers, texts, blocks, what a shard lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.laion.embeddings import VectorRow, open_embeddings, writing_embeddings
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder

DIM = 16


def vectors(count: int, seed: int = 0) -> Any:
    drawn = np.random.default_rng(seed).normal(size=(count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float16)


def write_shard(folder: Path, number: str, count: int, kinds: tuple[str, ...] = ("img_emb",)) -> Path:
    for kind in (*kinds, "metadata"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for kind in kinds:
        np.save(folder / kind / f"{kind}_{number}.npy", vectors(count, int(number) + len(kind)))
    table = {"image_path": [f"{number}/{n}" for n in range(count)], "URL": [f"u{n}" for n in range(count)],
             "punsafe": pa.array([0.1] * count, pa.float64())}  # fmt: skip
    parquet.write_table(pa.table(table), folder / "metadata" / f"metadata_{number}.parquet", row_group_size=7)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A URL to which the folder ``emb`` can be copied."""
    memory = fsspec.filesystem("memory")
    if memory.exists("/emb"):
        memory.rm("/emb", recursive=True)
    return "memory://emb"


def upload(folder: Path, store: str) -> str:
    fsspec.filesystem("memory").put(str(folder), store, recursive=True)
    return store


@pytest.mark.parametrize(
    "numbers", [["0", "3", "9"], ["00", "09", "10"], ["0009", "0010", "10000"], ["9", "10"]]
)
def test_shards_are_in_the_order_of_their_numbers_whatever_the_padding(
    tmp_path: Path, numbers: list[str]
) -> None:
    for number in reversed(numbers):
        write_shard(tmp_path, number, int(number) % 3 + 1)
    found = open_embeddings(tmp_path)
    assert [one.file.name for one in found.shards] == [f"img_emb_{number}.npy" for number in numbers]
    assert [next(one.rows()).id for one in found.shards] == [f"{number}/0" for number in numbers]


@pytest.mark.parametrize("remote", [False, True])
def test_blocks_are_the_vectors_and_rows_of_one_another(tmp_path: Path, store: str, remote: bool) -> None:
    folder = write_shard(tmp_path, "0", 20, ("img_emb", "text_emb"))
    (shard,) = open_embeddings(upload(folder, store) if remote else folder, "text_emb").shards
    blocks = list(shard.blocks(batch_size=8))
    wanted = np.load(folder / "text_emb/text_emb_0.npy")
    np.testing.assert_array_equal(np.concatenate([one for one, _ in blocks]), wanted)
    assert [batch.first for _, batch in blocks] == [0, 8, 16]
    assert [url for _, one in blocks for url in one.batch.column("url").to_pylist()] == [
        f"u{n}" for n in range(20)
    ]
    assert blocks[0][1].batch.schema.field("punsafe").type == pa.float32()
    narrow = next(shard.blocks(columns=["url"]))[1]
    assert narrow.batch.schema.names == ["url"] and narrow.file.startswith("memory://") == remote
    bare = sum(one.batch.num_rows for _, one in shard.blocks(columns=["absent"]))
    assert bare == 20, "without columns there are rows all the same"


def test_folder_of_a_store_is_added_to_an_album_by_ranges(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shard(write_shard(tmp_path / "emb", "0", 40), "1", 5)
    upload(folder, store)
    system, fetched = type(fsspec.filesystem("memory")), []
    cat = system.cat_file

    def counted(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        fetched.append(end - start)
        return cat(self, path, start=start, end=end, **options)

    monkeypatch.setattr(system, "cat_file", counted)
    with Retriever(ToyEncoder()) as one, Retriever(ToyEncoder()) as two:
        assert len(one.add_embeddings(store, batch_size=8).added) == 45
        two.add_embeddings(folder)
        assert [(r.id, r.source, dict(r.metadata)) for r in one.records()] == [
            (r.id, r.source, dict(r.metadata)) for r in two.records()
        ]
        np.testing.assert_array_equal(one.vector("0/39"), two.vector("0/39"))
    assert max(fetched[2:]) <= 8 * DIM * 2, "only the rows of a batch are fetched"


def lose_table(folder: Path) -> None:
    (folder / "metadata/metadata_1.parquet").unlink()


def lose_vectors(folder: Path) -> None:
    (folder / "img_emb/img_emb_1.npy").unlink()


def number_twice(folder: Path) -> None:
    (folder / "img_emb/img_emb_1.npy").rename(folder / "img_emb/img_emb_00.npy")


def save_columns(folder: Path) -> None:
    np.save(folder / "img_emb/img_emb_1.npy", np.asfortranarray(vectors(4)))


def save_integers(folder: Path) -> None:
    np.save(folder / "img_emb/img_emb_1.npy", np.ones((4, DIM), np.int8))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_table, "img_emb_1.npy: its shard has no file metadata/metadata_1.parquet"),
        (lose_vectors, "metadata_1.parquet: its shard has no file img_emb/img_emb_1.npy"),
        (number_twice, "img_emb_00?.npy and img_emb_00?.npy have one number"),
        (save_columns, "img_emb_1.npy is stored by columns"),
        (save_integers, "img_emb_1.npy holds int8"),
    ],
)
def test_shard_that_lacks_a_part_is_named(tmp_path: Path, damage: Any, said: str) -> None:
    write_shard(write_shard(tmp_path, "0", 3), "1", 4)
    damage(tmp_path)
    with pytest.raises(InvalidInputError, match=said):
        open_embeddings(tmp_path)


def test_vectors_of_captions_are_written_beside_those_of_images(tmp_path: Path) -> None:
    images, texts = vectors(5, 1), vectors(5, 2)
    rows = [VectorRow(f"{n}", caption="c") for n in range(5)]
    with writing_embeddings(tmp_path / "emb", encoder="e", dim=DIM, shard_size=2, texts=True) as write:
        write(images[:3], rows[:3], texts[:3])
        write(images[3:], rows[3:], texts[3:])
    for kind, wanted in (("img_emb", images), ("text_emb", texts)):
        found = open_embeddings(tmp_path / "emb", kind)  # type: ignore[arg-type]
        np.testing.assert_array_equal(np.concatenate([one.vectors[:] for one in found.shards]), wanted)
        assert [len(one.vectors) for one in found.shards] == [2, 2, 1]
