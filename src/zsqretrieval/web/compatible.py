"""``/v1/rerank`` and ``/v1/embeddings``: generator and encoder for programs that know Cohere's or OpenAI's API."""

from __future__ import annotations

import base64
import binascii
import math
import secrets
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray

from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.errors import ImageError
from zsqretrieval.rerankers.generative import LikelihoodReranker
from zsqretrieval.search.scoring import Likelihood
from zsqretrieval.types import Image
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import (
    Embed,
    Embedding,
    Embeddings,
    ImageDocument,
    ImageInput,
    Rerank,
    Reranked,
    Result,
    Usage,
)
from zsqretrieval.web.state import Served, State, unless_gone
from zsqretrieval.web.uploads import pixels, vectors

router = APIRouter(responses=RESPONSES)

_PER_TOKEN = Likelihood(aggregate="mean")


@router.post("/v1/rerank")
async def rerank(request: Request, served: Served, asked: Rerank) -> Reranked:
    """Order images by their relevance to a query: exp of the mean log-probability of its tokens."""
    served.need_generator()

    async def work() -> list[float]:
        images = [await _document(served, one, n) for n, one in enumerate(asked.documents)]
        found: list[float] = await served.second.run(_scores, (asked.query, images), served)
        return found

    scores = await unless_gone(request, work())
    order = sorted(range(len(scores)), key=lambda n: -scores[n])[: asked.top_n]
    return Reranked(
        id=secrets.token_hex(8),
        results=[
            Result(
                index=n,
                relevance_score=math.exp(scores[n]),
                document=asked.documents[n] if asked.return_documents else None,
            )
            for n in order
        ],
        meta={"model": served.retriever.generator.fingerprint},
    )


async def _document(served: State, document: str | ImageDocument, n: int) -> Image:
    """A document as an image."""
    given = document if isinstance(document, str) else document.image
    if isinstance(document, ImageDocument) and document.content:
        part = document.content[0].image_url
        given = part.url if part else None
    if given is None:
        raise Refused(422, f"documents.{n}: it must be an image: a data URL, or the id of an image")
    if given.startswith("data:"):
        return Image(await _picture(served, given, f"documents.{n}"), f"documents.{n}")
    record = served.record(given)
    with served.retriever.files() as files:
        return files.open(record.source, record.digest)


async def _picture(served: State, url: str, where: str) -> Any:
    """The pixels of a data URL."""
    head, comma, encoded = url.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise binascii.Error
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(422, f"{where}: it must be data:image/...;base64,...", "invalid_image") from None
    if len(content) > served.settings.upload_bytes:
        raise Refused(413, f"{where}: the limit is {served.settings.upload_bytes} bytes")
    try:
        return await served.pictures.run(pixels, content, served.settings.upload_pixels)
    except ImageError as error:
        raise Refused(422, f"{where}: {error.reason}", "invalid_image") from error


def _scores(state: State, asked: Sequence[tuple[str, list[Image]]], _: Report) -> list[list[float]]:
    generator = state.retriever.generator
    assert generator is not None
    reranker = LikelihoodReranker(generator, _PER_TOKEN)
    return [reranker.score(query, images).tolist() for query, images in asked]


@router.post("/v1/embeddings")
async def embeddings(request: Request, served: Served, asked: Embed) -> Embeddings:
    """Encode texts and images into the space of the album."""
    given = asked.input if isinstance(asked.input, list) else [asked.input]

    async def work() -> list[NDArray[np.float32]]:
        return [await _vector(served, one, n) for n, one in enumerate(given)]

    found = await unless_gone(request, work())
    count = sum(len(one.split()) for one in given if isinstance(one, str))
    return Embeddings(
        data=[Embedding(index=n, embedding=_written(one, asked)) for n, one in enumerate(found)],
        model=served.retriever.encoder.fingerprint,
        usage=Usage(prompt_tokens=count, total_tokens=count),
    )


async def _vector(served: State, given: str | ImageInput, n: int) -> Any:
    if isinstance(given, str):
        return await served.first.run(_texts, given, served)
    return await served.first.run(vectors, await _picture(served, given.image, f"input.{n}"), served)


def _texts(state: State, texts: Sequence[str], _: Report) -> list[NDArray[np.float32]]:
    return [*encode_texts(state.retriever.encoder, texts)]


def _written(vector: NDArray[np.float32], asked: Embed) -> list[float] | str:
    if asked.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    written: list[float] = vector.tolist()
    return written
