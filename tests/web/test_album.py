"""The album and its images over HTTP: facts, lists, thumbnails, originals, downloads."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image as PILImage
from PIL import features
from starlette.testclient import TestClient

from served import BITMAP, GONE, MARKUP, ODD, client, path_of, picture
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing import ToyEncoder
from zsqretrieval.testing.toys import COLOURS
from zsqretrieval.types import Image
from zsqretrieval.web.thumbnails import Thumbnails


def test_album_is_described(web: TestClient, shown: Retriever) -> None:
    facts = web.get("/api/album").json()
    fields = {one.pop("name"): one for one in facts.pop("fields")}
    assert facts == {
        "title": "Images", "images": len(shown), "encoder": "toy-encoder-1", "generator": "toy-generator-1",
        "can": {
            "rerank": True, "questions": True, "dialog": True, "expand": False, "bank": False,
            "probability": True,
        },
        "cutoff": 0.5,
    }  # fmt: skip
    assert fields["year"] == {
        "type": "number", "values": list(range(2008, 1999, -1)), "min": 2000, "max": 2008
    }  # fmt: skip
    assert fields["camera"] == {"type": "text", "values": ["B", "A"], "min": None, "max": None}
    assert (fields["taken"]["type"], fields["taken"]["min"]) == ("date", "2020-01-12T10:00:00")
    assert "source" not in fields


def test_images_are_listed_in_every_order(web: TestClient, shown: Retriever) -> None:
    names = [*(f"{colour}.png" for colour in COLOURS), ODD, BITMAP, GONE]
    timeless = names[3]
    by_time = [name for name in reversed(names) if name != timeless]
    orders = {
        "added": names, "-added": names[::-1], "taken": [*by_time, timeless],
        "-taken": [*by_time[::-1], timeless], "source": sorted(names), "-source": sorted(names)[::-1],
    }  # fmt: skip
    for sort, expected in orders.items():
        pages = [web.get("/api/images", params={"sort": sort, "limit": 4, "offset": n}) for n in (0, 4, 8)]
        assert {page.json()["total"] for page in pages} == {len(shown)}
        assert [one["id"] for page in pages for one in page.json()["images"]] == expected, sort
    found = web.get("/api/images", params={"where": "year >= 2004 and camera = 'B'", "limit": 2}).json()
    assert found["total"] == 5 and len(found["images"]) == 2


def test_details_have_metadata_and_an_alternative_text(web: TestClient) -> None:
    found = web.get(path_of("/api/images/", ODD)).json()
    assert (found["id"], found["name"], found["alt"]) == (ODD, ODD, f"image {ODD}")
    assert found["metadata"]["year"] == 2006 and found["credit"] == "somebody"
    assert (found["width"], found["height"], found["questions"]) == (70, 48, [])
    assert web.get("/api/images/blue.png").json()["alt"] == MARKUP


@pytest.mark.parametrize(
    ("accept", "format"),
    [
        ("image/avif,image/webp,*/*", "AVIF" if features.check("avif") else "WEBP"),
        ("image/webp", "WEBP"),
        ("image/jpeg", "JPEG"),
    ],
)
def test_thumbnails_have_the_format_that_the_client_accepts(
    web: TestClient, accept: str, format: str
) -> None:
    for size in (256, 512):
        answer = web.get(path_of("/thumb/", ODD), params={"size": size}, headers={"Accept": accept})
        assert answer.headers["content-type"] == f"image/{format.lower()}"
        assert PILImage.open(io.BytesIO(answer.content)).format == format
        assert PILImage.open(io.BytesIO(answer.content)).size == (70, 48)
        headers = {"Accept": accept, "If-None-Match": answer.headers["etag"]}
        assert web.get(path_of("/thumb/", ODD), params={"size": size}, headers=headers).status_code == 304


def test_thumbnails_are_kept_on_disk(shown: Retriever, tmp_path: Path) -> None:
    record = shown.find("red.png")
    assert record is not None
    made = Thumbnails(shown, tmp_path).make(record, 256, "WEBP")
    gone = replace(record, source=f"{record.source} is gone")
    assert Thumbnails(shown, tmp_path).make(gone, 256, "WEBP") == made
    (tmp_path / "thumbnails.sqlite").write_bytes(b"no cache")
    assert Thumbnails(shown, tmp_path).make(record, 256, "WEBP") == made


def test_full_disk_hides_no_thumbnail(shown: Retriever, tmp_path: Path) -> None:
    record = shown.find("red.png")
    assert record is not None
    made = Thumbnails(shown, tmp_path)
    made._cache._store.execute("PRAGMA max_page_count = 1")  # as large as it is now
    for side in range(16, 128):
        assert made.make(record, side, "JPEG")


def test_originals_are_sent_as_they_are_or_as_jpeg(web: TestClient) -> None:
    same = web.get("/image/red.png")
    assert same.content == picture("red", (64, 48)) and same.headers["content-type"] == "image/png"
    assert same.headers["cache-control"] == "private, max-age=300"
    for known in (same.headers["etag"], "*"):
        assert web.get("/image/red.png", headers={"If-None-Match": known}).status_code == 304
    other = web.get(path_of("/image/", BITMAP))
    assert other.headers["content-type"] == "image/jpeg"
    assert PILImage.open(io.BytesIO(other.content)).size == (71, 48)


def test_name_of_a_file_cannot_add_headers(web: TestClient) -> None:
    answer = web.get(path_of("/image/", ODD))
    assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"].startswith("inline; filename*=UTF-8''odd%20%22name%22%3B%0D")


def test_download_has_each_image_once_under_a_safe_name(web: TestClient) -> None:
    answer = web.post("/api/download", json={"ids": ["red.png", ODD, "red.png", GONE]})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["red.png", "odd _name_;__Set-Cookie_ x=1; ü #1.png", "missing.txt"]
        assert archive.read("red.png") == picture("red", (64, 48))
        assert archive.read("missing.txt").decode() == GONE


def test_names_in_a_download_fit_every_system(tmp_path: Path) -> None:
    names = ["a.png", "A.png", "CON", "nul.png", "console.png", "x\u202egnp.exe", ". "]
    files = [tmp_path / str(n) / name for n, name in enumerate(names)]
    for n, file in enumerate(files):
        file.parent.mkdir()
        file.write_bytes(picture("red", (40 + n, 40)))
    with Retriever(ToyEncoder()) as album:
        album.add(Image(file, str(file), file.parent.name) for file in files)
        with client(album) as web:
            answer = web.post("/api/download", json={"ids": [file.parent.name for file in files]})
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.namelist() == [
            "a.png", "A (2).png", "_CON", "_nul.png", "console.png", "x_gnp.exe", "image",
        ]  # fmt: skip


def test_download_is_limited_in_number_and_bytes(shown: Retriever) -> None:
    with client(shown, download_images=2, download_bytes=300) as web:
        for ids in (["red.png", "blue.png", "green.png"], ["red.png", BITMAP]):
            answer = web.post("/api/download", json={"ids": ids})
            assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


@pytest.mark.parametrize("route", ["/thumb/", "/image/", "/api/images/"])
@pytest.mark.parametrize(
    "id",
    [
        "unknown", "../secret album/catalog.sqlite", "/etc/passwd", "red.png/", "%2e%2e%2fred.png",
        "red.png\0", "a" * 5000, "secret pictures/red.png", "\\..\\red.png", "C:\\red.png",
    ],
)  # fmt: skip
def test_only_ids_of_the_album_are_answered(web: TestClient, route: str, id: str) -> None:
    answer = web.get(path_of(route, id))
    assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"


def test_image_that_is_gone_is_an_error_that_does_not_say_where_it_was(web: TestClient) -> None:
    for route in ("/thumb/", "/image/"):
        answer = web.get(path_of(route, GONE))
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid_image")
        assert "secret" not in answer.text and "no such file" in answer.text
