"""Checks of ``save`` and ``load`` of an index."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from zsqretrieval.errors import IntegrityError, MismatchError
from zsqretrieval.protocols import Index
from zsqretrieval.testing.checks import Check, expect, expect_refusal, lister
from zsqretrieval.testing.index_model import (
    DIM,
    IndexFactory,
    expect_same_answers,
    expect_true_answers,
    expect_well_formed,
    filled,
    keys_from,
    saved_and_loaded,
    vectors_of,
)

_listed: list[Check[IndexFactory]] = []
_check = lister(_listed, lambda make_index: make_index)


@_check
def save_and_load_keep_every_answer(make_index: IndexFactory) -> None:
    """A loaded index has the same dim, fingerprint, len and answers, and saving does not change an index."""
    index, keys, _ = filled(make_index, 200, fingerprint="encoder 1")
    index.remove(keys[::5])
    queries = vectors_of(20, seed=1)
    before = index.search(queries, 10)
    loaded = saved_and_loaded(index)
    facts = (loaded.dim, loaded.fingerprint, len(loaded))
    expect(facts == (DIM, "encoder 1", 160), f"dim, fingerprint, len {(DIM, 'encoder 1', 160)}", facts)
    expect_same_answers(before, loaded.search(queries, 10), "an index and its loaded copy")
    expect_same_answers(before, index.search(queries, 10), "an index before and after saving it")


@_check
def empty_index_can_be_saved(make_index: IndexFactory) -> None:
    """An empty index survives save and load, and can be filled afterwards."""
    loaded = saved_and_loaded(make_index(DIM, fingerprint="encoder 1"))
    facts = (loaded.dim, loaded.fingerprint, len(loaded))
    expect(facts == (DIM, "encoder 1", 0), f"dim, fingerprint, len {(DIM, 'encoder 1', 0)}", facts)
    expect_well_formed(loaded.search(vectors_of(2), 3), 2, 3, stored=0)
    loaded.add(keys_from(3), vectors_of(3))
    expect_true_answers(
        loaded.search(vectors_of(2, seed=1), 3), vectors_of(2, seed=1), keys_from(3), vectors_of(3)
    )


@_check
def loaded_index_goes_on_working(make_index: IndexFactory) -> None:
    """A loaded index takes further adds and removes, and refuses keys it already has."""
    index, keys, vectors = filled(make_index, 40)
    loaded = saved_and_loaded(index)
    expect_refusal(lambda: loaded.add(keys[:1], vectors[:1]), "a key added before saving")
    new_keys, new_vectors = keys_from(300, first=100), vectors_of(300, seed=5)
    loaded.add(new_keys, new_vectors)
    loaded.remove(keys[:30])
    expect(len(loaded) == 310, "len 310", len(loaded))
    queries = vectors_of(5, seed=1)
    all_keys, all_vectors = np.append(keys[30:], new_keys), np.concatenate([vectors[30:], new_vectors])
    expect_true_answers(loaded.search(queries, 10), queries, all_keys, all_vectors)


@_check
def save_replaces_an_earlier_save(make_index: IndexFactory) -> None:
    """Saving to the same directory again leaves the new state only."""
    index, keys, vectors = filled(make_index, 50)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "index"
        index.save(path)
        index.remove(keys[:45])
        index.save(path)
        loaded = type(index).load(path)
        expect(len(loaded) == 5, "len 5, as saved last", len(loaded))
        expect_true_answers(loaded.search(vectors, 5), vectors, keys[45:], vectors[45:])


@_check
def load_refuses_missing_directory(make_index: IndexFactory) -> None:
    """Loading a missing or an empty directory is an IntegrityError."""
    kind = type(make_index(DIM))
    with tempfile.TemporaryDirectory() as folder:
        nowhere = Path(folder) / "nowhere"
        expect_refusal(lambda: kind.load(nowhere), "a missing directory", IntegrityError)
        expect_refusal(lambda: kind.load(Path(folder)), "an empty directory", IntegrityError)


@_check
def load_refuses_missing_file(make_index: IndexFactory) -> None:
    """Loading a save without one of its files is an IntegrityError."""
    with _save(make_index) as (kind, path):
        for file, content in _files(path):
            file.unlink()
            expect_refusal(lambda: kind.load(path), f"a save without {file.name}", IntegrityError)
            file.write_bytes(content)


@_check
def load_refuses_truncated_file(make_index: IndexFactory) -> None:
    """A save with a truncated file is refused, wherever the file ends."""
    with _save(make_index) as (kind, path):
        for file, content in _files(path):
            # more than the last byte: a text file may lack its final line break
            for size in sorted({0, len(content) // 2, max(len(content) - 2, 0)}):
                file.write_bytes(content[:size])
                what = f"{file.name} cut from {len(content)} to {size} bytes"
                expect_refusal(lambda: kind.load(path), what, (IntegrityError, MismatchError))
            file.write_bytes(content)


@_check
def load_refuses_flipped_bit(make_index: IndexFactory) -> None:
    """A save with one wrong bit in a file is refused, wherever the bit is."""
    with _save(make_index) as (kind, path):
        for file, content in _files(path):
            for position in np.unique(np.linspace(0, len(content) - 1, 12).astype(int)):
                damaged = bytearray(content)
                damaged[position] ^= 1
                file.write_bytes(damaged)
                what = f"{file.name} with a bit flipped in byte {position} of {len(content)}"
                expect_refusal(lambda: kind.load(path), what, (IntegrityError, MismatchError))
            file.write_bytes(content)


@_check
def load_refuses_other_dim(make_index: IndexFactory) -> None:
    """Loading with another ``dim`` is a MismatchError; with the right one it loads."""
    with _save(make_index) as (kind, path):
        expect(kind.load(path, dim=DIM).dim == DIM, f"an index of dim {DIM}", "another")
        expect_refusal(lambda: kind.load(path, dim=DIM + 1), f"dim {DIM + 1} for {DIM}", MismatchError)


@_check
def load_refuses_other_fingerprint(make_index: IndexFactory) -> None:
    """Loading for another encoder's fingerprint is a MismatchError; for the right one it loads."""
    with _save(make_index) as (kind, path):
        loaded = kind.load(path, fingerprint="encoder 1")
        expect(loaded.fingerprint == "encoder 1", "the fingerprint 'encoder 1'", repr(loaded.fingerprint))
        what = "the fingerprint 'encoder 2' for 'encoder 1'"
        expect_refusal(lambda: kind.load(path, fingerprint="encoder 2"), what, MismatchError)


storage_checks = tuple(_listed)
"""Checks of saving and loading; each takes ``make_index``."""


@contextmanager
def _save(make_index: IndexFactory) -> Iterator[tuple[type[Index], Path]]:
    """The class and the saved directory of an index of 50 vectors of "encoder 1"."""
    with tempfile.TemporaryDirectory() as folder:
        index, _, _ = filled(make_index, 50, fingerprint="encoder 1")
        path = Path(folder) / "index"
        index.save(path)
        yield type(index), path


def _files(path: Path) -> list[tuple[Path, bytes]]:
    """The files of a save that are not empty, as a lock file may be, and their content."""
    files = [(file, file.read_bytes()) for file in sorted(path.rglob("*")) if file.is_file()]
    return [(file, content) for file, content in files if content]
