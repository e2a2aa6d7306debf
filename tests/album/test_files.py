"""Atomic writes and snapshots: whole or unchanged when written, verified when read."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from zsqretrieval._util import files as storage
from zsqretrieval._util.files import atomic_write, open_snapshot, peek_snapshot, write_snapshot
from zsqretrieval.errors import IntegrityError


def test_atomic_write_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    for content in ("one", "two"):
        with atomic_write(path) as temporary:
            temporary.write_text(content)
            assert temporary.parent == tmp_path and (content == "one") is not path.exists()
        assert path.read_text() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("flushed", [False, True])
def test_failed_atomic_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], flushed: bool
) -> None:
    refuse = Mock(side_effect=error)
    path = tmp_path / "a.txt"
    path.write_text("one")
    if flushed:
        monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("tw")
        if not flushed:
            refuse()
    assert path.read_text() == "one" and list(tmp_path.iterdir()) == [path]


def put(path: Path, content: bytes, **facts: object) -> None:
    write_snapshot(
        path,
        "letters",
        {"dim": 3, **facts},
        {"a.bin": lambda file: file.write_bytes(content), "b.bin": lambda file: file.write_bytes(b"b")},
    )


def get(path: Path) -> bytes:
    with open_snapshot(path, "letters") as snapshot:
        return snapshot.file("a.bin").read_bytes()


def data_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.name != "manifest.json")


def test_snapshot_round_trip_and_peek_without_data_files(tmp_path: Path) -> None:
    put(tmp_path / "deep" / "er", b"one", fingerprint="f")
    assert get(tmp_path / "deep" / "er") == b"one"
    for file in data_files(tmp_path / "deep" / "er"):
        file.unlink()
    snapshot = peek_snapshot(tmp_path / "deep" / "er")
    assert (snapshot.kind, snapshot.facts) == ("letters", {"dim": 3, "fingerprint": "f"})
    assert snapshot.files["a.bin"].size == 3


def test_replacing_deletes_stale_files_but_no_foreign_ones(tmp_path: Path) -> None:
    put(tmp_path, b"one")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".a.bin.0123456789abcdef.tmp").write_text("left by a killed save")
    put(tmp_path, b"two")
    assert get(tmp_path) == b"two"
    assert len(data_files(tmp_path)) == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_saving_the_same_content_again_changes_nothing(tmp_path: Path) -> None:
    put(tmp_path, b"one")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    put(tmp_path, b"one")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("failing", ["part", "manifest"])
def test_failed_write_keeps_the_old_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    put(tmp_path, b"one")
    names = sorted(file.name for file in tmp_path.iterdir())

    refuse = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    if failing == "part":
        with pytest.raises(OSError, match="No space"):
            write_snapshot(
                tmp_path, "letters", {}, {"a.bin": lambda file: file.write_bytes(b"2"), "b.bin": refuse}
            )
    else:
        monkeypatch.setattr(storage, "_manifest_text", refuse)
        with pytest.raises(OSError, match="No space"):
            put(tmp_path, b"two")
        monkeypatch.undo()
    assert get(tmp_path) == b"one"
    put(tmp_path, b"one")  # the next save sweeps what the failed one left
    assert sorted(file.name for file in tmp_path.iterdir()) == names


def test_damage_to_any_file_is_an_integrity_error(tmp_path: Path) -> None:
    put(tmp_path, b"some content")
    for file in sorted(tmp_path.iterdir()):
        good = file.read_bytes()
        middle = len(good) // 2
        flipped = good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :]
        for bad in (b"", good[:-1] if file.name != "manifest.json" else good[:-3], flipped, good + b"x"):
            file.write_bytes(bad)
            with pytest.raises(IntegrityError, match=file.name):
                get(tmp_path)
        file.unlink()
        with pytest.raises(IntegrityError, match=file.name):
            get(tmp_path)
        file.write_bytes(good)
    assert get(tmp_path) == b"some content"


def test_flipped_bit_anywhere_in_the_manifest_is_an_integrity_error(tmp_path: Path) -> None:
    put(tmp_path, b"x")
    manifest = tmp_path / "manifest.json"
    good = manifest.read_bytes()
    meaning = json.loads(good)
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 0x02
        manifest.write_bytes(bytes(bad))
        try:
            same = json.loads(bytes(bad)) == meaning
        except ValueError:
            same = False
        if not same:
            with pytest.raises(IntegrityError, match=r"manifest\.json"):
                peek_snapshot(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"x"', "{}", '{"checksum": 1}', "{", "\xff"])
def test_manifest_of_another_shape_is_an_integrity_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(IntegrityError, match=r"manifest\.json"):
        peek_snapshot(tmp_path)


def forge(path: Path, **changes: object) -> None:
    """Change manifest entries and give them a valid checksum."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest.pop("checksum")
    manifest.update(changes)
    manifest["checksum"] = storage._checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


OUTSIDE = {"a.bin": {"name": "../secret.bin", "size": 1, "sha256": "0"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"version": 99}, "version 99.*version 1"), ({"files": OUTSIDE}, "impossible file name")],
)
def test_another_version_or_a_file_outside_the_folder_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    put(tmp_path / "snap", b"x")
    (tmp_path / "secret.bin").write_bytes(b"x")
    forge(tmp_path / "snap", **changes)
    with pytest.raises(IntegrityError, match=message):
        peek_snapshot(tmp_path / "snap")


def test_missing_part_is_named(tmp_path: Path) -> None:
    put(tmp_path, b"x")
    with open_snapshot(tmp_path, "letters") as snapshot, pytest.raises(IntegrityError, match=r"'c\.bin'"):
        snapshot.file("c.bin")


def test_folder_without_a_snapshot_is_an_integrity_error(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="nothing was saved there"):
        peek_snapshot(tmp_path)
    with pytest.raises(IntegrityError, match="nothing was saved there"):
        get(tmp_path / "missing")
