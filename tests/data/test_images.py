from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pillow_heif
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from together import together
from zsqretrieval.data.images import as_image, decode, digest, read_bytes
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.types import Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIC")
EXACTLY: dict[str, dict[str, Any]] = {  # options under which a format keeps pixels as well as it can
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True, "exact": True},
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "HEIC": {"quality": -1, "chroma": 444, "matrix_coefficients": 0},
}


def encoded(image: PILImage.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if format == "HEIC":
        if "exif" in options:  # whose orientation becomes a turn of the container's own
            options["exif"] = options["exif"].tobytes()
        pillow_heif.from_pillow(image).save(buffer, **options)
    else:
        image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(width: int = 48, height: int = 32) -> PILImage.Image:
    """A smooth image in which every corner has its own colour."""
    y, x = np.mgrid[0:height, 0:width]
    return PILImage.fromarray(
        np.stack([255 * x // (width - 1), 255 * y // (height - 1), 128 + 0 * x], axis=-1).astype(np.uint8)
    )


def array(image: PILImage.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


# --- formats and colour modes


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_decodes_to_the_encoded_pixels(format: str) -> None:
    source = photo().quantize(16).convert("RGB") if format == "GIF" else photo()
    pixels = array(decode(encoded(source, format, **EXACTLY.get(format, {}))))
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels - array(source)).max() <= (4 if format in ("JPEG", "AVIF") else 0)


MODES = (
    *("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"),
    *("I", "F", "I;16", "I;16B", "I;16L"),
)


@pytest.mark.parametrize("mode", MODES)
def test_every_pil_mode_becomes_rgb_and_the_argument_is_unchanged(mode: str) -> None:
    if mode == "PA":
        image = photo(5, 3).convert("P").convert("PA")
    elif mode in ("La", "RGBa", "LAB", "HSV", "I;16", "I;16B", "I;16L"):
        image = PILImage.new(mode, (5, 3))
    else:
        image = photo(5, 3).convert(mode)
    before = image.mode, image.tobytes()
    assert decode(image).mode == "RGB"
    assert decode(image).size == (5, 3)
    assert (image.mode, image.tobytes()) == before


@pytest.mark.parametrize("format", FORMATS)
def test_one_pixel(format: str) -> None:
    assert decode(encoded(PILImage.new("RGB", (1, 1), "white"), format)).getpixel((0, 0)) == (255, 255, 255)


def test_grey_and_one_bit_pixels() -> None:
    assert decode(encoded(PILImage.new("L", (2, 2), 77), "JPEG")).getpixel((1, 1)) == (77, 77, 77)
    image = PILImage.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert array(decode(encoded(image, "PNG"))).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "HEIC"])
def test_transparency_becomes_white(format: str) -> None:
    image = PILImage.new("RGBA", (3, 1))
    image.putdata([(200, 0, 0, 255), (200, 0, 0, 0), (0, 0, 0, 128)])
    options = EXACTLY.get(format, {})
    assert array(decode(encoded(image, format, **options))).tolist() == [[[200, 0, 0], [255] * 3, [127] * 3]]


def test_grey_with_alpha() -> None:
    image = PILImage.new("LA", (2, 1))
    image.putdata([(40, 255), (40, 0)])
    assert array(decode(encoded(image, "PNG"))).tolist() == [[[40] * 3, [255] * 3]]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0, 128])])
@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_palette_with_transparency(transparency: int | bytes, format: str) -> None:
    if format == "GIF" and isinstance(transparency, bytes):
        transparency = 1
    image = PILImage.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 0])
    image.putdata([0, 1, 2])
    last = [127] * 3 if isinstance(transparency, bytes) else [0] * 3
    pixels = array(decode(encoded(image, format, transparency=transparency)))
    assert pixels.tolist() == [[[10, 20, 30], [255] * 3, last]]


@pytest.mark.parametrize(("mode", "color"), [("RGB", (9, 8, 7)), ("L", 9), ("1", 0)])
def test_one_transparent_colour(mode: str, color: Any) -> None:
    image = PILImage.new(mode, (2, 1), color)
    image.putpixel((1, 0), 255 if mode != "RGB" else (50, 60, 70))
    pixels = array(decode(encoded(image, "PNG", transparency=color)))
    assert pixels[0, 0].tolist() == [255] * 3
    assert pixels[0, 1].tolist() == ([50, 60, 70] if mode == "RGB" else [255] * 3)


def test_cmyk_jpeg_is_inverted_as_adobe_writes_it() -> None:
    data = encoded(PILImage.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)
    assert b"Adobe" in data
    cyan = array(decode(data))[0, 0]
    assert cyan[0] <= 2 and cyan[1] >= 253 and cyan[2] >= 253


def test_cmyk_tiff_is_not_inverted() -> None:
    data = encoded(PILImage.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    assert decode(data).getpixel((3, 3)) == (255, 0, 0)


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.array([[0, 257, 32768, 65278, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        data = encoded(PILImage.fromarray(levels), format)
        assert array(decode(data))[0, :, 0].tolist() == [0, 1, 128, 254, 255]
    big_endian = PILImage.frombytes("I;16B", (5, 1), levels.astype(">u2").tobytes())
    assert array(decode(big_endian))[0, :, 2].tolist() == [0, 1, 128, 254, 255]


def test_16_bit_grey_with_a_transparent_level() -> None:
    image = PILImage.fromarray(np.array([[0, 65535, 257]], dtype=np.uint16))
    assert array(decode(encoded(image, "PNG", transparency=257)))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int32, [0, 100, 255], [0, 100, 255]),
        (np.int32, [0, 25700, 65535], [0, 100, 255]),
        (np.int32, [-100, 0, 100], [0, 128, 255]),
        (np.int32, [0, 100_000, 200_000], [0, 128, 255]),
        (np.int32, [100_000, 100_000, 100_000], [0, 0, 0]),
        (np.float32, [0, 0.5, 1], [0, 128, 255]),
        (np.float32, [0, 100, 255], [0, 100, 255]),
        (np.float32, [0, 25700, 65535], [0, 100, 255]),
        (np.float32, [-3e38, 0, 3e38], [0, 128, 255]),
        (np.float32, [np.nan, np.inf, 0.5], [0, 255, 128]),
        (np.float32, [np.nan, np.nan, np.nan], [0, 0, 0]),
    ],
)
def test_deep_pixels_are_scaled_from_the_range_that_holds_them(
    dtype: Any, values: list[float], expected: list[int]
) -> None:
    image = PILImage.fromarray(np.array([values], dtype=dtype))
    assert image.mode in "IF"
    assert array(decode(image))[0, :, 0].tolist() == expected
    assert array(decode(encoded(image, "TIFF")))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_of_several_frames_is_decoded(format: str) -> None:
    frames = [PILImage.new("RGB", (4, 4), color) for color in ("red", "lime", "blue")]
    options = EXACTLY.get(format, {})
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    with PILImage.open(io.BytesIO(data)) as opened:
        assert opened.n_frames == 3
    assert np.abs(array(decode(data))[2, 2] - (255, 0, 0)).max() <= (2 if format == "AVIF" else 0)


# --- orientation

CORNERS = {  # where the top left of the stored image stands once upright, as (x, y)
    1: (0, 0), 2: (1, 0), 3: (1, 1), 4: (0, 1), 5: (0, 0), 6: (1, 0), 7: (1, 1), 8: (0, 1),
}  # fmt: skip


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIC"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format: str, orientation: int) -> None:
    image = PILImage.new("RGB", (32, 16), "black")
    image.paste("red", (0, 0, 8, 8))
    image.paste("blue", (24, 0, 32, 8))  # tells a turn from a mirror
    exif = PILImage.Exif()
    exif[0x0112] = orientation
    upright = decode(encoded(image, format, exif=exif))
    assert upright.size == ((32, 16) if orientation < 5 else (16, 32))

    def corner(x: int, y: int) -> tuple[int, ...]:
        pixel = upright.getpixel((2 + x * (upright.width - 5), 2 + y * (upright.height - 5)))
        return tuple(round(value / 255) for value in pixel)

    x, y = CORNERS[orientation]
    assert corner(x, y) == (1, 0, 0)
    along = (1 - x, y) if orientation < 5 else (x, 1 - y)
    assert corner(*along) == (0, 0, 1)
    assert np.array_equal(array(decode(upright)), array(upright)), "turned twice"


def test_orientation_of_a_pil_image_and_of_both_byte_orders() -> None:
    for order in ("<", ">"):
        for kind, value in ((3, struct.pack(order + "HH", 6, 0)), (4, struct.pack(order + "L", 6))):
            header = struct.pack(order + "HLHHHL", 42, 8, 1, 0x0112, kind, 1)
            exif = {"<": b"II", ">": b"MM"}[order] + header + value
            image = PILImage.open(io.BytesIO(encoded(photo(), "PNG", exif=b"Exif\0\0" + exif)))
            assert decode(image).size == (32, 48)
            assert image.size == (48, 32)


@given(st.binary(max_size=60))
@settings(max_examples=100, deadline=None)
def test_image_with_damaged_exif_is_decoded(junk: bytes) -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0" + junk)
    assert sorted(decode(data).size) == [32, 48]


def test_damaged_exif_causes_no_warning() -> None:
    cut = b"Exif\0\0II" + struct.pack("<HLHHHLL", 42, 8, 9, 0x0112, 3, 1, 6)  # 9 entries announced, 1 there
    data = encoded(photo(), "JPEG", exif=cut)
    with pytest.warns(UserWarning, match="Corrupt EXIF"):
        PILImage.open(io.BytesIO(data))
    assert decode(data).size == (32, 48)


# --- refusals


def reason(image: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        decode(image, **options)
    assert str(caught.value) == f"{caught.value.source}: {caught.value.reason}"
    return caught.value.reason


@pytest.mark.parametrize("format", FORMATS)
def test_size_limit(format: str) -> None:
    data = encoded(photo(), format)
    assert decode(data, max_pixels=48 * 32).size == (48, 32)
    for image in (data, photo()):
        assert "48 x 32 is 1536 pixels, the limit is 1535" in reason(image, max_pixels=1535)


def test_decompression_bomb_is_refused_from_its_header() -> None:
    png = encoded(PILImage.new("1", (8, 8)), "PNG")
    ihdr = b"IHDR" + struct.pack(">LL", 60_000, 60_000) + png[24:29]
    bomb = png[:12] + ihdr + struct.pack(">L", zlib.crc32(ihdr)) + png[33:]
    assert "too large: 60000 x 60000" in reason(bomb)
    gif = bytearray(encoded(PILImage.new("P", (1, 1)), "GIF"))
    frame = gif.index(b"\x2c")
    gif[frame + 5 : frame + 9] = b"\xff\xff\xff\xff"  # a frame far larger than its canvas
    reason(bytes(gif))
    # Pillow's own limit, over which it would warn, does not count.
    assert decode(encoded(PILImage.new("1", (10_000, 9_000)), "TIFF")).size == (10_000, 9_000)
    assert "too large" in reason(encoded(PILImage.new("1", (20_000, 10_001)), "PNG"))


def test_size_limit_holds_per_thread_and_pillow_is_unchanged() -> None:
    before = PILImage.MAX_IMAGE_PIXELS
    data = encoded(photo(), "PNG")
    outcomes: list[bool] = []

    def work(limit: int, fits: bool) -> None:
        for _ in range(50):
            try:
                decode(data, max_pixels=limit)
                outcomes.append(fits)
            except ImageError:
                outcomes.append(not fits)

    together(*(lambda limit=limit: work(limit, limit == 1536) for limit in (1535, 1536) * 2))
    assert len(outcomes) == 200 and all(outcomes)
    assert before == PILImage.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_truncated_images_are_refused_with_a_reason(format: str, data: st.DataObject) -> None:
    whole = encoded(photo(), format)
    half = whole[: data.draw(st.integers(0, len(whole) // 2))]
    assert reason(half)


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_damaged_bytes_raise_only_image_error(format: str, data: st.DataObject) -> None:
    broken = bytearray(encoded(photo(), format))
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    try:
        assert decode(bytes(broken), max_pixels=1_000_000).mode == "RGB"
    except ImageError as error:
        assert error.source == "<bytes>"


def test_input_that_is_not_an_image_is_refused(tmp_path: Path) -> None:
    assert reason(b"") == "the file is empty"
    assert "not an image in a supported format (JPEG, PNG" in reason(b"<html>404</html>")
    assert "not an image" in reason(b"\0\0\0\x14ftypisom\0\0\2\0mp41")  # a video
    assert "not an image" in reason(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    assert reason(tmp_path / "missing.jpg") == "no such file"
    assert reason(tmp_path) == "is a folder or a device, not a file"
    assert "null" in reason("a\0b.jpg")
    assert "name too long" in reason("x" * 5000 + ".jpg").lower()
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageError, match="the file is empty") as caught:
        decode(tmp_path / "empty.png")
    assert caught.value.source == str(tmp_path / "empty.png")
    assert "has no pixels" in reason(PILImage.new("RGB", (0, 4)))


def test_heic_without_its_extra_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(), "HEIC")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert "pip install 'zsqretrieval[heif]'" in reason(data)


def test_avif_and_heic_are_distinguished_by_all_brands() -> None:
    avif, heic = encoded(photo(), "AVIF"), encoded(photo(), "HEIC")
    assert avif[8:12] == b"avif" and heic[8:12] == b"heic"
    for data in (avif, heic):  # named by what the container is, as some cameras do
        assert decode(data[:8] + b"mif1" + data[12:]).size == (48, 32)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    assert reason(tmp_path / "pipe.jpg") == "is a folder or a device, not a file"


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))

    monkeypatch.setattr(Path, "open", Mock(side_effect=PermissionError(13, "Permission denied")))
    assert reason(tmp_path / "a.jpg") == "cannot be opened: Permission denied"


@pytest.mark.parametrize("options", [{"max_pixels": 0}, {"size_hint": 0}])
def test_limits_below_one_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match="at least 1"):
        decode(photo(), **options)


@pytest.mark.parametrize("x", [np.zeros((3, 3, 3), np.uint8), 7, None])
def test_other_types_are_refused(x: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"not (ndarray|int|NoneType)"):
        as_image(x)


# --- size hint


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_size_hint_keeps_both_sides_long_enough(width: int, height: int, hint: int) -> None:
    image = decode(encoded(PILImage.new("RGB", (width, height), "teal"), "JPEG"), size_hint=hint)
    assert min(image.size) >= min(hint, width, height)
    assert max(image.size) <= max(width, height)
    assert np.abs(array(image) - [0, 128, 128]).max() <= 3


def test_size_hint_shrinks_a_large_jpeg_only() -> None:
    assert decode(encoded(photo(800, 640), "JPEG"), size_hint=160).size == (200, 160)
    assert decode(encoded(photo(800, 640), "PNG"), size_hint=160).size == (800, 640)
    assert decode(encoded(photo(800, 640), "JPEG")).size == (800, 640)


# --- bytes and digests


def test_bytes_and_digest_of_a_file(tmp_path: Path) -> None:
    data = encoded(photo(), "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_bytes(path) == read_bytes(data) == read_bytes(str(path)) == data
    assert digest(path) == digest(data) == digest(Image(path, "elsewhere", id="other"))
    with pytest.raises(ImageError, match="no such file"):
        digest(tmp_path / "b.jpg")
    with pytest.raises(ImageError, match="folder"):
        read_bytes(tmp_path)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "F"])
def test_bytes_of_a_pil_image_hold_its_pixels(mode: str) -> None:
    image = photo().convert(mode)
    assert read_bytes(image) == read_bytes(image.copy())
    assert np.array_equal(array(decode(read_bytes(image))), array(decode(image)))


def test_digest_of_a_pil_image_depends_on_pixels_and_shape() -> None:
    palette = PILImage.new("P", (2, 2))
    palette.putpalette([1, 2, 3])
    other = palette.copy()
    other.putpalette([3, 2, 1])
    images = [palette, other, PILImage.new("RGB", (2, 3)), PILImage.new("RGB", (3, 2)), photo()]
    assert len({digest(image) for image in images}) == len(images)
    assert digest(photo()) == digest(photo().copy())


def test_as_image_makes_paths_absolute_and_returns_records_unchanged() -> None:
    assert as_image("a.jpg").content == Path("a.jpg").absolute()
    image = Image(b"x", "s", id="a", caption="c", metadata={"n": 1})
    assert as_image(image) is image and as_image(b"x").source == "<bytes>"
