"""``/api/uploads``: an image from the client, as a term of searches.

bytes (bounded) --pictures lane--> pixels (bounded) --first lane--> vector; only vector and thumbnail stay
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, final

import numpy as np
from fastapi import APIRouter, File, Request, Response, UploadFile
from numpy.typing import NDArray
from PIL import Image as PILImage

from zsqretrieval.data.images import decode
from zsqretrieval.encoders.checked import encode_images
from zsqretrieval.types import Image
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import Uploaded
from zsqretrieval.web.state import Served, State, unless_gone
from zsqretrieval.web.thumbnails import encoded

router = APIRouter(responses=RESPONSES)


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """An uploaded image as it is kept."""

    vector: NDArray[np.float32]  # [dim]
    thumbnail: bytes  # WebP


@final
class Rates:
    """Requests per minute of each client: a bucket that fills steadily."""

    def __init__(self, per_minute: int, clients: int = 10_000) -> None:
        self._most, self._clients = per_minute, clients
        self._buckets: dict[str, tuple[float, float]] = {}  # when last seen, and how full then

    def take(self, client: str) -> None:
        """Count a request; an error if there are too many."""
        now = time.monotonic()
        seen, left = self._buckets.pop(client, (now, float(self._most)))
        left = min(left + (now - seen) * self._most / 60, self._most)
        if left < 1:
            self._buckets[client] = now, left
            raise Refused(429, f"at most {self._most} images a minute; try again later", seconds=5)
        self._buckets[client] = now, left - 1
        while len(self._buckets) > self._clients:
            del self._buckets[next(iter(self._buckets))]


def pixels(limit: int, contents: Sequence[bytes], _: Report) -> list[PILImage.Image]:
    """Decode images of a request."""
    return [decode(Image(content, "the upload"), max_pixels=limit) for content in contents]


def vectors(state: State, pictures: Sequence[PILImage.Image], _: Report) -> list[NDArray[np.float32]]:
    """Encode decoded images together."""
    images = [Image(one, "the upload") for one in pictures]
    return [*encode_images(state.retriever.encoder, images)]


@router.post("/api/uploads")
async def upload(request: Request, served: Served, file: Annotated[UploadFile, File()]) -> Uploaded:
    """Take an image, to search for others like it."""
    served.rates.take(request.client.host if request.client else "")
    limit = served.settings.upload_bytes
    content = await file.read(limit + 1)
    if len(content) > limit:
        raise Refused(413, f"the image is too large: the limit is {limit} bytes")
    found: Upload = await unless_gone(request, _kept(served, content))
    id = served.uploads.put(found)
    return Uploaded(upload=id, thumb=f"/thumb-upload/{id}")


async def _kept(served: State, content: bytes) -> Upload:
    picture: Any = await served.pictures.run(pixels, content, served.settings.upload_pixels)
    thumbnail = served.pictures.run(_thumbnails, picture)
    return Upload(await served.first.run(vectors, picture, served), await thumbnail)


def _thumbnails(_: None, pictures: Sequence[PILImage.Image], __: Report) -> list[bytes]:
    return [encoded(one, 256, "WEBP") for one in pictures]


@router.get("/thumb-upload/{id}", response_class=Response)
async def thumb(served: Served, id: str) -> Response:
    """Show an uploaded image."""
    found = served.uploads.get(id)
    if found is None:
        raise Refused(404, "this upload is not kept any more; upload the image again")
    return Response(found.thumbnail, 200, {"Cache-Control": "private, max-age=600"}, "image/webp")
