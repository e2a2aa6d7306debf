"""MilvusIndex against milvus-lite servers: the contract, crashes, lost connections, and in an album."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic import cliplike
from index_data import expect_among, unit, vectors
from milvus_servers import Proxy, Server, needs_milvus, serving
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.milvus import MilvusIndex
from zsqretrieval.protocols import Configurable, FilteredIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import Check, ToyEncoder, index_checks

pytestmark = needs_milvus

ENCODER = ToyEncoder()
RANDOM = {"random_operations_agree_with_a_model", "identical_vectors_do_no_harm", "recall_is_high"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("milvus") / "data") as one:
        yield one


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "data") as one:
        yield one


@pytest.mark.parametrize("check", index_checks, ids=lambda check: check.name)
def test_index_on_a_server_keeps_the_contract(check: Check, server: Server) -> None:
    check(partial(MilvusIndex, uri=server.uri))


@pytest.mark.parametrize("kind", ["HNSW_SQ", "IVF_SQ8", "FLAT"])
@pytest.mark.parametrize(
    "check", [one for one in index_checks if one.name in RANDOM], ids=lambda one: one.name
)
def test_compressing_index_keeps_the_contract_by_refinement(check: Check, kind: str, server: Server) -> None:
    build = {"nlist": 8} if kind == "IVF_SQ8" else {}
    check(partial(MilvusIndex, uri=server.uri, index=kind, build=build))


@pytest.mark.parametrize("kind", ["HNSW_SQ", "IVF_SQ8"])
def test_refinement_finds_no_less_and_gives_exact_scores(kind: str, server: Server) -> None:
    data = cliplike(4000, 100, dim=128, seed=2)
    truth = ExactIndex(128)
    truth.add(np.arange(4000), data.gallery)
    wanted = truth.search(data.text_queries, 10)
    recall, error = {}, {}
    for refine in (0, 4):
        index = MilvusIndex(
            128, uri=server.uri, index=kind, build={"nlist": 16} if "IVF" in kind else {}, refine=refine
        )
        index.add(np.arange(4000), data.gallery)
        for step in ("flush", "release_collection", "load_collection"):  # what is in memory has no index
            index._table.call(step)  # type: ignore[union-attr]
        found = index.search(data.text_queries, 10)
        recall[refine] = (
            np.mean([len(set(a) & set(b)) for a, b in zip(found.keys, wanted.keys, strict=True)]) / 10
        )
        true = np.einsum("qd,qkd->qk", unit(data.text_queries), unit(data.gallery)[found.keys])
        error[refine] = np.abs(found.scores - true).max()
    assert recall[4] >= recall[0] and recall[4] >= 0.97
    assert error[4] < 1e-6 < error[0]


def test_search_among_equals_the_definition_over_those_keys(server: Server) -> None:
    gallery, queries = vectors(3000), vectors(5, seed=2)
    gallery[100:130] = gallery[7]
    index = MilvusIndex(32, uri=server.uri, index="FLAT")
    index.add(np.arange(3000), gallery)
    allowed = [*range(0, 3000, 2), 7, 150, 10_000, -4]
    expect_among(index, gallery, np.vstack([queries, gallery[7:8]]), 30, allowed)


def test_config_rebuilds_the_index_without_the_token(tmp_path: Path) -> None:
    index = MilvusIndex(8, fingerprint="f", uri=str(tmp_path / "x.db"), token="secret", shards=2)
    assert isinstance(index, FilteredIndex) and isinstance(index, Configurable)
    again = MilvusIndex.from_config(index.config)
    assert again.config == index.config and "secret" not in f"{index.config}{index!r}{index._place}"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"index": ""}, "the index of Milvus"),
        ({"collection": "a-b"}, "no name of a collection"),
        ({"shards": 0}, "shards must be"),
        ({"refine": -1}, "refine must be"),
        ({"dtype": "int8"}, "dtype must be one of float32, float16"),
        ({"consistency": "none"}, "consistency must be one of Strong"),
        ({"ef": 3}, r"no settings \['ef'\]"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        MilvusIndex(8, **settings)


def test_nothing_is_lost_when_the_server_is_killed(own: Server, tmp_path: Path) -> None:
    index = MilvusIndex(32, uri=own.uri)
    index.add(np.arange(1000), vectors(1000))
    index.remove(np.arange(0, 30, 10))
    index.save(tmp_path / "saved")
    own.kill()
    own.start()
    for one in (index, MilvusIndex.load(tmp_path / "saved")):
        found = one.search(vectors(1000), 1).keys[:, 0]
        kept = np.setdiff1d(np.arange(1000), [0, 10, 20])
        assert len(one) == 997 and not np.isin(found, [0, 10, 20]).any()
        np.testing.assert_array_equal(found[kept], kept)


def test_requests_are_repeated_until_the_server_is_back(own: Server) -> None:
    proxy = Proxy(own.port)
    index = MilvusIndex(32, uri=proxy.uri, timeout=30.0)
    index.add(np.arange(100), vectors(100))
    proxy.cut()
    index.add(np.arange(100, 200), vectors(200)[100:])
    own.kill()
    back = threading.Timer(1.5, own.start)
    back.start()
    np.testing.assert_array_equal(index.search(vectors(200), 1).keys[:, 0], np.arange(200))
    back.join()
    proxy.close()


def test_server_that_does_not_answer_is_an_album_error(server: Server) -> None:
    proxy = Proxy(server.port)
    index = MilvusIndex(32, uri=proxy.uri, timeout=2.0)
    index.add(np.arange(10), vectors(10))
    proxy.silent = True
    with pytest.raises(AlbumError, match="search failed"):
        index.search(vectors(1), 1)
    proxy.close()


def test_server_that_stays_away_is_an_album_error(own: Server) -> None:
    index = MilvusIndex(32, uri=own.uri, timeout=1.0)
    index.add(np.arange(10), vectors(10))
    own.kill()
    with pytest.raises(AlbumError, match=r"of http://127.*search failed"):
        index.search(vectors(1), 1)
    with pytest.raises(AlbumError, match="upsert failed"):
        index.add(np.arange(10, 20), vectors(10))
    assert len(index) == 10
    with pytest.raises(AlbumError, match="failed"):
        MilvusIndex(32, uri=own.uri, timeout=1.0).add(np.arange(1), vectors(1))


@pytest.mark.parametrize("settings", [{"index": "IVF_PQ"}, {"index": "DISKANN"}, {"dtype": "float16"}])
def test_what_the_embedded_server_lacks_is_refused(settings: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"milvus-lite has no (IVF_PQ|DISKANN|float16); .*HNSW_SQ"):
        MilvusIndex(32, uri=str(tmp_path / "x.db"), **settings)


def test_index_of_an_album_is_loaded_and_follows_what_was_not_saved(server: Server, tmp_path: Path) -> None:
    words = ["red", "green", "blue", "yellow", "black", "white"]
    encoded = ENCODER.encode_text(words)
    path = tmp_path / "album"

    def opened() -> Retriever:
        return Retriever.open(path, encoder=ENCODER, trust_parts=True)

    with pytest.raises(AlbumError, match=r"index 'milvus'.*trust_parts=True"):
        with Retriever(ENCODER, MilvusIndex(ENCODER.dim, uri=server.uri), path=path) as album:
            album.add_embeddings(encoded[:4], ids=words[:4])
            album.save()
            album.add_embeddings(encoded[4:], ids=words[4:])
            collection = album.index.collection  # type: ignore[attr-defined]
        Retriever.open(path, encoder=ENCODER)
    with opened() as album, opened() as other:  # both write the two rows that were not saved
        for one in (album, other):
            assert one.search("black", 1)[0].id == "black" and len(one.index) == 6
            assert one.index.collection == collection  # type: ignore[attr-defined]
        album.remove("black")
        assert other.search("black", 6).ids == album.search("black", 6).ids
        other.save()
    with opened() as album:
        album.search("red", 1)  # loads the index
        album.remove("red")
    with opened() as album:
        with pytest.warns(RuntimeWarning, match="rebuilt from the catalog"):
            found = album.search("red", 6).ids
        assert sorted(found) == sorted(set(words) - {"black", "red"})
        album.save()
    with opened() as album:
        assert len(album.index) == 4
