"""Haystack: components in a pipeline that is saved and loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import toy_plugins
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.presets import PRESETS
from zsqretrieval.retriever import Retriever

pytest.importorskip("haystack")

from haystack import Document, Pipeline
from haystack.core.errors import DeserializationError
from haystack.dataclasses import ByteStream

from zsqretrieval.integrations.haystack import ZsqRanker, ZsqRetriever


@pytest.fixture
def place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An album on disk, made of the preset "reading"."""
    monkeypatch.syspath_prepend(str(toy_plugins.install(tmp_path / "plugins")))
    for name, preset in toy_plugins.presets().items():
        monkeypatch.setitem(PRESETS, name, preset)  # type: ignore[arg-type]
    with Retriever.open(tmp_path / "album", "reading") as retriever:
        retriever.add(folder)
    return str(tmp_path / "album")


def pipeline(place: str) -> Pipeline:
    pipeline = Pipeline()
    pipeline.add_component("find", ZsqRetriever(place, 3, search={"rerank": None}))
    pipeline.add_component("rank", ZsqRanker("reader", 2))
    pipeline.connect("find.documents", "rank.documents")
    return pipeline


def ask(pipeline: Pipeline, question: str = "blue") -> dict[str, Any]:
    ran = pipeline.run({"find": {"query": question}, "rank": {"query": question}})
    return dict(ran["rank"])


def test_saved_pipeline_gives_the_same_when_loaded(place: str) -> None:
    ours = pipeline(place)
    found = ask(ours)
    assert next(one.id for one in found["documents"]) == "blue.png" and len(found["documents"]) == 2
    assert found["unavailable"] == 0
    again = Pipeline.loads(ours.dumps(), allowed_modules=["zsqretrieval.*"])
    assert again == ours and ask(again) == found
    with pytest.raises(DeserializationError, match="zsqretrieval"):
        Pipeline.loads(ours.dumps())


def test_pipeline_runs_asynchronously(place: str) -> None:
    given = {"find": {"query": "blue"}, "rank": {"query": "blue"}}
    ran = asyncio.run(pipeline(place).run_async(given))
    assert ran["rank"] == ask(pipeline(place))


def test_making_a_component_loads_nothing(place: str) -> None:
    with pytest.raises(AlbumError):
        ZsqRetriever("missing").warm_up()
    with pytest.raises(InvalidInputError, match="no generator is named"):
        ZsqRanker("missing").warm_up()


def test_document_has_caption_and_metadata_of_the_hit(place: str) -> None:
    find = ZsqRetriever(place, search={"rerank": None})
    documents = find.run("red", top_k=9)["documents"]
    with Retriever.open(place) as retriever:
        hits = retriever.search("red", 9, rerank=None)
    assert [(one.id, one.content, one.score) for one in documents] == [
        (hit.id, hit.caption, hit.score) for hit in hits
    ]
    assert documents[0].meta["file_path"] == documents[0].meta["source"] == hits[0].source
    find.close()
    assert find.run("red", top_k=1)["documents"] == documents[:1]
    find.close()


def test_ranker_orders_images_and_keeps_the_rest_last(place: str, folder: Path) -> None:
    green = (folder / "green.png").read_bytes()
    documents = [
        Document(id="text", content="a green wall"),
        Document(id="path", meta={"file_path": str(folder / "red.png")}),
        Document(id="blob", blob=ByteStream(green, mime_type="image/png")),
        Document(id="blob", blob=ByteStream(green, mime_type="image/png")),
        Document(id="pdf", blob=ByteStream(b"%PDF", mime_type="application/pdf")),
    ]
    with pytest.warns(RuntimeWarning, match="2 of 4 documents have no image that can be scored"):
        ran = ZsqRanker("reader").run("green", documents)
    assert [one.id for one in ran["documents"]] == ["blob", "path", "text", "pdf"]
    assert [one.score is None for one in ran["documents"]] == [False, False, True, True]
    assert ran["unavailable"] == 2 and documents[2].score is None
    assert ZsqRanker("reader").run("green", []) == {"documents": [], "unavailable": 0}
    assert len(ZsqRanker("reader", 2).run("green", documents[1:3], top_k=1)["documents"]) == 1


@pytest.mark.parametrize(
    ("make", "run"),
    [
        (lambda place: ZsqRetriever(place, 0), {"query": "red"}),
        (ZsqRetriever, {"query": "red", "top_k": 0}),
        (ZsqRetriever, {"query": " "}),
        (lambda _: ZsqRanker("reader", 0), {"query": "red", "documents": []}),
        (lambda _: ZsqRanker("reader", scoring="cosine"), {"query": "red", "documents": []}),
        (lambda _: ZsqRanker("reader"), {"query": "red", "documents": [], "top_k": 0}),
        (lambda _: ZsqRanker("reader"), {"query": "", "documents": []}),
    ],
)
def test_bad_argument_is_refused(place: str, make: Any, run: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError):
        make(place).run(**run)
