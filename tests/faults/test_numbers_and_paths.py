"""Numbers beyond all bounds, values of another type, and paths that are odd or belong to no file."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plain import plain, write_plain
from refusing import refused
from zsqretrieval._util.files import write_whole
from zsqretrieval.data.sources import open_images
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import WeightedSum
from zsqretrieval.search.rerank import Rerank
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator

HUGE = [10**9, 2**31, 2**63, 10**400, 10**5000]  # the last one cannot even be written in an error message


def kind(value: object) -> str:
    return type(value).__name__


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_plain(tmp_path / "colours", COLOURS)


@pytest.fixture
def colours(folder: Path, album: Path) -> Iterator[Retriever]:
    with Retriever(ToyEncoder(), generator=ToyGenerator(), path=album) as retriever:
        retriever.add(folder)
        yield retriever


# --- numbers


@pytest.mark.parametrize("k", HUGE, ids=["1e9", "2**31", "2**63", "1e400", "1e5000"])
def test_huge_number_of_results_is_the_number_of_images(k: int, colours: Retriever) -> None:
    """By memory: with 10**9 results of a query an index would allocate 12 GB."""
    everything = len(COLOURS)
    assert len(colours.search("red", k, rerank=None)) == everything
    assert len(colours.search(plain(), k)) == everything
    assert len(colours.search("red", k, rerank=None, bank=colours.query_bank(["a dog"]))) == everything
    assert len(colours.search("red", 2, rerank=Rerank(candidates=k, batch_size=k))) == 2
    assert len(colours.rank_texts(plain(), ["a", "b"], k, rerank=None)) == 2
    assert len(colours.dialog("red", candidates=k, budget=k).ranking) == everything
    report = colours.questions.generate(n=1, style="search", top_k=k, batch_size=k)
    assert report.asked == everything
    assert colours.questions.filter(k, batch_size=k).questions == report.questions > 0
    assert colours.add(plain("pink"), batch_size=k).added


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *(("n", n, "n must be at most 10000") for n in (10_001, 10**9, 10**400, 10**5000)),
        *(("max_new_tokens", n, "max_new_tokens must be at most") for n in (2**31, 10**400, 10**5000)),
        *(("seed", n, "seed must be at most") for n in (2**129, 10**400, 10**5000)),
        *(("temperature", n, "temperature must be 0 or at least 1e-6") for n in (5e-324, 1e-320, 1e-7)),
    ],
    ids=kind,
)
def test_number_that_no_text_can_be_drawn_with_is_refused(
    name: str, value: float, message: str, colours: Retriever
) -> None:
    refused(message, colours.questions.generate, **{name: value})


@pytest.mark.parametrize(
    "k",
    [0, -1, -(10**400), -(10**5000), True, 2.0, np.float32(2), float("nan"), 1j, "3", None, np.array([3])],
    ids=kind,
)
def test_number_of_results_that_is_no_count_is_refused(k: Any, colours: Retriever) -> None:
    refused("k must be", colours.search, "red", k)
    refused("candidates must be", colours.dialog, "red", candidates=k)
    refused("candidates must be", Rerank, candidates=k)
    refused("batch_size must be", colours.add, [], batch_size=k)
    if k is not None:
        refused("k must be", colours.rank_texts, plain(), ["a"], k)


@pytest.mark.parametrize("k", [np.int64(3), np.int8(3), np.uint64(3)])
def test_integers_of_numpy_are_counts(k: Any, colours: Retriever) -> None:
    assert len(colours.search("red", k, rerank=Rerank(candidates=k))) == 3


@pytest.mark.parametrize(
    "amount", [10**400, 10**5000, -(10**400), float("inf"), True, "1", None, 1j], ids=kind
)
def test_amount_that_is_no_finite_number_is_refused(amount: Any) -> None:
    refused("weight must be a finite number", WeightedSum, amount)


@pytest.mark.parametrize("make", [ExactIndex, CompressedIndex, HNSWIndex])
@pytest.mark.parametrize("number", [10**400, 10**5000, -(10**5000), True, 1.5, "1"], ids=kind)
def test_number_that_an_index_cannot_use_is_refused(number: Any, make: Callable[..., Any]) -> None:
    refused("dim must be an integer", make, number)
    refused("k must be an integer", make(4).search, np.eye(4, dtype=np.float32), number)
    refused("keys", make(4).remove, [number])


# --- ids


@pytest.mark.parametrize(
    "ids",
    [None, 5, object(), ["red.png", None], [["red.png"]], [10**5000], b"red.png", {"red.png": 1, "x": 2}],
    ids=kind,
)
def test_ids_of_another_type_are_refused_and_nothing_is_removed(ids: Any, colours: Retriever) -> None:
    refused("ids", colours.remove, ids)
    assert len(colours) == len(COLOURS)


@pytest.mark.parametrize("id", [None, 5, 10**400, [], {}, b"red.png", object()], ids=kind)
def test_id_of_another_type_is_not_found(id: Any, colours: Retriever) -> None:
    assert colours.find(id) is None
    assert id not in colours


# --- paths of albums


@pytest.mark.parametrize("path", ["", "a\0b", "\0", "x" * 300, "x/" * 3000, "\ud800"])
def test_path_that_no_album_can_have_is_an_album_error(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (
        lambda: Retriever(ToyEncoder(), path=path),
        lambda: Retriever(ToyEncoder()).save(path),
        lambda: Retriever.open(path),
        lambda: Retriever(ToyEncoder())._catalog.backup(path or "/"),
    ):
        with pytest.raises(AlbumError):
            use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", [5, b"album", 10**400, ["album"], True], ids=kind)
def test_album_path_of_another_type_is_refused(path: Any) -> None:
    refused("must be a str or a pathlib.Path", Retriever.open, path)
    refused("must be a str or a pathlib.Path", Retriever, ToyEncoder(), path=path)
    refused("must be a str or a pathlib.Path", Retriever(ToyEncoder()).save, path)
    refused("there is no preset", Retriever.open, "x", path)


@pytest.mark.parametrize("index", [ExactIndex, CompressedIndex, HNSWIndex])
@pytest.mark.parametrize("name", [b"Bilder-\xe4", b"\xff\xfe", b"a?b#c%20", b"new\nline", "日本".encode()])
def test_album_at_any_path_of_the_system_can_be_saved_and_opened(
    name: bytes, index: Any, tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / os.fsdecode(name) / "x.album"
    made = index(16)
    with Retriever(ToyEncoder(), made, path=path) as retriever:
        retriever.add(folder)
        retriever.save()
    with Retriever.open(path, encoder=ToyEncoder()) as again:  # a rebuilt index would warn
        assert again.search("red", 1)[0].id == "red.png"


# --- paths of images


def test_names_of_which_one_is_the_escape_of_the_other_are_two_images(album: Path, tmp_path: Path) -> None:
    names = [b"\xe4.png", rb"\xe4.png", rb"\x5cxe4.png", b"\\\xe4.png", rb"\x5c\xe4.png", rb"\X.png"]
    for number, name in enumerate(names):
        plain((40 * number, 0, 9)).save(tmp_path / os.fsdecode(name))
    with Retriever(ToyEncoder(), generator=ToyGenerator(), path=album) as retriever:
        first = retriever.add(tmp_path / "*.png")
        assert len(first.added) == len({record.source for record in retriever.records()}) == len(names)
        again = retriever.add(tmp_path / "*.png")
        assert again.known == len(names) and not again.replaced and not again.moved
        for image in open_images(tmp_path / "*.png"):  # every source leads back to its own file
            assert retriever.search(image, 1)[0].source == image.source
        assert len(retriever.search("red")) == len(names)  # an image that cannot be opened would warn


@pytest.mark.parametrize("path", ["a\0b.png", "\ud800.png", "x" * 300, "x/" * 3000])
def test_path_that_no_file_can_have_is_skipped_with_its_reason(path: str, colours: Retriever) -> None:
    report = colours.add([path, plain("pink")])
    assert len(report.added) == len(report.skipped) == 1
    with pytest.raises(InvalidInputError, match=r"cannot be opened|no such file"):
        colours.search(Path(path))


@pytest.fixture
def deep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an image 1,500 folders below."""
    folder = tmp_path / "deep"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for _ in range(1500):
        Path("d").mkdir()
        os.chdir("d")
    plain("red").save("red.png")
    monkeypatch.chdir(tmp_path)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def test_folders_nested_1500_deep_are_read(deep: Path, album: Path) -> None:
    with Retriever(ToyEncoder(), path=album) as retriever:
        assert len(retriever.add(deep.name).added) == 1
        with contextlib.suppress(InvalidInputError):  # where glob recurses
            assert retriever.add(f"{deep.name}/**/*.png").known == 1


# --- files that are written


@pytest.fixture
def terminal() -> Iterator[Path]:
    """A device in a folder where no file can be made; a test that fails on /dev/null would delete it."""
    here, there = os.openpty()
    yield Path(os.ttyname(there))
    os.close(here)
    os.close(there)


def test_page_goes_into_a_device_and_leaves_it(terminal: Path) -> None:
    write_whole(terminal, ["a page"])
    assert stat.S_ISCHR(terminal.stat().st_mode)


def test_page_goes_into_a_pipe_that_somebody_reads(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="No such device or address"):  # rather than a wait without end
        write_whole(pipe, ["a page"])
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_whole(pipe, ["a ", "page"])
    assert os.read(reader, 100) == b"a page" and stat.S_ISFIFO(pipe.stat().st_mode)
    os.close(reader)


def test_page_goes_into_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "page.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target)
    write_whole(link, ["new"])
    assert link.is_symlink() and target.read_text() == "new" and len(list(tmp_path.iterdir())) == 2
