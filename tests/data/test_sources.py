"""Listing images of folders, tars and patterns, and reopening them by their source."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from plain import png
from tars import pack
from zsqretrieval.data.images import decode, digest
from zsqretrieval.data.sources import Reopener, open_images, walk
from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.errors import ImageError, IntegrityError, InvalidInputError
from zsqretrieval.types import Image


def reason(image: Image) -> str:
    with pytest.raises(ImageError) as caught:
        decode(image)
    return caught.value.reason


# --- folders


def fill(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never opened")


def test_walk_is_recursive_sorted_and_never_decodes(tmp_path: Path) -> None:
    fill(tmp_path, "b.JPG", "a.png", "Z.webp", "a/2.gif", "a/10.TIFF", "ä.jpeg", "x.jpg/y.bmp")
    fill(tmp_path, "notes.md", "a.txt.bak", ".hidden.jpg", ".cache/c.jpg", "a/.d.png")
    images = list(walk(tmp_path))
    expected = ["Z.webp", "a/10.TIFF", "a/2.gif", "a.png", "b.JPG", "x.jpg/y.bmp", "ä.jpeg"]
    assert [image.id for image in images] == expected
    assert [image.source for image in images] == [str(tmp_path / name) for name in expected]
    assert [image.content for image in images] == [tmp_path / name for name in expected]


def test_walk_does_not_depend_on_the_order_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, *(f"{i % 3}/{i}.jpg" for i in range(20)))
    expected = [image.id for image in walk(tmp_path)]
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: nullcontext(list(scandir(path))[::-1]))
    assert [image.id for image in walk(tmp_path)] == expected
    assert len(expected) == 20


def test_walk_from_a_relative_path_gives_full_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, "photos/a.jpg")
    monkeypatch.chdir(tmp_path)
    (image,) = walk("photos")
    assert (image.id, image.source) == ("a.jpg", str(tmp_path / "photos" / "a.jpg"))


def test_walk_reads_captions_beside_images(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "c.d.jpg", "e.jpg")
    (tmp_path / "a.txt").write_text("\ufeffa cat \n", encoding="utf-8")
    (tmp_path / "c.d.txt").write_bytes(b"caf\xe9")
    (tmp_path / "e.txt").write_text(" \n")
    assert [image.caption for image in walk(tmp_path)] == ["a cat", None, "caf\ufffd", None]


def test_walk_reads_metadata_beside_images(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg", "b.jpg", "c.jpg", "00000_stats.json")
    (tmp_path / "a.json").write_text('{"caption": "of the web", "punsafe": 0.1}')
    (tmp_path / "b.json").write_text('{"caption": "of the web"}')
    (tmp_path / "b.TXT").write_text("a cat")
    (tmp_path / "c.JSON").write_text("{")
    (tmp_path / "a.txt").write_text(" ")
    a, b, c = walk(tmp_path)
    assert (a.caption, a.metadata) == ("of the web", {"caption": "of the web", "punsafe": 0.1})
    assert (b.caption, b.metadata) == ("a cat", {"caption": "of the web"})
    assert "the metadata cannot be read" in c.notes[0] and not c.metadata


def test_large_values_of_metadata_are_left_out_and_named(tmp_path: Path) -> None:
    fill(tmp_path, "a.jpg")
    facts = {"label": "cat", "imageData": "A" * 70_000, "caption": "ä" * 9_000}
    (tmp_path / "a.json").write_text(json.dumps(facts))
    (image,) = walk(tmp_path)
    assert image.metadata == {name: facts[name] for name in ("label", "caption")}
    assert image.notes == ("metadata: imageData of more than 64 KiB left out",)


def test_walk_ends_in_a_loop_of_links(tmp_path: Path) -> None:
    fill(tmp_path, "real/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "real" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "real" / "twin").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "real" / "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    images = list(walk(tmp_path))
    assert [image.id for image in images] == ["elsewhere/b.jpg", "gone.jpg", "linked.jpg", "real/a.jpg"]
    assert reason(images[1]) == "no such file"


def test_walk_names_a_folder_it_cannot_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    images = list(walk(tmp_path))
    assert [image.id for image in images] == ["a/1.jpg", "b", "c/3.jpg"]
    assert reason(images[1]) == "cannot be opened: Permission denied"


def test_walk_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="missing is not a folder"):
        walk(tmp_path / "missing")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are not UTF-8 exist on Linux only")
def test_walk_makes_odd_names_printable(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(png("blue"))
    (image,) = walk(tmp_path)
    assert image.id == "caf\\xe9.png"
    image.source.encode()
    assert decode(image).size == (5, 4)


# --- tars


def listed(tars: list[Path]) -> list[Image]:
    return [one for one in read_webdataset(tars) if isinstance(one, Image)]


SHARD = {
    "000000000.jpg": png("red"),
    "000000000.json": json.dumps({"url": "http://x/1", "similarity": float("nan"), "caption": "no"}).encode(),
    "000000000.txt": "ein Bär\n".encode(),
    "000000001.json": b'{"status": "failed"}',
    "000000002.PNG": png("blue"),
    "000000002.json": b'{"caption": "from the json"}',
    "./sub/._000000003.webp": b"junk",
    "./sub/000000003.webp": png("white"),
}


@pytest.mark.parametrize("name", ["00000.tar", "00000.tar.gz", "00000.tgz"])
def test_webdataset(tmp_path: Path, name: str) -> None:
    path = pack(tmp_path / name, SHARD)
    first, second, third = listed([path])
    assert (first.id, first.caption) == ("00000/000000000", "ein Bär")
    assert first.source == f"{path}#000000000.jpg"
    assert first.metadata == {"url": "http://x/1", "similarity": None, "caption": "no"}
    assert first.content == SHARD["000000000.jpg"]
    assert (second.id, second.caption) == ("00000/000000002", "from the json")
    assert (third.id, third.caption, third.metadata) == ("00000/sub/000000003", None, {})
    assert all(decode(image).size == (5, 4) for image in (first, second, third))


@pytest.mark.parametrize("name", ["s.tar", "s.tgz"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.6, 0.9])
def test_truncated_tar_is_named(tmp_path: Path, name: str, keep: float) -> None:
    path = pack(tmp_path / name, SHARD)
    end = path.read_bytes().rstrip(b"\0") if name == "s.tar" else path.read_bytes()
    path.write_bytes(end[: int(len(end) * keep)])
    with pytest.raises(IntegrityError, match=f"{name}: not a whole tar"):
        list(read_webdataset([path]))


def test_tar_cut_between_members_or_with_a_damaged_header_is_named(tmp_path: Path) -> None:
    path = pack(tmp_path / "s.tar", SHARD)
    with tarfile.open(path) as tar:
        starts = [member.offset for member in tar]
    data = path.read_bytes()
    damaged = bytearray(data)
    damaged[starts[4] + 10] ^= 0x40
    for broken in (data[: starts[4]], bytes(damaged)):
        path.write_bytes(broken)
        images = read_webdataset([path])
        assert getattr(next(images), "id", None) == "s/000000000"
        with pytest.raises(IntegrityError, match=r"s\.tar: .*cut short or damaged at byte"):
            list(images)


def test_file_that_is_not_a_tar_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(b"<html>not found</html>" * 100)
    missing = r"t\.tar: cannot be read: No such file"
    for name, error, message in (("s.tar", IntegrityError, r"s\.tar"), ("t.tar", InvalidInputError, missing)):
        with pytest.raises(error, match=message):
            list(read_webdataset([tmp_path / name]))


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"[" * 100_000])
def test_broken_json_is_noted_and_keeps_the_image(tmp_path: Path, content: bytes) -> None:
    members = {"a.jpg": b"x", "a.json": content, "a.txt": b"a caption", "b.jpg": b"y"}
    path = pack(tmp_path / "s.tar", members)
    first, second = listed([path])
    assert "the metadata cannot be read" in first.notes[0] and not second.notes
    assert (first.id, first.caption, first.metadata) == ("s/a", "a caption", {}) and second.id == "s/b"


# --- any source


def test_open_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "f/b.jpg", "f/a.jpg", "g/c.png", "f/00000_stats.json", "odd[1].jpg")
    pack(tmp_path / "f" / "00001.tar", {"k.jpg": b"1"})
    pack(tmp_path / "f" / "00000.tar", {"k.jpg": b"0"})

    def ids(source: Any) -> list[str | None]:
        return [getattr(image, "id", None) or Path(image.source).name for image in open_images(source)]

    assert ids(tmp_path / "f") == ["a.jpg", "b.jpg", "00000/k", "00001/k"]
    (tmp_path / "f/sub/.hidden").mkdir(parents=True)
    pack(tmp_path / "f/sub/2.tar", {"k.jpg": b"2"})
    pack(tmp_path / "f/sub/.hidden/3.tar", {"k.jpg": b"3"})
    pack(tmp_path / "f/sub/.4.tar", {"k.jpg": b"4"})
    assert ids(tmp_path / "f") == ["a.jpg", "b.jpg", "00000/k", "00001/k", "2/k"]
    assert ids(str(tmp_path / "f" / "*.tar")) == ["00000/k", "00001/k"]
    assert ids(tmp_path / "f" / "*") == ["00000/k", "00001/k", "a.jpg", "b.jpg", "2/k"]
    assert ids(tmp_path / "**" / "*.png") == ["c.png"]
    assert ids(tmp_path / "f" / "00001.tar") == ["00001/k"]
    assert ids(tmp_path / "odd[1].jpg") == ["odd[1].jpg"]
    assert ids([tmp_path / "missing.jpg"]) == ["missing.jpg"]
    assert ids([tmp_path / "g", b"bytes", PILImage.new("RGB", (5, 4)), Image(b"", "s", id="mine")]) == [
        "c.png", "<bytes>", "<PIL image>", "mine",
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert ids("f/*.tar") == ids("f/0000[01].tar") == ["00000/k", "00001/k"]
    for wrong, message in (("f/*.gif", "no file matches"), ([3], "not int"), ("", "empty")):
        with pytest.raises(InvalidInputError, match=message):
            ids(wrong)


def test_unreadable_caption_keeps_the_image(tmp_path: Path) -> None:
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").mkdir()  # reads as an error for every user, root included
    (image,) = walk(tmp_path)
    assert image.caption is None and image.notes[0].startswith("a.txt was left out: ")


def test_path_that_cannot_be_examined_is_listed_and_named_by_decoding() -> None:
    long = "x" * 300 + ".jpg"
    (one,) = open_images([long])
    assert isinstance(one, Image) and "too long" in reason(one).lower()


# --- reopening


@pytest.mark.parametrize("folder", ["plain", "with # in it", "a#b#c"])
@pytest.mark.parametrize("tar", ["x.tar", "y#1.tgz"])
def test_every_listed_image_can_be_reopened(tmp_path: Path, folder: str, tar: str) -> None:
    base = tmp_path / folder
    base.mkdir()
    (base / "red.png").write_bytes(png("red"))
    (base / "no#1.png").write_bytes(png("green"))
    pack(base / tar, {"./one/a.png": png("blue"), "b#2.png": png("white"), "b#2.txt": b"a caption"})
    described = [one for one in open_images(base) if isinstance(one, Image)]
    assert len(described) == 4
    with Reopener() as files:
        for image in [*described, *reversed(described)]:
            again = files.open(image.source, digest(image))
            assert again.source == image.source and digest(again) == digest(image)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are Unicode there")
def test_names_that_are_not_utf_8_can_be_reopened(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{odd}.png").write_bytes(png("red"))
    (tmp_path / r"literal\xe9.png").write_bytes(png("white"))
    pack(tmp_path / f"{odd}.tar", {f"{odd}.png": png("blue")})
    described = [one for one in open_images(tmp_path) if isinstance(one, Image)]
    assert len(described) == 3 and all(image.source.isascii() for image in described)
    with Reopener() as files:
        for image in described:
            assert digest(files.open(image.source, digest(image))) == digest(image)


def test_reopened_image_is_verified_by_its_bytes_or_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    with PILImage.open(path) as opened, Reopener() as files:
        assert decode(files.open(str(path), digest(opened))).getpixel((0, 0)) == (255, 0, 0)
        for changed in (digest(png("blue")), digest(PILImage.new("RGB", (5, 4), "blue"))):
            with pytest.raises(ImageError, match=r"a\.png: has changed since it was added"):
                files.open(str(path), changed)


def test_reopening_a_missing_image_names_it(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {"a.png": png("red")})
    (tmp_path / "cut.tar").write_bytes((tmp_path / "x.tar").read_bytes()[:560])
    (tmp_path / "none.tar").write_bytes(b"this is not a tar")
    (tmp_path / "broken.png").write_bytes(png("red")[:30])
    sources = ["<bytes>", "<PIL image>", "gone.png", "x.tar#b.png", "cut.tar#a.png", "none.tar#a.png"]
    with Reopener() as files:
        for source in [*sources, "broken.png", "x.tar", "#", ""]:
            place = str(tmp_path / source) if "." in source else source
            with pytest.raises(ImageError) as caught:
                files.open(place, digest(Image(png("red"), "")))
            assert caught.value.source == place and caught.value.reason


def test_members_before_the_damage_of_a_tar_can_be_reopened(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {f"{n}.png": png(colour) for n, colour in enumerate(["red", "green", "blue"])})
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: 2 * 1024 + 100])
    with Reopener() as files:
        again = files.open(f"{tmp_path}/x.tar#1.png", digest(png("green")))
        assert decode(again).getpixel((0, 0)) == (0, 128, 0)
        with pytest.raises(ImageError, match="no such member"):
            files.open(f"{tmp_path}/x.tar#2.png", digest(png("blue")))


def test_reopening_without_a_digest_accepts_any_image(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    pack(tmp_path / "x.tar", {"./b.png": png("blue")})
    with Reopener() as files:
        path.write_bytes(png("white"))
        assert decode(files.open(str(path))).getpixel((0, 0)) == (255, 255, 255)
        assert decode(files.open(f"{tmp_path}/x.tar#b.png")).getpixel((0, 0)) == (0, 0, 255)
        with pytest.raises(ImageError):
            files.open(str(tmp_path / "gone.png"))
