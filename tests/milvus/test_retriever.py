"""A retriever over a collection of Milvus, compared with an album of the same rows."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PILImage
from pyarrow import parquet

from milvus_servers import needs_milvus, serving
from zsqretrieval import Field, Filter
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.milvus import Milvus
from zsqretrieval.indexes.milvus_table import Table
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder, ToyGenerator
from zsqretrieval.types import Hit

pytestmark = [needs_milvus, pytest.mark.filterwarnings("ignore:.*rank last:RuntimeWarning")]

ENCODER = ToyEncoder()
NAMES = ["red", "green", "blue", "yellow", "black", "white", "red green", "blue red", "a", "b"]
FACTS: list[dict[str, Any]] = [
    {"year": 2000 + n, "tags": ["x", n]} if n % 3 else {"subset": "en"} for n in range(10)
]


def fill(retriever: Retriever, folder: Path) -> None:
    for name in ("red", "green", "blue"):
        PILImage.new("RGB", (8, 6), name).save(folder / f"{name}.png")
    sources = [str(folder / f"{name}.png") for name in NAMES]
    captions = [f"a {name}" if n % 2 else None for n, name in enumerate(NAMES)]
    rows = ENCODER.encode_text(NAMES)
    report = retriever.add_embeddings(rows, ids=NAMES, sources=sources, metadata=FACTS, captions=captions)
    assert sorted(report.added) == sorted(NAMES)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Retriever]:
    with Retriever.open(f"milvus:{tmp_path}/a.db", encoder=ENCODER, generator=ToyGenerator()) as retriever:
        fill(retriever, tmp_path)
        yield retriever


def facts(hit: Hit) -> tuple[Any, ...]:
    return hit.id, hit.source, hit.caption, hit.metadata, hit.digest, hit.duplicates, sorted(hit.scores)


def test_searches_are_those_of_an_album(collection: Retriever, tmp_path: Path) -> None:
    with Retriever(ENCODER, ExactIndex(ENCODER.dim), ToyGenerator()) as album:
        fill(album, tmp_path)
        texts = ["a red bus", "green or blue"]
        for retriever in (album, collection):
            retriever.calibration = replace(album.calibration, relevance_scale=5.0, relevance_margin=0.1)
        of_hit = [one.search("red", 1, rerank=None)[0] for one in (album, collection)]
        for options in (
            {"k": 4, "rerank": None},
            {"k": 20},
            {"k": 3, "offset": 3, "rerank": None},
            {"k": 3, "offset": 3},
            {"k": 10, "where": Field("year") > 2003},
            {"k": 10, "where": ~(Field("year") > 2003) & ~Field("caption").contains("_"), "rerank": None},
            {"k": 10, "where": Filter.parse("tags contains 4 or subset = 'en'"), "rerank": None},
            {"k": 10, "collapse": 0.9, "diversity": 0.4},
            {"k": 10, "min_probability": 0.3, "rerank": None},
            {"k": 2, "explain": True, "where": Field("source").contains("red.png")},
        ):
            found = [retriever.search(texts, **options) for retriever in (album, collection)]  # type: ignore[call-overload]
            for one, other in zip(*found, strict=True):
                assert one.ids == other.ids, options
                np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)
                assert list(map(facts, one)) == list(map(facts, other))
                assert one.unscored == other.unscored
        assert album.search(of_hit[0], 3, rerank=None).ids == collection.search(of_hit[1], 3, rerank=None).ids
        np.testing.assert_array_equal(album.vector("red"), collection.vector("red"))
        mine = [replace(record, key=0) for record in album.records()]
        assert sorted(mine, key=str) == sorted((replace(one, key=0) for one in collection.records()), key=str)
        assert len(collection) == len(album) == 10 and "red" in collection and "x" not in collection


def test_rows_are_known_updated_replaced_and_removed(collection: Retriever) -> None:
    rows = ENCODER.encode_text(["a", "b", "green"])
    source, other = (str(collection.find(one).source) for one in "ab")  # type: ignore[union-attr]
    known = collection.add_embeddings(rows[:2], ids=["a", "b"], sources=[source, other])
    assert (known.known, known.added, known.updated) == (2, (), ())
    report = collection.add_embeddings(
        np.vstack([rows[0], rows[2], rows[2]]),
        ids=["a", "b", "new"],
        sources=[source, "elsewhere", "x"],
        metadata=[{"year": 1}, None, {"last": True}],
    )
    assert (report.updated, report.replaced, report.added, report.known) == (("a",), ("b",), ("new",), 0)
    found = collection.find("a")
    assert found is not None and (found.metadata, found.caption) == ({"year": 1}, None)
    assert collection.find("b").caption == "a b" and collection.find("new").metadata == {"last": True}  # type: ignore[union-attr]
    np.testing.assert_allclose(collection.vector("b"), rows[2], atol=1e-6)
    with pytest.raises(InvalidInputError, match="1 of 2 ids are not in the album, the first is 'x'"):
        collection.remove(["a", "x"])
    collection.remove(["a", "new"])
    assert len(collection) == 9 and "a" not in collection
    assert "a" not in collection.search("red", 20, rerank=None).ids


def test_collection_is_searched_by_the_type_of_index_that_it_was_made_with(tmp_path: Path) -> None:
    place = f"milvus:{tmp_path}/a.db"
    with Retriever.open(f"{place}?index=HNSW_SQ", encoder=ENCODER) as made:
        fill(made, tmp_path)
        made.save()
        expected = made.search(["red", "blue"], 5, rerank=None)
    with Retriever.open(place, encoder=ENCODER) as again:
        found = again.search(["red", "blue"], 5, rerank=None)
    exact = ENCODER.encode_text(["red", "blue"]) @ ENCODER.encode_text(NAMES).T
    for ranking, same, cosine in zip(found, expected, exact, strict=True):
        assert [(hit.id, hit.score) for hit in ranking] == [(hit.id, hit.score) for hit in same]
        assert [hit.score for hit in ranking] == pytest.approx(
            [cosine[NAMES.index(hit.id)] for hit in ranking], abs=1e-6
        )


def test_last_of_several_rows_of_a_folder_with_one_url_stays(collection: Retriever, tmp_path: Path) -> None:
    for name in ("img_emb", "metadata"):
        (tmp_path / "folder" / name).mkdir(parents=True)
    np.save(tmp_path / "folder/img_emb/img_emb_0000.npy", ENCODER.encode_text(["1", "2"]))
    rows = pa.table({"url": ["https://x/1", "https://x/1"], "caption": ["first", "last"]})
    parquet.write_table(rows, tmp_path / "folder/metadata/metadata_0000.parquet")
    report = collection.add_embeddings(tmp_path / "folder", safety=None)
    assert (report.added, report.known) == (("https://x/1",), 1)
    assert collection.find("https://x/1").caption == "last"  # type: ignore[union-attr]


def test_rows_that_do_not_fit_are_named(collection: Retriever) -> None:
    rows = ENCODER.encode_text(["1", "2", "3", "4"])
    long = [{"text": "x" * 70_000}, {"number": 2**70}, {}, {}]
    report = collection.add_embeddings(rows, ids=["1", "2", "3" * 70_000, "4"], metadata=long)
    assert report.added == ("4",) and len(report.skipped) == 3
    reasons = " ".join(one.reason for one in report.skipped)
    for part in ("its metadata has more than 65535 bytes", "more than 64 bits", "its id has more"):
        assert part in reasons
    with pytest.raises(MismatchError, match="dim"):
        collection.add_embeddings(rows[:, :5])
    with pytest.raises(InvalidInputError, match="row 1 is not finite"):
        collection.add_embeddings(np.vstack([rows[0], rows[0] * np.nan]))


def test_folder_of_embeddings_is_added(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with Retriever(ENCODER, ExactIndex(ENCODER.dim)) as album:
        fill(album, tmp_path)
        album.export_embeddings(tmp_path / "folder", shard_size=4)
    with Retriever.open(Milvus(str(tmp_path / "a.db"), index="IVF_SQ8"), encoder=ENCODER) as collection:
        for counts in ((10, 0), (0, 10)):
            report = collection.add_embeddings(tmp_path / "folder", batch_size=3)
            assert (len(report.added), report.known) == counts
        assert collection.search("red", 1)[0].id == "red"


@pytest.mark.parametrize(
    "call",
    [
        lambda one: one.add("red.png"),
        lambda one: one.update("red", {}),
        lambda one: one.index_fields("year"),
        lambda one: one.sync("."),
        lambda one: one.merge(Retriever(ENCODER)),
        lambda one: one.reencode(ENCODER),
        lambda one: one.export_embeddings("folder"),
        lambda one: one.dialog("red"),
        lambda one: one.gallery(),
        lambda one: one.index,
        lambda one: one.questions.generate(),
        lambda one: one.query_bank(),
        lambda one: one.save("elsewhere"),
        pickle.dumps,
    ],
)  # fmt: skip
def test_what_needs_a_catalog_is_refused(call: Callable[[Retriever], Any], tmp_path: Path) -> None:
    with Retriever.open(f"milvus:{tmp_path}/a.db", encoder=ENCODER, generator=ToyGenerator()) as empty:
        assert len(empty) == 0 and len(empty.search("red")) == 0
        with pytest.raises(InvalidInputError, match=r"can be searched, .*docs/milvus\.md"):
            call(empty)
        with pytest.raises(InvalidInputError, match="no stored questions"):
            empty.search("red", expand=True)


def test_collection_is_opened_with_its_encoder_and_nothing_untrusted(tmp_path: Path) -> None:
    path = f"milvus:{tmp_path}/a.db"
    with pytest.raises(AlbumError, match="does not exist; give a preset or an encoder"):
        Retriever.open(path)
    with pytest.raises(InvalidInputError, match="leave out index"):
        Retriever.open(path, encoder=ENCODER, index=ExactIndex(16))
    with Retriever.open(path, encoder=ENCODER) as made:
        made.calibration = replace(made.calibration, relevance_margin=0.25)
        made.save()

    class Other(ToyEncoder):
        fingerprint = "other"

    with pytest.raises(MismatchError, match="encoder 'toy-encoder-1', but this encoder is 'other'"):
        Retriever.open(path, encoder=Other())
    with Retriever.open(path, encoder=ENCODER) as again:
        assert again.calibration.relevance_margin == 0.25
        part = {"plugin": "clip", "config": {"name": "ViT-B-32", "pretrained": "/etc/weights.pt"}}
        local = {"plugin": "kosmos", "config": {"name": "/etc/weights"}}
        again._store.save({"encoder_part": part, "generator": {"part": local, "states": "lazy"}})  # type: ignore[attr-defined]
    with pytest.raises(AlbumError, match=r"encoder 'clip' with .*weights\.pt.*trust_parts=True"):
        Retriever.open(path)
    with pytest.raises(AlbumError, match=r"generator 'kosmos' with .*/etc/weights"):
        Retriever.open(path, encoder=ENCODER)
    with Retriever.open(path, encoder=ENCODER, generator=ToyGenerator()) as again:
        again._store.save({"encoder": 3})  # type: ignore[attr-defined]
    with pytest.raises(IntegrityError, match="fingerprint of its encoder is not a text"):
        Retriever.open(path, encoder=ENCODER)
    Table(Milvus(f"{tmp_path}/a.db", "other")).create(16)
    with pytest.raises(IntegrityError, match=r"the collection other of .* was not made by zsqretrieval"):
        Retriever.open(f"{path}?collection=other", encoder=ENCODER)


def test_rows_go_to_the_partition_of_their_subset(tmp_path: Path) -> None:
    path = f"milvus:{tmp_path}/a.db?partition_field=subset"
    subsets = ["laion2B-en", "laion2B-multi", "1B-nolang", None]
    rows, ids = ENCODER.encode_text(NAMES[:4]), NAMES[:4]

    def stored(partition: str) -> list[str]:
        with Retriever.open(f"{path}&partition={partition}", encoder=ENCODER) as one:
            return sorted(one.search("red", 9, rerank=None).ids)

    with Retriever.open(path, encoder=ENCODER) as retriever:
        metadata = [{"subset": one} if one else {} for one in subsets]
        retriever.add_embeddings(rows, ids=ids, metadata=metadata)
        assert (stored("laion2B_en"), stored("_1B_nolang")) == (["red"], ["blue"])
        retriever.add_embeddings(rows[:1], ids=ids[:1], metadata=[{"subset": "laion2B-multi"}])
        assert (stored("laion2B_en"), stored("laion2B_multi")) == ([], ["green", "red"])
        assert len(retriever) == 4 and len(retriever.search("red", 9, rerank=None)) == 4


def test_killed_server_loses_nothing_and_writers_do_not_double(tmp_path: Path) -> None:
    rows = np.vstack([ENCODER.encode_text([f"text {n}"]) for n in range(300)])
    ids = [f"{n}" for n in range(300)]
    with serving(tmp_path / "data") as server:
        path = f"milvus://127.0.0.1:{server.port}/photos?timeout=30"
        with (
            Retriever.open(path, encoder=ENCODER) as one,
            Retriever.open(path, encoder=ENCODER) as other,
        ):
            one.add_embeddings(rows[:200], ids=ids[:200])
            assert len(other.add_embeddings(rows[100:], ids=ids[100:]).added) == 100
            other.remove(["7", "250"])
            server.kill()
            server.start()
            assert len(one) == len({record.id for record in one.records()}) == 298
            assert "7" not in other and other.search(rows[250], 1, rerank=None)[0].id != "250"
