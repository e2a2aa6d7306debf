"""Saved indexes of another save, forged key tables and places that cannot be written.

Damage to single files is checked by ``zsqretrieval.testing`` and ``album/test_files.py``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_data import vectors
from zsqretrieval._util import files as storage
from zsqretrieval.errors import IntegrityError
from zsqretrieval.indexes.compressed import CompressedIndex
from zsqretrieval.indexes.exact import ExactIndex
from zsqretrieval.indexes.hnsw import HNSWIndex

KINDS = pytest.mark.parametrize("kind", [ExactIndex, CompressedIndex, HNSWIndex])


def save(kind: Any, path: Path, n: int = 80) -> Any:
    index = kind(16, fingerprint="clip")
    index.add(np.arange(n), vectors(n, 16))
    index.save(path)
    return index


def replace_keys(path: Path, write: Any) -> None:
    """Write the key table anew, with a manifest that agrees."""
    snapshot = storage.peek_snapshot(path)
    content = {part: snapshot.file(part).read_bytes() for part in snapshot.files}
    parts: dict[str, Any] = {
        part: lambda file, data=data: file.write_bytes(data) for part, data in content.items()
    }
    storage.write_snapshot(path, snapshot.kind, snapshot.facts, {**parts, "keys.npy": write})


@KINDS
def test_files_of_another_save_are_refused(kind: Any, tmp_path: Path) -> None:
    save(kind, tmp_path / "a")
    save(kind, tmp_path / "b", n=81)
    ours, theirs = (storage.peek_snapshot(tmp_path / name).file("keys.npy") for name in "ab")
    shutil.copy(theirs, ours)
    with pytest.raises(IntegrityError, match=ours.name):
        kind.load(tmp_path / "a")


@KINDS
@pytest.mark.parametrize(
    "pairs",
    [
        np.array([[0, 0], [0, 1]]),
        np.array([[-1, 0]]),
        np.array([[0, 5000]]),
        np.array([[0, -1]]),
        np.array([[0.0, 1.0]]),
        np.array([1, 2]),
    ],
    ids=["repeated", "negative", "no such row", "row before the first", "floating", "flat"],
)
def test_forged_key_table_is_refused(kind: Any, tmp_path: Path, pairs: np.ndarray) -> None:
    save(kind, tmp_path)
    replace_keys(tmp_path, storage.array_part(pairs))
    with pytest.raises(IntegrityError, match="key table"):
        kind.load(tmp_path)


@KINDS
def test_pickle_in_place_of_an_array_is_refused(kind: Any, tmp_path: Path) -> None:
    save(kind, tmp_path)
    replace_keys(tmp_path, lambda file: np.array([{}], dtype=object).dump(file))
    with pytest.raises(IntegrityError, match="no array"):
        kind.load(tmp_path)


@KINDS
@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_save_to_a_read_only_directory_keeps_the_old_state(kind: Any, tmp_path: Path) -> None:
    index = save(kind, tmp_path / "album")
    (tmp_path / "album").chmod(0o500)
    try:
        with pytest.raises(OSError, match="ermission"):
            index.save(tmp_path / "album")
        assert len(kind.load(tmp_path / "album")) == 80
    finally:
        (tmp_path / "album").chmod(0o700)


@KINDS
def test_file_in_place_of_the_directory_is_refused(kind: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="exists"):
        kind(16).save(tmp_path / "file")
    with pytest.raises(IntegrityError, match="no directory"):
        kind.load(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
