"""``/v1/rerank`` and ``/v1/embeddings``: generator and encoder for clients of Cohere's and OpenAI's API."""

from __future__ import annotations

import base64
import binascii
import math
import secrets
from collections.abc import Sequence

import numpy as np
from fastapi import APIRouter, Request
from numpy.typing import NDArray
from starlette.concurrency import run_in_threadpool

from zsqretrieval.data.images import BYTES_AT_ONCE
from zsqretrieval.encoders.checked import encode_texts
from zsqretrieval.search.scoring import Likelihood, score_pairs
from zsqretrieval.types import Image
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import (
    Embed,
    Embedding,
    Embeddings,
    ImageDocument,
    Rerank,
    Reranked,
    Result,
    Usage,
)
from zsqretrieval.web.state import Served, State, unknown, unless_gone
from zsqretrieval.web.uploads import pictures, vectors

router = APIRouter(responses=RESPONSES)

_PER_TOKEN = Likelihood(aggregate="mean")


@router.post("/v1/rerank")
async def rerank(request: Request, served: Served, asked: Rerank) -> Reranked:
    """Order images by their relevance to a query: its probability per token, as a geometric mean."""
    served.need_generator()

    async def work() -> list[float]:
        images = await _images(request, served, [_url(one, n) for n, one in enumerate(asked.documents)])
        found: list[float] = await served.generator_lane.run(_scores, (asked.query, images), served)
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
        meta={"model": served.generator},
    )


def _url(document: str | ImageDocument, n: int) -> str:
    """The data URL or id of a document."""
    found = document if isinstance(document, str) else document.url
    if found is None:
        raise Refused(422, f"documents.{n} must be an image: a data URL, or the id of an image")
    return found


async def _images(request: Request, served: State, given: Sequence[str]) -> list[Image]:
    """Images by their data URLs, decoded, and by their ids."""
    sent = {n: _content(url, served.settings.upload_bytes) for n, url in enumerate(given) if _is_url(url)}
    served.rates.take(request, len(sent))
    decoded = await pictures(served, list(sent.values()), [f"image {n}" for n in sent])
    found = dict(zip(sent, decoded, strict=True))
    ids = {n: id for n, id in enumerate(given) if n not in sent}
    opened = await run_in_threadpool(_opened, served, list(ids.values()))
    found |= {n: opened[id] for n, id in ids.items()}
    return [found[n] for n in range(len(given))]


def _is_url(text: str) -> bool:
    return text.startswith("data:")


def _content(url: str, limit: int) -> bytes:
    """The bytes of a data URL."""
    head, _, encoded = url.partition(",")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not head.endswith(";base64") or not content:
        raise Refused(422, "an image must be data:image/...;base64,...", "invalid_image")
    if len(content) > limit:
        raise Refused(413, f"the image is too large: the limit is {limit} bytes")
    return content


def _opened(served: State, ids: Sequence[str]) -> dict[str, Image]:
    """Images of the album by id."""
    records = served.retriever.find_all(ids)
    if missing := [id for id in ids if id not in records]:
        raise unknown(missing[0])
    if sum(record.bytes for record in records.values()) > BYTES_AT_ONCE:
        raise Refused(413, f"the images have more than {BYTES_AT_ONCE} bytes; name fewer")
    with served.retriever.files() as files:
        return {id: files.open(one.source, one.digest) for id, one in records.items()}


def _scores(served: State, asked: Sequence[tuple[str, Sequence[Image]]], report: Report) -> list[list[float]]:
    """Score the images of all requests in one call of the generator."""
    generator = served.retriever.generator
    assert generator is not None
    texts = [query for query, images in asked for _ in images]
    images = [image for _, some in asked for image in some]
    scores = score_pairs(generator, _PER_TOKEN, texts, images, progress=lambda *_: report())
    ends = np.cumsum([len(some) for _, some in asked])[:-1]
    return [part.tolist() for part in np.split(scores, ends)]


@router.post("/v1/embeddings")
async def embeddings(request: Request, served: Served, asked: Embed) -> Embeddings:
    """Encode texts and images into the space of the album."""
    given = asked.input if isinstance(asked.input, list) else [asked.input]
    texts = {n: one for n, one in enumerate(given) if isinstance(one, str)}
    urls = {n: one.image for n, one in enumerate(given) if not isinstance(one, str)}
    found: dict[int, NDArray[np.float32]] = {}

    async def work() -> None:
        if texts:
            encoded = await served.encoder_lane.run(_texts, list(texts.values()), served)
            found.update(zip(texts, encoded, strict=True))
        if urls:
            images = await _images(request, served, list(urls.values()))
            found.update(zip(urls, await served.encoder_lane.run(vectors, images, served), strict=True))

    await unless_gone(request, work())
    words = sum(len(text.split()) for text in texts.values())
    return Embeddings(
        data=[Embedding(index=n, embedding=_written(found[n], asked)) for n in range(len(given))],
        model=served.retriever.encoder.fingerprint,
        usage=Usage(prompt_tokens=words, total_tokens=words),
    )


def _texts(served: State, asked: Sequence[Sequence[str]], _: Report) -> list[NDArray[np.float32]]:
    """Encode the texts of all requests in one call."""
    found = encode_texts(served.retriever.encoder, [text for texts in asked for text in texts])
    return np.split(found, np.cumsum([len(texts) for texts in asked])[:-1])


def _written(vector: NDArray[np.float32], asked: Embed) -> list[float] | str:
    if asked.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
