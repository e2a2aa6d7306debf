"""The album and its images: facts, lists, thumbnails, originals, downloads.

An id is looked up in the catalog, and the catalog names the file; no text of a request becomes a path.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.convertors import PathConvertor, register_url_convertor

from zsqretrieval.album.catalog import Record
from zsqretrieval.data.images import decode, format_of, read_bytes
from zsqretrieval.errors import ImageError
from zsqretrieval.search.ranking import RELEVANT
from zsqretrieval.web.explain import stored
from zsqretrieval.web.failures import RESPONSES, Refused
from zsqretrieval.web.schemas import AlbumFacts, Can, Details, Download, FieldOfImages, Image, Images, Where
from zsqretrieval.web.settings import AT_ONCE
from zsqretrieval.web.state import Served, State, facts, parsed, unknown, unless_gone
from zsqretrieval.web.thumbnails import encoded, preferred


class _Id(PathConvertor):
    """An id in an address: anything, slashes and line breaks included."""

    regex = "(?s:.*)"


register_url_convertor("id", _Id())
router = APIRouter(responses=RESPONSES)

_FRESH = 30.0  # seconds
_SHOWN = {"JPEG": "jpeg", "PNG": "png", "WebP": "webp", "GIF": "gif", "AVIF": "avif"}  # by browsers
_PRIVATE = {
    "Cache-Control": "private, max-age=300"
}  # then asked again by ETag: an address keeps when its image changes
_REFUSED = (
    r'[\x00-\x1f\x7f<>:"/\\|?*\u200e\u200f\u202a-\u202e\u2066-\u2069]'  # in names; the last turn text around
)
_DEVICE = re.compile(r"(con|prn|aux|nul|(com|lpt)[0-9])(\.|$)", re.IGNORECASE)  # on Windows
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_PICTURE: dict[int | str, Any] = {200: {"content": {"image/*": _BINARY}}}
_ZIP: dict[int | str, Any] = {200: {"content": {"application/zip": _BINARY}}}


def album_facts(served: State) -> AlbumFacts:
    """The album and what it can do; may be half a minute old."""
    return served.remember("album", lambda: _album_facts(served), _FRESH)


def _album_facts(served: State) -> AlbumFacts:
    retriever, generates = served.retriever, served.generator is not None
    styles = [one.style for one in retriever.questions.styles() if one.kept]
    return AlbumFacts(
        title=served.settings.title,
        images=len(retriever),
        encoder=retriever.encoder.fingerprint,
        generator=served.generator,
        can=Can(
            rerank=generates,
            questions=generates or bool(styles),
            dialog=generates,
            expand=bool(styles),
            bank="search" in styles,
            probability=retriever.calibration.relevance_scale > 0,
        ),
        fields=[
            FieldOfImages(name=one.name, type=one.type, values=[*one.values], min=one.least, max=one.most)
            for one in retriever.fields()
        ],
        cutoff=RELEVANT,
    )


@router.get("/api/album")
def album(served: Served) -> AlbumFacts:
    """Describe the album."""
    return album_facts(served)


@router.get("/api/images")
def images(
    served: Served,
    offset: Annotated[int, Query(ge=0, le=2**40)] = 0,
    limit: Annotated[int, Query(ge=1, le=AT_ONCE)] = 60,
    sort: Literal["added", "-added", "taken", "-taken", "source", "-source"] = "-added",
    where: Where | None = None,
) -> Images:
    """List images, or those of a filter."""
    chosen, retriever = parsed(where), served.retriever
    found = retriever.browse(limit, offset, sort=sort, where=chosen)
    return Images(total=retriever.count(chosen), images=[Image(**facts(one)) for one in found])


@router.get("/api/images/{id:id}")
def details(served: Served, id: str) -> Details:
    """Tell all about one image."""
    record = served.record(id)
    return Details(**facts(record), metadata=dict(record.metadata), questions=stored(served, id))


class Side(IntEnum):
    """Longest side of a thumbnail in pixels."""

    SMALL = 256
    LARGE = 512


@router.get("/thumb/{id:id}", response_class=Response, responses=_PICTURE)
async def thumb(request: Request, served: Served, id: str, size: Side = Side.SMALL) -> Response:
    """Show an image at most 256 or 512 pixels wide and high."""
    record = await run_in_threadpool(served.record, id)
    format = preferred(request.headers.get("accept", ""))
    headers = {**_PRIVATE, "Vary": "Accept", "ETag": f'"{record.digest[:32]}-{size}-{format}"'}
    if _has(request, headers):
        return Response(status_code=304, headers=headers)
    content = await unless_gone(
        request, served.pictures.alone(lambda _: served.thumbnails.make(record, size, format))
    )
    return Response(content, 200, headers, f"image/{format.lower()}")


@router.get("/image/{id:id}", response_class=Response, responses=_PICTURE)
async def original(request: Request, served: Served, id: str) -> Response:
    """Show an image as it is; as JPEG, if browsers cannot show its format."""
    record = await run_in_threadpool(served.record, id)
    headers = {**_PRIVATE, "ETag": f'"{record.digest[:32]}"'}
    if _has(request, headers):
        return Response(status_code=304, headers=headers)
    content, kind = await unless_gone(request, served.pictures.alone(lambda _: _original(served, record)))
    name = quote(facts(record)["name"], safe="")
    headers["Content-Disposition"] = f"inline; filename*=UTF-8''{name}"
    return Response(content, 200, headers, f"image/{kind}")


def _has(request: Request, headers: Mapping[str, str]) -> bool:
    """Whether the client has a picture already, by its ETag."""
    known = request.headers.get("if-none-match", "")
    return headers["ETag"] in known or known.strip() == "*"


def _original(served: State, record: Record) -> tuple[bytes, str]:
    with served.retriever.files() as files:
        opened = files.open(record.source, record.digest)
    kind = _SHOWN.get(format_of(opened))
    if kind is not None:
        return read_bytes(opened), kind
    return encoded(decode(opened), max(record.width, record.height), "JPEG"), "jpeg"


@router.post("/api/download", response_class=StreamingResponse, responses=_ZIP)
def download(served: Served, asked: Download) -> StreamingResponse:
    """Send the files of images as a zip; a text in it names those that cannot be read."""
    settings, ids = served.settings, list(dict.fromkeys(asked.ids))
    found = served.retriever.find_all(ids)
    if missing := [id for id in ids if id not in found]:
        raise unknown(missing[0])
    if len(ids) > settings.download_images:
        raise Refused(413, f"a download has at most {settings.download_images} images; choose fewer")
    if sum(one.bytes for one in found.values()) > settings.download_bytes:
        raise Refused(413, f"a download has at most {settings.download_bytes} bytes; choose fewer images")
    headers = {"Content-Disposition": 'attachment; filename="images.zip"'}
    return StreamingResponse(_zipped(served, [found[id] for id in ids]), 200, headers, "application/zip")


def _zipped(served: State, records: Sequence[Record]) -> Iterator[bytes]:
    """A zip, image by image."""
    buffer, missing, used = _Buffer(), list[str](), set[str]()
    with zipfile.ZipFile(buffer, "w") as archive, served.retriever.files() as files:
        for record in records:
            name = _unique(facts(record)["name"], used)
            try:
                archive.writestr(name, read_bytes(files.open(record.source, record.digest)))
            except ImageError:
                missing.append(name)
            yield buffer.taken()
        if missing:
            archive.writestr(_unique("missing.txt", used), "\n".join(missing))
    yield buffer.taken()


class _Buffer(io.RawIOBase):
    """A file that cannot go back, whose content is taken out as it grows."""

    _content = b""

    def write(self, content: Any) -> int:
        self._content += content
        return len(content)

    def taken(self) -> bytes:
        content, self._content = self._content, b""
        return content


def _unique(name: str, used: set[str]) -> str:
    """A name that every system can unpack into one folder, and that no other file has."""
    safe = re.sub(_REFUSED, "_", name).strip(" .")[-150:] or "image"
    if _DEVICE.match(safe):
        safe = f"_{safe}"
    stem, dot, suffix = safe.rpartition(".")
    number, chosen = 1, safe
    while chosen.casefold() in used:
        number += 1
        chosen = f"{stem} ({number}).{suffix}" if dot else f"{safe} ({number})"
    used.add(chosen.casefold())
    return chosen
