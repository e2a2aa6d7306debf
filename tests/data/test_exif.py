"""Time, camera and place from EXIF, and what adding an image makes of them."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from zsqretrieval.data.exif import read_exif
from zsqretrieval.data.images import decode_with_exif
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder, ToyStatesGenerator
from zsqretrieval.types import Image

PHOTO = {Base.DateTimeOriginal: "2019:07:14 12:33:10"}
PLACE = {
    GPS.GPSLatitudeRef: "N",
    GPS.GPSLatitude: (47.0, 30.0, 36.0),
    GPS.GPSLongitudeRef: "W",
    GPS.GPSLongitude: (8.0, 15.0, 0.0),
}
FOUND = {"taken": "2019-07-14T12:33:10", "camera": "FUJIFILM X100", "latitude": 47.51, "longitude": -8.25}


def block(main: dict[int, Any] | None = None, photo: Any = PHOTO, place: Any = PLACE) -> PILImage.Exif:
    exif = PILImage.Exif()
    for tag, value in ({Base.Make: "FUJIFILM", Base.Model: "X100"} if main is None else main).items():
        exif[tag] = value
    exif.get_ifd(IFD.Exif).update(photo)
    exif.get_ifd(IFD.GPSInfo).update(place)
    return exif


def encoded(exif: PILImage.Exif, format: str = "JPEG", colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    image = PILImage.new("RGB", (32, 24), colour)
    if format == "HEIC":
        pillow_heif.from_pillow(image).save(buffer, exif=exif.tobytes())
    else:
        image.save(buffer, format, exif=exif.tobytes())
    return buffer.getvalue()


def found(content: bytes) -> dict[str, str | float]:
    return decode_with_exif(Image(content, "<bytes>"))[1]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
def test_every_format_with_exif_gives_time_camera_and_place(format: str) -> None:
    assert found(encoded(block(), format)) == FOUND


def test_image_without_exif_gives_nothing() -> None:
    assert read_exif(PILImage.new("RGB", (2, 2))) == {}


@pytest.mark.parametrize(
    ("photo", "taken"),
    [
        (PHOTO | {Base.OffsetTimeOriginal: "+02:00"}, "2019-07-14T12:33:10+02:00"),
        (PHOTO | {Base.OffsetTimeOriginal: "+2"}, "2019-07-14T12:33:10"),
        (PHOTO | {Base.OffsetTimeOriginal: "+99:00"}, "2019-07-14T12:33:10"),
        ({Base.DateTimeOriginal: "2019-07-14 12:33:10\0"}, "2019-07-14T12:33:10"),
        ({Base.DateTimeDigitized: "1999:12:31 23:59:59"}, "1999-12-31T23:59:59"),
        (
            {Base.DateTimeOriginal: "0000:00:00 00:00:00", Base.DateTimeDigitized: "1999:12:31 23:59:59"},
            "1999-12-31T23:59:59",
        ),
        ({Base.DateTimeOriginal: "2019:02:30 12:00:00"}, None),
        ({Base.DateTimeOriginal: "9999:01:01 00:00:00"}, None),
        ({Base.DateTimeOriginal: "    :  :     :  :  "}, None),
        ({Base.DateTimeOriginal: "٢٠١٩:07:14 12:33:10"}, None),
        ({Base.DateTimeOriginal: "2019:07:14 12:33:10" * 1000}, None),
    ],
)  # fmt: skip
def test_time_is_iso_text_or_left_out(photo: dict[int, Any], taken: str | None) -> None:
    assert found(encoded(block(photo=photo))).get("taken") == taken


@pytest.mark.parametrize(
    ("make", "model", "camera"),
    [
        ("Canon", "Canon EOS 5D", "Canon EOS 5D"),
        ("NIKON CORPORATION", "NIKON  D90 ", "NIKON D90"),
        ("Apple", "", "Apple"),
        ("", "X100", "X100"),
        ("a\x07b", "X100", "X100"),
        ("", "x" * 101, None),
        ("Fabriqué", "à", "Fabriqué à"),
        ("", "", None),
        ("A" + 2000 * " " + "B", "", None),
    ],
)
def test_camera_is_make_and_model_without_repetition(make: str, model: str, camera: str | None) -> None:
    main = {Base.Make: make.encode(), Base.Model: model.encode()}
    assert found(encoded(block(main))).get("camera") == camera


ZERO = IFDRational(0, 0)


@pytest.mark.parametrize(
    "place",
    [
        {GPS.GPSLatitude: (91.0, 0.0, 0.0)},
        {GPS.GPSLongitude: (181.0, 0.0, 0.0)},
        {GPS.GPSLatitude: (ZERO, ZERO, ZERO)},
        {GPS.GPSLatitude: (47.0, 99.0, 0.0)},
        {GPS.GPSLatitude: (47.0,)},
        {GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)},
        {GPS.GPSLatitudeRef: "X"},
        {GPS.GPSLatitudeRef: ""},
    ],
)
def test_impossible_place_is_left_out(place: dict[int, Any]) -> None:
    assert found(encoded(block(place=PLACE | place))) == {key: FOUND[key] for key in ("taken", "camera")}


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_blocks_never_raise_or_warn(data: st.DataObject) -> None:
    exif = bytearray(block().tobytes())
    for _ in range(data.draw(st.integers(1, 12))):
        exif[data.draw(st.integers(6, len(exif) - 1))] = data.draw(
            st.sampled_from([0, 1, 2, 5, 12, 127, 255])
        )
    image = PILImage.new("RGB", (2, 2))
    image.info["exif"] = bytes(exif[: data.draw(st.integers(0, len(exif)))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")  # as the library does on import
        result = read_exif(image)
    assert not caught
    assert set(result) <= set(FOUND)
    for key, value in result.items():
        assert isinstance(value, float if key in ("latitude", "longitude") else str)
        assert isinstance(value, float) or (value.isprintable() and 0 < len(value) <= 100)


def test_directories_that_lead_into_themselves_end() -> None:
    exif = bytearray(block().tobytes())
    order = exif[6:8]
    assert order in (b"MM", b"II")
    start = bytes(exif[10:14])  # offset of the first directory
    for tag in (IFD.Exif, IFD.GPSInfo):
        pointer = tag.to_bytes(2, "big" if order == b"MM" else "little")
        at = exif.index(pointer) + 8
        exif[at : at + 4] = start
    image = PILImage.new("RGB", (2, 2))
    image.info["exif"] = bytes(exif)
    assert read_exif(image) == {"camera": "FUJIFILM X100"}


# --- adding -----------------------------------------------------------------------------------------------


def metadata(retriever: Retriever) -> list[dict[str, Any]]:
    return [dict(record.metadata) for record in retriever.records()]


def test_exif_becomes_metadata_unless_the_caller_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(block()))
    own = Image(encoded(block(), colour="blue"), "<own>", metadata={"camera": "mine", "year": 1999})
    picture = PILImage.open(io.BytesIO(encoded(block(), "PNG", "green")))
    with Retriever(ToyEncoder()) as retriever:
        assert len(retriever.add([str(tmp_path / "a.jpg"), own, picture]).added) == 3
        assert metadata(retriever) == [FOUND, {**FOUND, "camera": "mine", "year": 1999}, FOUND]
    with Retriever(ToyEncoder()) as retriever:
        retriever.add([str(tmp_path / "a.jpg"), own, picture], exif=False)
        assert metadata(retriever) == [{}, {"camera": "mine", "year": 1999}, {}]


@pytest.mark.parametrize("states", ["lazy", "disk"])
def test_known_image_keeps_exif_and_is_not_updated(states: Any, tmp_path: Path) -> None:
    image = Image(encoded(block()), "<bytes>", "a", metadata={"year": 1999})
    with Retriever(ToyEncoder(), path=tmp_path / "album") as retriever:
        retriever.add(image)
    with Retriever.open(
        tmp_path / "album", encoder=ToyEncoder(), generator=ToyStatesGenerator(), states=states
    ) as retriever:
        for again in (image, Image(image.content, "<bytes>", "a")):
            report = retriever.add(again)
            assert (report.known, report.updated) == (1, ())
        report = retriever.add(Image(image.content, "<bytes>", "a", metadata={"year": 2000}))
        assert report.updated == ("a",) and metadata(retriever) == [{**FOUND, "year": 2000}]
        report = retriever.add(Image(image.content, "<bytes>", "a", metadata={"camera": "mine"}))
        assert metadata(retriever) == [{**FOUND, "camera": "mine"}]
