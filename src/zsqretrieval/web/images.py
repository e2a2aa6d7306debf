"""The album and its images: facts, lists, thumbnails, originals, downloads.

An id is looked up in the catalog, and the catalog names the file; no text of a request becomes a path.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse

from zsqretrieval.album.catalog import Record
from zsqretrieval.data.images import decode, format_of, read_bytes
from zsqretrieval.errors import ImageError
from zsqretrieval.web.explain import stored
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.lanes import Report
from zsqretrieval.web.schemas import (
    AlbumFacts,
    Can,
    Details,
    Download,
    FieldOfImages,
    Images,
    Where,
)
from zsqretrieval.web.settings import MOST_CANDIDATES
from zsqretrieval.web.state import Served, State, facts, image, parsed, unless_gone
from zsqretrieval.web.thumbnails import encoded, preferred

router = APIRouter(responses=RESPONSES)

_FRESH = 30.0  # seconds that facts about the album are used
_SHOWN = {"JPEG": "jpeg", "PNG": "png", "WebP": "webp", "GIF": "gif", "AVIF": "avif"}  # by browsers
_PICTURE: dict[str, Any] = {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
_ZIP: dict[str, Any] = {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}


def album_facts(state: State) -> AlbumFacts:
    """The album and what it can do; at most half a minute old."""
    return state.remember("album", lambda: _facts(state), _FRESH)


def _facts(state: State) -> AlbumFacts:
    retriever, generator = state.retriever, state.has_generator
    styles = retriever.questions.styles()
    return AlbumFacts(
        title=state.settings.title,
        images=len(retriever),
        encoder=retriever.encoder.fingerprint,
        generator=state.retriever.generator.fingerprint if generator else None,
        can=Can(
            rerank=generator,
            questions=generator or any(one.kept for one in styles),
            dialog=generator,
            expand=any(one.kept for one in styles),
            bank=any(one.kept for one in styles if one.style == "search"),
            probability=retriever.calibration.relevance_scale > 0,
        ),
        fields=[
            FieldOfImages(name=one.name, type=one.type, values=[*one.values], min=one.least, max=one.most)
            for one in retriever.fields()
        ],
        calibrated_cutoff=0.5,
    )


@router.get("/api/album")
def album(served: Served) -> AlbumFacts:
    """Describe the album."""
    return album_facts(served)


@router.get("/api/images")
def images(
    served: Served,
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    limit: Annotated[int, Query(ge=1, le=MOST_CANDIDATES)] = 60,
    sort: Literal["added", "-added", "taken", "-taken", "source", "-source"] = "-added",
    where: Where | None = None,
) -> Images:
    """List images; of a filter, if there is one."""
    chosen, retriever = parsed(where), served.retriever
    found = retriever.browse(limit, offset, sort=sort, where=chosen)
    return Images(total=retriever.count(chosen), images=list(map(image, found)))


@router.get("/api/images/{id:path}")
def details(served: Served, id: str) -> Details:
    """Tell all about one image."""
    record = served.record(id)
    return Details(**facts(record), metadata=dict(record.metadata), questions=stored(served, id))


@router.get("/thumb/{id:path}", response_class=Response, responses={200: _PICTURE})
async def thumb(
    request: Request, served: Served, id: str, size: Annotated[Literal[256, 512], Query()] = 256
) -> Response:
    """Show an image at most 256 or 512 pixels wide and high."""
    record = served.record(id)
    format = preferred(request.headers.get("accept", ""))
    headers = {
        "ETag": f'"{record.digest[:32]}-{size}-{format}"',
        "Cache-Control": "private, max-age=86400",
        "Vary": "Accept",
    }
    if headers["ETag"] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    work = served.pictures.run(served.thumbnails.make, (record, size, format))
    return Response(await unless_gone(request, work), 200, headers, f"image/{format.lower()}")


@router.get("/image/{id:path}", response_class=Response, responses={200: _PICTURE})
async def original(request: Request, served: Served, id: str) -> Response:
    """Show an image as it is; as JPEG, if browsers cannot show its format."""
    record = served.record(id)
    content, kind = await unless_gone(request, served.pictures.run(_originals, record, served))
    name = str(facts(record)["name"])
    headers = {
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
        "Cache-Control": "private, max-age=86400",
    }
    return Response(content, 200, headers, f"image/{kind}")


def _originals(state: State, records: Sequence[Record], _: Report) -> list[tuple[bytes, str]]:
    found = []
    for record in records:
        with state.retriever.files() as files:
            opened = files.open(record.source, record.digest)
        kind = _SHOWN.get(format_of(opened))
        found.append(
            (encoded(decode(opened), max(record.width, record.height), "JPEG"), "jpeg")
            if kind is None
            else (read_bytes(opened), kind)
        )
    return found


@router.post("/api/download", response_class=StreamingResponse, responses={200: _ZIP})
def download(served: Served, asked: Download) -> StreamingResponse:
    """Send the files of images as a zip."""
    ids, settings = list(dict.fromkeys(asked.ids)), served.settings
    if len(ids) > settings.download_images:
        raise Refused(413, f"a download has at most {settings.download_images} images")
    records = [served.record(id) for id in ids]
    if sum(one.bytes for one in records) > settings.download_bytes:
        raise Refused(413, f"a download has at most {settings.download_bytes} bytes; choose fewer images")
    headers = {"Content-Disposition": 'attachment; filename="images.zip"'}
    return StreamingResponse(_zipped(served, records), 200, headers, "application/zip")


def _zipped(state: State, records: Sequence[Record]) -> Iterator[bytes]:
    """A zip, image by image."""
    buffer, missing, used = _Buffer(), list[str](), set[str]()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive, state.retriever.files() as files:
        for record in records:
            name = _unique(str(facts(record)["name"]), used)
            try:
                archive.writestr(name, read_bytes(files.open(record.source, record.digest)))
            except ImageError:
                missing.append(name)
            yield buffer.taken()
        if missing:
            archive.writestr("missing.txt", "".join(f"{name}\n" for name in missing))
    yield buffer.taken()


class _Buffer(io.RawIOBase):
    """What a zip file writes, which cannot go back."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        self._parts.append(bytes(content))
        return len(content)

    def taken(self) -> bytes:
        content, self._parts = b"".join(self._parts), []
        return content


def _unique(name: str, used: set[str]) -> str:
    """A name that every system can unpack into one folder, and that no other file has."""
    safe = re.sub(r'[\x00-\x1f\x7f<>:"/\\|?*]', "_", name).strip(" .")[:150] or "image"
    stem, dot, suffix = safe.rpartition(".")
    number, chosen = 1, safe
    while chosen.lower() in used:
        number += 1
        chosen = f"{stem} ({number}).{suffix}" if dot else f"{safe} ({number})"
    used.add(chosen.lower())
    return chosen
