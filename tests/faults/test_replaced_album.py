"""An album that is moved, deleted or replaced while it is open: nothing is written to the wrong place."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plain import picture
from zsqretrieval.album.info import CATALOG
from zsqretrieval.errors import AlbumError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder


def make(path: Path, *names: str) -> None:
    with Retriever(ToyEncoder(), path=path) as retriever:
        retriever.add(map(picture, names))
        retriever.save()


@pytest.fixture
def opened(album: Path) -> Iterator[Retriever]:
    make(album, *COLOURS)
    with Retriever.open(album, encoder=ToyEncoder()) as retriever:
        yield retriever


def deleted(album: Path) -> None:
    shutil.rmtree(album)


def renamed(album: Path) -> None:
    album.rename(album.with_name("renamed"))


def renamed_and_made_anew(album: Path) -> None:
    renamed(album)
    make(album, "cyan", "pink")


def replaced(album: Path) -> None:
    shutil.rmtree(album)
    make(album, "cyan", "pink")


def restored(album: Path) -> None:
    """As most programs restore a file: written beside the old one, and renamed."""
    make(album.with_name("backup"), "cyan", "pink")
    (album.with_name("backup") / CATALOG).replace(album / CATALOG)


def catalog_deleted(album: Path) -> None:
    (album / CATALOG).unlink()


def journal_deleted(album: Path) -> None:
    (album / f"{CATALOG}-wal").unlink()


def files(album: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in album.rglob("*") if file.is_file()}


WRITES: list[Callable[[Retriever], object]] = [
    lambda opened: opened.add(picture("magenta")),
    lambda opened: opened.remove("red"),
    lambda opened: opened.save(),
]


@pytest.mark.parametrize(
    "change",
    [
        deleted, renamed, renamed_and_made_anew, replaced, restored, catalog_deleted, journal_deleted,
    ],
)  # fmt: skip
def test_write_after_a_change_of_place_is_refused_and_touches_no_file(
    change: Callable[[Path], None], opened: Retriever, album: Path
) -> None:
    change(album)
    before = files(album)
    for write in WRITES:
        with pytest.raises(AlbumError, match="was moved, deleted or replaced"):
            write(opened)
    assert files(album) == before
    assert len(opened.search("red")) == len(COLOURS), "what was open can still be searched"


def test_new_album_in_the_same_place_is_whole_after_the_old_one_is_closed(
    opened: Retriever, album: Path
) -> None:
    replaced(album)
    opened.close()
    with Retriever.open(album, encoder=ToyEncoder()) as again:  # a rebuilt index would warn
        assert {record.id for record in again.records()} == {"cyan", "pink"}
        again._catalog.verify()


def test_deleted_index_folders_are_written_again(opened: Retriever, album: Path) -> None:
    opened.search("red")  # loads the index
    for folder in album.glob("index-*"):
        shutil.rmtree(folder)
    opened.add(picture("magenta"))
    opened.save()
    opened.close()
    with Retriever.open(album, encoder=ToyEncoder()) as again:
        assert "magenta" in again


def test_album_by_a_link_or_a_relative_path_is_written_as_before(
    album: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(album, "red")
    album.with_name("link").symlink_to(album)
    monkeypatch.chdir(album.parent)
    for path in ("link", "album"):
        with Retriever.open(path, encoder=ToyEncoder()) as retriever:
            monkeypatch.chdir("/")
            retriever.add(picture(path.replace("link", "blue").replace("album", "green")))
            retriever.save()
            monkeypatch.chdir(album.parent)
    with Retriever.open(album, encoder=ToyEncoder()) as again:
        assert len(again) == 3
