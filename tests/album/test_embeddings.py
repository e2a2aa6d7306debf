"""Vectors from elsewhere: in, out, and in the folders of clip-retrieval."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyarrow import parquet

from plain import picture, write_plain
from zsqretrieval.album.filters import Field
from zsqretrieval.errors import (
    AlbumError,
    ImageError,
    IntegrityError,
    InvalidInputError,
    MismatchError,
)
from zsqretrieval.laion.embeddings import open_embeddings
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator

ENCODER = ToyEncoder()
Vectors = NDArray[Any]


def colours(*names: str, dtype: Any = np.float32) -> Vectors:
    return np.asarray(ENCODER.encode_image(list(map(picture, names or COLOURS)))).astype(dtype)


@pytest.fixture
def album(tmp_path: Path) -> Iterator[Retriever]:
    with Retriever(ToyEncoder(), generator=ToyGenerator(), path=tmp_path / "album") as made:
        yield made


def rows(retriever: Retriever) -> list[tuple[Any, ...]]:
    return [(one.id, one.source, one.caption, dict(one.metadata)) for one in retriever.records()]


# --- rows without images --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_without_images_are_found_by_the_first_stage(album: Retriever, dtype: Any) -> None:
    names = list(COLOURS)
    facts = [{"n": n} for n in range(len(names))]
    urls = [f"https://a.org/{name}.jpg" for name in names]
    report = album.add_embeddings(
        colours(dtype=dtype), ids=names, metadata=facts, sources=urls, captions=names, batch_size=4
    )
    assert report.added == tuple(names) and repr(report).startswith("AddReport(added=6, replaced=0,")
    assert rows(album) == [(n, u, n, f) for n, u, f in zip(names, urls, facts, strict=True)]
    assert [hit.id for hit in album.search("red", 1, rerank=None)] == ["red"]
    again = album.add_embeddings(colours(dtype=dtype), ids=names, sources=urls)
    assert (again.known, again.added, again.replaced) == (len(names), (), ())
    album._catalog.verify()


@pytest.mark.parametrize("names", ["width height", "WIDTH HEIGHT", "original_width original_height"])
def test_row_without_an_image_has_the_size_that_its_metadata_says(album: Retriever, names: str) -> None:
    sizes = [(1024, 512.0), (300, None), ("wide", -3)]
    facts = [dict(zip(names.split(), size, strict=True)) for size in sizes]
    album.add_embeddings(colours("red", "green", "blue"), ids=["a", "b", "c"], metadata=facts)
    found = {one.id: (one.width, one.height) for one in album.records()}
    assert found == {"a": (1024, 512), "b": (300, 0), "c": (0, 0)}
    assert [hit.id for hit in album.search("red", where=Field("width") > 500, rerank=None)] == ["a"]


def test_row_without_an_image_ranks_last_and_the_warning_says_why(album: Retriever) -> None:
    album.add_embeddings(colours("red"), ids=["vector"])
    album.add(picture("blue"))
    with pytest.warns(RuntimeWarning, match="was added as a vector, without its image"):
        ranking = album.search("red")
    assert [(hit.id, hit.score is None) for hit in ranking] == [("blue", False), ("vector", True)]
    record = album.find("vector")
    assert record is not None
    with album.files() as files, pytest.raises(ImageError, match="without its image"):
        files.open(record.source, record.digest)


def test_row_whose_source_is_an_image_is_an_image_like_any_other(album: Retriever, tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "photos", ("red", "blue"), (40, 30))
    album.add_embeddings(colours("red", "blue"), sources=[folder / "red.png", tmp_path / "gone.png"])
    red, gone = album.records()
    assert (red.width, red.height, red.source) == (40, 30, str(folder / "red.png"))
    assert gone.width == 0 and gone.digest.endswith("-vector")
    with album.files() as files:
        assert files.open(red.source, red.digest)
    assert album.add(folder / "red.png").known == 1, "its digest is that of the file"
    (folder / "blue.png").rename(tmp_path / "gone.png")  # as a disk that is mounted now
    later = album.add_embeddings(colours("red", "blue"), sources=[folder / "red.png", tmp_path / "gone.png"])
    assert (later.known, later.replaced) == (1, (str(tmp_path / "gone.png"),))
    (tmp_path / "gone.png").unlink()
    assert album.add_embeddings(colours("blue"), sources=[tmp_path / "gone.png"]).known == 1


def test_known_row_takes_new_metadata_and_another_vector_replaces_it(album: Retriever) -> None:
    album.add_embeddings(colours("red"), ids=["a"], metadata=[{"year": 1}])
    assert album.add_embeddings(colours("red"), ids=["a"], metadata=[{"year": 2}]).updated == ("a",)
    assert album.add_embeddings(colours("red"), ids=["a"], sources=["elsewhere"]).moved == ("a",)
    assert album.add_embeddings(colours("blue"), ids=["a"], sources=["elsewhere"]).replaced == ("a",)
    (other,) = album.add_embeddings(colours("red"), ids=["a"], sources=["third"]).added
    assert other.startswith("a#") and len(album) == 2
    assert album.add_embeddings(colours("red"), ids=["a"], sources=["third"]).known == 1
    np.testing.assert_array_equal(album.vector("a"), colours("blue")[0])


def test_equal_vectors_are_one_row_without_ids_and_two_with_ids(album: Retriever) -> None:
    twice = colours("red", "red")
    report = album.add_embeddings(twice)
    assert (len(report.added), report.known, len(album)) == (1, 1, 1)
    assert album.add_embeddings(twice, ids=["a", "b"]).added == ("a", "b")


@pytest.mark.parametrize("names", [{"ids": ["a", "b", "a"]}, {"sources": ["a", "b", Path("a")]}])
def test_name_of_several_vectors_is_refused(album: Retriever, names: Any) -> None:
    with pytest.raises(InvalidInputError, match="'a' names several vectors; give each an id; nothing was"):
        album.add_embeddings(colours("red", "blue", "green"), **names)
    assert len(album) == 0


def test_text_that_no_json_holds_is_mended_and_named(album: Retriever) -> None:
    report = album.add_embeddings(
        colours("red"), ids=["a"], metadata=[{"x": float("nan")}], captions=["\ud800"]
    )
    assert len(report.mended) == 1 and rows(album) == [("a", "a", "�", {"x": None})]


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"vectors": np.ones((2, 8), np.float32)},
        MismatchError,
        "dim 8.*'toy-encoder-1' makes .* 16",
    ),
    ({"fingerprint": "clip-1"}, MismatchError, "'clip-1'.*'toy-encoder-1'"),
    ({"vectors": 2 * colours("red", "blue")}, InvalidInputError, "row 0 is of length 2"),
    (
        {"vectors": colours("red", "blue") * [[1], [0]]},
        InvalidInputError,
        "row 1 is of length 0.*nothing",
    ),
    ({"vectors": colours("red", "blue") * [[1], [np.nan]]}, InvalidInputError, "row 1 is not finite"),
    ({"vectors": np.ones((2, 16), np.int8)}, InvalidInputError, "float .n, dim., not int8"),
    ({"vectors": colours("red")[0]}, InvalidInputError, "not float32 .16."),
    ({"vectors": np.array([[None] * 16])}, InvalidInputError, "not object"),
    ({"vectors": [[1.0], [1.0, 2.0]]}, InvalidInputError, "cannot be read as an array"),
    ({"vectors": torch.zeros(2, 16, requires_grad=True)}, InvalidInputError, "requires grad"),
    ({"ids": ["a"]}, InvalidInputError, "2 vectors, but 1 ids"),
    ({"ids": "ab"}, InvalidInputError, "ids must be a list"),
    ({"ids": ["a", 3]}, InvalidInputError, r"ids\[1\] must not be 3"),
    ({"metadata": [{}, "x"]}, InvalidInputError, r"metadata\[1\]"),
    ({"batch_size": 0}, InvalidInputError, "batch_size"),
]


@pytest.mark.parametrize(("change", "error", "said"), REFUSED)
def test_unfit_vectors_are_refused_before_anything_is_written(
    album: Retriever, change: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        album.add_embeddings(**{"vectors": colours("red", "blue"), "batch_size": 1} | change)
    assert len(album) == 0


def test_mapped_file_is_checked_batch_by_batch_and_the_error_names_the_row(
    album: Retriever, tmp_path: Path
) -> None:
    vectors = colours()
    vectors[4] = 0
    np.save(tmp_path / "v.npy", vectors)
    mapped = np.load(tmp_path / "v.npy", mmap_mode="r")
    with pytest.raises(InvalidInputError, match=r"row 4 is of length 0.*batches before it were added"):
        album.add_embeddings(mapped, ids=list(COLOURS), batch_size=2)
    assert [one.id for one in album.records()] == list(COLOURS)[:4]


def test_vector_is_a_copy_and_unknown_ids_are_named(album: Retriever) -> None:
    album.add_embeddings(colours("red"), ids=["a"])
    album.vector("a")[:] = 0
    np.testing.assert_array_equal(album.vector("a"), colours("red")[0])
    for unknown in ("b", 3):
        with pytest.raises(InvalidInputError, match=f"the first is {unknown!r}"):
            album.vector(unknown)  # type: ignore[arg-type]


# --- update ---------------------------------------------------------------------------------------------


def test_update_merges_keys_and_none_deletes_one(album: Retriever) -> None:
    album.add_embeddings(colours("red", "blue"), ids=["a", "b"], metadata=[{"x": 1, "y": 1}, {}])
    album.update(["a", "b"], {"x": 2, "z": [None]}, captions=["c", None])
    assert rows(album) == [
        ("a", "a", "c", {"x": 2, "y": 1, "z": [None]}),
        ("b", "b", None, {"x": 2, "z": [None]}),
    ]
    album.update("a", {"x": None, "none": None})
    album.update(["b"], [{"x": 5}], captions="d")
    assert rows(album) == [("a", "a", "c", {"y": 1, "z": [None]}), ("b", "b", "d", {"x": 5, "z": [None]})]


@pytest.mark.parametrize(
    ("ids", "metadata", "captions", "said"),
    [
        (["a", "x"], {"n": 1}, None, "1 of 2 ids are not in the album, the first is 'x'"),
        (["a", "a"], {"n": 1}, None, "given twice"),
        (["a", "b"], [{"n": 1}], None, "2 ids, but 1 metadata"),
        (["a", "b"], [{"n": 1}, {"n": {1}}], None, "cannot be kept as JSON"),
        (["a", "b"], [{"n": 1}, {"n": ["\ud800"]}], None, "metadata has text that is not Unicode; nothing"),
        ("a", {"n": float("nan")}, None, "metadata has a number that is not finite"),
        (["a", "b"], [{"n": 1}, 3], None, "metadata must be one Mapping"),
        (["a", "b"], {"n": 1}, ["c", "\ud800"], "caption is not Unicode"),
    ],
)  # fmt: skip
def test_update_changes_all_or_nothing(
    album: Retriever, ids: Any, metadata: Any, captions: Any, said: str
) -> None:
    album.add_embeddings(colours("red", "blue"), ids=["a", "b"])
    with pytest.raises(InvalidInputError, match=said):
        album.update(ids, metadata, captions=captions)
    assert rows(album) == [("a", "a", None, {}), ("b", "b", None, {})]


# --- folders --------------------------------------------------------------------------------------------


def write_shard(folder: Path, number: str, vectors: Vectors, table: dict[str, Any]) -> None:
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    np.save(folder / f"img_emb/img_emb_{number}.npy", vectors)
    parquet.write_table(pa.table(table), folder / f"metadata/metadata_{number}.parquet")


def test_folder_of_clip_retrieval_is_added_row_by_row(album: Retriever, tmp_path: Path) -> None:
    half = colours("red", "blue", dtype=np.float16)
    write_shard(
        tmp_path / "emb", "0", half,
        {"image_path": ["000", "001"], "caption": ["a", None], "url": ["u", "v"], "width": [5, None],
         "NSFW": ["no", None], "bytes": [b"x", b"y"], "__index_level_0__": [0, 1]},
    )  # fmt: skip
    write_shard(tmp_path / "emb", "1", colours("green"), {"url": ["http://g"], "key": ["k"]})
    write_shard(
        tmp_path / "emb", "10", colours("black"),
        {"url": ["http://b"], "day": [datetime.date(2020, 1, 2)], "key": [np.nan]},
    )  # fmt: skip
    assert len(album.add_embeddings(tmp_path / "emb", safety=None).added) == 4
    assert rows(album) == [
        ("000", "000", "a", {"url": "u", "width": 5, "NSFW": "no"}),
        ("001", "001", None, {"url": "v"}),
        ("k", "http://g", None, {}),
        ("http://b", "http://b", None, {"day": "2020-01-02"}),
    ]
    np.testing.assert_array_equal(album.vector("001"), half[1].astype(np.float32))
    assert album.add_embeddings(tmp_path / "emb", safety=None).known == 4


def break_rows(folder: Path) -> None:
    write_shard(folder, "0000", colours("red"), {"id": ["a", "b"]})


def break_table(folder: Path) -> None:
    (folder / "metadata/metadata_0001.parquet").unlink()


def break_vectors(folder: Path) -> None:
    (folder / "img_emb/img_emb_0001.npy").write_bytes(b"\x93NUMPY torn")


def break_facts(folder: Path) -> None:
    (folder / "zsqretrieval.json").write_text("{")


def lose_a_shard(folder: Path) -> None:
    for file in folder.glob("*/*_0001.*"):
        file.unlink()


def pickle(folder: Path) -> None:
    np.save(folder / "img_emb/img_emb_0000.npy", np.array([{"a": 1}] * 400), allow_pickle=True)


def headed(*values: str) -> Any:
    """A file of vectors whose header claims that shape, or is no description of an array."""

    def damage(folder: Path) -> None:
        for value in values:
            head = value if "[" in value else f"{{'descr': '<f4', 'fortran_order': False, 'shape': {value}}}"
            text = head.encode() + b" " * (-(len(head) + 11) % 64) + b"\n"
            start = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text
            (folder / "img_emb/img_emb_0001.npy").write_bytes(start + bytes(256))
            with pytest.raises(IntegrityError, match=r"img_emb_0001.npy is damaged"):
                open_embeddings(folder)

    return damage


def state_another_encoder(folder: Path) -> None:
    file = folder / "zsqretrieval.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"encoder": "clip-1"}))


def remove_all(folder: Path) -> None:
    for file in folder.glob("img_emb/*"):
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "error", "said"),
    [
        (break_rows, IntegrityError, "shard 0000 of .* has 1 vectors, metadata_0000.parquet has 2 rows"),
        (break_table, InvalidInputError, "no file .*metadata_0001.parquet"),
        (break_vectors, IntegrityError, "img_emb_0001.npy is damaged"),
        (break_facts, IntegrityError, "zsqretrieval.json is damaged"),
        (lose_a_shard, IntegrityError, "holds 4 vectors, its zsqretrieval.json says 6"),
        (headed("(-4, 16)", "(True, 16)", "[" * 500), IntegrityError, "img_emb_0001.npy is damaged"),
        (pickle, (IntegrityError, InvalidInputError), "img_emb_0000.npy"),
        (state_another_encoder, MismatchError, "'clip-1', but the album's is 'toy-encoder-1'"),
        (remove_all, InvalidInputError, "holds no img_emb"),
    ],
)  # fmt: skip
def test_damaged_folder_is_refused_before_anything_is_written(
    album: Retriever, tmp_path: Path, damage: Any, error: Any, said: str
) -> None:
    with Retriever(ToyEncoder()) as other:
        other.add_embeddings(colours(), ids=list(COLOURS))
        other.export_embeddings(tmp_path / "emb", shard_size=4)
    damage(tmp_path / "emb")
    with pytest.raises(error, match=said):
        album.add_embeddings(tmp_path / "emb")
    assert len(album) == 0


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("aé\0", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2),
    max_leaves=4,
)
KEYS = st.sampled_from(["id", "caption", "image_path", "key", "url", "", "__index_level_0__", "id_", "é"])


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.dictionaries(KEYS, JSON, max_size=3), st.sampled_from([None, "x"])), min_size=1,
             max_size=6),
    st.integers(1, 4),
)  # fmt: skip
def test_exported_album_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, given_rows: list[Any], size: int
) -> None:
    folder = tmp_path_factory.mktemp("out") / "emb"
    vectors = colours()[: len(given_rows)]
    with Retriever(ToyEncoder()) as one, Retriever(ToyEncoder()) as two:
        one.add_embeddings(
            vectors, ids=[f"id {n}" for n in range(len(vectors))],
            metadata=[facts for facts, _ in given_rows], captions=[text for _, text in given_rows],
            sources=[f"https://a.org/{n}" for n in range(len(vectors))],
        )  # fmt: skip
        one.export_embeddings(folder, dtype="float32", shard_size=size)
        assert len(two.add_embeddings(folder).added) == len(vectors)
        assert rows(two) == rows(one)
        for record in one.records():
            np.testing.assert_array_equal(one.vector(record.id), two.vector(record.id))


def test_half_precision_export_of_an_album_is_known_to_it(album: Retriever, tmp_path: Path) -> None:
    album.add(write_plain(tmp_path / "photos", tuple(COLOURS), (4, 4)))
    report = album.export_embeddings(tmp_path / "emb", shard_size=4)
    assert report.rows == len(COLOURS)
    assert album.add_embeddings(tmp_path / "emb").known == len(COLOURS)


def test_export_is_read_by_numpy_and_pandas_as_clip_retrieval_writes_it(
    album: Retriever, tmp_path: Path
) -> None:
    pandas = pytest.importorskip("pandas")
    album.add_embeddings(colours(), ids=list(COLOURS), metadata=[{"n": n} for n in range(6)])
    album.export_embeddings(tmp_path / "emb", shard_size=4)
    names = sorted(str(file.relative_to(tmp_path / "emb")) for file in (tmp_path / "emb").rglob("*.*"))
    assert names == [
        "img_emb/img_emb_0000.npy", "img_emb/img_emb_0001.npy",
        "metadata/metadata_0000.parquet", "metadata/metadata_0001.parquet", "zsqretrieval.json",
    ]  # fmt: skip
    vectors = np.load(tmp_path / "emb/img_emb/img_emb_0001.npy")
    assert vectors.dtype == np.float16 and vectors.shape == (2, 16)
    table = pandas.read_parquet(tmp_path / "emb/metadata")
    assert list(table.columns) == ["image_path", "caption", "id", "n"] and table["n"].tolist() == list(
        range(6)
    )


def test_interrupted_export_leaves_nothing(album: Retriever, tmp_path: Path) -> None:
    album.add_embeddings(colours(), ids=list(COLOURS))

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        album.export_embeddings(tmp_path / "out" / "emb", progress=stop)
    assert not list((tmp_path / "out").iterdir())
    album.export_embeddings(tmp_path / "out" / "emb")
    with pytest.raises(AlbumError, match="exists already"):
        album.export_embeddings(tmp_path / "out" / "emb")
    with pytest.raises(InvalidInputError, match="dtype"):
        album.export_embeddings(tmp_path / "other", dtype="int8")  # type: ignore[arg-type]


def test_empty_album_exports_and_comes_back(album: Retriever, tmp_path: Path) -> None:
    assert album.export_embeddings(tmp_path / "emb").rows == 0
    assert album.add_embeddings(tmp_path / "emb").added == ()
