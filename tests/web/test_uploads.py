"""Images from clients: bounded in size, pixels and number, and a bad one harms nobody else."""

from __future__ import annotations

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image as PILImage
from starlette.testclient import TestClient

from served import client, picture
from zsqretrieval.retriever import Retriever


def bomb(side: int = 60_000) -> bytes:
    """A PNG whose header promises billions of pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def send(web: TestClient, content: bytes, name: str = "x.png") -> Any:
    return web.post("/api/uploads", files={"file": (name, content)})


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_upload_is_shown_and_searched_with(web: TestClient, format: str) -> None:
    answer = send(web, picture("yellow", (600, 400), format), "../../etc/passwd\r\n")
    thumb = web.get(answer.json()["thumb"])
    assert thumb.headers["content-type"] == "image/webp"
    assert PILImage.open(io.BytesIO(thumb.content)).size == (256, 171)
    terms = [{"upload": answer.json()["upload"]}]
    found = web.post("/api/search", json={"terms": terms}, headers={"Accept": "application/json"}).json()
    assert found["hits"][0]["id"] == "yellow.png"


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 422, "invalid_image"),
        (b"GIF89a", 422, "invalid_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422, "invalid_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", 422, "invalid_image"),
        (picture("red", (300, 300), "JPEG")[:400], 422, "invalid_image"),
        (bomb(), 413, "too_large"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100_000, 413, "too_large"),
        (b"\0" * 5_000_000, 413, "too_large"),
    ],
)
def test_bad_images_are_refused_and_others_go_on(
    shown: Retriever, content: bytes, status: int, code: str
) -> None:
    with client(shown, upload_bytes=50_000) as web, ThreadPoolExecutor(8) as pool:
        contents = [content if n % 2 else picture() for n in range(8)]
        answers = list(pool.map(lambda one: send(web, one), contents))
        assert [one.status_code for one in answers] == [200, status] * 4
        assert {one.json()["error"]["code"] for one in answers[1::2]} == {code}


def test_uploads_are_limited_by_rate_and_forgotten(shown: Retriever) -> None:
    with client(shown, upload_rate=4, kept=2) as web:
        uploads = [send(web, picture()).json()["upload"] for _ in range(3)]
        assert [web.get(f"/thumb-upload/{id}").status_code for id in uploads] == [404, 200, 200]
        statuses = [send(web, picture()).status_code for _ in range(3)]
        assert statuses == [200, 429, 429]
    with client(shown, kept_seconds=0.0) as web:
        assert web.get(f"/thumb-upload/{send(web, picture()).json()['upload']}").status_code == 404


def test_thumb_of_an_unknown_upload_is_404(web: TestClient) -> None:
    assert web.get("/thumb-upload/unknown").status_code == 404
