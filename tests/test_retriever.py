from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image as PILImage

from seeing import Seeing
from tars import pack
from together import together
from zsqretrieval import plugins
from zsqretrieval.album.ingest import AddReport
from zsqretrieval.data.images import decode
from zsqretrieval.errors import (
    AlbumError,
    IntegrityError,
    InvalidInputError,
    MismatchError,
    ZsqError,
)
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex
from zsqretrieval.presets import PRESETS
from zsqretrieval.retriever import Retriever
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import ToyEncoder, ToyIndex
from zsqretrieval.types import Image

ENCODER = ToyEncoder()


def pixels(number: int) -> PILImage.Image:
    """Four random colours: no two numbers give the same vector."""
    colours = np.random.default_rng(number).integers(0, 256, (2, 2, 3), np.uint8)
    return PILImage.fromarray(colours).resize((8, 8), PILImage.Resampling.NEAREST)


def png(number: int) -> bytes:
    return encoded(pixels(number))


def record(id: int | str, number: int | None = None) -> Image:
    return Image(png(int(id) if number is None else number), source=f"place {id}", id=str(id))


def records(*numbers: int) -> list[Image]:
    return [record(number) for number in numbers]


def named(*numbers: int) -> dict[str, int]:
    """The images that :func:`records` makes, by id."""
    return {str(number): number for number in numbers}


def draw(folder: Path, *names: str) -> None:
    """Write the images 0, 1, ... to files."""
    for number, name in enumerate(names):
        pixels(number).save(folder / name)


def plain(colour: str) -> PILImage.Image:
    return PILImage.new("RGB", (8, 8), colour)


def exact() -> ExactIndex:
    return ExactIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint)


def hnsw() -> HNSWIndex:
    return HNSWIndex(ENCODER.dim, fingerprint=ENCODER.fingerprint, threads=1)


def opened(path: Path, **parts: Any) -> Retriever:
    return Retriever.open(path, **{"encoder": ENCODER, **parts})


def ids(retriever: Retriever) -> list[str]:
    return [one.id for one in retriever.records()]


def check(retriever: Retriever, expected: Mapping[str, int]) -> None:
    """The album holds these images and no others, and each is found by its own vector."""
    retriever.search("anything")  # which brings the index up to date
    keys = {one.id: one.key for one in retriever.records()}
    assert sorted(keys) == sorted(expected)
    assert len(retriever) == len(retriever.index) == len(expected)
    if not expected:
        return
    vectors = np.stack([vector_of(number) for number in expected.values()])
    found = retriever.index.search(vectors, 1)
    assert found.keys[:, 0].tolist() == [keys[id] for id in expected]
    assert np.allclose(found.scores, 1, atol=1e-5)


@functools.cache
def vector_of(number: int) -> np.ndarray:
    return ENCODER.encode_image([Image(pixels(number), "")])[0]


@pytest.fixture
def retriever() -> Iterator[Retriever]:
    with Retriever(ENCODER, exact()) as made:
        yield made


@pytest.fixture
def filled(album: Path) -> Path:
    """An album of 40 images with a saved HNSW index, closed."""
    with Retriever(ENCODER, hnsw(), path=album) as made:
        made.add(records(*range(40)))
        made.save()
    return album


def snapshots(album: Path) -> list[Path]:
    return sorted(album.glob("index-*"))


# --- adding


def test_folder_with_broken_files_adds_the_others(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    draw(tmp_path, "a.png", "b/c.png", "d.png")
    (tmp_path / "b" / "broken.jpg").write_bytes(png(7)[:40])
    (tmp_path / "empty 1.png").touch()
    (tmp_path / "empty 2.png").touch()
    (tmp_path / "a.txt").write_text("a small thing")
    (tmp_path / "notes.md").write_text("no image")
    report = retriever.add(tmp_path)
    assert report.added == ("a.png", "b/c.png", "d.png")
    assert [Path(one.source).name for one in report.skipped] == ["broken.jpg", "empty 1.png", "empty 2.png"]
    assert [one.reason for one in report.skipped][1:] == ["the file is empty"] * 2
    assert report.known == 0 and report.replaced == () and report.seconds > 0
    check(retriever, {"a.png": 0, "b/c.png": 1, "d.png": 2})
    found = retriever.find("a.png")
    assert found is not None
    assert (found.width, found.height, found.caption) == (8, 8, "a small thing")
    assert found.bytes == (tmp_path / "a.png").stat().st_size
    assert retriever.find("b/broken.jpg") is None and "a.png" in retriever and 3 not in retriever


def test_equal_bytes_are_one_image(retriever: Retriever, tmp_path: Path) -> None:
    for name in ("one.png", "two.png", "three.png"):
        pixels(1).save(tmp_path / name)
    report = retriever.add(tmp_path)
    assert report.added == ("one.png",) and report.known == 2
    again = retriever.add([tmp_path, png(1)], batch_size=2)
    assert (again.added, again.known) == ((), 4)
    check(retriever, {"one.png": 1})


def test_changed_file_replaces_the_old_image(retriever: Retriever, tmp_path: Path) -> None:
    draw(tmp_path, "0.png", "1.png", "2.png")
    retriever.add(tmp_path)
    before = retriever.find("1.png")
    pixels(9).save(tmp_path / "1.png")
    report = retriever.add(tmp_path)
    assert (report.added, report.replaced, report.known) == ((), ("1.png",), 2)
    check(retriever, {"0.png": 0, "1.png": 9, "2.png": 2})
    after = retriever.find("1.png")
    assert before is not None and after is not None and after.key > before.key
    assert retriever.search(png(1), 3)[0].score < 0.999, "the old vector is gone"


def where(retriever: Retriever) -> dict[str, str]:
    """The name of the file that each id stands for."""
    return {record.id: Path(record.source).name for record in retriever.records()}


def test_renamed_file_gets_the_new_id(retriever: Retriever, tmp_path: Path) -> None:
    draw(tmp_path, "0.png", "1.png")
    retriever.add(tmp_path)
    before = {record.digest: record for record in retriever.records()}
    (tmp_path / "b").mkdir()
    (tmp_path / "0.png").rename(tmp_path / "b/first.png")
    (tmp_path / "b/first.txt").write_text("a caption")
    report = retriever.add(tmp_path)
    assert (report.moved, report.known, report.added, report.replaced) == (("b/first.png",), 1, (), ())
    check(retriever, {"b/first.png": 0, "1.png": 1})
    found = retriever.find("b/first.png")
    assert found is not None and found.caption == "a caption"
    assert found.source == str(tmp_path / "b/first.png")
    assert found.key == before[found.digest].key, "vector, state and questions are the same"
    assert retriever.add(tmp_path).known == 2


def test_copy_is_known_while_the_original_exists(retriever: Retriever, tmp_path: Path) -> None:
    pixels(1).save(tmp_path / "b.png")
    retriever.add(tmp_path)
    pixels(1).save(tmp_path / "a.png")
    report = retriever.add(tmp_path)
    assert (report.known, report.moved) == (2, ()) and where(retriever) == {"b.png": "b.png"}
    (tmp_path / "b.png").unlink()
    assert retriever.add(tmp_path).moved == ("a.png",) and where(retriever) == {"a.png": "a.png"}


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_files_that_exchange_names_exchange_ids(
    retriever: Retriever, tmp_path: Path, batch_size: int
) -> None:
    draw(tmp_path, "0.png", "1.png", "2.png")
    retriever.add(tmp_path)
    (tmp_path / "0.png").rename(tmp_path / "x")
    (tmp_path / "1.png").rename(tmp_path / "0.png")
    (tmp_path / "2.png").rename(tmp_path / "1.png")
    (tmp_path / "x").rename(tmp_path / "2.png")
    retriever.add(tmp_path, batch_size=batch_size)
    check(retriever, {"0.png": 1, "1.png": 2, "2.png": 0})
    assert where(retriever) == {name: name for name in ("0.png", "1.png", "2.png")}
    assert retriever.add(tmp_path).known == 3


@pytest.mark.parametrize("batch_size", [1, 32])
def test_new_file_at_the_path_of_a_renamed_one_is_added(
    retriever: Retriever, tmp_path: Path, batch_size: int
) -> None:
    pixels(0).save(tmp_path / "a.png")
    retriever.add(tmp_path)
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    pixels(1).save(tmp_path / "a.png")
    report = retriever.add(tmp_path, batch_size=batch_size)
    check(retriever, {"a.png": 1, "b.png": 0})
    assert where(retriever) == {"a.png": "a.png", "b.png": "b.png"}
    assert len(report.added) + len(report.moved) + len(report.replaced) == 2 and report.known == 0


def test_file_copied_over_another_leaves_one_image(retriever: Retriever, tmp_path: Path) -> None:
    draw(tmp_path, "0.png", "1.png")
    retriever.add(tmp_path)
    pixels(0).save(tmp_path / "1.png")
    report = retriever.add(tmp_path)
    assert (report.replaced, report.known) == (("1.png",), 1)
    check(retriever, {"1.png": 0})
    assert retriever.add(tmp_path).known == 2 and where(retriever) == {"1.png": "1.png"}


def test_moved_tar_keeps_ids_and_gets_new_sources(retriever: Retriever, tmp_path: Path) -> None:
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
    tar = pack(tmp_path / "x/s.tar", {f"{number}.png": png(number) for number in range(3)})
    retriever.add(tmp_path / "x")
    before = tuple(ids(retriever))
    tar.rename(tmp_path / "y/s.tar")
    assert retriever.add(tmp_path / "y", batch_size=2).moved == before, "the ids are the same"
    assert all(record.source.startswith(str(tmp_path / "y")) for record in retriever.records())


def test_records_that_exchange_ids_are_replaced_and_moved(retriever: Retriever) -> None:
    retriever.add([record("x", 1), record("y", 2)])
    report = retriever.add([record("x", 2), record("y", 1)])
    assert (report.replaced, report.moved, report.known) == (("x",), ("y",), 0)
    check(retriever, {"x": 2, "y": 1})


def test_same_name_in_several_folders_gets_a_suffix(retriever: Retriever, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "xyz"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        pixels(number).save(folder / "cat.png")
    first, *others = retriever.add(folders, batch_size=2).added
    assert first == "cat.png"
    assert all(id.startswith("cat.png#") and len(id) == len("cat.png#12345678") for id in others)
    check(retriever, dict(zip([first, *others], range(3), strict=True)))
    assert [one.source for one in retriever.records()] == [str(f / "cat.png") for f in folders]

    pixels(9).save(folders[1] / "cat.png")
    report = retriever.add(folders)
    assert (report.replaced, report.known) == ((others[0],), 2), "it keeps its id"
    check(retriever, {first: 0, others[0]: 9, others[1]: 2})
    pixels(8).save(folders[1] / "cat.png")
    assert retriever.add(folders[1]).replaced == (others[0],)
    check(retriever, {first: 0, others[0]: 8, others[1]: 2})


def test_id_with_a_number_sign_is_no_suffix(retriever: Retriever) -> None:
    pages = [Image(png(n), "<bytes>", id=id) for n, id in enumerate(["page#1", "page#2", "page", "page$"])]
    assert retriever.add(pages).added == ("page#1", "page#2", "page", "page$")
    assert retriever.add(Image(png(9), "<bytes>", id="page")).replaced == ("page",)
    check(retriever, {"page#1": 0, "page#2": 1, "page": 9, "page$": 3})


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_record_given_twice_has_the_last_bytes(retriever: Retriever, batch_size: int) -> None:
    report = retriever.add([record("x", 1), record("y", 2), record("x", 3)], batch_size=batch_size)
    assert (report.added, report.replaced) == (("x", "y"), ("x",))
    check(retriever, {"x": 3, "y": 2})


def test_bytes_pil_images_paths_and_records_are_added(retriever: Retriever, tmp_path: Path) -> None:
    pixels(4).save(tmp_path / "4.png")
    described = Image(png(3), "web", id="three", caption="a caption", metadata={"n": [3]})
    report = retriever.add([png(1), pixels(2), described, str(tmp_path / "4.png")])
    assert len(report.added) == 4
    assert report.added[2] == "three" and report.added[3] == str(tmp_path / "4.png")
    assert all(len(id) == 16 for id in report.added[:2])
    check(retriever, dict(zip(report.added, [1, 2, 3, 4], strict=True)))
    hit = retriever.search(png(3), 1)[0]
    assert (hit.id, hit.source, hit.caption, hit.metadata) == ("three", "web", "a caption", {"n": [3]})
    assert retriever.add(pixels(2)).known == 1
    with PILImage.open(tmp_path / "4.png") as lazy:
        assert retriever.add([lazy, lazy]).added != ()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (3, "must be a path"),
        ("no/such/*.png", "no file matches"),
        (io.BytesIO(png(1)), "is an open file"),
        (Image(png(2), "s", metadata={"x": {1}}), "JSON"),
        (Image("a.png", "a.png"), "holds bytes, a pathlib.Path or a PIL image.*not str"),  # type: ignore[arg-type]
        (Image(png(1), None), "NoneType"),  # type: ignore[arg-type]
        (Image(png(1), "a", metadata=[1]), r"the metadata of a must be a mapping.*\[1\]"),  # type: ignore[arg-type]
    ],
)
def test_object_that_is_not_an_image_source_is_refused(
    retriever: Retriever, image: Any, message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        retriever.add([record(0), image], batch_size=1)
    check(retriever, {"0": 0})
    with pytest.raises(InvalidInputError, match=message):
        retriever.add(image)


def test_adding_nothing_gives_an_empty_report(retriever: Retriever) -> None:
    report = retriever.add([])
    assert report == AddReport((), (), (), (), 0, (), report.seconds)
    with pytest.raises(InvalidInputError, match="batch_size"):
        retriever.add([], batch_size=0)


def test_images_before_and_after_a_damaged_tar_are_added(retriever: Retriever, tmp_path: Path) -> None:
    content = pack(tmp_path / "good.tar", {f"{n}.png": png(n) for n in range(20)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(content[: len(content) // 2])
    report = retriever.add([tmp_path / "cut.tar", record(99)])
    assert [(one.source, "not a whole tar" in one.reason) for one in report.skipped] == [
        (str(tmp_path / "cut.tar"), True)
    ]
    assert 5 < len(retriever) - 1 < 16 and report.added[-1] == "99"
    retriever.remove("99")
    retriever.add(tmp_path / "good.tar")
    assert len(retriever) == 20


def test_progress_is_reported_after_each_batch(retriever: Retriever) -> None:
    sizes: list[int] = []
    seen: list[tuple[str, int, int | None]] = []

    class Counting(ToyEncoder):
        def encode_image(self, images: Any, *, batch_size: int = 32) -> Any:
            sizes.append(len(images))
            return super().encode_image(images, batch_size=batch_size)

    with Retriever(Counting(), exact()) as counting:
        images = records(*range(10))
        counting.add([*images, b"", images[0]], batch_size=4, progress=lambda *news: seen.append(news))
        assert sizes == [4, 4, 2] and seen == [("adding images", n, 12) for n in (4, 8, 12)]
        report = counting.add(images, batch_size=5, progress=lambda *news: seen.append(news))
        assert sizes == [4, 4, 2] and [done for _, done, _ in seen[3:]] == [5, 10] and report.known == 10


def test_interrupted_add_keeps_its_batches_and_can_be_repeated(filled: Path) -> None:
    images = records(*range(100, 110))

    def interrupt(step: str, done: int, total: int | None) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with opened(filled) as retriever:
        with pytest.raises(KeyboardInterrupt):
            retriever.add(images, batch_size=3, progress=interrupt)
        everything = named(*range(40))
        check(retriever, everything | named(*range(100, 106)))
        report = retriever.add(images, batch_size=3)
        assert len(report.added) == 4 and report.known == 6
        check(retriever, everything | named(*range(100, 110)))


@pytest.mark.parametrize("step", ["remove", "add"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_interrupted_index_is_rebuilt(
    album: Path, monkeypatch: pytest.MonkeyPatch, step: str, when: str
) -> None:
    with Retriever(ENCODER, exact(), path=album) as retriever:
        retriever.add(records(*range(5)))
        real = getattr(ExactIndex, step)

        def struck(index: ExactIndex, *arguments: Any) -> None:
            if when == "after":
                real(index, *arguments)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(ExactIndex, step, struck)
            with pytest.raises(KeyboardInterrupt):
                retriever.add([record(2, 22), record(7)])  # a removal and two additions
        expected = {"0": 0, "1": 1, "2": 22, "3": 3, "4": 4, "7": 7}
        check(retriever, expected)
        retriever.save()
    with opened(album) as again:
        check(again, expected)


def test_interrupted_index_without_a_plugin_is_an_error(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = ToyIndex(ENCODER.dim)
    with Retriever(ENCODER, toy) as retriever:
        with monkeypatch.context() as patch:
            patch.setattr(ToyIndex, "add", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                retriever.add(record(1))
        with pytest.raises(AlbumError, match="ToyIndex was interrupted"):
            retriever.search("red")
        retriever.save(album)
    with opened(album, index=exact()) as again:
        check(again, {"1": 1})


# --- removing


def test_remove_takes_ids_all_or_none(retriever: Retriever) -> None:
    retriever.add(records(*range(6)))
    retriever.remove("0")
    retriever.remove(["3", "1", "3"])
    check(retriever, {"2": 2, "4": 4, "5": 5})
    for wrong, message in (
        (["2", "nobody"], "1 of 2 ids are not in the album, the first is 'nobody'"),
        ("3", "1 of 1 ids are not in the album, the first is '3'"),
        ([4], "the first is 4"),
        (["2", "\udc80"], "not Unicode"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            retriever.remove(wrong)  # type: ignore[arg-type]
        check(retriever, {"2": 2, "4": 4, "5": 5})
    retriever.remove([])
    retriever.add(record(0))
    check(retriever, {"2": 2, "4": 4, "5": 5, "0": 0})


# --- searching


def test_question_finds_its_image(retriever: Retriever) -> None:
    retriever.add([Image(plain(colour), "drawn", id=colour) for colour in ("red", "green", "blue", "white")])
    ranking = retriever.search("where is the blue thing?", k=3)
    assert ranking[0].id == "blue" and len(ranking) == 3 and ranking.query == "where is the blue thing?"
    scores = [hit.score for hit in ranking]
    assert scores == sorted(scores, reverse=True) and all(-1 <= score <= 1 for score in scores)
    assert all(hit.scores == {"first_stage": hit.score} for hit in ranking)
    assert set(ranking.timings) == {"encode", "first_stage"}
    assert all(seconds >= 0 for seconds in ranking.timings.values())
    assert len(retriever.search("blue", k=100)) == 4


def test_results_can_be_pickled(retriever: Retriever) -> None:
    report = retriever.add([record(1), Image(b"junk", "junk")])
    ranking = retriever.search("red")
    assert pickle.loads(pickle.dumps(ranking)) == ranking
    assert pickle.loads(pickle.dumps(report)) == report and report.skipped[0].source == "junk"
    assert pickle.loads(pickle.dumps(retriever.find("1"))) == retriever.find("1")


@pytest.mark.parametrize("make", [exact, hnsw])
def test_empty_album_gives_empty_rankings(make: Any) -> None:
    with Retriever(ENCODER, make()) as retriever:
        assert len(retriever) == 0 and list(retriever.records()) == []
        assert len(retriever.search("red")) == len(retriever.search(png(1))) == 0
        retriever.add(record(1))
        retriever.remove("1")
        assert len(retriever.search("red")) == 0


def test_list_of_queries_gives_the_rankings_of_each(retriever: Retriever) -> None:
    retriever.add([Image(plain(colour), "drawn", id=colour) for colour in ("red", "green", "blue")])
    queries = ["a red thing", plain("blue"), "green"]
    found = retriever.search(queries, 2)
    for ranking, query in zip(found, queries, strict=True):
        alone = retriever.search(query, 2)
        assert [hit.id for hit in ranking] == [hit.id for hit in alone]
        assert [hit.score for hit in ranking] == pytest.approx([hit.score for hit in alone])
    assert [ranking.query for ranking in found] == ["a red thing", "<PIL image>", "green"]
    assert retriever.search([]) == []


def test_image_finds_itself(tmp_path: Path) -> None:
    photo = PILImage.effect_noise((600, 400), 90).convert("RGB")
    photo.save(tmp_path / "photo.jpg", quality=70)
    pixels(1).save(tmp_path / "other.png")
    with Retriever(ENCODER) as retriever:
        retriever.add(tmp_path)
        ranking = retriever.search(tmp_path / "photo.jpg", k=1)
        assert (ranking[0].id, ranking.query) == ("photo.jpg", str(tmp_path / "photo.jpg"))
        assert ranking[0].score == pytest.approx(1, abs=1e-5)
        assert retriever.search(pixels(1))[0].id == "other.png"


def test_added_image_and_image_query_are_decoded_alike(tmp_path: Path) -> None:
    given: list[bytes] = []

    class Shrinking(ToyEncoder):
        """Like an encoder that decodes large files at reduced size."""

        def encode_image(self, images: Any, *, batch_size: int = 32) -> Any:
            given.extend(decode(image, size_hint=20).tobytes() for image in images)
            return super().encode_image(images, batch_size=batch_size)

    PILImage.effect_noise((400, 400), 90).save(tmp_path / "photo.jpg")
    with Retriever(Shrinking(), exact()) as retriever:
        retriever.add(tmp_path)
        retriever.search(tmp_path / "photo.jpg")
        retriever.search((tmp_path / "photo.jpg").read_bytes())
    assert given[0] == given[1] == given[2]


def test_exact_and_hnsw_give_equal_rankings() -> None:
    images = records(*range(300))
    with Retriever(ENCODER, exact()) as one, Retriever(ENCODER, hnsw()) as other:
        for retriever in (one, other):
            retriever.add(images[:200])
            retriever.remove([str(n) for n in range(0, 100, 3)])
            retriever.add(images[150:])
        queries = ["red", "a green bus", "black and white", "what is yellow?", "nothing"]
        for truth, found in [
            *((one.search(query, 20), other.search(query, 20)) for query in queries),
            *((one.search(png(n), 20), other.search(png(n), 20)) for n in range(1000, 1010)),
        ]:
            assert np.allclose([h.score for h in truth], [h.score for h in found], atol=1e-5)
            assert [h.id for h in truth] == [h.id for h in found]


# --- parts


FULL = exact()
FULL.add(np.array([1]), np.ones((1, ENCODER.dim), np.float32))


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"index": ExactIndex(8)}, MismatchError, "the index has dim 8, the encoder 16"),
        ({"index": ExactIndex(16, fingerprint="abc")}, MismatchError, "'abc', but .* is 'toy-encoder-1'"),
        ({"index": FULL}, InvalidInputError, "holds 1 vectors already"),
        ({"encoder": "mini"}, InvalidInputError, r"the encoder is the string 'mini'.*from_preset"),
        ({"encoder": ToyEncoder}, InvalidInputError, "the encoder is the class ToyEncoder; pass an instance"),
        ({"encoder": 3}, InvalidInputError, "3 is not an encoder: it has no dim, fingerprint, encode_image,"),
        ({"index": "hnsw"}, InvalidInputError, "the index is the string 'hnsw'"),
        (
            {"index": object()},
            InvalidInputError,
            "is not an index: it has no dim, fingerprint, __len__, search",
        ),
        ({"generator": "mini"}, InvalidInputError, "the generator is the string 'mini'"),
        ({"generator": ENCODER}, InvalidInputError, "is not a generator: it has no log_likelihood"),
    ],
)
def test_part_of_another_kind_or_dim_is_refused(
    album: Path, parts: Any, error: type[ZsqError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Retriever(**{"encoder": ENCODER, **parts}, path=album)
    assert not album.exists()
    Retriever(ENCODER, exact(), path=album).close()
    with pytest.raises(error, match=message):
        opened(album, **parts)


def test_index_without_a_fingerprint_is_restored(album: Path) -> None:
    with Retriever(ENCODER, ExactIndex(ENCODER.dim), path=album) as retriever:
        retriever.add(record(1))
        retriever.save()
    with opened(album) as again:
        check(again, named(1))


class Painter(ToyEncoder):
    """A plugin: a toy encoder that can be made anew from its settings."""

    safe_settings = {"shade": int}  # noqa: RUF012

    def __init__(self, shade: int = 0) -> None:
        self.shade = shade
        self.fingerprint = f"painter-{shade}"

    @property
    def config(self) -> dict[str, int]:
        return {"shade": self.shade}

    @classmethod
    def from_config(cls, config: Mapping[str, int]) -> Painter:
        return cls(**config)


@pytest.fixture
def painter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offers :class:`Painter` under the names "painter" and "mini"."""
    for name in ("painter", "mini"):
        monkeypatch.setitem(plugins._registered["encoder"], name, Painter)


@pytest.mark.usefixtures("painter")
def test_parts_are_restored_by_name(album: Path) -> None:
    index = HNSWIndex(16, M=7, fingerprint="painter-5")
    with Retriever(Painter(5), index, path=album) as retriever:
        retriever.add(records(*range(5)))
    for _ in range(2):  # without a saved index, then with one
        with Retriever.open(album) as again:
            assert isinstance(again.encoder, Painter) and again.encoder.shade == 5
            assert isinstance(again.index, HNSWIndex) and again.index.config["M"] == 7
            check(again, named(*range(5)))
            again.save()
    with pytest.raises(MismatchError, match="made with encoder 'painter-5', but this encoder is 'painter-6'"):
        Retriever.open(album, encoder=Painter(6))
    with Retriever.open(album, encoder=Painter(5), index=ExactIndex(16)) as other:
        check(other, named(*range(5)))
        other.save()
    with Retriever.open(album) as again:
        assert isinstance(again.index, ExactIndex)
    assert len(snapshots(album)) == 1


def test_missing_plugin_is_named(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(plugins._registered["encoder"], "painter", Painter)
        Retriever(Painter(5), path=album).close()
    with pytest.raises(InvalidInputError, match="no encoder is named 'painter'"):
        Retriever.open(album)
    Retriever.open(album, encoder=Painter(5)).close()


@pytest.mark.usefixtures("painter")
def test_preset_makes_an_album_then_opens_it(album: Path) -> None:
    bare = PRESETS["mini"].variant(generator=None)
    for _ in range(2):  # makes the album, then opens it
        with Retriever.open(album, bare) as retriever:
            assert isinstance(retriever.index, CompressedIndex) and retriever.path == album
            assert retriever.index.fingerprint == retriever.encoder.fingerprint
            retriever.add(record(1))
            assert len(retriever) == 1
    with Retriever.from_preset(bare.variant(index="exact")) as retriever:
        assert isinstance(retriever.index, ExactIndex) and retriever.path is None
    for wrong, message in (
        ("maxi", "no preset 'maxi'; choose from mini, clip"),
        (None, "no preset None"),
        (bare.variant(index="flat"), "no index is named 'flat'"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            Retriever.from_preset(wrong)  # type: ignore[arg-type]
    with pytest.raises(MismatchError, match=r"the encoder mini \{'shade': 0\}, not with the preset's clip"):
        Retriever.open(album, "clip")
    with pytest.raises(InvalidInputError, match="holds no album yet"):
        Retriever.open(album.parent / "new", bare, encoder=ENCODER)
    assert not (album.parent / "new").exists()


def test_presets_name_settings_that_exist() -> None:
    for preset in PRESETS.values():
        for kind, name, config in (
            ("encoder", preset.encoder, preset.encoder_config),
            ("generator", preset.generator, preset.generator_config),
        ):
            if name is not None:
                part = plugins.load(kind, name)  # type: ignore[arg-type]
                assert set(config) <= set(signature(part.from_pretrained).parameters)
        assert preset.index in plugins.available("index")


def test_parts_without_a_plugin_must_be_passed(album: Path) -> None:
    with Retriever(ENCODER, ToyIndex(16), path=album) as retriever:
        retriever.add(records(*range(3)))
        retriever.save()
    with pytest.raises(AlbumError, match=r"an encoder that is not a plugin.*Retriever.open\(path, encoder="):
        Retriever.open(album)
    with pytest.raises(AlbumError, match=r"an index that is not a plugin.*Retriever.open\(path, index="):
        opened(album)
    for index in (ToyIndex(16), exact()):
        with opened(album, index=index) as again:
            assert again.index is index
            check(again, named(*range(3)))


# --- saving and loading


@pytest.mark.parametrize("made_before", [False, True])
def test_added_images_are_there_without_a_save(album: Path, made_before: bool) -> None:
    if made_before:  # by a process that was killed meanwhile
        album.mkdir()
        (album / "catalog.sqlite").touch()
    with Retriever(ENCODER, path=album) as retriever:
        retriever.add(records(*range(5)))
        retriever.remove("2")
        assert repr(retriever) == f"Retriever(ToyEncoder, CompressedIndex, in {album})"
    with opened(album) as again:
        check(again, {"0": 0, "1": 1, "3": 3, "4": 4})
    assert snapshots(album) == []


def test_saved_index_is_loaded_not_rebuilt(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[int] = []
    real = HNSWIndex.add
    monkeypatch.setattr(HNSWIndex, "add", lambda i, k, v: (added.extend(k.tolist()), real(i, k, v))[1])
    with opened(filled) as retriever:
        check(retriever, named(*range(40)))
        assert added == []
        retriever.add(records(*range(40, 45)))
        retriever.remove([str(n) for n in range(10)])
    added.clear()
    with opened(filled) as again:  # the snapshot is older than that
        check(again, named(*range(10, 45)))
        assert added == [41, 42, 43, 44, 45]
        again.save()
    added.clear()
    with opened(filled) as again:
        check(again, named(*range(10, 45)))
        assert added == []


def test_album_in_memory_moves_to_a_path(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album.parent)
    with Retriever(ENCODER, exact()) as retriever:
        retriever.add(records(*range(3)))
        assert retriever.path is None and "memory" in repr(retriever)
        with pytest.raises(AlbumError, match=r"say where to save it: save\(path\)"):
            retriever.save()
        retriever.save("album")
        assert retriever.path == album
        monkeypatch.chdir("/")
        retriever.add(record(3))
        retriever.remove("0")
        retriever.save()
        retriever.save(album)
        with pytest.raises(AlbumError, match="this album is in"):
            retriever.save(album.parent / "other")
        with opened(album) as seen_by_another:
            check(seen_by_another, {"1": 1, "2": 2, "3": 3})
    with Retriever(ENCODER, exact()) as other:
        other.add(record(9))
        with pytest.raises(AlbumError, match="exists already"):
            other.save(album)
        check(other, {"9": 9})
        other.save(album.parent / "other")
        check(other, {"9": 9})


def test_missing_album_is_not_opened_and_existing_one_not_made(album: Path) -> None:
    for path in (album, Path("x" * 300), Path("a\0b")):
        with pytest.raises(AlbumError, match="is not an album"):
            Retriever.open(path)
    assert not album.exists()
    Retriever(ENCODER, path=album).close()
    with pytest.raises(AlbumError, match="exists already"):
        Retriever(ENCODER, path=album)
    file = album.parent / "file"
    file.touch()
    with pytest.raises(AlbumError, match="cannot make the directory"):
        Retriever(ENCODER, path=file)


def test_closed_retriever_is_an_album_error(album: Path) -> None:
    retriever = Retriever(ENCODER, path=album)
    retriever.close()
    retriever.close()
    for use in (lambda: retriever.add(record(1)), lambda: retriever.search("red"), retriever.save):
        with pytest.raises(AlbumError, match="closed"):
            use()
    assert not (album / "catalog.sqlite-wal").exists(), "closing folds the journal into the file"


def other_kind(folder: Path) -> None:
    shutil.rmtree(folder)
    exact().save(folder)


def one_bit(folder: Path) -> None:
    graph = next(folder.glob("graph-*"))
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        shutil.rmtree,
        other_kind,
        one_bit,
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: os.truncate(next(folder.glob("keys-*")), 8),
    ],
)
def test_damaged_index_is_rebuilt_with_a_warning(filled: Path, damage: Any) -> None:
    with opened(filled) as retriever:
        answers = [retriever.search(question).hits for question in ("red", "green")]
    damage(*snapshots(filled))
    for _ in range(2):  # until it is saved
        with opened(filled) as retriever:
            with pytest.warns(RuntimeWarning, match="is damaged and is rebuilt from the catalog") as caught:
                retriever.search("red")
            assert caught[0].filename == __file__
            check(retriever, named(*range(40)))
            again = [retriever.search(question).hits for question in ("red", "green")]
            assert [[h.id for h in hits] for hits in again] == [[h.id for h in hits] for hits in answers]
    with opened(filled) as retriever, pytest.warns(RuntimeWarning):
        retriever.save()
    with opened(filled) as healed:
        check(healed, named(*range(40)))
    assert len(snapshots(filled)) == 1


def test_damaged_catalog_is_an_error(filled: Path) -> None:
    catalog = filled / "catalog.sqlite"
    whole = catalog.read_bytes()
    vector = vector_of(7).tobytes()
    shutil.rmtree(*snapshots(filled))
    for broken in (b"x" * len(whole), whole[: len(whole) // 3], whole.replace(vector, vector[::-1])):
        catalog.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of the index that is gone
            with pytest.raises(IntegrityError):
                opened(filled).search("red")


def test_flipped_bytes_in_the_catalog_raise_only_zsq_errors(filled: Path) -> None:
    generator = random.Random(1)
    catalog = filled / "catalog.sqlite"
    whole = catalog.read_bytes()
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(10):
            broken[generator.randrange(len(broken))] ^= 1 << generator.randrange(8)
        catalog.write_bytes(broken)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                with opened(filled) as retriever:
                    retriever.search("red")
                    ids(retriever)
                    retriever._catalog.verify()
            except ZsqError:
                pass


def test_save_deletes_leftovers_of_killed_saves(filled: Path) -> None:
    (current,) = snapshots(filled)
    leftover = filled / "index-0123abcd"
    shutil.copytree(current, leftover)
    (filled / "index-cards").mkdir()
    with opened(filled) as retriever:
        retriever.save()
    remaining = snapshots(filled)
    assert leftover not in remaining and current not in remaining and len(remaining) == 2
    assert filled / "index-cards" in remaining


def test_failed_save_keeps_the_old_snapshot(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshots(filled)

    def fail(index: HNSWIndex, path: Path) -> None:
        path.mkdir()
        (path / "half").touch()
        raise OSError(28, "No space left on device")

    with opened(filled) as retriever:
        retriever.add(record(50))
        monkeypatch.setattr(HNSWIndex, "save", fail)
        with pytest.raises(OSError, match="No space"):
            retriever.save()
    assert snapshots(filled) == before
    with opened(filled) as again:
        check(again, named(*range(40), 50))


# --- several at once


def test_two_retrievers_see_each_others_changes(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(filled) as one, opened(filled, index=exact()) as other:
        one.add(records(*range(40, 50)))
        check(other, named(*range(50)))
        other.remove([str(n) for n in range(20)])
        check(one, named(*range(20, 50)))
        one.add(record(45, 145))
        assert other.search(png(145), 1)[0].id == "45"
        one.save()
        other.save()
        other.add(record(60))
        one.save()
        assert len(snapshots(filled)) == 1
    monkeypatch.setattr(HNSWIndex, "add", None)  # the last save left nothing to be added
    with opened(filled) as again:
        check(again, {**named(*range(20, 50)), "45": 145, "60": 60})


def test_hit_removed_during_a_search_is_replaced_by_the_next(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(filled) as one, opened(filled) as other:
        best = [hit.id for hit in one.search("red", k=6)]
        real = HNSWIndex.search

        def search(index: HNSWIndex, vectors: Any, k: int) -> Any:
            neighbors = real(index, vectors, k)
            if best[0] in other:
                other.remove(best[0])
            return neighbors

        monkeypatch.setattr(HNSWIndex, "search", search)
        assert [hit.id for hit in one.search("red", k=5)] == best[1:]


def test_index_with_an_unknown_key_is_an_error(retriever: Retriever) -> None:
    retriever.add(record(1))
    retriever.index.add(np.array([77]), np.ones((1, 16), np.float32))
    with pytest.raises(IntegrityError, match="disagree"):
        retriever.search("red")


@pytest.mark.filterwarnings("ignore:[0-9]+ of [0-9]+ candidates cannot be opened")
@pytest.mark.parametrize(("make", "states"), [(exact, None), (hnsw, "disk")])
def test_searching_while_adding_and_removing(album: Path, make: Any, states: Any) -> None:
    """A hit that is removed after it was found may have lost its features by the time it is shown."""
    generator = Seeing() if states else None
    with Retriever(ENCODER, make(), generator, states=states, path=album) as retriever:
        retriever.add(records(*range(1000, 1010)))
        done = threading.Event()
        searches = 0

        def add() -> None:
            try:
                for n in range(0, 60, 3):
                    retriever.add([record(m, m) for m in range(n, n + 3)])
                    retriever.remove(str(n))
            finally:
                done.set()

        def search() -> None:
            nonlocal searches
            while not done.is_set():
                hits = retriever.search("red", 20)
                assert len({hit.id for hit in hits}) == len(hits) >= 10
                scored = [hit.scores.get("fused") for hit in hits]
                assert generator is None or [hit.score for hit in hits] == scored
                assert retriever.search(png(1003), 1)[0].id == "1003"
                searches += 1

        def save() -> None:
            while not done.is_set():
                retriever.save()

        together(add, search, search, save)
        assert searches > 3
        expected = {str(n): n for n in [*range(1000, 1010), *range(60)] if n >= 1000 or n % 3}
        check(retriever, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # for an image without features
            retriever.search("red", len(expected))
    with opened(album, generator=generator) as again:
        check(again, expected)


def test_images_added_by_several_at_once_are_added_once(album: Path) -> None:
    images = records(*range(40))
    reports: list[AddReport] = []
    with Retriever(ENCODER, exact(), path=album) as one, opened(album) as other:
        together(*(lambda r=r: reports.append(r.add(images, batch_size=4)) for r in (one, one, other, other)))
        added = [id for report in reports for id in report.added]
        assert sorted(added) == sorted(str(n) for n in range(40))
        assert all(len(report.added) + report.known == 40 for report in reports)
        check(one, named(*range(40)))
        check(other, named(*range(40)))


def test_loading_while_others_save_finds_a_whole_index(filled: Path) -> None:
    done = threading.Event()

    def save() -> None:
        with opened(filled) as retriever:
            while not done.is_set():
                retriever.save()

    def read() -> None:
        try:
            for _ in range(15):
                opened(filled).close()  # a warning of a damaged index would be an error here
        finally:
            done.set()

    together(save, save, read)
    assert len(snapshots(filled)) == 1


def test_moving_to_a_path_while_others_add_loses_nothing(album: Path) -> None:
    with Retriever(ENCODER, exact()) as retriever:

        def add(start: int) -> None:
            for n in range(start, start + 25):
                retriever.add(record(n, n))

        def save() -> None:
            time.sleep(0.02)
            retriever.save(album)

        together(lambda: add(0), lambda: add(100), save)
    with opened(album) as again:
        check(again, named(*range(25), *range(100, 125)))


# --- against a model


class AlbumMachine(RuleBasedStateMachine):
    """An album and another process's view of it, against a dict from id to image number."""

    @initialize(make=st.sampled_from([exact, hnsw]), in_memory=st.booleans())
    def start(self, make: Any, in_memory: bool) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.album = Path(self.folder.name) / "album"
        self.retriever = Retriever(ENCODER, make(), path=None if in_memory else self.album)
        self.other: Retriever | None = None
        self.model: dict[str, int] = {}

    def put_known(self, pairs: list[tuple[int, int]]) -> tuple[list[str], list[str], int]:
        """What a batch of known images does: the last one of a name has it, others may go elsewhere."""
        replaced, moved, known, homeless = [], [], 0, set[int]()
        for place, number in pairs:
            id = str(place)
            holder = next((one for one, held in self.model.items() if held == number), None)
            if holder == id or (id not in self.model and number not in homeless):
                known += 1
                continue
            (replaced if id in self.model else moved).append(id)
            if id in self.model:
                homeless.add(self.model[id])
            if holder is not None:
                del self.model[holder]
            homeless.discard(number)
            self.model[id] = number
        return replaced, moved, known

    @rule(
        pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=6), size=st.integers(1, 4)
    )
    def add(self, pairs: list[tuple[int, int]], size: int) -> None:
        added, replaced, moved, known = [], [], [], 0
        for start in range(0, len(pairs), size):
            batch = pairs[start : start + size]
            before = set(self.model.values())
            done = self.put_known([pair for pair in batch if pair[1] in before])
            replaced, moved, known = replaced + done[0], moved + done[1], known + done[2]
            # Within a batch the same bytes are the same image, even after they were replaced.
            met = set()
            for place, number in batch:
                id = str(place)
                if number in before:
                    continue
                if number in met:
                    known += 1
                    continue
                (replaced if id in self.model else added).append(id)
                self.model[id] = number
                met.add(number)
        report = self.retriever.add([record(place, number) for place, number in pairs], batch_size=size)
        assert (list(report.added), list(report.replaced)) == (added, replaced)
        assert (list(report.moved), report.known) == (moved, known)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from([str(n) for n in range(7)]), max_size=4))
        if set(wanted) <= self.model.keys():
            self.retriever.remove(wanted)
            for id in set(wanted):
                del self.model[id]
        else:
            with pytest.raises(InvalidInputError):
                self.retriever.remove(wanted)

    @rule()
    def save(self) -> None:
        self.retriever.save(None if self.retriever.path else self.album)
        assert len(snapshots(self.album)) == 1

    @precondition(lambda self: self.retriever.path)
    @rule(make=st.sampled_from([None, exact, hnsw]))
    def reopen(self, make: Any) -> None:
        self.retriever.close()
        self.retriever = opened(self.album, index=make and make())

    @precondition(lambda self: self.retriever.path and snapshots(self.album))
    @rule()
    def lose_the_index_and_reopen(self) -> None:
        self.retriever.close()
        shutil.rmtree(*snapshots(self.album))
        self.retriever = opened(self.album)
        with pytest.warns(RuntimeWarning):
            self.retriever.save()

    @precondition(lambda self: self.retriever.path)
    @rule()
    def change_places_with_another_process(self) -> None:
        self.other = self.other or opened(self.album, index=exact())
        self.retriever, self.other = self.other, self.retriever

    @invariant()
    def holds_the_same(self) -> None:
        if hasattr(self, "model"):
            check(self.retriever, self.model)

    def teardown(self) -> None:
        if hasattr(self, "model"):
            for retriever in (self.retriever, self.other):
                if retriever is not None:
                    check(retriever, self.model)
                    retriever.close()
            self.folder.cleanup()


@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_album_agrees_with_a_dict(examples: int) -> None:
    run_state_machine_as_test(
        AlbumMachine, settings=settings(max_examples=examples, stateful_step_count=25, deadline=None)
    )


# --- sudden death

# Imports once and then forks a victim for every line it reads; the victim says in a file what it is about to
# do and what has been done.
NURSERY = """
import json, os, random, sys
from seeing import Seeing
from test_retriever import opened, records

def live(album, diary, first, seed, states):
    def say(**news):
        os.write(diary, json.dumps(news).encode() + b"\\n")
    choice = random.Random(seed)
    retriever = opened(album, generator=Seeing() if states else None)
    say(up=True)
    while True:
        deed = choice.random()
        if deed < 0.45:
            numbers = list(range(first, first + choice.choice([1, 3, 12])))
            first = numbers[-1] + 1
            say(adding=[str(n) for n in numbers])
            say(added=list(retriever.add(records(*numbers), batch_size=12).added))
        elif deed < 0.75:
            ids = [one.id for one in retriever.records()]
            ids = choice.sample(ids, min(len(ids), choice.choice([1, 2, 8])))
            say(removing=ids)
            retriever.remove(ids)
            say(removed=ids)
        elif states and deed < 0.87:
            say(asking=True)
            retriever.questions.generate(2, top_k=None, batch_size=4)
            say(asked=[(one.id, one.text) for one in retriever.questions.list()])
        else:
            retriever.save()

for line in sys.stdin:
    album, path, *order = json.loads(line)
    diary = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    victim = os.fork()
    if not victim:
        live(album, diary, *order)
    os.close(diary)
    print(victim, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]), flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("make", "states"), [(exact, None), (hnsw, "disk")])
def test_killed_process_loses_nothing_acknowledged(album: Path, make: Any, states: Any, rounds: int) -> None:
    Retriever(ENCODER, make(), Seeing() if states else None, states=states, path=album).close()
    chance = random.Random(7)
    expected: dict[str, int] = {}
    questions: set[tuple[str, str]] = set()
    acknowledged = 0
    deaths = {"adding": 0, "removing": 0, "saving": 0, **({"asking": 0} if states else {})}
    modules = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    nursery = subprocess.Popen(
        [sys.executable, "-c", NURSERY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": modules},
    )
    assert nursery.stdin is not None and nursery.stdout is not None
    with nursery:
        for turn in range(rounds):
            diary = album.parent / f"{turn}.jsonl"
            order = [str(album), str(diary), turn * 100_000, turn, states]
            nursery.stdin.write(json.dumps(order).encode() + b"\n")
            nursery.stdin.flush()
            victim = int(nursery.stdout.readline())
            news_before_death = chance.randrange(1, 16)
            while not diary.exists() or diary.read_bytes().count(b"\n") < news_before_death:
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.03))
            os.kill(victim, signal.SIGKILL)
            assert int(nursery.stdout.readline()) == -signal.SIGKILL

            adding: set[str] = set()
            removing: set[str] = set()
            asking = False
            for line in diary.read_text().splitlines():
                news = json.loads(line)
                adding = set(news.get("adding", ()))
                removing = set(news.get("removing", ()))
                asking = "asking" in news
                questions = {(id, text) for id, text in news.get("asked", questions)}
                expected |= {id: int(id) for id in news.get("added", ())}
                acknowledged += len(news.get("added", ()))
                for id in news.get("removed", ()):
                    del expected[id]
            doing = "adding" if adding else "removing" if removing else "asking" if asking else "saving"
            deaths[doing] += 1

            generator = Seeing() if states else None
            with opened(album, generator=generator) as survivor:
                # A warning of a damaged index or missing features would be an error here.
                survivor._catalog.verify()
                digests = {one.digest for one in survivor.records()}
                assert digests <= set(survivor._catalog.kept.digests()), "bytes that cannot be shown"
                present = set(ids(survivor))
                # What was under way is done or not done, as a whole; everything else is as acknowledged.
                assert present - expected.keys() in (set(), adding)
                assert expected.keys() - present in (set(), removing)
                expected = {id: int(id) for id in present}
                check(survivor, expected)
                stored = {(one.id, one.text) for one in survivor.questions.list()}
                assert {one for one in questions if one[0] in present} <= stored
                assert {id for id, _ in stored} <= present
                if generator is not None:
                    assert len(survivor.search("red", max(1, len(present)))) == len(present)
                    assert generator.looked_at == []
                if turn % 10 == 0:
                    survivor.save()
                    assert len(snapshots(album)) == 1
        nursery.stdin.close()
    assert acknowledged > 20 and (rounds < 100 or min(deaths.values()) > 0), deaths
