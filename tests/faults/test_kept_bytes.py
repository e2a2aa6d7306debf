"""An image that is no file stays in the album: its bytes are on disk before its record, and go with it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage

from seeing import Seeing
from strangers import HUGE
from tars import pack
from zsqretrieval import Image, Retriever
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.album.info import describe_album
from zsqretrieval.album.ingest import Adder
from zsqretrieval.album.kept import IMAGES, KeptImages
from zsqretrieval.data.images import read_bytes
from zsqretrieval.errors import AlbumError, ImageError, IntegrityError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.search.display import thumbnails
from zsqretrieval.testing.pictures import painting
from zsqretrieval.testing.toys import ToyEncoder

ENCODER = ToyEncoder()


def made(path: Path | None) -> Retriever:
    return Retriever(ENCODER, ExactIndex(ENCODER.dim), Seeing(), path=path, states=None)


def opened(path: Path) -> Retriever:
    return Retriever.open(path, encoder=ENCODER, generator=Seeing(), states=None)


def pictures(count: int = 3) -> list[PILImage.Image]:
    return [painting(seed) for seed in range(count)]


def kept(album: Path) -> set[str]:
    return {file.name for file in album.glob(f"{IMAGES}/*")}


def scored(album: Retriever) -> bool:
    """Whether the generator sees every image; the ranking is JSON."""
    ranking = album.search("red ?", 50)
    json.dumps(asdict(ranking), allow_nan=False)
    return all(hit.score is not None and "likelihood" in hit.scores for hit in ranking)


@pytest.mark.parametrize("in_memory", [False, True])
def test_bytes_and_pictures_are_shown_to_the_generator_later(album: Path, in_memory: bool) -> None:
    lazy = Image(read_bytes(pictures(5)[4]), "https://example.org/a.jpg", id="mine")
    with made(None if in_memory else album) as first:
        first.add([*pictures(), read_bytes(pictures(4)[3]), lazy])
        assert scored(first)
        first.save(album)
        assert scored(first)
        first.add(pictures(6))
        digests = {record.digest for record in first.records()}
        with first.files() as files:
            assert len(thumbnails(first.search("red", 9, rerank=None), files)) == 8
    assert kept(album) == digests
    assert describe_album(album).bytes_on_disk["images"] == sum(
        file.stat().st_size for file in (album / IMAGES).iterdir()
    )
    with opened(album) as again:
        assert len(again) == 8 and scored(again)
        again._catalog.verify()


def test_files_and_members_of_tars_are_kept_on_request_only(album: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for n, picture in enumerate(pictures(4)):
        picture.save(photos / f"{n}.png")
    pack(tmp_path / "photos.tar", {"0.png": (photos / "0.png").read_bytes()})
    (photos / "0.png").unlink()
    with PILImage.open(photos / "1.png") as from_file, made(album) as retriever:
        retriever.add(
            [photos, tmp_path / "photos.tar", from_file, {"image": photos / "2.png", "caption": "a"}]
        )
        retriever.add((photos / "3.png").read_bytes())  # known, as a file
        assert kept(album) == set()
        report = retriever.add([photos, tmp_path / "photos.tar", from_file], copy=True)
        assert report.added == () and len(kept(album)) == len(retriever) == 5
        with made(None) as other:
            assert other.add(photos, copy=True).added == ("1.png", "2.png", "3.png")
    shutil.rmtree(photos)
    (tmp_path / "photos.tar").unlink()
    with opened(album.rename(tmp_path / "moved")) as travelled:
        assert scored(travelled)


def test_bytes_beside_another_file_of_that_name_are_kept(album: Path, tmp_path: Path) -> None:
    large, small = pictures(2)
    large.save(tmp_path / "large.png")
    with made(album) as retriever:
        retriever.add(Image(read_bytes(small), str(tmp_path / "large.png")))
        assert scored(retriever) and len(kept(album)) == 1


def test_removed_and_replaced_images_lose_their_bytes(album: Path) -> None:
    first, second, third = map(read_bytes, pictures(3))
    with made(album) as retriever:
        retriever.add([Image(first, "camera", id="a"), second])
        (replaced,) = retriever.add(Image(third, "camera", id="a")).replaced
        assert kept(album) == {record.digest for record in retriever.records()} and replaced == "a"
        retriever.remove([record.id for record in retriever.records()])
        assert kept(album) == set()
        (album / IMAGES / ("0" * 64)).write_bytes(b"of a killed process")
        (album / IMAGES / f".{'0' * 64}.0123456789abcdef.tmp").write_bytes(b"")
        retriever.save()
        assert kept(album) == set()


@pytest.mark.parametrize("fails", [(KeptImages, "put"), (Catalog, "add")])
def test_failure_adds_neither_bytes_nor_records_for_good(
    fails: tuple[type, str], album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(album) as retriever:
        retriever.add(pictures(1))
        with monkeypatch.context() as patch:
            patch.setattr(*fails, _refuse)
            with pytest.raises(AlbumError, match="disk is full"):
                retriever.add(pictures(3))
        assert len(retriever) == 1 and scored(retriever)
        retriever.save()
        assert len(kept(album)) == 1
        retriever.add(pictures(3))
        assert len(retriever) == 3 and scored(retriever)


def _refuse(*_: object) -> None:
    raise AlbumError("the disk is full")


def test_full_disk_is_an_album_error(album: Path) -> None:
    with made(album) as retriever:
        (album / IMAGES).write_text("in the way")
        with pytest.raises(AlbumError, match=r"images: bytes of images cannot be kept"):
            retriever.add(pictures(1))
        assert len(retriever) == 0


def test_image_added_again_while_it_is_removed_keeps_its_bytes(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_bytes(pictures(1)[0])
    with made(album) as first, opened(album) as second:
        first.add(content)
        sweep = Catalog.sweep_kept

        def late(catalog: Catalog, digests: Any = None) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Catalog, "sweep_kept", sweep)
                second.add(content)
            sweep(catalog, digests)

        monkeypatch.setattr(Catalog, "sweep_kept", late)
        first.remove(next(first.records()).id)
        assert len(first) == len(kept(album)) == 1 and scored(first)


def test_bytes_that_are_about_to_be_deleted_are_written_again(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = read_bytes(pictures(1)[0])
    sweep, to_keep = Catalog.sweep_kept, Adder._to_keep
    with made(album) as first, opened(album) as second:
        first.add(content)
        with monkeypatch.context() as patch:
            patch.setattr(Catalog, "sweep_kept", lambda *_: None)
            first.remove(next(first.records()).id)

        def early(*arguments: Any) -> dict[str, bytes]:
            found = to_keep(*arguments)
            sweep(first._catalog)
            return found

        monkeypatch.setattr(Adder, "_to_keep", early)
        second.add(content)
        assert len(second) == len(kept(album)) == 1 and scored(second)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _sparse(file: Path) -> None:
    with file.open("r+b") as handle:
        handle.truncate(HUGE)


def _bomb(file: Path) -> None:  # above 2^30 pixels
    PILImage.new("1", (40_000, 30_000)).save(file, "PNG")


@pytest.mark.parametrize("damage", [_flip, _sparse, _bomb, lambda file: file.write_bytes(b"")])
def test_damaged_bytes_are_named_and_mended_by_adding_again(
    damage: Callable[[Path], Any], album: Path
) -> None:
    with made(album) as retriever:
        retriever.add(pictures(3))
        record = next(retriever.records())
        damage(album / IMAGES / record.digest)
        with pytest.raises(IntegrityError, match=f"{record.digest} is damaged"):
            retriever._catalog.verify()
        with retriever.files() as files, pytest.raises(ImageError, match=r"damaged|too large|empty"):
            files.open(record.source, record.digest)
        with pytest.warns(RuntimeWarning, match="1 of 3 candidates cannot be opened"):
            assert retriever.search("red ?")[-1].score is None
        retriever.add(pictures(3))
        retriever._catalog.verify()
        assert scored(retriever)


def test_damaged_copy_of_a_file_that_is_there_does_no_harm(album: Path, tmp_path: Path) -> None:
    pictures(1)[0].save(tmp_path / "0.png")
    with made(album) as retriever:
        retriever.add(tmp_path / "0.png", copy=True)
        _flip(next((album / IMAGES).iterdir()))
        assert scored(retriever)
        with pytest.raises(IntegrityError, match="is damaged"):
            retriever._catalog.verify()
        retriever.add(tmp_path / "0.png", copy=True)
        retriever._catalog.verify()


def test_lost_bytes_are_named_and_mended_by_adding_again(album: Path) -> None:
    with made(album) as retriever:
        retriever.add(pictures(2))
        shutil.rmtree(album / IMAGES)
        with pytest.warns(RuntimeWarning, match="2 of 2 candidates cannot be opened"):
            retriever.search("red ?")
        retriever.add(pictures(2))
        assert scored(retriever)


def test_kept_bytes_of_a_stranger_open_no_other_file(album: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(read_bytes(pictures(2)[1]))
    with made(album) as retriever:
        retriever.add(pictures(1))
    images = KeptImages(album / IMAGES)
    for digest in ("../../secret", str(tmp_path / "secret"), "", ".", "x" * 5000, "nul\0"):
        assert images.get(digest) is None
        images.sweep(lambda _: (), [digest])
    assert (tmp_path / "secret").exists()
    (file,) = (album / IMAGES).iterdir()
    file.unlink()
    file.symlink_to(tmp_path / "secret")
    with pytest.raises(AlbumError, match="is a link, not a file"):
        opened(album)
    shutil.rmtree(album / IMAGES)
    (album / IMAGES).symlink_to(tmp_path)
    with pytest.raises(AlbumError, match="is a link, not a folder"):
        opened(album)


def test_album_made_before_a_folder_of_images_is_read_without_one(album: Path) -> None:
    made(album).close()
    with opened(album) as retriever, warnings.catch_warnings():
        retriever.save()
        assert not (album / IMAGES).exists() and describe_album(album).bytes_on_disk["images"] == 0
