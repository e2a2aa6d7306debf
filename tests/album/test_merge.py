"""Taking over another album: records, vectors, bytes, questions and features, and no encoding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from plain import picture, plain, png, write_plain
from zsqretrieval.errors import AlbumError, InvalidInputError, MismatchError
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyStatesGenerator
from zsqretrieval.types import Image


class Broken(ToyEncoder):
    def encode_image(self, images: Any, *, batch_size: int = 32) -> NDArray[np.float32]:
        raise AssertionError("nothing is encoded")


class Other(ToyEncoder):
    fingerprint = "other-encoder"


def made(path: Path | None, *names: str, states: Any = "lazy") -> Retriever:
    retriever = Retriever(ToyEncoder(), generator=ToyStatesGenerator(), path=path, states=states)
    retriever.add(map(picture, names))
    return retriever


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Retriever]:
    with made(tmp_path / "ours", "red", "green") as retriever:
        retriever._attach(replace(retriever._parts, encoder=Broken()))
        yield retriever


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Retriever]:
    with made(tmp_path / "theirs", "green", "blue", "black", states="disk") as retriever:
        retriever.questions.generate(2, style="captions", top_k=None)
        yield retriever


def questions(retriever: Retriever) -> list[tuple[Any, ...]]:
    return sorted(
        (one.id, one.text, one.answer, one.log_likelihood, one.judgement, one.recipe)
        for one in retriever.questions.list()
    )


@pytest.mark.parametrize("by_path", [False, True])
def test_images_come_with_all_that_belongs_to_them(ours: Retriever, theirs: Retriever, by_path: bool) -> None:
    assert theirs.path is not None and ours.path is not None
    (ours.path / next(theirs.path.glob("states-*")).name).mkdir()  # has had features of that generator
    report = ours.merge(theirs.path if by_path else theirs)
    assert (report.added, report.known, report.kept, report.features) == (("blue", "black"), 1, 2, 3)
    assert repr(report).startswith("MergeReport(added=2, known=1, kept=2, questions=")
    assert report.questions == len(questions(theirs)) and questions(ours) == questions(theirs)
    for id in ("green", "blue", "black"):
        np.testing.assert_array_equal(ours.vector(id), theirs.vector(id))
    with ours.files() as files:
        assert all(files.open(one.source, one.digest) for one in ours.records())
    assert [hit.id for hit in ours.search("blue", 1)] == ["blue"]
    ours._catalog.verify()
    again = ours.merge(theirs)
    assert (again.added, again.known, again.questions, again.kept, again.features) == ((), 3, 0, 0, 0)


def test_taken_questions_are_searched(ours: Retriever, theirs: Retriever) -> None:
    ours.merge(theirs)
    text = next(one.text for one in theirs.questions.list("black"))
    assert ours.search(text, 1, rerank=None, expand=True)[0].matched_question is not None


def test_features_of_another_generator_stay_behind(ours: Retriever, theirs: Retriever) -> None:
    assert ours.merge(theirs).features == 0
    assert ours.path is not None and not list(ours.path.glob("states-*"))


def test_id_of_another_image_gets_a_part_of_the_digest(ours: Retriever) -> None:
    with made(None) as other:
        other.add([Image(png((1, 2, 3)), "elsewhere", "red"), Image(plain("green"), "far", "green too")])
        report = ours.merge(other)
    assert report.known == 1 and report.added[0].startswith("red#") and len(ours) == 3
    assert {one.id for one in ours.records()} == {"red", "green", *report.added}


def test_rows_without_images_and_files_are_merged(tmp_path: Path, ours: Retriever) -> None:
    with made(None) as other:
        other.add_embeddings(ToyEncoder().encode_image([picture("white")]), ids=["row"], metadata=[{"n": 1}])
        other.add(write_plain(tmp_path / "photos", ("yellow",)))
        assert ours.merge(other).added == ("row", "yellow.png")
        assert ours.merge(other).known == 2
    row = ours.find("row")
    assert row is not None and row.metadata == {"n": 1}


def test_albums_in_memory_are_merged_with_their_bytes() -> None:
    with made(None, "red") as one, made(None, "blue", "red") as two:
        assert one.merge(two).added == ("blue",)
        with one.files() as files:
            assert all(files.open(record.source, record.digest) for record in one.records())


@pytest.mark.parametrize("in_between", [1, 2])
def test_interrupted_merge_can_be_repeated(
    tmp_path: Path, theirs: Retriever, in_between: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsqretrieval.data.images.BYTES_AT_ONCE", 1)
    monkeypatch.setattr("zsqretrieval.album.candidates.BYTES_AT_ONCE", 1)

    def stop(step: str, done: int, total: int | None) -> None:
        if done == in_between:
            raise KeyboardInterrupt

    with made(tmp_path / "album") as album:
        with pytest.raises(KeyboardInterrupt):
            album.merge(theirs, progress=stop)
        assert len(album) == in_between
        assert len(album.merge(theirs).added) == 3 - in_between
        assert [one[:5] for one in questions(album)] == [one[:5] for one in questions(theirs)]


def test_unfit_albums_are_refused(ours: Retriever, tmp_path: Path) -> None:
    with Retriever(Other(), path=tmp_path / "other") as other:
        for given in (other, tmp_path / "other"):
            with pytest.raises(MismatchError, match=r"'other-encoder'.*'toy-encoder-1'"):
                ours.merge(given)
    for itself in (ours, ours.path, str(ours.path)):
        with pytest.raises(InvalidInputError, match="with itself"):
            ours.merge(itself)  # type: ignore[arg-type]
    with pytest.raises(AlbumError, match="is not an album"):
        ours.merge(tmp_path)
    assert len(ours) == 2 and set(COLOURS) > {one.id for one in ours.records()}
