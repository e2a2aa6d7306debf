from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

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

from zsqretrieval.album.catalog import Catalog, Record
from zsqretrieval.album.changes import Change, Position
from zsqretrieval.data.loader import NewImage
from zsqretrieval.errors import AlbumError, IntegrityError, InvalidInputError, MismatchError

DIM = 4


def vector(number: int, dim: int = DIM) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(dim).astype(np.float32)


def row(number: int, **changes: Any) -> NewImage:
    fields = {
        "id": f"{number}.jpg",
        "source": f"/photos/{number}.jpg",
        "width": 640,
        "height": 480,
        "bytes": 1000 + number,
        "digest": f"{number:064x}",
        "vector": vector(number),
        "caption": f"caption {number} ä\0",
        "metadata": {"n": number, "tags": ["a", None]},
    }
    return NewImage(**{**fields, **changes})


@pytest.fixture
def catalog() -> Iterator[Catalog]:
    with Catalog.create(None, dim=DIM) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "catalog.sqlite"


def keys_of(catalog: Catalog) -> list[int]:
    return [record.key for record in catalog.iter_records()]


def keys_in(path: Path) -> list[int]:
    with Catalog.open(path) as catalog:
        return keys_of(catalog)


def replay(catalog: Catalog, held: dict[int, np.ndarray], since: Position, batch_size: int) -> Position:
    """Apply the log to a dict; like an index, it refuses keys twice and removals of unknown keys."""
    for change in catalog.log.changes(since, batch_size=batch_size):
        since = step(held, since, change, batch_size)
    return since


def step(held: dict[int, np.ndarray], since: Position, change: Change, batch_size: int) -> Position:
    assert change.added_keys.dtype == change.removed_keys.dtype == np.int64
    assert change.added_vectors.dtype == np.float32
    assert change.added_vectors.shape == (len(change.added_keys), DIM)
    assert len(change.added_keys) <= batch_size and len(change.removed_keys) <= batch_size
    assert change.position != since
    for key in change.removed_keys:
        del held[int(key)]
    for key, values in zip(change.added_keys, change.added_vectors, strict=True):
        assert int(key) not in held
        held[int(key)] = values
    return change.position


# --- adding, finding, removing


def test_added_images_can_be_read(catalog: Catalog) -> None:
    keys = catalog.add([row(2), row(1), row(3, caption=None, metadata={})])
    assert keys.dtype == np.int64 and keys.tolist() == [1, 2, 3]
    assert len(catalog) == 3
    record = catalog.find("2.jpg")
    assert record == Record(
        key=1, id="2.jpg", source="/photos/2.jpg", width=640, height=480, bytes=1002,
        digest=f"{2:064x}", caption="caption 2 ä\0", metadata={"n": 2, "tags": ["a", None]},
    )  # fmt: skip
    assert [r.id for r in catalog.records([3, 1, 3])] == ["3.jpg", "2.jpg", "3.jpg"]
    assert catalog.records([3])[0].caption is None
    assert np.array_equal(catalog.log.get(np.array([2, 1, 2])), [vector(1), vector(2), vector(1)])
    assert catalog.log.get([1]).dtype == np.float32
    assert catalog.find("4.jpg") is None
    assert {id: one.key for id, one in catalog.by_id(["1.jpg", "9.jpg"]).items()} == {"1.jpg": 2}
    assert catalog.known_digests([f"{3:064x}", "f"]) == {f"{3:064x}": 3}
    catalog.verify()


def test_empty_input_gives_empty_output(catalog: Catalog) -> None:
    assert catalog.add([]).tolist() == []
    assert catalog.add([]).dtype == np.int64
    catalog.remove([])
    assert catalog.records([]) == []
    assert catalog.log.get([]).shape == (0, DIM)
    assert catalog.by_id([]) == {}
    assert list(catalog.log.changes(Position())) == []
    assert len(catalog) == 0 and catalog.log.position == Position()


def test_more_keys_than_sqlite_takes_variables(catalog: Catalog) -> None:
    keys = catalog.add([row(i) for i in range(2500)])
    shuffled = np.random.default_rng(0).permutation(keys)
    assert [r.key for r in catalog.records(shuffled)] == shuffled.tolist()
    assert np.array_equal(catalog.log.get(shuffled)[0], vector(int(shuffled[0]) - 1))
    assert len(catalog.known_digests(f"{i:064x}" for i in range(-1, 2500))) == 2500
    assert keys_of(catalog) == keys.tolist()
    catalog.remove(shuffled[:2000])
    assert sorted(keys_of(catalog)) == sorted(shuffled[2000:].tolist())


def test_rename_changes_id_source_caption_and_metadata(catalog: Catalog) -> None:
    catalog.add([row(1), row(2)])
    before = catalog.log.position
    first, second = catalog.records([1, 2])
    other = replace(first, id="a/1.jpg", source="/a/1.jpg", caption=None, metadata={"n": 0})
    catalog.rename([other])
    assert catalog.records([1, 2]) == [other, second] and catalog.log.position == before
    assert catalog.by_digest([first.digest, f"{9:064x}"]) == {first.digest: other}
    assert catalog.find("1.jpg") is None and np.array_equal(catalog.log.get([1])[0], vector(1))
    catalog.rename([other])  # no change
    for wrong, message in (
        (replace(other, id="2.jpg"), r"already holds the id '2\.jpg' \(key 2\)"),
        (replace(other, key=3), "no image with key 3"),
        (replace(other, metadata={"n": NAN}), "cannot be kept as JSON"),
        (replace(other, id=""), "its id must be a non-empty string"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            catalog.rename([wrong])
    assert catalog.records([1, 2]) == [other, second]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(1, digest="new"), "already holds the id '1.jpg'"),
        (row(1, id="new"), "already holds the digest"),
        (row(5), "the id '5.jpg' is given twice"),
        (row(5, id="new"), f"the digest '{5:064x}' is given twice"),
        (row(7, vector=vector(7, DIM + 1)), r"'7.jpg': the vector must be float32 \[4\], not float32 \[5\]"),
        (row(7, vector=np.ones(DIM, np.int64)), "int64"),
        (row(7, vector=np.array([1, NAN, 0, 0], np.float32)), "zero or not finite"),
        (row(7, vector=np.array([1, INF, 0, 0], np.float32)), "zero or not finite"),
        (row(7, vector=np.array([1, 1e300, 0, 0])), "zero or not finite"),
        (row(7, vector=np.zeros(DIM, np.float32)), "zero or not finite"),
        (row(7, metadata={"score": NAN}), "metadata of '7.jpg' cannot be kept as JSON"),
        (row(7, metadata={"path": Path()}), "metadata of '7.jpg' cannot be kept as JSON"),
        (row(7, id=""), "its id must be a non-empty string"),
        (row(7, digest=None), "its digest must be"),
        (row(7, source="caf\udce9"), "its source is not Unicode"),
    ],
)
def test_bad_image_is_refused_and_nothing_is_added(catalog: Catalog, bad: NewImage, message: str) -> None:
    catalog.add([row(1)])
    before = catalog.log.position
    with pytest.raises(InvalidInputError, match=message):
        catalog.add([row(5), bad, row(6)])
    assert keys_of(catalog) == [1] and catalog.log.position == before
    assert catalog.add([row(5)]).tolist() == [2]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ([1, 9], "no image with key 9"),
        ([1, 1], "twice"),
        ([[1]], r"\[1, 1\]"),
        ([1.0], "float64"),
        ([-1], "-1"),
    ],
)
def test_bad_removal_is_refused_and_nothing_is_removed(catalog: Catalog, keys: Any, message: str) -> None:
    catalog.add([row(1), row(2)])
    with pytest.raises(InvalidInputError, match=message):
        catalog.remove(keys)
    assert keys_of(catalog) == [1, 2] and catalog.log.position == Position(2, 0)


def test_unknown_keys_are_named(catalog: Catalog) -> None:
    catalog.add([row(1)])
    for read in (catalog.records, catalog.log.get):
        with pytest.raises(InvalidInputError, match=r"no image with key 5; 6; 7; and 1 more"):
            read([5, 1, 6, 7, 8])


def test_id_that_is_not_unicode_is_refused(catalog: Catalog) -> None:
    for read in (catalog.find, lambda id: catalog.namesakes([id]), lambda id: catalog.by_id([id])):
        with pytest.raises(InvalidInputError, match=r"'caf\\udce9' is not Unicode"):
            read("caf\udce9")
    assert len(catalog) == 0


def test_namesakes_have_the_id_or_the_id_and_a_suffix(catalog: Catalog) -> None:
    names = ["a", "a#2", "a#", "a#1", "a$", "a!", "ab", "A", "a\0", "b#a"]
    catalog.add([row(n, id=name) for n, name in enumerate(names)])
    for given, expected in (
        (["a"], ["a", "a#", "a#1", "a#2"]),
        (["a#1"], ["a#1"]),
        (["b", "a\0", "b"], ["a\0", "b#a"]),
        ([f"{n}" for n in range(2000)] + ["a#", "a"], ["a", "a#", "a#1", "a#2"]),
        ([""], []),
        ([], []),
    ):
        assert [record.id for record in catalog.namesakes(given)] == expected


# --- several changes as one


def test_transaction_is_one_change(path: Path) -> None:
    with Catalog.create(path, dim=DIM) as catalog, Catalog.open(path) as other:
        catalog.add([row(1), row(2)])
        with catalog.transaction():
            catalog.remove([1])
            catalog.add([row(3)])
            catalog.add([row(1)])
            catalog.set_meta("x", 1)
            assert keys_of(catalog) == [2, 3, 4] and keys_of(other) == [1, 2]
        assert keys_of(other) == [2, 3, 4] and other.get_meta("x") == 1
        held: dict[int, np.ndarray] = {}
        assert replay(other, held, Position(), 2) == catalog.log.position == Position(4, 1)
        assert sorted(held) == [2, 3, 4]


def test_refusal_within_a_transaction_undoes_only_itself(path: Path) -> None:
    with Catalog.create(path, dim=DIM) as catalog:
        with catalog.transaction():
            catalog.add([row(1)])
            with pytest.raises(InvalidInputError, match="already holds the id"):
                catalog.add([row(2), row(1)])
            with pytest.raises(KeyboardInterrupt), catalog.transaction():
                catalog.remove([1])
                raise KeyboardInterrupt
            catalog.add([row(3)])
        assert keys_in(path) == [1, 2]
        assert [record.id for record in catalog.iter_records()] == ["1.jpg", "3.jpg"]


def test_transaction_left_open_by_an_interrupt_is_rolled_back(path: Path) -> None:
    with Catalog.create(path, dim=DIM) as catalog:
        catalog._database.connection.execute("BEGIN IMMEDIATE")
        catalog._database.connection.execute("INSERT INTO removals (key, inverse) VALUES (1, ~1)")
        assert catalog.add([row(1)]).tolist() == [1]
        assert keys_in(path) == [1] and catalog.log.position == Position(1, 0)


def test_other_threads_wait_for_a_transaction(catalog: Catalog) -> None:
    seen: list[int] = []
    with catalog.transaction():
        thread = threading.Thread(target=lambda: seen.append(len(catalog)))
        thread.start()
        catalog.add([row(1)])
        thread.join(0.05)
        assert seen == []
        catalog.add([row(2)])
    thread.join()
    assert seen == [2]


def test_meta(catalog: Catalog, path: Path) -> None:
    assert catalog.get_meta("x") is None
    catalog.set_meta("x", {"a": [1, None, "ä"]})
    catalog.set_meta("x", [1.5])
    assert catalog.get_meta("x") == [1.5]
    with pytest.raises(InvalidInputError, match="JSON"):
        catalog.set_meta("x", NAN)
    for name in ("dim", "settings"):
        with pytest.raises(InvalidInputError, match="fixed"):
            catalog.set_meta(name, 1)
    with Catalog.create(path, dim=DIM) as first:
        first.set_meta("x", 1)
    with Catalog.open(path) as second:
        assert second.get_meta("x") == 1


# --- against a model


class CatalogMachine(RuleBasedStateMachine):
    """The catalog against a dict, and replays of the change log at every pace."""

    @initialize()
    def start(self) -> None:
        self.catalog = Catalog.create(None, dim=DIM)
        self.model: dict[int, int] = {}  # key -> number of the image
        self.last_key = 0
        self.moments: list[tuple[Position, dict[int, np.ndarray]]] = [(Position(), {})]
        self.follower: dict[int, np.ndarray] = {}
        self.followed = Position()

    @rule(numbers=st.lists(st.integers(0, 15), max_size=5))
    def add(self, numbers: list[int]) -> None:
        clash = len(set(numbers)) < len(numbers) or set(numbers) & set(self.model.values())
        if clash:
            with pytest.raises(InvalidInputError):
                self.catalog.add([row(number) for number in numbers])
            return
        keys = self.catalog.add([row(number) for number in numbers]).tolist()
        assert keys == list(range(self.last_key + 1, self.last_key + 1 + len(numbers)))
        self.last_key += len(numbers)
        self.model.update(zip(keys, numbers, strict=True))

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        known = st.sampled_from(sorted(self.model)) if self.model else st.nothing()
        keys = data.draw(st.lists(known, unique=True) | st.lists(st.integers(1, self.last_key + 1)))
        if len(set(keys)) < len(keys) or not set(keys) <= self.model.keys():
            with pytest.raises(InvalidInputError):
                self.catalog.remove(keys)
            return
        self.catalog.remove(keys)
        for key in keys:
            del self.model[key]

    @precondition(lambda self: self.model)
    @rule(data=st.data(), numbers=st.lists(st.integers(16, 30), unique=True, max_size=3))
    def change_and_take_back(self, data: st.DataObject, numbers: list[int]) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.model)), unique=True, max_size=3))
        with pytest.raises(KeyboardInterrupt), self.catalog.transaction():
            self.catalog.add([row(number) for number in numbers])
            self.catalog.remove(keys)
            raise KeyboardInterrupt

    @rule()
    def remember_this_moment(self) -> None:
        held = {key: vector(number) for key, number in self.model.items()}
        self.moments.append((self.catalog.log.position, held))

    @rule(data=st.data(), batch_size=st.integers(1, 4))
    def replay_from_an_earlier_moment(self, data: st.DataObject, batch_size: int) -> None:
        since, held = data.draw(st.sampled_from(self.moments))
        held = dict(held)
        assert replay(self.catalog, held, since, batch_size) == self.catalog.log.position
        self.check_held(held)

    @rule(batch_size=st.integers(1, 3))
    def follow_one_step(self, batch_size: int) -> None:
        """A slow replay, stopped after each step while the catalog changes."""
        change = next(self.catalog.log.changes(self.followed, batch_size=batch_size), None)
        if change is None:
            assert self.followed == self.catalog.log.position
            self.check_held(self.follower)
        else:
            self.followed = step(self.follower, self.followed, change, batch_size)

    def check_held(self, held: dict[int, np.ndarray]) -> None:
        assert held.keys() == self.model.keys()
        for key, number in self.model.items():
            assert np.array_equal(held[key], vector(number))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        keys = data.draw(st.lists(st.sampled_from(sorted(self.model)), max_size=6))
        assert [r.id for r in self.catalog.records(keys)] == [f"{self.model[key]}.jpg" for key in keys]
        found = self.catalog.log.get(keys)
        assert all(np.array_equal(f, vector(self.model[key])) for f, key in zip(found, keys, strict=True))
        ids = {f"{number}.jpg": key for key, number in self.model.items()}
        found = self.catalog.by_id(f"{number}.jpg" for number in range(16))
        assert {id: one.key for id, one in found.items()} == ids

    @invariant()
    def holds_the_same(self) -> None:
        if hasattr(self, "model"):
            assert len(self.catalog) == len(self.model)
            assert keys_of(self.catalog) == sorted(self.model)

    def teardown(self) -> None:
        if hasattr(self, "catalog"):
            self.catalog.verify()
            self.catalog.close()


@pytest.mark.parametrize("examples", [40, pytest.param(150, marks=pytest.mark.slow)])
def test_catalog_and_its_replays_agree_with_a_dict(examples: int) -> None:
    run_state_machine_as_test(
        CatalogMachine, settings=settings(max_examples=examples, stateful_step_count=40, deadline=None)
    )


def test_position_from_the_future_is_refused(catalog: Catalog) -> None:
    catalog.add([row(1)])
    for since in (Position(2, 0), Position(0, 1)):
        with pytest.raises(MismatchError, match="stands at"):
            next(catalog.log.changes(since))


# --- the file


def test_catalog_is_unchanged_after_closing_and_opening(path: Path) -> None:
    with Catalog.create(path, dim=DIM, settings={"fingerprint": "abc", "n": 1}) as catalog:
        catalog.add([row(1), row(2)])
        catalog.remove([1])
        position = catalog.log.position
    with Catalog.open(path) as catalog:
        assert (catalog.dim, catalog.settings) == (DIM, {"fingerprint": "abc", "n": 1})
        assert keys_of(catalog) == [2] and catalog.log.position == position == Position(2, 1)
        catalog.verify()
        assert str(path) in repr(catalog)


def run_sql(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as other:
        other.execute(statement)


@pytest.mark.parametrize("foreign", [False, True])
def test_create_on_an_existing_file_is_refused(path: Path, foreign: bool) -> None:
    if foreign:
        run_sql(path, "CREATE TABLE mine (x)")
    else:
        Catalog.create(path, dim=DIM).close()
    before = path.read_bytes()
    with pytest.raises(AlbumError, match="exists already"):
        Catalog.create(path, dim=DIM)
    assert path.read_bytes() == before
    with pytest.raises(AlbumError, match="unable to open"):
        Catalog.create(path / "below" / "a.sqlite", dim=DIM)
    with pytest.raises(InvalidInputError, match="dim must be at least 1"):
        Catalog.create(None, dim=0)


def test_interrupted_create_can_be_repeated(path: Path) -> None:
    path.touch()  # what a killed process leaves: SQLite makes the file first and commits to it later
    with pytest.raises(IntegrityError, match="not a catalog"):
        Catalog.open(path)
    Catalog.create(path, dim=DIM).close()
    assert keys_in(path) == []


def test_foreign_and_newer_files_are_refused(path: Path) -> None:
    with pytest.raises(AlbumError, match="no catalog here"):
        Catalog.open(path)
    assert not path.exists()
    path.write_bytes(b"no database at all " * 1000)
    for use in (lambda: Catalog.open(path), lambda: Catalog.create(path, dim=DIM)):
        with pytest.raises(IntegrityError, match="not a database"):
            use()
    path.unlink()
    run_sql(path, "CREATE TABLE images (x)")
    with pytest.raises(IntegrityError, match="not a catalog of zsqretrieval"):
        Catalog.open(path)
    path.unlink()
    Catalog.create(path, dim=DIM).close()
    run_sql(path, "PRAGMA user_version = 4")
    with pytest.raises(IntegrityError, match="format 4, not 3; use the zsqretrieval"):
        Catalog.open(path)


def test_damaged_vector_is_named(path: Path) -> None:
    with Catalog.create(path, dim=DIM) as catalog:
        catalog.add([row(1), row(2)])
    data = bytearray(path.read_bytes())
    at = data.index(vector(2).tobytes())
    data[at + 3] ^= 1
    path.write_bytes(data)
    with Catalog.open(path) as catalog:
        assert np.array_equal(catalog.log.get([1])[0], vector(1))
        changes = catalog.log.changes(Position())
        for read in (lambda: catalog.log.get([1, 2]), lambda: list(changes), catalog.verify):
            with pytest.raises(IntegrityError, match="vector of image 2 is damaged"):
                read()


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9])
def test_truncated_file_is_an_integrity_error(path: Path, keep: float) -> None:
    with Catalog.create(path, dim=DIM) as catalog:
        catalog.add([row(i) for i in range(2000)])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(IntegrityError), Catalog.open(path) as catalog:
        catalog.verify()
    with pytest.raises(IntegrityError), Catalog.open(path) as catalog:
        catalog.log.get(np.arange(1, 2001))


def test_full_disk_changes_nothing(path: Path) -> None:
    with Catalog.create(path, dim=DIM) as catalog:
        catalog.add([row(0)])
        pages = catalog._database.connection.execute("PRAGMA page_count").fetchone()[0]
        catalog._database.connection.execute(f"PRAGMA max_page_count = {pages + 3}")
        with pytest.raises(AlbumError, match="disk is full: nothing was changed; free some space"):
            catalog.add([row(i) for i in range(1, 5000)])
        assert keys_of(catalog) == [1]
        catalog._database.connection.execute("PRAGMA max_page_count = 1000000")
        assert catalog.add([row(1)]).tolist() == [2]
        catalog.verify()


def test_long_lock_is_an_error_and_a_short_one_is_waited_for(path: Path) -> None:
    Catalog.create(path, dim=DIM).close()
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    with Catalog.open(path, timeout=0.05) as catalog:
        assert len(catalog) == 0, "reading goes on while another process writes"
        with pytest.raises(AlbumError, match="locked: another process is writing"):
            catalog.add([row(1)])
    with Catalog.open(path) as catalog:
        timer = threading.Timer(0.2, lambda: other.execute("COMMIT"))
        timer.start()
        assert catalog.add([row(1)]).tolist() == [1]
        timer.join()
    other.close()


# --- backup


def test_backup_is_a_whole_catalog(catalog: Catalog, path: Path) -> None:
    catalog.add([row(i) for i in range(50)])
    catalog.backup(path)
    catalog.add([row(50)])
    with Catalog.open(path) as copy:
        assert len(copy) == 50 and copy.dim == DIM
        copy.verify()
        copy.backup(path.with_name("second.sqlite"))
    catalog.backup(path)
    assert len(keys_in(path)) == 51
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_backup_never_replaces_a_catalog_in_use(path: Path, catalog: Catalog) -> None:
    catalog.add([row(1)])
    with Catalog.create(path, dim=DIM) as used:
        for source in (catalog, used):
            with pytest.raises(AlbumError, match="in use"):
                source.backup(path)
        used.add([row(2)])
        assert keys_of(used) == [1]
    with pytest.raises(AlbumError, match="unable to open"):
        catalog.backup(path / "below" / "a.sqlite")


def test_failed_backup_keeps_the_old_one(
    path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog.add([row(1)])
    catalog.backup(path)
    catalog.add([row(2)])
    monkeypatch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(AlbumError, match="cannot be written: No space left"):
        catalog.backup(path)
    monkeypatch.undo()
    assert keys_in(path) == [1]
    assert [p.name for p in path.parent.iterdir() if p.suffix == ".tmp"] == []


def test_catalog_in_memory_moves_to_a_file(path: Path) -> None:
    with Catalog.create(None, dim=DIM, settings={"a": 1}) as catalog:
        catalog.add([row(i) for i in range(5)])
        catalog.remove([2])
        catalog.move_to(path)
        assert catalog.add([row(7)]).tolist() == [6]
        assert str(path) in repr(catalog) and catalog.settings == {"a": 1}
        assert keys_in(path) == keys_of(catalog) == [1, 3, 4, 5, 6]
        with pytest.raises(AlbumError, match="exists already"):
            catalog.move_to(path)
        with pytest.raises(AlbumError, match="unable to open"):
            catalog.move_to(path / "below" / "a.sqlite")
        catalog.verify()
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# --- processes


WRITER = """
import json, sys, numpy as np
from zsqretrieval.album.catalog import Catalog
from zsqretrieval.data.loader import NewImage

path, name = sys.argv[1:]
catalog = Catalog.open(path)
for batch in range(30):
    vectors = np.random.default_rng(batch).standard_normal((5, 4)).astype("float32")
    names = [f"{name}-{batch}-{i}" for i in range(5)]
    keys = catalog.add([NewImage(n, n, 1, n, vector=v) for n, v in zip(names, vectors)]).tolist()
    removed = keys[:1] if batch % 3 == 0 else []
    catalog.remove(removed)
    print(json.dumps({"added": keys, "removed": removed}), flush=True)
catalog.close()
"""


def test_two_processes_write_while_a_third_replays_the_log(path: Path) -> None:
    with Catalog.create(path, dim=DIM) as catalog:
        commands = [[sys.executable, "-c", WRITER, str(path), name] for name in "ab"]
        writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for command in commands]
        held: dict[int, np.ndarray] = {}
        position = Position()
        while any(process.poll() is None for process in writers):
            position = replay(catalog, held, position, 8)
            time.sleep(0.01)
        assert [process.returncode for process in writers] == [0, 0]
        reports = [json.loads(line) for process in writers for line in process.communicate()[0].splitlines()]
        replay(catalog, held, position, 8)
        added = [key for report in reports for key in report["added"]]
        removed = {key for report in reports for key in report["removed"]}
        assert len(set(added)) == len(added) == 300 and len(removed) == 20
        assert held.keys() == set(keys_of(catalog)) == set(added) - removed
        catalog.verify()
