"""Another encoder for an album that is searched meanwhile."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plain import picture, plain, write_plain
from zsqretrieval import Field, Ranking
from zsqretrieval.album.reencode import Reencoding
from zsqretrieval.album.sync import IndexSync
from zsqretrieval.data.images import as_image
from zsqretrieval.errors import AlbumError, InvalidInputError
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.presets import Calibration
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyIndex, ToyStatesGenerator
from zsqretrieval.types import Image

NAMES = tuple(COLOURS)


class Longer:
    """The toy's vectors in reverse, and as many zeros in front; ``hook`` runs before each batch."""

    dim = 32
    fingerprint = "longer-encoder"

    def __init__(self, hook: Callable[[], object] = lambda: None) -> None:
        self.hook, self.encoded = hook, 0

    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> NDArray[np.float32]:
        self.hook()
        self.encoded += len(images)
        return self._longer(ToyEncoder().encode_image(images))

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
        return self._longer(ToyEncoder().encode_text(texts))

    def _longer(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([np.zeros_like(vectors), vectors[:, ::-1]], axis=1)


class Same(Longer):
    """Of the same dim as the old encoder, so that mixing both would not be noticed."""

    dim = 16
    fingerprint = "same-dim-encoder"

    def _longer(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.ascontiguousarray(vectors[:, ::-1])


def make(path: Path | None) -> Retriever:
    retriever = Retriever(ToyEncoder(), generator=ToyStatesGenerator(), path=path)
    retriever.add(map(picture, NAMES))
    return retriever


@pytest.fixture
def opened(album: Path) -> Iterator[Retriever]:
    with make(album) as retriever:
        yield retriever


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zsqretrieval.album.reencode._CHUNK", 2)


def check(retriever: Retriever, encoder: Longer, names: Sequence[str] = NAMES) -> None:
    """The album is whole, and all its vectors are the encoder's."""
    retriever._catalog.verify()
    assert {one.id for one in retriever.records()} == set(names)
    for name in names:
        expected = encoder.encode_image([as_image(picture(name))])[0]
        np.testing.assert_array_equal(retriever.vector(name), expected)
        hit = retriever.search(picture(name), 1)[0]
        assert hit.id == name


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("kind", [Longer, Same])
def test_all_vectors_are_of_the_new_encoder(tmp_path: Path, kind: type[Longer], in_memory: bool) -> None:
    with make(None if in_memory else tmp_path / "album") as retriever:
        retriever.questions.generate(2, style="captions", top_k=None)
        before = [(one.id, one.text, one.judgement) for one in retriever.questions.list()]
        report = retriever.reencode(kind())
        assert (report.images, report.dropped, report.questions) == (6, (), len(before))
        assert repr(report).startswith(f"ReencodeReport(images=6, questions={len(before)}, dropped=0, ")
        check(retriever, kind())
        assert [(one.id, one.text, one.judgement) for one in retriever.questions.list()] == before
        assert {one.recipe.encoder for one in retriever.questions.list()} == {kind.fingerprint}
        assert retriever.questions.generate(2, style="captions", top_k=None).known == 6
        assert retriever.search("red", 1, rerank=None, expand=True)[0].matched_question is not None
        assert retriever.add(picture("cyan")).added == ("cyan",)
        assert retriever.path is None or len(list(retriever.path.glob("states-*"))) <= 1, "of the generator"


def test_album_opens_with_the_new_encoder_only(album: Path) -> None:
    with make(album) as retriever:
        retriever.save()
        retriever.reencode(Longer(), index=ExactIndex(32))
        retriever.save()
    with Retriever.open(album, encoder=Longer()) as again:
        assert isinstance(again.index, ExactIndex)
        check(again, Longer())
    with pytest.raises(ValueError, match="'longer-encoder', but this encoder is 'toy-encoder-1'"):
        Retriever.open(album, encoder=ToyEncoder())


def test_images_added_and_removed_meanwhile_are_there_and_gone(opened: Retriever, album: Path) -> None:
    other = Retriever.open(album, encoder=ToyEncoder())

    def change() -> None:
        encoder.hook = lambda: None
        opened.remove(["red", "black"])
        other.add(picture("magenta"))
        assert opened.search(picture("magenta"), 1)[0].id == "magenta", "the old index answers"

    encoder = Longer(change)
    opened.reencode(encoder)
    names = [*(name for name in NAMES if name not in ("red", "black")), "magenta"]
    opened._catalog.verify()
    assert {one.id for one in opened.records()} == set(names) == {hit.id for hit in opened.search("red", 50)}
    with other, pytest.raises(AlbumError, match=r"another encoder since it was opened.*open it again"):
        other.search("red")
    assert encoder.encoded >= 6


STALE: list[Callable[[Retriever], object]] = [
    lambda stale: stale.add(picture("magenta")),
    lambda stale: stale.search("red", rerank=None),
    lambda stale: stale.vector("red"),
    lambda stale: stale.save(),
    lambda stale: stale.export_embeddings(Path(f"{stale.path}-never")),
    lambda stale: stale.reencode(Longer()),
    lambda stale: stale.questions.generate(1, style="captions", top_k=None),
]


@pytest.mark.parametrize("use", STALE)
def test_other_process_is_told_before_it_mixes_vectors(
    opened: Retriever, album: Path, use: Callable[[Retriever], object]
) -> None:
    with Retriever.open(album, encoder=ToyEncoder(), generator=ToyStatesGenerator()) as stale:
        opened.reencode(Same())
        with pytest.raises(AlbumError, match="another encoder since it was opened"):
            use(stale)
    check(opened, Same())


def test_searches_of_other_threads_answer_throughout(opened: Retriever) -> None:
    stop, answers, errors = threading.Event(), [], []

    def search() -> None:
        while not stop.is_set():
            try:
                answers.append(opened.search("blue", 1, rerank=None)[0].id)
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(3)]
    for thread in threads:
        thread.start()
    for n in range(6):
        opened.reencode((Longer, Same)[n % 2]())
        if n < 2:
            opened.remove(["white", "black"][n])
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors and set(answers) == {"blue"}


def test_interrupted_call_changes_nothing_and_continues(opened: Retriever) -> None:
    def stop() -> None:
        if encoder.encoded >= 4:
            raise KeyboardInterrupt

    encoder = Longer(stop)
    with pytest.raises(KeyboardInterrupt):
        opened.reencode(encoder)
    assert opened.search("red", 1)[0].id == "red" and opened.vector("red").shape == (16,)
    encoder.hook, encoder.encoded = (lambda: None), 0
    opened.reencode(encoder)
    assert encoder.encoded == 2
    check(opened, Longer())


@pytest.mark.parametrize("place", ["_replace_images", "_replace_questions"])
def test_failure_during_the_switch_leaves_the_old_album(
    opened: Retriever, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Reencoding, place, fail)
        with pytest.raises(OSError, match="disk full"):
            opened.reencode(Longer())
    opened.add(picture("magenta"))
    assert opened.search(picture("magenta"), 1)[0].id == "magenta" and opened.vector("red").shape == (16,)
    opened.reencode(Longer())
    check(opened, Longer(), [*NAMES, "magenta"])


def killed(album: Path, after: str) -> None:
    setattr(Reencoding, after, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    Retriever.open(album, encoder=ToyEncoder()).reencode(Longer())


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("after", ["_fill_index", "_replace_questions"])
def test_killed_process_leaves_the_old_album(album: Path, after: str) -> None:
    make(album).close()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        process = multiprocessing.get_context("fork").Process(target=killed, args=(album, after))
        process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    with Retriever.open(album, encoder=ToyEncoder()) as retriever:
        assert retriever.search("red", 1)[0].id == "red"
        encoder = Longer()
        retriever.reencode(encoder)
        assert encoder.encoded == 0, "all vectors were on disk"
        check(retriever, Longer())


def test_images_that_cannot_be_opened_are_named_or_dropped(opened: Retriever, tmp_path: Path) -> None:
    folder = write_plain(tmp_path / "photos", ("cyan",))
    opened.add(folder)
    opened.add_embeddings(ToyEncoder().encode_image([picture("pink")]), ids=["row"])
    encoder = Longer()
    with pytest.raises(InvalidInputError, match=r"1 images cannot be encoded anew.*row: has no image"):
        opened.reencode(encoder)
    assert encoder.encoded == 0, "known before the work"
    opened.remove("row")
    (folder / "cyan.png").unlink()
    with pytest.raises(InvalidInputError, match=r"cyan.png: no such file.*drop=True"):
        opened.reencode(encoder)
    assert opened.vector("cyan.png").shape == (16,) and len(opened.search("red", 50, rerank=None)) == 7
    report = opened.reencode(encoder, drop=True)
    assert [Path(one.source).name for one in report.dropped] == ["cyan.png"]
    check(opened, Longer())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"encoder": ToyEncoder()}, "'toy-encoder-1' is the album's encoder already"),
        ({"encoder": "clip"}, "the encoder is the string 'clip'"),
        ({"encoder": Longer(), "index": ExactIndex(16)}, "index has dim 16, the encoder 32"),
        ({"encoder": Longer(), "batch_size": 0}, "batch_size"),
    ],
)
def test_unfit_parts_are_refused(opened: Retriever, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        opened.reencode(**arguments)


def test_index_without_settings_has_to_be_passed(album: Path) -> None:
    with Retriever(ToyEncoder(), ToyIndex(16), path=album) as retriever:
        retriever.add(picture("red"))
        with pytest.raises(InvalidInputError, match="pass an empty one"):
            retriever.reencode(Longer())
        retriever.reencode(Longer(), index=ToyIndex(32))
        check(retriever, Longer(), ["red"])


@pytest.mark.parametrize("attached", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"where": Field("width") > 0},
        {"expand": True},
        {"collapse": 0.999},
        {"diversity": 0.5},
        {"min_probability": 0.0},
    ],
)
def test_search_that_outlives_its_encoder_answers_with_the_new_one(
    opened: Retriever, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], attached: bool
) -> None:
    opened.questions.generate(1, style="captions", top_k=None)
    opened.calibration = scaled = Calibration(relevance_scale=1.0)
    update, attach = IndexSync.update, opened._attach
    waiting = [lambda: opened.reencode(Same(), calibration=scaled)]

    def updated(follower: IndexSync) -> Any:
        index = update(follower)
        if attached and waiting:
            waiting.pop()()
        return index

    found: list[Ranking] = []
    search = threading.Thread(
        target=lambda: found.append(opened.search("red", 6, rerank=None, **options)), daemon=True
    )

    def attached_while_searching(parts: Any) -> None:  # between the switch and the new encoder
        if not attached:
            search.start()
            search.join(0.2)
        attach(parts)

    monkeypatch.setattr(IndexSync, "update", updated)
    monkeypatch.setattr(opened, "_attach", attached_while_searching)
    search.start() if attached else waiting.pop()()
    search.join(20)
    assert len(found[0]) == 6 and opened.encoder.fingerprint == Same.fingerprint
    expected = opened.search("red", 6, rerank=None, **options)
    assert (found[0].ids, found[0].scores.tolist()) == (expected.ids, expected.scores.tolist())


def test_image_that_is_lost_or_back_after_the_others_were_encoded(opened: Retriever, tmp_path: Path) -> None:
    opened.questions.generate(1, style="captions", top_k=None)
    file = tmp_path / "file.png"

    class Late(Longer):
        """Its hook runs when the images are encoded."""

        def encode_text(self, texts: Sequence[str], *, batch_size: int = 32) -> NDArray[np.float32]:
            late.pop()() if late else None
            return super().encode_text(texts)

    def lose() -> None:
        plain("orange").save(file)
        opened.add(file)
        file.unlink()

    late = [lose]
    with pytest.raises(InvalidInputError, match=r"1 images cannot be encoded anew.*file\.png: no such file"):
        opened.reencode(Late())
    late = [lambda: plain("orange").save(file)]
    opened.questions.generate(1, style="search", top_k=None)  # so that there are texts to encode
    assert opened.reencode(Late()).images == 7
    np.testing.assert_array_equal(opened.vector(str(file)), Longer().encode_image([as_image(file)])[0])
