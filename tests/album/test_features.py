from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
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
    rule,
    run_state_machine_as_test,
)

from seeing import Seeing
from together import together
from zsqretrieval.album import features
from zsqretrieval.album.features import StateStore
from zsqretrieval.errors import AlbumError

GENERATOR = Seeing()


def digest(n: int) -> str:
    return f"{n:064x}"


def state(n: int) -> np.ndarray:
    return np.array([n, n + 0.5, -n], np.float32)


def fill(store: StateStore, numbers: Iterable[int]) -> None:
    with store.held():
        store.put({digest(n): state(n) for n in numbers})


def held(store: StateStore, numbers: Iterable[int]) -> list[int]:
    """The numbers, out of some, with stored features; wrong features are an error."""
    wanted = list(numbers)
    found = store.get(digest(n) for n in wanted)
    check_right(found, wanted)
    assert store.missing(digest(n) for n in wanted) == [digest(n) for n in wanted if digest(n) not in found]
    return [n for n in wanted if digest(n) in found]


def check_right(found: Mapping[str, np.ndarray], numbers: Iterable[int]) -> None:
    for n in numbers:
        if digest(n) in found:
            assert found[digest(n)].tolist() == state(n).tolist()


def files(album: Path) -> list[Path]:
    return sorted(album.glob("states-*/*.safetensors"))


def all_but(*numbers: int) -> Any:
    return lambda digests: set(digests) - set(map(digest, numbers))


@pytest.mark.parametrize("on_disk", [True, False])
def test_stored_features_can_be_read(tmp_path: Path, on_disk: bool) -> None:
    store = StateStore(GENERATOR, tmp_path if on_disk else None)
    assert held(store, range(3)) == [] and (store._folder is None) is not on_disk
    fill(store, range(5))
    fill(store, [7])
    fill(store, [])
    assert held(store, [0, 4, 4, 6, 7]) == [0, 4, 4, 7]
    found = store.get([digest(3)])[digest(3)]
    assert (found.shape, found.dtype, found.flags.writeable) == ((3,), np.float32, False)
    assert len(files(tmp_path)) == (2 if on_disk else 0)
    again = StateStore(GENERATOR, tmp_path)
    assert held(again, range(9)) == ([0, 1, 2, 3, 4, 7] if on_disk else [])


def test_features_in_memory_are_a_copy_and_can_be_swept() -> None:
    store, mine = StateStore(GENERATOR), state(1)
    store.put({digest(1): mine})
    mine[:] = 9
    fill(store, range(2, 5))
    assert held(store, range(5)) == [1, 2, 3, 4]
    store.sweep(all_but(2, 3))
    assert held(store, range(5)) == [1, 4]


def test_any_shape_and_dtype(tmp_path: Path) -> None:
    class Other(Seeing):
        state_shape = (4, 5)  # type: ignore[assignment]
        state_dtype = np.dtype(np.float16)

    rows = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float16)
    StateStore(Other(), tmp_path).put({digest(n): row for n, row in enumerate(rows)})
    found = StateStore(Other(), tmp_path).get([digest(2), digest(0)])
    assert np.array_equal(found[digest(2)], rows[2]) and found[digest(0)].dtype == np.float16


def test_features_of_another_generator_are_not_used(tmp_path: Path) -> None:
    fill(StateStore(Seeing(1), tmp_path), range(3))
    other = StateStore(Seeing(2), tmp_path)
    assert held(other, range(3)) == []
    fill(other, [1])
    assert held(StateStore(Seeing(1), tmp_path), range(3)) == [0, 1, 2]
    (theirs,) = set(tmp_path.iterdir()) - {other._folder}
    files(theirs.parent)[0].rename(other._folder / "0123456789abcdef.safetensors")  # type: ignore[operator]
    with pytest.warns(RuntimeWarning, match="not made by this generator"):
        assert held(StateStore(Seeing(2), tmp_path), range(3)) in ([1], [])


def test_two_precisions_of_a_generator_have_separate_features(tmp_path: Path) -> None:
    class Narrow(Seeing):
        state_dtype = np.dtype(np.float16)

    fill(StateStore(Seeing(), tmp_path), range(3))
    assert held(StateStore(Narrow(), tmp_path), range(3)) == []  # and no warning of damage
    assert held(StateStore(Seeing(), tmp_path), range(3)) == [0, 1, 2]


def test_features_in_memory_move_to_a_directory(tmp_path: Path) -> None:
    store = StateStore(GENERATOR)
    fill(store, range(4))
    store.move_to(tmp_path)
    fill(store, [9])
    assert store._folder is not None and held(store, range(10)) == [0, 1, 2, 3, 9]
    assert held(StateStore(GENERATOR, tmp_path), range(10)) == [0, 1, 2, 3, 9]
    empty = StateStore(GENERATOR)
    (tmp_path / "file").touch()
    with pytest.raises(AlbumError, match="image features cannot be stored in"):
        empty.move_to(tmp_path / "file")
    assert empty._folder is None


def test_deleted_features_are_missing_and_can_be_stored_again(tmp_path: Path) -> None:
    store = StateStore(GENERATOR, tmp_path)
    fill(store, range(3))
    for file in files(tmp_path):
        file.unlink()
    assert held(store, range(3)) == []
    fill(store, [1])
    assert held(store, range(3)) == [1]
    for file in files(tmp_path):
        file.unlink()
    store._folder.rmdir()  # type: ignore[union-attr]
    assert held(store, range(3)) == []
    fill(store, [2])
    assert held(store, range(3)) == [2]


# --- sweeping


def test_sweep_deletes_features_of_removed_images_and_merges_small_files(tmp_path: Path) -> None:
    store = StateStore(GENERATOR, tmp_path)
    for n in range(10):
        fill(store, [n, 100 + n])
    store.sweep(all_but(3, 104))
    assert len(files(tmp_path)) == 1
    expected = [n for n in [*range(10), *range(100, 110)] if n not in (3, 104)]
    assert held(store, range(200)) == expected
    assert held(StateStore(GENERATOR, tmp_path), range(200)) == expected
    before = files(tmp_path)
    store.sweep(all_but(3, 104))
    assert files(tmp_path) == before, "nothing is written again for nothing"
    store.sweep(all_but(*range(9), *range(100, 200)))
    assert held(StateStore(GENERATOR, tmp_path), range(200)) == [9]
    store.sweep(all_but(9))
    assert files(tmp_path) == [] and held(store, range(200)) == []


def test_large_files_are_rewritten_only_if_most_images_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(GENERATOR, tmp_path)
    fill(store, range(10))
    fill(store, range(10, 20))
    before = files(tmp_path)
    monkeypatch.setattr(features, "_SMALL", 0)
    store.sweep(all_but(1, 2, 11))
    assert files(tmp_path) == before
    store.sweep(all_but(*range(8)))
    assert len(set(files(tmp_path)) - set(before)) == 1 and len(files(tmp_path)) == 2
    for one in (store, StateStore(GENERATOR, tmp_path)):
        assert set(held(one, range(20))) - {11} == set(range(8, 20)) - {11}


def test_sweep_merges_no_more_than_its_memory_limit_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_SMALL", 3 * 12)  # three images of three float32
    store = StateStore(GENERATOR, tmp_path)
    for n in range(10):
        fill(store, [n])
    store.sweep(all_but())
    assert len(files(tmp_path)) == 4 and held(store, range(10)) == list(range(10))


def test_reading_some_features_reads_no_other_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(GENERATOR, tmp_path)
    fill(store, range(50))
    (path,) = files(tmp_path)
    with path.open("rb") as file:
        watched = Mock(wraps=file)
        monkeypatch.setattr(Path, "open", lambda *_, **__: nullcontext(watched))
        found = store.get([digest(3), digest(7)])
    check_right(found, [3, 7])
    assert [call.args[0].nbytes for call in watched.readinto.call_args_list] == [12, 12]
    watched.read.assert_not_called()


def test_sweep_deletes_temporary_files_of_killed_processes(tmp_path: Path) -> None:
    store = StateStore(GENERATOR, tmp_path)
    fill(store, [1])
    leftover = files(tmp_path)[0].with_name(".9a41d5b07c22e6f8.safetensors.0011223344556677.tmp")
    leftover.write_bytes(b"half")
    store.sweep(all_but())
    assert not leftover.exists() and held(store, [1]) == [1]


def test_sweep_waits_until_the_image_is_added(tmp_path: Path) -> None:
    for album in (tmp_path, None):
        store = StateStore(GENERATOR, album)
        images: set[str] = set()
        swept = threading.Thread(target=lambda s=store, i=images: s.sweep(lambda digests: i & set(digests)))
        with store.held():
            store.put({digest(1): state(1)})
            swept.start()
            time.sleep(0.05)
            images.add(digest(1))
        swept.join()
        assert held(store, [1]) == [1]


# --- damage


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x10
    file.write_bytes(content)


def test_flipped_byte_anywhere_is_detected(tmp_path: Path) -> None:
    fill(StateStore(GENERATOR, tmp_path), range(3))
    (file,) = files(tmp_path)
    sound = file.read_bytes()
    rows = len(sound) - 3 * 12
    for position in [*range(0, rows, 7), *range(rows, len(sound))]:
        flip(file, position)
        with pytest.warns(RuntimeWarning, match="damaged.*computed again"):
            found = held(StateStore(GENERATOR, tmp_path), range(3))
        assert len(found) == (0 if position < rows else 2)
        file.write_bytes(sound)
    assert held(StateStore(GENERATOR, tmp_path), range(3)) == [0, 1, 2]


def test_file_truncated_anywhere_is_detected(tmp_path: Path) -> None:
    fill(StateStore(GENERATOR, tmp_path), range(3))
    (file,) = files(tmp_path)
    sound = file.read_bytes()
    for length in [*range(0, len(sound), 9), len(sound) - 1]:
        file.write_bytes(sound[:length])
        with pytest.warns(RuntimeWarning, match="damaged"):
            assert held(StateStore(GENERATOR, tmp_path), range(3)) == []


def test_damage_while_in_use_is_detected_replaced_and_swept(tmp_path: Path) -> None:
    store = StateStore(GENERATOR, tmp_path)
    fill(store, range(8))
    (file,) = files(tmp_path)
    flip(file, file.stat().st_size - 1)
    with pytest.warns(RuntimeWarning, match="1 of 8 image features in .* are damaged"):
        assert held(store, range(8)) == list(range(7))
    fill(store, [7])
    assert held(store, range(8)) == list(range(8))
    store.sweep(all_but())
    assert not file.exists()
    assert held(StateStore(GENERATOR, tmp_path), range(8)) == list(range(8))

    (file,) = files(tmp_path)
    flip(file, 3)
    with pytest.warns(RuntimeWarning, match="header"):
        other = StateStore(GENERATOR, tmp_path)
    assert held(other, range(8)) == [], "and it is not said twice"
    other.sweep(all_but())
    assert files(tmp_path) == []


def test_full_disk_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = StateStore(GENERATOR, tmp_path)
    fill(store, [1])

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", Mock(side_effect=OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space left"):
            store.put({digest(2): state(2)})
    assert held(store, [1, 2]) == [1] and len(list(files(tmp_path)[0].parent.iterdir())) == 1
    fill(store, [2])
    assert held(store, [1, 2]) == [1, 2]


# --- against a model


class StoreMachine(RuleBasedStateMachine):
    """Two stores of one directory against the set of images."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.album = Path(self.folder.name)
        self.stores = [StateStore(GENERATOR, self.album) for _ in range(2)]
        self.images: set[int] = set()

    @rule(which=st.integers(0, 1), numbers=st.lists(st.integers(0, 12), max_size=5))
    def put(self, which: int, numbers: list[int]) -> None:
        fill(self.stores[which], numbers)
        self.images |= set(numbers)

    @rule(gone=st.sets(st.integers(0, 12)))
    def remove(self, gone: set[int]) -> None:
        self.images -= gone

    @rule(which=st.integers(0, 1))
    def sweep(self, which: int) -> None:
        self.stores[which].sweep(lambda digests: set(digests) & set(map(digest, self.images)))

    @rule(which=st.integers(0, 1))
    def reopen(self, which: int) -> None:
        self.stores[which] = StateStore(GENERATOR, self.album)

    @invariant()
    def every_image_has_its_state(self) -> None:
        if hasattr(self, "images"):
            for store in self.stores:
                assert set(held(store, range(13))) >= self.images

    def teardown(self) -> None:
        if hasattr(self, "images"):
            for store in self.stores:
                store.sweep(lambda digests: set(digests) & set(map(digest, self.images)))
            assert set(held(self.stores[1], range(13))) >= self.images
            assert len(files(self.album)) <= max(1, len(self.images))
            self.stores.clear()
            self.folder.cleanup()


@pytest.mark.parametrize("examples", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_two_stores_agree_with_a_set_of_images(examples: int) -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=examples, stateful_step_count=20, deadline=None)
    )


def test_threads_store_read_and_sweep_at_once(tmp_path: Path) -> None:
    stores = [StateStore(GENERATOR, tmp_path) for _ in range(2)]
    images: set[str] = set()
    done: set[int] = set()

    def put(store: StateStore, first: int) -> None:
        try:
            for n in range(first, first + 20):
                with store.held():
                    store.put({digest(n): state(n)})
                    images.add(digest(n))
                assert held(store, [n]) == [n]
        finally:
            done.add(first)

    def sweep(store: StateStore) -> None:
        while len(done) < 4:
            store.sweep(lambda digests: images & set(digests))
            found = store.get(digest(n) for n in range(100))  # `held` asks twice, and writers go on between
            check_right(found, range(100))

    writers = [
        lambda store=store, first=first: put(store, first)
        for store, first in zip(stores * 2, (0, 20, 40, 60), strict=True)
    ]
    together(*writers, *(lambda store=store: sweep(store) for store in stores))
    for store in (*stores, StateStore(GENERATOR, tmp_path)):
        assert held(store, range(100)) == list(range(80))
