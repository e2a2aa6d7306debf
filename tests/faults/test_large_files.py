"""Files, members of tars and texts that are too large are skipped by name, and the rest is added."""

from __future__ import annotations

import gzip
import os
import resource
import struct
import sys
import tarfile
import warnings
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PILImage

from plain import png
from tars import pack
from zsqretrieval.data import loader as loader_module
from zsqretrieval.data import tars as tars_module
from zsqretrieval.data.images import MOST_PIXELS, decode, digest, trimmed
from zsqretrieval.data.loader import Loader
from zsqretrieval.data.sources import Reopener, open_images
from zsqretrieval.errors import ImageError
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.display import thumbnails
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import MAX_PIXELS, Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sparse files and limits of memory")

HUGE = 200 * 2**30


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims these sides."""
    header = b"IHDR" + struct.pack(">LLBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + header + struct.pack(">L", zlib.crc32(header))
    return start + png("red")[33:]


def sparse(path: Path, start: bytes, size: int = HUGE) -> None:
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


@contextmanager
def memory(more: int) -> Iterator[None]:
    """Limit this process to the memory that it has and so many bytes more."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def add(source: Any, **options: Any) -> tuple[Retriever, dict[str, str]]:
    """An album of a source, added with 512 MiB of memory; and the reasons of what was skipped."""
    retriever = Retriever(ToyEncoder())
    with memory(512 * 2**20):
        report = retriever.add(source, **options)
    return retriever, {Path(one.source).name: one.reason for one in report.skipped}


# --- encoded bytes ----------------------------------------------------------------------------------------


def large_files(folder: Path) -> None:
    (folder / "a.png").write_bytes(png("red"))
    sparse(folder / "b.tif", b"II*\0", 6 * 10**9)
    sparse(folder / "c.jpg", b"\xff\xd8\xff")
    sparse(folder / "d.png", bomb(60_000, 60_000), 900 * 2**20)  # examined, though small enough
    sparse(folder / "e.bmp", b"BM" + bytes(64), 800 * 2**20)
    (folder / "f.png").symlink_to("/dev/zero")
    (folder / "g.png").symlink_to("/proc/kcore")
    (folder / "h.png").write_bytes(bomb(2**31 - 1, 2**31 - 1))
    (folder / "z.png").write_bytes(png("blue"))


def test_huge_files_are_skipped_by_name_and_the_others_added(tmp_path: Path) -> None:
    large_files(tmp_path)
    retriever, skipped = add(tmp_path)
    assert [record.id for record in retriever.records()] == ["a.png", "z.png"]
    assert skipped.pop("b.tif") == f"too large: 6000000000 bytes, the limit is {2**30}"
    assert "bytes, the limit" in skipped.pop("c.jpg")
    assert "too large: 60000 x 60000" in skipped.pop("d.png")
    assert sorted(skipped) == ["e.bmp", "f.png", "g.png", "h.png"]


def test_huge_and_odd_captions_are_noted_and_the_images_added(tmp_path: Path) -> None:
    for name, colour in zip("abcd", ("red", "green", "blue", "white"), strict=True):
        (tmp_path / f"{name}.png").write_bytes(png(colour))
    sparse(tmp_path / "a.txt", b"a caption")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    (tmp_path / "d.txt").write_text("sound")
    retriever = Retriever(ToyEncoder())
    report = retriever.add(tmp_path)
    assert [record.caption for record in retriever.records()] == [None, None, None, "sound"]
    assert [Path(one.source).name for one in report.mended] == ["a.png", "b.png", "c.png"]
    assert all(".txt was left out: " in one.reason for one in report.mended)


def test_encoded_images_of_a_batch_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "BYTES_AT_ONCE", 10_000)
    sides = [10, 40, 40, 10, 10, 90, 10]
    noise = np.random.default_rng(0)
    for n, side in enumerate(sides):
        pixels = noise.integers(0, 256, (side, side, 3), np.uint8)
        PILImage.fromarray(pixels).save(tmp_path / f"{n}.bmp")
    pack(tmp_path / "t.tar", {f"{n}.bmp": (tmp_path / f"{n}.bmp").read_bytes() for n in range(len(sides))})
    for source in (tmp_path / "*.bmp", tmp_path / "t.tar"):
        with Loader(open_images(source), 32) as loader:
            batches = [[one.bytes for one in batch] for batch in loader]
        assert sum(map(len, batches)) == len(sides) and len(batches) > 3
        assert all(len(batch) == 1 or sum(batch) <= 10_000 for batch in batches)


def test_decoded_pixels_are_freed_when_a_group_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_PIXELS_AT_ONCE", 1)
    seen: list[weakref.ref[Any]] = []

    class Watching(ToyEncoder):
        def encode_image(self, images: Any, *, batch_size: int = 32) -> Any:
            assert not any(reference() for reference in seen[:-1])
            seen.extend(weakref.ref(image.content) for image in images)
            return super().encode_image(images, batch_size=batch_size)

    report = Retriever(Watching()).add([png("red", (n, 9)) for n in range(1, 9)])
    assert len(report.added) == len(seen) == 8


def test_image_for_which_there_is_no_memory_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = PILImage.Image.convert

    def convert(image: PILImage.Image, *args: Any, **options: Any) -> PILImage.Image:
        if image.size == (5, 5):
            raise MemoryError
        return real(image, *args, **options)

    monkeypatch.setattr(PILImage.Image, "convert", convert)
    report = Retriever(ToyEncoder()).add([png("red"), png("blue", (5, 5)), png("green")])
    assert len(report.added) == 2 and "not enough memory" in report.skipped[0].reason


# --- pixels -----------------------------------------------------------------------------------------------


def test_size_limit_of_an_addition_holds_for_every_source(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png("red", (10, 10)))
    pack(tmp_path / "b.tar", {"b.png": png("green", (10, 10))})
    sources = [tmp_path, png("blue", (10, 10)), PILImage.new("RGB", (10, 10)), png("white", (9, 11))]
    report = Retriever(ToyEncoder()).add(sources, max_pixels=99)
    assert len(report.added) == 1 and len(report.skipped) == 4
    assert all("100 pixels, the limit is 99; make a smaller copy, or raise max_pixels" in one.reason
               for one in report.skipped)  # fmt: skip
    assert len(Retriever(ToyEncoder()).add(sources, max_pixels=100).added) == 5
    assert len(Retriever(ToyEncoder()).add(sources).added) == 5
    assert MAX_PIXELS == 200_000_000


def test_added_image_stays_readable_above_the_usual_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png("red", (30, 30)))
    pack(tmp_path / "b.tar", {"b.png": png("blue", (31, 30))})
    PILImage.new("RGB", (32, 30), "green").save(tmp_path / "c.bmp")
    defaults = Image.__init__.__defaults__ or ()
    monkeypatch.setattr(
        Image.__init__, "__defaults__", tuple(100 if one == MAX_PIXELS else one for one in defaults)
    )
    monkeypatch.setattr("zsqretrieval.data.images.MAX_PIXELS", 100)
    retriever = Retriever(ToyEncoder(), generator=ToyGenerator())
    with PILImage.open(tmp_path / "c.bmp") as lazy:  # whose encoding is kept
        report = retriever.add([tmp_path / "a.png", tmp_path / "b.tar", lazy], max_pixels=10**6)
    assert len(report.added) == 3 and not report.skipped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ranking = retriever.search("is it red?", rerank="likelihood")
    with retriever.files() as files:
        assert all("likelihood" in hit.scores for hit in ranking) and len(thumbnails(ranking, files)) == 3
    source = str(tmp_path / "a.png")
    with Reopener() as files, pytest.raises(ImageError, match="the limit is 100"):
        decode(files.open(source))  # which the album does not vouch for
    with Reopener() as files:
        assert files.open(source, digest(Path(source))).max_pixels == MOST_PIXELS


def test_trimming_a_strip_has_no_limit_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PILImage, "MAX_IMAGE_PIXELS", 10)
    strip = PILImage.effect_noise((7, 333), 90).convert("RGB")
    assert np.array_equal(np.asarray(trimmed(strip)), np.asarray(strip)[110:223])


# --- tars -------------------------------------------------------------------------------------------------


def member(name: str, size: int, **fields: Any) -> bytes:
    """A header of a tar, without content."""
    header = tarfile.TarInfo(name)
    header.size = size
    for field, value in fields.items():
        setattr(header, field, value)
    return header.tobuf(fields.pop("format", tarfile.GNU_FORMAT))


def pax(name: str, size: str) -> bytes:
    """A member whose size is in a note."""
    record = f"{len(size) + 9:02} size={size}\n".encode()
    note = tarfile.TarInfo("note")
    note.type, note.size = tarfile.XHDTYPE, len(record)
    return note.tobuf() + record.ljust(512, b"\0") + tarfile.TarInfo(name).tobuf()


@pytest.mark.parametrize("name", ["b.tar", "b.tar.gz"])
@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(member("b.png", 2**40), id="member of 1 TiB"),
        pytest.param(member("b.txt", 2**40), id="caption of 1 TiB"),
        pytest.param(member("b.png", 2**70), id="member of 2^70 bytes"),
        pytest.param(member("b.png", -512), id="negative size"),
        pytest.param(pax("b.png", "-512"), id="negative size in a note"),
        pytest.param(pax("b.png", str(2**60)), id="size in a note"),
        pytest.param(member("b.png", 2**40, type=tarfile.GNUTYPE_LONGNAME), id="name of 1 TiB"),
        pytest.param(member("b.png", -1, type=tarfile.XHDTYPE), id="note of negative size"),
        pytest.param(bytes(1024) + b"\1" * 512, id="no tar behind it"),
    ],
)
def test_tar_that_claims_too_much_is_named_and_others_are_added(
    tmp_path: Path, name: str, tail: bytes
) -> None:
    pack(tmp_path / "a.tar", {"a.png": png("red")})
    start = pack(tmp_path / "start.tar", {"1.png": png("green"), "2.png": png("blue")}).read_bytes()
    (tmp_path / "start.tar").unlink()
    content = start.rstrip(b"\0")
    content += bytes(-len(content) % 512) + tail
    (tmp_path / name).write_bytes(content if name == "b.tar" else gzip.compress(content))
    pack(tmp_path / "c.tar", {"c.png": png("white")})
    retriever, skipped = add(tmp_path)
    assert [record.id for record in retriever.records()] == ["a/a", "b/1", "b/2", "c/c"]
    assert list(skipped) == [name]


def test_members_above_the_limit_are_skipped_between_others(tmp_path: Path) -> None:
    last = pack(tmp_path / "last.tar", {"3.png": png("blue"), "3.json": b'{"year": 1999}'}).read_bytes()
    first = pack(tmp_path / "x.tar", {"1.png": png("red")}).read_bytes().rstrip(b"\0")
    (tmp_path / "last.tar").unlink()
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(first + bytes(-len(first) % 512))
        for name in ("2.png", "3.txt"):
            file.write(member(name, 2**31))
            file.truncate(file.seek(2**31, os.SEEK_CUR))
        file.write(last)
    retriever, skipped = add(tmp_path)
    assert [(record.id, record.caption, dict(record.metadata)) for record in retriever.records()] == [
        ("x/1", None, {}),
        ("x/3", None, {"year": 1999}),
    ]
    assert list(skipped) == ["x.tar#2.png"] and "too large" in skipped["x.tar#2.png"]


def test_compressed_tar_is_read_as_far_as_it_can_be_reopened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tars_module, "_ANY_GROWTH", 2**20)
    zeros = bytes(2**20)
    pack(tmp_path / "a.tgz", {"1.png": png("red"), "2.npy": zeros, "3.png": png("blue"), "4.npy": zeros})
    pack(tmp_path / "b.tgz", {"1.png": png("green")})
    retriever, skipped = add(tmp_path)
    found = [record.id for record in retriever.records()]
    assert found[0] == "a/1" and found[-1] == "b/1"
    assert "it grows to more than 16 times its size, so unpack it: " in skipped["a.tgz"]
    with Reopener() as files:
        for record in retriever.records():
            files.open(record.source, record.digest)


def test_unused_members_are_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real: Callable[..., bytes] = tars_module.Tar.read
    monkeypatch.setattr(
        tars_module.Tar, "read", lambda tar, name, *rest: (read.append(name), real(tar, name, *rest))[1]
    )
    pack(tmp_path / "a.tar", {"1.mp4": b"film", "1.png": png("red"), "1.npy": b"numbers", "1.txt": b"x"})
    add(tmp_path)
    assert sorted(read) == ["1.png", "1.txt"]
