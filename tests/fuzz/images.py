"""Image files: damaged bytes, sizes that lie, odd profiles, EXIF and chunks, between sound ones."""

from __future__ import annotations

import contextlib
import io
import random
import struct
import warnings
import zlib
from typing import Any

import numpy as np
from PIL import Image as PILImage

from tests.fuzz.oracle import ENCODER, Case, Target, WrongError, check_caption, check_found, damage, odd_text
from zsqretrieval.errors import ImageError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyGenerator

FORMATS: dict[str, tuple[str, list[dict[str, Any]]]] = {  # with options for Pillow
    "png": ("PNG", [{}, {"bits": 4}, {"compress_level": 0}]),
    "jpg": ("JPEG", [{}, {"progressive": True}]),
    "webp": ("WEBP", [{}, {"lossless": True}, {"save_all": True}]),
    "gif": ("GIF", [{}, {"save_all": True}, {"transparency": 0}]),
    "tif": ("TIFF", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"save_all": True}]),
    "bmp": ("BMP", [{}]),
    "avif": ("AVIF", [{"speed": 10}]),
}
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB", "I", "F", "I;16")
_SIZES = {"png": ">I", "jpg": ">H", "gif": "<H", "tif": "<H", "bmp": "<i", "webp": "<H", "avif": ">I"}
_LIES = (0, 1, 2, 255, 1000, 9000, 20_000, 32_767, 65_535, 2**24, 2**31 - 1)
_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"iCCP", b"eXIf", b"zTXt", b"iTXt", b"acTL", b"fdAT")


class Images(Target):
    def case(self, chance: random.Random) -> Case:
        folder = self.room / "inputs"
        folder.mkdir()
        sound = {f"sound {number}.png": plain(chance) for number in range(3)}
        captions = {name: odd_text(chance) for name in sound}
        for name, text in captions.items():
            (folder / name).with_suffix(".txt").write_bytes(text.encode())
        odd: dict[str, bytes] = {}
        notes = []
        for number in range(chance.choice([1, 1, 2, 3])):
            suffix = chance.choice(sorted(FORMATS))
            content, note = encoded(chance, suffix)
            kind = chance.choice(["damage", "damage", "lie", "chunk", "join", "none"])
            if kind == "damage":
                content, _ = damage(content, chance)
            elif kind == "lie":
                content = lie(content, suffix, chance)
            elif kind == "chunk":
                content = with_chunk(content, chance)
            elif kind == "join":
                cut = chance.randrange(len(content))
                content = content[:cut] + encoded(chance, chance.choice(sorted(FORMATS)))[0][cut:]
            # The decoder must go by the content, not by the name.
            name = f"odd {number}.{suffix if chance.random() < 0.9 else 'jpg'}"
            odd[name] = right_checksums(content) if chance.random() < 0.5 else content
            notes.append(f"{name}: {note}, {kind}, {len(content)} bytes")
        for name, content in (sound | odd).items():
            (folder / name).write_bytes(content)
        on_disk, batch_size = chance.random() < 0.25, chance.choice([1, 2, 32])

        def run() -> str:
            path, generator = (self.room / "album", ToyGenerator()) if on_disk else (None, None)
            with Retriever(ENCODER, ExactIndex(ENCODER.dim), generator, path=path) as album:
                report = album.add(folder, batch_size=batch_size)
                skipped = {one.source.rpartition("/")[2] for one in report.skipped}
                added = {id: (sound | odd)[id] for id in report.added}
                lost = (sound | odd).keys() - added.keys() - skipped
                if not sound.keys() <= added.keys() or len(lost) != report.known:
                    raise WrongError(f"an image is neither added nor skipped by name: {report}")
                for name, text in captions.items():
                    check_caption(album, name, text)
                for name, content in added.items():
                    check_size(album, name, content)
                check_found(album, added)
                if generator and len(album.search("a red thing", 99)) != len(album):
                    raise WrongError("re-ranking loses images")
                for name in skipped:
                    with contextlib.suppress(ImageError):
                        album.search(odd[name])
                        raise WrongError(f"a skipped image is accepted as a query: {name}")
            return "skipped" if skipped else "right"

        return Case("; ".join(notes), run)


def plain(chance: random.Random) -> bytes:
    """A small PNG of noise."""
    buffer = io.BytesIO()
    _noise(chance, "RGB").save(buffer, "PNG")
    return buffer.getvalue()


def encoded(chance: random.Random, suffix: str) -> tuple[bytes, str]:
    """A small image in a random mode, often with odd EXIF and profile; and its description."""
    format, options = FORMATS[suffix]
    mode, settings, buffer = chance.choice(_MODES), dict(chance.choice(options)), io.BytesIO()
    picture = _noise(chance, mode)
    if settings.get("save_all"):
        settings["append_images"] = [_noise(chance, mode)]
    if chance.random() < 0.5:
        settings["exif"] = exif(chance)
    if chance.random() < 0.3:
        settings["icc_profile"] = chance.randbytes(chance.choice([1, 128, 3000, 70_000]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            picture.save(buffer, format, **settings)
        except Exception:  # what Pillow does not write; it takes many forms
            mode, settings, buffer = "RGB", {}, io.BytesIO()
            _noise(chance, mode).save(buffer, format)
    return buffer.getvalue(), f"{format} {mode} {picture.size} {sorted(settings)}"


def _noise(chance: random.Random, mode: str) -> PILImage.Image:
    size = (chance.randint(1, 40), chance.randint(1, 40))
    pixels = np.frombuffer(chance.randbytes(size[0] * size[1] * 3), np.uint8).reshape(size[1], size[0], 3)
    if mode == "I;16":
        return PILImage.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    if mode == "LAB":
        return PILImage.frombytes("LAB", size, pixels.tobytes())
    return PILImage.fromarray(pixels).convert("L" if mode == "LA" else "RGB").convert(mode)


def exif(chance: random.Random) -> bytes:
    """EXIF with an orientation, which may be odd, among entries of any type and count."""
    order, entries = chance.choice("<>"), b""
    for tag in [0x0112, chance.choice([0x0112, 0x8769]), chance.getrandbits(16)]:
        kind, count = chance.choice([3, 3, 4, 5, 1, 13, 0, 999]), chance.choice([1, 1, 0, 2**32 - 1])
        values = chance.choice([1, 3, 6, 8, 0, 9, 65535]), chance.choice([0, 0, 65535])
        entries += struct.pack(order + "HHIHH", tag, kind, count, *values)
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(
        order + "I", chance.choice([8, 8, 0, 2**32 - 1])
    )
    return b"Exif\0\0" + head + struct.pack(order + "H", chance.choice([3, 3, 0, 65535])) + entries


def lie(content: bytes, suffix: str, chance: random.Random) -> bytes:
    """Change the size that a file says it has, wherever it says so."""
    with PILImage.open(io.BytesIO(content)) as opened:
        size = opened.size
    form = _SIZES[suffix]
    most = 2**16 - 1 if form[1] == "H" else 2**31 - 1
    for side in chance.sample(size, chance.choice([1, 1, 2])):
        content = content.replace(struct.pack(form, side), struct.pack(form, min(chance.choice(_LIES), most)))
    return content


def with_chunk(content: bytes, chance: random.Random) -> bytes:
    """Insert a chunk of PNG, or a segment of JPEG, of random kind and content."""
    bomb = b"x\0\0" + zlib.compress(bytes(10 ** chance.randint(1, 7)))
    body = chance.choice([b"", chance.randbytes(30), bomb])
    if content.startswith(b"\x89PNG"):
        place = chance.choice([33, 33, len(content) - 12])
        chunk = struct.pack(">I", len(body)) + chance.choice(_CHUNKS) + body + bytes(4)
        return right_checksums(content[:place] + chunk + content[place:])
    segment = b"\xff" + bytes([chance.randrange(0xC0, 0xFF)]) + struct.pack(">H", len(body) + 2)
    return content[:2] + segment + body + content[2:]


def right_checksums(content: bytes) -> bytes:
    """Correct the checksums of a PNG, so that damage gets past them."""
    at, fixed = 8, bytearray(content)
    while content.startswith(b"\x89PNG") and at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = struct.pack(">I", zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)


def check_size(album: Retriever, id: str, content: bytes) -> None:
    """An image has the size that Pillow sees, upright or turned."""
    record = album.find(id)
    assert record is not None
    limit = PILImage.DecompressionBombError  # 179 megapixels, where the library takes 200
    with warnings.catch_warnings(), contextlib.suppress(OSError, ValueError, SyntaxError, limit):
        warnings.simplefilter("ignore")
        with PILImage.open(io.BytesIO(content)) as opened:
            if sorted(opened.size) != sorted((record.width, record.height)):
                raise WrongError(f"the size is {record.width} x {record.height}, not {opened.size}: {id}")
