"""LangChain: its own tests of retrievers, and a compressor among documents without images."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from zsqretrieval.errors import InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyGenerator

pytest.importorskip("langchain_core")
kit = pytest.importorskip("langchain_tests.integration_tests")

from langchain_core.documents import Document  # noqa: E402
from langchain_core.runnables import RunnableLambda  # noqa: E402

from zsqretrieval.integrations.langchain import ZsqCompressor, ZsqRetriever  # noqa: E402


class TestStandard(kit.RetrieversIntegrationTests):  # type: ignore[name-defined,misc]
    """The tests that LangChain gives to packages."""

    pytestmark = pytest.mark.anyio  # runs the asynchronous one

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture(autouse=True)
    def album(self, retriever_of_colours: Retriever) -> None:
        self.searched = retriever_of_colours

    @property
    def retriever_constructor(self) -> type[ZsqRetriever]:
        return ZsqRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"retriever": self.searched}

    @property
    def retriever_query_example(self) -> str:
        return "red"


def test_document_has_caption_and_metadata_of_the_hit(retriever_of_colours: Retriever) -> None:
    found = ZsqRetriever(retriever=retriever_of_colours, k=9).invoke("red")
    hits = retriever_of_colours.search("red", 9)
    assert [one.id for one in found] == [hit.id for hit in hits]
    assert found[0].page_content == "a red wall" and found[1].page_content == ""
    hit = hits[0]
    assert found[0].metadata == {
        "id": hit.id, "source": hit.source, "digest": hit.digest, "caption": "a red wall",
        "score": hit.score, "scores": hit.scores,
    }  # fmt: skip


def test_settings_of_the_search_are_for_all_questions_or_one(retriever_of_colours: Retriever) -> None:
    plain = ZsqRetriever(retriever=retriever_of_colours, search_kwargs={"rerank": None})
    assert list(plain.invoke("red")[0].metadata["scores"]) == ["first_stage"]
    assert "yes_no" in plain.invoke("red", rerank="yes_no")[0].metadata["scores"]
    assert [len(some) for some in plain.batch(["red", "green"], k=2)] == [2, 2]
    for wrong in ({"k": 0}, {"rerank": "cosine"}):
        with pytest.raises(InvalidInputError):
            plain.invoke("red", **wrong)


def test_compressor_orders_images_and_keeps_the_rest_last(folder: Path) -> None:
    documents = [
        Document("a text", metadata={"source": "notes.txt"}, id="text"),
        *(Document("", metadata={"path": str(folder / f"{one}.png")}, id=one) for one in ("red", "green")),
    ]
    compressor = ZsqCompressor(generator=ToyGenerator())
    with pytest.warns(RuntimeWarning, match="1 of 3 documents have no image that can be scored"):
        found = compressor.compress_documents(documents, "green")
    assert [one.id for one in found] == ["green", "red", "text"]
    scores = [one.metadata["relevance_score"] for one in found]
    assert scores[0] > scores[1] and scores[2] is None
    assert "relevance_score" not in documents[0].metadata
    images = documents[1:]
    best = ZsqCompressor(generator=ToyGenerator(), scoring="yes_no", top_n=1)
    assert len(asyncio.run(best.acompress_documents(images, "green"))) == 1
    assert compressor.compress_documents([], "green") == []


def test_retriever_and_compressor_make_a_chain(retriever_of_colours: Retriever) -> None:
    retriever = ZsqRetriever(retriever=retriever_of_colours, search_kwargs={"rerank": None})
    compressor = ZsqCompressor(generator=ToyGenerator(), top_n=2)
    chain = retriever | RunnableLambda(lambda found: compressor.compress_documents(found, "blue"))
    assert next(one.id for one in chain.invoke("red")) == "blue.png"


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"top_n": 0}, "top_n must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"scoring": "cosine"}, "not 'cosine'"),
        ({"generator": "mini"}, "the generator is the string 'mini'"),
    ],
)
def test_bad_setting_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ZsqCompressor(**{"generator": ToyGenerator(), **wrong})
