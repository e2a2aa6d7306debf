"""``/api/uploads``: an image from the client, as a term of searches.

bytes (bounded) --pictures lane--> pixels (bounded) --encoder's lane--> vector; vector and thumbnail are kept
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import numpy as np
from fastapi import APIRouter, File, Request, Response, UploadFile
from numpy.typing import NDArray

from zsqretrieval.data.images import decode, dimensions
from zsqretrieval.encoders.checked import encode_images
from zsqretrieval.types import Image
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import Uploaded
from zsqretrieval.web.state import Served, State, unless_gone
from zsqretrieval.web.thumbnails import encoded

router = APIRouter(responses=RESPONSES)

_CLIENTS = 10_000  # whose rates are known; the one seen longest ago is forgotten


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """An uploaded image as it is kept."""

    vector: NDArray[np.float32]  # [dim]
    thumbnail: bytes  # WebP


@final
class Rates:
    """Images per minute of each client: a bucket that empties with every image, and fills steadily."""

    def __init__(self, per_minute: int) -> None:
        self._most = per_minute
        self._left: dict[str, tuple[float, float]] = {}  # when last seen, and how many were left then

    def take(self, request: Request, images: int = 1) -> None:
        """Count images of a client; an error if there are too many."""
        client, now = request.client.host if request.client else "", time.monotonic()
        seen, left = self._left.pop(client, (now, float(self._most)))
        left = min(left + (now - seen) * self._most / 60, self._most)
        refused = left < min(images, self._most)
        self._left[client] = now, left - images * (not refused)
        while len(self._left) > _CLIENTS:
            del self._left[next(iter(self._left))]
        if refused:
            raise Refused(429, f"at most {self._most} images a minute; try again later", seconds=5)


async def pictures(served: State, contents: Sequence[bytes], names: Sequence[str]) -> list[Image]:
    """Decode the images of a request."""
    limit = served.settings.upload_pixels

    def decoded(report: Report) -> list[Image]:
        images = [
            Image(content, name, max_pixels=sys.maxsize)  # checked here
            for content, name in zip(contents, names, strict=True)
        ]
        if sum(width * height for width, height in map(dimensions, images)) > limit:
            raise Refused(413, f"the images are too large: the limit is {limit} pixels in all")
        found = []
        for image in images:
            report()
            found.append(Image(decode(image), image.source))
        return found

    return await served.pictures.alone(decoded)


def vectors(served: State, asked: Sequence[Sequence[Image]], _: Report) -> list[NDArray[np.float32]]:
    """Encode the images of all requests in one call."""
    found = encode_images(served.retriever.encoder, [image for images in asked for image in images])
    return np.split(found, np.cumsum([len(images) for images in asked])[:-1])


@router.post("/api/uploads")
async def upload(request: Request, served: Served, file: Annotated[UploadFile, File()]) -> Uploaded:
    """Take an image, to search for others like it."""
    served.rates.take(request)
    limit = served.settings.upload_bytes
    content = await file.read(limit + 1)
    if len(content) > limit:
        raise Refused(413, f"the image is too large: the limit is {limit} bytes")

    async def kept() -> Upload:
        images = await pictures(served, [content], ["the upload"])
        (vector,) = await served.encoder_lane.run(vectors, images, served)
        return Upload(vector, await served.pictures.alone(lambda _: encoded(decode(images[0]), 256, "WEBP")))

    id = served.uploads.put(await unless_gone(request, kept()))
    return Uploaded(upload=id, thumb=f"/thumb-upload/{id}")


@router.get("/thumb-upload/{id}", response_class=Response)
async def thumb(served: Served, id: str) -> Response:
    """Show an uploaded image."""
    return Response(served.upload(id).thumbnail, 200, {"Cache-Control": "private, max-age=600"}, "image/webp")
