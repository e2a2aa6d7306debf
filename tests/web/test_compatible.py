"""`/v1/rerank` and `/v1/embeddings`, as clients of Cohere's and OpenAI's API use them."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from served import GONE, client, listening_at, picture
from zsqretrieval.rerankers.generative import LikelihoodReranker
from zsqretrieval.rerankers.http import HTTPReranker
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.testing import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image


def url(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def test_rerank_takes_images_of_all_shapes(web: TestClient) -> None:
    red, blue = url(picture("red")), url(picture("blue"))
    documents = [
        {"image": blue}, red, "red.png", {"image": "blue.png"},
        {"content": [{"type": "image_url", "image_url": {"url": red}}]},
    ]  # fmt: skip
    question = "what colour is the red thing ?"
    answer = web.post("/v1/rerank", json={"model": "any", "query": question, "documents": documents}).json()
    images = [Image(picture(colour), colour) for colour in ("blue", "red", "red", "blue", "red")]
    scores = LikelihoodReranker(ToyGenerator(), Likelihood(aggregate="mean")).score(question, images)
    assert [one["index"] for one in answer["results"]] == [1, 2, 4, 0, 3]
    for one in answer["results"]:
        assert one["relevance_score"] == pytest.approx(math.exp(scores[one["index"]]))
    best = {"query": question, "documents": documents, "top_n": 1, "return_documents": True}
    (only,) = web.post("/v1/rerank", json=best).json()["results"]
    assert (only["index"], only["document"]) == (1, red)


@pytest.mark.parametrize(
    ("documents", "status", "message"),
    [
        ([], 422, "documents"),
        ([{"text": "a red bus"}], 422, "documents.0"),
        (["unknown"], 404, "unknown"),
        (["data:image/png;base64,????"], 422, "base64"),
        (["data:image/png,red"], 422, "base64"),
        ([url(picture()), url(b"no image")], 422, "supported format"),
        ([url(b"\0" * 200_000)], 413, "too large"),
        ([url(picture("red", (1000, 600)))] * 2, 413, "pixels"),
        ([GONE], 422, "no such file"),
        (["red.png"] * 201, 422, "200"),
    ],
)
def test_bad_documents_are_refused(shown: Retriever, documents: Any, status: int, message: str) -> None:
    with client(shown, upload_bytes=100_000, upload_pixels=1_000_000) as web:
        answer = web.post("/v1/rerank", json={"query": "red", "documents": documents})
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert "secret" not in answer.text


def test_embeddings_are_those_of_the_encoder(web: TestClient) -> None:
    texts = ["a red bus", "", "blue"]
    expected = ToyEncoder().encode_text(texts)
    answer = web.post("/v1/embeddings", json={"model": "any", "input": texts, "user": "somebody"}).json()
    assert (answer["object"], answer["model"]) == ("list", "toy-encoder-1")
    assert [one["index"] for one in answer["data"]] == [0, 1, 2]
    assert np.allclose([one["embedding"] for one in answer["data"]], expected)
    assert answer["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    (one,) = web.post("/v1/embeddings", json={"input": "blue", "encoding_format": "base64"}).json()["data"]
    assert np.array_equal(np.frombuffer(base64.b64decode(one["embedding"]), "<f4"), expected[2])


def test_texts_and_images_share_a_request(web: TestClient) -> None:
    given = ["a red bus", {"image": url(picture("blue"))}, "blue", {"image": "green.png"}]
    found = [one["embedding"] for one in web.post("/v1/embeddings", json={"input": given}).json()["data"]]
    images = ToyEncoder().encode_image([Image(picture("blue"), ""), Image(picture("green"), "")])
    texts = ToyEncoder().encode_text(["a red bus", "blue"])
    assert np.allclose(found, [texts[0], images[0], texts[1], images[1]])


@pytest.mark.parametrize("documents", ["content", "image", "url"])
def test_reranker_of_this_library_can_ask_another_server_of_it(shown: Retriever, documents: Any) -> None:
    question, images = (
        "what is the red thing ?",
        [Image(picture(one), one) for one in ("blue", "red", "green")],
    )
    with listening_at(shown) as (address, _):
        scores = HTTPReranker(address, "any", documents=documents).score(question, images)
    assert scores.argmax() == 1 and ((scores > 0) & (scores < 1)).all()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("embeddings", '{"input": "\\ud800"}'),
        ("embeddings", '{"input": ["\\ud800"]}'),
        ("embeddings", '{"input": [{"image": "\\ud800"}]}'),
        ("rerank", '{"query": "a", "documents": ["\\ud800"]}'),
        ("rerank", '{"query": "a", "documents": [{"image": "\\ud800"}]}'),
        ("rerank", '{"query": "a", "documents": [{"content": [{"image_url": {"url": "\\ud800"}}]}]}'),
    ],
)
def test_half_characters_are_refused(web: TestClient, path: str, body: str) -> None:
    answer = web.post(f"/v1/{path}", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_input")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "body.input: List should have at least 1 item"),
        (["x"] * 257, "body.input: List should have at most 256 items"),
        (3, "body.input: Input should be a valid string"),
    ],
)
def test_inputs_that_are_refused_are_named_by_what_is_wrong(
    web: TestClient, given: object, message: str
) -> None:
    answer = web.post("/v1/embeddings", json={"input": given})
    assert answer.status_code == 422 and answer.json()["error"]["message"].startswith(message)
