"""The key-value cache."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from zsqretrieval._util.cache import Cache, cache_key
from zsqretrieval.errors import IntegrityError


def keys(count: int) -> list[bytes]:
    return [cache_key(str(n)) for n in range(count)]


@pytest.mark.parametrize("on_disk", [True, False])
def test_stored_values_are_returned_and_missing_keys_are_not(on_disk: bool, tmp_path: Path) -> None:
    values = {key: str(n).encode() for n, key in enumerate(keys(1200))}  # more than one SELECT
    with Cache(tmp_path / "new" / "cache.sqlite" if on_disk else None) as cache:
        cache.put_many(values)
        cache.put_many({cache_key("7"): b"replaced"})
        found = cache.get_many([*keys(1200), cache_key("missing"), cache_key("7")])
    assert found == values | {cache_key("7"): b"replaced"}


def test_two_open_caches_share_a_file_and_values_outlive_both(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with Cache(path) as one, Cache(path) as two:
        one.put_many({b"a": b"1"})
        two.put_many({b"b": b"2"})
        assert one.get_many([b"a", b"b"]) == two.get_many([b"a", b"b"]) == {b"a": b"1", b"b": b"2"}
    with Cache(path) as again:
        assert again.get_many([b"b"]) == {b"b": b"2"}


def test_a_failed_batch_stores_nothing(tmp_path: Path) -> None:
    with Cache(tmp_path / "cache.sqlite") as cache:
        with pytest.raises(TypeError):
            cache.put_many({b"a": b"1", b"b": None})  # type: ignore[dict-item]
        assert cache.get_many([b"a"]) == {}


@pytest.mark.parametrize(
    "damage", ["value = x'00'", "value = x''", "value = substr(value, 1, length(value) - 1)", "key = x'63'"]
)
def test_value_that_is_damaged_or_under_another_key_counts_as_missing(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    with Cache(path) as cache:
        cache.put_many({b"a": b"one", b"b": b"two"})
        with sqlite3.connect(path) as store:
            store.execute(f"UPDATE cache SET {damage} WHERE key = x'61'")
        assert cache.get_many([b"a", b"b", b"c"]) == {b"b": b"two"}


def test_the_oldest_values_beyond_the_capacity_are_dropped() -> None:
    with Cache(capacity=3) as cache:
        for n, key in enumerate(keys(5)):
            cache.put_many({key: bytes([n])})
        assert cache.get_many(keys(5)).keys() == set(keys(5)[2:])


def test_a_file_that_is_not_a_cache_is_named_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, and long enough to be checked" * 10)
    with pytest.raises(IntegrityError, match=r"notes\.txt cannot be used: file is not a database; delete"):
        Cache(path)
    cache = Cache(tmp_path / "closed.sqlite")
    cache.close()
    with pytest.raises(IntegrityError, match="closed"):
        cache.get_many([b"a"])


def test_keys_depend_on_every_part() -> None:
    parts = [("a", "b"), ("b", "a"), ("ab",), ("a", "b", ""), ("a", "b\ud800")]
    assert len({cache_key(*one) for one in parts}) == len(parts)
