"""LlamaIndex: retrievers, and a postprocessor that takes image nodes (llama_index#20742)."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyGenerator

pytest.importorskip("llama_index.core")

from llama_index.core.schema import (
    ImageNode,
    MediaResource,
    MetadataMode,
    Node,
    NodeWithScore,
    QueryBundle,
    TextNode,
)

from zsqretrieval.integrations.llama_index import ZsqRerank, ZsqRetriever


def found(nodes: list[NodeWithScore]) -> list[tuple[str, float | None]]:
    return [(one.node_id, one.score) for one in nodes]


def test_question_and_image_find_nodes_of_the_hits(retriever_of_colours: Retriever, folder: Path) -> None:
    retriever = ZsqRetriever(retriever_of_colours, similarity_top_k=2)
    for query, asked in (("red", "red"), (str(folder / "green.png"), folder / "green.png")):
        hits = [(hit.id, hit.score) for hit in retriever_of_colours.search(asked, 2)]
        if asked == "red":
            assert found(retriever.retrieve(query)) == hits
            assert found(asyncio.run(retriever.aretrieve(query))) == hits
            assert found(retriever.text_to_image_retrieve(query)) == hits
            assert found(asyncio.run(retriever.atext_to_image_retrieve(query))) == hits
        else:
            assert found(retriever.image_to_image_retrieve(query)) == hits
            assert found(asyncio.run(retriever.aimage_to_image_retrieve(query))) == hits


def test_node_has_source_caption_and_metadata_that_no_model_reads(retriever_of_colours: Retriever) -> None:
    (first, *_) = ZsqRetriever(retriever_of_colours, rerank=None).retrieve("red")
    hit = retriever_of_colours.search("red", rerank=None)[0]
    assert isinstance(first.node, ImageNode)
    assert (first.node.image_path, first.node.text) == (hit.source, "a red wall")
    assert first.node.metadata["scores"] == hit.scores
    assert (
        first.node.get_content(MetadataMode.LLM) == first.node.get_content(MetadataMode.EMBED) == "a red wall"
    )


@pytest.mark.parametrize("wrong", [{"similarity_top_k": 0}, {"rerank": "cosine"}, {"depth": 3}])
def test_bad_setting_of_a_search_is_refused(retriever_of_colours: Retriever, wrong: dict[str, Any]) -> None:
    with pytest.raises((InvalidInputError, TypeError)):
        ZsqRetriever(retriever_of_colours, **wrong).retrieve("red")


@pytest.mark.parametrize("query", [QueryBundle("red"), "missing.png", "https://x/a.png"])
def test_missing_query_image_is_refused(retriever_of_colours: Retriever, query: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"no image|no such file|fetch=True"):
        ZsqRetriever(retriever_of_colours).image_to_image_retrieve(query)


def nodes(folder: Path) -> list[NodeWithScore]:
    green = (folder / "green.png").read_bytes()
    some = [
        TextNode(id_="text", text="a green wall"),
        ImageNode(id_="path", image_path=str(folder / "red.png")),
        ImageNode(id_="base64", image=base64.b64encode(green).decode()),
        ImageNode(id_="url", image_url="https://x/green.png"),
        Node(id_="resource", image_resource=MediaResource(data=green)),
        Node(id_="resource path", image_resource=MediaResource(path=folder / "blue.png")),
        TextNode(id_="metadata", text="", metadata={"file_path": str(folder / "red.png")}),
        ImageNode(id_="broken", image="%%%"),
    ]
    return [NodeWithScore(node=one, score=0.5) for one in some]


def test_image_nodes_are_ordered_and_the_rest_keeps_its_order_last(folder: Path) -> None:
    rerank = ZsqRerank(generator=ToyGenerator())
    with pytest.warns(RuntimeWarning, match="3 of 8 documents have no image that can be scored"):
        ranked = rerank.postprocess_nodes(nodes(folder), query_str="green")
    names = [name for name, _ in found(ranked)]
    assert names[:2] == ["base64", "resource"] and names[5:] == ["text", "url", "broken"]
    assert sorted(names[2:5]) == ["metadata", "path", "resource path"]
    assert [score for _, score in found(ranked)[5:]] == [None] * 3
    images = [one for one in nodes(folder) if one.node_id not in ("text", "url", "broken")]
    best = ZsqRerank(generator=ToyGenerator(), top_n=2)
    assert found(asyncio.run(best.apostprocess_nodes(images, query_str="green"))) == found(ranked[:2])
    assert best.postprocess_nodes([], query_str="green") == []
    assert best.class_name() == "ZsqRerank" and "generator" not in best.to_dict()


def test_retriever_and_postprocessor_work_together(retriever_of_colours: Retriever) -> None:
    candidates = ZsqRetriever(retriever_of_colours, rerank=None).retrieve("blue")
    ranked = ZsqRerank(generator=ToyGenerator(), top_n=1).postprocess_nodes(candidates, query_str="blue")
    assert ranked[0].node_id == "blue.png"


def test_bad_use_of_the_postprocessor_is_refused(folder: Path) -> None:
    with pytest.raises(InvalidInputError, match="needs a question"):
        ZsqRerank(generator=ToyGenerator()).postprocess_nodes(nodes(folder))
    for wrong in ({"top_n": 0}, {"batch_size": 0}, {"scoring": "cosine"}, {"generator": "mini"}):
        with pytest.raises(ValueError, match="validation error"):
            ZsqRerank(**{"generator": ToyGenerator(), **wrong})
