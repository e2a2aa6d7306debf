"""Answers and vectors in files."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as PILImage
from small_sets import write_colours

from zsqretrieval.encoders.cached import CachedEncoder
from zsqretrieval.errors import IntegrityError
from zsqretrieval.evaluation import remembered as remembered_module
from zsqretrieval.evaluation.datasets import read_shards
from zsqretrieval.evaluation.dialog_bench import bench_dialog
from zsqretrieval.evaluation.expand_bench import bench_expand
from zsqretrieval.evaluation.gallery_bench import bench_gallery
from zsqretrieval.evaluation.remembered import Remembered, kept_vectors
from zsqretrieval.evaluation.rerank_bench import bench_rerank
from zsqretrieval.testing.toys import ToyEncoder, ToyGenerator
from zsqretrieval.types import Image


def test_what_was_kept_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    with Remembered(path, "a") as said:
        said["x", "1"] = -0.1
        said["y", "1"] = ["where is this?"]
        said.keep()
        said["z", "1"] = "lost"
        assert said["z", "1"] == "lost"
    with Remembered(path, "a") as said:
        assert dict(said) == {("x", "1"): -0.1, ("y", "1"): ["where is this?"]}
        assert len(said) == 2 and ("z", "1") not in said
        with pytest.raises(TypeError, match="not taken back"):
            del said["x", "1"]
    with Remembered(path, "b") as said:
        assert len(said) == 0


def test_a_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "said.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    opened = []

    def connect(*args: Any, **settings: Any) -> sqlite3.Connection:
        opened.append(sqlite3.Connection(*args, **settings))
        return opened[-1]

    monkeypatch.setattr(remembered_module.sqlite3, "connect", connect)
    with pytest.raises(IntegrityError, match="delete it, it will refill"):
        Remembered(path, "a")
    (connection,) = opened
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


def test_vectors_are_kept_and_their_file_is_closed(tmp_path: Path) -> None:
    encoder = ToyEncoder()
    with kept_vectors(encoder, tmp_path / "new" / "folder") as keeping:
        expected = keeping.encode_text(["red"])
    with pytest.raises(IntegrityError, match="closed"):
        keeping.encode_text(["red"])
    monkey: Any = encoder
    monkey.encode_text = None
    with kept_vectors(encoder, tmp_path / "new" / "folder") as again:
        assert again.encode_text(["red"]).tolist() == expected.tolist()
    with kept_vectors(ToyEncoder(), None) as forgetting:
        assert forgetting.encode_text(["red"]).tolist() == expected.tolist()
    with pytest.raises(KeyboardInterrupt), kept_vectors(encoder, tmp_path) as interrupted:
        raise KeyboardInterrupt
    with pytest.raises(IntegrityError, match="closed"):
        interrupted.encode_text(["red"])


@pytest.mark.parametrize("bench", ["rerank", "dialog", "expand", "gallery"])
def test_an_interrupted_bench_leaves_no_file_open(
    bench: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[CachedEncoder] = []

    def making(*args: Any) -> CachedEncoder:
        made.append(CachedEncoder(*args))
        return made[-1]

    def interrupt(what: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(remembered_module, "CachedEncoder", making)
    data = write_colours(tmp_path / "colours")
    parts: tuple[Any, Any] = ToyEncoder(), ToyGenerator()
    settings: dict[str, Any] = {"work": tmp_path / "work", "progress": interrupt}
    picture = PILImage.new("RGB", (2, 2))
    others = [Image(picture, f"{n}", f"{n}") for n in range(200)]
    with pytest.raises(KeyboardInterrupt):
        if bench == "gallery":
            bench_gallery(*parts, read_shards(data), distractors=others, **settings)
        elif bench == "dialog":
            bench_dialog(*parts, data, dialogs=6, **settings)
        else:
            {"rerank": bench_rerank, "expand": bench_expand}[bench](*parts, data, **settings)
    (keeping,) = made
    with pytest.raises(IntegrityError, match="closed"):
        keeping.encode_text(["red"])
