"""Shard workers: one tar in, one shard out, whatever happens to the worker."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from plain import png
from tars import pack
from zsqretrieval._util.files import locked
from zsqretrieval.album.features import StateStore
from zsqretrieval.data.images import decode, digest
from zsqretrieval.data.samples import photographs
from zsqretrieval.errors import InvalidInputError, MismatchError, PartError
from zsqretrieval.laion import shards
from zsqretrieval.laion.embed import Embed
from zsqretrieval.laion.embeddings import open_embeddings
from zsqretrieval.laion.image_shards import ImageShard, open_image_shards
from zsqretrieval.laion.shards import Task, choose, run_shard, run_shards
from zsqretrieval.tasks.shards import KeepStates, WriteQuestions, make_task
from zsqretrieval.testing.pictures import encoded
from zsqretrieval.testing.toys import COLOURS, ToyEncoder, ToyGenerator, ToyStatesGenerator
from zsqretrieval.types import Image

COLOUR = list(COLOURS)


@pytest.fixture
def tars(tmp_path: Path) -> list[ImageShard]:
    """Three tars; in the first, one picture is there twice, and one is damaged."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for n in range(3):
        members: dict[str, bytes] = {}
        for m, colour in enumerate([*COLOUR[n:], *([COLOUR[0]] * (n == 0))]):
            members[f"{m:04d}.png"] = png(colour)
            members[f"{m:04d}.txt"] = f"a {colour} picture".encode()
            members[f"{m:04d}.json"] = json.dumps({"n": m, "license": "CC0"}).encode()
        pack(folder / f"{n:05d}.tar", members | ({"broken.png": b"no image"} if n == 0 else {}))
    return open_image_shards(folder)


def content(out: Path) -> dict[str, bytes]:
    """All files but the stats, which have seconds."""
    files = (one for one in out.rglob("*") if one.is_file() and one.parent.name != "stats")
    return {one.relative_to(out).as_posix(): one.read_bytes() for one in files}


@pytest.fixture
def whole(tars: list[ImageShard], tmp_path: Path) -> dict[str, bytes]:
    run_shards(Embed(ToyEncoder()), tars, tmp_path / "whole")
    return content(tmp_path / "whole")


# --- what a shard holds -----------------------------------------------------------------------------------


def test_row_describes_its_vector(tars: list[ImageShard], tmp_path: Path) -> None:
    told: list[Any] = []
    report = run_shards(Embed(ToyEncoder(), batch_size=1), tars, tmp_path / "out", report=told.append)
    assert (report.done, report.known, report.images, report.refused) == (3, 0, 16, 1)
    assert report.failed == ()
    found = open_embeddings(tmp_path / "out")
    assert (found.encoder, len(found)) == (ToyEncoder.fingerprint, 16)
    for n, shard in enumerate(found.shards):
        rows, vectors = list(shard.rows()), shard.vectors[:]
        captions = [str(row.caption) for row in rows]
        assert [caption.split()[1] for caption in captions] == [*COLOUR[n:], *([COLOUR[0]] * (n == 0))]
        assert [row.source for row in rows] == [f"{tars[n].tar}#{m:04d}.png" for m in range(len(rows))]
        assert [dict(row.metadata) for row in rows] == [{"n": m, "license": "CC0"} for m in range(len(rows))]
        texts = ToyEncoder().encode_text(captions)
        assert (np.argmax(texts[:, :12] @ vectors[:, :12].T.astype(np.float32), axis=1) % 6).tolist() == [
            m % 6 for m in range(len(rows))
        ]
        assert vectors.dtype == np.float16
        np.testing.assert_allclose(np.linalg.norm(vectors.astype(np.float32), axis=1), 1, atol=1e-3)
    assert [one["shard"] for one in told] == [0, 1, 2]
    assert told[0]["reasons"][0][0].endswith("#broken.png")
    lines = [(tmp_path / "out/stats" / f"embed_{n:04d}.json").read_text() for n in range(3)]
    assert [json.loads(line) for line in lines] == told
    assert {"read", "decode", "encode", "write", "total"} <= told[0]["seconds"].keys()


def test_equal_pictures_of_other_groups_have_equal_rows(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    task = Embed(ToyEncoder())
    task.batch_size = 1  # the repeated picture comes in another group
    run_shards(task, tars, tmp_path / "out")
    assert content(tmp_path / "out") == whole


def test_empty_tar_makes_an_empty_shard(tmp_path: Path) -> None:
    pack(tmp_path / "0.tar", {})
    run_shards(Embed(ToyEncoder()), open_image_shards(tmp_path), tmp_path / "out")
    assert len(open_embeddings(tmp_path / "out")) == 0


def test_picture_that_the_encoder_cannot_take_is_refused(tars: list[ImageShard], tmp_path: Path) -> None:
    class Picky(ToyEncoder):
        def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> Any:
            if any(decode(one).getpixel((0, 0)) == (255, 0, 0) for one in images):
                raise RuntimeError("no red")
            return super().encode_image(images)

    run_shards(Embed(Picky()), tars, tmp_path / "out")
    stats = json.loads((tmp_path / "out/stats/embed_0000.json").read_text())
    assert (stats["images"], stats["refused"]) == (5, 3)
    assert [where.rpartition("#")[2] for where, _ in stats["reasons"]] == [
        "broken.png",
        "0000.png",
        "0006.png",
    ]


def test_photograph_decoded_smaller_has_nearly_the_same_vector(tmp_path: Path) -> None:
    picture = decode(next(one for one in photographs() if one.id == "astronaut"))
    pack(tmp_path / "0.tar", {"a.jpg": encoded(picture, "JPEG")})
    shards = open_image_shards(tmp_path)
    sizes: list[int] = []

    class Measuring(ToyEncoder):
        def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> Any:
            sizes.extend(decode(one).width for one in images)
            return super().encode_image(images)

    run_shards(Embed(Measuring()), shards, tmp_path / "whole")
    run_shards(Embed(Measuring(), size_hint=64), shards, tmp_path / "small")
    whole, small = (open_embeddings(tmp_path / name).shards[0].vectors[:] for name in ("whole", "small"))
    assert sizes == [512, 64] and float(whole[0] @ small[0]) > 0.999
    with pytest.raises(MismatchError, match="size_hint"):
        run_shards(Embed(ToyEncoder()), shards, tmp_path / "small")


def test_tars_of_a_url_are_read_there(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for tar in tars:
        memory.pipe_file(f"/laion/{tar.tar.name}", Path(tar.tar.path).read_bytes())
    remote = open_image_shards("memory://laion")
    run_shards(Embed(ToyEncoder()), remote, tmp_path / "out")
    names = {name: made for name, made in content(tmp_path / "out").items() if name.endswith(".npy")}
    assert names == {name: made for name, made in whole.items() if name.endswith(".npy")}
    first = next(open_embeddings(tmp_path / "out").shards[0].rows())
    assert first.source == f"{remote[0].tar}#0000.png"


# --- done once --------------------------------------------------------------------------------------------


def test_done_shards_are_skipped_and_missing_files_are_made_again(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    assert run_shards(Embed(ToyEncoder()), tars, out, choose(3, shards="1-2")).done == 2
    assert "zsqretrieval.json" not in content(out)
    (out / "metadata/metadata_0002.parquet").unlink()
    (out / "stats/embed_0001.json").write_text("{")
    assert run_shards(Embed(ToyEncoder()), tars, out).done == 3
    report = run_shards(Embed(ToyEncoder()), tars, out)
    assert (report.done, report.known, report.images) == (0, 3, 0)
    assert content(out) == whole


class Twin(ToyEncoder):
    fingerprint = "twin"


def test_folder_of_another_encoder_or_of_other_tars_is_refused(
    tars: list[ImageShard], tmp_path: Path
) -> None:
    run_shards(Embed(ToyEncoder()), tars, tmp_path / "out")
    for task, some in ((Embed(Twin()), tars), (Embed(ToyEncoder()), tars[1:])):
        with pytest.raises(MismatchError, match="shard 0 was made of"):
            run_shards(task, some, tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"shards": "2-4, 7"}, [2, 3, 4, 7]),
        ({"worker": 1, "of": 3}, [1, 4, 7]),
        ({"shards": "2-7", "worker": 1, "of": 2}, [3, 5, 7]),
        ({"worker": 8, "of": 9}, []),
    ],
)
def test_workers_share_the_shards(given: dict[str, Any], expected: list[int]) -> None:
    assert choose(8, **given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shards": "8"}, "no shard 8"),
        ({"shards": "3-2"}, "names no shards"),
        ({"shards": "all"}, "names no shards"),
        ({"worker": 2, "of": 2}, "at most 1"),
        ({"of": 0}, "at least 1"),
    ],
)
def test_shards_that_do_not_exist_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        choose(8, **given)


# --- failures ---------------------------------------------------------------------------------------------


def test_failing_shard_is_tried_again_named_and_done_later(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    sound = Path(tars[1].tar.path).read_bytes()
    Path(tars[1].tar.path).write_bytes(sound[:1500])
    report = run_shards(Embed(ToyEncoder()), tars, tmp_path / "out", attempts=2)
    assert (report.done, [one.source for one in report.failed]) == (2, ["00001.tar"])
    failure = json.loads((tmp_path / "out/failed/embed_0001.json").read_text())
    assert (failure["shard"], failure["attempts"]) == (1, 2)
    assert "not a whole tar" in failure["failed"]
    assert "img_emb/img_emb_0001.npy" not in content(tmp_path / "out")
    Path(tars[1].tar.path).write_bytes(sound)
    assert run_shards(Embed(ToyEncoder()), tars, tmp_path / "out").done == 1
    assert content(tmp_path / "out") == whole


def test_passing_fault_is_outlived(
    tars: list[ImageShard], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[int] = []

    def fail_once(
        task: Task, tars: Sequence[ImageShard], number: int, out: Path, **settings: Any
    ) -> dict[str, Any]:
        attempts.append(number)
        if number == 0 and attempts.count(0) < 3:
            raise OSError(5, "Input/output error")
        return run_shard(task, tars, number, out, **settings)

    monkeypatch.setattr(shards, "run_shard", fail_once)
    assert run_shards(Embed(ToyEncoder()), tars, tmp_path / "out").failed == ()
    assert attempts == [0, 1, 2, 0, 0]


def test_broken_encoder_ends_the_run(tars: list[ImageShard], tmp_path: Path) -> None:
    class Broken(ToyEncoder):
        def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> Any:
            return super().encode_image(images)[:, :3]

    with pytest.raises(PartError, match="shape"):
        run_shards(Embed(Broken()), tars, tmp_path / "out")
    assert content(tmp_path / "out") == {}


# --- killed workers ---------------------------------------------------------------------------------------


class Slow(ToyEncoder):
    def encode_image(self, images: Sequence[Image], *, batch_size: int = 32) -> Any:
        time.sleep(0.01)
        return super().encode_image(images)


def work(tars: list[ImageShard], out: Path, dies_at: int | None) -> None:
    task = Embed(Slow() if dies_at is None else ToyEncoder())
    task.batch_size = 2
    if dies_at is not None:
        replace, calls = Path.replace, iter(range(100))

        def dying(self: Path, target: Any) -> Any:
            if next(calls) == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = dying  # type: ignore[method-assign]
    run_shards(task, tars, out)


def start(tars: list[ImageShard], out: Path, dies_at: int | None = None) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        process = multiprocessing.get_context("fork").Process(target=work, args=(tars, out, dies_at))
        process.start()
    return process


needs_fork = pytest.mark.skipif(os.name == "nt", reason="no fork and no SIGKILL")


@needs_fork
@pytest.mark.parametrize("step", range(10))  # three renames for each of three shards, and the facts
def test_worker_killed_before_any_rename_loses_and_doubles_nothing(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes], step: int
) -> None:
    process = start(tars, tmp_path / "out", step)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    known = run_shards(Embed(ToyEncoder()), tars, tmp_path / "out").known
    assert known == step // 3
    assert content(tmp_path / "out") == whole


@needs_fork
def test_worker_killed_at_any_moment_loses_and_doubles_nothing(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    chance = random.Random(19)
    ends: list[int | None] = []
    for turn in range(200):
        process = start(tars, tmp_path / "out")
        process.join(chance.uniform(0, 0.05 + 0.01 * turn))
        process.kill()
        process.join()
        ends.append(process.exitcode)
        if process.exitcode == 0:
            break
    assert ends[-1] == 0 and -signal.SIGKILL in ends
    assert content(tmp_path / "out") == whole


@needs_fork
def test_workers_on_the_same_shards_make_the_same_files(
    tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with locked(out, exclusive=True):  # both finish shard 0, then wait
        processes = [start(tars, out) for _ in range(2)]
        time.sleep(0.2)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert content(out) == whole


# --- the other tasks --------------------------------------------------------------------------------------


def test_questions_are_those_of_an_album(tars: list[ImageShard], tmp_path: Path) -> None:
    report = run_shards(WriteQuestions(ToyGenerator(), 2), tars, tmp_path / "out")
    assert report.images == 16
    table = parquet.read_table(tmp_path / "out/questions/questions_0000.parquet").to_pylist()
    assert {row["id"] for row in table} <= {f"00000/{n:04d}" for n in range(7)}
    assert all(row["text"].endswith("?") and row["log_likelihood"] <= 0 for row in table)
    again = run_shards(WriteQuestions(ToyGenerator(), 2), tars, tmp_path / "again")
    assert (again.done, content(tmp_path / "again")) == (3, content(tmp_path / "out"))


def test_features_are_found_by_the_digests_of_their_images(tars: list[ImageShard], tmp_path: Path) -> None:
    generator = ToyStatesGenerator()
    run_shards(KeepStates(generator), tars, tmp_path / "out")
    pictures = [Image(png(colour), colour) for colour in COLOUR]
    found = StateStore(generator, tmp_path / "out").get(map(digest, pictures))
    expected = generator.image_states(pictures)
    np.testing.assert_array_equal([found[digest(one)] for one in pictures], expected)


def test_generator_without_features_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="computes no image features"):
        KeepStates(ToyGenerator())


def test_tasks_share_a_folder(tars: list[ImageShard], tmp_path: Path, whole: dict[str, bytes]) -> None:
    for task in (KeepStates(ToyStatesGenerator()), Embed(ToyEncoder())):
        assert run_shards(task, tars, tmp_path / "out").done == 3
    assert whole.items() <= content(tmp_path / "out").items()


def test_unknown_task_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no task 'index'"):
        make_task("index", {"plugin": "mini", "config": {}})
