from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image as PILImage

from zsqretrieval.data.images import decode, digest, open_images
from zsqretrieval.data.reopen import Reopener
from zsqretrieval.errors import ImageError
from zsqretrieval.types import Image


def picture(colour: str) -> PILImage.Image:
    return PILImage.new("RGB", (5, 4), colour)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    picture(colour).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("folder", ["plain", "with # in it", "a#b#c"])
@pytest.mark.parametrize("tar", ["x.tar", "y#1.tgz"])
def test_whatever_was_described_is_found_again(tmp_path: Path, folder: str, tar: str) -> None:
    base = tmp_path / folder
    base.mkdir()
    (base / "red.png").write_bytes(png("red"))
    (base / "no#1.png").write_bytes(png("green"))
    pack(base / tar, {"./one/a.png": png("blue"), "b#2.png": png("white"), "b#2.txt": b"a caption"})
    described = list(open_images(base))
    assert len(described) == 4
    with Reopener() as files:
        for image in [*described, *reversed(described)]:
            again = files.open(image.source, digest(image))
            assert again.source == image.source and digest(again) == digest(image)


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="file names are Unicode there")
def test_names_that_are_not_utf_8_are_found_again(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9")
    (tmp_path / f"{odd}.png").write_bytes(png("red"))
    (tmp_path / r"literal\xe9.png").write_bytes(png("white"))
    pack(tmp_path / f"{odd}.tar", {f"{odd}.png": png("blue")})
    described = list(open_images(tmp_path))
    assert len(described) == 3 and all(image.source.isascii() for image in described)
    with Reopener() as files:
        for image in described:
            assert digest(files.open(image.source, digest(image))) == digest(image)


def test_an_image_that_changed_is_not_the_one_that_was_added(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    was = digest(path)
    path.write_bytes(png("blue"))
    with Reopener() as files, pytest.raises(ImageError, match=r"a\.png: is another image than the one"):
        files.open(str(path), was)


def test_a_pil_image_is_known_by_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    with PILImage.open(path) as opened, Reopener() as files:
        assert decode(files.open(str(path), digest(opened))).getpixel((0, 0)) == (255, 0, 0)
        with pytest.raises(ImageError, match="another image"):
            files.open(str(path), digest(picture("blue")))


def test_what_is_gone_or_never_was_a_file_is_named(tmp_path: Path) -> None:
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


def test_what_stands_in_a_tar_before_its_damage_is_found(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar", {f"{n}.png": png(colour) for n, colour in enumerate(["red", "green", "blue"])})
    content = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(content[: 2 * 1024 + 100])
    with Reopener() as files:
        again = files.open(f"{tmp_path}/x.tar#1.png", digest(png("green")))
        assert decode(again).getpixel((0, 0)) == (0, 128, 0)
        with pytest.raises(ImageError, match="no such member"):
            files.open(f"{tmp_path}/x.tar#2.png", digest(png("blue")))


def test_without_a_digest_what_is_there_now_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png("red"))
    pack(tmp_path / "x.tar", {"./b.png": png("blue")})
    with Reopener() as files:
        path.write_bytes(png("white"))
        assert decode(files.open(str(path))).getpixel((0, 0)) == (255, 255, 255)
        assert decode(files.open(f"{tmp_path}/x.tar#b.png")).getpixel((0, 0)) == (0, 0, 255)
        with pytest.raises(ImageError):
            files.open(str(tmp_path / "gone.png"))
