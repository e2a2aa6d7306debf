"""Bringing an album in step with folders: the same as adding, and removals that are certain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage

from plain import png, write_plain
from tars import pack
from zsqretrieval.data.images import as_image
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder

NAMES = tuple(COLOURS)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_plain(tmp_path / "photos", NAMES[:4], (8, 8))


@pytest.fixture
def album(tmp_path: Path, photos: Path) -> Iterator[Retriever]:
    with Retriever(ToyEncoder(), path=tmp_path / "album") as made:
        made.add(photos)
        yield made


def ids(retriever: Retriever) -> list[str]:
    assert len(retriever.search("red", 50)) == len(retriever), "the index is in step"
    return sorted(record.id for record in retriever.records())


def test_additions_moves_changes_and_removals_are_reported_before_and_made_after(
    album: Retriever, photos: Path
) -> None:
    (photos / "blue.png").unlink()
    (photos / "red.png").rename(photos / "rouge.png")
    (photos / "green.png").write_bytes(png((1, 2, 3)))
    (photos / "new.png").write_bytes(png((9, 9, 9)))
    (photos / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    before = ids(album)
    dry = album.sync(photos, dry_run=True)
    assert ids(album) == before
    done = album.sync([photos])
    assert dry.dry_run and not done.dry_run
    for report in (dry, done):
        assert (report.added, report.moved, report.replaced) == (("new.png",), ("rouge.png",), ("green.png",))
        assert (report.removed, report.known, len(report.skipped)) == (("blue.png",), 1, 1)
    assert ids(album) == ["green.png", "new.png", "rouge.png", "yellow.png"]
    assert repr(done).startswith("SyncReport(added=1, replaced=1, moved=1, updated=0, known=1, skipped=1, ")
    again = album.sync(photos)
    assert (again.known, again.removed, again.added) == (4, (), ())
    album._catalog.verify()


def test_exif_and_rules_of_laion_are_as_asked_for(album: Retriever, photos: Path) -> None:
    exif = PILImage.Exif()
    exif[0x0110] = "camera"
    PILImage.new("RGB", (8, 8), "white").save(photos / "new.jpg", exif=exif)
    (photos / "unsafe.png").write_bytes(png((7, 7, 7)))
    (photos / "unsafe.json").write_text('{"punsafe": 0.9}')
    assert album.sync(photos, exif=False).denied == {"unsafe": 1}
    assert album.find("new.jpg").metadata == {}  # type: ignore[union-attr]
    assert album.sync(photos, safety=None).added == ("unsafe.png",)
    (photos / "other.jpg").write_bytes((photos / "new.jpg").read_bytes() + b"end")
    album.sync(photos)
    assert album.find("other.jpg").metadata == {"camera": "camera"}  # type: ignore[union-attr]


def test_images_from_elsewhere_stay(album: Retriever, photos: Path, tmp_path: Path) -> None:
    album.add(png((5, 5, 5)))
    beside = write_plain(tmp_path / "photos2", ("cyan",))  # begins with the same name
    album.add(beside)
    shutil.rmtree(beside)
    (photos / "red.png").unlink()
    assert album.sync(photos).removed == ("red.png",)
    assert "cyan.png" in album and len(album) == 5


def test_image_whose_file_is_a_folder_now_is_removed(album: Retriever, photos: Path) -> None:
    (photos / "red.png").unlink()
    (photos / "red.png").mkdir()
    assert album.sync(photos).removed == ("red.png",)


def test_file_moved_between_folders_is_followed(album: Retriever, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (photos / "red.png").rename(other / "red.png")
    report = album.sync([photos, other])
    assert (report.moved, report.removed) == (("red.png",), ())


def emptied(photos: Path) -> Path:
    for file in photos.iterdir():
        file.unlink()
    return photos


def deleted(photos: Path) -> Path:
    shutil.rmtree(photos)
    return photos


def a_file(photos: Path) -> Path:
    return photos / "red.png"


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (emptied, AlbumError, "holds no images, but 4 of the album come from there.*mounted"),
        (deleted, InvalidInputError, "cannot be listed: No such file.*mounted"),
        (a_file, InvalidInputError, "cannot be listed: Not a directory"),
        (lambda photos: "", InvalidInputError, "cannot be listed: it is no folder"),
        (lambda photos: ["a\0b"], InvalidInputError, "cannot be listed: it is no folder"),
    ],
)
def test_missing_or_empty_folder_removes_nothing(
    album: Retriever, photos: Path, change: Callable[[Path], Path], error: type[Exception], said: str,
    dry_run: bool,
) -> None:  # fmt: skip
    with pytest.raises(error, match=said):
        album.sync(change(photos), dry_run=dry_run)
    assert len(album) == 4


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_folder_without_permission_keeps_its_images(album: Retriever, photos: Path) -> None:
    inner = write_plain(photos / "inner", ("black",))
    album.sync(photos)
    inner.chmod(0)
    try:
        assert album.sync(photos).removed == ()
    finally:
        inner.chmod(0o700)


def test_member_is_removed_when_its_tar_lacks_it_but_not_when_the_tar_is_damaged(
    album: Retriever, photos: Path, tmp_path: Path
) -> None:
    tar = photos / "shard.tar"
    pack(tar, {"a.png": png((1, 1, 1)), "b.png": png((2, 2, 2)), "c.png": png((3, 3, 3))})
    album.sync(photos)
    assert len(album) == 7
    whole = tar.read_bytes()
    tar.write_bytes(whole[:700])
    assert album.sync(photos).removed == () and len(album) == 7
    pack(tar, {"a.png": png((1, 1, 1)), "c.png": png((3, 3, 3))})
    assert album.sync(photos).removed == ("shard/b",)
    tar.unlink()
    assert len(album.sync(photos).removed) == 2


def test_tar_behind_a_link_that_is_not_listed_keeps_its_members(
    album: Retriever, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "far").mkdir()
    pack(tmp_path / "far/x.tar", {"a.png": png((1, 1, 1))})
    (photos / "link").symlink_to(tmp_path / "far")
    album.add(photos / "link/x.tar")
    assert album.sync(photos).removed == () and len(album) == 5


def test_kept_bytes_of_removed_images_are_deleted(tmp_path: Path, photos: Path) -> None:
    with Retriever(ToyEncoder(), path=tmp_path / "copies") as album:
        album.sync(photos, copy=True)
        (photos / "red.png").unlink()
        assert album.sync(photos, dry_run=True).removed == ("red.png",)
        assert len(list((tmp_path / "copies/images").iterdir())) == 4
        album.sync(photos)
        assert len(list((tmp_path / "copies/images").iterdir())) == 3


FILES = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4), max_size=4)


@settings(max_examples=12, deadline=None)
@given(st.lists(FILES.filter(bool), min_size=2, max_size=3))
def test_album_in_step_has_the_images_of_the_folder_whatever_happened(
    tmp_path_factory: pytest.TempPathFactory, states: list[dict[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("photos")
    with Retriever(ToyEncoder()) as album:
        for files in states:
            for file in folder.iterdir():
                file.unlink()
            for name, number in files.items():
                (folder / f"{name}.png").write_bytes(png((60 * number, 0, 0)))
            dry = album.sync(folder, dry_run=True, batch_size=2)
            done = album.sync(folder, batch_size=2)
            for field in ("added", "replaced", "moved", "updated", "known", "removed"):
                assert getattr(dry, field) == getattr(done, field)
            assert len(album) == len(set(files.values()))
            for record in album.records():
                number = files[record.id.split(".")[0].split("#")[0]]
                expected = ToyEncoder().encode_image([as_image(png((60 * number, 0, 0)))])[0]
                np.testing.assert_allclose(album.vector(record.id), expected, atol=1e-6)
