"""Albums and models in other processes: forked with their memory, or opened again from a pickle."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tiny_vlms
from plain import picture, plain
from processes import METHODS, adding, elsewhere, scores, started
from tiny_clip import tiny_clip
from tiny_kosmos import tiny_kosmos
from zsqretrieval._util.files import locked
from zsqretrieval.album.edits import remove
from zsqretrieval.encoders.clip import CLIPEncoder
from zsqretrieval.errors import AlbumError
from zsqretrieval.generators.lazy import LazyGenerator
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.mini.encoder import MiniEncoder
from zsqretrieval.presets import Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.search.fusion import RerankOnly
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator, ToyIndex

QUESTION = "what is the colour of the red house"


@pytest.fixture
def toy(album: Path) -> Iterator[Retriever]:
    with Retriever(ToyEncoder(), path=album) as retriever:
        retriever.add(map(picture, COLOURS))
        yield retriever


@pytest.fixture(scope="module")
def albums(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Retriever]]:
    """All encoders and generators, on disk, in a process whose OpenMP has threads."""
    folder = tmp_path_factory.mktemp("albums")
    for name in ("red", "green", "blue"):
        plain(name, (40, 30)).save(folder / f"{name}.png")
    tiny_kosmos().save_pretrained(folder / "kosmos")
    tiny_vlms.idefics3(folder / "vlm")
    tiny_clip(folder)
    clip = CLIPEncoder.from_pretrained(f"local-dir:{folder}", device="cpu")
    parts = {
        "mini": (MiniEncoder.from_pretrained(device="cpu"), {}),
        "kosmos": (clip, {"name": str(folder / "kosmos")}),
        "vlm": (clip, {"name_or_path": str(folder / "vlm")}),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    with contextlib.ExitStack() as stack:
        retrievers = [
            stack.enter_context(
                Retriever(
                    encoder,
                    None,
                    LazyGenerator(name, {**config, "dtype": "float32"}),
                    path=folder / f"{name}.album",
                )
            )
            for name, (encoder, config) in parts.items()
        ]
        for one in retrievers:
            one.add(folder / "*.png")
        yield retrievers
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
def test_search_in_another_process_gives_the_same_scores(method: str, albums: list[Retriever]) -> None:
    expected = scores(albums, QUESTION)
    found = elsewhere(method, scores, albums, QUESTION)
    assert found == [pytest.approx(one, rel=1e-3, abs=1e-3) for one in expected]


@pytest.mark.parametrize("method", METHODS)
def test_image_added_in_another_process_is_in_the_album_of_both(method: str, toy: Retriever) -> None:
    assert elsewhere(method, adding, toy, picture("cyan")) == [*COLOURS, "cyan"]
    assert adding(toy, picture("pink")) == [*COLOURS, "cyan", "pink"]
    assert [hit.id for hit in toy.search(picture("cyan"), 1)] == ["cyan"]


def test_forked_process_adds_after_its_parent_has_closed_the_album(toy: Retriever, album: Path) -> None:
    """The last of the parent's connections deletes the journal, which must not be the one that is written."""
    closed = multiprocessing.get_context("fork").Event()
    with started("fork", adding, toy, picture("cyan"), closed) as added:
        toy.close()
        closed.set()
        assert added() == [*COLOURS, "cyan"]
    with Retriever.open(album, encoder=ToyEncoder()) as again:
        assert "cyan" in again and len(again) == len(COLOURS) + 1
        again._catalog.verify()


def test_forked_process_does_not_open_an_album_that_took_the_place(toy: Retriever, album: Path) -> None:
    replaced = multiprocessing.get_context("fork").Event()
    with started("fork", adding, toy, picture("cyan"), replaced) as added:
        shutil.rmtree(album)
        Retriever(ToyEncoder(), path=album).close()
        replaced.set()
        with pytest.raises(AlbumError, match="was moved, deleted or replaced"):
            added()


def test_fork_beside_busy_threads_leaves_no_lock_held(toy: Retriever) -> None:
    """As when other threads of the parent search, add and save."""
    held, done = threading.Event(), threading.Event()

    def busy() -> None:
        with (
            toy._index._lock, toy._saving, toy.index._lock.exclusive(), toy.index._writing,  # type: ignore[attr-defined]
            toy._question_index._lock,
        ):  # fmt: skip
            held.set()
            done.wait()

    thread = threading.Thread(target=busy)
    thread.start()
    held.wait()
    try:
        with started("fork", adding, toy, picture("cyan"), seconds=20) as added:
            assert "cyan" in added()
    finally:
        done.set()
        thread.join()


def test_fork_waits_for_a_transaction_of_another_thread(toy: Retriever) -> None:
    held = threading.Event()

    def busy() -> None:
        with toy._catalog.transaction():
            held.set()
            time.sleep(0.3)
            remove(toy._catalog, ["red"])

    thread = threading.Thread(target=busy)
    thread.start()
    held.wait()
    assert elsewhere("fork", adding, toy, picture("cyan")) == [*list(COLOURS)[1:], "cyan"]
    thread.join()


def test_album_in_memory_is_a_copy_in_a_forked_process() -> None:
    with Retriever(ToyEncoder()) as retriever:
        retriever.add(map(picture, COLOURS))
        assert elsewhere("fork", adding, retriever, picture("cyan")) == [*COLOURS, "cyan"]
        assert "cyan" not in retriever


def test_closed_album_stays_closed_in_a_forked_process(toy: Retriever) -> None:
    toy.close()
    with pytest.raises(AlbumError, match="was closed"):
        elsewhere("fork", adding, toy, picture("cyan"))


def test_folder_lock_ends_with_its_block_although_a_forked_process_runs_on(tmp_path: Path) -> None:
    with contextlib.ExitStack() as stack:
        with locked(tmp_path, exclusive=True):
            stack.enter_context(started("fork", time.sleep, 100))
        elsewhere("fork", lock_at_once, tmp_path)


def lock_at_once(path: Path) -> None:
    fcntl.flock(os.open(path, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)


# --- pickles


def test_pickled_retriever_opens_the_album_with_the_same_parts(toy: Retriever, album: Path) -> None:
    calibration = Calibration(fusion=RerankOnly())
    generator = ToyGenerator()
    with (
        Retriever.open(
            album, encoder=ToyEncoder(), generator=generator, index=ExactIndex(16), calibration=calibration,
        ) as given,
        pickle.loads(pickle.dumps(given)) as again,
    ):  # fmt: skip
        assert again.path == album and again.calibration == calibration
        assert isinstance(again.encoder, ToyEncoder) and isinstance(again.index, ExactIndex)
        assert again.generator.fingerprint == generator.fingerprint
        assert again.search("a red house", rerank=None).hits == given.search("a red house", rerank=None).hits


@pytest.mark.parametrize("trusted", [True, False])
def test_pickled_retriever_trusts_the_album_as_before(trusted: bool, toy: Retriever, album: Path) -> None:
    with Retriever.open(album, encoder=ToyEncoder(), trust_parts=trusted) as given:
        packed = pickle.dumps(given)
    toy.close()
    Retriever(ToyEncoder(), HNSWIndex(16, M=300), path=album.with_name("other")).close()
    shutil.copy(album.with_name("other") / "catalog.sqlite", album)
    with contextlib.nullcontext() if trusted else pytest.raises(AlbumError, match="asks for the index"):
        pickle.loads(packed).close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: Retriever(ToyEncoder()), "in memory cannot be pickled; save"),
        (
            lambda path: Retriever(ToyEncoder(), ToyIndex(16), path=path),
            "its ToyIndex is not a plugin; open it",
        ),
    ],
)
def test_retriever_that_cannot_be_reopened_is_not_pickled(
    make: Callable[[Path], Retriever], message: str, album: Path
) -> None:
    with make(album) as retriever, pytest.raises(AlbumError, match=message):
        pickle.dumps(retriever)


def test_pickle_of_an_album_that_is_gone_is_an_album_error(toy: Retriever, album: Path) -> None:
    packed = pickle.dumps(toy)
    shutil.rmtree(album)
    with pytest.raises(AlbumError, match="is not an album"):
        pickle.loads(packed)
