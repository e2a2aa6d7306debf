"""Tars joined by ``cat``, members in any order, and dots in names: read, or named."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest

from plain import png
from tars import pack
from zsqretrieval.data.sources import Reopener, open_images
from zsqretrieval.data.tars import read_webdataset
from zsqretrieval.errors import ImageError, InvalidInputError
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import ToyEncoder
from zsqretrieval.types import Image


def shard(path: Path, *names: str) -> Path:
    """A tar whose images and texts hold the number of their name's place."""
    members = {}
    for n, name in enumerate(names):
        text = b'{"caption": "%d"}' % n if name.endswith("json") else b"%d" % n
        members[name] = png(n) if name.lower().endswith(("png", "jpg")) else text
    return pack(path, members)


def listed(path: Path) -> tuple[dict[str | None, str | None], list[str]]:
    """The captions of the images of a tar by id, and the members that are named as not read."""
    found = list(read_webdataset([path]))
    captions = {one.id: one.caption for one in found if isinstance(one, Image)}
    return captions, [one.source.rpartition("#")[2] for one in found if isinstance(one, ImageError)]


# --- joined tars ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
@pytest.mark.parametrize(
    "join",
    [
        pytest.param(lambda parts: b"".join(parts), id="cat"),
        pytest.param(lambda parts: b"".join(part.rstrip(b"\0") + bytes(-len(part.rstrip(b"\0")) % 512 + 1024)
                                            for part in parts), id="shortest ends"),
        pytest.param(lambda parts: bytes(10240).join(parts) + bytes(51200), id="empty tars between"),
    ],
)  # fmt: skip
def test_joined_tars_are_read_to_the_end(tmp_path: Path, name: str, join: object) -> None:
    parts = [shard(tmp_path / f"{n}.tar", f"{n}.png", f"{n}.txt").read_bytes() for n in range(3)]
    assert callable(join)
    whole = join(parts)
    (tmp_path / name).write_bytes(whole if name == "x.tar" else gzip.compress(whole))
    assert listed(tmp_path / name) == ({f"x/{n}": "1" for n in range(3)}, [])
    with Reopener() as files:
        for image in read_webdataset([tmp_path / name]):
            assert isinstance(image, Image)
            assert files.open(image.source).content == image.content


def test_compressed_tars_joined_by_cat_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [shard(tmp_path / f"{n}.tgz", f"{n}.png").read_bytes() for n in range(3)]
    (tmp_path / "x.tgz").write_bytes(b"".join(parts))
    assert list(listed(tmp_path / "x.tgz")[0]) == ["x/0", "x/1", "x/2"]


@pytest.mark.parametrize(
    "tail", [b"a signature" * 100, b"\x89PNG\r\n\x1a\n", gzip.compress(b"?", mtime=0), b"\1"]
)
def test_something_else_behind_a_tar_is_named(tmp_path: Path, tail: bytes) -> None:
    path = shard(tmp_path / "x.tar", "0.png", "0.txt")
    path.write_bytes(path.read_bytes() + tail)
    image, error = open_images(path)
    assert isinstance(image, Image) and image.caption == "1"
    assert isinstance(error, ImageError) and error.source == str(path)
    assert "not a whole tar file: cut short or damaged at byte 10240" in error.reason


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_last_of_members_with_one_name_is_read_and_the_others_are_named(tmp_path: Path, name: str) -> None:
    parts = [pack(tmp_path / f"{n}.tar", {"0.png": png(n), "0.txt": b"%d" % n}).read_bytes() for n in (7, 8)]
    whole = b"".join(parts)
    (tmp_path / name).write_bytes(whole if name == "x.tar" else gzip.compress(whole))
    assert listed(tmp_path / name) == ({"x/0": "8"}, ["0.png", "0.txt"])
    retriever = Retriever(ToyEncoder())
    report = retriever.add(tmp_path / name)
    assert report.added == ("x/0",) and len(report.skipped) == 2
    (record,) = retriever.records()
    with Reopener() as files:
        assert files.open(record.source, record.digest).content == png(8)


def test_second_image_of_a_sample_and_links_named_like_images_are_named(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", "0.png", "0.jpg", "0.txt", "1.png")
    with tarfile.open(path, "a") as tar:
        for name, kind in (
            ("2.png", tarfile.SYMTYPE),
            ("3.JPG", tarfile.LNKTYPE),
            ("4.txt", tarfile.SYMTYPE),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "1.png"
            tar.addfile(link)
    assert listed(path) == ({"x/0": "2", "x/1": None}, ["2.png", "3.JPG", "0.jpg"])
    with pytest.raises(InvalidInputError, match=r"1\.png has no caption"):  # not the surplus ones
        read_shards(path.rename(tmp_path / "test-0.tar").parent)


# --- members in any order ---------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["", "a.b/"])
@pytest.mark.parametrize(
    ("names", "far"),
    [
        (("0.png", "1.png", "0.txt", "1.txt"), ["0.txt"]),
        (("0.txt", "1.txt", "0.png", "1.png"), ["1.txt"]),
        (("0.json", "1.png", "0.png", "1.json"), ["1.json", "0.json"]),
        (("1.txt", "0.png", "1.png", "0.json"), ["0.json", "1.txt"]),
        (("0.png", "other.bin", "1.PNG", "1.TXT", "0.txt"), ["0.txt"]),
    ],
)
def test_captions_apart_from_their_images_are_read_or_named(
    tmp_path: Path, folder: str, names: tuple[str, ...], far: list[str]
) -> None:
    members = [folder + name for name in names]
    numbers = {Path(name).stem: str(n) for n, name in enumerate(names) if not name.lower().endswith("png")}
    captions = {f"x/{folder}{key}": numbers[key] for key in ("0", "1")}
    assert listed(shard(tmp_path / "x.tar", *members)) == (captions, [])
    # Going back in a compressed tar would read it again from the beginning.
    lost = {f"x/{folder}{Path(name).stem}": None for name in far}
    assert listed(shard(tmp_path / "x.tgz", *members)) == (captions | lost, [folder + name for name in far])


# --- dots -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
@pytest.mark.parametrize(
    ("names", "captions", "lost"),
    [
        (("22.5.jpg", "22.5.txt"), {"22.5.jpg": "1"}, []),
        (("22.5.jpg", "22.5.json", "22.6.jpg", "22.6.txt"), {"22.5.jpg": "1", "22.6.jpg": "3"}, []),
        (("22.jpg", "22.txt", "22.5.jpg", "22.5.txt"), {"22": "1", "22.5.jpg": "3"}, []),
        (("v1.0/a.b.c.jpg", "v1.0/a.b.c.txt"), {"v1.0/a.b.c.jpg": "1"}, []),
        (("0.jpg", "0.mask.png", "0.txt"), {"0": "2"}, []),
        (("0.left.jpg", "0.right.jpg", "0.txt"), {"0.left.jpg": None, "0.right.jpg": None}, ["0.txt"]),
        (("I.1.png", "I.2.PNG", "I.txt", "a.jpg"), {"I.1.png": None, "I.2.PNG": None, "a": None}, ["I.txt"]),
        (("0.left.jpg", "0.json", "0.txt"), {"0.left.jpg": None}, ["0.json", "0.txt"]),
        (("0.json", "0.txt", "README.txt", "1.jpg"), {"1": None}, []),  # a picture that was not fetched
        (("a", "b.", ".jpg", "jpg", "..jpg", "c..jpg"), {"c..jpg": None}, []),
    ],
)
def test_names_with_dots_keep_their_captions_or_name_them(
    tmp_path: Path, name: str, names: tuple[str, ...], captions: dict[str, str | None], lost: list[str]
) -> None:
    expected = {f"x/{key}": caption for key, caption in captions.items()}
    assert listed(shard(tmp_path / name, *names)) == (expected, lost)


def test_data_set_refuses_shards_that_cannot_be_read_whole(tmp_path: Path) -> None:
    shard(tmp_path / "test-0.tar", "0.left.jpg", "0.left.json", "0.txt")
    with pytest.raises(InvalidInputError, match=r"test-0\.tar#0\.txt: belongs to no image"):
        read_shards(tmp_path)
