"""What a newcomer hands to ``add``: read, or refused with a sentence that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from plain import plain, png
from zsqretrieval import Image, Retriever
from zsqretrieval.errors import InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.testing.toys import ToyEncoder


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Retriever:
    monkeypatch.chdir(tmp_path)
    encoder = ToyEncoder()
    return Retriever(encoder, ExactIndex(encoder.dim))


class Frame:  # a table of pandas
    ndim = 2

    def __iter__(self) -> Any:
        return iter(["image", "caption"])


REFUSED: list[tuple[Any, str]] = [
    ("no/such/folder", "folder: No such file"),
    ("", "an image path is empty"),
    ([[""]], "an image path is empty"),
    ({"image": png("red"), ("a", 1): 2}, "cannot be kept as JSON: keys"),
    ({"image": png("red"), (("a",),): {(): 1}}, "cannot be kept as JSON: keys"),
    (Path("no.jpg"), "no.jpg: No such file"),
    ("nul\0.jpg", "null"),
    ("x" * 5000, "too long"),
    ("photos.zip", "unpack it"),
    ("https://example.org/a.jpg", "never downloads"),
    ("https://example.org/a.jpg?size=1", "never downloads"),
    (["s3://bucket/a.jpg"], "never downloads"),
    (Path("https://example.org/a.jpg"), "never downloads"),
    ("file:///tmp/a.jpg", "give its path"),
    ("data:image/png;base64,AAAA", "never downloads"),
    ([{"image": "http://example.org/a.jpg"}], "never downloads"),
    (torch.zeros(3, 4, 4), "not Tensor.*fromarray"),
    ([torch.zeros(3, 4, 4)], "not Tensor.*fromarray"),
    (torch.zeros(4), "not Tensor"),
    (np.zeros((4, 4, 3), np.uint8), "not ndarray.*fromarray"),
    ([{"image": np.zeros((4, 4, 3), np.uint8)}], "not ndarray"),
    (Frame(), "not Frame"),
    (bytearray(b"x"), "not bytearray"),
    ({"img": 1, "caption": "x"}, "under 'image'; this one has img, caption"),
    ({}, "has nothing"),
    ({"train": [{"image": b"x"}]}, "this one has train"),  # a dict of splits
    ([{"image": 3}], "not int"),
    ([{"image": png("red"), "mask": plain("red")}], "cannot be kept as JSON"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED, ids=lambda one: repr(one)[:40])
def test_no_image_is_refused_with_advice(source: Any, message: str, album: Retriever) -> None:
    Path("photos.zip").write_bytes(b"PK")
    with album:
        with pytest.raises(InvalidInputError, match=message):
            album.add(source)
        assert len(album) == 0


ROWS: list[tuple[Any, str]] = [
    (plain("red"), "<PIL image>"),
    (png("red"), "<bytes>"),
    ("red.png", "red.png"),
    (Path("red.png"), "red.png"),
    ({"bytes": png("red"), "path": "red-0.png"}, "red-0.png"),
    ({"bytes": png("red"), "path": None}, "<bytes>"),
    ({"bytes": None, "path": "red.png"}, "red.png"),
    (Image(png("red"), "camera", id="mine"), "camera"),
]


@pytest.mark.parametrize(("image", "source"), ROWS, ids=lambda one: repr(one)[:30])
def test_row_of_a_data_set_is_an_image_with_caption_and_metadata(
    image: Any, source: str, album: Retriever
) -> None:
    Path("red.png").write_bytes(png("red"))
    with album:
        report = album.add({"image": image, "caption": "a red wall", "label": 3, "box": (1, 2)})
        (record,) = album.records()
    assert report.added == (record.id,) and record.source.endswith(source)
    assert (record.caption, record.metadata) == ("a red wall", {"label": 3, "box": [1, 2]})


def test_rows_come_from_a_generator_and_gaps_are_skipped(album: Retriever) -> None:
    rows = (
        {"image": one, "caption": ["a", "b"]} for one in (plain("red"), None, {"bytes": None, "path": None})
    )
    with album:
        report = album.add(rows)
        assert (len(report.added), [one.reason for one in report.skipped]) == (
            1,
            ["the row has no image"] * 2,
        )
        (record,) = album.records()
        assert (record.caption, record.metadata) == (None, {"caption": ["a", "b"]})


def test_folder_without_images_adds_none_and_a_list_names_what_is_missing(album: Retriever) -> None:
    Path("empty").mkdir()
    Path("notes").mkdir()
    Path("notes/a.md").write_text("a")
    with album:
        for folder in ("empty", Path("notes"), ["empty", "notes"], []):
            report = album.add(folder)
            assert (report.added, report.skipped) == ((), ())
        report = album.add(["gone.jpg", png("red"), "notes/a.md"])
        assert len(report.added) == 1 and [Path(one.source).name for one in report.skipped] == [
            "gone.jpg",
            "a.md",
        ]


def test_known_image_takes_new_caption_and_metadata(album: Retriever) -> None:
    Path("photos").mkdir()
    Path("photos/red.png").write_bytes(png("red"))
    with album:

        def told(images: Any) -> tuple[Any, ...]:
            report = album.add(images)
            record = album.find("red.png")
            assert record is not None and len(album) == 1 and report.added == ()
            return len(report.updated), report.known, record.caption, dict(record.metadata)

        album.add("photos")
        path = "photos/red.png"
        assert told("photos") == (0, 1, None, {})
        assert told([{"image": path, "caption": "red"}]) == (1, 0, "red", {})
        assert told([{"image": path, "caption": "red", "year": 1}]) == (1, 0, "red", {"year": 1})
        assert told({"image": path, "year": np.array([2]).tolist()}) == (1, 0, "red", {"year": [2]})
        assert told({"image": path, "year": (2,)}) == (0, 1, "red", {"year": [2]})  # the same as JSON
        assert told("photos") == (0, 1, "red", {"year": [2]})  # says nothing, changes nothing
        Path("photos/red.txt").write_text("a wall")
        assert told("photos") == (1, 0, "a wall", {"year": [2]})
        Path("copy.png").write_bytes(png("red"))
        assert told({"image": "copy.png", "caption": "another"}) == (0, 1, "a wall", {"year": [2]})
        with pytest.raises(InvalidInputError, match=r"metadata of 'red\.png' cannot be kept as JSON"):
            album.add({"image": path, "year": object()})


def test_moved_image_keeps_its_caption_and_metadata(album: Retriever) -> None:
    with album:
        album.add([{"image": png("red"), "caption": "a wall", "year": 1}])
        Path("red.png").write_bytes(png("red"))
        assert album.add("red.png").moved
        (record,) = album.records()
        assert (record.caption, dict(record.metadata)) == ("a wall", {"year": 1})
        assert Path(record.source).is_absolute()


def test_source_of_an_opened_picture_is_an_absolute_path(album: Retriever) -> None:
    Path("red.png").write_bytes(png("red"))
    with album, PILImage.open("red.png") as opened:
        album.add(opened)
        (record,) = album.records()
        assert record.source == str(Path("red.png").absolute())


def test_keys_of_a_row_that_are_no_texts_are_those_of_json(album: Retriever) -> None:
    with album:
        row = {"image": png("red"), 1: "a", None: "b", 2.5: "d", "\ud800": "e"}
        assert len(album.add([row]).mended) == 1 and album.add([row]).known == 1
        (record,) = album.records()
        assert record.metadata == {"1": "a", "null": "b", "2.5": "d", "\ufffd": "e"}


def test_bytes_and_pictures_are_updated_once_a_batch(album: Retriever) -> None:
    with album:
        album.add(plain("red"))
        report = album.add([{"image": plain("red"), "caption": text} for text in ("first", "second")])
        assert (len(report.updated), report.known) == (1, 1)
        assert [record.caption for record in album.records()] == ["first"]
