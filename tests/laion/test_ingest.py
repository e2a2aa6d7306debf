"""Embeddings of LAION into an album and out of it: denied rows, removal lists, near-duplicates."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from plain import picture, png
from tars import pack
from zsqretrieval.album.removal import LIST
from zsqretrieval.data.images import decode
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError
from zsqretrieval.indexes.checks import unit_rows
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.laion import cleanup
from zsqretrieval.laion.cleanup import remove_from_folder
from zsqretrieval.laion.embeddings import open_embeddings
from zsqretrieval.laion.hashes import HashList, hash_texts
from zsqretrieval.laion.safety import Safety
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator, ToyStatesGenerator

CANARY = "Canary-5f2c"
"""In every text of a row that must not be seen."""

Vectors = NDArray[np.float32]


def unit(count: int, seed: int = 0) -> Vectors:
    rows = np.random.default_rng(seed).standard_normal((count, 16)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write_folder(folder: Path, *tables: dict[str, Any], first: int = 0) -> Path:
    """A folder of clip-retrieval with text embeddings and one shard per table."""
    for n, table in enumerate(tables):
        rows = len(next(iter(table.values())))
        for name in ("img_emb", "text_emb", "metadata"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        for kind in ("img", "text"):
            vectors = unit(rows, seed=first + n).astype(np.float16)
            np.save(folder / f"{kind}_emb/{kind}_emb_{n}.npy", vectors)
        parquet.write_table(pa.table(table), folder / f"metadata/metadata_{n}.parquet", row_group_size=2)
    return folder


def laion(count: int, **columns: list[Any]) -> dict[str, list[Any]]:
    """A table of rows that are safe, with their names."""
    urls = [f"https://a.org/{n}.jpg" for n in range(count)]
    return {
        "url": urls, "caption": [f"caption {n}" for n in range(count)], "punsafe": [0.1] * count,
        "NSFW": ["UNLIKELY"] * count, "hash": list(range(count)),
        "md5": [hashlib.md5(url.encode()).hexdigest()[::-1] for url in urls],
    } | columns  # fmt: skip


@pytest.fixture
def album(tmp_path: Path) -> Iterator[Retriever]:
    made = Retriever(ToyEncoder(), ExactIndex(16), ToyGenerator(), path=tmp_path / "album")
    with made:
        yield made


def ids(retriever: Retriever) -> list[str]:
    return [one.id for one in retriever.records()]


def holds(folder: Path, secret: str | bytes) -> list[str]:
    """The files of a folder that hold a text, in UTF-8 or UTF-16, or bytes."""
    wanted = [secret] if isinstance(secret, bytes) else [secret.encode(), secret.encode("utf-16-le")]
    found = [file for file in folder.rglob("*") if file.is_file()]
    return [file.name for file in found if any(one in file.read_bytes() for one in wanted)]


# --- adding -----------------------------------------------------------------------------------------------


def test_unsafe_and_unknown_rows_of_a_folder_are_left_out_and_counted(
    album: Retriever, tmp_path: Path
) -> None:
    folder = write_folder(
        tmp_path / "emb",
        laion(4, punsafe=[0.1, 0.5, None, 0.2], NSFW=["UNLIKELY", None, None, "NSFW"]),
        {"url": ["https://a.org/x.jpg"], "caption": ["no punsafe in this shard"]},
    )
    report = album.add_embeddings(folder, batch_size=2)
    assert report.denied == {"unsafe": 1, "unknown": 2, "nsfw": 1} and ids(album) == ["https://a.org/0.jpg"]
    np.testing.assert_array_equal(album.vector("https://a.org/0.jpg"), unit(4).astype(np.float16)[0])
    some = album.add_embeddings(folder, safety=Safety(unknown="keep", nsfw=None))
    assert (len(some.added), some.known, some.denied) == (3, 1, {"unsafe": 1})
    assert len(album.add_embeddings(folder, safety=None).added) == 1
    np.testing.assert_array_equal(album.vector("https://a.org/3.jpg"), unit(4).astype(np.float16)[3])


def test_row_number_in_an_error_counts_denied_rows(album: Retriever, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "emb", laion(4, punsafe=[None, None, 0.1, 0.1]))
    vectors = unit(4).astype(np.float16)
    vectors[[0, 3]] = 0  # the first of them is denied, and not looked at
    np.save(folder / "img_emb/img_emb_0.npy", vectors)
    with pytest.raises(InvalidInputError, match="row 3 is of length 0"):
        album.add_embeddings(folder, batch_size=1)
    assert ids(album) == ["https://a.org/2.jpg"]


def test_folder_that_is_not_of_laion_needs_no_punsafe(album: Retriever, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "emb", {"url": ["https://a.org/x"], "caption": ["mine"]})
    assert len(album.add_embeddings(folder).added) == 1
    assert album.add_embeddings(folder, safety=Safety()).denied == {"unknown": 1}


def test_arrays_and_images_with_metadata_of_laion_are_judged_too(album: Retriever, tmp_path: Path) -> None:
    metadata: list[dict[str, Any]] = [{"punsafe": 0.9}, {"punsafe": 0.1}, {}]
    report = album.add_embeddings(unit(3), ids=["a", "b", "c"], metadata=metadata)
    assert report.added == ("b",) and report.denied == {"unsafe": 1, "unknown": 1}
    np.testing.assert_array_equal(album.vector("b"), unit(3)[1])
    members = {"red.png": png("red"), "red.json": b'{"punsafe": 0.9}'}
    members |= {"blue.png": png("blue"), "blue.json": b'{"punsafe": 0.1}'}
    members |= {"green.png": png("green"), "green.json": b'{"NSFW": "?"}'}
    pack(tmp_path / "00000.tar", members)
    steps: list[tuple[str, int, int | None]] = []
    images = album.add(tmp_path / "00000.tar", progress=lambda *news: steps.append(news))
    assert images.added == ("00000/blue",) and images.denied == {"unsafe": 1, "unknown": 1}
    assert steps == [("adding images", 3, None)]
    assert len(album.add(tmp_path / "00000.tar", safety=None).added) == 2


def test_images_with_metadata_in_a_folder(album: Retriever, tmp_path: Path) -> None:
    for name, content in {
        "0.png": png("red"), "0.json": b'{"punsafe": 0.9}',
        "1.png": png("blue"), "1.json": b'{"punsafe": 0.1, "caption": "the sea"}',
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    report = album.add(tmp_path)
    assert report.added == ("1.png",) and report.denied == {"unsafe": 1}
    (found,) = album.records()
    assert found.caption == "the sea"


def test_rows_outside_an_allow_list_are_left_out(album: Retriever, tmp_path: Path) -> None:
    allow = HashList.write(tmp_path / "allow", [hash_texts(["https://a.org/1.jpg"])], ["text"])
    folder = write_folder(tmp_path / "emb", laion(3))
    assert album.add_embeddings(folder, safety=Safety(allow=allow)).denied == {"not_allowed": 2}
    assert ids(album) == ["https://a.org/1.jpg"]


def test_nothing_of_a_denied_row_is_in_the_album_the_log_an_error_or_the_report(
    album: Retriever, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = [f"https://a.org/{CANARY}-{n}" for n in range(5)]
    table = laion(
        6, url=[*secret, "https://a.org/fine"], caption=[CANARY] * 5 + ["fine"],
        punsafe=[0.9, None, 0.1, 0.1, 0.2, 0.2], pwatermark=[0.1, 0.1, 0.9, 0.1, 0.1, 0.1],
        NSFW=["UNLIKELY"] * 3 + ["NSFW", "UNLIKELY", "UNLIKELY"],
        error_message=[None] * 4 + ["Use of image disallowed by X-Robots-Tag directive", None],
        md5=[f"{CANARY}-{n}" for n in range(6)], key=[f"{CANARY}-{n}" for n in range(5)] + ["fine"],
    )  # fmt: skip
    table["md5"][5] = "0" * 32
    folder = write_folder(tmp_path / "emb", table)
    report = album.add_embeddings(folder)
    reasons = {"unsafe": 1, "unknown": 1, "watermark": 1, "nsfw": 1, "opted_out": 1}
    assert ids(album) == ["fine"] and report.denied == reasons
    rows = [{name: column[n] for name, column in table.items()} for n in range(6)]
    album.add_embeddings(unit(6, 1), metadata=rows, sources=table["url"], captions=table["caption"])
    vectors = np.load(folder / "img_emb/img_emb_0.npy")
    vectors[5] = 0
    np.save(folder / "img_emb/img_emb_0.npy", vectors)
    with pytest.raises(InvalidInputError) as raised:
        album.add_embeddings(folder)
    album.save()
    page = album.search("red", rerank=None)._repr_html_()
    said = [str(report), repr(raised.value), caplog.text, *capfd.readouterr(), page]
    assert not any(CANARY in text for text in said) and not holds(tmp_path / "album", CANARY)
    assert holds(tmp_path / "album", "a.org/fine"), "the search of the files works"


def test_no_url_of_metadata_is_fetched(
    album: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    folder = write_folder(tmp_path / "emb", laion(3))
    assert len(album.add_embeddings(folder).added) == 3
    with pytest.warns(RuntimeWarning, match="added as a vector"):
        ranking = album.search("red", 2)
    assert len(ranking) == 2 and ranking._repr_html_()
    album.remove_listed(["https://a.org/1.jpg"])
    album.remove_duplicates(0.999)
    remove_from_folder(folder, HashList.write(tmp_path / "list", [hash_texts(["0"])], ["number"]))


@pytest.mark.parametrize("batch_size", [1, 32])
def test_photograph_is_not_judged_by_rows_of_laion_in_its_batch(album: Retriever, batch_size: int) -> None:
    rows: list[dict[str, Any]] = [{}, {"punsafe": 0.1}, {"punsafe": None}]
    images = [replace(picture(name), metadata=row) for name, row in zip(COLOURS, rows, strict=False)]
    report = album.add(images, batch_size=batch_size)
    assert report.denied == {"unknown": 1} and len(report.added) == 2


def test_rows_of_arrays_are_denied_by_their_source_beside_another_url(album: Retriever) -> None:
    album.remove_listed(["https://a.org/1"])
    sources, urls = ["https://a.org/1", "x", "https://a.org/2"], ["https://b.org/1", "https://a.org/1", None]
    report = album.add_embeddings(unit(3), sources=sources, metadata=[{"URL": url} for url in urls])
    assert report.denied == {"removed": 2} and ids(album) == ["https://a.org/2"]


# --- removing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [123.0, 123, "123"])
def test_number_is_found_whatever_json_holds_it_as(album: Retriever, value: Any) -> None:
    album.add_embeddings(unit(1), ids=["a"], metadata=[{"HASH": value, "punsafe": 0.1}])
    assert album.remove_listed([" 123\n"]).removed == 1


def test_rehearsed_sync_leaves_out_listed_images_as_the_real_one(album: Retriever, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    decode(picture("red")).save(tmp_path / "photos/red.png")
    content = (tmp_path / "photos/red.png").read_bytes()
    album.remove_listed([hashlib.sha256(content).hexdigest()])
    assert album.sync(tmp_path / "photos", dry_run=True).added == ()
    assert album.sync(tmp_path / "photos").added == ()


@pytest.mark.parametrize("names", [[], [""], [" "], [123], None])
def test_list_without_names_is_refused(album: Retriever, names: Any) -> None:
    with pytest.raises(InvalidInputError, match="names must be texts"):
        album.remove_listed(names)


@pytest.mark.parametrize("index", [ExactIndex, CompressedIndex, HNSWIndex])
def test_removed_rows_are_gone_from_every_file_and_do_not_come_back(tmp_path: Path, index: Any) -> None:
    made = index(16)
    table = laion(40, caption=[CANARY if n in (3, 7) else "fine" for n in range(40)])
    folder = write_folder(tmp_path / "emb", table)
    with Retriever(ToyEncoder(), made, ToyStatesGenerator(), path=tmp_path / "album", states="disk") as album:
        album.add_embeddings(folder)
        album.add([picture(name) for name in COLOURS])
        red, digest, key = next((one.id, one.digest, one.key) for one in album.records() if one.width)
        album.questions.generate()
        asked = album._catalog.questions.kept([key]).vectors
        album.save()
        vectors = np.stack([album.vector(f"https://a.org/{n}.jpg") for n in (3, 7)])
        both = np.concatenate([vectors, asked])
        unit_vectors = unit_rows(both, 16)
        if index is CompressedIndex:
            unit_vectors = np.rint(unit_vectors * np.float32(32767)).astype(np.int16)
        stored = [one.tobytes() for one in (*both, *unit_vectors)]  # in the catalog, in the index
        assert len(asked) and all(holds(tmp_path / "album", one) for one in stored)
        (tmp_path / "names.txt").write_text(f"{table['md5'][3]}\n7\n{digest.upper()}\n{'f' * 32}\n")
        report = album.remove_listed(tmp_path / "names.txt")
        assert (report.listed, report.removed, report.found_before, report.found_after) == (4, 3, 3, 0)
        assert report.images == len(album) == 43 and red not in album
        assert CANARY not in repr(report)
        assert not any(holds(tmp_path / "album", one) for one in stored)
        assert not holds(tmp_path / "album", CANARY) and not holds(tmp_path / "album", digest)
        assert {one.id for one in album.questions.list()} <= set(ids(album))
        album._catalog.verify()
        again = album.add_embeddings(folder, safety=None)
        assert again.denied == {"removed": 2} and again.known == 38
        assert album.add([picture(name) for name in COLOURS]).denied == {"removed": 1}
        rows = album.add_embeddings(unit(1, 9), metadata=[{"md5": table["md5"][3]}], safety=None)
        assert rows.denied == {"removed": 1} and rows.added == ()
        with Retriever(ToyEncoder(), path=tmp_path / "other") as other:
            other.add_embeddings(folder)
            assert album.merge(other).denied == 2
        assert album.remove_listed([table["url"][0]]).listed == 5
        assert album.add_embeddings(folder).denied == {"removed": 3}
    with Retriever.open(tmp_path / "album", encoder=ToyEncoder(), generator=ToyStatesGenerator()) as album:
        assert len(album) == 42 and album.add_embeddings(folder).denied == {"removed": 3}


def test_interrupted_removal_is_completed_by_the_next_call(album: Retriever, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "emb", laion(4))
    album.add_embeddings(folder)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        album.remove_listed(["1"], progress=stop)
    assert len(album) == 4 and album.add_embeddings(folder).denied == {"removed": 1}
    assert album.remove_listed(["1"]).removed == 1


def test_removal_that_ended_between_catalog_and_index_is_completed_by_the_next_call(
    album: Retriever, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "emb", laion(40))
    album.add_embeddings(folder)
    album.save()
    stored = album.vector(ids(album)[1]).tobytes()
    assert holds(tmp_path / "album", stored)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(album.index), "compact", interrupted)
        album.remove_listed(["1"])
    assert len(album) == 39
    assert album.remove_listed(["1"]).removed == 0
    assert not holds(tmp_path / "album", stored)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_names_that_are_no_texts_are_refused(album: Retriever) -> None:
    with pytest.raises(InvalidInputError, match="names must be texts"):
        album.remove_listed([5])  # type: ignore[list-item]


def test_album_in_memory_and_damaged_lists_are_refused(album: Retriever, tmp_path: Path) -> None:
    with Retriever(ToyEncoder()) as other, pytest.raises(AlbumError, match="save"):
        other.remove_listed(["1"])
    album.remove_listed(["1"])
    (file,) = (tmp_path / "album" / LIST).glob("high-*")
    file.write_bytes(b"12345678")
    with pytest.raises(IntegrityError, match="damaged"):
        album.add_embeddings(unit(1))


# --- folders of embeddings --------------------------------------------------------------------------------


def removal(tmp_path: Path, *names: str) -> HashList:
    return HashList.write(tmp_path / "list", [hash_texts(names)], ["text", "number"])


def test_listed_rows_are_removed_from_a_folder_with_all_that_describes_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "emb", laion(5), laion(3, url=list("xyz"), hash=[10, 11, 12]))
    untouched = (folder / "metadata/metadata_1.parquet").stat().st_mtime_ns
    removed = removal(tmp_path, "https://a.org/1.jpg", "3")
    assert remove_from_folder(folder, removed) == 2 and remove_from_folder(folder, removed) == 0
    shards = open_embeddings(folder).shards
    np.testing.assert_array_equal(shards[0].vectors[:], unit(5).astype(np.float16)[[0, 2, 4]])
    np.testing.assert_array_equal(np.load(folder / "text_emb/text_emb_0.npy"), shards[0].vectors[:])
    assert parquet.read_table(shards[0].table.path)["hash"].to_pylist() == [0, 2, 4]
    assert (folder / "metadata/metadata_1.parquet").stat().st_mtime_ns == untouched
    assert not list(folder.rglob("*.removed"))


def test_exported_folder_keeps_its_own_count(album: Retriever, tmp_path: Path) -> None:
    album.add_embeddings(write_folder(tmp_path / "emb", laion(4)))
    album.export_embeddings(tmp_path / "out")
    assert remove_from_folder(tmp_path / "out", removal(tmp_path, "https://a.org/1.jpg")) == 1
    assert len(open_embeddings(tmp_path / "out")) == 3


@pytest.mark.parametrize("step", range(9))
def test_crash_at_any_step_leaves_the_old_shard_or_is_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = write_folder(tmp_path / "emb", laion(5))
    removed = removal(tmp_path, "1")
    steps = iter(range(100))

    def failing(call: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            if next(steps) == step:
                raise KeyboardInterrupt
            return call(*given, **named)

        return run

    with monkeypatch.context() as patch:
        for name in ("_write_array", "_write_table", "_replace", "sync_directory"):
            patch.setattr(cleanup, name, failing(getattr(cleanup, name)))
        with pytest.raises(KeyboardInterrupt):
            remove_from_folder(folder, removed)
    assert remove_from_folder(folder, removed) in (0, 1)
    (shard,) = open_embeddings(folder).shards
    np.testing.assert_array_equal(shard.vectors[:], unit(5).astype(np.float16)[[0, 2, 3, 4]])
    np.testing.assert_array_equal(np.load(folder / "text_emb/text_emb_0.npy"), shard.vectors[:])
    assert parquet.read_table(shard.table.path)["hash"].to_pylist() == [0, 2, 3, 4]


# --- near-duplicates --------------------------------------------------------------------------------------


def plain_duplicates(vectors: Vectors, cosine: float) -> list[int]:
    kept: list[int] = []
    gone: list[int] = []
    for n, vector in enumerate(vectors):
        (gone if any(vectors[kept] @ vector >= cosine) else kept).append(n)
    return gone


@pytest.mark.parametrize(("copies", "cosine"), [(0, 0.97), (3, 0.97), (40, 0.97), (300, 0.9), (3, 0.3)])
def test_near_duplicates_equal_a_plain_search_of_all_pairs(
    album: Retriever, copies: int, cosine: float
) -> None:
    random = np.random.default_rng(copies)
    vectors = np.concatenate([unit(60), unit(60)[:6].repeat(copies, axis=0)])
    vectors = vectors + random.standard_normal(vectors.shape).astype(np.float32) * 0.02
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    album.add_embeddings(vectors, ids=[str(n) for n in range(len(vectors))])
    expected = plain_duplicates(vectors, cosine)
    assert album.remove_duplicates(cosine) == len(expected)
    assert ids(album) == [str(n) for n in range(len(vectors)) if n not in expected]
    assert album.remove_duplicates(cosine) == 0


@pytest.mark.parametrize("cosine", [0, 1.5, None, float("nan")])
def test_unfit_cosines_are_refused(album: Retriever, cosine: Any) -> None:
    with pytest.raises(InvalidInputError, match="cosine"):
        album.remove_duplicates(cosine)
