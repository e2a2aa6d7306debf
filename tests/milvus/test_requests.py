"""What is asked of a cluster: requests of index types, dtypes and settings that milvus-lite does not have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index_data import unit, vectors
from milvus_servers import needs_milvus
from zsqretrieval.album.milvus import milvus_at
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.milvus import Milvus, MilvusIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder

Asked = dict[str, dict[str, Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The last arguments of each method of a client, which answers a search with all rows."""
    import pymilvus

    asked: Asked = {}
    rows: list[dict[str, Any]] = []

    class Recorder:
        create_schema = pymilvus.MilvusClient.create_schema
        prepare_index_params = pymilvus.MilvusClient.prepare_index_params

        def __init__(self, uri: str, **settings: Any) -> None:
            asked["connect"] = {"uri": uri, **settings}

        def __getattr__(self, name: str) -> Any:
            def call(collection: str, **given: Any) -> Any:
                asked[name] = given
                if name == "upsert":
                    rows.extend(given["data"])
                return [list(map(found, rows)) for _ in given["data"]] if name == "search" else False

            return call

    def found(row: dict[str, Any]) -> dict[str, Any]:
        vector = row["vector"]
        given = vector.tobytes() if vector.dtype == np.float16 else vector.tolist()
        return {"key": row["key"], "distance": 0.5, "entity": {"vector": given}}

    monkeypatch.setattr(pymilvus, "MilvusClient", Recorder)
    return asked


pytestmark = needs_milvus


@pytest.mark.parametrize(
    ("kind", "build", "search", "built", "searched"),
    [
        ("HNSW", {}, {}, {"M": 16, "efConstruction": 200}, {"ef": 128}),
        ("HNSW", {"M": 32}, {"ef": 10}, {"M": 32, "efConstruction": 200}, {"ef": 20}),
        ("IVF_PQ", {"m": 8, "nlist": 64}, {"nprobe": 9}, {"m": 8, "nlist": 64, "nbits": 8}, {"nprobe": 9}),
        ("IVF_RABITQ", {"refine": True}, {}, {"nlist": 1024, "refine": True}, {"nprobe": 128}),
        ("DISKANN", {}, {}, {}, {"search_list": 128}),
        ("GPU_CAGRA", {"graph_degree": 64}, {"itopk_size": 128}, {"graph_degree": 64}, {"itopk_size": 128}),
    ],
)
def test_index_type_and_its_parameters_reach_the_server(
    kind: str, build: Any, search: Any, built: Any, searched: Any, asked: Asked
) -> None:
    index = MilvusIndex(
        16, uri="http://milvus:19530", token="root:Milvus", index=kind, build=build, search=search, refine=2,
        shards=4, replicas=2, consistency="Bounded", partition="laion2B_en", timeout=7.0,
    )  # fmt: skip
    index.add(np.arange(12), vectors(12, 16))
    index.search(vectors(3, 16), 10)
    assert asked["connect"] == {"uri": "http://milvus:19530", "token": "root:Milvus", "timeout": 7.0}
    made = asked["create_collection"]
    assert (made["num_shards"], made["consistency_level"], made["timeout"]) == (4, "Bounded", 7.0)
    (one,) = asked["create_index"]["index_params"]
    assert (one.field_name, one.index_type) == ("vector", kind)
    assert one.to_dict() == {
        "field_name": "vector",
        "index_name": "",
        "metric_type": "COSINE",
        "index_type": kind,
        **built,
    }
    assert asked["load_collection"]["replica_number"] == 2
    assert asked["create_partition"]["partition_name"] == asked["upsert"]["partition_name"] == "laion2B_en"
    last = asked["search"]
    assert last["search_params"] == {"metric_type": "COSINE", "params": searched}
    assert (last["limit"], last["partition_names"], last["consistency_level"]) == (
        20,
        ["laion2B_en"],
        "Bounded",
    )
    assert last["output_fields"] == ["vector"]


def test_halves_are_stored_asked_for_and_compared_exactly(asked: Asked) -> None:
    index = MilvusIndex(16, uri="http://milvus:19530", index="IVF_RABITQ", dtype="float16")
    index.add(np.arange(12), vectors(12, 16))
    (field,) = [one for one in asked["create_collection"]["schema"].fields if one.name == "vector"]
    assert field.dtype.name == "FLOAT16_VECTOR" and field.params == {"dim": 16}
    assert asked["upsert"]["data"][0]["vector"].dtype == np.float16
    found = index.search(vectors(3, 16), 12)
    assert asked["search"]["data"][0].dtype == np.float16
    stored = unit(unit(vectors(12, 16)).astype(np.float16).astype(np.float32))
    wanted = unit(vectors(3, 16)) @ stored.T
    np.testing.assert_allclose(found.scores, -np.sort(-wanted, axis=1), atol=1e-6)


def test_token_comes_from_the_environment(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILVUS_TOKEN", "of the environment")
    MilvusIndex(16).add(np.arange(2), vectors(2, 16))
    assert asked["connect"]["token"] == "of the environment"


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("milvus://host:19530/photos", Milvus("http://host:19530", "photos")),
        ("milvus://h:1/a?secure=1&shards=2&timeout=5", Milvus("https://h:1", "a", shards=2, timeout=5.0)),
        ("milvus:dir/photos.db", Milvus("dir/photos.db")),
        ("milvus:/d/a.db?collection=a&index=FLAT", Milvus("/d/a.db", "a", index="FLAT")),
        ('milvus:a.db?build={"M":8}&index=HNSW_SQ', Milvus("a.db", build={"M": 8}, index="HNSW_SQ")),
        ("photos.album", None),
        (3, None),
    ],
)  # fmt: skip
def test_path_names_a_collection(path: object, place: Milvus | None) -> None:
    assert milvus_at(path) == place


@pytest.mark.parametrize("query", ["shards=two", "ef=3", "build=M", "shards=0", "collection=a.b", "uri=x"])
def test_path_with_wrong_parameters_is_refused(query: str) -> None:
    with pytest.raises(InvalidInputError):
        milvus_at(f"milvus:a.db?{query}")


def test_collection_of_the_server_is_made_with_settings_and_columns(asked: Asked) -> None:
    with pytest.raises(TypeError):  # nothing describes the new collection
        Retriever.open("milvus://host:1/c?index=DISKANN&dtype=float16", encoder=ToyEncoder())
    schema = asked["create_collection"]["schema"]
    assert {one.name for one in schema.fields} == {
        "key", "vector", "id", "source", "digest", "caption", "width", "height", "bytes", "metadata"
    }  # fmt: skip
    assert '"encoder": "toy-encoder-1"' in schema.description
    assert asked["alter_collection_properties"]["properties"] == {"zsqretrieval.settings": schema.description}
