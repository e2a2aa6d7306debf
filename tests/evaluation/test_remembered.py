"""Answers in a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from zsqretrieval.errors import IntegrityError
from zsqretrieval.evaluation.remembered import Remembered


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


def test_a_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "said.sqlite"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 20)
    with pytest.raises(IntegrityError, match="delete it, it will refill"):
        Remembered(path, "a")
